"""What tests/run_cuda.sh finds on a machine: `facts.py packages`, `facts.py device cuda`."""

import ctypes
import importlib.metadata
import os
import platform
import sys

PACKAGES = (
    "numpy torch triton jax cupy-cuda13x cupy-cuda12x numba-cuda ml_dtypes hypothesis pytest "
    "pytest-timeout pytest-xdist pybind11 cmake ninja scikit-build-core pip"
).split()
# Of the driver's interface.
ATTRIBUTES = {
    "capability_major": 75,
    "capability_minor": 76,
    "multiprocessors": 16,
    "L2_bytes": 38,
    "memory_pools": 115,
    "cluster_launch": 120,
    "cooperative_launch": 95,
}


def packages():
    print("python", sys.version.split()[0], sys.executable, platform.platform())
    print("processors", os.cpu_count())
    for name in PACKAGES:
        try:
            print(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            print(name, "is missing")


def attributes():
    """What the driver says of device 0."""
    driver = ctypes.CDLL("libcuda.so.1")
    device, value = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        raise OSError("cuInit or cuDeviceGet fails")
    for name, number in ATTRIBUTES.items():
        failed = driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        yield f"{name} {'unknown' if failed else value.value}"


def device(where):
    """The library sees the device, and a call on it is right."""
    import torch

    import normcore as nc

    nc.show_config()
    print("torch", torch.__version__, "for CUDA", torch.version.cuda)
    try:
        said = ", ".join(attributes())
    except OSError as e:
        said = str(e)
    print(said, flush=True)
    if where == "cuda":
        assert torch.cuda.is_available(), "torch sees no CUDA device"
        assert nc.cuda.is_available(), "normcore sees no CUDA device: is it built for CUDA?"
        said = f"{torch.cuda.get_device_name()}, {said}"
    x = torch.arange(12.0, device=where).reshape(3, 4)
    y = nc.layer_norm(x)
    assert y.device == x.device and y.dtype == x.dtype, (y.device, y.dtype)
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (4,)))
    print(said)


if __name__ == "__main__":
    if sys.argv[1] == "packages":
        packages()
    else:
        device(sys.argv[2])
