"""Layers whose parameters, gradients and buffers are arrays of another library.

Hunts for a layer that computes with NumPy what lies on a device, for a call that waits for one, for
running statistics that lose the array that they are in, and for states that do not come back.
torch's tensors on the CPU stand for a device's: as functions take x's memory where it is, so must
layers. Their own arithmetic is the same in both libraries, so that bits are compared.
"""

import copy
from contextlib import contextmanager

import numpy as np
import pytest
from cuda_support import emulated_core_or_skip, running_on
from support import channel_layers

import normcore as nc
from normcore._owned import in_numpy

torch = pytest.importorskip("torch")

SHAPE = (6, 3, 4, 5)
LAYERS = {
    layer.__name__: lambda d, layer=layer, sizes=sizes: layer(*sizes, dtype=d)
    for layer, sizes in channel_layers(3).items()
}
LAYERS |= {
    "InstanceNorm": lambda d: nc.InstanceNorm(3, affine=True, track_running_stats=True, dtype=d),
    "LayerNorm": lambda d: nc.LayerNorm((4, 5), dtype=d),
    "RMSNorm": lambda d: nc.RMSNorm((3, 4, 5), dtype=d),
    "GDN": lambda d: nc.GDN(3, dtype=d),
    "DivisiveNorm": lambda d: nc.DivisiveNorm(3, dtype=d),
    "LocalDivisiveNorm": lambda d: nc.LocalDivisiveNorm(3, dtype=d),
    "GhostBatches": lambda d: nc.BatchNorm(3, dtype=d, ghost_batch_size=4),
    "Cumulative": lambda d: nc.BatchNorm(3, momentum=None, dtype=d),
}
DTYPES = ("float32", "float64", "bfloat16", "float16")
LEARNING = ["BatchNorm", "BatchRenorm", "BatchInstanceNorm", "SwitchableNorm"]
LEARNING += ["MeanOnlyBatchNorm", "LpBatchNorm", "TopKBatchNorm", "InstanceNorm"]

each_layer = pytest.mark.parametrize("name", LAYERS)


def layer_of(name, dtype="float32"):
    if name == "GDN" and dtype in ("bfloat16", "float16"):
        pytest.skip("no place for the pedestal")
    return LAYERS[name](dtype)


def vary(rng, layer):
    for array in layer.parameters.values():
        array[...] = np.abs(array.astype(np.float64) + rng.normal(0, 0.3, array.shape))
    return layer


@contextmanager
def nothing_reaches_the_host(monkeypatch):
    """Within it, what would copy from a device, or wait for it, fails."""

    def refuse(*_args, **_options):
        raise AssertionError("the host looked at what lies on a device")

    names = ("cpu", "numpy", "item", "tolist", "__array__", "__bool__", "__float__", "__int__")
    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(torch.Tensor, name, refuse)
        yield


def assert_same(left, right, what):
    for name, array in left.items():
        other = in_numpy(right[name])
        assert other.dtype == array.dtype, (what, name)
        # NaN is NaN: its sign is nobody's promise.
        np.testing.assert_array_equal(
            other.astype(np.float64), array.astype(np.float64), err_msg=f"{what} {name}"
        )


@each_layer
@pytest.mark.parametrize("dtype", DTYPES)
def test_as_with_numpy(rng, monkeypatch, name, dtype):
    here = vary(rng, layer_of(name, dtype))
    there = copy.deepcopy(here).to(torch.device("cpu"))
    arrays = {**there.parameters, **there.buffers}
    for training in (True, True, False):
        x = rng.normal(1, 2, SHAPE).astype(np.float32)
        dy = rng.normal(size=SHAPE).astype(np.float32)
        y, dx = here.train(training)(x), here.backward(dy)
        with nothing_reaches_the_host(monkeypatch):
            y_there = there.train(training)(torch.from_numpy(x))
            dx_there = there.backward(torch.from_numpy(dy))
        assert isinstance(y_there, torch.Tensor) and isinstance(dx_there, torch.Tensor)
        assert_same({"y": y, "dx": dx}, {"y": y_there, "dx": dx_there}, "result")
        assert_same(here.grads, there.grads, "gradient of")
        assert_same(here.buffers, there.buffers, "buffer")
        for a in (here, there):
            for parameter, gradient in zip(a.parameters.values(), a.grads.values(), strict=True):
                # Exact but for the subtraction; no step that leaves the range of 16 bits.
                parameter -= 0.125 * gradient.clip(-1, 1)
            if hasattr(a, "project"):
                a.project()
    for key, array in arrays.items():
        assert {**there.parameters, **there.buffers}[key] is array, key
    if name in LEARNING:
        assert isinstance(there.buffers["running_mean"], torch.Tensor)


