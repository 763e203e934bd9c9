"""What a call on a device asks of the libraries of its arrays, and leaves behind for them.

The device is the emulated one, whose memory is NumPy's; the libraries are stand-ins that note what
is done with them. Hunts for results of our own where the library can allocate, work on other
streams than the library's, streams that are not ordered, and memory that is given back too early.
"""

import contextlib
import ctypes
import gc
import glob
import os
import subprocess
import sys
import types
import weakref

import numpy as np
import pytest
from cuda_support import emulated_core_or_skip, running_on
from exchange_tables import Library
from lying_dlpack import Lying
from support import bits

import normcore as nc

rng = np.random.default_rng(5)
X = rng.normal(2, 1, (3, 4, 5)).astype(np.float32)
W, B = rng.normal(size=(2, 5)).astype(np.float32)
DY = rng.normal(size=X.shape).astype(np.float32)


class Device:
    """What the emulated runtime was asked for."""

    def __init__(self):
        (path,) = glob.glob(os.path.join(os.environ["NORMCORE_EMULATED_CUDA"], "_core*"))
        self.library = ctypes.CDLL(path)
        self.library.emulated_call.restype = ctypes.c_char_p
        self.library.emulated_capture.argtypes = (ctypes.c_void_p,)

    @contextlib.contextmanager
    def calls(self):
        self.library.emulated_record(1)
        found = []
        yield found
        i = 0
        while (call := self.library.emulated_call(i)) is not None:
            found.append(call.decode())
            i += 1
        self.library.emulated_record(0)

    def busy(self, value):
        self.library.emulated_busy(int(value))

    def capture(self, stream):
        self.library.emulated_capture(stream)


@pytest.fixture
def device():
    core = emulated_core_or_skip()
    device = Device()
    with running_on(core):
        yield device
    device.busy(False)
    device.capture(None)


def launches(calls):
    return {call.rpartition(" ")[2] for call in calls if call.startswith("cudaLaunch")}


def pool_results(calls):
    return [c for c in calls if c.startswith(("cudaMalloc", "cudaFree"))]


@pytest.fixture
def want(device):
    return nc.layer_norm(X, W), nc.layer_norm_backward(DY, X, W)


# ---- libraries with a table


def test_a_table_gives_stream_and_memory(device, want):
    library = Library(device=(2, 0), stream=77)
    with device.calls() as calls:
        y = nc.layer_norm(library.Array(X), library.Array(W), library.Array(B))
    assert type(y) is library.Array and bits(y.array) == bits(nc.layer_norm(X, W, B))
    assert launches(calls) == {"77"} and pool_results(calls) == []
    assert not [c for c in calls if c.startswith("cudaEvent")], "one stream needs no event"
    y, stats = nc.layer_norm(library.Array(X), library.Array(W), return_stats=True)
    grads = nc.layer_norm_backward(
        library.Array(DY), library.Array(X), library.Array(W), stats=stats
    )
    for got, exact in zip(grads[:2], want[1][:2], strict=True):
        assert type(got) is library.Array
        np.testing.assert_allclose(got.array, exact, rtol=1e-5, atol=1e-6)
    assert library.alive < 20
    assert not [a for a in library.asked if a[0] == "__dlpack__"]


def test_a_subclass_is_exported_without_a_wait_for_its_own_stream(device, want):
    library = Library(device=(2, 0), stream=77)
    kind = type("Derived", (library.Array,), {})
    with device.calls() as calls:
        y = nc.layer_norm(kind(X), kind(W))
    assert type(y) is library.Array and bits(y.array) == bits(want[0])
    assert [a for a in library.asked if a[0] == "__dlpack__"] == [("__dlpack__", -1)] * 2
    assert launches(calls) == {"77"}


def test_results_of_two_libraries_are_ordered_with_both_streams(device, want):
    a, b = Library(device=(2, 0), stream=77), Library(device=(2, 0), stream=88)
    with device.calls() as calls:
        grads = nc.layer_norm_backward(a.Array(DY), a.Array(X), b.Array(W))
    assert type(grads.dx) is a.Array and type(grads.dweight) is b.Array
    assert launches(calls) == {"77"}
    streams = [
        c for c in calls if c.startswith(("cudaEventRecord", "cudaStreamWait", "cudaLaunch"))
    ]
    before = ["cudaEventRecord 0 88", "cudaStreamWaitEvent 0 77"]
    after = ["cudaEventRecord 0 77", "cudaStreamWaitEvent 0 88"]
    assert streams[:2] == before and streams[-2:] == after
    assert bits(grads.dx.array) == bits(want[1].dx)


# ---- libraries that are known by name


