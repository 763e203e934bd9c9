"""Local response and local divisive normalization, against the oracle and torch.

Hunts for windows that are off by one at an edge, of even sizes, or mirrored the wrong way in
backward; for a divisor that counts what is not there; for sums that overflow or cancel; and for
bands of rows that read what a band before them has overwritten.
"""

import copy
import itertools
import pickle

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from support import DTYPES, LAYOUTS, GuardedOut, arrange, assert_close, bfloat16, bits, stat_dtype
from test_properties import arrays, random_like

import normcore as nc

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
across = pytest.mark.parametrize("across", ["channels", "space"])
even_window = pytest.mark.parametrize("even_window", ["torch", "onnx"])
# A layout of its own: channels really last.
LAST = "channel_axis=-1"


def make_arrays(rng, dtype=np.float32, shape=(3, 6, 5, 7), layout="contiguous", mean=0.3):
    x, dy = rng.normal(mean, 1.5, shape), rng.normal(size=shape)
    if layout == LAST:
        return tuple(np.moveaxis(a, 1, -1).astype(dtype, order="C") for a in (x, dy))
    return tuple(arrange(a.astype(dtype), layout) for a in (x, dy))


def eps_of(x):
    return float(np.finfo(stat_dtype(x.dtype)).eps)


def peak(a):
    return float(np.abs(reference.wide(a)).max(initial=0))


def check_response(x, dy, size, **options):
    eps = eps_of(x) * (1 + abs(options.get("beta", 0.75)))
    want = reference.local_response_norm(x, size, **options)
    # The sum and its power to a few roundings, and their product with x.
    y = nc.local_response_norm(x, size, **options)
    assert_close(y, want, slack=8 * eps * np.abs(want), what="y", dtype=x.dtype)
    # dx is a difference of two terms; with nothing negative the second is what is missing of it.
    wide_x, wide_dy = np.abs(reference.wide(x)), np.abs(reference.wide(dy))
    direct = wide_dy * np.abs(want) / wide_x
    other = direct - reference.local_response_norm_backward(wide_dy, wide_x, size, **options).dx
    terms = direct + np.abs(other)
    (dx,) = nc.local_response_norm_backward(dy, x, size, **options)
    want = reference.local_response_norm_backward(dy, x, size, **options).dx
    # Where a term alone is out of the range of x's dtype, so may dx be.
    beyond = (terms > 1e37) if x.dtype != np.float64 else np.zeros(x.shape, bool)
    got, want, terms = (np.where(beyond, 0, a) for a in (reference.wide(dx), want, terms))
    slack = 16 * eps * terms + np.finfo(np.float32).smallest_normal * (x.dtype != np.float64)
    assert dx.dtype == x.dtype
    assert_close(got.astype(x.dtype), want, slack=slack, what="dx")
    return y, dx


def check_divisive(x, dy, sigma, weight=None, bias=None, **options):
    eps = eps_of(x)
    want = reference.local_divisive_norm(x, sigma, weight, bias, **options)
    xhat = peak(reference.local_divisive_norm(x, sigma, **options))
    w = 1.0 if weight is None else peak(weight)
    # An error of the mean relative to the deviation, a few roundings of the quotient, the bias.
    slack = eps * (8 * w * (1 + xhat) + 2 * (0.0 if bias is None else peak(bias)))
    y = nc.local_divisive_norm(x, sigma, weight, bias, **options)
    assert_close(y, want, slack=slack, what="y", dtype=x.dtype)
    grads = nc.local_divisive_norm_backward(dy, x, sigma, weight, bias, **options)
    wanted = reference.local_divisive_norm_backward(dy, x, sigma, weight, bias, **options)
    _, r, *_ = reference._divided(x, sigma, **{"channel_axis": 1} | options)
    slack = 16 * eps * (1 + xhat) ** 2 * peak(r) * w * peak(dy)
    assert_close(grads.dx, wanted.dx, slack=slack, what="dx", dtype=x.dtype)
    # Sums of n rounded terms, whose error grows as sqrt(n); roundings of one sign in short runs.
    terms = {"dsigma": w * (1 + xhat) * peak(np.asarray(sigma)) * peak(r) ** 2, "dweight": 1 + xhat}
    for name, of in [("dsigma", sigma), ("dweight", weight), ("dbias", bias)]:
        got, exact = getattr(grads, name), getattr(wanted, name)
        if of is None:
            assert got is None
            continue
        count = x.size / np.size(of)
        slack = eps * (8 * terms.get(name, 1.0) * peak(dy) * np.sqrt(count) + 20 * peak(exact))
        dtype = np.float64 if isinstance(of, float) else of.dtype
        assert_close(got, exact, slack=slack, what=name, dtype=dtype)
        assert isinstance(got, float) if isinstance(of, float) else got.shape == np.shape(of)
    return (y, *grads)


