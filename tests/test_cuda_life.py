"""Statistics whose numbers stay on a CUDA device: moments, masks, other processes.

Emulated on the host, with arrays that NumPy cannot read (device_arrays.py). Hunts for results that
come back to the host, and for what the device computes otherwise than the CPU.
"""

import numpy as np
import pytest
from cuda_support import emulated_core, running_on
from device_arrays import DeviceArray
from support import DTYPES

import normcore as nc

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)


@pytest.fixture(autouse=True, scope="module")
def device():
    core = emulated_core()
    if core is None:
        pytest.skip("NORMCORE_EMULATED_CUDA does not name the folder of the emulated kernels")
    with running_on(core):
        yield core


def on_device(array):
    return DeviceArray(array)


def channels_last(x):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


# ---- moments and norms


@each_dtype
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 20, 7), -1), ((40, 3, 2), 0), ((2, 3, 5000), (0, 2)), ((2, 6, 9), None)],
)
def test_moments_and_norms_stay_where_x_is(rng, dtype, shape, axis):
    x = rng.normal(3, 2, shape).astype(dtype)
    got, want = nc.moments(on_device(x), axis=axis), nc.moments(x, axis=axis)
    for field, array in zip(got, want, strict=True):
        assert isinstance(field, DeviceArray) and field.array.dtype == np.float64
        np.testing.assert_array_equal(field.array, array)
    kept = nc.moments(on_device(x), axis=axis, keepdims=True).mean
    assert kept.shape == np.sum(x.astype(float), axis=axis, keepdims=True).shape
    for order in (1, 2, np.inf):
        length = nc.norm(on_device(x), ord=order, axis=axis)
        assert isinstance(length, DeviceArray)
        np.testing.assert_array_equal(length.array, nc.norm(x, ord=order, axis=axis))


def test_moments_of_nothing_stay_there_too():
    m = nc.moments(on_device(np.empty((3, 0), np.float32)), axis=1)
    for field in m:
        np.testing.assert_array_equal(field.array, np.zeros(3))
