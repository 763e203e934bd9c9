"""Exporters of DLPack capsules that say whatever a test wants, true or not."""

import ctypes


class Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("index", ctypes.c_int32))


class DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    _fields_ = (
        ("tensor", DLTensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)

KINDS = {"f2": (2, 16), "f4": (2, 32), "f8": (2, 64)}


class Lying:
    """``array`` through DLPack, with what the keywords say in place of the truth.

    ``deleted`` counts calls of the deleter, ``given`` the capsules.
    """

    def __init__(self, array, *, device=(1, 0), version=None, flags=0, name=None, **tensor):
        self.array = array
        self.device, self.version, self.flags, self.name = device, version, flags, name
        self.tensor = tensor
        self.given = self.deleted = 0
        self._kept = []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        self.given += 1
        code, bits = KINDS.get(self.array.dtype.str[1:], (0, 0))
        truth = {
            "data": self.array.ctypes.data,
            "device": (1, 0),
            "shape": self.array.shape,
            "strides": [s // self.array.itemsize for s in self.array.strides],
            "code": code,
            "bits": bits,
            "lanes": 1,
            "byte_offset": 0,
        }
        said = truth | {key.removeprefix("capsule_"): value for key, value in self.tensor.items()}
        managed = Managed() if self.version is None else ManagedVersioned()
        t = managed.tensor
        t.data = said["data"]
        t.device = Device(*said["device"])
        t.dtype = DataType(said["code"], said["bits"], said["lanes"])
        t.ndim = said.get("ndim", len(said["shape"] or ()))
        t.byte_offset = said["byte_offset"]
        for key in ("shape", "strides"):
            if said[key] is not None:
                numbers = (ctypes.c_int64 * max(1, len(said[key])))(*said[key])
                setattr(t, key, ctypes.addressof(numbers))
                self._kept.append(numbers)
        deleter = Deleter(self._delete)
        managed.deleter = ctypes.cast(deleter, ctypes.c_void_p).value
        if self.version is not None:
            managed.major, managed.minor = self.version
            managed.flags = self.flags
        name = self.name or (b"dltensor" if self.version is None else b"dltensor_versioned")
        self._kept += [managed, deleter, name]
        return new_capsule(ctypes.addressof(managed), name, None)

    def _delete(self, _):
        self.deleted += 1


class Stale(Lying):
    """Gives the same capsule to everybody."""

    def __dlpack__(self, **options):
        if not self.given:
            self.capsule = super().__dlpack__()
        return self.capsule
