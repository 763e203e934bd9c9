"""A library of arrays with DLPack's table of C functions, and nothing else.

Its memory is NumPy's, which the emulated device takes for its own.
"""

import ctypes

import numpy as np
from lying_dlpack import KINDS, Deleter, Device, DLTensor, ManagedVersioned, new_capsule

Allocate = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
)
FromObject = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)
ToObject = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
Stream = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p)
SetError = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)


class Table(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("older", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("from_object", ctypes.c_void_p),
        ("to_object", ctypes.c_void_p),
        ("view_object", ctypes.c_void_p),
        ("current_stream", ctypes.c_void_p),
    )


def address(function):
    return ctypes.cast(function, ctypes.c_void_p).value


class Library:
    """``Array`` is its class of arrays, ``asked`` the functions that were called."""

    def __init__(self, device=(1, 0), stream=0, version=(1, 3), older=None, lends=True):
        self.asked = []
        self.flags = 0
        self.out_of_memory = False
        self._kept = []
        self.alive = 0  # tensors that nobody has given back

        def describe(tensor, array):
            shape = (ctypes.c_int64 * max(1, array.ndim))(*array.shape)
            steps = [s // array.itemsize for s in array.strides]
            strides = (ctypes.c_int64 * max(1, array.ndim))(*steps)
            self._kept += [array, shape, strides]
            tensor.data, tensor.device, tensor.ndim = array.ctypes.data, Device(*device), array.ndim
            tensor.dtype.code, tensor.dtype.bits = KINDS.get(array.dtype.str[1:], (0, 0))
            tensor.dtype.lanes = 1
            tensor.shape, tensor.strides = ctypes.addressof(shape), ctypes.addressof(strides)
            tensor.byte_offset = 0

        def hand_out(array, out):
            managed = ManagedVersioned(major=1, minor=3, flags=self.flags)
            describe(managed.tensor, array)

            def delete(_):
                self.alive -= 1

            deleter = Deleter(delete)
            managed.deleter = address(deleter)
            self._kept += [managed, deleter]
            self.alive += 1
            ctypes.c_void_p.from_address(out).value = ctypes.addressof(managed)
            return 0

        def allocate(like, out, error, set_error):
            self.asked.append("allocate")
            if self.out_of_memory:
                SetError(set_error)(error, b"MemoryError", b"all of it is in use")
                return -1
            like = DLTensor.from_address(like)
            assert (like.device.type, like.device.index) == device
            shape = (ctypes.c_int64 * like.ndim).from_address(like.shape)
            kinds = {v: k for k, v in KINDS.items()}
            dtype = np.dtype(kinds[like.dtype.code, like.dtype.bits])
            return hand_out(np.full(tuple(shape), np.nan, dtype), out)

        def from_object(array, out):
            self.asked.append("from_object")
            return hand_out(array.array, out)

        def view_object(array, out):
            self.asked.append("view_object")
            describe(DLTensor.from_address(out), array.array)
            return 0

        def to_object(managed, out):
            self.asked.append("to_object")
            t = ManagedVersioned.from_address(managed).tensor
            shape = (ctypes.c_int64 * t.ndim).from_address(t.shape)[:]
            strides = (ctypes.c_int64 * t.ndim).from_address(t.strides)[:]
            kind = {v: k for k, v in KINDS.items()}[t.dtype.code, t.dtype.bits]
            size = int(kind[1])
            memory = (ctypes.c_char * (int(np.prod(shape)) * size)).from_address(t.data)
            flat = np.frombuffer(memory, kind)
            array = np.lib.stride_tricks.as_strided(flat, shape, [s * size for s in strides])
            made = self.Array(array)
            ctypes.c_void_p.from_address(out).value = id(made)
            self._kept += [made, made]
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
            return 0

        def current_stream(kind, index, out):
            self.asked.append("current_stream")
            assert (kind, index) == device
            ctypes.c_void_p.from_address(out).value = stream or None
            return 0

        functions = [
            Allocate(allocate),
            FromObject(from_object),
            ToObject(to_object),
            FromObject(view_object) if lends else None,
            Stream(current_stream),
        ]
        self.table = Table(*version, older and ctypes.addressof(older.table))
        names = ("allocate", "from_object", "to_object", "view_object", "current_stream")
        for name, function in zip(names, functions, strict=True):
            if function is not None:
                setattr(self.table, name, address(function))
        self._kept += functions
        capsule = new_capsule(ctypes.addressof(self.table), b"dlpack_exchange_api", None)

        class Array:
            __dlpack_c_exchange_api__ = capsule

            def __init__(self, array):
                self.array = array

            def __dlpack_device__(_):
                return device

            def __dlpack__(array, *, stream=None, max_version=None):
                self.asked.append(("__dlpack__", stream))
                holder = ctypes.c_void_p()
                hand_out(array.array, ctypes.addressof(holder))
                return new_capsule(holder.value, b"dltensor_versioned", None)

        self.Array = Array
