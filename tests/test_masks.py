"""Masked batch norm: padded positions neither count nor get a gradient through the statistics.

Hunts for a count that is the shape's, for a mask read in another order than x, for padding that
leaks (NaN, infinities), and for weights taken for bools.
"""

import numpy as np
import pytest
import reference
from support import DTYPES, LAYOUTS, GuardedOut, arrange, assert_close, bits, stat_dtype

import normcore as nc

SHAPES = [(5, 6, 7), (4, 3, 5, 6), (300, 5), (2, 3, 9000), (1, 70, 33)]


def make(rng, shape, dtype=np.float32, kind="bools", layout="contiguous", mean=1.0):
    x, dy = (arrange(rng.normal(m, 2, shape).astype(dtype), layout) for m in (mean, 0))
    w, b = rng.normal(size=(2, shape[1])).astype(dtype)
    positions = (shape[0], *shape[2:])
    if kind == "lengths":  # ragged: the first of each sample's last axis
        mask = (
            np.arange(positions[-1]) < rng.integers(1, positions[-1] + 1, positions[:-1])[..., None]
        )
    else:
        mask = rng.random(positions) < 0.6
        if kind == "weights":
            mask = mask * rng.uniform(0, 3, positions)
    mask.flat[:2] = 1
    return x, dy, w, b, mask


def check(x, dy, w, b, mask, **options):
    """Against the formula. Tolerances as support.Problem.slacks, with the mask for the terms."""
    moved = np.moveaxis(x, options.get("channel_axis", 1), 1)
    dy_moved = np.moveaxis(dy, options.get("channel_axis", 1), 1)
    eps = float(np.finfo(stat_dtype(x.dtype)).eps)
    want, mean, var, count = reference.masked_batch_norm(moved, w, b, mask)
    rm = np.zeros(len(w), stat_dtype(x.dtype))
    rv = np.ones_like(rm)
    y, stats = nc.batch_norm(
        x, w, b, mask=mask, running_mean=rm, running_var=rv, training=True, momentum=1.0,
        return_stats=True, **options,
    )  # fmt: skip
    xhat = float(np.abs(reference.wide(moved) - mean.reshape(1, -1, *[1] * (x.ndim - 2))).max())
    rstd = float((1 / np.sqrt(var + 1e-5)).max())
    xhat = 1 + xhat * rstd
    top = float(np.abs(reference.wide(w)).max()), float(np.abs(reference.wide(b)).max())
    slack = eps * (8 * top[0] * xhat + 2 * top[1])
    y = np.moveaxis(y, options.get("channel_axis", 1), 1)
    assert_close(y, want, slack=slack, what="y", dtype=x.dtype)
    assert_close(rm, mean, slack=4 * eps * np.abs(mean).max() + eps, what="running_mean")
    unbiased = var * reference.bessel(mask, moved)
    assert_close(rv, unbiased, slack=8 * eps * unbiased, what="running_var")
    want = reference.masked_batch_norm_backward(dy_moved, moved, w, b, mask)
    for s in (None, stats):
        got = nc.batch_norm_backward(dy, x, w, b, mask=mask, training=True, stats=s, **options)
        peak = float(np.abs(reference.wide(dy)).max())
        # Few positions that count share a gradient from all: their weight is in proportion.
        most = max(1.0, float(np.max(mask)) * mask.size / float(count))
        slack = 8 * eps * xhat**2 * rstd * top[0] * peak * most
        dx = np.moveaxis(got.dx, options.get("channel_axis", 1), 1)
        assert_close(dx, want.dx, slack=slack, what="dx", dtype=x.dtype)
        terms = eps * peak * np.sqrt(mask.size)
        for name, factor in (("dweight", xhat), ("dbias", 1)):
            total = np.abs(getattr(want, name))
            slack = 8 * factor * terms + 20 * eps * total
            assert_close(getattr(got, name), getattr(want, name), slack=slack, what=name)


