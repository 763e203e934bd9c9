"""Norms and moments over any axes, against the oracle; and the merging of moments.

Hunts for squares that leave the range, a mean that cancels, NaN that is passed over by a maximum,
an axis that is mapped to the wrong entry of the result, and merges that divide by a count of zero
or depend on how the data was cut.
"""

import operator
import pickle
import warnings

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from support import DTYPES, LAYOUTS, arrange, assert_close, bfloat16, bits, stat_dtype

import normcore as nc

AXES = [None, -1, 1, 0, (1, 2), (3, 0), (2, 1, 0), (0, 1, 2, 3)]

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_axis = pytest.mark.parametrize("axis", AXES, ids=str)
each_order = pytest.mark.parametrize("ord", [1, 2, np.inf], ids=str)


def make(rng, dtype=np.float32, shape=(5, 6, 3, 7), layout="contiguous", mean=0.3):
    return arrange(rng.normal(mean, 1, shape).astype(dtype), layout)


def check_norm(x, **options):
    # Up to 128 rounded additions follow each other in a column, and their errors add up as a random
    # walk: 6 roundings of the sum, with room for a rare one of thousands of entries.
    eps = float(np.finfo(stat_dtype(x.dtype)).eps)
    got, want = nc.norm(x, **options), reference.norm(x, **options)
    slack = 16 * eps * want + np.longdouble(2) ** -1074  # half of that is 0 in float64
    assert_close(got, want, slack=slack, what="norm", dtype=stat_dtype(x.dtype))


def check_moments(x, **options):
    got, want = nc.moments(x, **options), reference.moments_over(x, **options)
    assert isinstance(got, nc.Moments)
    np.testing.assert_array_equal(got.count, want.count)
    # Sums are taken around a centre, the mean of the first few, which may be a deviation away. The
    # up to 128 roundings that follow each other can have one sign: where x is of a half type, all
    # x - centre share their low bits. So the mean may be off by 128 halves of a rounding of the
    # centre's distance, m2 by twice as much; and both by roundings of the mean, a float64.
    eps, eps64 = float(np.finfo(stat_dtype(x.dtype)).eps), 2.0**-52
    size = np.maximum(np.abs(want.mean), want.peak)
    slack = 32 * eps * want.peak + 4 * eps64 * size
    assert_close(got.mean, want.mean, slack=slack, what="mean", dtype=np.float64)
    slack = 128 * eps * want.m2 + 20 * eps64 * size * want.peak * want.count
    assert_close(got.m2, want.m2, slack=slack, what="m2", dtype=np.float64)


# ---- both, over any axes of any array


@each_dtype
@each_layout
@each_axis
def test_any_axes(rng, dtype, layout, axis, isa):
    x = make(rng, dtype, layout=layout)
    check_moments(x, axis=axis)
    for order in (1, 2, np.inf):
        check_norm(x, axis=axis, ord=order)


@each_axis
def test_keepdims(rng, axis):
    x = make(rng)
    for function in (nc.norm, lambda *a, **k: nc.moments(*a, **k).m2):
        kept, plain = function(x, axis=axis, keepdims=True), function(x, axis=axis)
        like = np.sum(x, axis=axis, keepdims=True)
        assert kept.shape == like.shape and plain.shape == np.sum(x, axis=axis).shape
        assert bits(kept) == bits(plain)


@pytest.mark.parametrize("width", [1, 2, 3, 17, 64, 65, 1000, 4097, 70001])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [bfloat16, np.float32, np.float64], ids=str)
def test_widths(rng, width, axis, dtype):
    x = make(rng, dtype, (3, width) if axis else (width, 3))
    check_moments(x, axis=axis)
    for order in (1, 2, np.inf):
        check_norm(x, axis=axis, ord=order)


def test_scalars_and_lists():
    assert nc.norm([3.0, -4.0]) == 5 and isinstance(nc.norm([3.0, -4.0]), np.float64)
    assert isinstance(nc.norm(np.float32([3, 4])), np.float32)
    assert nc.norm(np.array(-2.0)) == 2 and nc.norm(np.array(-2.0), ord=np.inf).shape == ()
    assert nc.moments(np.float16(3)) == (1, 3, 0)
    m = nc.moments([[1.0, 3.0]])
    assert m == (2, 2, 2) and all(isinstance(field, np.float64) for field in m)
    assert m.var() == 1 and m.var(correction=1) == 2 and m.std(1) == np.sqrt(2)


