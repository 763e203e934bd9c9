"""The CUDA backend against the oracle: emulated on the host, and on a device where there is one.

Hunts for wrong indexing, tails, alignment, reductions and solve steps. Sizes run over
every step of the ladder of row kernels: parts of a warp, warps, blocks, clusters, and rows that are
streamed. The emulation cannot show races within a warp, memory ordering or speed.
"""

import numpy as np
import pytest
import reference
from both_devices import device as device  # of each test here
from support import (
    CENTRED,
    DIVIDING,
    DTYPES,
    LAYOUTS,
    PLAIN_VARIANTS,
    VARIANTS,
    Problem,
    arrange,
    assert_close,
    assert_same_bits,
    bfloat16,
    make_problem,
    without_eps,
)
from test_reductions import check_moments, check_norm, make
from test_weights import check_normalize, check_weight_norm, make_weight

import normcore as nc

POOLS = [v for v in PLAIN_VARIANTS if v.method in ("batch_norm", "instance_norm", "group_norm")]

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
row_methods = pytest.mark.parametrize("method", ["layer_norm", "rms_norm"])


@each_variant
@each_dtype
@pytest.mark.parametrize("layout", [*LAYOUTS, "channel_axis=-1"])
def test_layouts(rng, variant, dtype, layout):
    make_problem(rng, variant, dtype, layout=layout).check()


@each_variant
@pytest.mark.parametrize("shape", [(17, 6), (5, 6, 11), (2, 3, 2, 3, 5), (3, 6, 1, 1), (1, 3, 2)])
def test_ranks(rng, variant, shape):
    if not variant.takes(shape):
        shape = (4, 3, 9)
    make_problem(rng, variant, shape=shape).check()


@each_variant
@pytest.mark.parametrize("dtype", [bfloat16, np.float32], ids=str)
def test_cells_of_one_and_of_many_pieces(rng, variant, dtype):
    sizes = [1, 2, 31, 33, 129, 1100, 4096, 4097, 9000]
    if dtype == bfloat16 and "axis" not in variant.options:
        sizes.append(16385)  # two of forward
    for size in sizes:
        if variant.takes((2, 3, size)):
            make_problem(rng, variant, dtype, (2, 3, size)).check()


# Channels-last: tiles as wide as some packs and narrower, whole packs and odd ends, one row of a
# tile and odd numbers of them;
TILES = [(2, 24, 3, 5), (1, 144, 1, 7), (2, 66, 5, 9), (5, 48, 1, 1), (2, 24, 3, 2, 5), (2, 6, 19)]
# and more rows than a piece has.
TALL_TILES = [(1, 72, 23, 23), (1, 3, 67, 62)]


def misaligned(a, offset):
    """A copy of a, in the same order in memory, that begins `offset` elements past 64 bytes."""
    order = sorted(range(a.ndim), key=lambda i: -a.strides[i])
    memory = np.empty(a.size + 128, a.dtype)
    start = -memory.ctypes.data % 64 // memory.itemsize + offset
    copy = memory[start : start + a.size].reshape([a.shape[i] for i in order])
    copy = copy.transpose(np.argsort(order))
    copy[...] = a
    return copy


@each_variant
@pytest.mark.parametrize("shape", TILES, ids=str)
def test_tiles_of_channels(rng, variant, shape):
    if variant.takes(shape):
        make_problem(rng, variant, bfloat16, shape, layout="channels_last").check()


@each_variant
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64], ids=str)
def test_tiles_of_other_types(rng, variant, dtype):
    for shape in TILES[:2]:
        if variant.takes(shape):
            make_problem(rng, variant, dtype, shape, layout="channels_last").check()


@pytest.mark.parametrize("variant", PLAIN_VARIANTS, ids=str)
@pytest.mark.parametrize("shape", TALL_TILES, ids=str)
def test_tall_tiles(rng, variant, shape):
    if variant.takes(shape):
        make_problem(rng, variant, bfloat16, shape, layout="channels_last").check()


@each_variant
def test_tiles_off_the_boundary_have_the_same_bits(rng, variant):
    for dtype in (bfloat16, np.float32):
        p = make_problem(rng, variant, dtype, (2, 24, 3, 9), layout="channels_last")
        p.x, p.dy = misaligned(p.x, 0), misaligned(p.dy, 0)
        y, dx = p.forward(), p.backward()
        for x_offset, dy_offset in ((1, 1), (3, 0), (0, 2)):
            moved = Problem(
                p.method,
                misaligned(p.x, x_offset),
                misaligned(p.dy, dy_offset),
                p.params,
                p.options,
            )
            assert_same_bits((moved.forward(),), (y,), f"y of x {x_offset} off")
            assert_same_bits(moved.backward(), dx, f"gradients of dy {dy_offset} off")