@pytest.mark.parametrize("kind", ["bools", "weights", "lengths"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_against_the_formula(rng, dtype, layout, kind, isa):
    check(*make(rng, (4, 3, 5, 6), dtype, kind, layout))


@pytest.mark.parametrize("kind", ["bools", "weights"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(rng, shape, kind):
    x, dy, w, b, mask = make(rng, shape, kind=kind)
    check(x, dy, w, b, mask)
    x, dy = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy))
    check(x, dy, w, b, mask, channel_axis=-1)


def test_any_number_of_threads_gives_the_same_bits(rng):
    x, dy, w, b, mask = make(rng, (8, 16, 3000), kind="weights")
    results = set()
    threads = nc.get_num_threads()
    try:
        for n in (1, 2, 5):
            nc.set_num_threads(n)
            y = nc.batch_norm(x, w, b, mask=mask)
            results.add((bits(y), bits(nc.batch_norm_backward(dy, x, w, b, mask=mask).dx)))
    finally:
        nc.set_num_threads(threads)
    assert len(results) == 1


def test_large_mean(rng):
    check(*make(rng, (3, 4, 500), mean=1e6))
    check(*make(rng, (700, 4), mean=1e6, kind="weights"))


@pytest.mark.parametrize("exponent", [-100, 100])
def test_magnitudes(rng, exponent):
    # A power of two changes no rounding, so y is that of the unscaled x up to eps.
    x, _, w, b, mask = make(rng, (4, 5, 60), kind="weights")
    want = nc.batch_norm(x, w, b, mask=mask, eps=0.0)
    got = nc.batch_norm(x * np.float32(2.0**exponent), w, b, mask=mask, eps=0.0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [1, -1])
def test_what_does_not_count_may_hold_anything(rng, bad, axis):
    x, _, w, b, mask = make(rng, (4, 5, 60))
    want = nc.batch_norm(x, w, b, mask=mask)
    spoilt = np.where(mask[:, None], x, np.float32(bad))
    if axis == -1:
        spoilt = np.ascontiguousarray(np.moveaxis(spoilt, 1, -1))
    y = np.moveaxis(nc.batch_norm(spoilt, w, b, mask=mask, channel_axis=axis), axis, 1)
    seen = np.broadcast_to(mask[:, None], x.shape)
    np.testing.assert_allclose(y[seen], want[seen], rtol=2e-6, atol=2e-6)
    # What counts spoils its own channel alone.
    x[0, 1, np.argmax(mask[0])] = bad
    clean = np.isfinite(nc.batch_norm(x, w, b, mask=mask)).all(axis=(0, 2))
    assert clean.tolist() == [True, False, True, True, True]


def test_bools_are_packed_data_and_integers_repeat(rng):
    x, _, w, b, mask = make(rng, (6, 4, 50), np.float64)
    packed = np.moveaxis(x, 1, -1)[mask]
    want, stats = nc.batch_norm(packed, w, b, return_stats=True)
    y, masked = nc.batch_norm(x, w, b, mask=mask, return_stats=True)
    # Other orders of summation in float64.
    np.testing.assert_allclose(np.moveaxis(y, 1, -1)[mask], want, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(masked.mean, stats.mean, rtol=1e-12, atol=1e-13)
    repeats = rng.integers(0, 4, mask.shape)
    repeated = np.repeat(np.moveaxis(x, 1, -1).reshape(-1, 4), repeats.ravel(), axis=0)
    _, want = nc.batch_norm(repeated, return_stats=True)
    _, got = nc.batch_norm(x, mask=repeats, return_stats=True)
    np.testing.assert_allclose(got.pooled, want.pooled, rtol=1e-11, atol=1e-13)


def test_a_mask_of_ones_is_none(rng):
    x, dy, w, b, _ = make(rng, (5, 6, 40), np.float64)
    for mask in (True, np.ones((5, 40)), np.ones((5, 1), bool), [True] * 40):
        y = nc.batch_norm(x, w, b, mask=mask)
        np.testing.assert_allclose(y, nc.batch_norm(x, w, b), rtol=1e-12, atol=1e-12)
        dx = nc.batch_norm_backward(dy, x, w, b, mask=mask).dx
        want = nc.batch_norm_backward(dy, x, w, b).dx
        np.testing.assert_allclose(dx, want, rtol=1e-12, atol=1e-12)


def test_where_nothing_counts_y_is_bias_and_the_buffers_stay(rng):
    x, dy, w, b, mask = make(rng, (5, 6, 7))
    mean, var = rng.normal(size=6), rng.uniform(1, 2, 6)
    before = bits(mean), bits(var)
    out = GuardedOut(x)
    y = nc.batch_norm(
        x, w, b, mask=mask & False, running_mean=mean, running_var=var, training=True, out=out.view
    )
    assert out.guards_intact()
    np.testing.assert_array_equal(y, np.broadcast_to(b[:, None], y.shape))
    assert (bits(mean), bits(var)) == before
    got = nc.batch_norm_backward(dy, x, w, b, mask=0.0, training=True)
    assert not got.dx.any() and not got.dweight.any()


def test_a_mask_of_nothing(rng):
    # Memory that was just freed, full of what a mask must not hold: empty arrays often get it.
    for _ in range(50):
        np.full(1, -1.0), np.full(1, -1.0, np.float32)
        empty = np.zeros((0, 30), np.float32)
        assert nc.batch_norm(empty, training=True, mask=np.zeros(0, bool)).shape == empty.shape
        assert not nc.moments(empty, axis=0, mask=np.zeros((0, 30), bool)).count.any()


def test_running_statistics_know_no_mask(rng):
    x, dy, w, b, mask = make(rng, (5, 6, 7))
    given = dict(running_mean=np.zeros(6), running_var=np.ones(6))
    assert bits(nc.batch_norm(x, w, b, mask=mask, **given)) == bits(nc.batch_norm(x, w, b, **given))
    dx = nc.batch_norm_backward(dy, x, w, b, mask=mask, **given).dx
    assert bits(dx) == bits(nc.batch_norm_backward(dy, x, w, b, **given).dx)


@pytest.mark.parametrize("kind", ["bools", "weights", "sparse"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), (1, 3)], ids=str)
def test_moments(rng, dtype, layout, axis, kind):
    x = arrange(rng.normal(3, 2, (4, 3, 5, 6)).astype(dtype), layout)
    shape = [(4, 3, 5, 6), (3, 1, 6), (5, 1)][rng.integers(3)]
    mask = rng.random(shape) < (0.1 if kind == "sparse" else 0.6)  # sparse: some count nothing
    if kind == "weights":
        mask = mask * rng.uniform(0, 3, shape).astype(np.float32)
    x[np.broadcast_to(mask == 0, x.shape)] = np.nan
    got = nc.moments(x, axis=axis, mask=mask)
    axes = tuple(range(4)) if axis is None else axis
    m = np.broadcast_to(mask, x.shape).astype(np.longdouble)
    seen = np.where(m > 0, reference.wide(x), 0)
    count = m.sum(axes, keepdims=True)
    mean = (m * seen).sum(axes, keepdims=True) / np.where(count > 0, count, 1)
    m2 = (m * (seen - mean) ** 2).sum(axes)
    # A few roundings of the compute type on values of up to 12, and of their squares.
    eps = float(np.finfo(stat_dtype(x.dtype)).eps)
    np.testing.assert_allclose(got.count, count.reshape(m2.shape), rtol=8 * eps)
    np.testing.assert_allclose(got.mean, mean.reshape(m2.shape), atol=50 * eps)
    np.testing.assert_allclose(got.m2, m2, rtol=50 * eps, atol=50 * eps)
    kept = nc.moments(x, axis=axis, mask=mask, keepdims=True)
    assert kept.mean.shape == mean.shape and bits(kept.m2) == bits(got.m2)


def test_moments_of_masked_parts_merge(rng):
    x, mask = rng.normal(1e6, 1, (30, 4)), rng.random((30, 4)) < 0.3
    mask[20:, 2] = False
    parts = [nc.moments(x[p], axis=0, mask=mask[p]) for p in (slice(20), slice(20, 30))]
    whole = nc.moments(x, axis=0, mask=mask)
    merged = nc.Moments.merge(parts)
    np.testing.assert_array_equal(merged.count, mask.sum(0))
    # The means are float64 near 1e6, off by 1e-10.
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-15)
    np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-8)
    with pytest.raises(
        ValueError, match=r"mask has shape \(3, 4\), expected \(30, 4\), x.shape, or"
    ):
        nc.moments(x, mask=mask[:3])
    with pytest.raises(ValueError, match="mask holds -2"):
        nc.moments(x, axis=1, mask=-2.0)


