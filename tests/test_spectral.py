"""Spectral norm and the power method, against the oracle, LAPACK and torch.

Hunts for products that mix up rows and columns in some layout, for squares that overflow or vanish,
for NaN of zeros and of unlucky starts, for sums that depend on threads, for a `converged` that is
not true, and for a layer that leaves torch's path.
"""

import copy
import pickle

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from support import DTYPES, LAYOUTS, GuardedOut, arrange, assert_close, bfloat16, bits, stat_dtype

import normcore as nc

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
# Below and above the number of rows up to which blocks are of columns; rows longer than a chunk;
# several tasks; single rows and columns; short rows; the weights of convolutions.
SHAPES = [
    (5,),
    (1, 9),
    (9, 1),
    (64, 128),
    (300, 40),
    (257, 1033),
    (3, 9001),
    (9001, 3),
    (40, 5, 3, 3),
    (300, 31, 1, 5),
]


def make_weight(rng, dtype=np.float32, shape=(6, 5, 3, 7), layout="contiguous", axis=0):
    w, dw = (arrange(rng.normal(size=shape).astype(dtype), layout) for _ in range(2))
    vectors = (rng.normal(size=n) for n in reference.matrix(w, axis).shape)
    u, v = (a.astype(stat_dtype(dtype)) for a in vectors)
    return w, dw, u, v


def check(w, dw, u, v=None, **options):
    """Compare forward and backward with the oracle, which starts from the same vectors."""
    eps = float(np.finfo(stat_dtype(w.dtype)).eps)
    result = nc.spectral_norm(w, u, v, **options)
    want = reference.spectral_norm(w, u, v, **options)
    matrix = reference.matrix(w, options.get("axis", 0)).astype(np.float64)
    frobenius = np.linalg.norm(matrix)
    # A product's error is some roundings of its terms, whose size is that of the matrix; as a part
    # of its length it is larger the more the terms cancel. The next product carries it on.
    slack, given = 0.0, u.astype(np.float64)
    given /= np.linalg.norm(given)
    for _ in range(options.get("n_power_iterations", 1)):
        for turned in (matrix.T, matrix):
            product = turned @ given
            slack = (slack + 8 * eps) * frobenius / np.linalg.norm(product)
            given = product / np.linalg.norm(product)
    slack = slack or 8 * eps * np.linalg.norm(u) * np.linalg.norm(v) * frobenius / abs(want[1])
    assert abs(float(result.sigma) - want[1]) <= slack * abs(want[1])
    for name in "uv":
        got, exact = getattr(result, name), want["_suv".index(name)]
        length = max(1.0, float(np.abs(exact).max()))  # without iterations of any length
        what = dict(slack=(slack + eps) * length, what=name, dtype=stat_dtype(w.dtype))
        assert_close(got, exact, **what)
    slack = (slack + 4 * eps) * np.abs(want[0])
    assert_close(result.weight, want[0], slack=slack, what="weight", dtype=w.dtype)

    bound = options.get("bound")
    of_result = result._replace(sigma=float(want[1]), u=want[2], v=want[3])
    given = [a.astype(stat_dtype(w.dtype)) for a in of_result[2:4]]
    dweight = nc.spectral_norm_backward(dw, of_result._replace(u=given[0], v=given[1]), bound=bound)
    raw = reference.wide(result.weight) * (want[1] if bound is None else max(1, want[1] / bound))
    args = dict(axis=options.get("axis", 0), bound=bound)
    want = reference.spectral_norm_backward(dw, raw, want[1], *given, **args)
    peak = np.abs(reference.wide(dw)).max()
    terms = np.linalg.norm(reference.wide(dw).astype(np.float64)) * np.abs(given[0]).max()
    size = float((bound or 1) / of_result.sigma)
    slack = abs(size) * eps * (4 * peak + 16 * terms * max(1, np.abs(given[1]).max()))
    assert_close(dweight, want, slack=slack, what="dweight", dtype=w.dtype)