def make_parameters(rng, channels, dtype=np.float32, scalar=True):
    sigma = rng.uniform(0.3, 1.5, () if scalar else channels)
    weight, bias = rng.normal(1, 0.5, channels), rng.normal(size=channels)
    return tuple(np.asarray(p).astype(dtype) for p in (sigma, weight, bias))


# ---- local response norm


@each_dtype
@pytest.mark.parametrize("layout", [*LAYOUTS, LAST])
@across
def test_response(rng, dtype, layout, across, isa):
    x, dy = make_arrays(rng, dtype, layout=layout)
    options = {"channel_axis": -1} if layout == LAST else {}
    check_response(x, dy, 3, alpha=0.5, across=across, **options)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9, 10, 17, 1000])
@pytest.mark.parametrize("shape", [(2, 12, 5, 11), (1, 3, 70), (2, 70, 3, 23), (2, 3, 4, 5, 6)])
@even_window
@across
def test_sizes(rng, size, shape, even_window, across):
    for layout in ("contiguous", "channels_last", "sliced"):
        x, dy = make_arrays(rng, shape=shape, layout=layout)
        check_response(x, dy, size, alpha=2.0, k=0.5, across=across, even_window=even_window)


@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, 0.6, 0.0, -0.5, 3.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
def test_powers(rng, beta, dtype, isa):
    check_response(*make_arrays(rng, dtype), 5, alpha=3.0, beta=beta, k=0.7)


@pytest.mark.parametrize("shape", [(4, 9), (3, 5, 40), (1, 1, 1, 1), (2, 1, 9, 9), (3, 8, 1, 1)])
def test_other_ranks(rng, shape):
    x, dy = make_arrays(rng, shape=shape)
    check_response(x, dy, 4)
    if len(shape) > 2:
        check_response(x, dy, 4, across="space")


@across
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("shape", [(1, 700, 3, 129), (1, 3, 700, 129), (2, 2, 40, 30, 20)])
@pytest.mark.parametrize("size", [4, 13])
def test_bands(rng, across, layout, shape, size):
    # More rows than a band holds; over x and over dy nothing may be read that is overwritten.
    x, dy = make_arrays(rng, np.float64, shape, layout)
    options = {"alpha": 1.0, "across": across}
    y, dx = check_response(x, dy, size, **options)
    over = x.copy(order="K")
    assert nc.local_response_norm(over, size, out=over, **options) is over
    assert bits(over) == bits(y)
    for i in range(2):
        pair = [dy.copy(order="K"), x.copy(order="K")]
        nc.local_response_norm_backward(*pair, size, out=pair[i], **options)
        assert bits(pair[i]) == bits(dx)


@pytest.mark.parametrize("size", [2, 3, 5, 6])
def test_response_against_torch(rng, size):
    torch = pytest.importorskip("torch")
    for shape in [(2, 9, 4), (2, 9, 4, 5), (2, 9, 3, 4, 5)]:
        x, dy = make_arrays(rng, np.float64, shape)
        tx = torch.tensor(x, requires_grad=True)
        y = torch.nn.functional.local_response_norm(tx, size, alpha=0.7, beta=0.75, k=2.0)
        y.backward(torch.tensor(dy))
        options = {"alpha": 0.7, "beta": 0.75, "k": 2.0}
        for module in (nc, reference):
            ours = np.asarray(module.local_response_norm(x, size, **options), np.float64)
            np.testing.assert_allclose(ours, y.detach(), rtol=1e-13)
            dx = module.local_response_norm_backward(dy, x, size, **options).dx
            np.testing.assert_allclose(np.asarray(dx, float), tx.grad, rtol=1e-11, atol=1e-13)