def test_in_place_and_other_libraries(rng):
    x, _, w, b, mask = make(rng, (5, 6, 7))
    want = nc.batch_norm(x, w, b, mask=mask)
    assert bits(nc.batch_norm(x.copy(), w, b, mask=mask, out=x.copy())) == bits(want)
    torch = pytest.importorskip("torch")
    got = nc.batch_norm(*map(torch.from_numpy, (x, w, b)), mask=torch.from_numpy(mask))
    assert isinstance(got, torch.Tensor) and bits(got.numpy()) == bits(want)


def test_layer(rng):
    x, dy, _, _, mask = make(rng, (5, 6, 7))
    layer = nc.BatchNorm(6, momentum=None)
    y = layer(x, mask=mask)
    assert bits(y) == bits(nc.batch_norm(x, mask=mask))
    assert bits(layer.backward(dy)) == bits(
        nc.batch_norm_backward(dy, x, layer.parameters["weight"], mask=mask).dx
    )
    layer(x, mask=mask & False)
    assert layer.buffers["num_batches_tracked"] == 1  # of a cumulative average
    ghosts = nc.BatchNorm(6, ghost_batch_size=2)
    y = ghosts(x, mask=mask)
    np.testing.assert_array_equal(y[2:4], nc.batch_norm(x[2:4], mask=mask[2:4]))
    np.testing.assert_array_equal(
        ghosts.backward(dy)[2:4], nc.batch_norm_backward(dy[2:4], x[2:4], mask=mask[2:4]).dx
    )


