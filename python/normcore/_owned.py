"""Arrays that a layer owns: of NumPy, or of PyTorch or CuPy, on a device.

What layers do with their arrays, beside giving them to functions, once for all libraries. Nothing
but `in_numpy`, and what copies from NumPy, waits for a device.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ._arguments import shown
from ._dtypes import bfloat16
from ._interop import Array, as_numpy, library_of

_LIBRARIES = ("numpy", "torch", "cupy")


def numpy_dtype(array: Any) -> np.dtype[Any]:
    """Return what NumPy calls the dtype of an array of any library."""
    dtype = array.dtype
    if isinstance(dtype, np.dtype):
        return dtype
    name = str(dtype).rpartition(".")[2]
    return bfloat16() if name == "bfloat16" else np.dtype(name)


def in_numpy(array: Any) -> Array:
    """Return an array of NumPy as it is, and a copy in NumPy of any other, of the same dtype."""
    if isinstance(array, np.ndarray):
        return array
    if str(array.dtype) == "torch.bfloat16":  # which torch does not hand to NumPy
        bits = array.detach().cpu().view(sys.modules["torch"].int16)
        array = bits.numpy().view(bfloat16())
    return np.array(as_numpy(array))


def like(target: Any, values: Any) -> Any:
    """Return a new array of the values, of the library, the device and the dtype of ``target``."""
    library, dtype = library_of(target), numpy_dtype(target)
    if library == "torch":
        return _in_torch(np.asarray(in_numpy(values), dtype), target.device)
    if library == "cupy":
        return _in_cupy(np.asarray(in_numpy(values), dtype), target.device)
    return np.array(in_numpy(values), dtype)


def _in_torch(values: Any, device: Any) -> Any:
    """Return a new tensor on a device of torch."""
    torch = sys.modules["torch"]
    if isinstance(values, torch.Tensor):
        return values.detach().to(device, copy=True)
    values = np.array(in_numpy(values))  # of its own memory, which torch may keep
    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(values).to(device)


def _in_cupy(values: Any, device: Any) -> Any:
    """Return a new array on a device of CuPy."""
    with device:
        return sys.modules["cupy"].array(
            values if library_of(values) == "cupy" else in_numpy(values)
        )


def write(to: Any, values: Any) -> None:
    """Copy values of any library, or one number, into an array that a layer owns."""
    if values is to:
        return
    if not isinstance(values, float | int) and library_of(values) != library_of(to):
        values = in_numpy(values) if isinstance(to, np.ndarray) else like(to, values)
    to[...] = values


def cast(array: Any, dtype: Any) -> Any:
    """Return an array in a dtype of its library."""
    return array.to(dtype) if library_of(array) == "torch" else array.astype(dtype)


def wide(array: Any) -> Any:
    """Return an array in float64."""
    return array.double() if library_of(array) == "torch" else array.astype(np.float64)


def copied(array: Any) -> Any:
    return array.clone() if library_of(array) == "torch" else array.copy()


def zeros_like(array: Any) -> Any:
    return np.zeros_like(array) if isinstance(array, np.ndarray) else _of(array).zeros_like(array)


def where(condition: Any, values: Any, otherwise: float) -> Any:
    return _of(condition).where(condition, values, otherwise)


def clamped(array: Any, least: float, most: float | None = None) -> Any:
    """Return an array of what is within bounds, which its dtype can hold; NaN stays."""
    if library_of(array) == "torch":
        return array.clamp(least, most)
    one = array.dtype.type
    return array.clip(one(least), None if most is None else one(most))


def _of(array: Any) -> Any:
    return sys.modules[library_of(array)]


def check_owned(name: str, value: Any, error: type[Exception] = ValueError) -> None:
    """Make sure that a layer can write an array."""
    if isinstance(value, np.ndarray):
        if not value.flags.writeable:
            raise error(f"{name} is read-only, expected memory that can be written")
    elif library_of(value) not in _LIBRARIES or not hasattr(value, "dtype"):
        raise TypeError(f"{name} is {shown(value)}, expected an array of NumPy, PyTorch or CuPy")


def mover(device: Any) -> Callable[[Any], Any]:
    """Return what makes a copy of an array where ``device`` says: see `_Layer.to`."""
    rule = "a device of PyTorch, its name, or an array of NumPy, PyTorch or CuPy"
    if isinstance(device, str) and device != "cpu":
        try:
            torch = importlib.import_module("torch")
        except ImportError as error:
            raise ImportError(
                f"device is {shown(device)}, a name of PyTorch, which is not installed: give an "
                "array of the library that x is of"
            ) from error
        try:
            device = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device is {shown(device)}, expected {rule}: {error}") from None
    library = "numpy" if isinstance(device, str) else library_of(device)
    is_device = isinstance(device, str) or type(device).__name__.lower() == "device"
    if library not in _LIBRARIES or not (is_device or hasattr(device, "dtype")):
        raise TypeError(f"device is {shown(device)}, expected {rule}")
    if not is_device:
        device = getattr(device, "device", None)
    if library == "torch":
        return lambda array: _in_torch(array, device)
    if library == "cupy":
        return lambda array: _in_cupy(array, device)
    return lambda array: np.array(in_numpy(array))
