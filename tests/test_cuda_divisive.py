"""Divisive norm, GDN, local response and local divisive norm on CUDA, by the CPU's numeric checks.

Hunts for tiles that end in the middle of channels or pixels, for windows beyond the edges of what a
block holds, for a table that is read in the wrong order of memory, for results over an input that
another block still reads, and for powers that leave the range of float.
"""

import itertools

import numpy as np
import pytest
import test_divisive as mixing
import test_local as local
from both_devices import device as device  # of each test here
from support import DTYPES, GuardedOut, arrange, bfloat16, bits

import normcore as nc

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
each_layout = pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
each_case, each_method = mixing.each_case, mixing.each_method
LAST = local.LAST


# ---- local response norm


@each_dtype
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", LAST])
@pytest.mark.parametrize("across", ["channels", "space"])
def test_response(rng, dtype, layout, across):
    x, dy = local.make_arrays(rng, dtype, layout=layout)
    options = {"channel_axis": -1} if layout == LAST else {}
    local.check_response(x, dy, 3, alpha=0.5, across=across, **options)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 17, 1000])
@pytest.mark.parametrize("shape", [(2, 12, 5, 7), (1, 3, 70), (2, 3, 4, 5, 2), (1, 400, 3)])
@pytest.mark.parametrize("even_window", ["torch", "onnx"])
def test_response_sizes(rng, size, shape, even_window):
    """(1, 400, 3) has more channels than a block holds; a window of 1000 more than there are."""
    for layout, across in (
        ("contiguous", "channels"),
        ("channels_last", "channels"),
        ("contiguous", "space"),
    ):
        x, dy = local.make_arrays(rng, shape=shape, layout=layout)
        options = {"alpha": 2.0, "k": 0.5, "across": across, "even_window": even_window}
        local.check_response(x, dy, size, **options)


@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, 0.6, 0.0, -0.5, 3.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
def test_response_powers(rng, beta, dtype):
    local.check_response(*local.make_arrays(rng, dtype), 5, alpha=3.0, beta=beta, k=0.7)


@pytest.mark.parametrize("value", [1e-30, 1e-5, 300.0, 1e10, 1e20, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, bfloat16], ids=str)
@pytest.mark.parametrize("across", ["channels", "space"])
def test_response_magnitudes(rng, value, dtype, across):
    local.test_magnitudes(rng, value, dtype, across)


@each_layout
@pytest.mark.parametrize("across", ["channels", "space"])
@pytest.mark.parametrize("shape", [(2, 7, 5, 9), (1, 400, 1, 2)])
def test_response_in_place(rng, layout, across, shape):
    x, dy = local.make_arrays(rng, shape=shape, layout=layout)
    options = {"alpha": 1.0, "across": across}
    y = nc.local_response_norm(x, 4, **options)
    (dx,) = nc.local_response_norm_backward(dy, x, 4, **options)
    guarded = GuardedOut(x)
    nc.local_response_norm(x, 4, **options, out=guarded.view)
    assert bits(guarded.view) == bits(y) and guarded.guards_intact()
    over = x.copy(order="K")
    nc.local_response_norm(over, 4, out=over, **options)
    np.testing.assert_allclose(over, y, rtol=1e-6)
    for i in range(2):
        pair = [dy.copy(order="K"), x.copy(order="K")]
        nc.local_response_norm_backward(*pair, 4, out=pair[i], **options)
        np.testing.assert_allclose(pair[i], dx, rtol=1e-5, atol=1e-6)


# ---- divisive norm and GDN


@each_case
@each_dtype
def test_mixing(rng, method, options, dtype):
    mixing.check(method, *mixing.make(rng, method, (2, 5, 3, 7), dtype), options)


@each_method
@each_layout
@each_dtype
def test_mixing_layouts(rng, method, options, layout, dtype):
    mixing.check(method, *mixing.make(rng, method, (2, 9, 3, 5), dtype, layout), options)


@each_method
@pytest.mark.parametrize("shape", [(5, 3), (1, 1), (3, 70), (1, 3, 130), (2, 5, 3, 2, 5)], ids=str)
def test_mixing_shapes(rng, method, options, shape):
    mixing.check(method, *mixing.make(rng, method, shape), options)
    last = (*shape[:1], *shape[2:], shape[1])
    arrays = mixing.make(rng, method, last, channel_axis=-1)
    mixing.check(method, *arrays, {**options, "channel_axis": -1})


@each_method
@each_dtype
@pytest.mark.parametrize("channels", [1, 15, 16, 17, 63, 64, 65, 130])
@pytest.mark.parametrize("pixels", ["few", "one more than a tile"])
def test_mixing_tiles(rng, method, options, dtype, channels, pixels):
    """Up to 16 channels a block has 256 pixels, beyond them 128 pixels and 64 rows."""
    count = 7 if pixels == "few" else 257 if channels <= 16 else 129
    for shape, axis in (((1, channels, count), 1), ((1, count, channels), 2)):
        arrays = mixing.make(rng, method, shape, dtype, channel_axis=axis)
        mixing.check(method, *arrays, {**options, "channel_axis": axis})


