"""The ends of the range of sizes: more than 2^31 elements, one element, none.

Hunts for 32-bit indices, counts and byte offsets, and for division by a count of zero. The tests
marked `large` touch 4.3 GB (float16, in place); offsets beyond 2^31 elements are also tried for
nothing, by strides over memory that is reserved but never touched.
"""

import mmap
import sys

import numpy as np
import pytest
import reference
from support import DTYPES, VARIANTS, assert_close, bits, make_problem, stat_dtype

import normcore as nc

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
BEYOND = 2**31


def sparse(elements, dtype):
    """Memory that exists only where it is touched."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reserves memory without having it, by a flag of Linux")
    map_noreserve = 0x4000  # mmap names it only since Python 3.13
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | map_noreserve
    try:
        return np.frombuffer(mmap.mmap(-1, elements * dtype.itemsize, flags=flags), dtype)
    except OSError as error:
        pytest.skip(f"this system reserves no more address space than memory: {error}")


@each_variant
@pytest.mark.parametrize("axis", [0, 1, 3])
def test_strides_beyond_32_bits(rng, variant, axis):
    problem = make_problem(rng, variant, np.float16, (3, 6, 5, 7))
    want = problem.forward(), *problem.backward()
    shape = list(problem.x.shape)
    strides = [s if i != axis else BEYOND for i, s in enumerate((1050, 175, 35, 5))]
    reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    for name in ("x", "dy"):
        far = np.lib.stride_tricks.as_strided(
            sparse(reach, np.dtype(np.float16)), shape, [2 * s for s in strides]
        )
        far[...] = getattr(problem, name)
        setattr(problem, name, far)
    # Another layout may sum in another order, so not bit by bit; float16 hides a few roundings.
    problem.check()
    out = problem.forward(out=problem.x)
    np.testing.assert_allclose(out.astype(float), want[0].astype(float), atol=4e-3, rtol=2e-3)


def fill(x, rng):
    """Cheap: one random block, over and over; the tail gets numbers of its own."""
    block = rng.normal(2, 1, 2**16).astype(x.dtype)
    whole = x.size // block.size * block.size
    x[:whole].reshape(-1, block.size)[...] = block
    x[whole:] = rng.normal(2, 1, x.size - whole).astype(x.dtype)
    return block


@pytest.mark.large
def test_many_rows(rng):
    width = 999
    rows = BEYOND // width + 3
    flat = np.empty(rows * width, np.float16)
    fill(flat, rng)
    x = flat.reshape(rows, width)
    picked = [0, 1, rows // 2, *range(rows - 4, rows)]
    want = nc.layer_norm(x[picked])
    assert nc.layer_norm(x, out=x) is x
    assert bits(x[picked]) == bits(want)


@pytest.mark.large
@pytest.mark.parametrize("shape", [(1, 1, BEYOND + 77), (3, 2, BEYOND // 6 + 5)], ids=str)
def test_long_pools(rng, shape):
    flat = np.empty(np.prod(shape), np.float16)
    block = fill(flat, rng).astype(np.float64)
    x = flat.reshape(shape)
    sample = x[..., -1000:].astype(np.float64)
    assert nc.batch_norm(x, training=True, out=x) is x
    # All blocks are equal, and the rest is too little to show in float16.
    want = (sample - block.mean()) / block.std()
    np.testing.assert_allclose(x[..., -1000:].astype(np.float64), want, atol=5e-3)


@pytest.mark.parametrize("shape", [(32, 600_000), (1030, 9_000)], ids=str)
def test_many_parameters(rng, shape):
    """Of long rows and of many: the tasks that sum them leave the same in every call."""
    dy, x = (rng.standard_normal(shape, dtype=np.float32).astype(np.float16) for _ in range(2))
    weight = rng.standard_normal(shape[1]).astype(np.float32)
    first = nc.layer_norm_backward(dy, x, weight)
    for _ in range(3):
        again = nc.layer_norm_backward(dy, x, weight)
        assert [bits(a) for a in again] == [bits(a) for a in first]
    # Of a few columns, in double.
    columns = slice(100, 110)
    wide = x.astype(np.float64)
    mean, deviation = wide.mean(1, keepdims=True), np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    terms = dy[:, columns].astype(np.float64) * ((wide[:, columns] - mean) / deviation)
    np.testing.assert_allclose(first.dweight[columns], terms.sum(0), rtol=0, atol=2e-4)


EMPTY = [(0,), (0, 3), (3, 0), (0, 4, 5), (2, 4, 0), (2, 0, 5), (0, 0, 0), (2, 4, 0, 3)]


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_empty(shape, dtype):
    x = np.empty(shape, dtype)
    for axis in [-1, tuple(range(len(shape)))]:
        params = np.ones([shape[a] for a in reference.sorted_axes(len(shape), axis)], np.float32)
        for method in ("layer_norm", "rms_norm"):
            y = getattr(nc, method)(x, params, axis=axis)
            assert y.shape == shape and y.dtype == dtype
            dx, dweight = getattr(nc, method + "_backward")(x, x, params, axis=axis)[:2]
            assert dx.shape == shape and dx.dtype == dtype
            # A sum over nothing is zero, not what was in memory before.
            assert dweight.shape == params.shape and not dweight.any()


@pytest.mark.parametrize("shape", EMPTY[1:], ids=str)
def test_empty_channel_family(shape):
    x = np.empty(shape, np.float32)
    weight = np.ones(shape[1], np.float32)
    calls = [("batch_norm", {"training": True}), ("batch_norm", {"training": False})]
    calls += [("instance_norm", {})] * (x.ndim > 2) + [("group_norm", {"num_groups": 1})]
    for method, options in calls:
        out = np.empty(shape, np.float32)
        y, stats = getattr(nc, method)(x, weight=weight, **options, out=out, return_stats=True)
        assert y is out and stats is not None
        grads = getattr(nc, method + "_backward")(x, x, weight=weight, **options)
        assert grads.dx.shape == shape
        assert grads.dweight.shape == weight.shape and not grads.dweight.any()
        assert grads.dbias is None


def test_size_one(dtype):
    x = np.full((1, 1, 1), 3, dtype)
    bias = np.array([0.5], dtype)
    assert nc.layer_norm(x, bias=bias).item() == 0.5
    assert nc.layer_norm(x[0, 0]).shape == (1,)
    one = float(nc.rms_norm(x).item())
    assert one == pytest.approx(1.0, abs=1e-6)
    stat = stat_dtype(dtype)
    given = {"running_mean": np.array([1.0], stat), "running_var": np.array([4.0], stat)}
    y = nc.batch_norm(x, bias=bias, **given, eps=0.0)
    assert_close(y, np.full((1, 1, 1), 1.5), slack=1e-7, what="y", dtype=dtype)
    # J(dy) = 0; what may be left is a rounding of rstd * dy = 316 * 3.
    dx = nc.layer_norm_backward(x, x).dx
    assert abs(float(dx.item())) <= 1000 * np.finfo(stat).eps
