"""The dtypes of layers: what their argument ``dtype`` and the arrays of a stored state may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._arguments import shown
from ._interop import Array, as_numpy

FLOATS = ("float16", "bfloat16", "float32", "float64")


def bfloat16() -> np.dtype[Any]:
    """Return NumPy's dtype bfloat16, which the package ml_dtypes has."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(
            "bfloat16 arrays of NumPy need the package ml_dtypes: pip install 'normcore[bfloat16]'"
        ) from error
    result: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return result


def float_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return the dtype of a layer's parameters, also by a name that NumPy does not know yet.

    None is float32, as torch's default.
    """
    if isinstance(dtype, str) and dtype == "bfloat16":
        return bfloat16()  # NumPy knows the name only once ml_dtypes has been imported
    rule = f"expected one of {', '.join(FLOATS)}"
    try:
        result: np.dtype[Any] = np.dtype(np.float32 if dtype is None else dtype)
    except (TypeError, ValueError):
        raise TypeError(f"dtype is {shown(dtype)}, {rule}") from None
    if result.name not in FLOATS:
        raise TypeError(f"dtype is {result.name}, {rule}")
    if not result.isnative:
        raise TypeError(f"dtype is {result.str}, {rule} in the byte order of this machine")
    return result


def new_array(shape: int | tuple[int, ...], dtype: npt.DTypeLike, name: str) -> Array:
    """Return an array to be filled, of a shape that the argument called ``name`` asks for."""
    try:
        return np.empty(shape, dtype)
    except ValueError:  # more bytes than addresses can tell apart, or too many axes
        raise ValueError(
            f"{name} asks for an array of shape {shown(shape)}, expected one that memory can hold"
        ) from None


def stored(value: Any, name: str) -> Array:
    """Return an array of a stored state, of any library, as a NumPy array.

    NumPy writes bfloat16 to its files as raw elements of two bytes. No other dtype comes back as
    these, so they are read as bfloat16 here, without a copy.
    """
    array = as_numpy(value, name)
    if array.dtype.kind == "V" and array.dtype.itemsize == 2 and array.dtype.names is None:
        return array.view(bfloat16())
    return array