class Foreign:
    """An array of a stand-in for a library with a device."""

    def __init__(self, array, log):
        self.array, self.log = array, log

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, *, stream=None, max_version=None):
        self.log.append(("export", stream, list(self.log.within)))
        return on_device(self.array).__dlpack__()


class Log(list):
    def __init__(self):
        self.within = []

    @contextlib.contextmanager
    def using(self, device):
        self.within.append(device)
        yield
        self.within.pop()


def fake_cupy(log, stream):
    class Of:
        id = 0

        def __enter__(self):
            self.manager = log.using("cupy")
            return self.manager.__enter__()

        def __exit__(self, *error):
            return self.manager.__exit__(*error)

    class ndarray(Foreign):
        dtype = property(lambda self: self.array.dtype)
        device = property(lambda self: Of())

        def transpose(self, axes):
            return ndarray(self.array.transpose(axes), log)

    def empty(shape, dtype):
        log.append(("empty", list(log.within)))
        return ndarray(np.full(shape, np.nan, dtype), log)

    ndarray.__module__ = "cupy"
    current = types.SimpleNamespace(ptr=stream)
    cuda = types.SimpleNamespace(get_current_stream=lambda device: current)
    return types.SimpleNamespace(from_dlpack=None, ndarray=ndarray, empty=empty, cuda=cuda)


def fake_torch(log, stream):
    """torch of before it had a table."""

    class Tensor(Foreign):
        device = "cuda:0"
        dtype = property(lambda self: self.array.dtype)

    def empty_strided(shape, strides, *, dtype, device):
        assert device == "cuda:0"
        log.append(("empty", list(log.within)))
        count = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        flat = np.full(count, np.nan, dtype)
        strides = [s * flat.itemsize for s in strides]
        return Tensor(np.lib.stride_tricks.as_strided(flat, shape, strides), log)

    Tensor.__module__ = "torch"
    current = types.SimpleNamespace(cuda_stream=stream)
    cuda = types.SimpleNamespace(current_stream=lambda device: current, device=log.using)
    kinds = {"float32": np.float32, "float64": np.float64}
    return types.SimpleNamespace(
        from_dlpack=None, Tensor=Tensor, empty_strided=empty_strided, cuda=cuda, **kinds
    )


@pytest.mark.parametrize("name", ["cupy", "torch"])
def test_known_libraries_allocate_on_their_streams(device, want, monkeypatch, name):
    log = Log()
    module = {"cupy": fake_cupy, "torch": fake_torch}[name](log, 99)
    monkeypatch.setitem(sys.modules, name, module)
    kind = module.ndarray if name == "cupy" else module.Tensor

    def array(a):
        return kind(a, log)

    with device.calls() as calls:
        y, stats = nc.layer_norm(array(X), array(W), return_stats=True)
        grads = nc.layer_norm_backward(array(DY), array(X), array(W), stats=stats)
    assert launches(calls) == {"99"}
    for made in (y, *stats[:2], *grads[:2]):
        assert type(made) is kind
    assert bits(y.array) == bits(want[0])
    np.testing.assert_allclose(grads.dx.array, want[1].dx, rtol=1e-5, atol=1e-6)
    exports = [entry for entry in log if entry[0] == "export"]
    assert {entry[1] for entry in exports} == {-1}, "no events for the library's own stream"
    if name == "torch":  # which exports of its current device alone
        assert {tuple(entry[2]) for entry in exports} == {("cuda:0",)}
    else:
        assert {tuple(entry[1]) for entry in log if entry[0] == "empty"} == {("cupy",)}
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(X, 1, -1)), -1, 1)
    y = nc.instance_norm(array(last))
    assert y.array.strides == last.strides and bits(y.array) == bits(nc.instance_norm(last))


# ---- libraries whose streams we do not know


EXPORTERS = []  # as long as there may be a capsule of theirs


def on_device(array, **said):
    EXPORTERS.append(Lying(array, device=(2, 0), capsule_device=(2, 0), **said))
    return EXPORTERS[-1]


def test_owners_are_kept_until_the_work_is_done(device, want):
    x, w = on_device(X), on_device(W)
    device.busy(True)
    with device.calls() as calls:
        y = nc.layer_norm(x, w)
    assert launches(calls) == {"0"}
    assert y.__dlpack_device__() == (2, 0)
    assert (x.given, x.deleted, w.given, w.deleted) == (1, 0, 1, 0)
    device.busy(False)
    nc.layer_norm(on_device(X))
    assert (x.deleted, w.deleted) == (1, 1)


def test_owners_of_a_shared_stream_are_not_kept(device):
    library = Library(device=(2, 0), stream=77, lends=False)
    device.busy(True)
    y = nc.layer_norm(library.Array(X), library.Array(W))
    assert library.alive == 1, "that of the result"
    assert type(y) is library.Array