def test_even_windows_by_hand():
    x = np.array([[[1.0], [10.0], [100.0], [1000.0]]])
    options = {"alpha": 4.0, "beta": 1.0, "k": 0.0}
    # size 4: alpha / size is 1, y = x / sum of squares; torch looks two channels back and one on.
    sums = {"torch": [101, 10101, 1010101, 1010100], "onnx": [10101, 1010101, 1010100, 1010000]}
    for convention, s in sums.items():
        y = nc.local_response_norm(x, 4, even_window=convention, **options)
        np.testing.assert_allclose(y.ravel(), x.ravel() / s, rtol=1e-15)


@pytest.mark.parametrize("value", [1e-30, 1e-20, 1e-5, 300.0, 1e10, 1e20, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, bfloat16], ids=str)
@across
def test_magnitudes(rng, value, dtype, across):
    x, dy = make_arrays(rng, dtype)
    x = (x.astype(np.float32) * np.float32(value)).astype(dtype)
    x[0, 0] = 1  # beside something ordinary
    for k in (1.0, 0.0):
        options = {"alpha": 0.9, "k": k, "across": across}
        y, _ = check_response(x, dy, 3, **options)
        over = x.copy()
        assert bits(nc.local_response_norm(over, 3, out=over, **options)) == bits(y)


def test_half_does_not_overflow():
    x = np.full((1, 1, 1), 300, np.float16)
    y = nc.local_response_norm(x, 1, alpha=1.0)
    assert abs(float(y[0, 0, 0]) - 300 / (1 + 300.0**2) ** 0.75) < 1e-4


def test_large_values_in_bands_over_x(rng):
    x, dy = make_arrays(rng, shape=(1, 1, 700, 129))
    x[0, 0, 650] = 1e25
    want = nc.local_response_norm(x, 5, across="space")
    (want_dx,) = nc.local_response_norm_backward(dy, x, 5, across="space")
    assert_close(
        want,
        exact := reference.local_response_norm(x, 5, across="space"),
        slack=8 * eps_of(x) * np.abs(exact),
        what="y",
    )
    over = dy.copy()
    nc.local_response_norm_backward(over, x, 5, across="space", out=over)
    np.testing.assert_allclose(over, want_dx, rtol=1e-5, atol=1e-6)
    nc.local_response_norm(x, 5, across="space", out=x)
    np.testing.assert_allclose(x, want, rtol=1e-6)


# ---- local divisive norm


@each_dtype
@pytest.mark.parametrize("layout", [*LAYOUTS, LAST])
@pytest.mark.parametrize("scalar", [True, False], ids=["scalar", "per channel"])
def test_divisive(rng, dtype, layout, scalar, isa):
    x, dy = make_arrays(rng, dtype, layout=layout)
    options = {"channel_axis": -1} if layout == LAST else {}
    parameters = make_parameters(rng, 6, dtype, scalar)
    check_divisive(x, dy, *parameters, summation_window=3, suppression_window=5, **options)


@pytest.mark.parametrize("windows", [*itertools.product([1, 3, 9, 99], [1, 5, 21])], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 13, 8), (3, 130, 4, 5), (1, 2, 300), (2, 3, 4, 5, 6)])
def test_windows(rng, windows, shape):
    summation, suppression = windows
    for layout in ("contiguous", "channels_last", "fortran"):
        x, dy = make_arrays(rng, shape=shape, layout=layout)
        parameters = make_parameters(rng, shape[1])
        options = {"summation_window": summation, "suppression_window": suppression}
        check_divisive(x, dy, *parameters, **options)


def test_a_size_for_each_axis(rng):
    x, dy = make_arrays(rng)
    check_divisive(x, dy, 0.5, summation_window=(1, 5), suppression_window=[3, 1])


