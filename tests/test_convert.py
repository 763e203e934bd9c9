"""States of other libraries, there and back.

Hunts for a variance that is biased on one side only, momentum of the wrong sign, and weight norm
keys that end up swapped. Keras and Flax are not needed: what they compute is written out here.
"""

import numpy as np
import pytest
from support import bits

import normcore as nc
from normcore import convert


def trained(layer, rng, steps=3):
    for value in layer.parameters.values():
        value[...] = rng.uniform(0.5, 1.5, value.shape)
    for _ in range(steps):
        layer(rng.normal(1, 2, (5, 4, 3)).astype(np.float32))
    return layer


def same(a, b):
    return a.keys() == b.keys() and all(bits(a[k]) == bits(b[k]) for k in a)


def test_keras_batch_norm_gives_the_same_evaluation(rng):
    # Keras: momentum 0.99 weighs the old value, and the moving variance is biased.
    theirs = {"moving_mean": np.zeros(4), "moving_variance": np.ones(4)}
    ours = nc.BatchNorm(4, eps=1e-3, momentum=convert.opposite_momentum(0.9), dtype=np.float64)
    for _ in range(20):
        x = rng.normal(1, 2, (5, 4, 3))
        ours(x)
        for name, new in (("moving_mean", x.mean((0, 2))), ("moving_variance", x.var((0, 2)))):
            theirs[name] = 0.9 * theirs[name] + 0.1 * new
    theirs["gamma"], theirs["beta"] = rng.normal(size=(2, 4))
    state = convert.from_keras({f"bn/{k}:0": v for k, v in theirs.items()})
    assert set(state) == {"weight", "bias", "running_mean", "running_var"}
    layer = nc.BatchNorm(4, eps=1e-3, dtype=np.float64).eval()
    layer.load_state_dict(state)
    shape = (-1, 1)
    m, v, g, b = (
        theirs[k].reshape(shape) for k in ("moving_mean", "moving_variance", "gamma", "beta")
    )
    np.testing.assert_allclose(layer(x), (x - m) / np.sqrt(v + 1e-3) * g + b, rtol=1e-12)
    # With the count of a batch the variance is ours, but for its start at 1, which has no bias.
    unbiased = convert.from_keras(theirs, count=15)["running_var"]
    start = 0.9**20
    np.testing.assert_allclose(
        unbiased - start * 15 / 14, ours.buffers["running_var"] - start, rtol=1e-12
    )
    np.testing.assert_allclose(state["running_mean"], ours.buffers["running_mean"], rtol=1e-12)
    assert same(convert.to_keras(state), theirs)
    back = convert.to_keras(convert.from_keras(theirs, count=15), count=15)
    np.testing.assert_allclose(back["moving_variance"], theirs["moving_variance"], rtol=1e-15)


def test_flax(rng):
    layer = trained(nc.BatchNorm(4), rng)
    variables = convert.to_flax(layer.state_dict())
    assert set(variables) == {"params", "batch_stats"}
    assert set(variables["params"]) == {"scale", "bias"}
    state = {k: v for k, v in layer.state_dict().items() if k != "num_batches_tracked"}
    assert same(convert.from_flax(variables), state)
    other = nc.BatchNorm(4)
    other.load_state_dict(convert.from_flax(variables))
    x = rng.normal(size=(3, 4, 2)).astype(np.float32)
    assert bits(other.eval()(x)) == bits(layer.eval()(x))
    biased = convert.to_flax(layer.state_dict(), count=15)["batch_stats"]["var"]
    np.testing.assert_allclose(biased, layer.buffers["running_var"] * 14 / 15, rtol=1e-6)
    norm = nc.LayerNorm(4)
    assert same(convert.from_flax(convert.to_flax(norm.state_dict())), norm.state_dict())


def test_switchable_and_batch_instance_repositories(rng):
    layer = trained(nc.SwitchableNorm(4), rng)
    theirs = convert.to_switchable_norm(layer.state_dict())
    assert {k: v.shape for k, v in theirs.items()} == {
        "weight": (1, 4, 1, 1),
        "bias": (1, 4, 1, 1),
        "mean_weight": (3,),
        "var_weight": (3,),
        "running_mean": (1, 4, 1),
        "running_var": (1, 4, 1),
    }
    other = nc.SwitchableNorm(4)
    other.load_state_dict(convert.from_switchable_norm(theirs))
    x = rng.normal(size=(3, 4, 2)).astype(np.float32)
    assert bits(other.eval()(x)) == bits(layer.eval()(x))
    with pytest.raises(ValueError, match=r"mean_weight has shape \(2,\)"):
        convert.from_switchable_norm(theirs | {"mean_weight": np.ones(2)})
    layer = trained(nc.BatchInstanceNorm(4), rng)
    theirs = convert.to_batch_instance_norm(layer.state_dict())
    assert "gate" in theirs
    assert same(convert.from_batch_instance_norm(theirs), layer.state_dict())


@pytest.mark.parametrize("kind", ["legacy", "parametrized"])
@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_norm_of_torch(rng, kind, axis):
    torch = pytest.importorskip("torch")
    utils = torch.nn.utils
    wrap = utils.weight_norm if kind == "legacy" else utils.parametrizations.weight_norm
    linear = wrap(torch.nn.Linear(5, 3, bias=False), dim=axis)
    state = convert.from_torch(linear.state_dict())
    assert set(state) == {"g", "v"}
    layer = nc.WeightNorm((3, 5), axis=axis)
    layer.load_state_dict(state)
    np.testing.assert_allclose(layer(), linear.weight.detach(), rtol=1e-6)
    layer.parameters["g"] += 1
    back = convert.to_torch(layer.state_dict(), weight_norm=kind, axis=axis)
    linear.load_state_dict({k: torch.from_numpy(v) for k, v in back.items()})
    linear(torch.ones(1, 5))  # the legacy form computes its weight here
    np.testing.assert_allclose(layer(), linear.weight.detach(), rtol=1e-6)


def test_batch_norm_of_torch(rng):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm1d(4)
    theirs(torch.randn(6, 4))
    layer = nc.BatchNorm(4)
    layer.load_state_dict(convert.from_torch(theirs.state_dict()))
    back = convert.to_torch(layer.state_dict())
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in back.items()})
    assert layer.buffers["num_batches_tracked"] == 1


def test_safetensors(rng, tmp_path):
    layer = trained(nc.BatchNorm(4), rng)
    try:
        import safetensors  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ImportError, match="safetensors"):
            convert.save_safetensors(layer.state_dict(), tmp_path / "state.safetensors")
        return
    convert.save_safetensors(layer.state_dict(), tmp_path / "state.safetensors")
    assert same(convert.load_safetensors(tmp_path / "state.safetensors"), layer.state_dict())


def test_errors():
    for call in (
        lambda: convert.from_keras({"kernel": np.ones(2)}),
        lambda: convert.to_keras({"g": np.ones(2)}),
        lambda: convert.from_flax({"params": {"kernel": np.ones(2)}}),
    ):
        with pytest.raises(ValueError, match=r"state has .*expected only"):
            call()
    with pytest.raises(ValueError, match="count is 1"):
        convert.from_keras({"gamma": np.ones(2)}, count=1)
    with pytest.raises(ValueError, match="momentum is 2"):
        convert.opposite_momentum(2)
    with pytest.raises(ValueError, match="weight_norm is 'old'"):
        convert.to_torch({}, weight_norm="old")
