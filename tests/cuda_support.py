"""Calls of normcore on a CUDA device with NumPy arrays, for the suite of the CUDA backend.

``emulated``: the kernels compiled for the host, threads as fibers (tests/cuda); the memory of NumPy
is the device's. ``cuda``: a real device; arrays travel as torch tensors of the same strides.
NORMCORE_TEST_DEVICE=cpu puts torch's CPU in its place, to try these tests themselves.
"""

import functools
import glob
import importlib.machinery
import importlib.util
import os
import pkgutil
import sys
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest

import normcore as nc
from normcore import _processes, methods, reductions


@functools.cache
def emulated_core():
    """The module that tests/cuda/CMakeLists.txt builds; None where it is not built."""
    folder = os.environ.get("NORMCORE_EMULATED_CUDA", "")
    for path in glob.glob(os.path.join(folder, "_core*")) if folder else []:
        loader = importlib.machinery.ExtensionFileLoader("emulated._core", path)
        module = importlib.util.module_from_spec(
            importlib.util.spec_from_loader("emulated._core", loader)
        )
        loader.exec_module(module)
        return module
    return None


def emulated_core_or_skip():
    core = emulated_core()
    if core is None:
        pytest.skip("NORMCORE_EMULATED_CUDA does not name the folder of the emulated kernels")
    return core


TEST_DEVICE = os.environ.get("NORMCORE_TEST_DEVICE", "cuda")
POISON = 0xFF  # bytes that are NaN in any dtype


class TorchCore:
    """normcore._core on tensors of a torch device; NumPy in and out."""

    def __init__(self, device, margin=64):
        """With poisoned bytes before and behind each array, where stray reads and writes show."""
        self.torch = pytest.importorskip("torch")
        self.device = device
        self.margin = margin

    def to_device(self, array):
        """A tensor of the same strides whose address is the same within 64 bytes: the path of a
        kernel depends on it. torch has no negative strides: those become a fresh order."""
        if any(s < 0 for s in array.strides):
            array = np.ascontiguousarray(array)
        span = sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True))
        count = span // array.itemsize + 1 if array.size else 0
        flat = np.lib.stride_tricks.as_strided(array, (count,), (array.itemsize,)).copy()
        start = self.margin + array.ctypes.data % 64
        size = start + flat.nbytes + self.margin
        room = self.torch.full((size,), POISON, dtype=self.torch.uint8, device=self.device)
        assert room.data_ptr() % 64 == 0
        memory = room[start : start + flat.nbytes]
        memory.copy_(self.torch.from_numpy(flat.view(np.uint8)))
        memory = memory.view(getattr(self.torch, array.dtype.name))
        strides = [s // array.itemsize for s in array.strides]
        return memory.as_strided(array.shape, strides, memory.storage_offset())

    def check_margins(self, tensor):
        """Nothing was written before and behind what `to_device` gave."""
        room = self.torch.empty(0, dtype=self.torch.uint8, device=self.device)
        room.set_(tensor.untyped_storage())
        start = tensor.storage_offset() * tensor.element_size()
        margins = self.torch.cat([room[:start], room[len(room) - self.margin :]])
        assert bool((margins == POISON).all()), "written outside of the array"

    def to_numpy(self, value):
        if isinstance(value, tuple):
            return tuple(self.to_numpy(v) for v in value)
        if not isinstance(value, self.torch.Tensor):
            return value
        value = value.cpu()
        if value.dtype == self.torch.bfloat16:
            return value.view(self.torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()

    def call(self, name, args):
        there = {id(a): self.to_device(a) for a in args if isinstance(a, np.ndarray)}
        result = getattr(nc._core, name)(*(there.get(id(a), a) for a in args))
        for array in args:  # what was written in place
            if isinstance(array, np.ndarray):
                self.check_margins(there[id(array)])
                if array.flags.writeable:
                    array[...] = self.to_numpy(there[id(array)])
        hosts = {id(there[id(a)]): a for a in args if isinstance(a, np.ndarray)}

        def home(value):
            if isinstance(value, tuple):
                return tuple(home(v) for v in value)
            return hosts.get(id(value), self.to_numpy(value))

        return home(result)

    def __getattr__(self, name):
        return lambda *args: self.call(name, args)


def device_core(name):
    """The core of "emulated" or "cuda", or a skipped test where it is missing."""
    if name == "emulated":
        return emulated_core_or_skip()
    if TEST_DEVICE == "cuda" and not nc.cuda.is_available():
        pytest.skip("needs a CUDA device and a build with -DNORMCORE_CUDA=ON")
    return TorchCore(TEST_DEVICE)


def compiled_functions():
    """(module, attribute, name) of each function of normcore._core that is called in Python."""
    found = pkgutil.iter_modules(methods.__path__, methods.__name__ + ".")
    for module in (reductions, *(importlib.import_module(info.name) for info in found)):
        for attribute, value in vars(module).items():
            name = attribute.removeprefix("_")
            if value is not None and value is getattr(nc._core, name, None):
                yield module, attribute, name


@contextmanager
def running_on(core):
    """Within it, the functions of normcore call ``core`` in place of normcore._core."""
    bound = list(compiled_functions())
    try:
        for module, attribute, name in bound:
            setattr(module, attribute, getattr(core, name))
        if core is emulated_core():  # which looks for an exchange of its own
            _processes._core = core
        yield
    finally:
        _processes._core = nc._core
        for module, attribute, name in bound:
            setattr(module, attribute, getattr(nc._core, name))


def device_fault():
    """What is wrong with the CUDA context of this process, "" for nothing.

    After a fault of a kernel (an illegal address) every later call of the process fails.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except Exception as e:  # of several kinds, by the version of torch
        return str(e).partition("\n")[0] or type(e).__name__
    return ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Ends the process after the test that has spoilt its CUDA context.

    A worker of pytest-xdist is replaced, and the others' tests go on; without it the run ends here.
    """
    ran = yield
    fault = device_fault() if item.get_closest_marker("cuda") else ""
    if fault and "PYTEST_XDIST_WORKER" in os.environ:
        os._exit(1)  # the report of the test has been sent
    if fault:
        item.session.shouldstop = f"{item.nodeid} has spoilt the device: {fault}"
    return ran
