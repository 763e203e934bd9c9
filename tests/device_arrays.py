"""Arrays of a library that has a device, for the emulation: their memory is the host's.

What is handed out says by DLPack that it lies on a CUDA device, and results are taken over in the
same way: nothing that asks NumPy for its elements can read them.
"""

import ctypes
import sys

import ml_dtypes
import numpy as np
from lying_dlpack import DLTensor, Lying

KINDS = {(2, 16): np.float16, (2, 32): np.float32, (2, 64): np.float64}
KINDS[4, 16] = ml_dtypes.bfloat16
pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype = ctypes.c_void_p
pointer_of.argtypes = (ctypes.py_object, ctypes.c_char_p)


# A capsule's deleter is a function of its exporter, called when the device has done its work:
# after the call, or at the end of the process.
LENT = []


class DeviceArray(Lying):
    def __init__(self, array):
        half = {"capsule_code": 4, "capsule_bits": 16} if array.dtype == ml_dtypes.bfloat16 else {}
        super().__init__(array, device=(2, 0), capsule_device=(2, 0), **half)
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __dlpack__(self, **options):
        LENT.append(self)
        return super().__dlpack__(**options)

    def __array_namespace__(self):
        return sys.modules[__name__]

    def __array__(self, *_args, **_options):
        raise AssertionError("NumPy reads an array of a device")


def from_dlpack(buffer):
    """What takes results over."""
    assert buffer.__dlpack_device__() == (2, 0)
    capsule = buffer.__dlpack__(stream=-1)
    t = DLTensor.from_address(pointer_of(capsule, b"dltensor"))
    shape = (ctypes.c_int64 * t.ndim).from_address(t.shape) if t.ndim else ()
    strides = (ctypes.c_int64 * t.ndim).from_address(t.strides) if t.ndim else ()
    dtype = np.dtype(KINDS[t.dtype.code, t.dtype.bits])
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    count = 0 if 0 in tuple(shape) else last + 1
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(t.data)
    flat = np.frombuffer(memory, dtype)
    array = np.lib.stride_tricks.as_strided(
        flat, tuple(shape), [s * dtype.itemsize for s in strides]
    )
    result = DeviceArray(array)
    result.owner = capsule
    return result