@row_methods
@each_dtype
def test_parameters_of_tiles(rng, method, dtype):
    # More elements than threads of a tile have below each other; more tiles than runs of them, in
    # pools so small that a mean close to all elements would leave few digits.
    shapes = [
        ((300, 48), 0),
        ((2, 70, 33), 1),
        ((1500, 3), 0),
        ((5, 9, 4, 16), (1, 2)),
        ((7, 1), 0),
    ]
    if method == "rms_norm":
        shapes.append(((2, 3, 9000), 1))
    for shape, axis in shapes:
        x, dy = (rng.normal(0.3, 1, shape).astype(dtype) for _ in range(2))
        size = [shape[i] for i in ((axis,) if isinstance(axis, int) else axis)]
        names = ("weight", "bias") if method == "layer_norm" else ("weight",)
        params = {name: rng.normal(1, 0.5, size).astype(np.float32) for name in names}
        for offset in (0, 1):
            p = Problem(
                method, misaligned(x, offset), misaligned(dy, offset), params, {"axis": axis}
            )
            p.check()


@pytest.mark.parametrize("method", ["instance_norm", "group_norm"])
@pytest.mark.parametrize("channels", [18, 48])
def test_a_sample_of_tiles_has_the_same_bits_alone_and_among_others(rng, method, channels):
    variant = next(v for v in PLAIN_VARIANTS if v.method == method)
    p = make_problem(rng, variant, bfloat16, (5, channels, 7, 23), layout="channels_last")
    y, dx = p.forward(), p.backward().dx
    for n in (0, 3):
        x, dy = (misaligned(a[n : n + 1], 1) for a in (p.x, p.dy))
        alone = Problem(method, x, dy, p.params, p.options)
        assert_same_bits((alone.forward(),), (y[n : n + 1],), "y")
        assert_same_bits((alone.backward().dx,), (dx[n : n + 1],), "dx")


@pytest.mark.parametrize("variant", CENTRED, ids=str)
@pytest.mark.parametrize("channels", [6, 48])
@pytest.mark.parametrize("mean", [1e3, 1e5])
def test_large_means_of_tiles(rng, variant, channels, mean):
    shape = (3, channels, 20, 15)
    make_problem(rng, variant, shape=shape, mean=mean, layout="channels_last").check()


