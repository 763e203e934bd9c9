"""Half types bit by bit: all 65536 patterns of float16 and bfloat16, in every instruction set.

Hunts for conversions that truncate instead of rounding to nearest even, flush subnormals, lose a
NaN (a payload in the low bits must not become Inf), or overflow too early or too late; and for
vector tails, which are other code than the middle of an array.
"""

import numpy as np
import pytest
from support import DTYPES, bfloat16, bits

import normcore as nc

HALVES = [np.dtype(np.float16), bfloat16]
each_half = pytest.mark.parametrize("half", HALVES, ids=["float16", "bfloat16"])
PATTERNS = np.arange(65536, dtype=np.uint16)


def convert(src, dtype):
    """nc._core.convert into an array with guard elements around it."""
    guard = 64
    store = np.full(src.size + 2 * guard, 77.0).astype(dtype)
    dst = store[guard:-guard]
    nc._core.convert(src, dst)
    assert (store[:guard] == 77).all() and (store[src.size + guard :] == 77).all()
    return dst


def assert_same_numbers(got, want):
    """Equal bit by bit, but that any NaN is as good as any other."""
    unsigned = np.uint32 if got.dtype.itemsize == 4 else np.uint16
    with np.errstate(invalid="ignore"):  # of a signalling NaN, where the CPU tells
        nan = np.isnan(want.astype(np.float32))
        np.testing.assert_array_equal(np.isnan(got.astype(np.float32)), nan)
    np.testing.assert_array_equal(got.view(unsigned)[~nan], want.view(unsigned)[~nan])


@each_half
def test_every_pattern_to_float32(half, isa):
    src = PATTERNS.view(half)
    got = convert(src, np.float32)
    with np.errstate(invalid="ignore"):
        want = src.astype(np.float32)
    assert_same_numbers(got, want)
    if half == np.float16:  # bfloat16 only gets zeros appended, which keeps every bit of it
        quiet = got.view(np.uint32)[np.isnan(got)] & 0x00400000
        assert quiet.all(), "a signalling NaN must come out quiet"


@each_half
def test_every_pattern_there_and_back(half, isa):
    src = PATTERNS.view(half)
    assert_same_numbers(convert(convert(src, np.float32), half), src)


def hard_numbers(half):
    """Each half number, each midpoint of two neighbours, and float32's next numbers to both."""
    positive = PATTERNS[: 0x7C00 if half == np.float16 else 0x7F80].view(half).astype(np.float64)
    # The step after the largest number is as large as the one before it: where overflow begins.
    after = np.append(positive[1:], 2 * positive[-1] - positive[-2])
    exact = np.concatenate([positive, (positive + after) / 2, [after[-1], 1e38, 3e38]])
    with np.errstate(over="ignore"):
        exact = exact.astype(np.float32)
    near = exact.view(np.uint32)[:, None].astype(np.int64) + np.array([-1, 0, 1])
    near = near[near >= 0].astype(np.uint32)
    return np.concatenate([near, near | 0x80000000]).view(np.float32)


@each_half
def test_midpoints_round_to_even(half, isa):
    src = hard_numbers(half)
    with np.errstate(over="ignore", invalid="ignore"):
        want = src.astype(half)
    assert_same_numbers(convert(src, half), want)


@each_half
def test_random_float32_patterns(rng, half, isa):
    src = rng.integers(0, 2**32, 2**20, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        want = src.astype(half)
    assert_same_numbers(convert(src, half), want)


@each_half
def test_every_nan_payload_bit_stays_nan(half, isa):
    payload = np.uint32(1) << np.arange(23, dtype=np.uint32)
    src = np.concatenate([0x7F800000 | payload, 0xFF800000 | payload, [0x7F800000, 0xFF800000]])
    got = convert(src.astype(np.uint32).view(np.float32), half).astype(np.float32)
    assert np.isnan(got[:-2]).all()
    assert (got[:-2].view(np.uint32) & 0x00400000).all(), "not quiet"
    np.testing.assert_array_equal(got[-2:], [np.inf, -np.inf])


@each_half
def test_edges_of_float16_and_bfloat16(half, isa):
    if half == np.float16:
        # 65504 is the largest; from the midpoint to 65536 on it is Inf. 2^-25 is half a subnormal.
        src, want = [65519.99, 65520, 2.0**-25, 2.0**-25 * 1.0001], [65504.0, np.inf, 0.0, 2.0**-24]
    else:
        largest = float(np.array(0x7F7F, np.uint16).view(bfloat16))
        limit = np.array(0x7F7F8000, np.uint32).view(np.float32)
        src = [np.nextafter(limit, np.float32(0)), limit, 2.0**-134, 2.0**-134 * 1.0001]
        want = [largest, np.inf, 0.0, 2.0**-133]
    src = np.array(src + [-s for s in src], np.float32)
    want = np.array(want + [-w for w in want], np.float64)
    got = convert(src, half).astype(np.float64)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(want))


@each_half
def test_every_length_and_offset(rng, half, isa):
    store = rng.normal(size=200).astype(np.float32)
    halves = store.astype(half)
    for start in range(5):
        for size in range(71):
            part = slice(start, start + size)
            assert bits(convert(store[part], half)) == bits(halves[part])
            assert bits(convert(halves[part], np.float32)) == bits(halves[part].astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@np.errstate(invalid="ignore")  # NumPy's casts of signalling NaNs
def test_every_pattern_through_a_norm(dtype, layout, isa):
    # With mean 0, variance 1 and eps 0 batch norm changes nothing: what goes in must come out.
    if dtype in HALVES:
        x = PATTERNS.view(dtype).reshape(2, 8, 64, 64)
    else:
        x = PATTERNS.view(bfloat16).astype(dtype).reshape(2, 8, 64, 64)
    if layout == "channels_last":
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    stat = np.float64 if dtype == np.float64 else np.float32
    buffers = {"running_mean": np.zeros(8, stat), "running_var": np.ones(8, stat)}
    y = nc.batch_norm(x, **buffers, eps=0.0)
    np.testing.assert_array_equal(y.astype(np.float64), x.astype(np.float64))
