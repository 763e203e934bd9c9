"""Weight normalization and division by a norm, against the oracle and torch.

Hunts for a wrong axis, for squares that overflow or vanish, for NaN where a slice is zero, and
for a g of another shape than the one that was tried.
"""

import numpy as np
import pytest
import reference
from support import DTYPES, LAYOUTS, GuardedOut, arrange, assert_close, bfloat16, bits, stat_dtype

import normcore as nc

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_order = pytest.mark.parametrize("ord", [2, 1, np.inf], ids=str)
AXES = [0, 1, 2, -1, None]


def make_weight(rng, dtype=np.float32, shape=(6, 5, 3, 7), layout="contiguous", axis=0):
    v, dw = (arrange(rng.normal(size=shape).astype(dtype), layout) for _ in range(2))
    g = rng.normal(size=1 if axis is None else shape[axis]).astype(dtype)
    return v, dw, g


def check_weight_norm(v, dw, g, **options):
    eps = float(np.finfo(stat_dtype(v.dtype)).eps)
    scale, wide_g, _ = reference._weight_scale(
        reference.wide(v), g, options.get("axis", 0), options.get("eps", 0.0)
    )
    largest = np.abs(reference.wide(dw)).max()
    w = nc.weight_norm(v, g, **options)
    want = reference.weight_norm(v, g, **options)
    # The norm, its product with g, and that with v.
    assert_close(w, want, slack=4 * eps * np.abs(want), what="w", dtype=v.dtype)
    dv, dg = nc.weight_norm_backward(dw, v, g, **options)
    want = reference.weight_norm_backward(dw, v, g, **options)
    # A few roundings of the terms; sums of n of them, whose error grows as sqrt(n).
    slack = 32 * eps * np.abs(wide_g * scale).max() * largest
    assert_close(dv, want.dv, slack=slack, what="dv", dtype=v.dtype)
    terms = np.abs(scale * reference.wide(v)).max() * largest
    slack = eps * (8 * terms * np.sqrt(v.size / np.size(g)) + 20 * np.abs(want.dg).max())
    assert_close(dg, want.dg, slack=slack, what="dg", dtype=g.dtype)


@each_dtype
@each_layout
@pytest.mark.parametrize("axis", AXES)
def test_weight_norm(rng, dtype, layout, axis, isa):
    check_weight_norm(*make_weight(rng, dtype, layout=layout, axis=axis), axis=axis)


@pytest.mark.parametrize("shape", [(5,), (1, 9), (9, 1), (17, 33), (3, 5000), (300, 2, 3, 3)])
@pytest.mark.parametrize("axis", [0, -1, None])
@pytest.mark.parametrize("dtype", [bfloat16, np.float32], ids=str)
def test_weight_norm_of_other_shapes(rng, shape, axis, dtype):
    check_weight_norm(*make_weight(rng, dtype, shape, axis=axis), axis=axis)


@pytest.mark.parametrize("eps", [1e-12, 0.5])
def test_weight_norm_with_eps(rng, eps):
    check_weight_norm(*make_weight(rng), eps=eps)


def test_shapes_of_g(rng):
    v, dw, g = make_weight(rng, axis=1)
    want, (_, want_dg) = nc.weight_norm(v, g, axis=1), nc.weight_norm_backward(dw, v, g, axis=1)
    kept = g.reshape(1, 5, 1, 1)
    assert bits(nc.weight_norm(v, kept, axis=1)) == bits(want)
    dg = nc.weight_norm_backward(dw, v, kept, axis=1).dg
    assert dg.shape == kept.shape and bits(dg) == bits(want_dg)
    for one in (
        np.float32(1.5),
        np.full(1, 1.5, np.float32),
        np.full((1, 1, 1, 1), 1.5, np.float32),
    ):
        check_weight_norm(v, dw, np.asarray(one), axis=1)
        assert nc.weight_norm_backward(dw, v, one, axis=1).dg.shape == np.shape(one)
    strided = np.repeat(g, 3)[::3]
    assert bits(nc.weight_norm(v, strided, axis=1)) == bits(want)


@pytest.mark.parametrize("exponent", [-100, -60, -20, 20, 60, 100])
@pytest.mark.parametrize("axis", AXES)
def test_magnitudes(rng, exponent, axis):
    v, dw, g = make_weight(rng, axis=axis)
    want = nc.weight_norm(v, g, axis=axis)
    small = nc.weight_norm_backward(dw, v, g, axis=axis)
    v = v * np.float32(2.0**exponent)
    np.testing.assert_array_max_ulp(nc.weight_norm(v, g, axis=axis), want, 6)
    dv, dg = nc.weight_norm_backward(dw, v, g, axis=axis)
    np.testing.assert_allclose(dv * np.float32(2.0**exponent), small.dv, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dg, small.dg, rtol=1e-5, atol=1e-5)


