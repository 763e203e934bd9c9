"""The one suite over all registered methods: forward and backward against the oracle.

Hunts for a wrong plan or kernel: each dtype, memory layout, rank, instruction set and parameter
combination sends a call down another path, and each must give the same numbers. Sizes run over
everything around the vector widths and the unrolled steps, where tails go wrong.
"""

import numpy as np
import pytest
import reference
from support import (
    DTYPES,
    LAYOUTS,
    PLAIN_VARIANTS,
    VARIANTS,
    GuardedOut,
    arrange,
    assert_close,
    assert_same_bits,
    bfloat16,
    bits,
    make_problem,
    stat_dtype,
)

import normcore as nc

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
plain_variants = pytest.mark.parametrize("variant", PLAIN_VARIANTS, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
half, single, double = np.float16, np.float32, np.float64


@each_variant
@pytest.mark.parametrize("layout", [*LAYOUTS, "channel_axis=-1"])
def test_layouts(rng, variant, layout, dtype, isa):
    make_problem(rng, variant, dtype, layout=layout).check()


@each_variant
@pytest.mark.parametrize("shape", [(17, 6), (5, 6, 11), (2, 3, 2, 3, 5), (3, 6, 1, 1), (1, 3, 2)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_ranks(rng, variant, shape, layout):
    # In training and in instance norm, one value per channel is an error: test_errors.py.
    if not variant.takes(shape):
        shape = (4, 3, 9)
    make_problem(rng, variant, single, shape, layout).check()


@each_variant
@pytest.mark.parametrize("dtype", [half, bfloat16, single], ids=str)
@pytest.mark.parametrize("axis", ["spatial", "channel"])
def test_every_small_size(rng, variant, dtype, axis, isa):
    for size in range(1, 71):
        if axis == "spatial":
            shape, layout = (2, 3, size), "contiguous"
        else:
            shape, layout = (
                (2, 3 * size, 2) if "num_groups" in variant.options else (2, size, 2),
                "",
            )
        if variant.takes(shape):
            make_problem(rng, variant, dtype, shape, layout or "channels_last").check()


@each_variant
@pytest.mark.parametrize("size", [49, 255, 1023, 4095, 4097, 5000])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel_axis=-1"])
def test_long_axes(rng, variant, size, layout):
    make_problem(rng, variant, single, (2, 3, size), layout).check()
    make_problem(rng, variant, bfloat16, (2, 3 * (size // 3), 2), layout).check()


@pytest.mark.parametrize("layout", ["contiguous", "channel_axis=-1"])
@pytest.mark.parametrize("shape", [(5, 18, 50, 50), (2, 330, 18, 18), (300, 12, 70)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_more_than_a_block(rng, variant, shape, layout):
    # About 1 MB: what pools close over no longer fits the blocks that a thread takes.
    make_problem(rng, variant, shape=shape, layout=layout, mean=3.0).check()


@each_variant
@pytest.mark.parametrize("params", [(), ("weight",), ("bias",), ("weight", "bias")], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_omitted_parameters(rng, variant, params, layout):
    make_problem(rng, variant, layout=layout, params=params).check()


@plain_variants
@pytest.mark.parametrize("param_dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_mixed_dtypes(rng, variant, param_dtype, layout, dtype):
    problem = make_problem(rng, variant, dtype, param_dtype=param_dtype, layout=layout)
    problem.check()
    if "bias" in problem.params:
        problem.params["bias"] = problem.params["bias"].astype(single)
        problem.check()


@each_variant
def test_strided_and_read_only_parameters(rng, variant):
    problem = make_problem(rng, variant)
    want = bits(problem.forward())
    for name, value in problem.params.items():
        problem.params[name] = arrange(value, "reversed")
    for name, value in problem.params.items():
        spread = np.full((*value.shape[:-1], 2 * value.shape[-1]), np.nan, value.dtype)
        spread[..., ::2] = value
        problem.params[name] = spread[..., ::2] if name == "weight" else value
    for array in (problem.x, problem.dy, *problem.params.values()):
        array.flags.writeable = False
    assert bits(problem.forward()) == want
    problem.check()


@each_variant
@each_layout
@pytest.mark.parametrize("kept", [(), (0,), (1,), (2, 3), (0, 1)], ids=str)
def test_broadcast_dy(rng, variant, layout, kept):
    problem = make_problem(rng, variant, layout=layout)
    small = [n if i in kept else 1 for i, n in enumerate(problem.x.shape)]
    # Of one sign: runs of equal terms that cancel later would leave only their roundings.
    dy = rng.uniform(0.5, 2, small).astype(single)
    problem.dy = np.broadcast_to(dy, problem.x.shape)
    problem.check_backward(problem.backward())


@each_variant
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "fortran"])
@pytest.mark.parametrize("x_layout", ["contiguous", "channels_last", "reversed"])
def test_dy_of_another_layout(rng, variant, layout, x_layout):
    problem = make_problem(rng, variant, layout=x_layout)
    problem.dy = arrange(problem.dy, layout)
    problem.check_backward(problem.backward())


@each_variant
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_stats(rng, variant, layout, dtype):
    problem = make_problem(rng, variant, dtype, layout=layout)
    y, stats = problem.forward(return_stats=True)
    assert bits(y) == bits(problem.forward())
    _, want = problem.forward(reference, return_stats=True)
    # Methods of several pools have none for the reader.
    for name in set(want._fields) & set(stats._fields):
        # Rounded once, for the reader; before that, a few roundings of float32 sums (std 1.5).
        exact = getattr(want, name)
        slack = 16 * np.finfo(stat_dtype(dtype)).eps * (1 + np.abs(exact))
        what = f"{problem.method} {name}"
        assert_close(getattr(stats, name), exact, slack=slack, what=what, dtype=stat_dtype(dtype))


@each_variant
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_backward_with_stats_equals_recomputed(rng, variant, layout, dtype):
    problem = make_problem(rng, variant, dtype, layout=layout)
    arguments = problem.arguments()
    _, stats = getattr(nc, problem.method)(problem.x, **arguments, return_stats=True)
    recomputed = problem.backward()
    assert_same_bits(problem.backward(stats=stats), recomputed, "with stats=")
    # stats holds all that backward needs, also when the buffers have moved on since.
    for name in problem.options:
        if name.startswith("running"):
            problem.options[name] = problem.options[name] + 1
    assert_same_bits(problem.backward(stats=stats), recomputed, "with stats= and later buffers")


@each_variant
@each_layout
def test_out(rng, variant, layout, dtype):
    problem = make_problem(rng, variant, dtype, layout=layout)
    want = problem.forward()
    guarded = GuardedOut(problem.x)
    assert problem.forward(out=guarded.view) is guarded.view
    assert bits(guarded.view) == bits(want)
    assert guarded.guards_intact()
    # An out of another memory order than x: a copy of the same numbers.
    other = GuardedOut(np.moveaxis(np.empty([*problem.x.shape[1:], len(problem.x)], dtype), -1, 0))
    problem.forward(out=other.view)
    problem.check_forward(other.view)
    assert other.guards_intact()


@each_variant
@each_layout
def test_in_place(rng, variant, layout, dtype):
    problem = make_problem(rng, variant, dtype, layout=layout)
    want = problem.forward()
    result, stats = problem.forward(out=problem.x, return_stats=True)
    assert result is problem.x
    assert bits(problem.x) == bits(want)
    assert all(s is not None for name, s in stats._asdict().items() if name != "given")


@each_variant
@each_layout
def test_results_have_the_memory_order_of_x(rng, variant, layout):
    problem = make_problem(rng, variant, layout=layout)
    want = np.empty_like(problem.x).strides  # K order: permuted as x, gaps and signs dropped
    assert problem.forward().strides == want
    assert problem.backward().dx.strides == want


@each_variant
def test_arguments_are_not_changed(rng, variant):
    problem = make_problem(rng, variant)
    arrays = [problem.x, problem.dy, *problem.params.values()]
    before = [bits(a) for a in arrays]
    problem.forward()
    problem.backward()
    assert [bits(a) for a in arrays] == before
