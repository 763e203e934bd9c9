"""Arrays between memory pages that nobody may touch: a stray access ends the process at once.

`Pages` are whole pages; an array is put directly before the forbidden page behind them, or directly
behind the one before. What is left of them is filled, and `untouched` tells whether it still is.
"""

import ctypes
import mmap

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

PROT_NONE = 0
FILL = 0xFF  # NaN, in every dtype


def extent(array):
    """Bytes before the first element and behind it, up to the end of the last one."""
    before, behind = 0, array.itemsize
    for n, stride in zip(array.shape, array.strides, strict=True):
        reach = (n - 1) * stride
        before, behind = before - min(reach, 0), behind + max(reach, 0)
    return before, behind


class Pages:
    """Use as a context: at its end the memory is given back, and its arrays must be gone."""

    def __init__(self):
        self._mapped = []
        self._watched = []

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        self._watched.clear()
        if error is not None:
            return  # reports show arrays: these pages stay
        for address, size in self._mapped:
            _libc.munmap(address, size)

    def put(self, array, at_end):
        """The array with its strides and values; gaps between its elements are filled."""
        before, behind = extent(array)
        size = -(-(before + behind) // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = self._map(size)
        place = size - behind if at_end else before
        view = np.ndarray(array.shape, array.dtype, memory, place, array.strides)
        view[...] = array
        self._watched.append((np.frombuffer(memory, np.uint8), view))
        return view

    def _map(self, size):
        whole = size + 2 * mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        address = _libc.mmap(None, whole, PROT_NONE, flags, -1, 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")
        self._mapped.append((address, whole))
        inside = address + mmap.PAGESIZE
        if _libc.mprotect(inside, size, mmap.PROT_READ | mmap.PROT_WRITE):
            raise OSError(ctypes.get_errno(), "mprotect")
        ctypes.memset(inside, FILL, size)
        return (ctypes.c_char * size).from_address(inside)

    def untouched(self):
        """Whether everything beside the elements is as it was. They are lost."""
        for memory, view in self._watched:
            view[...] = np.full((), FILL, np.uint8).repeat(view.itemsize).view(view.dtype)[0]
            if (memory != FILL).any():
                return False
        return True
