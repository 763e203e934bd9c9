"""Magnitudes at the ends of the range, forward and backward.

Hunts for products that leave the range of float on the way to a result within it, for lanes beyond
a row that a large centre makes infinite, and for gradients that are rounding where they must be 0.
The yardstick for float32 is the call in float64, whose range no product of three floats leaves.
"""

import itertools

import numpy as np
import pytest
from support import DTYPES

import normcore as nc

POWERS = [-100, -66, -33, 0, 33, 43, 66, 100]  # of two: 1e-30 to 1e30


def close(got, want, what):
    """Within 1e-4 of the largest: extremes only; digits are the affair of other tests."""
    for name, a, b in zip(want._fields, got, want, strict=True):
        if a is None:
            continue
        largest = np.abs(b).max()
        if not 1e-35 < largest < 1e37:  # float32 cannot hold all of it
            continue
        error = np.abs(np.asarray(a, np.float64) - b).max() / largest
        assert error < 1e-4, f"{what} {name}: {error}"


def narrow(rng, shape, power, positive=False):
    values = rng.uniform(0.5, 1, shape) if positive else rng.normal(size=shape)
    return (values * 2.0**power).astype(np.float32)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("alpha, epsilon", [(2.0, 0.5), (1.0, 1.0)])
def test_gdn_backward(rng, inverse, alpha, epsilon, isa):
    options = {"alpha": alpha, "epsilon": epsilon, "inverse": inverse}
    for own in ((0, -3), (-100, -33), (-20, 66), (66, 0)):
        beta, gamma = narrow(rng, 5, own[0], True), narrow(rng, (5, 5), own[1], True)
        for of_x, of_dy in itertools.product(POWERS, POWERS):
            arrays = narrow(rng, (2, 5, 7), of_dy), narrow(rng, (2, 5, 7), of_x), beta, gamma
            got = nc.gdn_backward(*arrays, **options)
            want = nc.gdn_backward(*(a.astype(np.float64) for a in arrays), **options)
            # Sums of logarithms cancel; their digits are tested elsewhere.
            names = ("dx", "dbeta", "dgamma")
            got, want = (type(g)(*(getattr(g, n) if n in names else None for n in g._fields))
                         for g in (got, want))  # fmt: skip
            close(got, want, f"{own} x {of_x} dy {of_dy}")


@pytest.mark.parametrize("exponent, power", [(2.0, 1.0), (1.0, 1.0), (2.0, 2.0), (1.5, 0.7)])
def test_divisive_backward(rng, exponent, power, isa):
    options = {"exponent": exponent, "power": power}
    for own in ((0, 0, 0), (-100, -33, 33), (-20, 33, -33), (33, -100, 0)):
        sigma, gain = narrow(rng, 5, own[0], True), narrow(rng, 5, own[2], True)
        weights = narrow(rng, (5, 5), own[1], True)
        for of_x, of_dy in itertools.product(POWERS, POWERS):
            arrays = narrow(rng, (2, 5, 7), of_dy), narrow(rng, (2, 5, 7), of_x), weights, sigma
            got = nc.divisive_norm_backward(*arrays, gain=gain, **options)
            arrays = [a.astype(np.float64) for a in arrays]
            want = nc.divisive_norm_backward(*arrays, gain=gain.astype(np.float64), **options)
            close(got, want, f"{own} x {of_x} dy {of_dy}")


@pytest.mark.parametrize("width", [1, 2, 5, 17, 70])
@pytest.mark.parametrize("axis", [1, -1])
def test_constant_channels_and_a_tiny_eps(rng, width, axis, isa):
    # rstd is 1e10: the centre times it is no float, and lanes beyond a row hold nothing but that.
    w, options = np.ones(3, np.float32), {"eps": 1e-20}
    for value in (1e30, -1e30, 3e33):
        x = np.full((2, 3, width), value, np.float32)
        dy = rng.normal(size=x.shape).astype(np.float32)
        if axis == -1:
            x, dy = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy))
        call = {"training": True, "channel_axis": axis}
        axes = (0, 2) if axis == 1 else (0, 1)
        got = nc.batch_norm_backward(dy, x, w, w, **call, **options)
        want = (dy - dy.mean(axes, keepdims=True, dtype=np.float64)) * 1e10
        np.testing.assert_allclose(got.dx, want, atol=1e5)  # eps times 1e10 and some
        np.testing.assert_array_equal(got.dweight, 0)
        for p in (1, np.inf):
            assert np.isfinite(
                nc.lp_batch_norm_backward(dy, x, w, w, p=p, **call, **options).dx
            ).all()
        rows = nc.layer_norm_backward(dy, x, **options).dx
        want = (dy - dy.mean(-1, keepdims=True, dtype=np.float64)) * 1e10
        np.testing.assert_allclose(rows, want, atol=1e5)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_one_element_has_no_gradient(rng, dtype, isa):
    for _ in range(20):
        x, dy = rng.normal(1, 30, (2, 6, 1)).astype(dtype)
        w = rng.normal(0, 100, 1).astype(dtype)
        for a, g in ((x, dy), (np.asfortranarray(x), np.asfortranarray(dy))):
            np.testing.assert_array_equal(nc.layer_norm_backward(g, a, w).dx, 0)
            w6 = rng.normal(0, 100, 6).astype(dtype)
            np.testing.assert_array_equal(
                nc.group_norm_backward(np.repeat(g.T, 2, 0), np.repeat(a.T, 2, 0), 6, w6).dx, 0
            )
        np.testing.assert_array_equal(nc.layer_norm_backward(dy.T, x.T, w, axis=0).dx, 0)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("n", [2, 4, 8, 64])
