"""Running buffers: what is stored, when, and when nothing is.

Hunts for the classic mix-ups: the sign of momentum, biased against unbiased variance, buffers that
drift from torch's over many steps, an empty or one-element batch that poisons the buffers, and
evaluation mode touching them.
"""

import numpy as np
import pytest
import reference
from support import (
    VARIANTS,
    Variant,
    arrange,
    assert_close,
    bfloat16,
    bits,
    make_problem,
    stat_dtype,
)

import normcore as nc

BATCH = Variant("batch_norm", {"training": True})
BIASED = Variant("batch_norm", {"training": True, "unbiased_running_var": False})
INSTANCE = Variant("instance_norm", {})


def fresh_buffers(channels, dtype=np.float32):
    return {"running_mean": np.zeros(channels, dtype), "running_var": np.ones(channels, dtype)}


@pytest.mark.parametrize("variant", [BATCH, BIASED, INSTANCE], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel_axis=-1", "sliced"])
def test_fifty_steps_follow_the_formula(rng, variant, layout, dtype):
    momentum = 0.2
    ours = fresh_buffers(6, stat_dtype(dtype))
    exact = fresh_buffers(6, reference.Real)
    for step in range(50):
        p = make_problem(rng, variant, dtype, (1 + step % 4, 6, 3, 2), layout, mean=step)
        p.options["momentum"] = momentum
        # Passed as extras, the buffers are not copied but updated.
        p.forward(**ours)
        p.forward(reference, **exact)
    # Each step rounds the buffer once; errors of old steps fade with (1 - momentum).
    eps = float(np.finfo(stat_dtype(dtype)).eps)
    for name, want in exact.items():
        slack = eps * np.abs(want).max() / momentum
        assert_close(ours[name], want, slack=slack, what=name, dtype=stat_dtype(dtype))


@pytest.mark.parametrize("kind", ["batch_norm", "instance_norm"])
@pytest.mark.parametrize("affine", [True, False])
def test_fifty_steps_follow_torch(rng, kind, affine):
    torch = pytest.importorskip("torch")
    layer = {"batch_norm": torch.nn.BatchNorm2d, "instance_norm": torch.nn.InstanceNorm2d}[kind]
    layer = layer(5, affine=affine, track_running_stats=True, dtype=torch.float64)
    params = [p.detach().numpy() for p in layer.parameters()]
    buffers = fresh_buffers(5, np.float64)
    function = getattr(nc, kind)
    for _ in range(50):
        x = rng.normal(rng.normal(), 2, (3, 5, 4, 3))
        y = function(x, *params, **buffers, **({"training": True} if kind == "batch_norm" else {}))
        np.testing.assert_allclose(y, layer(torch.from_numpy(x)).detach(), rtol=1e-11, atol=1e-11)
    for name, value in buffers.items():
        np.testing.assert_allclose(value, getattr(layer, name), rtol=1e-12)
    layer.eval()
    evaluate = {} if kind == "batch_norm" else {"use_input_stats": False}
    want = layer(torch.from_numpy(x)).detach()
    y = function(x, *params, **buffers, **evaluate)
    np.testing.assert_allclose(y, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_momentum_is_the_weight_of_the_new_value(momentum):
    x = np.array([[1.0], [3.0]], np.float32)
    buffers = fresh_buffers(1)
    nc.batch_norm(x, **buffers, training=True, momentum=momentum)
    # mean 2; biased variance 1, unbiased 2
    np.testing.assert_allclose(buffers["running_mean"], [2 * momentum], rtol=1e-6)
    np.testing.assert_allclose(buffers["running_var"], [1 + momentum], rtol=1e-6)
    nc.batch_norm(x, **(biased := fresh_buffers(1)), training=True, unbiased_running_var=False)
    np.testing.assert_allclose(biased["running_var"], [1.0], rtol=1e-6)


def test_instance_norm_stores_the_mean_of_unbiased_variances():
    # Measured in torch: instances {0,2} and {4,8} give mean 3.5 and variance (2 + 8) / 2 = 5.
    x = np.array([[[0.0, 2.0]], [[4.0, 8.0]]], np.float32)
    buffers = fresh_buffers(1)
    nc.instance_norm(x, **buffers, momentum=1.0)
    np.testing.assert_allclose(buffers["running_mean"], [3.5], rtol=1e-6)
    np.testing.assert_allclose(buffers["running_var"], [5.0], rtol=1e-6)


def test_training_ignores_the_buffers_for_y(rng):
    problem = make_problem(rng, BATCH)
    want = bits(problem.forward())
    assert bits(problem.forward(**fresh_buffers(6))) == want
    assert bits(problem.forward(training=False)) == want  # no buffers: statistics come from x


@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float32], ids=str)
def test_evaluation_uses_and_keeps_the_buffers(rng, dtype):
    for variant in (
        Variant("batch_norm", {"training": False}, buffers=True),
        Variant("instance_norm", {"use_input_stats": False}, buffers=True),
    ):
        problem = make_problem(rng, variant, dtype, (1, 6, 1))  # one value is enough here
        buffers = {k: v for k, v in problem.options.items() if k.startswith("running")}
        before = [bits(b) for b in buffers.values()]
        y = problem.forward(**buffers)
        assert [bits(b) for b in buffers.values()] == before
        problem.check_forward(y)
        problem.check_backward(problem.backward())