@each_dtype
@pytest.mark.parametrize("axis", AXES)
def test_zeros_give_zeros(rng, dtype, axis):
    v, dw, g = make_weight(rng, dtype, axis=axis)
    index = tuple(slice(None) if i != (axis or 0) % 4 else slice(1, 3) for i in range(4))
    v[... if axis is None else index] = 0
    w = nc.weight_norm(v, g, axis=axis)
    dv, dg = nc.weight_norm_backward(dw, v, g, axis=axis)
    for result in (w, dv, dg):
        assert np.isfinite(result.astype(np.float64)).all()
    assert not w[... if axis is None else index].any()
    assert not dv[... if axis is None else index].any()
    assert not np.atleast_1d(dg)[... if axis is None else slice(1, 3)].any()


@each_layout
@each_dtype
def test_out_and_in_place(rng, layout, dtype):
    v, dw, g = make_weight(rng, dtype, layout=layout)
    want, want_dv = nc.weight_norm(v, g), nc.weight_norm_backward(dw, v, g)
    guarded = GuardedOut(v)
    assert nc.weight_norm(v, g, out=guarded.view) is guarded.view
    assert bits(guarded.view) == bits(want) and guarded.guards_intact()
    assert bits(nc.weight_norm(v.copy("K"), g, out=v)) == bits(want)  # v is out, not the input
    v2 = arrange(rng.normal(size=v.shape).astype(dtype), layout)
    want2 = nc.weight_norm(v2, g)
    assert bits(nc.weight_norm(v2, g, out=v2)) == bits(want2)
    assert want.strides == want_dv.dv.strides


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("module", [nc, reference], ids=["normcore", "oracle"])
def test_weight_norm_against_torch(rng, axis, module):
    torch = pytest.importorskip("torch")
    v, dw, g = make_weight(rng, np.float64, axis=axis)
    tv, tg = (torch.tensor(a, requires_grad=True) for a in (v, g))
    rest = [i for i in range(4) if axis is None or i != axis % 4]
    kept = [-1 if axis is not None and i == axis % 4 else 1 for i in range(4)]
    w = tg.reshape(kept) * tv / torch.linalg.vector_norm(tv, dim=rest, keepdim=True)
    w.backward(torch.from_numpy(dw))
    ours = np.asarray(module.weight_norm(v, g, axis=axis), np.float64)
    np.testing.assert_allclose(ours, w.detach(), rtol=1e-12, atol=1e-13)
    dv, dg = module.weight_norm_backward(dw, v, g, axis=axis)
    np.testing.assert_allclose(np.asarray(dv, np.float64), tv.grad, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        np.asarray(dg, np.float64).reshape(-1), tg.grad, rtol=1e-10, atol=1e-12
    )


def test_errors():
    v, g = np.ones((4, 3), np.float32), np.ones(4, np.float32)
    for arguments, says in [
        (dict(g=np.ones(3, np.float32)), r"g has shape \(3,\), expected \(\) or \(4,\)"),
        (dict(g=np.ones((1, 4), np.float32)), r"g has shape \(1, 4\)"),
        (dict(g=np.ones((4, 3), np.float32)), r"g has shape \(4, 3\)"),
        (dict(axis=2), "axis is 2, expected -2 to 1"),
        (dict(axis=1), r"g has shape \(4,\).*v.shape\[axis=1\]"),
        (dict(eps=-1.0), "eps is -1"),
        (dict(out=np.ones((4, 4), np.float32)), r"out has shape \(4, 4\).*v's"),
        (dict(out=v[::-1]), "out overlaps v"),
    ]:
        with pytest.raises(ValueError, match=says):
            nc.weight_norm(v, **({"g": g} | arguments))
    with pytest.raises(TypeError, match="g is None"):
        nc.weight_norm(v, None)
    with pytest.raises(TypeError, match="v has dtype int64"):
        nc.weight_norm(v.astype(np.int64), g)
    with pytest.raises(ValueError, match=r"dw has shape \(3, 4\).*v's"):
        nc.weight_norm_backward(v.T.copy(), v, g)
    with pytest.raises(ValueError, match="eps is -1"):
        nc.normalize(v, eps=-1.0)
    with pytest.raises(ValueError, match="axis is 5"):
        nc.normalize(v, axis=5)
    for order in (3, 0, -np.inf, np.nan):
        with pytest.raises(ValueError, match=r"ord is .*expected 1, 2 or inf"):
            nc.normalize(v, ord=order)