@each_dtype
@each_layout
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_spectral_norm(rng, dtype, layout, axis, isa):
    w, dw, u, _ = make_weight(rng, dtype, layout=layout, axis=axis)
    check(w, dw, u, axis=axis, n_power_iterations=2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("layout", ["contiguous", "fortran", "sliced"])
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("dtype", [np.float32, bfloat16], ids=str)
def test_shapes(rng, shape, axis, layout, n, dtype):
    w, dw, u, v = make_weight(rng, dtype, shape, layout, axis)
    if n == 0:  # near the answer, or sigma could be anything
        w, dw = (arrange(a + a.dtype.type(3), layout) for a in (w, dw))
        u, v = abs(u), abs(v)
    check(w, dw, u, v, axis=axis, n_power_iterations=n)


@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    axis=st.integers(0, 3),
    layout=st.sampled_from(["contiguous", "fortran", "reversed"]),
    n=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(shape, axis, layout, n, seed):
    rng = np.random.default_rng(seed)
    axis %= len(shape)
    w, dw, u, _ = make_weight(rng, np.float64, shape, layout, axis)
    check(w, dw, u, axis=axis, n_power_iterations=n)


@pytest.mark.parametrize("shape", [(700, 611), (70, 9001), (9001, 70), (2, 100003), (600, 9, 7, 3)])
@pytest.mark.parametrize("layout", ["contiguous", "fortran", "sliced"])
def test_any_number_of_threads_gives_the_same_bits(rng, threads, shape, layout):
    w, dw, u, _ = make_weight(rng, np.float32, shape, layout)

    def everything():
        result = nc.spectral_norm(w, u, n_power_iterations=3)
        found = nc.power_method(w.reshape(shape[0], -1), n_iterations=4)
        dweight = nc.spectral_norm_backward(dw, result)
        return [bits(np.asarray(a)) for a in (*result, *found, dweight)]

    threads(1)
    want = everything()
    for count in (2, 3, 7):
        threads(count)
        assert everything() == want, count


@pytest.mark.parametrize("exponent", [-100, -60, 60, 100])
@pytest.mark.parametrize("shape", [(64, 128), (300, 40), (40, 5, 3, 3)])
@pytest.mark.parametrize("axis", [0, 1])
def test_magnitudes(rng, exponent, shape, axis):
    w, dw, u, _ = make_weight(rng, shape=shape, axis=axis)
    factor = np.float32(2.0**exponent)
    want = nc.spectral_norm(w, u, n_power_iterations=2, axis=axis)
    got = nc.spectral_norm(w * factor, u, n_power_iterations=2, axis=axis)
    # Powers of two change no rounding but that of products which become subnormal.
    assert got.sigma == pytest.approx(want.sigma * 2.0**exponent, rel=1e-6)
    np.testing.assert_allclose(got.u, want.u, atol=1e-6)
    np.testing.assert_allclose(got.weight, want.weight, rtol=2e-6)
    small, large = (nc.spectral_norm_backward(dw, r) for r in (want, got))
    np.testing.assert_allclose(large * factor, small, rtol=1e-5, atol=1e-6)
    a, b = (nc.power_method(m, n_iterations=9).sigma for m in (w.reshape(shape[0], -1),) * 2)
    scaled = nc.power_method(w.reshape(shape[0], -1) * factor, n_iterations=9)
    assert a == b and scaled.sigma == pytest.approx(a * 2.0**exponent, rel=1e-6)


def test_subnormal_weights_do_not_become_infinite(rng):
    w, _, u, _ = make_weight(rng, shape=(8, 12))
    tiny = np.full_like(w, np.float32(2.0**-140))
    result = nc.spectral_norm(tiny, u)
    # sigma is a sum of 12 products of 2**-140 / sqrt(12), each rounded to a multiple of 2**-149.
    np.testing.assert_allclose(result.weight, 1 / np.sqrt(96), rtol=4e-3)


@each_dtype
@each_layout
def test_zeros_give_zeros(rng, dtype, layout):
    w, dw, u, v = make_weight(rng, dtype, layout=layout)
    w[...] = 0
    for n in (0, 1, 5):
        result = nc.spectral_norm(w, u, v, n_power_iterations=n)
        assert result.sigma == 0 and not result.weight.any()
        assert bits(result.u) == bits(u)  # so that the next weight, which is not zero, has a start
        assert bits(result.v) == bits(v)
        assert not nc.spectral_norm_backward(dw, result).any()
    assert np.linalg.norm(nc.spectral_norm(w, u).v) == pytest.approx(1, rel=1e-6)


def test_an_orthogonal_start_is_replaced(rng):
    w = np.zeros((6, 5))
    w[:3] = with_values(rng, (3, 5), [3.0, 2.0, 1.0])
    u = np.array([0.0, 0, 0, 1, 2, 3])
    for matrix, scale in ((w, 1.0), (w * 1e-30, 1e-30), (w * 1e30, 1e30)):
        result = nc.spectral_norm(matrix, u, n_power_iterations=200)
        assert result.sigma == pytest.approx(scale * np.linalg.norm(w, 2), rel=1e-9)
        found = nc.power_method(matrix, u=u)
        assert found.converged
        assert found.sigma == pytest.approx(scale * np.linalg.norm(w, 2), rel=1e-9)


def test_eps_says_what_is_orthogonal(rng):
    w, u = np.diag([1.0, 1e-6]), np.array([0.0, 1.0])
    assert nc.spectral_norm(w, u).sigma == pytest.approx(1e-6)
    assert nc.spectral_norm(w, u, eps=1e-5, n_power_iterations=3).sigma == pytest.approx(1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite(rng, value):
    w, _, u, _ = make_weight(rng, shape=(20, 30))
    w[3, 4] = value
    result = nc.spectral_norm(w, u, n_power_iterations=3)
    assert np.isnan(result.weight).all()
    assert not nc.power_method(w).converged


@each_layout
@each_dtype
def test_out_and_in_place(rng, layout, dtype):
    w, dw, u, _ = make_weight(rng, dtype, layout=layout)
    want = nc.spectral_norm(w, u)
    want_dw = nc.spectral_norm_backward(dw, want)
    before = bits(w), bits(u)
    guarded = GuardedOut(w)
    assert nc.spectral_norm(w, u, out=guarded.view).weight is guarded.view
    assert bits(guarded.view) == bits(want.weight) and guarded.guards_intact()
    assert (bits(w), bits(u)) == before
    assert want.weight.strides == want_dw.strides == nc.normalize(w).strides
    assert nc.spectral_norm(w, u, out=w).weight is w
    assert bits(w) == bits(want.weight)
    guarded = GuardedOut(dw)
    assert nc.spectral_norm_backward(dw, want, out=guarded.view) is guarded.view
    assert bits(guarded.view) == bits(want_dw) and guarded.guards_intact()
    nc.spectral_norm_backward(dw, want, out=dw)
    assert bits(dw) == bits(want_dw)


def test_a_broadcast_gradient(rng):
    w, _, u, _ = make_weight(rng)
    result = nc.spectral_norm(w, u)
    ones = np.broadcast_to(np.float32(1), w.shape)
    want = nc.spectral_norm_backward(np.ones_like(w), result)
    np.testing.assert_allclose(nc.spectral_norm_backward(ones, result), want, rtol=1e-5, atol=1e-7)


def test_vectors_of_other_dtypes_and_strides(rng):
    w, _, u, v = make_weight(rng)
    u, v = (a.astype(np.float16) for a in (u, v))
    for n in (0, 2):
        want = nc.spectral_norm(w, u.astype(np.float32), v.astype(np.float32), n_power_iterations=n)
        others = (
            (u, v),
            (u.astype(bfloat16).astype(float), v),
            (np.repeat(u, 2)[::2], v[::-1][::-1]),
        )
        for a, b in others[:: 2 if n == 0 else 1]:
            got = nc.spectral_norm(w, a, b, n_power_iterations=n)
            if a is not others[1][0]:
                assert [bits(np.asarray(x)) for x in got] == [bits(np.asarray(x)) for x in want]
    listed = nc.spectral_norm([[3.0, 0.0], [0.0, 1.0]], [1.0, 0.0])
    assert listed.sigma == 3 and listed.weight.tolist() == [[1, 0], [0, 1 / 3]]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("bound", [None, 0.5, 1e6])
def test_gradients_against_torch(rng, axis, bound):
    torch = pytest.importorskip("torch")
    w, dw, u, _ = make_weight(rng, np.float64, axis=axis)
    result = nc.spectral_norm(w, u, n_power_iterations=2, axis=axis, bound=bound)
    tw, tu, tv = (torch.tensor(a) for a in (w, result.u, result.v))
    tw.requires_grad_()
    sigma = tu @ torch.movedim(tw, axis, 0).flatten(1) @ tv
    divisor = sigma if bound is None else torch.clamp(sigma / bound, min=1)
    (tw / divisor).backward(torch.from_numpy(dw))
    np.testing.assert_allclose(result.weight, (tw / divisor).detach(), rtol=1e-13)
    ours = nc.spectral_norm_backward(dw, result, bound=bound)
    np.testing.assert_allclose(ours, tw.grad, rtol=1e-12, atol=1e-14)


@each_dtype
@pytest.mark.parametrize("bound", [0.25, 1e4])
def test_bound(rng, dtype, bound):
    w, dw, u, _ = make_weight(rng, dtype)
    check(w, dw, u, bound=bound, n_power_iterations=2)
    if bound > 1:
        assert bits(nc.spectral_norm(w, u, bound=bound).weight) == bits(w)


def test_arrays_of_torch(rng):
    torch = pytest.importorskip("torch")
    w, dw, u, _ = make_weight(rng)
    want = nc.spectral_norm(w, u)
    got = nc.spectral_norm(torch.from_numpy(w), torch.from_numpy(u))
    assert all(isinstance(a, torch.Tensor) for a in (got.weight, got.u, got.v))
    assert bits(got.weight.numpy()) == bits(want.weight) and got.sigma == want.sigma
    dweight = nc.spectral_norm_backward(torch.from_numpy(dw), got)
    assert bits(dweight.numpy()) == bits(nc.spectral_norm_backward(dw, want))
    layer = nc.SpectralNorm(w.shape, rng=0)
    twin = copy.deepcopy(layer)
    assert bits(layer(torch.from_numpy(w)).numpy()) == bits(twin(w))


def test_numbers_are_of_python(rng):
    w, _, u, _ = make_weight(rng, shape=(5, 7))
    result, found = nc.spectral_norm(w, u), nc.power_method(w)
    assert [type(n) for n in (result.sigma, found.sigma)] == [float, float]
    assert [type(n) for n in (found.n_iterations, found.converged)] == [int, bool]
    # Sigma may come back as an array of no axes, as calls on a device return it.
    array = result._replace(sigma=np.float64(result.sigma).reshape(()))
    assert bits(nc.spectral_norm_backward(w, array)) == bits(nc.spectral_norm_backward(w, result))
    with pytest.raises(ValueError, match=r"result.sigma has shape \(2,\), expected \(\)"):
        nc.spectral_norm_backward(w, result._replace(sigma=np.ones(2)))


def test_empty():
    for shape in [(0, 3), (3, 0), (2, 0, 4)]:
        w, u = np.empty(shape, np.float32), np.ones(shape[0], np.float32)
        result = nc.spectral_norm(w, u)
        assert result.weight.shape == shape and result.sigma == 0
        assert nc.spectral_norm_backward(w, result).shape == shape
        if len(shape) == 2:
            found = nc.power_method(w)
            assert found.sigma == 0 and found.u.shape + found.v.shape == shape


def test_errors():
    w, u, v = np.ones((4, 3), np.float32), np.ones(4, np.float32), np.ones(3, np.float32)
    out = np.full((4, 3), 7, np.float32)
    for arguments, says in [
        (dict(u=v), r"u has shape \(3,\), expected \(4,\)"),
        (dict(v=u), r"v has shape \(4,\), expected \(3,\)"),
        (dict(axis=1), r"u has shape \(4,\), expected \(3,\)"),
        (dict(axis=2), "axis is 2, expected -2 to 1"),
        (dict(n_power_iterations=-1), "n_power_iterations is -1, expected at least 0"),
        (dict(n_power_iterations=0), "v is None, expected an array"),
        (dict(eps=-1.0), "eps is -1"),
        (dict(bound=0.0), "bound is 0"),
        (dict(bound=np.nan), "bound is nan"),
        (dict(weight=np.float32(2)), r"weight has shape \(\)"),
        (dict(out=np.ones((3, 4), np.float32)), r"out has shape \(3, 4\).*weight's"),
        (dict(out=w[::-1]), "out overlaps weight"),
    ]:
        with pytest.raises(ValueError, match=says):
            nc.spectral_norm(**(dict(weight=w, u=u, out=out) | arguments))
        assert (out == 7).all()
    for arguments, says in [
        (dict(u=None), "u is None"),
        (dict(weight=w.astype(int)), "weight has dtype int64"),
        (dict(n_power_iterations=1.5), "n_power_iterations is 1.5"),
        (dict(eps="small"), "eps is 'small'"),
    ]:
        with pytest.raises(TypeError, match=says):
            nc.spectral_norm(**(dict(weight=w, u=u) | arguments))
    result = nc.spectral_norm(w, u)
    with pytest.raises(ValueError, match=r"dw has shape \(3, 4\)"):
        nc.spectral_norm_backward(w.T, result)
    with pytest.raises(TypeError, match="dw has dtype float64"):
        nc.spectral_norm_backward(w.astype(float), result)
    with pytest.raises(ValueError, match=r"result.u has shape \(3,\)"):
        nc.spectral_norm_backward(w, result._replace(u=v))
    for arguments, says in [
        (dict(a=w[0]), r"a has shape \(3,\), expected two axes"),
        (dict(u=v), r"u has shape \(3,\)"),
        (dict(n_iterations=0), "n_iterations is 0, expected at least 1"),
        (dict(max_iterations=0), "max_iterations is 0"),
        (dict(tol=-1.0), "tol is -1"),
        (dict(tol=np.nan), "tol is nan"),
    ]:
        with pytest.raises(ValueError, match=says):
            nc.power_method(**(dict(a=w) | arguments))
    with pytest.raises(TypeError, match="a has dtype int64"):
        nc.power_method(w.astype(int))


# ---- power_method


def with_values(rng, shape, values):
    """A matrix with these singular values."""
    rank = len(values)
    left, right = (np.linalg.qr(rng.normal(size=(n, rank)))[0] for n in shape)
    return left * np.asarray(values) @ right.T


def residuals(a, found):
    """Of both equations, over sigma, in float64."""
    a, u, v = (np.asarray(x).astype(np.float64) for x in (a, found.u, found.v))
    return [
        np.linalg.norm(r) / found.sigma
        for r in (a.T @ u - found.sigma * v, a @ v - found.sigma * u)
    ]


@pytest.mark.parametrize("shape", [(50, 30), (30, 50), (400, 20), (20, 9000), (1, 7), (300, 300)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_power_method_finds_the_largest(rng, shape, dtype, order, isa):
    values = np.append(5.0, np.linspace(4, 0.1, min(shape) - 1))
    a = np.asarray(with_values(rng, shape, values), dtype, order=order)
    found = nc.power_method(a)
    assert found.converged
    # An error of the vectors enters sigma squared; what is left is rounding.
    assert found.sigma == pytest.approx(np.linalg.norm(a.astype(np.float64), 2), rel=1e-6)
    for vector in (found.u, found.v):
        assert vector.dtype == dtype
        assert np.linalg.norm(vector) == pytest.approx(1, rel=1e-6)
    # Rounding of vectors and sums in float32.
    assert max(residuals(a, found)) < (2e-6 if dtype == np.float32 else 1.001e-6)


@pytest.mark.parametrize("shape", [(60, 40), (300, 500)])
def test_converged_is_true(rng, shape):
    a = with_values(rng, shape, np.linspace(1, 0.5, 20))
    for order in "CF":
        a = np.asarray(a, order=order)
        for tol in (1e-2, 1e-5, 1e-9):
            found = nc.power_method(a, tol=tol)
            assert found.converged and residuals(a, found)[0] <= tol * (1 + 1e-6)
            # It stopped at the first iteration that was good enough.
            earlier = nc.power_method(a, tol=tol, n_iterations=found.n_iterations - 1)
            assert not earlier.converged and residuals(a, earlier)[0] > tol
            assert earlier.n_iterations == found.n_iterations - 1
            again = nc.power_method(a, tol=tol, n_iterations=found.n_iterations)
            assert [bits(np.asarray(x)) for x in again] == [bits(np.asarray(x)) for x in found]
        stopped = nc.power_method(a, tol=1e-9, max_iterations=3)
        assert stopped.n_iterations == 3 and not stopped.converged
        assert nc.power_method(a, tol=0.0, max_iterations=50).n_iterations <= 50


@pytest.mark.parametrize("shape", [(8, 8), (8, 300), (300, 8)])
def test_equal_singular_values(rng, shape):
    a = with_values(rng, shape, [3.0, 3.0, 3.0, 1.0])
    found = nc.power_method(a)
    assert found.converged and found.sigma == pytest.approx(3, rel=1e-9)
    assert max(residuals(a, found)) < 1e-6
    found = nc.power_method(np.eye(*shape))
    assert found.converged and found.sigma == pytest.approx(1, rel=1e-12)


def test_nearly_equal_values_are_not_said_to_have_converged(rng):
    a = with_values(rng, (30, 30), [1.0, 1 - 1e-7, 0.5])
    found = nc.power_method(a, tol=1e-12, max_iterations=100)
    assert not found.converged and found.n_iterations == 100
    assert found.sigma == pytest.approx(1, rel=1e-6)  # between the two


@each_dtype
def test_power_method_of_zeros(dtype):
    for n in (None, 3):
        found = nc.power_method(np.zeros((4, 6), dtype), n_iterations=n)
        assert found.sigma == 0 and found.converged and found.n_iterations == (n or 0)
        assert np.linalg.norm(found.u) == pytest.approx(1, rel=1e-6)
        assert np.linalg.norm(found.v) == pytest.approx(1, rel=1e-6)


def test_power_method_of_low_rank(rng):
    for rank in (1, 2):
        a = with_values(rng, (40, 25), [2.0, 0.5][:rank])
        found = nc.power_method(a)
        assert found.converged and found.sigma == pytest.approx(2, rel=1e-9)
    single = np.zeros((50, 70), np.float32)
    single[13, 17] = -4
    found = nc.power_method(single)
    assert found.sigma == 4 and found.n_iterations == 1
    assert abs(found.u[13]) == abs(found.v[17]) == 1 and found.u[13] * found.v[17] == -1


@pytest.mark.parametrize("dtype", [np.float16, bfloat16], ids=str)
def test_half_matrices_have_float32_vectors(rng, dtype):
    a = with_values(rng, (60, 90), [4.0, 2.0, 1.0]).astype(dtype)
    found = nc.power_method(a)
    assert found.u.dtype == found.v.dtype == np.float32 and found.converged
    exact = np.linalg.norm(a.astype(np.float64), 2)
    assert found.sigma == pytest.approx(exact, rel=1e-6)  # of the rounded matrix, to float32


def test_a_start_of_ones_own(rng):
    a = with_values(rng, (30, 20), [3.0, 2.0, 1.0])
    u = rng.normal(size=30)
    want = reference.spectral_norm(a, u, n_power_iterations=3)
    found = nc.power_method(a, u=u, n_iterations=3)
    assert found.sigma == pytest.approx(float(want[1]), rel=1e-12)
    np.testing.assert_allclose(found.u, want[2].astype(float), atol=1e-12)
    np.testing.assert_allclose(found.v, want[3].astype(float), atol=1e-12)
    assert bits(nc.power_method(a).u) == bits(nc.power_method(a.copy()).u)  # the start is fixed
    assert nc.power_method(a.tolist()).sigma == nc.power_method(a).sigma


# ---- the layer


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def torch_weights(torch, rng, kind, shape, axis, n, steps):
    """torch's module, and for each step the weight it is given, its result and its gradient."""
    # Any module with a weight of the shape.
    module = torch.nn.Module()
    module.register_parameter("weight", torch.nn.Parameter(torch.tensor(rng.normal(size=shape))))
    module.forward = lambda: None
    utils = torch.nn.utils
    wrap = utils.spectral_norm if kind == "legacy" else utils.parametrizations.spectral_norm
    wrap(module, n_power_iterations=n, dim=axis)
    return module


def torch_step(torch, module, kind, weight, dw):
    """Set the raw weight, and return the normalized one and the gradient of the raw one."""
    raw = module.weight_orig if kind == "legacy" else module.parametrizations.weight.original
    with torch.no_grad():
        raw.copy_(torch.from_numpy(weight))
    raw.grad = None
    if kind == "legacy":
        (hook,) = module._forward_pre_hooks.values()
        hook(module, None)
    normalized = module.weight
    normalized.backward(torch.from_numpy(dw))
    return normalized.detach().numpy().copy(), raw.grad.numpy().copy()


@pytest.mark.parametrize("kind", ["legacy", "parametrized"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*is deprecated:FutureWarning")
def test_the_layer_follows_torch(torch, rng, kind, axis, n):
    shape = (7, 5, 3)
    module = torch_weights(torch, rng, kind, shape, axis, n, 0)
    layer = nc.SpectralNorm(shape, n, axis, dtype=np.float64)
    layer.load_state_dict(module.state_dict())
    assert layer.first == ("v" if kind == "legacy" else "u")
    weight = rng.normal(size=shape)
    # As in training: the weight moves; and every third step is one of evaluation.
    for step in range(9):
        weight = weight + 0.1 * rng.normal(size=shape)
        dw = rng.normal(size=shape)
        module.train(step % 3 != 2)
        layer.train(step % 3 != 2)
        want, want_grad = torch_step(torch, module, kind, weight, dw)
        np.testing.assert_allclose(layer(weight), want, rtol=1e-10)
        np.testing.assert_allclose(layer.backward(dw), want_grad, rtol=1e-9, atol=1e-12)
        theirs = {k: v.numpy() for k, v in module.state_dict().items() if v.ndim == 1}
        for key, value in layer.state_dict().items():
            (name,) = (k for k in theirs if k.endswith(key))
            np.testing.assert_allclose(value, theirs[name], atol=1e-12)
    # And back: what we have learned goes on in torch.
    ours = {k: torch.tensor(v) for k, v in layer.state_dict().items()}
    prefix = "" if kind == "legacy" else "parametrizations.weight.0."
    module.load_state_dict(module.state_dict() | {prefix + k: v for k, v in ours.items()})


def test_the_first_call_warms_up(rng):
    w = rng.normal(size=(9, 14))
    for training in (True, False):
        layer = nc.SpectralNorm((9, 14), dtype=np.float64, rng=3).train(training)
        u = layer.buffers["u"].copy()
        normalized = layer(w)
        want = nc.spectral_norm(w, u, n_power_iterations=15 + training)
        assert bits(normalized) == bits(want.weight) and layer.sigma == want.sigma
        assert bits(layer.buffers["u"]) == bits(want.u)
        assert bits(layer.buffers["v"]) == bits(want.v)
        # Then one iteration a call in training, none in evaluation.
        layer(w)
        again = nc.spectral_norm(w, want.u, want.v, n_power_iterations=int(training))
        assert bits(layer.buffers["u"]) == bits(again.u)
    for _ in range(300):
        layer.train()(w)
    assert layer.sigma == pytest.approx(np.linalg.norm(w, 2), rel=1e-9)


def test_state_and_copies_of_the_layer(rng):
    w, dw = rng.normal(size=(2, 6, 8)).astype(np.float32)
    layer = nc.SpectralNorm((6, 8), rng=0)
    assert list(layer.state_dict()) == ["weight_u", "weight_v"]
    layer(w)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with pytest.raises(RuntimeError, match="before a forward call"):
            twin.backward(dw)
        assert bits(twin(w)) == bits(copy.deepcopy(layer)(w))
    state = copy.deepcopy(layer.state_dict())
    for names in (("weight_u", "weight_v"), ("u", "v"), ("_u", "_v")):
        other = nc.SpectralNorm((6, 8))
        other.load_state_dict(dict(zip(names, state.values(), strict=True)))
        assert other.first == ("u" if names[0] == "_u" else "v")
        assert bits(other.eval()(w)) == bits(copy.deepcopy(layer).eval()(w))
    assert list(other.state_dict()) == ["_u", "_v"]
    for wrong, says in [
        ({"_u": state["weight_u"]}, "missing _v"),
        ({**state, "g": state["weight_u"]}, "unexpected g"),
        ({"weight_u": np.ones(6), "weight_v": np.ones(6)}, r"weight_v has shape \(6,\)"),
    ]:
        before = other.first, [bits(a) for a in other.buffers.values()]
        with pytest.raises(ValueError, match=says):
            other.load_state_dict(wrong)
        assert (other.first, [bits(a) for a in other.buffers.values()]) == before


def test_the_layer_with_a_bound(rng):
    # Each iteration takes (4/5)**4 of sigma's error: values drawn at random may be as near as 1.
    w = with_values(rng, (6, 8), [5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    layer = nc.SpectralNorm((6, 8), bound=2.0, dtype=np.float64, rng=0)
    for _ in range(60):
        normalized = layer(w)
    assert np.linalg.norm(normalized, 2) == pytest.approx(2, rel=1e-9)
    assert bits(layer(w / 100)) == bits(w / 100)
    dw = rng.normal(size=w.shape)
    assert bits(layer.backward(dw)) == bits(dw)


def test_what_the_layer_refuses_and_shows(rng):
    for arguments, says in [
        (dict(n_power_iterations=0), "n_power_iterations is 0"),
        (dict(axis=2), "axis is 2"),
        (dict(bound=-1.0), "bound is -1"),
        (dict(first="w"), "first is 'w'"),
        (dict(shape=(3, 0)), "shape is 0"),
    ]:
        with pytest.raises(ValueError, match=says):
            nc.SpectralNorm(**(dict(shape=(3, 4)) | arguments))
    layer = nc.SpectralNorm((3, 4))
    before = [bits(a) for a in layer.buffers.values()]
    with pytest.raises(ValueError, match=r"weight has shape \(4, 3\), expected \(3, 4\)"):
        layer(np.ones((4, 3), np.float32))
    with pytest.raises(TypeError):
        layer(np.ones((3, 4), int))
    assert [bits(a) for a in layer.buffers.values()] == before
    with pytest.raises(RuntimeError, match="before a forward call"):
        layer.backward(np.ones((3, 4), np.float32))
    assert layer.sigma is None and layer.parameters == {}
    assert repr(layer) == "SpectralNorm((3, 4), n_power_iterations=1, axis=0)"
    assert repr(nc.SpectralNorm((3, 4), bound=2)).endswith("axis=0, bound=2.0)")
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        kind = np.float64 if dtype == "float64" else np.float32
        assert nc.SpectralNorm((3, 4), dtype=dtype).buffers["u"].dtype == kind