@each_layer
@pytest.mark.parametrize("dtype", DTYPES)
def test_states_come_and_go(rng, name, dtype):
    here = vary(rng, layer_of(name, dtype))
    if here.buffers:
        here(rng.normal(1, 2, SHAPE).astype(np.float32))
    there = layer_of(name, dtype).to(torch.device("cpu"))
    arrays = {**there.parameters, **there.buffers}
    there.load_state_dict(here.state_dict())
    state = there.state_dict()
    assert all(type(array) is np.ndarray for array in state.values())
    assert_same(here.state_dict(), state, "state")
    assert all({**there.parameters, **there.buffers}[k] is a for k, a in arrays.items())
    back = layer_of(name, dtype)
    back.load_state_dict(state)
    assert_same(here.state_dict(), back.state_dict(), "state that came back")
    of_torch = {k: in_numpy(v) for k, v in state.items()}
    there.reset_parameters()
    assert_same(layer_of(name, dtype).state_dict(), there.state_dict(), "start")
    there.load_state_dict(of_torch)
    assert_same(state, there.to("cpu").state_dict(), "state on the CPU")
    assert all(type(a) is np.ndarray for a in (*there.parameters.values(), *there.grads.values()))


def test_a_snapshot_is_one():
    layer = nc.BatchNorm(3).to(torch.device("cpu"))
    state = layer.state_dict()
    layer.weight += 1
    assert (state["weight"] == 1).all()


def test_time_steps_freezing_and_statistics_again(rng):
    here = nc.BatchNorm(3, time_steps=2)
    there = nc.BatchNorm(3, time_steps=2).to(torch.device("cpu"))
    xs = [rng.normal(1, 2, SHAPE).astype(np.float32) for _ in range(3)]
    for step, x in enumerate(xs):
        here(x, step=step)
        there(torch.from_numpy(x), step=step)
    for step, x in reversed(list(enumerate(xs))):
        assert_same(
            {"dx": here.backward(x, step=step)},
            {"dx": there.backward(torch.from_numpy(x), step=step)},
            f"step {step}",
        )
    assert_same(here.buffers, there.buffers, "buffer")
    for layer, batches in ((here, xs), (there, map(torch.from_numpy, xs))):
        layer.recompute_statistics(batches, step=1)
        layer.freeze()
    assert_same(here.buffers, there.buffers, "recomputed")
    before = there.state_dict()
    there(torch.from_numpy(xs[0]), step=1)
    assert_same(before, there.buffers | there.parameters, "frozen")


@pytest.mark.parametrize("name", LEARNING)
def test_statistics_again_of_every_layer(rng, name):
    here, there = layer_of(name), layer_of(name).to(torch.device("cpu"))
    xs = [rng.normal(1, 2, (n, *SHAPE[1:])).astype(np.float32) for n in (2, 5)]
    here.recompute_statistics(xs)
    there.recompute_statistics(map(torch.from_numpy, xs))
    assert_same(here.buffers, there.buffers, name)


def test_folding_reads_a_device(rng):
    here = vary(rng, nc.BatchNorm(3))
    here(rng.normal(1, 2, SHAPE).astype(np.float32))
    weight, bias = rng.normal(size=(3, 2, 3, 3)), rng.normal(size=3)
    there = copy.deepcopy(here).to(torch.device("cpu"))
    for got, want in zip(there.fold_into(weight, bias), here.fold_into(weight, bias), strict=True):
        np.testing.assert_array_equal(got, want)


def test_weight_norm(rng):
    here, there = nc.WeightNorm((3, 7), rng=1), nc.WeightNorm((3, 7), rng=1)
    there.to(torch.device("cpu"))
    x = rng.normal(size=(50, 3)).astype(np.float32)
    bias = there.initialize(torch.from_numpy(x))
    assert isinstance(bias, torch.Tensor) and bias.dtype == torch.float32
    assert_same({"bias": here.initialize(x), "w": here()}, {"bias": bias, "w": there()}, "result")
    dw = rng.normal(size=(3, 7)).astype(np.float32)
    here.backward(dw)
    there.backward(torch.from_numpy(dw))
    assert_same(here.grads, there.grads, "gradient of")


@pytest.mark.parametrize("first", ["v", "u"])
def test_spectral_norm(rng, first):
    here = nc.SpectralNorm((4, 6), rng=1, first=first)
    there = nc.SpectralNorm((4, 6), rng=1, first=first).to(torch.device("cpu"))
    w, dw = rng.normal(size=(2, 4, 6)).astype(np.float32)
    u = there.buffers["u"]
    for _ in range(2):
        assert_same({"w": here(w)}, {"w": there(torch.from_numpy(w))}, "result")
        assert_same(
            {"dw": here.backward(dw)}, {"dw": there.backward(torch.from_numpy(dw))}, "gradient"
        )
    assert there.buffers["u"] is u
    assert_same(here.buffers, there.buffers, "buffer")
    assert_same(here.state_dict(), there.state_dict(), "state")


