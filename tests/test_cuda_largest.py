"""Top-k batch norm on a device finds its threshold among hard data.

Hunts for a k-th largest that is missed: among the lists of what lies above the k-th largest of the
peaks of the pieces, where lists overflow, where a pool has fewer pieces than k, and in all layouts.
A piece has 4096 elements of float32 at most, 2048 of float64 and 8192 of 16 bits (twice as many
forward); of a tile 16 rows or more by its width, and 256 elements where strides are others.
"""

import numpy as np
import pytest
from both_devices import device as device  # of each test here
from support import DTYPES, bfloat16
from test_largest import KINDS, check_hard_channels

import normcore as nc


@pytest.mark.parametrize("k", [2, 7, 45])
@pytest.mark.parametrize(
    "shape, axis",
    [
        ((40, 1, 36), 1),
        ((4, 1, 9000), 1),  # several pieces
        ((2050, 1), 1),
        ((3, 5, 122, 1), -1),  # tiles
        ((9000, 1), -1),
        ((2, 1, 3), 1),
    ],
    ids=str,
)
def test_hard_channels(rng, shape, axis, k):
    check_hard_channels(rng, shape, axis, k)


@pytest.mark.parametrize("dtype", [np.float64, bfloat16], ids=str)
@pytest.mark.parametrize("shape, axis", [((40, 1, 36), 1), ((2, 1, 9000), 1), ((4000, 1), -1)])
def test_other_types(rng, dtype, shape, axis):
    for k in (2, 10):
        check_hard_channels(rng, shape, axis, k, dtype)


@pytest.mark.parametrize("k", [3, 45])
def test_any_strides(rng, k):
    check_hard_channels(rng, (20, 1, 600), 1, k, every=3)


@pytest.mark.parametrize("k", [11, 12, 13, 35, 36, 37, 10**6])
def test_as_many_as_there_are_pieces_or_elements(rng, k):
    # Twelve pieces of three; all of 36 elements, and more than there are.
    check_hard_channels(rng, (12, 1, 3), 1, k)


@pytest.mark.parametrize("k", [2, 10, 50])
@pytest.mark.parametrize("layout", ["rows", "tiles"])
def test_repeats_its_bits(rng, k, layout):
    x = np.stack([make(rng, 40 * 300).reshape(40, 300) for make in KINDS.values()], 1)
    x = x.astype(np.float32)
    if layout == "tiles":
        x = np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)
    first = nc.topk_batch_norm(x, k=k, training=True)
    for _ in range(2):
        np.testing.assert_array_equal(nc.topk_batch_norm(x, k=k, training=True), first)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("k", [1, 10, 50])
@pytest.mark.parametrize("last", [False, True])
def test_spoilt_channel_leaves_others_alone(rng, dtype, k, last):
    x = rng.normal(size=(40, 4, 50)).astype(dtype)
    if last:
        x = np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)
    y = nc.topk_batch_norm(x, k=k, training=True)
    x[3, 1, 7], x[5, 2, 9] = np.nan, np.inf
    spoilt = nc.topk_batch_norm(x, k=k, training=True).astype(float)
    assert np.isnan(spoilt[:, 1]).all()
    assert not np.isfinite(spoilt[:, 2]).any()
    np.testing.assert_array_equal(spoilt[:, [0, 3]], y[:, [0, 3]].astype(float))