@pytest.mark.parametrize("variant", DIVIDING, ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_magnitudes_of_tiles(rng, variant, scale):
    p = make_problem(rng, variant, shape=(3, 24, 9, 8), layout="channels_last")
    p.x = misaligned((p.x * np.float32(scale)).astype(np.float32), 0)
    without_eps(p)
    p.check()


@each_dtype
def test_weight_norm_by_tiles(rng, dtype):
    for shape, axis in [((300, 48), 1), ((3, 70, 33), 2), ((2, 600, 16), 2), ((7, 1), 1)]:
        check_weight_norm(*make_weight(rng, dtype, shape, axis=axis), axis=axis)


@each_dtype
def test_normalize_and_norm_by_tiles(rng, dtype):
    for shape, axis in [((600, 48), 0), ((3, 70, 33), 1), ((4, 1, 5), 0), ((3, 5, 4, 16), (1, 2))]:
        x, dy, _ = make_weight(rng, dtype, shape)
        for order in (2, 1, np.inf):
            check_normalize(x, dy, axis=axis, ord=order)
            check_norm(x, axis=axis, ord=order)


# Pools of three members (batch: samples, group: channels) that a part of a warp, a block, and
# clusters of 2 and 4 blocks hold, in forward or backward, and larger ones; instance norm has one.
@pytest.mark.parametrize("pool", [60, 501, 3003, 10002, 18003, 39000, 70002])
@pytest.mark.parametrize("dtype", [bfloat16, np.float32, np.float64], ids=str)
@pytest.mark.parametrize("variant", POOLS, ids=str)
def test_pools_of_channels(rng, variant, pool, dtype):
    shape = {
        "batch_norm": (3, 1, pool // 3),
        "group_norm": (1, 9, pool // 3),
        "instance_norm": (1, 2, pool),
    }
    make_problem(rng, variant, dtype, shape[variant.method]).check()


def test_many_small_pools_share_blocks(rng):
    for variant in POOLS:
        for shape in [(2, 36, 21), (3, 42, 3, 5), (5, 6, 1, 130)]:
            make_problem(rng, variant, shape=shape).check()


def row_problem(rng, method, dtype, rows, n, offset=0):
    """Rows of n elements that begin `offset` elements past an aligned address."""

    def array(mean):
        memory = np.empty(rows * n + 64, dtype)
        start = -memory.ctypes.data % 64 // memory.itemsize + offset
        view = memory[start : start + rows * n].reshape(rows, n)
        view[...] = rng.normal(mean, 1, (rows, n)).astype(dtype)
        return view

    names = ("weight", "bias") if method == "layer_norm" else ("weight",)
    params = {name: rng.normal(0, 1, n).astype(np.float32) for name in names}
    return Problem(method, array(0.5), array(0), params, {"axis": -1})


# Around the packs of 16 bytes, and to both sides of each step of the ladder; the last lengths need
# clusters of 2, 4 and 8 blocks in forward or backward.
LENGTHS = [1, 2, 7, 8, 9, 16, 31, 63, 64, 65, 127, 128, 129, 255, 257, 511, 513, 1023, 1025, 2049]
LONG = [4095, 4097, 8193, 16385, 20000, 33000]


@row_methods
@each_dtype
def test_row_lengths(rng, method, dtype):
    for n in LENGTHS:
        row_problem(rng, method, dtype, 5, n).check()


@row_methods
@pytest.mark.parametrize("n", LONG)
@pytest.mark.parametrize("dtype", [bfloat16, np.float32], ids=str)
def test_long_rows(rng, method, dtype, n):
    row_problem(rng, method, dtype, 2, n).check()


def test_rows_beyond_the_largest_cluster_are_streamed(rng):
    row_problem(rng, "layer_norm", np.float64, 1, 16 * 512 * 8 * 2 + 1).check()


@row_methods
@each_dtype
@pytest.mark.parametrize("offset", [1, 3, 7])
def test_rows_of_any_alignment(rng, method, dtype, offset):
    for n in (5, 64, 200, 771):
        row_problem(rng, method, dtype, 3, n, offset).check()


@row_methods
@pytest.mark.parametrize("dtype", [bfloat16, np.float32], ids=str)
def test_a_row_has_the_same_bits_alone_and_among_others(rng, method, dtype):
    # 24, 2048 and 8192 are whole packs: alone on the boundary, which has kernels of its own.
    for n in (24, 100, 769, 2048, 4097, 8192):
        p = row_problem(rng, method, dtype, 6, n, offset=1)
        y, dx = p.forward(), p.backward().dx
        for r in (0, 3, 5):
            alone = Problem(
                method, p.x[r : r + 1].copy(), p.dy[r : r + 1].copy(), p.params, p.options
            )
            assert_same_bits((alone.forward(),), (y[r : r + 1],), f"y of row {r} of {n}")
            assert_same_bits((alone.backward().dx,), (dx[r : r + 1],), f"dx of row {r} of {n}")


@each_dtype
@pytest.mark.parametrize("n", [16, 77, 1024])
def test_row_parameters_of_any_type(rng, dtype, n):
    # Kernels read parameters of x's type and of float32 themselves; others are brought to a table.
    x, dy = rng.normal(0.5, 2, (2, 3, n)).astype(dtype)
    # A gradient in 16 bits is rounded to float32 first, which shows where it was exact to float64.
    types = [t for t in DTYPES.values() if dtype != np.float64 or np.dtype(t).itemsize > 2]
    for weight_type in types:
        w = rng.normal(1, 0.5, n).astype(weight_type)
        for bias_type in types:
            b = rng.normal(0, 0.5, n).astype(bias_type)
            Problem("layer_norm", x, dy, {"weight": w, "bias": b}, {"axis": -1}).check()
        Problem("layer_norm", x, dy, {"weight": w}, {"axis": -1}).check()
        Problem("rms_norm", x, dy, {"weight": w}, {"axis": -1, "weight_offset": 1.0}).check()
    Problem("layer_norm", x, dy, {}, {"axis": -1}).check()


@each_variant
def test_results_are_the_same_bits_every_time(rng, variant):
    p = make_problem(rng, variant, shape=(3, 6, 50, 41))
    assert_same_bits(p.backward(), p.backward(), "backward")
    assert_same_bits((p.forward(),), (p.forward(),), "forward")


@each_variant
@each_dtype
def test_stats_and_backward_with_them(rng, variant, dtype):
    p = make_problem(rng, variant, dtype)
    y, stats = p.forward(return_stats=True)
    p.check_forward(y)
    p.check_backward(p.backward(stats=stats))


@each_variant
@each_dtype
def test_in_place_and_out(rng, variant, dtype):
    p = make_problem(rng, variant, dtype)
    want, want_dx = p.forward(), p.backward()
    out = np.full_like(p.x, np.nan)
    assert p.forward(out=out) is out
    assert_same_bits((out,), (want,), "out")
    assert p.backward(out=out).dx is out
    assert_same_bits((out,), (want_dx.dx,), "out of backward")
    x = p.x.copy()
    Problem(p.method, x, p.dy, p.params, p.options).forward(out=x)
    assert_same_bits((x,), (want,), "in place")
    dy = p.dy.copy()
    Problem(p.method, p.x, dy, p.params, p.options).backward(out=dy)
    assert_same_bits((dy,), (want_dx.dx,), "dx in place of dy")


@row_methods
@each_dtype
@pytest.mark.parametrize("axis", [-1, 1], ids=str)
def test_residual_and_dh(rng, method, dtype, axis):
    variant = next(v for v in VARIANTS if v.method == method and v.options["axis"] == axis)
    p = make_problem(rng, variant, dtype)
    residual = rng.normal(0, 1, p.x.shape).astype(dtype)
    y, h = p.forward(residual=residual)
    exact = p.x.astype(np.float64) + residual.astype(np.float64)
    # The sum is taken in the compute type, a rounding of its own before the storage type's.
    slack = np.abs(exact).max() * (2.0**-53 if dtype == np.float64 else 2.0**-24)
    assert_close(h, exact, slack=slack, what="h", dtype=dtype)
    of_h = Problem(method, h, p.dy, p.params, p.options)
    of_h.check_forward(y)
    of_h.options = of_h.options | {"dh": rng.normal(0, 1, p.x.shape).astype(dtype)}
    want = of_h.backward(reference)
    bare = Problem(method, h, p.dy, p.params, p.options)
    slack = bare.slacks(bare.backward(reference))["dx"] * 2
    assert_close(of_h.backward().dx, want.dx, slack=slack, what="dx with dh", dtype=dtype)


@pytest.mark.parametrize("variant", DIVIDING, ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_magnitudes(rng, variant, scale):
    p = make_problem(rng, variant, shape=(3, 6, 9, 8))
    p.x = (p.x * np.float32(scale)).astype(np.float32)
    without_eps(p)
    p.check()


@pytest.mark.parametrize("variant", CENTRED, ids=str)
@pytest.mark.parametrize("mean", [1e3, 1e4])
def test_large_means(rng, variant, mean):
    make_problem(rng, variant, shape=(3, 6, 40, 30), mean=mean).check()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_spoil_only_their_pool(rng, bad):
    p = row_problem(rng, "layer_norm", np.float32, 5, 40)
    clean = p.forward()
    p.x[2, 7] = bad
    y = p.forward()
    assert np.isnan(y[2]).all()
    keep = [0, 1, 3, 4]
    assert_same_bits((y[keep],), (clean[keep],), "other rows")


@each_dtype
def test_a_pool_of_one_element_has_no_gradient(rng, dtype):
    x, dy = rng.normal(1, 30, (2, 6, 1)).astype(dtype)
    w = rng.normal(0, 100, 1).astype(dtype)
    for a, g in ((x, dy), (np.asfortranarray(x), np.asfortranarray(dy))):
        assert not nc.layer_norm_backward(g, a, w).dx.any()
        w6 = rng.normal(0, 100, 6).astype(dtype)
        grads = nc.group_norm_backward(np.repeat(g.T, 2, 0), np.repeat(a.T, 2, 0), 6, w6)
        assert not grads.dx.any()


@each_dtype
@pytest.mark.parametrize("n", [2, 4, 8, 64])
def test_equal_elements_with_equal_gradients_have_none(rng, dtype, n):
    # Sums of 2, 4 or 8 equal numbers are exact; of more of them where the numbers have few bits.
    value = rng.normal() if n <= 8 else 77.0
    x, dy = np.full((3, n), rng.normal(), dtype), np.full((3, n), value, dtype)
    assert not nc.layer_norm_backward(dy, x, np.ones(n, dtype)).dx.any()
    assert not nc.layer_norm_backward(dy.T, x.T, np.ones(n, dtype), axis=0).dx.any()


@each_dtype
@pytest.mark.parametrize("axis", [0, 1, 2, None])
def test_weight_norm(rng, dtype, axis):
    for shape in [(5, 7, 9), (3, 130), (4, 9, 3, 3), (2, 70000), (40, 3)]:
        axis = None if axis is None else min(axis, len(shape) - 1)
        check_weight_norm(*make_weight(rng, dtype, shape, axis=axis), axis=axis)


@each_dtype
def test_normalize(rng, dtype):
    for shape, axis in [((3, 20), -1), ((40, 3), 0), ((2, 5000), 1), ((3, 4, 5), (0, 2))]:
        x, dy, _ = make_weight(rng, dtype, shape)
        for order in (2, 1, np.inf):
            check_normalize(x, dy, axis=axis, ord=order)


@each_dtype
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_norm_and_moments(rng, dtype, layout):
    for shape, axis in [
        ((3, 20, 7), -1),
        ((40, 3, 2), 0),
        ((2, 3, 5000), (0, 2)),
        ((2, 6, 9), None),
    ]:
        x = make(rng, dtype, shape, layout)
        check_moments(x, axis=axis)
        for order in (2, 1, np.inf):
            check_norm(x, axis=axis, ord=order)
    for scale in (1e-300, 1e300):
        for order in (2, 1):
            check_norm(make(rng, np.float64, (3, 200)) * scale, axis=1, ord=order)
    assert np.isnan(nc.norm(np.array([1.0, np.nan], np.float32)))


def test_running_statistics_move_as_on_the_cpu(rng):
    shape = (4, 6, 5, 3)
    mean, var = np.zeros(6, np.float32), np.ones(6, np.float32)
    exact_mean, exact_var = np.zeros(6), np.ones(6)
    for _ in range(20):
        x = rng.normal(rng.normal(), 2, shape).astype(np.float32)
        nc.batch_norm(x, running_mean=mean, running_var=var, training=True)
        wide = x.astype(np.float64)
        exact_mean = 0.9 * exact_mean + 0.1 * wide.mean((0, 2, 3))
        exact_var = 0.9 * exact_var + 0.1 * wide.var((0, 2, 3), ddof=1)
    # 20 steps of a rounding each.
    np.testing.assert_allclose(mean, exact_mean, atol=20 * 2e-7)
    np.testing.assert_allclose(var, exact_var, rtol=20 * 2e-7)


def test_empty_input(rng):
    for shape in [(0, 6, 3), (2, 6, 0)]:
        y = nc.batch_norm(np.empty(shape, np.float32), training=True)
        assert y.shape == shape
    grads = nc.layer_norm_backward(
        np.empty((0, 4), np.float32), np.empty((0, 4), np.float32), np.ones(4, np.float32)
    )
    assert (grads.dweight == 0).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("shape", [(3, 4, 8), (2, 3, 40000)])
def test_a_gradient_that_needs_no_x_does_not_see_it(rng, shape, layout, masked):
    """Of mean-only batch norm, held in registers and in sweeps of all kinds."""
    x, dy = rng.normal(size=(2, *shape)).astype(np.float32)
    mask = rng.random((shape[0], shape[2])) < 0.7 if masked else np.ones((shape[0], shape[2]), bool)
    x[0, 0, 1], x[1, 1, 2] = np.nan, np.inf
    x, dy = arrange(x, layout), arrange(dy, layout)
    options = {"mask": mask} if masked else {}
    dx = nc.mean_only_batch_norm_backward(dy, x, training=True, **options).dx
    weights = mask[:, None] / mask.sum()
    want = dy - weights * dy.sum((0, 2), dtype=np.float64)[:, None]
    # The sums of thousands of float32 numbers, and the last rounding.
    np.testing.assert_allclose(dx, want, rtol=1e-5, atol=1e-6)


def test_equal_elements_are_their_mean(rng):
    """Also where threads work alone: a variance of exactly 0."""
    for dtype in (np.float32, np.float64):
        x = np.full((63, 3, 32, 4), -7.1, dtype)
        _, stats = nc.layer_norm(x, axis=(0, 2), eps=0.0, return_stats=True)
        assert (stats.mean == x[:1, :, :1]).all() and np.isinf(stats.rstd).all()