@each_dtype
@pytest.mark.parametrize("shape, axis", [((0,), None), ((3, 0), 1), ((0, 3), 0), ((0, 3), 1)])
def test_empty(dtype, shape, axis):
    x = np.empty(shape, dtype)
    want = np.zeros(np.sum(np.empty(shape), axis=axis).shape)
    for order in (1, 2, np.inf):
        np.testing.assert_array_equal(nc.norm(x, ord=order, axis=axis), want)
    m = nc.moments(x, axis=axis)
    for field in m:
        np.testing.assert_array_equal(field, want)
    assert np.isnan(m.var()).all() and np.isnan(m.std(1)).all()


def test_errors():
    x = np.ones((2, 3), np.float32)
    for function in (nc.norm, nc.moments):
        for axis, says in [(2, "axis is 2"), ((0, -2), "twice"), ((), r"axis is \(\)")]:
            with pytest.raises(ValueError, match=says):
                function(x, axis=axis)
        with pytest.raises(TypeError, match="axis"):
            function(x, axis=1.0)
        for bad in (np.ones(3, int), np.ones(3, complex), ["a"], None):
            with pytest.raises(TypeError, match="x "):
                function(bad)
    for order in (0, 3, -np.inf, np.nan):
        with pytest.raises(ValueError, match=r"ord is .*expected 1, 2 or inf"):
            nc.norm(x, ord=order)
    with pytest.raises(TypeError, match="ord"):
        nc.norm(x, ord="two")


def test_same_bits_for_any_number_of_threads_and_of_rows(rng, threads):
    x = make(rng, shape=(300, 70001))
    results = []
    for n in (1, 2, 3):
        threads(n)
        results.append([nc.norm(x), *nc.moments(x), nc.norm(x, axis=1), nc.moments(x, axis=0).m2])
    for other in results[1:]:
        assert [bits(a) for a in other] == [bits(a) for a in results[0]]
    few, all_rows = nc.moments(x[7:9], axis=1), nc.moments(x, axis=1)
    assert bits(few.m2) == bits(all_rows.m2[7:9])
    assert bits(nc.norm(x[7:9], axis=1)) == bits(results[0][4][7:9])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_other_libraries(rng, layout):
    torch = pytest.importorskip("torch")
    x = make(rng, layout=layout)
    t = torch.from_numpy(x)
    y = nc.norm(t, axis=(0, 2))
    assert isinstance(y, torch.Tensor) and y.dtype == torch.float32
    assert bits(y.numpy()) == bits(nc.norm(x, axis=(0, 2)))
    assert nc.norm(t).shape == ()
    # Another library might narrow float64: moments are always of NumPy.
    got, want = nc.moments(t, axis=1), nc.moments(x, axis=1)
    assert all(type(a) is np.ndarray and bits(a) == bits(b) for a, b in zip(got, want, strict=True))


# ---- norm


@each_order
@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e-170, 1e-140, 1e140, 1e160, 1e300])
@each_layout
def test_magnitudes_of_float64(rng, scale, ord, layout):
    x = arrange(make(rng, np.float64) * scale, layout)
    check_norm(x, ord=ord, axis=(1, 3))


@each_order
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-18, 1e18, 1e30, 1e35])
@each_layout
def test_magnitudes_of_float32(rng, scale, ord, layout):
    check_norm(arrange((make(rng) * scale).astype(np.float32), layout), ord=ord, axis=(1, 3))


@each_order
def test_a_row_of_another_magnitude_changes_no_bit(rng, ord):
    x = make(rng, np.float64, (6, 50))
    want = nc.norm(x, ord=ord, axis=1)
    x[2] *= 1e250
    x[4] = np.nan
    got = nc.norm(x, ord=ord, axis=1)
    keep = [0, 1, 3, 5]
    assert bits(got[keep]) == bits(want[keep])
    assert np.isfinite(got[2]) and np.isnan(got[4])


@each_dtype
def test_many_ones(dtype):
    # A sum in float16 ends at 2048, in bfloat16 at 256.
    x = np.ones(70000, dtype)
    assert nc.norm(x, ord=1) == 70000 and nc.norm(x, ord=np.inf) == 1
    np.testing.assert_allclose(nc.norm(x), np.sqrt(70000), rtol=1e-7)
    assert nc.moments(x) == (70000, 1, 0)


@each_dtype
@each_order
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_nan_and_infinity(rng, dtype, ord, layout):
    x = make(rng, dtype, layout=layout)
    clean = nc.norm(x, ord=ord, axis=(0, 2, 3))
    x[1, 2, 0, 3] = np.nan
    x[3, 4, 2, 1] = -np.inf
    x[0, 5, 1, 1], x[4, 5, 2, 6] = np.inf, np.nan
    got = nc.norm(x, ord=ord, axis=(0, 2, 3))
    assert np.isnan(got[[2, 5]]).all() and got[4] == np.inf
    assert bits(got[[0, 1, 3]]) == bits(clean[[0, 1, 3]])