@each_case
@pytest.mark.parametrize("channels", [5, 20, 70])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_mixing_of_several_runs(rng, method, options, channels, layout):
    """The emulated cache holds the tables of 8192 elements, or of one tile of pixels."""
    shape = (3, channels, 5, 20_000 // (15 * channels) + 3)
    mixing.check(method, *mixing.make(rng, method, shape, np.float32, layout), options)


@each_method
@pytest.mark.parametrize("channels", [3, 40])
def test_mixing_of_several_splits(rng, method, options, channels):
    mixing.check(method, *mixing.make(rng, method, (1, channels, 2051)), options)


@each_method
@pytest.mark.parametrize("channels", [9, 40])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_mixing_bits_are_a_pixels_own(rng, method, options, channels, layout):
    """Whatever lies beside it in its tile, and wherever in a tile it is."""
    x, dy, own = mixing.make(rng, method, (2, channels, 7, 19), np.float32, layout)
    y, gradients = mixing.both(method, x, dy, own, options)
    x[0, :, :5] *= np.float32(1e25)
    dy[0, :, :5] = np.inf
    x[0, :, 5] = np.nan
    y2, gradients2 = mixing.both(method, x, dy, own, options)
    assert bits(y2[1:]) == bits(y[1:]) and bits(y2[0, :, 6]) == bits(y[0, :, 6])
    assert bits(gradients2.dx[1:]) == bits(gradients.dx[1:])
    y3, gradients3 = mixing.both(method, x[1:], dy[1:], own, options)
    assert bits(y3) == bits(y[1:]) and bits(gradients3.dx) == bits(gradients.dx[1:])


@pytest.mark.parametrize("channels", [3, 20, 70])
def test_mixing_keeps_small_channels(channels):
    """What a channel of 1e30 would hide where a pixel had one scale."""
    x = np.ones((1, channels), np.float32)
    x[0, 0], x[0, -1] = 1e30, 1e-30
    gamma, beta = np.eye(channels, dtype=np.float32), np.full(channels, 3, np.float32)
    beta[-1] = 0
    want = np.full(channels, 0.5)
    want[0] = want[-1] = 1
    np.testing.assert_allclose(nc.gdn(x, beta, gamma)[0], want, rtol=1e-6)
    gradient = nc.gdn_backward(np.ones_like(x), x, beta, gamma)
    np.testing.assert_allclose(gradient.dx[0, 1:-1], 3 / 8, rtol=1e-6)


@each_method
@pytest.mark.parametrize("parameters", [np.float16, np.float64], ids=str)
def test_mixing_parameters_of_another_dtype(rng, method, options, parameters):
    mixing.test_parameters_of_another_dtype(rng, method, options, np.float32, parameters)


@each_method
@pytest.mark.parametrize("dtype", [bfloat16, np.dtype(np.float32), np.dtype(np.float64)], ids=str)
@pytest.mark.parametrize("size", [1e30, 1e-12, 1e-30])
def test_mixing_magnitudes(rng, method, options, dtype, size):
    mixing.test_magnitudes(rng, method, options, dtype, size, None)


@each_method
def test_mixing_extremes(rng, method, options):
    mixing.test_one_channel_does_not_drown_the_others()
    mixing.test_a_pixel_depends_on_no_other(rng, method, options)
    mixing.test_zeros_give_zeros(rng, method, options, np.float32)
    mixing.test_nan_and_infinity_spoil_only_their_pixel(rng, method, options)


@each_method
@pytest.mark.parametrize("channels, pixels", [(7, 5), (33, 5), (70, 5), (70, 200)])
@each_layout
def test_mixing_in_place(rng, method, options, channels, pixels, layout):
    """Of 70 channels two blocks share a pixel: a table of y, of 600 pixels in two runs."""
    x, dy, own = mixing.make(rng, method, (1, channels, 3, pixels), np.float32, layout)
    y, gradients = mixing.both(method, x, dy, own, options)
    forward, backward = getattr(nc, method), getattr(nc, method + "_backward")
    guarded = GuardedOut(x)
    assert bits(forward(x, **own, **options, out=guarded.view)) == bits(y)
    assert guarded.guards_intact()
    for i in range(2):
        pair = [dy.copy("K"), x.copy("K")]
        result = backward(*pair, **own, **options, out=pair[i])
        for got, want in zip(result, gradients, strict=True):
            assert bits(np.asarray(got)) == bits(np.asarray(want))
    forward(x, **own, **options, out=x)
    np.testing.assert_allclose(x, y, rtol=1e-6)


@each_method
def test_mixing_strides(rng, method, options):
    mixing.test_broadcast_gradients_and_strided_parameters(rng, method, options)


def test_mixing_of_nothing():
    for method, options in mixing.BOTH:
        mixing.test_empty_input(method, options)


# ---- local divisive norm


@each_dtype
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", LAST])
@pytest.mark.parametrize("scalar", [True, False], ids=["scalar", "per channel"])
def test_divisive(rng, dtype, layout, scalar):
    x, dy = local.make_arrays(rng, dtype, layout=layout)
    options = {"channel_axis": -1} if layout == LAST else {}
    parameters = local.make_parameters(rng, 6, dtype, scalar)
    local.check_divisive(x, dy, *parameters, summation_window=3, suppression_window=5, **options)


@pytest.mark.parametrize("windows", [*itertools.product([1, 3, 99], [1, 5])], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 7, 4), (1, 40, 2, 3), (1, 2, 70), (2, 3, 4, 5, 2)])
def test_divisive_windows(rng, windows, shape):
    summation, suppression = windows
    for layout in ("contiguous", "channels_last", "fortran"):
        x, dy = local.make_arrays(rng, shape=shape, layout=layout)
        parameters = local.make_parameters(rng, shape[1])
        options = {"summation_window": summation, "suppression_window": suppression}
        local.check_divisive(x, dy, *parameters, **options)


