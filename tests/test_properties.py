"""What must hold for any shape, strides and axes; hypothesis looks for the exception.

Hunts for geometry that no table lists (odd ranks, size-1 axes, permuted and negative strides), and
for broken invariants of the methods: pools that leak into each other, gradients not orthogonal to
what the norm removes, a row whose bits depend on its neighbours.
"""

from dataclasses import replace

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from support import (
    VARIANTS,
    Problem,
    Variant,
    assert_same_bits,
    bits,
    make_problem,
    without_eps,
)

import normcore as nc

PER_SAMPLE = [
    Variant("layer_norm", {"axis": -1}),
    Variant("layer_norm", {"axis": 1}),
    Variant("layer_norm", {"axis": (1, 2, 3)}),
    Variant("rms_norm", {"axis": -1}),
    Variant("rms_norm", {"axis": 1}),
    Variant("instance_norm", {}),
    Variant("group_norm", {"num_groups": 3}),
]
TRAINED = [v for v in VARIANTS if v.computed]
INVARIANT = [v for v in TRAINED if v.traits.divides and not v.traits.corrects]
per_sample = pytest.mark.parametrize("variant", PER_SAMPLE, ids=str)


@st.composite
def arrays(draw, min_ndim=1, min_size=1):
    """A float32 array with any memory order, steps and signs; its gaps hold NaN."""
    shape = draw(st.lists(st.integers(min_size, 6), min_size=min_ndim, max_size=5))
    order = draw(st.permutations(range(len(shape))))
    steps = draw(st.lists(st.sampled_from([1, 1, 2, 3, -1, -2]), min_size=len(shape)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    store = np.full([shape[i] * abs(steps[i]) for i in order], np.nan, np.float32)
    inner = store.transpose(np.argsort(order))
    inner = inner[tuple(slice(None, None, steps[i]) for i in range(len(shape)))]
    inner[...] = rng.normal(0.5, 2, shape)
    return inner, rng


def random_like(rng, x):
    return rng.normal(size=x.shape).astype(np.float32)


@given(arrays(), st.data())
def test_row_family_any_geometry(drawn, data):
    x, rng = drawn
    count = data.draw(st.integers(1, x.ndim))
    axis = tuple(data.draw(st.permutations(range(x.ndim)))[:count])
    axis = tuple(a - x.ndim if data.draw(st.booleans()) else a for a in axis)
    shape = [x.shape[a] for a in reference.sorted_axes(x.ndim, axis)]
    for method in ("layer_norm", "rms_norm"):
        names = ("weight", "bias") if method == "layer_norm" else ("weight",)
        params = {name: rng.normal(size=shape).astype(np.float32) for name in names}
        Problem(method, x, random_like(rng, x), params, {"axis": axis}).check()


@given(arrays(min_ndim=2), st.data())
def test_channel_family_any_geometry(drawn, data):
    x, rng = drawn
    axis = data.draw(st.integers(1, x.ndim - 1))
    channels = x.shape[axis]
    axis = data.draw(st.sampled_from([axis, axis - x.ndim]))
    groups = data.draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    params = {k: rng.normal(size=channels).astype(np.float32) for k in ("weight", "bias")}
    calls = [("group_norm", {"num_groups": groups})]
    if x.size > channels:  # else one value per channel, which is refused
        calls.append(("batch_norm", {}))
    if x.size > len(x) * channels:
        calls.append(("instance_norm", {}))
    for method, options in calls:
        if method == "group_norm" and x.size == len(x) * groups:
            continue  # a single value per group: xhat is 0, and torch refuses some of these
        options["channel_axis"] = axis
        Problem(method, x, random_like(rng, x), params, options).check()


@given(arrays(min_ndim=3, min_size=2))
def test_group_norm_of_one_and_of_all(drawn):
    x, _ = drawn
    channels = x.shape[1]
    every_axis = tuple(range(1, x.ndim))
    one = nc.group_norm(x, 1)
    np.testing.assert_allclose(one, nc.layer_norm(x, axis=every_axis), rtol=0, atol=4e-6)
    each = nc.group_norm(x, channels)
    np.testing.assert_allclose(each, nc.instance_norm(x), rtol=0, atol=4e-6)


@pytest.mark.parametrize("variant", INVARIANT, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_scale_and_shift_do_not_matter(rng, variant, layout):
    problem = make_problem(rng, variant, layout=layout)
    # Sixteenths up to 4: shifting and scaling them is exact in float32, so only the call can err.
    problem.x[...] = rng.integers(-64, 65, problem.x.shape) / 16
    without_eps(problem)
    want = problem.forward()
    changes = [(8.0, 0.0), (0.375, 0.0)] + [(1.0, 1000.0)] * variant.traits.centred
    for scale, shift in changes:
        problem.x = (problem.x * np.float32(scale) + np.float32(shift)).astype(np.float32)
        np.testing.assert_allclose(problem.forward(), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", INVARIANT, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradient_is_orthogonal_to_what_the_norm_removes(rng, variant, layout):
    # With eps = 0: sum dx = 0 (a shift) and sum dx*x = 0 (a scale), over the whole of x.
    problem = make_problem(rng, variant, layout=layout)
    without_eps(problem)
    x, dx = (a.astype(np.float64) for a in (problem.x, problem.backward().dx))
    limit = 1e-6 * np.sqrt(x.size) * np.abs(dx).max() * np.abs(x).max()
    assert abs((dx * x).sum()) <= limit
    if variant.traits.centred:
        assert abs(dx.sum()) <= limit
    assert np.abs(dx).max() > 0.01  # not by being zero


@per_sample
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_a_sample_does_not_depend_on_the_batch(rng, variant, layout, dtype):
    problem = make_problem(rng, variant, dtype, (67, 6, 5, 9), layout)
    y, dx = problem.forward(), problem.backward().dx
    for part in (slice(0, 1), slice(41, 42), slice(30, 67)):
        alone = Problem(
            problem.method, problem.x[part], problem.dy[part], problem.params, problem.options
        )
        what = f"rows {part}"
        assert_same_bits((alone.forward(), alone.backward().dx), (y[part], dx[part]), what)


@pytest.mark.parametrize("method", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("width", [7, 64, 1000, 4097])
def test_a_row_does_not_depend_on_the_number_of_rows(rng, method, width):
    x = rng.normal(size=(300, width)).astype(np.float32)
    y = getattr(nc, method)(x)
    for rows in (1, 2, 3, 100):
        assert bits(getattr(nc, method)(x[:rows])) == bits(y[:rows])
    assert bits(getattr(nc, method)(x[299])) == bits(y[299])


def pool_mask(problem, index):
    """Which elements share statistics with the one at `index`."""
    ones = np.ones(problem.x.shape)
    touched = ones.copy()
    touched[index] = 2
    # Not the drawn weight: where weight + weight_offset rounds to 0, nothing would move.
    params = {k: np.ones_like(v) if k == "weight" else v for k, v in problem.params.items()}
    # A lone 2 among ones moves the oracle's output in its own pool, and no bit elsewhere.
    y, moved = (replace(problem, x=x, params=params).forward(reference) for x in (ones, touched))
    return y != moved


@pytest.mark.parametrize("variant", TRAINED, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_spoil_only_their_own_pool(rng, variant, layout, poison, dtype):
    problem = make_problem(rng, variant, dtype, (3, 6, 5, 7), layout)
    index = (1, 3, 2, 4)
    inside = pool_mask(problem, index)
    y, dx = problem.forward(), problem.backward().dx
    problem.x[index] = poison
    spoilt_y, spoilt_dx = problem.forward(), problem.backward().dx
    assert_same_bits((spoilt_y[~inside],), (y[~inside],), "outside")
    if not variant.traits.mixes:
        assert_same_bits((spoilt_dx[~inside],), (dx[~inside],), "outside")
    assert np.isnan(spoilt_y[index].astype(np.float64))
    if np.isnan(poison):
        assert np.isnan(spoilt_y[inside].astype(np.float64)).all()


@pytest.mark.parametrize("method", ["batch_norm", "instance_norm"])
def test_with_given_statistics_nan_spoils_only_itself(rng, method):
    variant = next(v for v in VARIANTS if v.method == method and v not in TRAINED)
    problem = make_problem(rng, variant)
    y = problem.forward()
    problem.x[0, 1, 2, 3] = np.nan
    spoilt = problem.forward()
    assert np.isnan(spoilt[0, 1, 2, 3])
    spoilt[0, 1, 2, 3] = y[0, 1, 2, 3]
    assert bits(spoilt) == bits(y)