@each_order
def test_normalize_divides_by_it(rng, ord, dtype):
    x = make(rng, dtype, (7, 130))
    norm = nc.norm(x, ord=ord, axis=1, keepdims=True)
    want = reference.wide(x) / reference.wide(norm)
    # Both round the norm once, and `normalize` its reciprocal and the product too.
    slack = 4 * float(np.finfo(stat_dtype(dtype)).eps) * np.abs(want)
    assert_close(nc.normalize(x, ord=ord), want, slack=slack, what="normalize")
    assert not nc.norm(np.zeros_like(x), ord=ord, axis=1).any()


# ---- moments


@each_layout
@each_axis
@pytest.mark.parametrize(
    "dtype, mean",
    [(np.float16, 1000), (bfloat16, 200), (np.float32, 1e4), (np.float32, 1e6), (np.float64, 1e9)],
    ids=str,
)
def test_large_means(rng, layout, axis, dtype, mean):
    check_moments(make(rng, dtype, (4, 9, 11, 40), layout, mean), axis=axis)


@each_dtype
@pytest.mark.parametrize("shape, axis", [((2, 300001), 1), ((300001, 2), 0), ((600003,), None)])
def test_long_sums(rng, dtype, shape, axis):
    check_moments(make(rng, dtype, shape, mean=5), axis=axis)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e18, 1e30])
def test_magnitudes_of_moments(rng, scale):
    x = (make(rng) * scale).astype(np.float32)
    check_moments(x, axis=1)
    check_moments(x)


def test_a_nan_spoils_only_its_own_entry(rng):
    x = make(rng)
    clean = nc.moments(x, axis=(0, 2, 3))
    x[1, 2, 0, 3], x[0, 4, 0, 0] = np.nan, np.inf
    got = nc.moments(x, axis=(0, 2, 3))
    assert np.isnan(got.m2[[2, 4]]).all() and not np.isfinite(got.mean[[2, 4]]).any()
    keep = [0, 1, 3, 5]
    assert bits(got.mean[keep]) == bits(clean.mean[keep])
    assert bits(got.m2[keep]) == bits(clean.m2[keep])


# ---- merging


def assert_merged(got, x, axis=0):
    """`got` is what the moments of x are, but for roundings of float64: of the mean, and so of
    differences of means."""
    want = reference.moments_over(x, axis=axis)
    size = np.maximum(np.abs(want.mean), want.peak)
    np.testing.assert_array_equal(got.count, want.count)
    slack = 16 * 2.0**-52 * size
    assert_close(got.mean, want.mean, slack=slack, what="mean")
    slack = slack * want.peak * (want.count + 1)
    assert_close(got.m2, want.m2, slack=slack, what="m2")


@given(data=st.data())
def test_merging_does_not_depend_on_the_cuts(data):
    mean = data.draw(st.sampled_from([0.0, -3.0, 1e6]))
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=8))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(mean, 10.0 ** rng.integers(-3, 4, 3), (sum(sizes), 3))
    parts = [nc.moments(p, axis=0) for p in np.split(x, np.cumsum(sizes)[:-1])]
    assert_merged(nc.Moments.merge(parts), x)
    assert_merged(nc.Moments.merge(iter(parts[::-1])), x)
    assert_merged(nc.Moments.merge([parts[i] for i in rng.permutation(len(parts))]), x)
    middle = len(parts) // 2
    if middle:  # as a tree
        assert_merged(nc.Moments.merge(parts[:middle]) + nc.Moments.merge(parts[middle:]), x)
    again = nc.Moments.merge(parts)
    assert [bits(a) for a in again] == [bits(a) for a in nc.Moments.merge(parts)]


def test_merging_with_nothing_changes_no_bit(rng):
    for scale in (1.0, 1e200):  # whose square overflows
        m = nc.moments(make(rng, np.float64, (9, 4)) * scale, axis=0)
        nothing = nc.moments(np.empty((0, 4)), axis=0)
        for other in (m + nothing, nothing + m, nc.Moments.merge([nothing, m, nothing])):
            assert [bits(a) for a in other] == [bits(a) for a in m]
    assert all(not np.any(field) for field in nothing + nothing)


