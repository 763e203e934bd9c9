"""Divisive norm and GDN, against the oracle and torch's autograd.

Hunts for tiles that end in the middle of a run of pixels, for a transposed matrix, for powers that
overflow or vanish in float32, for 0 / 0, for gradients that depend on the number of threads, and
for bounds that swallow a gradient.
"""

import copy
import functools
import pickle

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from support import (
    DTYPES,
    LAYOUTS,
    GuardedOut,
    arrange,
    assert_close,
    assert_same_bits,
    bfloat16,
    bits,
    stat_dtype,
)

import normcore as nc

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)

GDN = [
    {},
    {"inverse": True},
    {"alpha": 1.0, "epsilon": 1.0},
    {"alpha": 1.0, "epsilon": 1.0, "inverse": True},
    {"alpha": 1.3, "epsilon": 0.7},
    {"alpha": 0.6, "epsilon": 0.25, "inverse": True},
    {"alpha": 3.0, "epsilon": -0.4},
    {"epsilon": 0.0},
]
DIVISIVE = [
    {},
    {"power": 2.0},
    {"exponent": 1.0, "power": 1.0},
    {"exponent": 3.4, "power": 0.5},
    {"exponent": 1.5, "power": 1.5},
]
CASES = [("gdn", o) for o in GDN] + [("divisive_norm", o) for o in DIVISIVE]
each_case = pytest.mark.parametrize(
    "method, options", CASES, ids=[f"{m}-{'-'.join(map(str, o.values()))}" for m, o in CASES]
)
BOTH = [CASES[0], CASES[len(GDN)]]
each_method = pytest.mark.parametrize("method, options", BOTH, ids=["gdn", "divisive_norm"])


def make(
    rng, method, shape, dtype=np.float32, layout="contiguous", channel_axis=1, parameters=None
):
    """x, dy and the parameters; x keeps its distance from 0, where slopes may be infinite."""
    n = shape[channel_axis]
    x = rng.choice([-1, 1], shape) * rng.uniform(0.2, 3, shape)
    dy = rng.normal(size=shape)
    kind = dtype if parameters is None else parameters
    mixing = rng.uniform(0, 2 / n, (n, n)).astype(kind)
    start = rng.uniform(0.2, 1.5, n).astype(kind)
    own = {"beta": start, "gamma": mixing}
    if method == "divisive_norm":
        own = {"weights": mixing, "sigma": start, "gain": rng.normal(size=n).astype(kind)}
    return arrange(x.astype(dtype), layout), arrange(dy.astype(dtype), layout), own


def both(method, x, dy, own, options, module=nc):
    y = getattr(module, method)(x, **own, **options)
    return y, getattr(module, method + "_backward")(dy, x, **own, **options)


def check(method, x, dy, own, options):
    """Results against the oracle.

    Sums over n channels and over the pixels are of rounded terms, whose error grows as their root;
    a power multiplies the error of its base by the exponent.
    """
    y, gradients = both(method, x, dy, own, options)
    want, exact = both(method, x, dy, own, options, reference)
    eps = float(np.finfo(stat_dtype(x.dtype)).eps)
    channels = x.shape[options.get("channel_axis", 1)]
    factor = eps * (8 + np.sqrt(channels)) * (1 + max(map(abs, (*options.values(), 1.0))))
    y_size = np.abs(want).max(initial=0)
    assert_close(y, want, slack=factor * y_size, what="y", dtype=x.dtype)
    assert gradients._fields == exact._fields
    pixels = x.size / max(1, channels)
    for name, got, expected in zip(exact._fields, gradients, exact, strict=True):
        if expected is None:
            assert got is None
            continue
        size = np.abs(expected).max(initial=0)
        terms = 8 * np.abs(dy).max(initial=0).astype(np.float64) * max(1.0, float(y_size))
        if name == "dx":
            slack = factor * (size + terms)
        else:
            count = pixels * channels**2 / max(1, np.size(expected))
            slack = factor * (20 * size + terms * np.sqrt(count))
        of = x if name == "dx" else own.get(name[1:])
        dtype = None if of is None else of.dtype
        assert_close(got, expected, slack=slack, what=name, dtype=dtype)