def test_divisive_of_other_shapes(rng):
    x, dy = local.make_arrays(rng)
    sigma = np.asarray(0.5, np.float32)
    local.check_divisive(x, dy, sigma, summation_window=(1, 5), suppression_window=[3, 1])
    for shape in [(4, 9), (1, 1, 1, 1), (2, 1, 5, 5), (2, 3000, 1)]:
        x, dy = local.make_arrays(rng, shape=shape)
        parameters = local.make_parameters(rng, shape[1], scalar=False)
        local.check_divisive(x, dy, *parameters, summation_window=3, suppression_window=3)


@pytest.mark.parametrize("exponent", [-100, 60, 95])
def test_divisive_magnitudes(rng, exponent):
    local.test_divisive_magnitudes(rng, exponent, False)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_divisive_in_place(rng, layout):
    x, dy = local.make_arrays(rng, layout=layout)
    sigma, weight, bias = local.make_parameters(rng, 6)
    windows = {"summation_window": 3, "suppression_window": 5}
    y = nc.local_divisive_norm(x, sigma, weight, bias, **windows)
    want = nc.local_divisive_norm_backward(dy, x, sigma, weight, bias, **windows)
    for i in range(2):
        pair = [dy.copy("K"), x.copy("K")]
        got = nc.local_divisive_norm_backward(*pair, sigma, weight, bias, **windows, out=pair[i])
        assert all(bits(a) == bits(b) for a, b in zip(got, want, strict=True))
    nc.local_divisive_norm(x, sigma, weight, bias, **windows, out=x)
    assert bits(x) == bits(y)


def test_divisive_where_nothing_varies(rng):
    """Without a sigma that is 0 / 0, of which the limit is 0, as on the CPU."""
    x, dy = np.full((2, 4, 5, 6), 3.0, np.float32), rng.normal(size=(2, 4, 5, 6)).astype(np.float32)
    sigma, bias = np.zeros(4, np.float32), rng.normal(size=4).astype(np.float32)
    windows = {"summation_window": 3, "suppression_window": 3}
    y = nc.local_divisive_norm(x, sigma, None, bias, **windows)
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None, None], x.shape))
    grads = nc.local_divisive_norm_backward(dy, x, sigma, None, bias, **windows)
    for name, grad in zip(grads._fields, grads, strict=True):
        assert grad is None or np.isfinite(grad).all(), name
    assert not grads.dsigma.any()


def test_divisive_of_nothing():
    x = np.zeros((0, 3, 4, 2), np.float32)
    weight = np.ones(3, np.float32)
    windows = {"summation_window": 3, "suppression_window": 3}
    assert nc.local_divisive_norm(x, weight, weight, **windows).shape == x.shape
    grads = nc.local_divisive_norm_backward(x, x, weight, weight, weight, **windows)
    assert not any(np.any(g) for g in grads)


# ---- what is refused


def test_refused_before_anything_is_written(rng):
    x = arrange(rng.normal(size=(2, 4, 3, 5)).astype(np.float32), "contiguous")
    out = np.full_like(x, 7)
    ones, square = np.ones(3, np.float32), np.ones((4, 4), np.float32)
    windows = {"summation_window": 3, "suppression_window": 4}
    with pytest.raises(ValueError, match="size is 0"):
        nc.local_response_norm(x, 0, out=out)
    with pytest.raises(ValueError, match=r"beta has shape \(3,\), expected \(4,\)"):
        nc.gdn(x, ones, square, out=out)
    with pytest.raises(ValueError, match="exponent is -1"):
        nc.divisive_norm(x, square, ones[:1].reshape(()), exponent=-1.0, out=out)
    with pytest.raises(ValueError, match="suppression_window is 4"):
        nc.local_divisive_norm(x, ones[:1].reshape(()), out=out, **windows)
    many = np.lib.stride_tricks.as_strided(
        np.zeros(4**12, np.float32), (2,) * 12, tuple(4 * 4**i for i in range(11, -1, -1))
    )
    with pytest.raises(ValueError, match="more than 8 axes"):
        nc.local_response_norm(many, 3, out=np.ones_like(many))
    assert (out == 7).all()
