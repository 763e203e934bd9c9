"""Layer and RMS norm over any axes, with a fused residual, dh and weight_offset.

Hunts for axes that are mapped to the wrong weight element (unsorted, negative, not trailing, split
by a kept axis), for a residual whose h is not what was normalized, and for dh added twice, not at
all, or after the rounding.
"""

import numpy as np
import pytest
import reference
from support import (
    LAYOUTS,
    Variant,
    arrange,
    assert_close,
    assert_same_bits,
    bfloat16,
    bits,
    make_problem,
)

import normcore as nc

METHODS = ("layer_norm", "rms_norm")
AXES = (0, 1, -2, (-1,), (2, 3), (1, 2, 3), (-1, -2), (3, 1), (0, 2), (2, 0, 1), (0, 1, 2, 3))

each_method = pytest.mark.parametrize("method", METHODS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@each_method
@each_layout
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_any_axes(rng, method, axis, layout):
    variant = Variant(method, {"axis": axis})
    make_problem(rng, variant, np.float32, (4, 3, 5, 6), layout).check()


@each_method
@pytest.mark.parametrize("axis", [1, (1, 3), (0, 2)], ids=str)
def test_any_axes_in_every_dtype_and_isa(rng, method, axis, dtype, isa):
    make_problem(rng, Variant(method, {"axis": axis}), dtype, (3, 7, 4, 33)).check()


@each_method
def test_order_and_sign_of_axes_do_not_matter(rng, method):
    problem = make_problem(rng, Variant(method, {"axis": (1, 3)}))
    want = problem.forward(), *problem.backward()
    for axis in ((3, 1), (-1, 1), (-3, -1), (1, -1)):
        problem.options["axis"] = axis
        assert_same_bits((problem.forward(), *problem.backward()), want, f"axis={axis}")


@each_method
def test_channel_axis_of_nchw_equals_the_permuted_call(rng, method):
    # What users do without an `axis`: permute to NHWC, normalize the last axis, permute back.
    problem = make_problem(rng, Variant(method, {"axis": 1}), shape=(2, 12, 7, 5))
    permuted = make_problem(rng, Variant(method, {"axis": -1}))
    permuted.x = np.ascontiguousarray(np.moveaxis(problem.x, 1, -1))
    permuted.params = problem.params
    want = np.moveaxis(permuted.forward(), -1, 1)
    # The two calls sum in another order, and each rounds a scale, a product and a weighted product:
    # up to 2 ulp apiece.
    slack = 1e-6 + 4 * np.finfo(np.float32).eps * np.abs(want)
    assert_close(problem.forward(), want, slack=slack, what="axis=1")


@each_method
@pytest.mark.parametrize("offset", [1.0, -0.5])
def test_weight_offset_is_added_in_the_compute_type(rng, method, offset):
    # 1 + w rounded to bfloat16 would lose the weight: |w| is about an ulp of 1 here.
    if method == "layer_norm":
        with pytest.raises(TypeError):
            nc.layer_norm(np.ones((2, 3), np.float32), weight_offset=offset)
        return
    problem = make_problem(rng, Variant(method, {"axis": -1, "weight_offset": offset}), bfloat16)
    problem.params["weight"] = (problem.params["weight"].astype(np.float32) / 256).astype(bfloat16)
    problem.check()


@each_method
def test_omitted_weight_is_one_whatever_the_offset(rng, method):
    problem = make_problem(rng, Variant(method, {"axis": -1}), params=())
    want = bits(problem.forward())
    if method == "rms_norm":
        problem.options["weight_offset"] = 1.0
    assert bits(problem.forward()) == want


@each_method
@pytest.mark.parametrize("axis", [-1, 1, (2, 3)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_residual(rng, method, axis, layout, dtype):
    problem = make_problem(rng, Variant(method, {"axis": axis}), dtype, layout=layout)
    residual = arrange(rng.normal(0, 3, problem.x.shape).astype(dtype), "reversed")
    y, h = problem.forward(residual=residual)
    exact = reference.wide(problem.x) + reference.wide(residual)
    assert_close(h, exact, slack=1e-7 * np.abs(exact).max(), what="h", dtype=dtype)
    assert h.strides == np.empty_like(problem.x).strides

    # h, as rounded and returned, is what was normalized: backward gets only that.
    y_stats, h_stats, stats = problem.forward(residual=residual, return_stats=True)
    assert_same_bits((y_stats, h_stats), (y, h), "with return_stats")
    problem.x = h
    problem.check_forward(y)
    assert_same_bits(problem.backward(stats=stats), problem.backward(), "stats of a residual call")


@each_method
def test_residual_may_be_x_and_out_may_be_x(rng, method, dtype):
    problem = make_problem(rng, Variant(method, {"axis": -1}), dtype)
    want = problem.forward(residual=problem.x)
    doubled = problem.x.astype(np.float64) * 2
    np.testing.assert_array_equal(want[1].astype(np.float64), doubled)
    residual = problem.x.copy()
    got = problem.forward(residual=residual, out=problem.x)
    assert got[0] is problem.x
    assert_same_bits(got, want, "out=x")


@each_method
@each_layout
def test_dh(rng, method, layout, dtype):
    # dx = J(w*dy) + dh with one rounding: dh of the size of an ulp of dx must still count.
    problem = make_problem(rng, Variant(method, {"axis": -1}), dtype, layout=layout)
    for scale in (1.0, 1e-4):
        dh = rng.normal(0, scale, problem.x.shape).astype(dtype)
        got = problem.backward(dh=arrange(dh, "reversed"))
        want = problem.backward(reference, dh=dh)
        slack = problem.slacks()["dx"] + 1e-7 * scale * 8 * (dtype != np.float64)
        assert_close(got.dx, want.dx, slack=slack, what="dx with dh", dtype=dtype)
        # The parameters do not see dh (their sums may be cut otherwise for another layout).
        for a, b in zip(got[1:], problem.backward()[1:], strict=True):
            np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=1e-2, atol=1e-2)


@each_method
def test_dh_may_be_broadcast(rng, method):
    problem = make_problem(rng, Variant(method, {"axis": -1}))
    dh = np.broadcast_to(np.float32(0.25), problem.x.shape)
    want = problem.backward(reference, dh=dh).dx
    got = problem.backward(dh=dh).dx
    assert_close(got, want, slack=problem.slacks()["dx"] + 1e-7, what="dx with broadcast dh")


@pytest.mark.parametrize("width", [1, 2, 3, 8, 63, 64, 65, 768, 769])
@pytest.mark.parametrize("rows", [1, 2, 5, 130])
def test_parameter_gradients_over_few_and_many_rows(rng, width, rows):
    for method in METHODS:
        variant = Variant(method, {"axis": -1})
        make_problem(rng, variant, np.float32, (rows, width)).check()
        make_problem(rng, variant, bfloat16, (rows, width), param_dtype=np.float32).check()


@pytest.mark.parametrize("width", [3, 33, 768])
@pytest.mark.parametrize("rows", [100, 10007])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_parameter_gradients_of_a_constant_dy(rng, rows, width, layout):
    # All terms have one sign and one size (loss = y.sum()): a long run of float32 additions would
    # lose rows * 1e-8 of the sum. 20 roundings, 2.4e-6, are what runs of some hundred rows leave.
    x = arrange(rng.normal(size=(rows, width)).astype(np.float32), layout)
    dy = np.broadcast_to(np.float32(0.9117), x.shape)
    weight = np.ones(width, np.float32)
    dbias = nc.layer_norm_backward(dy, x, weight, weight).dbias
    np.testing.assert_allclose(dbias, rows * np.float64(dy[0, 0]), rtol=2.4e-6)
