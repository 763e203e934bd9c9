"""Top-k batch norm finds its threshold among hard data.

Hunts for a k-th largest that is missed: it is looked for among the elements that reach the k-th
largest of the peaks of parts of a channel, by bisection where those are too many or the parts too
few, and a channel of one kind must not disturb its neighbours of another.
"""

import numpy as np
import pytest
import reference
from ml_dtypes import finfo

import normcore as nc


def mirrored(rng, half):
    """Small integers and their negatives: their mean is 0 to the last bit, and ties stay ties."""
    return rng.permutation(np.concatenate([half, -half]).astype(float))


KINDS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "constant": lambda rng, n: np.zeros(n),
    "few nonzero": lambda rng, n: mirrored(rng, np.arange(n // 2) * (np.arange(n // 2) < 3)),
    "many ties": lambda rng, n: mirrored(rng, rng.integers(1, 4, n // 2)),
    "one value": lambda rng, n: mirrored(rng, np.ones(n // 2)),
    "wide": lambda rng, n: 10.0 ** rng.uniform(-15, 15, n),
    "one outlier": lambda rng, n: np.append(1e3, rng.uniform(0, 1e-3, n - 1)),
    "subnormal": lambda rng, n: 1e-44 * mirrored(rng, rng.integers(0, 50, n // 2)),
    "heavy tail": lambda rng, n: rng.standard_cauchy(n),
    "sorted": lambda rng, n: np.sort(rng.normal(size=n)),
}
# Elements whose distances from the mean differ by less than its rounding: which of them are among
# the largest, or on which side of the mean, is not for float32 to say.
AT_A_KINK = {"few nonzero", "wide", "one outlier"}


def check_hard_channels(rng, shape, axis, k, dtype=np.float32, every=1):
    """Channels of all kinds in one array, of which the innermost axis has `every` such element."""
    n = int(np.prod(shape))
    channels = [make(rng, n).reshape(shape) for make in KINDS.values()]
    exact = np.concatenate(channels, axis)
    x = np.repeat(exact, every, -1).astype(dtype)[..., ::every]
    dy = rng.normal(size=x.shape).astype(dtype)
    y, stats = nc.topk_batch_norm(
        x, k=k, training=True, channel_axis=axis, eps=1e-30, return_stats=True
    )
    dx = nc.topk_batch_norm_backward(
        dy, x, k=k, training=True, channel_axis=axis, eps=1e-30, stats=stats
    ).dx
    wide, options = x.astype(float), {"training": True, "channel_axis": axis, "eps": 1e-30}
    want = reference.topk_batch_norm(wide, k=k, **options)
    want_dx = reference.topk_batch_norm_backward(dy.astype(float), wide, k=k, **options)[0]
    rounding = 0 if np.dtype(dtype).itemsize > 2 else float(finfo(dtype).eps)
    for i, kind in enumerate(KINDS):
        # A sum of at most 45 magnitudes, then single roundings; and that of the mean.
        got, right = np.moveaxis(y, axis, 0)[i].astype(float), np.moveaxis(want, axis, 0)[i]
        atol = 1e-6 * np.abs(right).max()
        rtol = 2e-6 + rounding
        np.testing.assert_allclose(got, right, rtol=rtol, atol=atol, err_msg=f"y of {kind}")
        if kind in AT_A_KINK:
            continue
        # dx is a difference of terms of the size of dy / scale, summed over n elements.
        got, right = np.moveaxis(dx, axis, 0)[i].astype(float), np.moveaxis(want_dx, axis, 0)[i]
        atol = 2e-5 * np.abs(right).max()
        np.testing.assert_allclose(got, right, rtol=rounding, atol=atol, err_msg=f"dx of {kind}")


@pytest.mark.parametrize("k", [2, 7, 45])
@pytest.mark.parametrize(
    "shape, axis",
    [((40, 1, 36), 1), ((4, 1, 9000), 1), ((2050, 1), 1), ((6, 5, 122, 1), -1), ((2, 1, 3), 1)],
    ids=str,
)
def test_hard_channels(rng, shape, axis, k, isa):
    check_hard_channels(rng, shape, axis, k)


def test_spoilt_channel_leaves_others_alone(rng, isa):
    x = rng.normal(size=(40, 4, 50)).astype(np.float32)
    y = nc.topk_batch_norm(x, training=True)
    x[3, 1, 7], x[5, 2, 9] = np.nan, np.inf
    spoilt = nc.topk_batch_norm(x, training=True)
    assert np.isnan(spoilt[:, 1]).all()
    assert not np.isfinite(spoilt[:, 2]).any()
    np.testing.assert_array_equal(spoilt[:, [0, 3]], y[:, [0, 3]])