def test_assigning(rng):
    layer = nc.LayerNorm(4).to(torch.device("cpu"))
    weight, values = layer.weight, torch.arange(4.0)
    layer.weight = values
    assert layer.weight is weight and torch.equal(weight, values)
    layer.weight = [4, 3, 2, 1]
    assert torch.equal(weight, torch.tensor([4.0, 3, 2, 1]))
    layer.weight *= 2
    assert layer.weight is weight and weight[0] == 8
    with pytest.raises(TypeError, match=r"has dtype torch.float64, expected torch.float32"):
        layer.weight = values.double()
    with pytest.raises(ValueError, match=r"has shape \(3,\), expected \(4,\)"):
        layer.weight = values[:3]
    assert weight[0] == 8
    # Arrays that a dict was given serve as well as those that were moved.
    layer = nc.LayerNorm(4)
    for name in layer.parameters:
        layer.parameters[name] = torch.ones(4)
    layer.zero_grad()
    layer(torch.randn(2, 4))
    layer.backward(torch.ones(2, 4))
    assert torch.equal(layer.grads["bias"], torch.full((4,), 2.0))


def test_where_to():
    layer = nc.BatchNorm(3)
    assert layer.to("cpu") is layer and type(layer.weight) is np.ndarray
    assert isinstance(layer.to(torch.ones(2)).weight, torch.Tensor)
    assert type(layer.to(np.ones(2)).weight) is np.ndarray
    assert layer.num_batches_tracked.dtype == np.int64
    for wrong, error in (
        (None, TypeError),
        (3, TypeError),
        ([1.0], TypeError),
        (np.float32, TypeError),
        (torch.float32, TypeError),
        ("nowhere", ValueError),
        (torch, TypeError),
    ):
        with pytest.raises(error, match=r"device is .*, expected a device of PyTorch"):
            layer.to(wrong)
    assert type(layer.weight) is np.ndarray


def test_a_move_forgets_the_last_call(rng):
    layer = nc.BatchNorm(3)
    layer(rng.normal(size=SHAPE))
    layer.to(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="called before a forward call"):
        layer.backward(torch.zeros(SHAPE))


def test_what_does_not_fit_says_so(rng):
    layer = nc.BatchNorm(3).to(torch.device("cpu"))
    x = torch.randn(SHAPE)
    layer(x)
    layer.grads["weight"] = np.zeros(3, np.float32)
    before = layer.grads["bias"].clone()
    with pytest.raises(TypeError, match=r'grads."weight". is an array of numpy, expected .*torch'):
        layer.backward(x)
    layer.grads["weight"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r'grads."weight". has shape \(2,\), expected \(3,\)'):
        layer.backward(x)
    assert torch.equal(before, layer.grads["bias"])


def test_immutable_arrays_are_refused():
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match=r"device is .*, expected a device of PyTorch"):
        nc.BatchNorm(3).to(jax.numpy.ones(3))
    layer = nc.BatchNorm(3)
    layer.buffers["running_mean"] = jax.numpy.zeros(3)
    with pytest.raises(TypeError, match=r"running_mean is .*, expected an array of NumPy, PyTorch"):
        layer(np.ones(SHAPE, np.float32))
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("name", [*LEARNING, "GhostBatches", "Cumulative", "LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_the_emulated_device(rng, name, dtype):
    core = emulated_core_or_skip()
    here = vary(rng, layer_of(name, dtype))
    there = copy.deepcopy(here)
    for training in (True, True, False):
        x = rng.normal(1, 2, SHAPE).astype(np.float32)
        dy = rng.normal(size=SHAPE).astype(np.float32)
        y, dx = here.train(training)(x), here.backward(dy)
        with running_on(core):
            y_there, dx_there = there.train(training)(x), there.backward(dy)
        # Values of size 10, in another order of sums: a few roundings of float32.
        np.testing.assert_allclose(y_there, y, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(dx_there, dx, rtol=1e-5, atol=1e-5)
        # A parameter's gradient is rounded to its dtype at each addition.
        eps = {"bfloat16": 2**-7, "float16": 2**-9}.get(dtype, 1e-5)
        for key in here.grads:
            np.testing.assert_allclose(
                there.grads[key].astype(float),
                here.grads[key].astype(float),
                rtol=eps,
                atol=20 * eps,
            )
        for key in here.buffers:
            np.testing.assert_allclose(there.buffers[key], here.buffers[key], rtol=1e-5, atol=1e-6)