@each_case
@each_dtype
def test_against_the_oracle(rng, method, options, dtype, isa):
    check(method, *make(rng, method, (2, 13, 9, 11), dtype), options)


@each_method
@each_layout
@each_dtype
def test_layouts(rng, method, options, layout, dtype):
    check(method, *make(rng, method, (3, 14, 5, 7), dtype, layout), options)


@each_method
@each_layout
def test_many_pixels(rng, method, options, layout, isa):
    """Enough of them for tiles to be read together, and to end in the middle of such a group."""
    check(method, *make(rng, method, (2, 5, 137, 89), np.float32, layout), options)


SHAPES = [(5, 3), (1, 1), (40, 70), (2, 3, 200), (2, 37, 4, 4), (2, 5, 3, 4, 5), (1, 13, 64, 3)]
SHAPES += [(3, 40, 250)]  # of few pixels for so many channels, but more than one wave of them


@each_method
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), np.dtype(np.float64)], ids=str)
def test_shapes(rng, method, options, shape, dtype, isa):
    check(method, *make(rng, method, shape, dtype), options)
    last = (*shape[:1], *shape[2:], shape[1])
    check(method, *make(rng, method, last, dtype, channel_axis=-1), {**options, "channel_axis": -1})


def at_offset(x, offset):
    """A copy of x that begins so many bytes behind a line of memory."""
    room = np.empty(x.nbytes + 128, np.uint8)
    first = (offset - room.ctypes.data) % 64
    view = room[first : first + x.nbytes].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


@each_case
@each_dtype
@pytest.mark.parametrize("offset", [0, 16])
def test_rows_in_place_are_as_gathered_ones(rng, method, options, dtype, offset, isa):
    """Runs of pixels that begin and end anywhere; of some what is squared leaves float."""
    channels = int(rng.integers(1, 40 if offset == 0 else 8))
    run = 32 * int(rng.integers(1, 12)) + int(rng.integers(260, 300))
    run = run // 32 * 32 if rng.random() < 0.7 else run
    if offset > 0:
        run += 64 * 64
    x, _, own = make(rng, method, (3, channels, run), dtype)
    if dtype in (np.float32, bfloat16):
        odd = rng.random((3, 1, run)) < 0.02
        x = np.where(odd, x.astype(np.float64) * rng.choice([1e25, 1e-30]), x).astype(dtype)
    want = getattr(nc, method)(arrange(x, "sliced"), **own, **options)
    x = at_offset(x, offset)
    for to in (offset, 0, 16, 48):
        y = at_offset(np.full_like(x, np.nan), to)
        getattr(nc, method)(x, **own, **options, out=y)
        assert bits(y) == bits(want)
    guarded = GuardedOut(x)
    getattr(nc, method)(x, **own, **options, out=guarded.view)
    assert bits(guarded.view) == bits(want) and guarded.guards_intact()
    getattr(nc, method)(x, **own, **options, out=x)
    assert bits(x) == bits(want)