def test_equal_elements_with_equal_gradients(rng, dtype, n, isa):
    # Sums of 2, 4 or 8 equal numbers are exact; of more of them where the numbers have few bits.
    for count, value in ((n, rng.normal() if n <= 8 else 77.0), (n - 1, 123.0)):
        x, dy = np.full((3, count), rng.normal(), dtype), np.full((3, count), value, dtype)
        w = np.full(count, 1.0 if value != 123 else 3.0, dtype)
        np.testing.assert_array_equal(nc.layer_norm_backward(dy, x, w).dx, 0)
    # Others leave some roundings of the terms.
    x, dy = np.full((3, 31), 0.3, dtype), np.full((3, 31), 0.7, dtype)
    dx = nc.layer_norm_backward(dy, x, np.full(31, 123, dtype)).dx
    eps = 2.3e-16 if dtype == np.float64 else 1.2e-7
    assert np.abs(dx.astype(np.float64)).max() <= 6 * eps * 123 * 0.7 * 316.3


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_one_infinity_leaves_the_others_zero(rng, dtype, axis, bad, isa):
    x = rng.normal(size=(9, 5, 33)).astype(dtype)
    x[4, 2, 7] = bad
    at = [4, 2, 7]
    at[axis] = slice(None)
    row = np.zeros(x.shape, bool)
    row[tuple(at)] = True
    infinite = np.isinf(x.astype(np.float64))
    calls = [lambda a: nc.rms_norm(a, axis=axis)]
    calls += [lambda a, o=o: nc.normalize(a, ord=o, axis=axis) for o in (1, 2, np.inf)]
    for call in calls:
        with np.errstate(all="ignore"):
            y = call(x).astype(np.float64)
        np.testing.assert_array_equal(y[row & ~infinite], 0)
        assert np.isnan(y[infinite]).all()
        assert np.isfinite(y[~row]).all() and y[~row].any()
        spoilt = x.copy()
        spoilt[tuple(0 if i == slice(None) else i for i in at)] = np.nan
        with np.errstate(all="ignore"):
            assert np.isnan(call(spoilt).astype(np.float64)[row]).all()


def largest(rng, kind, dtype):
    top = {"float16": 6e4}.get(np.dtype(dtype).name, 3.3e38)
    x = rng.uniform(-1, 1, (4, 6, 40))
    if kind == "one sign":
        x = np.abs(x) * np.where(np.arange(40) % 7 == 0, -1, 1)
    elif kind == "constant":
        x = np.full(x.shape, 0.9)
    return (x * top).astype(dtype)


@pytest.mark.parametrize("dtype", [t for t in DTYPES.values() if t != np.float64], ids=str)
@pytest.mark.parametrize("kind", ["signs", "one sign", "constant"])
def test_up_to_the_largest_number(rng, dtype, kind, isa):
    x = largest(rng, kind, dtype)
    wide = x.astype(np.float64)
    mask = rng.uniform(0.1, 1, (4, 40))
    ones = np.ones(6)
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    for name, got, want in (
        ("last", nc.layer_norm(x), nc.layer_norm(wide)),
        ("first", nc.layer_norm(x, axis=0), nc.layer_norm(wide, axis=0)),
        ("group", nc.group_norm(x, 2), nc.group_norm(wide, 2)),
        ("batch", nc.batch_norm(x, training=True), nc.batch_norm(wide, training=True)),
        ("channels last", np.moveaxis(nc.batch_norm(last, training=True, channel_axis=-1), -1, 1),
         nc.batch_norm(wide, training=True)),
        ("mask", nc.batch_norm(x, training=True, mask=mask),
         nc.batch_norm(wide, training=True, mask=mask)),
        ("rms", nc.rms_norm(x), nc.rms_norm(wide)),
    ):  # fmt: skip
        if name == "mask" and kind == "constant":
            continue  # the mean of weighted equal numbers is theirs but for a rounding
        # rstd near 4e-39 is a subnormal float of 21 bits; then a rounding of dtype.
        atol = 4e-6 + (float(np.max(np.abs(want))) * 0.01 if np.dtype(dtype).itemsize == 2 else 0)
        np.testing.assert_allclose(got.astype(np.float64), want, atol=atol, err_msg=name)
    dy = rng.normal(size=x.shape).astype(dtype)
    dx = nc.batch_norm_backward(dy, x, ones.astype(dtype), training=True).dx
    assert np.isfinite(dx.astype(np.float64)).all()


