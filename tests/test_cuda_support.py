"""What the CUDA tests stand on: arrays that go to a device, and a device that a fault has spoilt.

torch's CPU takes the device's place.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cuda_support import TorchCore
from support import DTYPES, LAYOUTS, arrange

HERE = Path(__file__).parent


@pytest.fixture
def core():
    return TorchCore("cpu")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("offset", [0, 1, 3, 7])
def test_arrays_keep_their_alignment(core, rng, dtype, offset):
    for n in (5, 64, 200):
        memory = np.empty(3 * n + 64, dtype)
        start = -memory.ctypes.data % 64 // memory.itemsize + offset
        array = memory[start : start + 3 * n].reshape(3, n)
        array[...] = rng.normal(size=(3, n))
        tensor = core.to_device(array)
        assert tensor.data_ptr() % 64 == offset * dtype.itemsize % 64
        np.testing.assert_array_equal(core.to_numpy(tensor), array)
        core.check_margins(tensor)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "reversed"])
def test_arrays_keep_their_strides(core, rng, layout):
    for shape in ((3, 6, 5, 7), (0, 4, 2, 2)):
        array = arrange(rng.normal(size=shape).astype(np.float32), layout)
        tensor = core.to_device(array)
        if array.size:
            assert [4 * s for s in tensor.stride()] == list(array.strides)
            assert tensor.data_ptr() % 64 == array.ctypes.data % 64
        np.testing.assert_array_equal(core.to_numpy(tensor), array)


@pytest.mark.parametrize("at", [-1, 6])
def test_writing_outside_of_an_array_is_seen(core, at):
    tensor = core.to_device(np.arange(6, dtype=np.float16))
    core.check_margins(tensor)
    tensor.as_strided((1,), (1,), tensor.storage_offset() + at)[...] = 1
    with pytest.raises(AssertionError, match="outside"):
        core.check_margins(tensor)


# In place of torch: a device that is spoilt for the process from one test on.
SUITE = """
import sys, types
import pytest

pytestmark = pytest.mark.cuda
cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=lambda: None)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)

def fault():
    raise RuntimeError("an illegal memory access was encountered")

@pytest.mark.parametrize("n", range(8))
def test(n):
    assert cuda.synchronize is not fault
    if n == 2:
        cuda.synchronize = fault
        assert n == 0, "the reason"
    if n == 5:  # nothing waits for the kernel that fails
        cuda.synchronize = fault
"""


def run_suite(folder, *options):
    suite = folder / "test_suite.py"
    suite.write_text(SUITE)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = cuda: of a device\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "cuda_support",
        "-p",
        "no:cacheprovider",
        "-rA",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST_")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    return subprocess.run(
        [*command, *options, str(suite)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_a_worker_whose_device_is_spoilt_is_replaced(tmp_path):
    pytest.importorskip("xdist")
    run = run_suite(tmp_path, "-p", "xdist", "-n", "1")
    assert "assert 2 == 0" in run.stdout.replace("AssertionError: the reason\n", ""), run.stdout
    for n in range(8):
        assert (f"PASSED test_suite.py::test[{n}]" in run.stdout) == (n != 2), run.stdout
    # The test that spoilt it is named, whether it has failed itself or not.
    assert "worker 'gw0' crashed while running 'test_suite.py::test[2]'" in run.stdout
    assert "worker 'gw1' crashed while running 'test_suite.py::test[5]'" in run.stdout
    assert run.returncode == 1


def test_without_workers_the_run_ends_where_the_device_is_spoilt(tmp_path):
    run = run_suite(tmp_path)
    assert "test_suite.py::test[2] has spoilt the device: an illegal memory access" in run.stdout
    assert "1 failed, 2 passed" in run.stdout
    assert run.returncode == 2
