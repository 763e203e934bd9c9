"""The layers of the adaptive methods: against their functions, and what they promise by themselves.

Hunts for options that do not reach a function, buffers that move when they must not, and gradients
that go to the wrong parameter.
"""

import copy
import pickle

import numpy as np
import pytest
from support import bits

import normcore as nc

# name: (constructor, function, options of the function)
LAYERS = {
    "renorm": (
        lambda **o: nc.BatchRenorm(4, schedule=None, **o),
        nc.batch_renorm,
        {"r_max": 3.0, "d_max": 5.0},
    ),
    "batch-instance": (lambda **o: nc.BatchInstanceNorm(4, **o), nc.batch_instance_norm, {}),
    "switchable": (lambda **o: nc.SwitchableNorm(4, **o), nc.switchable_norm, {}),
    "mean-only": (lambda **o: nc.MeanOnlyBatchNorm(4, **o), nc.mean_only_batch_norm, {}),
    "l1": (lambda **o: nc.LpBatchNorm(4, **o), nc.lp_batch_norm, {"p": 1.0}),
    "l3": (lambda **o: nc.LpBatchNorm(4, p=3, **o), nc.lp_batch_norm, {"p": 3.0}),
    "top-k": (lambda **o: nc.TopKBatchNorm(4, k=3, **o), nc.topk_batch_norm, {"k": 3}),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def make(rng, name, **options):
    layer = LAYERS[name][0](**options)
    for value in layer.parameters.values():
        value[...] = rng.uniform(0.2, 1.0, value.shape)
    return layer


@each_layer
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
def test_forward_and_backward_are_those_of_the_function(rng, name, channel_axis, training, dtype):
    layer = make(rng, name, channel_axis=channel_axis, dtype=dtype)
    layer.train(training)
    _, function, options = LAYERS[name]
    backward = getattr(nc, function.__name__ + "_backward")
    want_grads = {k: np.zeros_like(v) for k, v in layer.parameters.items()}
    running = {k: v.copy() for k, v in layer.buffers.items() if k.startswith("running")}
    for _ in range(3):
        x, dy = rng.normal(1, 2, (2, 3, 4, 5, 4)).astype(dtype)
        if channel_axis == 1:
            x, dy = (np.moveaxis(a, -1, 1) for a in (x, dy))
        shared = dict(options, training=training, channel_axis=channel_axis, **layer.parameters)
        momentum = {"momentum": layer.momentum}
        y, stats = function(x, **running, **shared, **momentum, return_stats=True)
        assert bits(layer(x)) == bits(y)
        grads = backward(dy, x, **running, **shared, stats=stats)
        assert bits(layer.backward(dy)) == bits(grads.dx)
        for key in want_grads:
            want_grads[key] += getattr(grads, "d" + key)
    for key, want in want_grads.items():
        assert bits(layer.grads[key]) == bits(want), key
    for key, want in running.items():
        assert bits(layer.buffers[key]) == bits(want), key
        assert want.dtype == dtype
    assert layer.buffers["num_batches_tracked"] == (3 if training else 0)


@each_layer
def test_cumulative_average(rng, name):
    layer = make(rng, name, momentum=None)
    batches = [rng.normal(2, 1, (6, 4, 3)).astype(np.float32) for _ in range(4)]
    for x in batches:
        layer(x)
    mean = np.mean([x.mean((0, 2)) for x in batches], axis=0)
    np.testing.assert_allclose(layer.buffers["running_mean"], mean, rtol=1e-5)


@each_layer
def test_state_and_copies(rng, name):
    layer = make(rng, name)
    layer(rng.normal(size=(6, 4, 3)).astype(np.float32))
    other = LAYERS[name][0]()
    other.load_state_dict(layer.state_dict())
    x = rng.normal(size=(5, 4, 2)).astype(np.float32)
    want = bits(layer.eval()(x))
    for same in (other.eval(), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert bits(same(x)) == want
        assert repr(same) == repr(layer)
    with pytest.raises(ValueError, match="missing"):
        other.load_state_dict({})


@each_layer
def test_a_failed_call_leaves_the_buffers(rng, name):
    layer = make(rng, name)
    before = {k: bits(v) for k, v in layer.buffers.items()}
    for shape in [(1, 4), (3, 5, 2)]:
        with pytest.raises(ValueError):
            layer(np.ones(shape, np.float32))
    layer(np.empty((0, 4), np.float32))
    assert {k: bits(v) for k, v in layer.buffers.items()} == before
    with pytest.raises(RuntimeError, match="before a forward call"):
        make(rng, name).backward(np.ones((2, 4)))


def test_schedule_of_batch_renorm(rng):
    layer = nc.BatchRenorm(4, schedule=(2, 4, 6))
    assert [layer.bounds(t) for t in (0, 2, 3, 4, 5, 9)] == [
        (1.0, 0.0),
        (1.0, 0.0),
        (2.0, 1.25),
        (3.0, 2.5),
        (3.0, 3.75),
        (3.0, 5.0),
    ]
    layer.buffers["running_mean"] += 3  # far from the batches: corrections reach their bounds
    x = rng.normal(size=(8, 4)).astype(np.float32)
    assert bits(layer(x)) == bits(nc.batch_norm(x, training=True))  # step 0: batch norm
    layer.buffers["num_batches_tracked"][...] = 3
    y = layer(x)
    assert layer.buffers["num_batches_tracked"] == 4
    np.testing.assert_allclose(y.mean(0), -1.25, atol=1e-5)
    for schedule in [(5, 5, 9), (-1, 2, 3), (1, 2)]:
        with pytest.raises(ValueError, match="schedule is"):
            nc.BatchRenorm(4, schedule=schedule)


def test_project_clamps_rho(rng):
    layer = nc.BatchInstanceNorm(5, dtype=np.float64)
    layer.parameters["rho"][...] = [-0.5, 0.0, 0.25, 1.0, 7.0]
    layer.project()
    assert layer.parameters["rho"].tolist() == [0.0, 0.0, 0.25, 1.0, 1.0]


@pytest.mark.parametrize("axis", [0, 1, -1, None])
def test_weight_norm_layer(rng, axis):
    layer = nc.WeightNorm((3, 4, 5), axis=axis, dtype=np.float64, rng=3)
    layer.parameters["g"] += rng.normal(size=layer.parameters["g"].shape)
    v, g = layer.parameters["v"], layer.parameters["g"]
    assert bits(layer()) == bits(nc.weight_norm(v, g, axis=axis))
    dw = rng.normal(size=(3, 4, 5))
    for _ in range(2):
        layer.backward(dw)
    dv, dg = nc.weight_norm_backward(dw, v, g, axis=axis)
    np.testing.assert_allclose(layer.grads["v"], 2 * dv, rtol=1e-15)
    np.testing.assert_allclose(layer.grads["g"], 2 * dg, rtol=1e-15)
    assert repr(layer) == f"WeightNorm((3, 4, 5), axis={axis})"
    other = nc.WeightNorm((3, 4, 5), axis=axis, dtype=np.float64)
    other.load_state_dict(layer.state_dict())
    assert bits(other()) == bits(layer())
    with pytest.raises(ValueError, match="axis is 3"):
        nc.WeightNorm((3, 4, 5), axis=3)


def test_data_dependent_start(rng):
    x = rng.normal(3, 2, (300, 7))
    for axis, out in ((0, "ik,jk->ij"), (1, "ik,kj->ij")):
        shape = (5, 7) if axis == 0 else (7, 5)
        layer = nc.WeightNorm(shape, axis=axis, dtype=np.float64, rng=rng)
        bias = layer.initialize(np.einsum(out, x, layer()), init_scale=0.5)
        y = np.einsum(out, x, layer()) + bias
        np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(y.std(0), 0.5, rtol=1e-8)
    one = nc.WeightNorm((5, 7), axis=None, dtype=np.float64, rng=rng)
    bias = one.initialize(x @ one().T)
    y = x @ one().T + bias
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)
    assert np.mean(y.var(0)) == pytest.approx(1, rel=1e-8)
    with pytest.raises(ValueError, match="x_preactivation has shape"):
        layer.initialize(np.ones((3, 4)))


def test_weight_norm_with_mean_only_batch_norm_trains(rng):
    # The pair of the paper: a dense layer fits a linear map; its outputs' mean is taken away.
    target = rng.normal(size=(3, 6))
    weight = nc.WeightNorm((3, 6), dtype=np.float64, rng=0)
    norm = nc.MeanOnlyBatchNorm(3, dtype=np.float64)
    losses = []
    for _ in range(400):
        x = rng.normal(1, 1, (64, 6))
        wanted = x @ target.T
        wanted -= wanted.mean(0)
        w = weight()
        error = norm(x @ w.T) - wanted
        losses.append(np.mean(error**2))
        dt = norm.backward(2 * error / len(x))
        weight.backward(dt.T @ x)
        for layer in (weight, norm):
            for name, value in layer.parameters.items():
                value -= 0.05 * layer.grads[name]
            layer.zero_grad()
    # Over 2000 draws of the target, 2e-4 of the first loss was the most that was left.
    assert losses[-1] < 1e-2 * losses[0]