def test_counts_may_differ_from_entry_to_entry(rng):
    counts_a, counts_b = np.array([0, 0, 3, 1, 7]), np.array([0, 5, 0, 1, 2])
    columns = [
        (make(rng, np.float64, a, mean=1e3), make(rng, np.float64, b, mean=1e3))
        for a, b in zip(counts_a, counts_b, strict=True)
    ]
    a, b = (
        nc.Moments(*(np.array(f) for f in zip(*(nc.moments(c[i]) for c in columns), strict=True)))
        for i in (0, 1)
    )
    merged = a + b
    for i, column in enumerate(columns):
        assert_merged(nc.Moments(*(f[i] for f in merged)), np.concatenate(column))
    assert np.isnan(merged.var()[0]) and np.isnan(merged.var(1)[[0, 3]]).sum() == 1
    assert np.isfinite(merged.var(1)[[1, 2, 3, 4]]).all()


def test_merging_does_not_cancel(rng):
    # The sum of squares would lose all digits of a variance of 1.
    x = rng.normal(1e8, 1, (40, 500))
    merged = nc.Moments.merge(nc.moments(row) for row in x)
    # The mean is off by an ulp of 1e8 or so, and m2 by that times the deviations between the parts.
    np.testing.assert_allclose(merged.var(), x.astype(np.longdouble).var(), rtol=1e-7)


def test_merged_scalars_and_infinite_values(rng):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a = nc.moments(np.array([1.0, np.inf]))
        assert not np.isfinite((a + a + nc.moments(np.array([1.0]))).mean)
        assert np.isnan(nc.moments(np.array([1.0])).var(1))
    b = nc.moments(np.array([1.0, 3.0])) + nc.moments(np.array([5.0]))
    assert b == (3, 3, 8) and all(isinstance(field, np.float64) for field in b)


def test_merging_refuses_what_does_not_fit(rng):
    a = nc.moments(make(rng), axis=0)
    with pytest.raises(ValueError, match="expected the same shape"):
        a + nc.moments(make(rng), axis=1)
    with pytest.raises(TypeError):
        operator.add(a, (1, 2, 3))
    with pytest.raises(TypeError, match="parts has a tuple, expected Moments"):
        nc.Moments.merge([(1, 2, 3)])
    with pytest.raises(ValueError, match="parts is empty"):
        nc.Moments.merge([])


def test_var_and_std(rng):
    x = make(rng, np.float64)
    m = nc.moments(x, axis=(0, 2))
    for correction in (0, 1, 2.5):
        want = x.astype(np.longdouble).var((0, 2)) * 15 / (15 - correction)
        np.testing.assert_allclose(m.var(correction), want, rtol=1e-14)
        np.testing.assert_allclose(m.std(correction=correction), np.sqrt(want), rtol=1e-14)
    assert np.isnan(m.var(15)).all() and np.isnan(m.std(16)).all()


@pytest.mark.parametrize("axis", [None, 1])
def test_pickling(rng, axis):
    m = nc.moments(make(rng), axis=axis)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        back = pickle.loads(pickle.dumps(m, protocol))
        assert type(back) is nc.Moments and [bits(a) for a in back] == [bits(a) for a in m]


def test_moments_of_another_library_merge_in_it(rng):
    """As those of arrays on a device are: torch's tensors on the CPU stand for them."""
    torch = pytest.importorskip("torch")
    parts = [nc.moments(rng.normal(3, 1, (n, 5)), axis=0) for n in (4, 1, 7)]
    parts.append(nc.Moments(np.zeros(5), np.zeros(5), np.zeros(5)))
    there = [nc.Moments(*map(torch.from_numpy, part)) for part in parts]
    got, want = nc.Moments.merge(there), nc.Moments.merge(parts)
    want_std = want.std(1)
    pairs = [*zip(got, want, strict=True), (got.var(), want.var()), (got.std(1), want_std)]
    pairs.append((there[1].var(1), parts[1].var(1)))  # of one value: NaN
    for ours, expected in pairs:
        assert isinstance(ours, torch.Tensor) and ours.dtype == torch.float64
        # Another library's square roots may be an ulp off; all else is exact.
        ulps = 1 if expected is want_std else 0
        np.testing.assert_allclose(ours.numpy(), expected, rtol=ulps * 2**-52, atol=0)
    scalars = nc.Moments(*(torch.tensor(v, dtype=torch.float64) for v in (2.0, 3.0, 4.0)))
    assert (scalars + nc.Moments(2.0, *scalars[1:])).count == 4
    with pytest.raises(ValueError, match="moments are of torch and of numpy"):
        got + want
    assert nc.Moments(2.0, 3.0, 4.0) + nc.Moments(0, 0, 0) == (2, 3, 4)