def test_the_largest_share_the_gradient_of_the_maximum():
    x = np.array([[3.0, -3.0, 1.0, 3.0]])
    dx = nc.normalize_backward(np.array([[1.0, 0.0, 0.0, 0.0]]), x, ord=np.inf)
    np.testing.assert_allclose(dx, np.array([[1 - 1 / 3, 1 / 3, 0, -1 / 3]]) / 3, rtol=1e-15)


def test_empty(rng):
    for shape in [(0, 3), (3, 0)]:
        v = np.empty(shape, np.float32)
        g = np.ones(shape[0], np.float32)
        assert nc.weight_norm(v, g).shape == shape
        dv, dg = nc.weight_norm_backward(v, v, g)
        assert dv.shape == shape and not dg.any()
        assert nc.normalize(v).shape == shape


# ---- normalize


def check_normalize(x, dy, **options):
    eps = float(np.finfo(stat_dtype(x.dtype)).eps)
    y, want = nc.normalize(x, **options), reference.normalize(x, **options)
    assert_close(y, want, slack=4 * eps * np.abs(want), what="y", dtype=x.dtype)
    dx, want = (
        nc.normalize_backward(dy, x, **options),
        reference.normalize_backward(dy, x, **options),
    )
    axes = reference.sorted_axes(x.ndim, options.get("axis", -1))
    norm = reference._norm(reference.wide(x), options.get("ord", 2), axes)
    divisor = reference._divisor(norm, options.get("eps", 1e-12))
    slack = 32 * np.abs(reference.wide(dy)).max()  # as the gradient of a weight
    if options.get("ord") == np.inf:
        # The largest take the gradient of the norm, a sum over all: its rounding is theirs alone.
        terms = np.abs(reference.wide(dy) * reference.normalize(reference.wide(x), **options))
        of_sum = 8 * np.sqrt((terms**2).sum(axes, keepdims=True)) + 20 * np.abs(terms).max()
        slack = slack + np.where(np.abs(reference.wide(x)) == norm, of_sum, 0)
    slack = slack * eps / divisor
    assert_close(dx, want, slack=slack, what="dx", dtype=x.dtype)


@each_dtype
@each_layout
@pytest.mark.parametrize("axis", [-1, 1, 0, (1, 2), (0, 1, 2, 3)], ids=str)
@each_order
def test_normalize(rng, dtype, layout, axis, ord, isa):
    x, dy, _ = make_weight(rng, dtype, layout=layout)
    check_normalize(x, dy, axis=axis, ord=ord)


@pytest.mark.parametrize("width", [1, 2, 3, 64, 1000, 70000])
@each_order
def test_widths(rng, width, ord):
    x, dy, _ = make_weight(rng, shape=(3, width))
    check_normalize(x, dy, ord=ord)


@each_order
def test_below_eps_it_is_a_division(rng, ord):
    x, dy, _ = make_weight(rng, np.float64, shape=(4, 9))
    x[1] *= 1e-9
    x[2] = 0
    check_normalize(x, dy, eps=1e-3, ord=ord)
    np.testing.assert_allclose(
        nc.normalize_backward(dy, x, eps=1e-3, ord=ord)[1], dy[1] / 1e-3, rtol=1e-15
    )
    assert not nc.normalize(x, eps=0.0, ord=ord)[2].any()
    assert not nc.normalize_backward(dy, x, eps=0.0, ord=ord)[2].any()


@pytest.mark.parametrize("exponent", [-1000, -600, 600, 1000])
@each_order
def test_normalize_magnitudes_of_float64(rng, exponent, ord):
    # Powers of two change no rounding, and squares leave the range of float64 at 2**512.
    x, dy, _ = make_weight(rng, np.float64, shape=(6, 35))
    want, want_dx = nc.normalize(x, ord=ord), nc.normalize_backward(dy, x, ord=ord)
    x = x * 2.0**exponent
    np.testing.assert_allclose(nc.normalize(x, eps=0.0, ord=ord), want, rtol=1e-15)
    dx = nc.normalize_backward(dy, x, eps=0.0, ord=ord) * 2.0**exponent
    np.testing.assert_allclose(dx, want_dx, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("exponent", [-100, -60, 60, 100])
@each_order
def test_normalize_magnitudes(rng, exponent, ord):
    x, dy, _ = make_weight(rng, shape=(6, 35))
    want, want_dx = nc.normalize(x, ord=ord), nc.normalize_backward(dy, x, ord=ord)
    x = x * np.float32(2.0**exponent)
    np.testing.assert_array_max_ulp(nc.normalize(x, eps=0.0, ord=ord), want, 6)
    dx = nc.normalize_backward(dy, x, eps=0.0, ord=ord) * np.float32(2.0**exponent)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-5, atol=1e-6)
