"""Statistics whose numbers stay on a CUDA device: moments, masks, other processes.

Emulated on the host, with arrays that NumPy cannot read (device_arrays.py). Hunts for results that
come back to the host, and for what the device computes otherwise than the CPU.
"""

import ml_dtypes
import numpy as np
import pytest
from cuda_support import emulated_core_or_skip, running_on
from device_arrays import DeviceArray
from support import DTYPES

import normcore as nc
from normcore._processes import Processes

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
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), expected \(4, 5\)"):
        _weights_there(torch.ones(3), (4, 3, 5), False, 1)


@each_dtype
def test_masks_of_batch_norms_stay_there(rng, dtype):
    """Nobody looks whether anything counts: no weight of a device is read on the host."""
    x, dy = rng.normal(2, 1, (2, 5, 4, 40)).astype(dtype)
    w, b = rng.normal(size=(2, 4)).astype(dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    mask = (rng.random((5, 40)) < 0.5).astype(wide)
    buffers = {"running_mean": np.zeros(4, wide), "running_var": np.ones(4, wide)}
    there = {name: on_device(a.copy()) for name, a in buffers.items()}
    given = {"training": True, "unbiased_running_var": True, "momentum": 0.5}
    want_y = nc.batch_norm(x, w, b, mask=mask, **buffers, **given)
    y, stats = nc.batch_norm(
        *map(on_device, (x, w, b)), mask=on_device(mask), return_stats=True, **there, **given
    )
    np.testing.assert_array_equal(y.array, want_y)
    for name, buffer in buffers.items():
        np.testing.assert_array_equal(there[name].array, buffer)
    want = nc.batch_norm_backward(dy, x, w, mask=mask, training=True)
    for s in (None, stats):
        got = nc.batch_norm_backward(
            *map(on_device, (dy, x, w)), mask=on_device(mask), training=True, stats=s
        )
        for field in ("dx", "dweight"):
            np.testing.assert_array_equal(getattr(got, field).array, getattr(want, field))


def running_buffers():
    return {n: on_device(np.full(4, 3, np.float32)) for n in ("running_mean", "running_var")}


def test_a_layer_whose_mask_counts_nothing(rng):
    """What counts there is not known here, and not asked for."""
    layer = nc.BatchNorm(4, affine=False, track_running_stats=False)
    x = rng.normal(size=(5, 4)).astype(np.float32)
    y = layer(on_device(x), mask=on_device(np.zeros(5, np.float32)))
    dx = layer.backward(on_device(x))
    np.testing.assert_array_equal(y.array, np.zeros((5, 4)))
    np.testing.assert_array_equal(dx.array, np.zeros((5, 4)))
    buffers = running_buffers()
    nc.batch_norm(on_device(x), mask=on_device(np.zeros(5, np.float32)), training=True, **buffers)
    for buffer in buffers.values():
        np.testing.assert_array_equal(buffer.array, np.full(4, 3))


# ---- other processes


class Twice:
    """Two processes with the same samples. What it gets and returns stays on the device."""

    def __init__(self):
        self.sizes = []

    def allreduce(self, array):
        assert isinstance(array, DeviceArray) and array.array.dtype == np.float64
        self.sizes.append(array.shape)
        return DeviceArray(2 * array.array)


BARE = {"affine": False, "track_running_stats": False}
LAYERS = {
    "batch": lambda **o: nc.BatchNorm(4, **BARE, **o),
    "mean-only": lambda **o: nc.MeanOnlyBatchNorm(4, bias=False, track_running_stats=False, **o),
}


def twice(array):
    return np.concatenate([array, array])


@each_dtype
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("masked", [False, True])
def test_sums_over_processes_stay_there(rng, dtype, name, masked):
    x, dy = rng.normal(2, 1, (2, 5, 4, 7)).astype(dtype)
    mask = (rng.random((5, 7)) * 2).astype(np.float64 if dtype == np.float64 else np.float32)
    comm = Twice()
    there, whole = LAYERS[name](comm=comm), LAYERS[name]()
    y = there(on_device(x), **({"mask": on_device(mask)} if masked else {}))
    dx = there.backward(on_device(dy))
    want_y = whole(twice(x), **({"mask": twice(mask)} if masked else {}))[:5]
    want_dx = whole.backward(twice(dy))[:5]
    # Sums of float64 in another order, of 70 terms of about 2: the last digits differ.
    eps = float(ml_dtypes.finfo(dtype).eps)
    for got, want in ((y, want_y), (dx, want_dx)):
        got, want = got.array.astype(float), want.astype(float)
        np.testing.assert_allclose(got, want, rtol=2 * eps, atol=64 * eps)
    # Counts and means together, squares around them; in backward counts, and both gradients.
    assert comm.sizes == [(7,), (4,), (3,), (8,)]


@pytest.mark.parametrize(
    ("total", "error", "rule"),
    [
        (lambda a: on_device(a.array[1:]), ValueError, r"shape \(6,\), expected .* shape \(7,\)"),
        (
            lambda a: on_device(a.array.astype(np.float32)),
            TypeError,
            "of float32, expected the sum",
        ),
        (lambda a: on_device(twice(a.array)[::2]), ValueError, "expected the sum: contiguous"),
        (lambda a: None, TypeError, "what comm.allreduce returned is None"),
    ],
)
def test_what_is_no_sum(rng, total, error, rule):
    class Comm:
        allreduce = staticmethod(total)

    buffers = running_buffers()
    x = rng.normal(size=(5, 4)).astype(np.float32)
    out = np.full((5, 4), 7, np.float32)
    with pytest.raises(error, match=rule), Processes(Comm(), 1).together("a test", on_device(x)):
        nc.batch_norm(on_device(x), training=True, out=on_device(out), **buffers)
    np.testing.assert_array_equal(out, np.full((5, 4), 7))
    for buffer in buffers.values():
        np.testing.assert_array_equal(buffer.array, np.full(4, 3))


def test_mpi_sums_on_the_host(rng):
    class Done:
        def Test(self):
            return True

    class Mpi:
        def Iallreduce(self, sent, received):
            assert isinstance(sent, np.ndarray)
            received[...] = 2 * sent
            return Done()

        def allreduce(self, array):
            raise AssertionError("without a time limit")

    x = rng.normal(size=(5, 4)).astype(np.float32)
    y = LAYERS["batch"](comm=Mpi())(on_device(x))
    np.testing.assert_allclose(y.array, nc.batch_norm(twice(x))[:5], rtol=1e-6, atol=1e-6)