def test_errors(rng):
    x, dy, w, b, mask = make(rng, (5, 6, 7))
    y = np.full_like(x, 7)
    for bad, match in (
        (np.ones((5, 6)), r"mask has shape \(5, 6\), expected \(5, 7\)"),
        (np.ones((1, 5, 7)), r"mask has shape \(1, 5, 7\)"),
        (mask - 1.0, "mask holds -1"),
        (np.where(mask, np.nan, 1), "mask holds nan"),
        (np.where(mask, np.inf, 1), "mask holds inf"),
    ):
        with pytest.raises(ValueError, match=match):
            nc.batch_norm(x, w, b, mask=bad, out=y)
        with pytest.raises(ValueError, match=match):
            nc.batch_norm_backward(dy, x, w, b, mask=bad, out=y)
    with pytest.raises(ValueError, match="mask holds -1"):  # also where it is not needed
        nc.batch_norm(x, running_mean=w, running_var=w * w, mask=mask - 1.0, out=y)
    with pytest.raises(ValueError, match=r"x has shape \(6,\)"):
        nc.BatchNorm(6)(x[0, :, 0], mask=True)
    with pytest.raises(TypeError, match="mask has dtype complex128"):
        nc.batch_norm(x, w, b, mask=mask * 1j, out=y)
    with pytest.raises(ValueError, match="channel_axis"):
        nc.batch_norm(x, w, b, mask=mask, channel_axis=4)
    assert (y == 7).all()


ARRANGED = [((4, 3, 5, 6), layout) for layout in LAYOUTS]
ARRANGED += [((300, 5), "contiguous"), ((2, 3, 9000), "contiguous")]