@pytest.mark.parametrize("shape", [(40, 9), (1, 1, 1, 1), (5000, 3, 1), (1, 3000, 2), (2, 1, 9, 9)])
def test_divisive_of_other_shapes(rng, shape):
    x, dy = make_arrays(rng, shape=shape)
    parameters = make_parameters(rng, shape[1], scalar=False)
    check_divisive(x, dy, *parameters, summation_window=3, suppression_window=3)


def test_parameters_of_another_dtype_or_absent(rng):
    x, dy = make_arrays(rng, np.float16)
    sigma, weight, bias = make_parameters(rng, 6, np.float32)
    windows = {"summation_window": 3, "suppression_window": 3}
    for w, b in itertools.product([weight, None], [bias, None]):
        check_divisive(x, dy, sigma, w, b, **windows)
        check_divisive(x, dy, 0.75, w, b, **windows)
    whole = nc.local_divisive_norm_backward(dy, x, 1, **windows)
    assert isinstance(whole.dsigma, float)
    assert bits(nc.local_divisive_norm(x, 1, **windows)) == bits(
        nc.local_divisive_norm(x, 1.0, **windows)
    )


def test_windows_of_one_are_layer_norm_over_the_channels(rng):
    x, dy = make_arrays(rng, np.float64)
    windows = {"summation_window": 1, "suppression_window": 1}
    y = nc.local_divisive_norm(x, 0.1, **windows)
    np.testing.assert_allclose(y, nc.layer_norm(x, axis=1, eps=0.01), rtol=1e-12, atol=1e-13)
    dx = nc.local_divisive_norm_backward(dy, x, 0.1, **windows).dx
    want = nc.layer_norm_backward(dy, x, axis=1, eps=0.01).dx
    np.testing.assert_allclose(dx, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scalar", [True, False], ids=["scalar", "per channel"])
@pytest.mark.parametrize("module", [nc, reference], ids=["normcore", "oracle"])
@pytest.mark.parametrize("shape", [(2, 4, 9), (2, 4, 5, 6), (2, 3, 5, 6, 7)])
def test_divisive_against_torch(rng, scalar, module, shape):
    torch = pytest.importorskip("torch")
    pool = [torch.nn.functional.avg_pool1d, torch.nn.functional.avg_pool2d]
    pool = [*pool, torch.nn.functional.avg_pool3d][len(shape) - 3]

    def mean(t, size):
        options = {"stride": 1, "padding": size // 2, "count_include_pad": False}
        return pool(t.mean(1, keepdim=True), size, **options)

    x, dy = make_arrays(rng, np.float64, shape)
    values = make_parameters(rng, shape[1], np.float64, scalar)
    tx, ts, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, *values))
    each = (-1,) + (1,) * (len(shape) - 2)
    v = tx - mean(tx, 3)
    s = (ts if scalar else ts.reshape(each)) ** 2 + mean(v * v, 5)
    y = tw.reshape(each) * v / torch.sqrt(s) + tb.reshape(each)
    y.backward(torch.tensor(dy))
    windows = {"summation_window": 3, "suppression_window": 5}
    ours = np.asarray(module.local_divisive_norm(x, *values, **windows), np.float64)
    np.testing.assert_allclose(ours, y.detach(), rtol=1e-11, atol=1e-13)
    grads = module.local_divisive_norm_backward(dy, x, *values, **windows)
    for got, want in zip(grads, (tx, ts, tw, tb), strict=True):
        np.testing.assert_allclose(np.asarray(got, float), want.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("exponent", [-100, -60, -33, 33, 60, 95])
@pytest.mark.parametrize("scalar", [True, False], ids=["scalar", "per channel"])
def test_divisive_magnitudes(rng, exponent, scalar):
    x, dy = make_arrays(rng)
    sigma, weight, _ = make_parameters(rng, 6, scalar=scalar)
    windows = {"summation_window": 3, "suppression_window": 5}
    want = nc.local_divisive_norm(x, sigma, weight, **windows)
    small = nc.local_divisive_norm_backward(dy, x, sigma, weight, **windows)
    factor = np.float32(2.0**exponent)
    y = nc.local_divisive_norm(x * factor, sigma * factor, weight, **windows)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    big = nc.local_divisive_norm_backward(dy, x * factor, sigma * factor, weight, **windows)
    np.testing.assert_allclose(big.dx * factor, small.dx, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(big.dsigma * factor, small.dsigma, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(big.dweight, small.dweight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mean", [1e3, 1e6])
def test_divisive_of_a_large_mean(rng, mean):
    x, _ = make_arrays(rng, mean=mean, shape=(2, 16, 9, 10))
    want = reference.local_divisive_norm(x, 0.5, summation_window=3, suppression_window=3)
    y = nc.local_divisive_norm(x, 0.5, summation_window=3, suppression_window=3)
    # x - mean is exact and the mean has more digits than x.
    assert_close(y, want, slack=2e-6, what="y")


def test_nothing_varies(rng):
    x = np.full((2, 3, 4, 5), 7.0, np.float32)
    windows = {"summation_window": 3, "suppression_window": 3}
    assert not nc.local_divisive_norm(x, 0.0, **windows).any()
    for gradient in nc.local_divisive_norm_backward(x, x, np.zeros(3, np.float32), **windows)[:2]:
        assert np.isfinite(gradient).all()


# ---- both


RESPONSE = ("local_response_norm", (5,), {"alpha": 1.0})
SPACE = ("local_response_norm", (4,), {"alpha": 1.0, "across": "space"})
WINDOWS = {"summation_window": 3, "suppression_window": 5}
DIVISIVE = ("local_divisive_norm", (0.5,), WINDOWS)
each_function = pytest.mark.parametrize(
    "function", [RESPONSE, SPACE, DIVISIVE], ids=["response", "space", "divisive"]
)


def forward(function, x, **extra):
    name, arguments, options = function
    return getattr(nc, name)(x, *arguments, **options, **extra)


def backward(function, dy, x, **extra):
    name, arguments, options = function
    return getattr(nc, name + "_backward")(dy, x, *arguments, **options, **extra)


@each_function
@each_layout
@each_dtype
def test_out_and_in_place(rng, function, layout, dtype):
    x, dy = make_arrays(rng, dtype, layout=layout)
    want, want_dx = forward(function, x), backward(function, dy, x).dx
    guarded = GuardedOut(x)
    assert forward(function, x, out=guarded.view) is guarded.view
    assert bits(guarded.view) == bits(want) and guarded.guards_intact()
    guarded = GuardedOut(x)
    assert backward(function, dy, x, out=guarded.view).dx is guarded.view
    assert bits(guarded.view) == bits(want_dx) and guarded.guards_intact()
    for i in range(2):
        pair = [arrange(a.copy(), layout) for a in (dy, x)]
        backward(function, *pair, out=pair[i])
        assert bits(pair[i]) == bits(want_dx)
    assert want.strides == want_dx.strides
    forward(function, x, out=x)
    assert bits(x) == bits(want)


@each_function
@pytest.mark.parametrize("shape", [(9, 31, 41, 29), (1, 3, 401, 257), (700, 33, 11)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_any_number_of_threads_gives_the_same_bits(rng, threads, function, shape, layout):
    x, dy = make_arrays(rng, shape=shape, layout=layout)
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        results.append((forward(function, x), *backward(function, dy, x)))
    for other in results[1:]:
        assert [bits(a) for a in other] == [bits(a) for a in results[0]]


@each_function
def test_a_sample_does_not_depend_on_the_others(rng, function):
    x, dy = make_arrays(rng, shape=(7, 20, 30, 31))
    y, dx = forward(function, x), backward(function, dy, x).dx
    for i in (0, 3, 6):
        assert bits(forward(function, x[i : i + 1])) == bits(y[i : i + 1])
        assert bits(backward(function, dy[i : i + 1], x[i : i + 1]).dx) == bits(dx[i : i + 1])


@each_function
def test_nan_and_inf_stay_in_their_windows(rng, function):
    x, _ = make_arrays(rng, shape=(2, 9, 21, 22))
    want = forward(function, x)
    for value in (np.nan, np.inf):
        spoilt = x.copy()
        spoilt[1, 4, 10, 11] = value
        y = forward(function, spoilt)
        assert np.isnan(y[1, 4, 10, 11])
        # Beyond the reach of both windows.
        reach = 4
        far = np.ones(x.shape, bool)
        far[1, :, 10 - reach : 11 + reach, 11 - reach : 12 + reach] = False
        np.testing.assert_allclose(y[far], want[far], rtol=1e-6)


@each_function
def test_broadcast_and_foreign_arrays(rng, function):
    x, dy = make_arrays(rng)
    want = backward(function, np.ones_like(x), x).dx
    dx = backward(function, np.broadcast_to(np.float32(1), x.shape), x).dx
    assert bits(dx) == bits(want)
    torch = pytest.importorskip("torch")
    y = forward(function, torch.from_numpy(x))
    assert isinstance(y, torch.Tensor) and bits(y.numpy()) == bits(forward(function, x))
    dx = backward(function, torch.from_numpy(dy), torch.from_numpy(x)).dx
    assert isinstance(dx, torch.Tensor) and bits(dx.numpy()) == bits(backward(function, dy, x).dx)


@each_function
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty(function, shape):
    x = np.empty(shape, np.float32)
    assert forward(function, x).shape == shape
    assert backward(function, x, x).dx.shape == shape


@given(arrays(min_ndim=3), st.integers(1, 8), st.booleans(), st.booleans(), st.data())
def test_response_of_any_array(array, size, space, onnx, data):
    x, rng = array
    axis = data.draw(st.integers(1, x.ndim - 1))
    options = {"across": "space" if space else "channels", "channel_axis": axis}
    options["even_window"] = "onnx" if onnx else "torch"
    check_response(x, random_like(rng, x), size, alpha=1.5, **options)


@given(arrays(min_ndim=2), st.sampled_from([1, 3, 5, 13]), st.sampled_from([1, 3, 7]), st.data())
def test_divisive_of_any_array(array, summation, suppression, data):
    x, rng = array
    axis = data.draw(st.integers(1, x.ndim - 1))
    parameters = make_parameters(rng, x.shape[axis], scalar=data.draw(st.booleans()))
    windows = {"summation_window": summation, "suppression_window": suppression}
    check_divisive(x, random_like(rng, x), *parameters, **windows, channel_axis=axis)


X = np.ones((2, 4, 3, 5), np.float32)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"size": 0}, "size is 0, expected at least 1"),
        ({"alpha": -1.0}, "alpha is -1"),
        ({"k": np.nan}, "k is nan"),
        ({"beta": np.inf}, "beta is inf"),
        ({"across": "time"}, "across is 'time', expected 'channels' or 'space'"),
        ({"even_window": "tf"}, "even_window is 'tf', expected 'torch' or 'onnx'"),
        ({"channel_axis": 4}, "channel_axis is 4"),
        ({"channel_axis": 0}, "channel_axis is 0, expected another axis than 0"),
        ({"out": np.ones((2, 4, 3), np.float32)}, r"out has shape \(2, 4, 3\)"),
        ({"out": np.ones(X.shape)}, "out has dtype float64"),
        ({"out": X[::-1]}, "out overlaps x"),
        ({"x": X[:, :, 0, 0], "across": "space"}, r"x has shape \(2, 4\), expected at least 3"),
    ],
)
def test_response_errors(changed, says):
    with pytest.raises(ValueError, match=says):
        nc.local_response_norm(**({"x": X, "size": 3} | changed))
    changed = {k: v for k, v in changed.items() if k != "x"}
    if "size" in changed or "alpha" in changed:
        with pytest.raises(ValueError, match=says):
            nc.local_response_norm_backward(X, X, **({"size": 3} | changed))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"sigma": X[0, :3, 0, 0]},
            r"sigma has shape \(3,\), expected \(4,\): x.shape\[channel_ax",
        ),
        ({"weight": X[0, 0, :, 0]}, r"weight has shape \(3,\), expected \(4,\)"),
        ({"bias": X[0]}, r"bias has shape \(4, 3, 5\)"),
        ({"summation_window": 4}, "summation_window is 4, expected an odd number >= 1"),
        ({"suppression_window": -1}, "suppression_window is -1"),
        ({"suppression_window": (3, 3, 3)}, "suppression_window has 3 sizes, expected 1 or 2"),
        ({"channel_axis": -5}, "channel_axis is -5"),
        ({"out": X[::-1]}, "out overlaps x"),
        ({"x": X[0, 0, 0]}, r"x has shape \(5,\), expected at least two axes"),
    ],
)
def test_divisive_errors(changed, says):
    arguments = {"x": X, "sigma": 1.0, **WINDOWS} | changed
    with pytest.raises(ValueError, match=says):
        nc.local_divisive_norm(**arguments)
    if "out" not in changed:
        with pytest.raises(ValueError, match=says):
            nc.local_divisive_norm_backward(X, **arguments)


