"""Statistics that stay right at any mean and any magnitude, alike in every layout.

Hunts for E[x^2] - E[x]^2 in any path (a large mean against a small spread), for squares that
overflow or underflow, for a mean rounded to one float, and for constant input that is not zero
after its mean is taken away. The oracle gets the very float32 numbers, so errors are only ours.
"""

import numpy as np
import pytest
import reference
from support import (
    CENTRED,
    COMPUTED,
    DIVIDING,
    LAYOUTS,
    arrange,
    bfloat16,
    make_problem,
    without_eps,
)

import normcore as nc

each_layout = pytest.mark.parametrize("layout", [*LAYOUTS, "channel_axis=-1"])


def assert_relative(problem, got, want, limit, what, slack=0.0):
    """`slack`: an absolute error that sums which cancel may have."""
    error = float((np.abs(reference.wide(got) - want).max() - slack) / np.abs(want).max())
    assert error <= limit, f"{problem.method} {what}: relative error {error:.3g} > {limit:.3g}"


@pytest.mark.parametrize("variant", CENTRED, ids=str)
@each_layout
@pytest.mark.parametrize("mean", [0, 10, 1e2, 1e3, 1e4, 1e5, -1e6])
def test_large_mean(rng, variant, layout, mean):
    problem = make_problem(rng, variant, np.float32, (4, 6, 13, 11), layout, mean=mean)
    # About ten roundings of float32 (6e-8) on numbers up to 5 of the largest: 1e-6 of the peak.
    want = problem.forward(reference)
    assert_relative(problem, problem.forward(), want, 1e-6, "y")
    got, exact = problem.backward(), problem.backward(reference)
    slacks = problem.slacks(exact)
    for name in exact._fields:
        slack = 0.0 if name in ("dx", "dweight", "dbias") else slacks[name]
        assert_relative(problem, getattr(got, name), getattr(exact, name), 4e-6, name, slack)


@pytest.mark.parametrize("variant", CENTRED, ids=str)
@pytest.mark.parametrize("mean", [1e3, 1e6])
def test_large_mean_in_every_isa_and_long_rows(rng, variant, mean, isa):
    for shape in ((2, 3, 5000), (600, 6, 2), (70, 3, 7)):
        problem = make_problem(rng, variant, np.float32, shape, mean=mean)
        problem.check()


@pytest.mark.parametrize("variant", CENTRED, ids=str)
@pytest.mark.parametrize("mean", [1e6, 1e9])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_mean_float64(rng, variant, layout, mean):
    # The mean is kept in float64 and off by a few of its roundings: relative to the standard
    # deviation (about 1) that is mean * 1e-16, while E[x^2] - E[x]^2 would be off by its square.
    problem = make_problem(rng, variant, np.float64, (4, 6, 13, 11), layout, mean=mean)
    limit = 20 * np.finfo(np.float64).eps * mean
    assert_relative(problem, problem.forward(), problem.forward(reference), limit, "y")
    dx = problem.backward().dx
    assert_relative(problem, dx, problem.backward(reference).dx, limit, "dx")


@pytest.mark.parametrize("variant", CENTRED, ids=str)
@pytest.mark.parametrize("half", [np.float16, bfloat16], ids=str)
def test_large_mean_half_types(rng, variant, half):
    # The spread is an ulp or two of the mean: rows hold two to five different values.
    mean = 1000 if half == np.float16 else 200
    make_problem(rng, variant, half, (3, 6, 9, 7), mean=mean).check()


@pytest.mark.parametrize("variant", DIVIDING, ids=str)
@each_layout
@pytest.mark.parametrize("exponent", [-100, -60, -20, 20, 60, 100])
def test_magnitudes(rng, variant, layout, exponent):
    # 2^+-100 is about 1e+-30. A power of two changes no rounding: y is that of unscaled x.
    problem = make_problem(rng, variant, np.float32, layout=layout)
    without_eps(problem)
    want_y, want = problem.forward(reference), problem.backward(reference)
    problem.x *= np.float32(2.0**exponent)
    y, got = problem.forward(), problem.backward()
    assert_relative(problem, y, want_y, 1e-6, "y")
    assert_relative(problem, reference.wide(got.dx) * 2.0**exponent, want.dx, 4e-6, "dx")
    assert_relative(problem, got.dweight, want.dweight, 4e-6, "dweight")