@each_case
@each_dtype
@pytest.mark.parametrize(
    "channels, pixels",
    [((1, 24), (1, 300)), ((24, 200), (1, 300)), ((24, 64), (1500, 3000))],
    ids=["few channels", "many channels", "many pixels"],
)
def test_channels_last_is_as_channels_first(rng, method, options, dtype, channels, pixels, isa):
    """The same sums in the same order; of some pixels what is squared leaves float."""
    channels, pixels = int(rng.integers(*channels)), int(rng.integers(*pixels))
    x, _, own = make(rng, method, (2, channels, pixels), dtype)
    if dtype in (np.float32, bfloat16):
        odd = rng.random((2, 1, pixels)) < 0.02
        x = np.where(odd, x.astype(np.float64) * rng.choice([1e25, 1e-30]), x).astype(dtype)
    want = np.moveaxis(getattr(nc, method)(x, **own, **options), 1, -1)
    run = functools.partial(getattr(nc, method), **own, **{**options, "channel_axis": -1})
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    assert bits(run(last)) == bits(want)
    for layout in ("sliced", "reversed"):
        assert bits(run(arrange(last, layout))) == bits(want)
    gaps = np.full((2, pixels, channels + 3), np.nan, dtype)
    gaps[..., :channels] = last
    guarded = GuardedOut(last)
    run(gaps[..., :channels], out=guarded.view)
    assert bits(guarded.view) == bits(want) and guarded.guards_intact()
    rows = run(np.concatenate([last, last], 1)[:, 1 : pixels + 1])  # runs with gaps between
    assert bits(rows[:, :-1]) == bits(want[:, 1:])
    for offset in (0, 16):
        y = at_offset(last, offset)
        run(y, out=y)
        assert bits(y) == bits(want)


