"""Statistics whose numbers stay on a CUDA device: moments, masks, other processes.

Emulated on the host, with arrays that NumPy cannot read (device_arrays.py). Hunts for results that
come back to the host, and for what the device computes otherwise than the CPU.
"""

import numpy as np
import pytest
from cuda_support import emulated_core_or_skip, running_on
from device_arrays import DeviceArray
from support import DTYPES

import normcore as nc

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)


@pytest.fixture(autouse=True, scope="module")
def device():
    core = emulated_core_or_skip()
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


# ---- masks


def weighted_moments(x, mask, axis):
    """The oracle: what does not count may hold anything."""
    weights = np.broadcast_to(mask, x.shape).astype(np.float64)
    values = np.where(weights > 0, x.astype(np.float64), 0)
    count = weights.sum(axis=axis, keepdims=True)
    mean = (weights * values).sum(axis=axis, keepdims=True) / np.where(count > 0, count, 1)
    m2 = (weights * (values - mean) ** 2).sum(axis=axis, keepdims=True)
    return count, mean, m2


def check_masked_moments(x, mask, axis):
    wide = np.float64 if x.dtype == np.float64 else np.float32
    weights = np.ascontiguousarray(np.broadcast_to(mask, x.shape)).astype(wide)
    got = nc.moments(on_device(x), axis=axis, mask=on_device(weights), keepdims=True)
    for field, want in zip(got, weighted_moments(x, weights, axis), strict=True):
        # Sums of float64, of products of numbers that are exact.
        np.testing.assert_allclose(field.array, want, rtol=1e-12, atol=1e-12)
        assert isinstance(field, DeviceArray)


@each_dtype
@pytest.mark.parametrize("layout", [np.ascontiguousarray, channels_last, lambda x: x[..., ::-1]])
def test_masked_moments(rng, dtype, layout):
    for shape, axis in [
        ((3, 20, 7), -1),
        ((3, 20, 7), (0, 2)),
        ((40, 3, 2), 0),
        ((2, 3, 5001), (0, 2)),
        ((2, 3, 5001), 1),
        ((2, 6, 9), None),
        ((1, 1, 31), 2),
    ]:
        x = layout(rng.normal(30, 2, shape).astype(dtype))
        mask = rng.random((shape[0], 1, shape[2])) < 0.5
        x[~np.broadcast_to(mask, shape)] = np.nan  # what does not count may hold anything
        check_masked_moments(x, mask, axis)
        check_masked_moments(x, mask * rng.random(mask.shape), axis)


def test_masks_of_nothing_and_of_one(rng):
    x = rng.normal(size=(4, 300)).astype(np.float32)
    mask = np.zeros(x.shape, np.float32)
    mask[1, 7], mask[2] = 0.25, 3
    mask[3, :10] = -1  # no weight: nobody waits to say so
    got = nc.moments(on_device(x), axis=1, mask=on_device(mask))
    np.testing.assert_array_equal(got.count.array, [0, 0.25, 900, 0])
    np.testing.assert_array_equal(got.mean.array[[0, 1, 3]], [0, x[1, 7], 0])
    np.testing.assert_array_equal(got.m2.array[[0, 1, 3]], [0, 0, 0])


def test_many_pieces_merge_in_order(rng):
    x = rng.normal(1e3, 1, 300_001).astype(np.float32)
    mask = (rng.random(x.shape) < 0.9).astype(np.float32)
    check_masked_moments(x, mask, None)
    first, again = (nc.moments(on_device(x), mask=on_device(mask)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.array, b.array)


def test_masks_of_numpy_are_the_emulated_devices_too(rng):
    """bools, broadcast as they are on the CPU."""
    x = rng.normal(size=(4, 3, 50)).astype(np.float32)
    mask = rng.random((4, 1, 50)) < 0.5
    for field, want in zip(
        nc.moments(x, axis=(0, 2), mask=mask, keepdims=True),
        weighted_moments(x, mask, (0, 2)),
        strict=True,
    ):
        np.testing.assert_allclose(field, want, rtol=1e-12, atol=1e-12)


def test_masks_that_do_not_fit(rng):
    x = on_device(rng.normal(size=(4, 50)).astype(np.float32))
    with pytest.raises(ValueError, match=r"mask has shape \(4,\), expected"):
        nc.moments(x, mask=on_device(np.ones(4, np.float32)))
    with pytest.raises(TypeError, match="mask has dtype float64, expected float32"):
        nc.moments(x, mask=on_device(np.ones((4, 50))))
    torch = pytest.importorskip("torch")
    from normcore._interop import _weights_there

    weights = _weights_there(torch.ones(4, 1, dtype=torch.bool), (4, 3, 5), False, 1)
    assert weights.shape == (4, 5) and weights.dtype == torch.float32
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), expected what broadcasts to"):
        _weights_there(torch.ones(3), (4, 3, 5), False, 1)
