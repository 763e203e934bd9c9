"""Calls of normcore on a CUDA device with NumPy arrays, for the suite of the CUDA backend.

``emulated``: the kernels compiled for the host, threads as fibers (tests/cuda); the memory of NumPy
is the device's. ``cuda``: a real device; arrays travel as torch tensors of the same strides.
"""

import functools
import glob
import importlib.machinery
import importlib.util
import os
import pkgutil
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest

import normcore as nc
from normcore import methods, reductions


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


class TorchCore:
    """normcore._core on tensors of a torch device; NumPy in and out."""

    def __init__(self, device):
        self.torch = pytest.importorskip("torch")
        self.device = device

    def to_device(self, array):
        """A tensor of the same strides. torch has no negative ones: those become a fresh order."""
        if any(s < 0 for s in array.strides):
            array = np.ascontiguousarray(array)
        span = 1 + sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True))
        count = 0 if array.size == 0 else (span - 1) // array.itemsize + 1
        flat = np.lib.stride_tricks.as_strided(array, (count,), (array.itemsize,))
        half = array.dtype == ml_dtypes.bfloat16
        memory = self.torch.from_numpy(flat.view(np.int16).copy() if half else flat.copy())
        memory = memory.to(self.device)
        if half:
            memory = memory.view(self.torch.bfloat16)
        return memory.as_strided(array.shape, [s // array.itemsize for s in array.strides])

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
            if isinstance(array, np.ndarray) and array.flags.writeable:
                array[...] = self.to_numpy(there[id(array)])
        hosts = {id(there[id(a)]): a for a in args if isinstance(a, np.ndarray)}

        def home(value):
            if isinstance(value, tuple):
                return tuple(home(v) for v in value)
            return hosts.get(id(value), self.to_numpy(value))

        return home(result)

    def __getattr__(self, name):
        return lambda *args: self.call(name, args)


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
        yield
    finally:
        for module, attribute, name in bound:
            setattr(module, attribute, getattr(nc._core, name))
