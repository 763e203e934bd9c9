"""``axis=`` in all that a user may give for it: integers, sequences, index arrays, None."""

import numpy as np
import pytest
from support import bits

import normcore as nc

FUNCTIONS = {
    "layer_norm": lambda x, axis: nc.layer_norm(x, axis=axis),
    "layer_norm with statistics": lambda x, axis: nc.layer_norm(x, axis=axis, return_stats=True)[1],
    "layer_norm_backward": lambda x, axis: nc.layer_norm_backward(x, x**2, axis=axis).dx,
    "rms_norm": lambda x, axis: nc.rms_norm(x, axis=axis),
    "rms_norm_backward": lambda x, axis: nc.rms_norm_backward(x, x**2, axis=axis).dx,
    "normalize": lambda x, axis: nc.normalize(x, axis=axis),
    "normalize_backward": lambda x, axis: nc.normalize_backward(x, x**2, axis=axis),
    "moments": lambda x, axis: nc.moments(x, axis=axis),
    "norm": lambda x, axis: nc.norm(x, axis=axis),
}
every = pytest.mark.parametrize("name", FUNCTIONS)


def all_bits(result):
    parts = result if isinstance(result, tuple) else (result,)
    return [(np.shape(part), bits(np.asarray(part))) for part in parts]


@every
@pytest.mark.parametrize(
    ("given", "same"),
    [
        (range(2), (0, 1)),
        (range(2, -1, -1), (0, 1, 2)),
        ([0, 2], (0, 2)),
        (np.array([1, 0]), (0, 1)),
        (np.array([-1], np.int8), (2,)),
        (np.array([0, 2], np.uint16), (0, 2)),
        ((np.int64(1),), (1,)),
        (np.array(1), 1),
        (np.int32(-2), -2),
        (None, (0, 1, 2)),
    ],
)
def test_as_the_tuple(rng, name, given, same):
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    call = FUNCTIONS[name]
    assert all_bits(call(x, given)) == all_bits(call(x, same))


@every
@pytest.mark.parametrize(
    ("axis", "error"),
    [
        ("1", TypeError),
        ("01", TypeError),
        (b"\x00", TypeError),
        (1.0, TypeError),
        (True, TypeError),
        ([True], TypeError),
        ([1.0], TypeError),
        (np.array([0.0, 1.0]), TypeError),
        (np.array([True, False]), TypeError),
        (np.array([[0, 1]]), TypeError),
        ({0, 1}, TypeError),
        ([None], TypeError),
        (range(100), ValueError),
        (range(4), ValueError),
        ([0, 0], ValueError),
        ([0, -3], ValueError),
    ],
)
def test_what_is_no_axis(rng, name, axis, error):
    with pytest.raises(error, match="axis"):
        FUNCTIONS[name](rng.normal(size=(3, 4, 5)), axis)


@pytest.mark.parametrize("function", [nc.layer_norm, nc.rms_norm])
def test_parameters_over_all_axes(rng, function):
    x, weight = rng.normal(size=(2, 3, 4))
    want = function(x.ravel(), weight.ravel()).reshape(x.shape)
    np.testing.assert_allclose(function(x, weight, axis=None), want, rtol=1e-13)


def test_sum_of_moments(rng):
    x = rng.normal(1e3, 1, (9, 4))
    parts = [nc.moments(x[a:b], axis=0) for a, b in ((0, 2), (2, 3), (3, 9))]
    assert all_bits(sum(parts)) == all_bits(nc.Moments.merge(parts))
    assert all_bits(sum(parts[:1])) == all_bits(parts[0])
    for wrong in (1, None, "a"):
        with pytest.raises(TypeError):
            wrong + parts[0]
