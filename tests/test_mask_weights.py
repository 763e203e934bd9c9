"""Weights of a mask in running_var: what n - 1 is to weights.

The divisor is ``c - sum(w**2) / c`` with ``c = sum(w)``: n - 1 for masks of 0 and 1, and of the
kind of a weight, so that a factor common to all weights changes nothing. Hunts for ``c - 1``, which
a sum of weights near 1 turns into a factor of 1e8, and for differences that cancel.
"""

import numpy as np
import pytest
import reference
from support import LAYOUTS, arrange, bits
from test_processes import Threads

import normcore as nc


def running_var(x, mask, **options):
    """What a training call leaves in running_var with momentum 1."""
    stat = np.float64 if x.dtype == np.float64 else np.float32
    channels = x.shape[options.get("channel_axis", 1)]
    mean, var = np.zeros(channels, stat), np.ones(channels, stat)
    nc.batch_norm(
        x, running_mean=mean, running_var=var, training=True, momentum=1.0, mask=mask, **options
    )
    return var


def want_var(x, mask):
    _, _, var, _ = reference.masked_batch_norm(x, None, None, mask)
    return (var * reference.bessel(mask, x)).astype(np.float64)


# Sums of 1 and a little more, as of attention weights; far larger and smaller ones.
SUMS = [1.0, 1 + 1e-8, 1.02, 3.0, 1e-6, 1e6]


@pytest.mark.parametrize("total", SUMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda t: t.__name__)
def test_the_sum_of_weights_does_not_matter(rng, total, dtype):
    x = rng.normal(3, 2, (6, 4, 10)).astype(dtype)
    w = rng.uniform(0, 1, (6, 10)) * (rng.random((6, 10)) < 0.8)
    mask = w / w.sum() * total
    eps = 1.2e-7 if dtype != np.float64 else 2.3e-16
    # The variance itself is good to some roundings of its compute type.
    np.testing.assert_allclose(running_var(x, mask), want_var(x, mask), rtol=16 * eps)
    equal = np.full((6, 10), total / 60)
    np.testing.assert_allclose(
        running_var(x, equal), running_var(x, np.ones((6, 10))), rtol=16 * eps
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(rng, layout, isa):
    x = arrange(rng.normal(1, 2, (4, 3, 5, 6)).astype(np.float32), layout)
    mask = rng.dirichlet(np.full(120, 0.3)).reshape(4, 5, 6)
    np.testing.assert_allclose(running_var(x, mask), want_var(x, mask), rtol=2e-6)
    # Repeated along an axis, as a view with stride 0 and written out.
    row = rng.uniform(0, 0.1, (4, 1, 6))
    whole = np.ascontiguousarray(np.broadcast_to(row, (4, 5, 6)))
    np.testing.assert_allclose(running_var(x, row), want_var(x, whole), rtol=2e-6)
    np.testing.assert_allclose(running_var(x, row), running_var(x, whole), rtol=3e-7)


@pytest.mark.parametrize("power", [-1000, -600, -120, 120, 600])
def test_any_scale_of_the_weights(rng, power):
    x = rng.normal(3, 2, (6, 4, 10))
    mask = rng.uniform(0.5, 1, (6, 10))
    scaled = mask * 2.0**power  # a power of two changes no rounding
    rtol = 1e-12 if abs(power) < 1000 else 1e-3  # squares of deviations times 1e-301: subnormal
    np.testing.assert_allclose(running_var(x, scaled), running_var(x, mask), rtol=rtol)


def test_masks_of_0_and_1_are_the_packed_data(rng):
    x = rng.normal(3, 2, (6, 4, 10))
    mask = rng.random((6, 10)) < 0.6
    packed = np.moveaxis(x, 1, -1)[mask]
    np.testing.assert_allclose(running_var(x, mask), running_var(packed, None), rtol=1e-12)
    np.testing.assert_allclose(running_var(packed, None), packed.var(0, ddof=1), rtol=1e-12)


@pytest.mark.parametrize("weight", [1.0, 0.37, 1e-9, 3e5])
@pytest.mark.parametrize("others", [0.0, 1e-17])
def test_one_position_has_no_unbiased_variance(rng, weight, others):
    # There is no factor then; what the rounding of the weight hides is no other position.
    x = rng.normal(3, 2, (6, 4, 10))
    mask = np.full((6, 10), others * weight)
    mask[2, 3] = weight
    np.testing.assert_allclose(running_var(x, mask), 0, atol=1e-13)
    y = nc.batch_norm(x, mask=mask, training=True)
    np.testing.assert_allclose(y[2, :, 3], 0, atol=1e-9)


def test_almost_one_position(rng):
    # Of the weights 1 and t the unbiased variance is d**2 / 2, whatever t.
    x = rng.normal(3, 2, (1, 4, 2))
    want = (x[0, :, 0] - x[0, :, 1]) ** 2 / 2
    for t in (1.0, 1e-3, 1e-6, 1e-9):
        # The variance is t * d**2, beside the square of a rounding of the mean.
        np.testing.assert_allclose(running_var(x, np.array([[1.0, t]])), want, rtol=1e-9)


@pytest.mark.parametrize("total", [1.0, 1.02, 40.0])
def test_over_processes(rng, total):
    x = rng.normal(1, 2, (7, 6, 9))
    mask = rng.dirichlet(np.full(63, 0.5)).reshape(7, 9) * total
    mask[5:] = 0  # the last process has samples, and none counts
    want = running_var(x, mask)

    def work(rank, comm):
        part = (slice(0, 2), slice(2, 5), slice(5, 7))[rank]
        layer = nc.BatchNorm(6, momentum=1.0, dtype=np.float64, comm=comm)
        layer(x[part], mask=mask[part])
        return layer.buffers["running_var"]

    results = Threads.run(3, work)
    assert len({bits(var) for var in results}) == 1
    np.testing.assert_allclose(results[0], want, rtol=1e-12)


def test_one_position_in_all_processes(rng):
    x, mask = rng.normal(1, 2, (4, 3, 5)), np.zeros((4, 5))
    mask[1, 2] = 0.3

    def work(rank, comm):
        part = slice(2 * rank, 2 * rank + 2)
        layer = nc.BatchNorm(3, momentum=1.0, dtype=np.float64, comm=comm)
        layer(x[part], mask=mask[part])
        return layer.buffers["running_var"]

    for var in Threads.run(2, work):
        np.testing.assert_allclose(var, 0, atol=1e-13)