def test_an_array_used_on_another_stream_is_kept_until_that_has_passed(device):
    library, w = Library(device=(2, 0), stream=77), on_device(W)
    device.busy(True)
    with device.calls() as calls:
        nc.layer_norm(library.Array(X), w)
    assert w.deleted == 0 and "cudaEventRecord 0 77" in calls
    device.busy(False)
    nc.layer_norm(on_device(X))
    assert w.deleted == 1


def test_owners_are_dropped_at_the_end_of_the_interpreter():
    emulated_core_or_skip()
    # What is registered before the module is loaded runs after what the module has registered.
    code = """
import atexit
import normcore as nc
from cuda_support import emulated_core, running_on
from test_cuda_libraries import Device, X, on_device

x = on_device(X)
atexit.register(lambda: print("at the end", x.deleted))
with running_on(emulated_core()):
    Device().busy(True)
    nc.layer_norm(x)
print("called", x.deleted)
"""
    path = os.pathsep.join(p for p in sys.path if p)  # this folder among them
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert done.stdout == "called 0\nat the end 1\n"


class Interface:
    """An array with the CUDA array interface alone, as Numba's."""

    def __init__(self, array, **said):
        self.array = array
        self.__cuda_array_interface__ = {
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "shape": array.shape,
            "strides": array.strides,
            "version": 3,
        } | said


def test_the_cuda_array_interface(device, want):
    x, w = Interface(X.copy()), Interface(W.copy())
    with device.calls() as calls:
        y = nc.layer_norm(x, w)
    assert launches(calls) == {"0"}
    assert y.__dlpack_device__() == (2, 0)
    out = Interface(np.full_like(X, np.nan))
    assert nc.layer_norm(x, w, out=out) is out and bits(out.array) == bits(want[0])
    with device.calls() as calls:
        nc.layer_norm(Interface(X, stream=55), w, out=out)
    assert launches(calls) == {"55"} and bits(out.array) == bits(want[0])


def test_the_object_of_the_interface_is_kept(device):
    x = Interface(X.copy())
    gone = weakref.ref(x)
    device.busy(True)
    nc.layer_norm(x, out=Interface(X.copy()))
    del x
    gc.collect()
    assert gone() is not None
    device.busy(False)
    nc.layer_norm(Interface(X))
    assert gone() is None


def test_empty_arrays_of_the_interface(device):
    x = Interface(np.empty((0, 5), np.float32), data=(0, False))
    y = nc.layer_norm(x, out=Interface(np.empty((0, 5), np.float32), data=(0, False)))
    assert y.array.shape == (0, 5)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"strides": (78, 20, 4)}, "not aligned"),
        ({"data": (X.ctypes.data + 2, False)}, "not aligned"),
        ({"data": (0, False)}, "null"),
        ({"mask": X}, "has a mask"),
        ({"strides": (4,)}, "what its specification says"),
    ],
    ids=["odd strides", "odd address", "null", "mask", "few strides"],
)
def test_lies_of_the_interface(device, said, text):
    with pytest.raises((ValueError, TypeError), match=rf"^x.*{text}"):
        nc.layer_norm(Interface(X, **said))


@pytest.mark.parametrize("said", [{"data": X.ctypes.data + 2}, {"byte_offset": 1}], ids=list)
def test_misaligned_memory_by_dlpack(device, said):
    x = on_device(X, **said)
    with pytest.raises(ValueError, match=r"^x is not aligned"):
        nc.layer_norm(x)
    device.busy(False)
    nc.layer_norm(on_device(X))
    assert x.deleted == 1


# ---- captures


def test_within_a_capture_results_are_the_librarys(device, want):
    library = Library(device=(2, 0), stream=77)
    device.capture(77)
    y, stats = nc.layer_norm(library.Array(X), library.Array(W), return_stats=True)
    assert bits(y.array) == bits(want[0])
    nc.layer_norm_backward(library.Array(DY), library.Array(X), library.Array(W), stats=stats)


def test_within_a_capture_our_memory_is_no_result(device):
    device.capture(55)
    x = Interface(X, stream=55)
    with pytest.raises(ValueError, match=r"being captured.*pass out="):
        nc.layer_norm(x)
    out = Interface(np.full_like(X, np.nan), stream=55)
    assert nc.layer_norm(x, out=out) is out


def test_within_a_capture_no_event_comes_from_outside(device, want):
    library, w = Library(device=(2, 0), stream=77), on_device(W)
    device.capture(77)
    with device.calls() as calls:
        y = nc.layer_norm(library.Array(X), w)
    assert bits(y.array) == bits(want[0])
    assert not [c for c in calls if c.startswith("cudaStreamWaitEvent 0 77")]