@pytest.mark.parametrize("kind", ["bools", "weights", "lengths"])
@pytest.mark.parametrize("shape, layout", ARRANGED, ids=str)
def test_batch_renorm(rng, shape, layout, kind):
    x, dy, w, b, mask = make(rng, shape, kind=kind, layout=layout)
    _, mean, var, _ = reference.masked_batch_norm(x, w, b, mask)
    std = np.sqrt(var + 1e-5)
    # One channel is clipped on each side, and the third is not.
    old_mean = mean + std * np.resize([9, -9, 0.5], mean.shape)
    old_std = std * np.resize([5, 0.1, 1.3], std.shape)
    r, d = np.clip(std / old_std, 1 / 3, 3), np.clip((mean - old_mean) / old_std, -5, 5)
    buffers = {"running_mean": old_mean.astype("f4"), "running_std": old_std.astype("f4")}
    y, stats = nc.batch_renorm(
        x, w, b, **buffers, mask=mask, training=True, momentum=1.0, return_stats=True
    )
    xhat = reference.masked_batch_norm(x, None, None, mask)[0]
    by_channel = (1, -1, *[1] * (x.ndim - 2))
    corrected = xhat * r.reshape(by_channel) + d.reshape(by_channel)
    # xhat is at most some 10 and corrected at most 35: some roundings of float32.
    want = corrected * w.reshape(by_channel) + b.reshape(by_channel)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(buffers["running_mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(buffers["running_std"], std, rtol=1e-5)
    got = nc.batch_renorm_backward(dy, x, w, b, **buffers, mask=mask, training=True, stats=stats)
    want = reference.masked_batch_norm_backward(dy, x, w * r, b, mask)
    # Sums of n terms, and a share of them for each position that counts.
    atol = 1e-5 * np.sqrt(mask.size)
    np.testing.assert_allclose(got.dx, want.dx, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.dbias, want.dbias, rtol=1e-5, atol=atol)
    axes = (0, *range(2, x.ndim))
    np.testing.assert_allclose(got.dweight, (dy * corrected).sum(axes), rtol=1e-5, atol=35 * atol)


@pytest.mark.parametrize("kind", ["bools", "weights", "lengths"])
@pytest.mark.parametrize("shape, layout", ARRANGED, ids=str)
def test_mean_only_batch_norm(rng, shape, layout, kind):
    x, dy, _, b, mask = make(rng, shape, kind=kind, layout=layout)
    _, mean, _, count = reference.masked_batch_norm(x, None, None, mask)
    by_channel, axes = (1, -1, *[1] * (x.ndim - 2)), (0, *range(2, x.ndim))
    running = np.zeros(shape[1], np.float32)
    y, stats = nc.mean_only_batch_norm(
        x, b, running_mean=running, mask=mask, training=True, momentum=1.0, return_stats=True
    )
    # Values of some 10, some roundings of float32.
    np.testing.assert_allclose(y, x - (mean - b).reshape(by_channel), rtol=1e-6, atol=5e-6)
    np.testing.assert_allclose(running, mean, rtol=1e-6, atol=1e-6)
    total = reference.wide(dy).sum(axes)
    for s in (None, stats):
        got = nc.mean_only_batch_norm_backward(dy, x, b, mask=mask, training=True, stats=s)
        share = np.expand_dims(mask, 1) * (total / count).reshape(by_channel)
        np.testing.assert_allclose(got.dx, dy - share, rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(got.dbias, total, rtol=1e-5, atol=1e-5 * np.sqrt(mask.size))


@pytest.mark.parametrize("make_layer", [nc.BatchNorm, nc.BatchRenorm, nc.MeanOnlyBatchNorm])
def test_padding_changes_nothing(rng, make_layer):
    """Samples of one length beside longer padding: results and gradients of the rest alone."""
    x, dy, _, _, _ = make(rng, (5, 4, 7), np.float64)
    padded, dy_padded = (np.pad(a, ((0, 0), (0, 0), (0, 6))) for a in (x, dy))
    mask = np.arange(13) < 7
    alone, beside = (make_layer(4, dtype=np.float64) for _ in range(2))
    # Sums in another order, in float64.
    close = {"rtol": 1e-11, "atol": 1e-12}
    for _ in range(3):
        np.testing.assert_allclose(beside(padded, mask=mask)[..., :7], alone(x), **close)
        np.testing.assert_allclose(beside.backward(dy_padded)[..., :7], alone.backward(dy), **close)
    for name, value in alone.buffers.items():
        np.testing.assert_allclose(beside.buffers[name], value, **close)
    for name, value in alone.grads.items():
        np.testing.assert_allclose(beside.grads[name], value, **close)