@pytest.mark.parametrize("exponent", [-1000, -600, -520, 500, 600, 1000])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_weight_norm_of_float64(rng, exponent, axis):
    # Powers of two change no rounding, and squares leave the range of float64 at 2**512.
    v, dw = rng.normal(size=(2, 6, 35))
    g = rng.normal(size=() if axis is None else v.shape[axis])
    want, small = nc.weight_norm(v, g, axis=axis), nc.weight_norm_backward(dw, v, g, axis=axis)
    v = v * 2.0**exponent
    np.testing.assert_allclose(nc.weight_norm(v, g, axis=axis), want, rtol=1e-14)
    dv, dg = nc.weight_norm_backward(dw, v, g, axis=axis)
    np.testing.assert_allclose(dv * 2.0**exponent, small.dv, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(dg, small.dg, rtol=1e-12, atol=1e-13)
    # eps, where it is as large as the sum.
    eps = float((v.astype(np.longdouble) ** 2).sum()) if abs(exponent) < 515 else 1.0
    scale = np.sqrt((v.astype(np.longdouble) ** 2).sum(None if axis is None else 1 - axis,
                                                      keepdims=True) + eps)  # fmt: skip
    want = np.reshape(g, scale.shape) * (v / scale)
    np.testing.assert_allclose(nc.weight_norm(v, g, axis=axis, eps=eps), want.astype(float),
                               rtol=1e-13, atol=0)  # fmt: skip


@pytest.mark.parametrize("rows", [9, 700])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_gradients_of_columns_at_the_ends_of_the_range(rng, dtype, rows, isa):
    # Columns are summed with their squares, and once more where products left the range: one that
    # did must not change the others, and none may lose what a division of its norm would keep.
    cols = 23
    v, dw = rng.normal(size=(2, rows, cols)).astype(dtype)
    g = rng.normal(size=cols).astype(dtype)
    small = nc.weight_norm_backward(dw, v, g, axis=1)
    most = 60 if dtype == np.float32 else 500
    exponents = rng.integers(-most, most, size=(2, cols))
    exponents[:, ::3] = 0
    exponents[:, 1] = -most, -most  # products below all normal numbers
    if dtype == np.float32:  # a float64 has nothing wider to be computed in
        exponents[:, 2] = most + 40, most + 4  # and above the largest
    dv, dg = nc.weight_norm_backward(
        np.ldexp(dw, exponents[0]), np.ldexp(v, exponents[1]), g, axis=1
    )
    # Powers of two change no rounding of what neither overflows nor underflows.
    np.testing.assert_array_equal(dv[:, ::3], small.dv[:, ::3])
    np.testing.assert_array_equal(dg[::3], small.dg[::3])
    eps = np.finfo(dtype).eps
    back = np.ldexp(dv.astype(np.longdouble), exponents[1] - exponents[0])
    np.testing.assert_allclose(back.astype(float), small.dv, rtol=0, atol=50 * eps)
    back = np.ldexp(dg.astype(np.longdouble), -exponents[0])
    np.testing.assert_allclose(back.astype(float), small.dg, rtol=0, atol=50 * eps * rows**0.5)
    # Columns without a gradient, or with one that is no number, are theirs alone too.
    dw[:, 4], dw[3, 7] = 0, np.nan
    odd = nc.weight_norm_backward(dw, v, g, axis=1)
    assert (odd.dv[:, 4] == 0).all() and odd.dg[4] == 0 and np.isnan(odd.dg[7])
    rest = np.delete(np.arange(cols), [4, 7])
    np.testing.assert_array_equal(odd.dv[:, rest], small.dv[:, rest])
    np.testing.assert_array_equal(odd.dg[rest], small.dg[rest])