def test_type_errors():
    for x in (X.astype(np.int64), X.astype(complex)):
        with pytest.raises(TypeError, match="x has dtype"):
            nc.local_response_norm(x, 3)
        with pytest.raises(TypeError, match="x has dtype"):
            nc.local_divisive_norm(x, 1.0, **WINDOWS)
    with pytest.raises(TypeError, match=r"size is 2\.5"):
        nc.local_response_norm(X, 2.5)
    with pytest.raises(TypeError, match="summation_window is 'all'"):
        nc.local_divisive_norm(X, 1.0, summation_window="all", suppression_window=3)
    with pytest.raises(TypeError, match="dy has dtype float64"):
        nc.local_response_norm_backward(X.astype(float), X, 3)
    with pytest.raises(ValueError, match=r"dy has shape \(4, 3, 5\)"):
        nc.local_divisive_norm_backward(X[0], X, 1.0, **WINDOWS)


# ---- layers


def test_response_layer(rng):
    torch = pytest.importorskip("torch")
    x, dy = make_arrays(rng, np.float64)
    layer, other = nc.LocalResponseNorm(4, alpha=0.1), torch.nn.LocalResponseNorm(4, alpha=0.1)
    tx = torch.tensor(x, requires_grad=True)
    y = other(tx)
    y.backward(torch.tensor(dy))
    np.testing.assert_allclose(layer(x), y.detach(), rtol=1e-13)
    np.testing.assert_allclose(layer.backward(dy), tx.grad, rtol=1e-11, atol=1e-13)
    default, theirs = nc.LocalResponseNorm(5), torch.nn.LocalResponseNorm(5)
    for name in ("size", "alpha", "beta", "k"):
        assert getattr(default, name) == getattr(theirs, name)
    assert layer.state_dict() == {} and layer.parameters == {}
    assert repr(layer) == "LocalResponseNorm(4, alpha=0.1, beta=0.75, k=1.0)"
    with pytest.raises(ValueError, match="at least three axes"):
        layer(x[:, :, 0, 0])
    with pytest.raises(ValueError, match="size is 0"):
        nc.LocalResponseNorm(0)