def test_buffers_may_be_strided(rng):
    problem = make_problem(rng, BATCH)
    plain = fresh_buffers(6)
    spread = {name: arrange(b, "reversed") for name, b in fresh_buffers(6).items()}
    problem.forward(**plain)
    problem.forward(**spread)
    for name, value in plain.items():
        assert bits(spread[name]) == bits(value)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0), (2, 3, 0, 5)], ids=str)
def test_empty_input_leaves_the_buffers(shape):
    x = np.empty(shape, np.float32)
    for function, options in ((nc.batch_norm, {"training": True}), (nc.instance_norm, {})):
        if function is nc.instance_norm and x.ndim < 3:
            continue
        buffers = fresh_buffers(3)
        assert function(x, **buffers, **options).shape == shape
        assert bits(buffers["running_mean"]) == bits(np.zeros(3, np.float32))
        assert bits(buffers["running_var"]) == bits(np.ones(3, np.float32))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)], ids=str)
def test_one_value_per_channel_raises_and_leaves_the_buffers(shape):
    x = np.ones(shape, np.float32)
    buffers = fresh_buffers(3)
    with pytest.raises(ValueError, match=r"more than 1 value per channel"):
        nc.batch_norm(x, **buffers, training=True)
    with pytest.raises(ValueError, match=r"more than 1 spatial element"):
        nc.instance_norm(np.ones((4, 3, *shape[2:]), np.float32), **buffers)
    assert bits(buffers["running_mean"]) == bits(np.zeros(3, np.float32))
    assert bits(buffers["running_var"]) == bits(np.ones(3, np.float32))


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if v.buffers and v.options.get("training")], ids=str
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_buffers_of_every_method_follow_the_oracle(rng, variant, layout):
    ours = make_problem(rng, variant, np.float32, layout=layout)
    names = [k for k in ours.options if k.startswith("running")]
    exact = {k: reference.wide(ours.options[k]) for k in names}
    mine = {k: ours.options[k].copy() for k in names}
    for _ in range(50):
        step = make_problem(rng, variant, np.float32, layout=layout)
        # What is stored is what the next step of the oracle starts from: errors do not add up.
        arguments = {k: v for k, v in step.arguments().items() if k not in names}
        getattr(reference, variant.method)(step.x, **arguments, **exact)
        getattr(nc, variant.method)(step.x, **arguments, **mine)
        for name in names:
            # A rounding of the buffer, and a few of float32 sums, weighed by the momentum.
            np.testing.assert_allclose(mine[name], exact[name], rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("layer", [nc.BatchNorm, nc.InstanceNorm, nc.BatchInstanceNorm])
def test_running_variances_are_unbiased_or_not(rng, layer, unbiased):
    x = rng.normal(size=(4, 3, 5)).astype(np.float32)
    per_sample = layer is nc.InstanceNorm
    axes = 2 if per_sample else (0, 2)
    want = x.astype(np.float64).var(axes, ddof=int(unbiased))
    made = layer(3, momentum=1.0, track_running_stats=True, unbiased_running_var=unbiased)
    made(x)
    want = want.mean(0) if per_sample else want
    # The variance of values around 1 is rounded once, from sums in double of float32 squares.
    np.testing.assert_allclose(made.running_var, want, rtol=1e-6)
    made.running_var = np.zeros(3, np.float32)
    made.recompute_statistics([x])
    np.testing.assert_allclose(made.running_var, want, rtol=1e-6)
