"""Parameters and buffers as attributes of a layer: ``layer.weight``, ``layer.weight = value``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np

from ._dtypes import stored
from ._interop import Array, library_of
from ._owned import check_owned, numpy_dtype, write

if TYPE_CHECKING:
    from ._layer import _Layer

Held = TypeVar("Held")  # Array, or Array | None


class ArrayAttribute(Generic[Held]):
    """The array of this name in the layer's ``parameters`` or ``buffers``, None where it has none.

    Assigning copies the values into the array that is there, so that whoever holds it, such as an
    optimizer, sees them. The value may be an array of any library in the array's shape and dtype,
    or a list or number, which have no dtype of their own. Another shape is a ValueError, another
    dtype a TypeError, and nothing has changed then.
    """

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, layer: None, owner: type) -> ArrayAttribute[Held]: ...
    @overload
    def __get__(self, layer: _Layer, owner: type) -> Held: ...
    def __get__(self, layer: _Layer | None, owner: type) -> Any:
        return self if layer is None else self._array(layer)

    def __set__(self, layer: _Layer, value: Any) -> None:
        array, name = self._array(layer), f"{type(layer).__name__}.{self._name}"
        if array is None:
            if value is not None:
                raise ValueError(f"{name} is absent in {layer!r}, expected None")
            return
        write(array, self._fitting(name, value, array))

    def _array(self, layer: _Layer) -> Array | None:
        arrays = layer.parameters if self._name in layer.parameters else layer.buffers
        return arrays.get(self._name)

    @staticmethod
    def _fitting(name: str, value: Any, array: Array) -> Any:
        """Return the value as an array that can be copied into ``array``."""
        shape, dtype = tuple(array.shape), numpy_dtype(array)
        if value is None:
            raise TypeError(f"{name} is None, expected an array of shape {shape}")
        # What lies on a device already stays there.
        elsewhere = not isinstance(array, np.ndarray) and library_of(value) == library_of(array)
        values = value if elsewhere else stored(value, name)
        if hasattr(value, "dtype"):
            # By name: every library has its own, and NumPy may have read it as another.
            fits = dtype.name in (str(d).rpartition(".")[2] for d in (values.dtype, value.dtype))
        else:
            fits = np.can_cast(values.dtype, dtype, "same_kind")
        if not fits:
            found = getattr(value, "dtype", values.dtype)
            raise TypeError(f"{name} has dtype {found}, expected {array.dtype}")
        if tuple(values.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(values.shape)}, expected {shape}")
        check_owned(name, array)
        return values


def always(doc: str) -> ArrayAttribute[Array]:
    """An array that every layer of the class has."""
    return ArrayAttribute(doc)


def maybe(doc: str) -> ArrayAttribute[Array | None]:
    """An array that the layer may have been made without."""
    return ArrayAttribute(doc)