@each_method
@pytest.mark.parametrize("channels", [48, 96, 100])
@pytest.mark.parametrize("offset", [0, 16])
def test_streamed_channels_last(rng, method, options, channels, offset, isa):
    """So many pixels that y is stored past the caches."""
    x, _, own = make(rng, method, (1, channels, 4_000_000 // channels), np.float32)
    want = np.moveaxis(getattr(nc, method)(x, **own, **options), 1, -1)
    last = at_offset(np.ascontiguousarray(np.moveaxis(x, 1, -1)), offset)
    y = at_offset(np.full_like(last, np.nan), offset)
    getattr(nc, method)(last, **own, **{**options, "channel_axis": -1}, out=y)
    assert bits(y) == bits(want)


@each_method
@given(data=st.data())
def test_any_shape(method, options, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=4)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    layout = data.draw(st.sampled_from(["contiguous", "fortran", "reversed", "sliced"]))
    problem = make(rng, method, shape, np.float32, layout, axis)
    check(method, *problem, {**options, "channel_axis": axis})


@each_method
@pytest.mark.parametrize("dtype", [bfloat16, np.dtype(np.float32)], ids=str)
@pytest.mark.parametrize("parameters", [np.float16, np.float32, np.float64], ids=str)
def test_parameters_of_another_dtype(rng, method, options, dtype, parameters):
    check(method, *make(rng, method, (2, 6, 5, 5), dtype, parameters=parameters), options)


@each_case
def test_gradients_are_those_of_autograd(rng, method, options):
    torch = pytest.importorskip("torch")
    x, dy, own = make(rng, method, (2, 7, 4, 5), np.float64)
    leaf = {k: torch.tensor(v, requires_grad=True) for k, v in {"x": x, **own}.items()}
    across = (1, -1, 1, 1)
    if method == "gdn":
        for name, default in (("alpha", 2.0), ("epsilon", 0.5)):
            value = options.get(name, default)
            leaf[name] = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        powers = leaf["x"].abs() ** leaf["alpha"]
        d = leaf["beta"].view(across) + torch.einsum("ij,njhw->nihw", leaf["gamma"], powers)
        e = leaf["epsilon"] if options.get("inverse") else -leaf["epsilon"]
        y = leaf["x"] * d**e
    else:
        n, m = options.get("exponent", 2.0), options.get("power", 1.0)
        pooled = torch.einsum("ij,njhw->nihw", leaf["weights"], leaf["x"].abs() ** n)
        d = leaf["sigma"].view(across) ** n + pooled
        y = leaf["gain"].view(across) * leaf["x"].sign() * leaf["x"].abs() ** m / d ** (m / n)
    y.backward(torch.tensor(dy))
    got, gradients = both(method, x, dy, own, options)
    np.testing.assert_allclose(got, y.detach().numpy(), rtol=1e-12)
    for name, value in gradients._asdict().items():
        want = leaf[name[1:]].grad.numpy()
        np.testing.assert_allclose(value, want, rtol=1e-11, atol=1e-11, err_msg=name)


@each_method
@pytest.mark.parametrize("dtype", [bfloat16, np.dtype(np.float32), np.dtype(np.float64)], ids=str)
@pytest.mark.parametrize("size", [1e30, 1e20, 1e12, 1e-12, 1e-25, 1e-30])
def test_magnitudes(rng, method, options, dtype, size, isa):
    """With sigma = 0 the size of x cancels, and all gradients but that of x are as before."""
    x, dy, own = make(rng, method, (2, 6, 5, 9), dtype, parameters=np.float64)
    if "beta" in own:
        own["beta"][:] = 0
    else:
        own["sigma"][:] = 0
    mixing = "gamma" if "beta" in own else "weights"
    scaled = (reference.wide(x) * size).astype(dtype)
    want, exact = both(method, scaled, dy, own, options, reference)
    y, gradients = both(method, scaled, dy, own, options)
    # 8 roundings of the compute type, or the one of the output.
    rtol = max(1e-6, float(2.0**-8) if dtype == bfloat16 else 0) if dtype != np.float64 else 1e-13
    np.testing.assert_allclose(y.astype(np.float64), want.astype(np.float64), rtol=rtol)
    for name in ("dx", f"d{mixing}"):
        got, wanted = getattr(gradients, name), getattr(exact, name).astype(np.float64)
        atol = 30 * rtol * np.abs(wanted).max()
        np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=rtol, atol=atol)


def test_one_channel_does_not_drown_the_others():
    x = np.array([[1e30, 1.0, 1e-30]], np.float32)
    gamma, beta = np.eye(3, dtype=np.float32), np.array([1, 3, 0], np.float32)
    np.testing.assert_allclose(nc.gdn(x, beta, gamma), [[1, 0.5, 1]], rtol=1e-6)
    gradient = nc.gdn_backward(np.ones_like(x), x, beta, gamma)
    np.testing.assert_allclose(gradient.dx[:, :2], [[0, 3 / 8]], atol=1e-6)
    assert abs(gradient.dx[0, 2]) < 1e-15 * 1e30  # two terms of 1e30 that cancel, in float64
    assert np.isfinite(gradient.dbeta[:2]).all()


@each_method
def test_a_pixel_depends_on_no_other(rng, method, options):
    """Also where the others are computed in float64: the same bits."""
    x, dy, own = make(rng, method, (4, 5, 3, 3))
    want, exact = both(method, x[:1], dy[:1], own, options)
    x[1:] *= np.float32(1e25)
    y, gradients = both(method, x, dy, own, options)
    assert bits(y[:1]) == bits(want) and bits(gradients.dx[:1]) == bits(exact.dx)


def test_half_precision_does_not_overflow():
    x = np.full((2, 4, 3, 3), 300, np.float16)
    gamma, beta = np.full((4, 4), 0.25, np.float16), np.ones(4, np.float16)
    np.testing.assert_allclose(nc.gdn(x, beta, gamma), 300 / np.sqrt(1 + 9e4), rtol=1e-3)
    ratio = nc.divisive_norm(x, gamma, beta, power=2.0)
    np.testing.assert_allclose(ratio, 9e4 / (1 + 9e4), rtol=1e-3)


@each_dtype
@each_method
def test_zeros_give_zeros(rng, method, options, dtype):
    x, dy, own = make(rng, method, (2, 5, 3, 11), dtype)
    own["beta" if method == "gdn" else "sigma"][:] = 0
    x[0, :, 1, 3:] = 0
    y, gradients = both(method, x, dy, own, options)
    for value in (y, *gradients):
        assert np.isfinite(np.asarray(value, np.float64)).all()
    assert not y[0, :, 1, 3:].any() and not gradients.dx[0, :, 1, 3:].any()


@each_case
def test_nan_and_infinity_spoil_only_their_pixel(rng, method, options):
    x, _, own = make(rng, method, (2, 6, 9, 9))
    want = getattr(nc, method)(x, **own, **options)
    for value in (np.nan, np.inf, -np.inf):
        spoilt = x.copy()
        spoilt[1, 2, 3, 4] = value
        y = getattr(nc, method)(spoilt, **own, **options)
        assert options.get("epsilon") == 0 or not np.isfinite(y[1, 2, 3, 4])
        y[1, :, 3, 4] = want[1, :, 3, 4]
        np.testing.assert_allclose(y, want, rtol=1e-5)


@each_layout
@each_method
def test_out_and_in_place(rng, method, options, layout):
    x, dy, own = make(rng, method, (2, 14, 6, 9), np.float32, layout)
    y, gradients = both(method, x, dy, own, options)
    forward, backward = getattr(nc, method), getattr(nc, method + "_backward")
    guarded = GuardedOut(x)
    assert forward(x, **own, **options, out=guarded.view) is guarded.view
    assert bits(guarded.view) == bits(y) and guarded.guards_intact()
    guarded = GuardedOut(x)
    result = backward(dy, x, **own, **options, out=guarded.view)
    assert result.dx is guarded.view and guarded.guards_intact()
    assert_same_bits([np.asarray(v) for v in result], [np.asarray(v) for v in gradients], "out")
    over_dy = dy.copy("K")
    assert bits(backward(over_dy, x, **own, **options, out=over_dy).dx) == bits(gradients.dx)
    over_x = x.copy("K")
    assert bits(backward(dy, over_x, **own, **options, out=over_x).dx) == bits(gradients.dx)
    forward(x, **own, **options, out=x)
    assert bits(x) == bits(y)


@each_method
def test_broadcast_gradients_and_strided_parameters(rng, method, options):
    x, _, own = make(rng, method, (2, 6, 4, 5))
    dy = np.broadcast_to(np.float32(0.5), x.shape)
    want = both(method, x, np.ascontiguousarray(dy), own, options)[1]
    strided = {k: np.repeat(v, 2, axis=0)[::2] for k, v in own.items()}
    strided = {k: v.T.copy().T if v.ndim == 2 else v for k, v in strided.items()}
    got = both(method, x, dy, strided, options)[1]
    assert_same_bits([np.asarray(v) for v in got], [np.asarray(v) for v in want], "strides")


@each_method
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("shape", [(9, 24, 31, 17), (3, 40, 25, 10)], ids=str)
def test_any_number_of_threads_gives_the_same_bits(
    rng, threads, method, options, layout, shape, isa
):
    x, dy, own = make(rng, method, shape, np.float32, layout)
    if shape[1] == 40:  # and pixels that are done in double
        x[0, :, 3] *= np.float32(1e25)
        dy[2, :, :, 4] *= np.float32(1e-30)
    threads(1)
    y, gradients = both(method, x, dy, own, options)
    for count in (2, 3, 7):
        threads(count)
        y2, gradients2 = both(method, x, dy, own, options)
        assert bits(y2) == bits(y)
        arrays = [[np.asarray(v) for v in g] for g in (gradients2, gradients)]
        assert_same_bits(*arrays, f"{count} threads")


def test_a_number_for_all_channels(rng):
    x, dy, own = make(rng, "divisive_norm", (3, 5, 4, 4), np.float64)
    full = {"sigma": np.full(5, 0.7), "gain": np.full(5, -1.5)}
    one = {"sigma": 0.7, "gain": -1.5}
    want = nc.divisive_norm_backward(dy, x, own["weights"], **full)
    got = nc.divisive_norm_backward(dy, x, own["weights"], **one)
    assert type(got.dsigma) is float and type(got.dgain) is float
    np.testing.assert_allclose([got.dsigma, got.dgain], [want.dsigma.sum(), want.dgain.sum()])
    assert nc.divisive_norm_backward(dy, x, own["weights"], 0.7).dgain is None
    scalar = np.asarray(0.7)
    assert nc.divisive_norm_backward(dy, x, own["weights"], scalar).dsigma.shape == ()


def test_one_channel(rng):
    for shape in ((4, 1, 3, 3), (5, 1)):
        x, dy, own = make(rng, "divisive_norm", shape, np.float64)
        check("divisive_norm", x, dy, own, {})


def test_lists_and_torch(rng):
    assert nc.gdn([[3.0, 4.0]], [0.0, 0.0], [[1.0, 1.0], [1.0, 1.0]]).round(6).tolist() == [
        [0.6, 0.8]
    ]
    torch = pytest.importorskip("torch")
    x, dy, own = make(rng, "gdn", (2, 4, 3, 3))
    tensors = {k: torch.from_numpy(v) for k, v in own.items()}
    y = nc.gdn(torch.from_numpy(x), **tensors)
    assert isinstance(y, torch.Tensor) and bits(y.numpy()) == bits(nc.gdn(x, **own))
    gradients = nc.gdn_backward(torch.from_numpy(dy), torch.from_numpy(x), **tensors)
    assert isinstance(gradients.dgamma, torch.Tensor) and isinstance(gradients.dalpha, float)


@each_method
def test_empty_input(method, options):
    x = np.zeros((0, 3, 4), np.float32)
    own = {"beta": np.ones(3, np.float32), "gamma": np.ones((3, 3), np.float32)}
    if method == "divisive_norm":
        own = {"weights": np.ones((3, 3), np.float32), "sigma": np.ones(3, np.float32)}
    y, gradients = both(method, x, x, own, options)
    assert y.shape == gradients.dx.shape == x.shape
    assert not np.any(gradients[1]) and not np.any(gradients[2])


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


X = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
REFUSED = [
    (
        "gdn",
        {"beta": ones(3), "gamma": ones(4, 4)},
        ValueError,
        "beta has shape (3,), expected (4,)",
    ),
    ("gdn", {"beta": ones(4), "gamma": ones(4, 3)}, ValueError, "gamma has shape (4, 3)"),
    ("gdn", {"beta": -ones(4), "gamma": ones(4, 4)}, ValueError, "beta holds -1"),
    ("gdn", {"beta": ones(4), "gamma": -ones(4, 4)}, ValueError, "gamma holds -1"),
    ("gdn", {"beta": ones(4) * np.inf, "gamma": ones(4, 4)}, ValueError, "beta holds inf"),
    ("gdn", {"beta": ones(4) * np.nan, "gamma": ones(4, 4)}, ValueError, "beta holds"),
    ("gdn", {"beta": None, "gamma": ones(4, 4)}, TypeError, "beta is None"),
    ("gdn", {"beta": ones(4), "gamma": ones(4, 4, dtype=int)}, TypeError, "gamma has dtype int64"),
    ("gdn", {"beta": ones(4), "gamma": ones(4, 4), "alpha": 0.0}, ValueError, "alpha is 0"),
    (
        "gdn",
        {"beta": ones(4), "gamma": ones(4, 4), "epsilon": np.nan},
        ValueError,
        "epsilon is nan",
    ),
    (
        "gdn",
        {"beta": ones(4), "gamma": ones(4, 4), "channel_axis": 3},
        ValueError,
        "channel_axis is 3",
    ),
    (
        "divisive_norm",
        {"weights": ones(3, 3), "sigma": 1.0},
        ValueError,
        "weights has shape (3, 3)",
    ),
    ("divisive_norm", {"weights": -ones(4, 4), "sigma": 1.0}, ValueError, "weights holds -1"),
    ("divisive_norm", {"weights": ones(4, 4), "sigma": -1.0}, ValueError, "sigma holds -1"),
    (
        "divisive_norm",
        {"weights": ones(4, 4), "sigma": ones(1)},
        ValueError,
        "sigma has shape (1,)",
    ),
    ("divisive_norm", {"weights": ones(4, 4), "sigma": None}, TypeError, "sigma is None"),
    (
        "divisive_norm",
        {"weights": ones(4, 4), "sigma": 1.0, "gain": ones(3)},
        ValueError,
        "gain has shape (3,), expected (4,)",
    ),
    (
        "divisive_norm",
        {"weights": ones(4, 4), "sigma": 1.0, "exponent": -1.0},
        ValueError,
        "exponent is -1",
    ),
    (
        "divisive_norm",
        {"weights": ones(4, 4), "sigma": 1.0, "power": np.inf},
        ValueError,
        "power is inf",
    ),
]


@pytest.mark.parametrize("method, own, error, message", REFUSED, ids=[r[3] for r in REFUSED])
def test_refused_before_anything_is_written(method, own, error, message):
    out = np.full_like(X, 7)
    with pytest.raises(error) as caught:
        getattr(nc, method)(X, **own, out=out)
    assert message in str(caught.value)
    with pytest.raises(error) as caught:
        getattr(nc, method + "_backward")(X, X, **own, out=out)
    assert message in str(caught.value)
    assert (out == 7).all()


@each_method
def test_refused_arrays(rng, method, options):
    x, dy, own = make(rng, method, (2, 4, 3))
    forward, backward = getattr(nc, method), getattr(nc, method + "_backward")
    with pytest.raises(TypeError, match="x has dtype int64"):
        forward(np.ones((2, 4, 3), int), **own)
    with pytest.raises(ValueError, match="overlaps"):
        forward(x, **own, out=np.lib.stride_tricks.as_strided(x, x.shape, (48, 12, 8)))
    with pytest.raises(ValueError, match="out has shape"):
        forward(x, **own, out=np.empty((2, 4, 4), np.float32))
    with pytest.raises(TypeError, match="dy has dtype float64"):
        backward(dy.astype(np.float64), x, **own)
    with pytest.raises(ValueError, match="dy has shape"):
        backward(dy[:1], x, **own)


# ---- layers


def test_divisive_layer(rng):
    layer = nc.DivisiveNorm(5, exponent=1.5, power=1.5, dtype=np.float64)
    x, dy, own = make(rng, "divisive_norm", (2, 5, 4, 4), np.float64)
    layer.load_state_dict(own)
    assert bits(layer(x)) == bits(nc.divisive_norm(x, **own, exponent=1.5, power=1.5))
    want = nc.divisive_norm_backward(dy, x, **own, exponent=1.5, power=1.5)
    for _ in range(2):
        assert bits(layer.backward(dy)) == bits(want.dx)
    for name in own:
        np.testing.assert_allclose(layer.grads[name], 2 * getattr(want, f"d{name}"))
    layer.parameters["sigma"] -= 10
    layer.project()
    assert not layer.parameters["sigma"].any()
    assert repr(layer) == "DivisiveNorm(5, exponent=1.5, power=1.5)"
    with pytest.raises(ValueError, match="expected 5 at channel_axis=1"):
        layer(x[:, :4])
    with pytest.raises(RuntimeError, match="before a forward call"):
        nc.DivisiveNorm(5).backward(dy)
    again = pickle.loads(pickle.dumps(layer))
    assert bits(again(x)) == bits(layer(x))


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("inverse", [False, True])
def test_gdn_layer(rng, inverse, channel_axis):
    layer = nc.GDN(6, inverse, channel_axis=channel_axis)
    assert layer.effective_beta.tolist() == [1] * 6
    np.testing.assert_allclose(layer.effective_gamma, 0.1 * np.eye(6), rtol=1e-6)
    x, dy, _ = make(rng, "gdn", (2, 6, 3, 6))
    options = {"inverse": inverse, "channel_axis": channel_axis}
    assert bits(layer(x)) == bits(nc.gdn(x, layer.effective_beta, layer.effective_gamma, **options))
    want = nc.gdn_backward(dy, x, layer.effective_beta, layer.effective_gamma, **options)
    assert bits(layer.backward(dy)) == bits(want.dx)
    np.testing.assert_allclose(
        layer.grads["beta"], 2 * layer.parameters["beta"] * want.dbeta, rtol=1e-6
    )
    twin = copy.deepcopy(layer)
    twin.load_state_dict(layer.state_dict())
    assert bits(twin(x)) == bits(layer(x))


def test_gdn_bounds():
    layer = nc.GDN(2, beta_min=0.25, dtype=np.float64)
    layer.parameters["beta"][:] = [-3, 0.1]  # below the bound, both of them
    layer.parameters["gamma"][:] = [[1, -1], [-1, -1]]
    np.testing.assert_allclose(layer.effective_beta, 0.25)
    np.testing.assert_allclose(layer.effective_gamma, [[1, 0], [0, 0]], atol=1e-11)
    x = np.array([[1.0, 2.0]])
    # With dy > 0 descent raises the divisor, with dy < 0 it lowers it: below the bound only the
    # first passes.
    layer(x)
    layer.backward(np.array([[1.0, -1.0]]))
    want = nc.gdn_backward(np.array([[1.0, -1.0]]), x, layer.effective_beta, layer.effective_gamma)
    bound = np.sqrt(0.25 + 2.0**-36)
    np.testing.assert_allclose(layer.grads["beta"], [2 * bound * want.dbeta[0], 0])
    bound = 2.0**-18
    np.testing.assert_allclose(
        layer.grads["gamma"],
        [[2 * want.dgamma[0, 0], 2 * bound * want.dgamma[0, 1]], [0, 0]],
    )


def test_gdn_layer_refuses():
    with pytest.raises(TypeError, match="dtype is float16, expected float32 or float64"):
        nc.GDN(3, dtype=np.float16)
    with pytest.raises(ValueError, match="beta_min is -1"):
        nc.GDN(3, beta_min=-1)
    with pytest.raises(ValueError, match="num_features is 0"):
        nc.GDN(0)
    with pytest.raises(ValueError, match="expected 3 at channel_axis=1"):
        nc.GDN(3)(np.ones((2, 4, 5)))
    with pytest.raises(RuntimeError, match=r"GDN\.backward called before a forward call"):
        nc.GDN(3).backward(np.ones((2, 3)))


def test_states_of_other_libraries(rng):
    stored = {"beta": rng.uniform(0.5, 1, 3).astype(np.float32)}
    stored["gamma"] = rng.uniform(0, 1, (3, 3)).astype(np.float32)
    there = nc.convert.to_compressai(stored)
    assert set(there) == {
        "beta",
        "gamma",
        "beta_reparam.pedestal",
        "beta_reparam.lower_bound.bound",
        "gamma_reparam.pedestal",
        "gamma_reparam.lower_bound.bound",
    }
    layer = nc.GDN(3)
    layer.load_state_dict(nc.convert.from_compressai(there))
    assert bits(layer.parameters["gamma"]) == bits(stored["gamma"])
    with pytest.raises(ValueError, match=r"beta_reparam.pedestal is \[1.\]"):
        nc.convert.from_compressai({**there, "beta_reparam.pedestal": np.ones(1)})
    with pytest.raises(ValueError, match="state has weight"):
        nc.convert.from_compressai({"weight": np.ones(3)})
    tfc = nc.convert.to_tfc(stored)
    assert bits(tfc["reparam_gamma"].T) == bits(stored["gamma"])
    back = nc.convert.from_tfc({f"gdn/{k}:0": v for k, v in tfc.items()})
    assert all(bits(back[k]) == bits(stored[k]) for k in stored)
