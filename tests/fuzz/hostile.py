"""What no caller should pass, but some do: wrong kinds, numbers out of every range, arrays that are
not what they seem, objects whose special methods raise or lie, DLPack capsules that lie.

Everything is made anew for each call; an object says in its repr what it is.
"""

import array
import ctypes as C

import numpy as np

INTS = (-1, 0, 2, 33, -40, 2**31, -(2**31) - 1, 2**40, 2**63, -(2**63), 2**64, 10**30)
FLOATS = (float("nan"), float("inf"), float("-inf"), -1.0, 0.0, -0.0, 1e-320, 1e308, 2.5)
# Valid for no argument at all.
NEVER = {
    "object()": object,
    "lambda": lambda: lambda: None,
    "...": lambda: ...,
    "a dict": lambda: {"a": 1},
    "a set": lambda: {1, 2},
    "complex": lambda: 1 + 2j,
    "bytes": lambda: b"1",
    "a word": lambda: "False",
    "a type": lambda: int,
    "a generator": lambda: (i for i in range(2)),
    "a memory error": lambda: MemoryError("of another"),
}


class HostileError(Exception):
    """Raised by the objects here: a function may let it through."""


def boom(*args, **kwargs):
    raise HostileError("from a special method")


def _object(name, **methods):
    methods["__repr__"] = lambda self: f"<{name}>"
    return type("Hostile", (), methods)()


SPECIAL = {
    "__index__ raises": {"__index__": boom},
    "__float__ raises": {"__float__": boom},
    "__index__ and __float__ are strings": {
        "__index__": lambda self: "1",
        "__float__": lambda self: "1.0",
    },
    "__index__ is huge": {"__index__": lambda self: 2**70, "__float__": lambda self: 1e308},
    "__bool__ raises": {"__bool__": boom},
    "__array__ raises": {"__array__": boom},
    "__array__ is a list": {"__array__": lambda self, dtype=None, copy=None: [1.0]},
    "__array__ is None": {"__array__": lambda self, dtype=None, copy=None: None},
    "__len__ is negative": {"__len__": lambda self: -3, "__getitem__": lambda self, i: 1},
    "__iter__ raises": {"__iter__": boom, "__len__": lambda self: 2},
    "__getattr__ raises": {"__getattr__": boom},
    "__dlpack__ raises": {"__dlpack__": boom, "__dlpack_device__": lambda self: (1, 0)},
    "__dlpack__ is None": {
        "__dlpack__": lambda self, **kw: None,
        "__dlpack_device__": lambda self: (1, 0),
    },
    "__dlpack_device__ raises": {
        "__dlpack__": lambda self, **kw: None,
        "__dlpack_device__": boom,
    },
    "__dlpack_device__ is a word": {
        "__dlpack__": lambda self, **kw: None,
        "__dlpack_device__": lambda self: "cpu",
    },
    "__cuda_array_interface__ is a word": {"__cuda_array_interface__": "cuda"},
    "__array_interface__ lies": {
        "__array_interface__": {"shape": (3,), "typestr": "<f4", "version": 3, "data": (0, False)}
    },
    "shape and dtype are words": {"shape": "x", "dtype": "y", "ndim": "z"},
}
OBJECTS = {name: (lambda n=name, m=methods: _object(n, **m)) for name, methods in SPECIAL.items()}


class RaisingArray(np.ndarray):
    """A subclass that refuses to be looked at through NumPy's protocols."""

    def __array_finalize__(self, obj):
        pass

    def __array_function__(self, *args, **kwargs):
        raise HostileError("from __array_function__")

    def __array_ufunc__(self, *args, **kwargs):
        raise HostileError("from __array_ufunc__")


def misaligned(a):
    raw = np.zeros(a.nbytes + a.itemsize + 1, np.uint8)
    view = raw[1 : 1 + a.nbytes].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def overlapping(a):
    """Neighbours in memory that belong to several elements."""
    flat = np.zeros(max(1, sum(a.shape)), a.dtype)
    return np.lib.stride_tricks.as_strided(flat, a.shape, (a.itemsize,) * a.ndim)


# From an array that fits to one that does not, or is unusual.
ARRAYS = {
    "int64": lambda a: a.astype(np.int64),
    "bool": lambda a: a.astype(bool),
    "complex64": lambda a: a.astype(np.complex64),
    "object": lambda a: a.astype(object),
    "words": lambda a: a.astype("U"),
    "dates": lambda a: np.zeros(a.shape, "datetime64[s]"),
    "records": lambda a: np.zeros(a.shape, [("re", "f4"), ("im", "f4")]),
    "long double": lambda a: a.astype(np.longdouble),
    "big-endian": lambda a: a.astype(np.float32).astype(">f4"),
    "float64": lambda a: a.astype(np.float64),
    "float16": lambda a: a.astype(np.float16),
    "one axis more": lambda a: a[None],
    "one axis less": lambda a: a[0] if a.ndim and len(a) else a[None, None],
    "one element more": lambda a: np.resize(a, (*a.shape[:-1], (a.shape or (0,))[-1] + 1)),
    "no elements": lambda a: a[..., :0] if a.ndim else np.zeros(0, a.dtype),
    "33 axes": lambda a: a.reshape(a.shape + (1,) * (33 - a.ndim)) if a.ndim < 33 else a,
    "a scalar": lambda a: a.dtype.type(1),
    "a list": lambda a: a.tolist(),
    "ragged": lambda a: [[1.0], [1.0, 2.0]],
    "read-only": read_only,
    "misaligned": misaligned,
    "overlapping": overlapping,
    "broadcast": lambda a: np.broadcast_to(np.ones((), a.dtype), a.shape),
    "masked": lambda a: np.ma.masked_array(a, mask=np.ones(a.shape, bool)),
    "raising subclass": lambda a: a.view(RaisingArray),
    "memoryview": lambda a: memoryview(a.astype(np.float32)),
    "array.array": lambda a: array.array("f", a.astype(np.float32).ravel().tolist()),
    "NaN and infinity": lambda a: np.resize(np.array([np.nan, np.inf, -np.inf], a.dtype), a.shape),
    "negative": lambda a: -np.abs(a) - a.dtype.type(1),
}