@pytest.mark.parametrize("affine", [True, False])
def test_divisive_layer(rng, affine):
    x, dy = make_arrays(rng)
    layer = nc.LocalDivisiveNorm(6, 3, (5, 1), sigma=0.5, affine=affine)
    windows = {"summation_window": 3, "suppression_window": (5, 1)}
    parameters = layer.parameters
    assert set(parameters) == ({"sigma", "weight", "bias"} if affine else {"sigma"})
    assert bits(layer(x)) == bits(nc.local_divisive_norm(x, **parameters, **windows))
    want = nc.local_divisive_norm_backward(dy, x, **parameters, **windows)
    assert bits(layer.backward(dy)) == bits(want.dx)
    layer.backward(dy)
    for name, value in layer.grads.items():
        assert value.shape == parameters[name].shape and value.dtype == np.float32
        np.testing.assert_allclose(value, 2 * getattr(want, "d" + name), rtol=1e-6)
    restored = nc.LocalDivisiveNorm(6, 3, (5, 1), affine=affine)
    restored.load_state_dict(layer.state_dict())
    for twin in (restored, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert bits(twin(x)) == bits(layer(x))
    with pytest.raises(ValueError, match="expected 6 at channel_axis=1"):
        layer(x[:, :5])
    with pytest.raises(ValueError, match="summation_window is 4, expected an odd number"):
        nc.LocalDivisiveNorm(6, 4)
