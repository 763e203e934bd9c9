"""Planes of a few elements: batch statistics by columns of samples, groups as rows.

Hunts for a channel that gets its neighbour's elements or coefficients, for tails of columns and of
cells, for strides that only seem to fit, and for a shape at which two ways of summing part.
"""

import numpy as np
import pytest
import reference
from support import DTYPES, VARIANTS, assert_same_bits, make_problem

import normcore as nc

OVER_CHANNELS = [v for v in VARIANTS if not v.row_family]
# Samples, channels, plane: either side of where columns begin, of vectors and of four cells.
SHAPES = [
    (4, 6, 2),
    (5, 6, 3, 1),
    (9, 12, 7, 7),
    (17, 12, 7, 7),
    (40, 6, 4, 4),
    (130, 6, 3),
    (25, 6, 11, 11),
    (33, 6, 14, 14),
    (67, 6, 20, 20),
    (3, 6, 2, 2),
    (1200, 6, 5),
]


@pytest.mark.parametrize("variant", OVER_CHANNELS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_short_planes(rng, variant, shape, isa):
    make_problem(rng, variant, np.float32, shape).check()


@pytest.mark.parametrize("variant", OVER_CHANNELS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("params", [(), ("weight",), ("bias",), ("weight", "bias")], ids=str)
def test_short_planes_with_any_parameters(rng, variant, dtype, params):
    channels = 6 * int(rng.integers(1, 20))
    shape = (int(rng.integers(1, 60)), channels, *(int(n) for n in rng.integers(2, 9, 2)))
    make_problem(rng, variant, dtype, shape, params=params).check()


def near_by(x, kind, rng):
    """The values of x in other strides; what lies between is not a number."""
    n, c, h, w = x.shape
    if kind == "padded samples":
        room = np.full((n, c + 1, h, w), np.nan, x.dtype)
        room[:, :c] = x
        return room[:, :c]
    if kind == "padded channels":
        room = np.full((n, c, h + 1, w), np.nan, x.dtype)
        room[:, :, :h] = x
        return room[:, :, :h]
    if kind == "samples backwards":
        return x[::-1].copy()[::-1]
    if kind == "channels backwards":
        return x[:, ::-1].copy()[:, ::-1]
    if kind == "channels last":
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if kind == "transposed planes":
        return np.ascontiguousarray(x.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(x.transpose(1, 0, 2, 3)).transpose(1, 0, 2, 3)


@pytest.mark.parametrize(
    "kind",
    [
        "padded samples",
        "padded channels",
        "samples backwards",
        "channels backwards",
        "channels last",
        "transposed planes",
        "channels outermost",
    ],
)
@pytest.mark.parametrize("where", ["x", "out", "dy"])
@pytest.mark.parametrize("method", ["batch_norm", "group_norm"])
def test_strides_that_nearly_fit(rng, method, kind, where):
    x, dy = (rng.normal(2, 1, (9, 12, 4, 5)).astype(np.float32) for _ in range(2))
    weight, bias = (rng.normal(1, 1, 12).astype(np.float32) for _ in range(2))
    options = {"num_groups": 3} if method == "group_norm" else {"training": True}
    arrays = {"x": x, "dy": dy, "out": np.zeros_like(x)}
    arrays[where] = near_by(arrays[where], kind, rng)
    out = arrays["out"]
    call, back = getattr(nc, method), getattr(nc, method + "_backward")
    call(arrays["x"], weight=weight, bias=bias, **options, out=out)
    got = getattr(reference, method)(
        x.astype(float), weight=weight.astype(float), bias=bias.astype(float), **options
    )
    # Some roundings of numbers of up to ten.
    np.testing.assert_allclose(out, got, atol=5e-6, rtol=0)
    grads = back(arrays["dy"], arrays["x"], weight=weight, bias=bias, **options, out=out)
    wide = [a.astype(float) for a in (dy, x)]
    want = getattr(reference, method + "_backward")(
        *wide, weight=weight.astype(float), bias=bias.astype(float), **options
    )
    for name in ("dx", "dweight", "dbias"):
        # Sums of up to 180 products of a few units, of which most cancels; dbias is one of 180
        # values near 2, which grows to 380, where the last digit is 3e-5: 6e-5 is the most that
        # 300 seeds gave.
        atol = 1e-4 if name == "dbias" else 5e-5
        np.testing.assert_allclose(
            getattr(grads, name), getattr(want, name), atol=atol, rtol=0, err_msg=name
        )


@pytest.mark.parametrize("plane", [(7,), (2, 2), (1, 1), (3, 5)], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_groups_do_not_mind_the_other_samples(rng, plane, groups):
    x = rng.normal(3, 1, (33, 16, *plane)).astype(np.float32)
    weight, bias = (rng.normal(1, 1, 16).astype(np.float32) for _ in range(2))
    whole = nc.group_norm(x, groups, weight, bias)
    dx = nc.group_norm_backward(x[::-1], x, groups, weight).dx
    for i in (0, 7, 32):
        one = nc.group_norm(x[i : i + 1], groups, weight, bias)
        np.testing.assert_array_equal(whole[i : i + 1], one)
        back = nc.group_norm_backward(x[32 - i : 33 - i], x[i : i + 1], groups, weight).dx
        np.testing.assert_array_equal(dx[i : i + 1], back)


# Blocks that are closed or not, in cache or past it, planes that are rows or columns: how many
# channels there are decides on none of what a channel is summed by.
@pytest.mark.parametrize(
    "shape",
    [(3, 64, 14, 14), (40, 96, 7, 7), (32, 128, 14, 14), (9, 256, 32, 32), (64, 300, 17, 19)],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_a_channel_does_not_mind_the_others(rng, shape, training, dtype):
    x, dy = (rng.normal(3, 1, shape).astype(dtype) for _ in range(2))
    mean, var, weight, bias = (rng.uniform(1, 2, shape[1]) for _ in range(4))

    def results(k):
        given = {} if training else {"running_mean": mean[k], "running_var": var[k]}
        options = {"weight": weight[k], "bias": bias[k], "training": training, **given}
        xk, dyk = (np.ascontiguousarray(a[:, k]) for a in (x, dy))
        y = nc.batch_norm(xk, **options)
        back = nc.batch_norm_backward(dyk, xk, **options)
        return y, back.dx, back.dweight, back.dbias

    y, dx, dweight, dbias = results(slice(None))
    for k in (slice(5, 6), slice(20, 33)):
        assert_same_bits(results(k), (y[:, k], dx[:, k], dweight[k], dbias[k]), f"channels {k}")


@pytest.mark.parametrize("n", [4, 40])
def test_channels_of_short_planes_that_say_nothing(rng, n):
    # Constant, infinite and not-a-number channels among others, which they leave alone.
    x = rng.normal(1e4, 1, (n, 6, 3, 3)).astype(np.float32)
    x[:, 1] = 1e4 / 3
    x[n // 2, 3, 1, 1] = np.inf
    x[1, 4, 2, 0] = np.nan
    y, stats = nc.batch_norm(x, training=True, return_stats=True)
    np.testing.assert_array_equal(y[:, 1], 0)
    assert np.float32(stats.mean[1]) == np.float32(1e4 / 3) and stats.mean[3] == np.inf
    assert np.isnan(y[:, 3:5]).all()
    want = reference.batch_norm(x[:, [0, 2, 5]].astype(float), training=True)
    # The spread of floats near 10^4 is known to their rounding, 1e-3.
    np.testing.assert_allclose(y[:, [0, 2, 5]], want, atol=1e-4, rtol=0)


def test_top_k_of_short_planes(rng):
    # Fewer samples than k, and more: thresholds from peaks of columns.
    for n, k in ((8, 10), (8, 17), (300, 10), (300, 1)):
        x = rng.normal(size=(n, 5, 2, 3)).astype(np.float32)
        got = nc.topk_batch_norm(x, k=k, training=True)
        want = reference.topk_batch_norm(x.astype(float), k=k, training=True)
        np.testing.assert_allclose(got, want, atol=5e-6, rtol=0)