# ---- DLPack


class _Device(C.Structure):
    _fields_ = (("type", C.c_int32), ("id", C.c_int32))


class _DType(C.Structure):
    _fields_ = (("code", C.c_uint8), ("bits", C.c_uint8), ("lanes", C.c_uint16))


class _Tensor(C.Structure):
    _fields_ = (
        ("data", C.c_void_p),
        ("device", _Device),
        ("ndim", C.c_int32),
        ("dtype", _DType),
        ("shape", C.c_void_p),
        ("strides", C.c_void_p),
        ("byte_offset", C.c_uint64),
    )


class _Managed(C.Structure):
    _fields_ = (("tensor", _Tensor), ("context", C.c_void_p), ("deleter", C.c_void_p))


class _Version(C.Structure):
    _fields_ = (("major", C.c_uint32), ("minor", C.c_uint32))


class _Versioned(C.Structure):
    _fields_ = (
        ("version", _Version),
        ("context", C.c_void_p),
        ("deleter", C.c_void_p),
        ("flags", C.c_uint64),
        ("tensor", _Tensor),
    )


_new_capsule = C.pythonapi.PyCapsule_New
_new_capsule.restype = C.py_object
_new_capsule.argtypes = (C.c_void_p, C.c_char_p, C.c_void_p)
_kept = []  # the memory of the last capsules, whose consumers may never call the deleter


class Capsule:
    """Exports an array's memory by DLPack, with some of what is said about it changed."""

    def __init__(self, a, what, **changes):
        self.a, self.what, self.changes = np.ascontiguousarray(a), what, changes

    def __repr__(self):
        return f"<DLPack of {self.a.dtype}{self.a.shape}: {self.what}>"

    def __dlpack_device__(self):
        return self.changes.get("device", (1, 0))

    def __dlpack__(self, **kwargs):
        a, said = self.a, self.changes.get
        versioned = said("versioned", False)
        managed = _Versioned() if versioned else _Managed()
        shape = said("shape", a.shape)
        sizes = (C.c_int64 * max(1, len(shape)))(*shape)
        strides = said("strides")
        steps = (C.c_int64 * max(1, len(shape)))(*strides) if strides is not None else None
        t = managed.tensor
        t.data = a.ctypes.data if said("data", True) else None
        t.device = _Device(*said("inner_device", (1, 0)))
        t.ndim = said("ndim", len(shape))
        t.dtype = _DType(*said("dtype", (2, 8 * a.itemsize, 1)))
        t.shape = C.addressof(sizes) if said("has_shape", True) else None
        t.strides = C.addressof(steps) if steps is not None else None
        t.byte_offset = said("byte_offset", 0)
        if versioned:
            managed.version = _Version(said("major", 1), 0)
            managed.flags = said("flags", 0)
        name = C.create_string_buffer(
            said("name", b"dltensor_versioned" if versioned else b"dltensor")
        )
        _kept.append((managed, sizes, steps, a, name))
        del _kept[:-64]
        return _new_capsule(C.addressof(managed), name, None)


def _capsule(what, sound=False, **changes):
    def make(a):
        fits = {k: v(a) if callable(v) else v for k, v in changes.items()}
        return Capsule(a, what, **fits)

    return what, sound, make


# (what, whether the array may be used all the same, from an array to an exporter)
CAPSULES = (
    _capsule("all true", sound=True),
    _capsule("all true, versioned", sound=True, versioned=True),
    _capsule("no deleter", sound=True, versioned=True, major=1),
    _capsule("data null", data=False),
    _capsule("ndim -1", ndim=-1),
    _capsule("ndim 1000", ndim=1000),
    _capsule("ndim of 2**31 - 1", ndim=2**31 - 1),
    _capsule("shape null", has_shape=False),
    _capsule("a negative size", shape=lambda a: (-3,) * max(1, a.ndim)),
    _capsule("a product of sizes of 2**64", shape=lambda a: (2**32, 2**32)),
    _capsule("sizes of 2**62", shape=lambda a: (2**62,) * max(1, a.ndim)),
    _capsule("strides of 2**62", strides=lambda a: (2**62,) * max(1, a.ndim)),
    _capsule("strides of -2**63", strides=lambda a: (-(2**63),) * max(1, a.ndim)),
    _capsule("byte_offset 1", byte_offset=1),
    _capsule("byte_offset of 2**63", byte_offset=2**63),
    _capsule("7 bits", dtype=(2, 7, 1)),
    _capsule("two lanes", dtype=(2, 32, 2)),
    _capsule("no lanes", dtype=(2, 32, 0)),
    _capsule("code 77", dtype=(77, 32, 1)),
    _capsule("complex", dtype=(5, 64, 1)),
    _capsule("another device inside", inner_device=(2, 0)),
    _capsule("a device of 99", device=(99, 0), inner_device=(99, 0)),
    _capsule("CUDA, but in this memory", device=(2, 0), inner_device=(2, 0)),
    _capsule("a device of three numbers", device=(1, 0, 0)),
    _capsule("version 2", versioned=True, major=2),
    _capsule("version 2**32 - 1", versioned=True, major=2**32 - 1),
    _capsule("read-only", sound=True, versioned=True, flags=1),
    _capsule("another name", name=b"used_dltensor"),
)