@pytest.mark.parametrize("variant", DIVIDING, ids=str)
@pytest.mark.parametrize("magnitude", [1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_magnitudes_with_eps(rng, variant, magnitude, layout, isa):
    # The default eps: tiny input gives y = bias (eps rules), huge input gives unit variance.
    problem = make_problem(rng, variant, np.float32, layout=layout, params=())
    problem.x *= np.float32(magnitude)
    problem.check_forward(problem.forward())
    problem.check_backward(problem.backward())


@pytest.mark.parametrize("variant", DIVIDING, ids=str)
@pytest.mark.parametrize("magnitude", [1e-150, 1e150])
def test_magnitudes_float64(rng, variant, magnitude):
    problem = make_problem(rng, variant, np.float64)
    without_eps(problem)
    want = problem.forward(reference)
    if problem.options.get("p") == 3.0 and magnitude < 1:
        magnitude = 1e-80  # the cube of less is less than the least eps
    problem.x *= magnitude
    assert_relative(problem, problem.forward(), want, 1e-13, "y")


@pytest.mark.parametrize("method", ["layer_norm", "rms_norm"])
def test_largest_halves(rng, method):
    # Squares of float16 overflow from 256 on, their sum over a row much earlier.
    x = np.full((3, 4096), 60000, np.float16)
    x[:, ::2] = -60000
    y = getattr(nc, method)(x)
    np.testing.assert_array_equal(y, np.sign(x))


@pytest.mark.parametrize("variant", CENTRED, ids=str)
@each_layout
@pytest.mark.parametrize("value", [0.0, 0.1, -1234.0, 1e6, 3.3e20])
def test_constant_input_gives_the_bias(rng, variant, layout, value):
    # The mean of equal numbers is that number; an ulp off, rstd = 316 would make it 1e-2 at 1e3.
    problem = make_problem(rng, variant, np.float32, (3, 6, 7, 9), layout, params=("bias",))
    problem.x[...] = value
    # A rounding of the bias, no more: the oracle's mean of equal float32 numbers is exact.
    error = np.abs(reference.wide(problem.forward()) - problem.forward(reference)).max()
    assert error <= 1e-6, f"error {float(error):.3g}"


@pytest.mark.parametrize("mean", [3.0, 3e4])
def test_all_layouts_agree(rng, mean):
    # Plans differ in the order of their sums, so bits may, but by a few roundings only.
    for variant in COMPUTED:
        base = make_problem(rng, variant, mean=mean)
        first = base.forward()
        for layout in LAYOUTS:
            x = arrange(base.x, layout)
            y = getattr(nc, base.method)(x, **base.arguments())
            np.testing.assert_allclose(y, first, rtol=0, atol=2e-6 * np.abs(first).max())


@pytest.mark.parametrize(
    "row",
    [
        np.arange(40000.0, 40004.0),  # onnxruntime#28463: NaN
        100 + 0.01 * np.arange(16.0),  # pytorch#40302: variance 0
        np.full(768, 1234.0),  # onnxruntime#21935: NaN
        1449 + np.linspace(-0.1, 0.1, 1024),  # mlx#2238: NaN
        80000 + np.linspace(0, 1, 33),  # tvm#19592: NaN
        np.array([1e38, -1e38, 1e38, 3e37]),  # mxnet#19852, tensorflow#46996: NaN
        np.array([1e-40, 2e-40, 5e-40]),  # subnormals
    ],
    ids=["40000", "small-spread", "constant", "1449", "80000", "1e38", "subnormal"],
)
@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_rows_that_broke_other_libraries(row, eps, isa):
    x = row.astype(np.float32)
    want = reference.layer_norm(x, eps=eps)
    for y in (
        nc.layer_norm(x, eps=eps),
        nc.group_norm(x[None, None, :], 1, eps=eps)[0, 0],
        nc.instance_norm(x[None, None, :], eps=eps)[0, 0],
        nc.batch_norm(x[:, None], training=True, eps=eps)[:, 0],
        nc.group_norm(x[None, :, None], 1, eps=eps)[0, :, 0],
    ):
        np.testing.assert_allclose(y, want.astype(np.float32), rtol=2e-6, atol=2e-6)
