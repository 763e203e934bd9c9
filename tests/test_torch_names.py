"""Names, order, defaults and states of the layers against those of torch.nn."""

import inspect

import numpy as np
import pytest

import normcore as nc

torch = pytest.importorskip("torch")

COUNTERPARTS = {
    "BatchNorm": ("BatchNorm1d", (4,)),
    "InstanceNorm": ("InstanceNorm1d", (4,)),
    "GroupNorm": ("GroupNorm", (2, 4)),
    "LayerNorm": ("LayerNorm", (4,)),
    "RMSNorm": ("RMSNorm", (4,)),
    "LocalResponseNorm": ("LocalResponseNorm", (2,)),
}
each = pytest.mark.parametrize("name", COUNTERPARTS)


def pair(name):
    theirs, arguments = COUNTERPARTS[name]
    return getattr(nc, name), getattr(torch.nn, theirs), arguments


@each
def test_arguments(name):
    ours, theirs, _ = pair(name)
    own = inspect.signature(ours).parameters
    given = {k: p for k, p in inspect.signature(theirs).parameters.items() if k != "device"}
    by_position = [k for k, p in given.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    by_position = by_position[: by_position.index("dtype")] if "dtype" in given else by_position
    assert list(own)[: len(by_position)] == by_position
    for key, parameter in given.items():
        if key != "dtype":  # None there, which we take for the same
            assert own[key].default == parameter.default, key
    assert ours(*COUNTERPARTS[name][1]).training


@each
@pytest.mark.parametrize(
    "options", [{}, {"affine": True, "track_running_stats": True}, {"affine": False}]
)
def test_states_go_both_ways(rng, name, options):
    ours, theirs, arguments = pair(name)
    options = {k: v for k, v in options.items() if k in inspect.signature(theirs).parameters}
    ours, theirs = ours(*arguments, **options), theirs(*arguments, **options)
    state = theirs.state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        k: v.shape for k, v in ours.state_dict().items()
    }
    for value in ours.state_dict().values():
        value[...] = rng.integers(1, 9, value.shape)
    kept = {k: torch.from_numpy(v.copy()) for k, v in ours.state_dict().items()}
    assert repr(theirs.load_state_dict(kept)) == repr(ours.load_state_dict(kept))
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[key], value.numpy(), strict=True)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_counts_of_old_checkpoints(kind):
    for layer in (nc.BatchNorm(2), nc.BatchNorm(2, time_steps=1)):
        for count, number in ((kind([7]), 7), (kind(8), 8)):
            layer.load_state_dict({**layer.state_dict(), "num_batches_tracked": count})
            assert layer.buffers["num_batches_tracked"] == number
        with pytest.raises(RuntimeError, match="num_batches_tracked has shape"):
            layer.load_state_dict({**layer.state_dict(), "num_batches_tracked": kind([7, 8])})


def test_states_that_are_not_strict():
    ours, theirs = nc.BatchNorm(2), torch.nn.BatchNorm1d(2)
    state = {"weight": np.float32([3, 4]), "scale": np.ones(2)}
    result = ours.load_state_dict(state, strict=False)
    expected = theirs.load_state_dict({k: torch.tensor(v) for k, v in state.items()}, strict=False)
    assert result.missing_keys == expected.missing_keys
    assert result.unexpected_keys == expected.unexpected_keys
    np.testing.assert_array_equal(ours.parameters["weight"], [3, 4])
    np.testing.assert_array_equal(ours.parameters["bias"], [0, 0])
    with pytest.raises(RuntimeError, match="weight has shape"):
        ours.load_state_dict({"weight": np.ones(3)}, strict=False)
    spectral = nc.SpectralNorm((3, 2))
    assert spectral.load_state_dict({"u": np.ones(3)}, strict=False).missing_keys == ["weight_v"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [1e-3, 1e-4])
def test_eps_of_rms_norm(rng, dtype, size):
    x = (rng.normal(size=(4, 32)) * size).astype(np.float32)
    kind = getattr(torch, dtype)
    for eps in (None, 1e-6):
        ours = nc.RMSNorm(32, eps=eps, dtype=dtype)
        y = ours(torch.from_numpy(x).to(kind))
        want = torch.nn.RMSNorm(32, eps=eps, dtype=kind)(torch.from_numpy(x).to(kind)).detach()
        # One rounding of either to the dtype, and a few of the mean square.
        torch.testing.assert_close(y, want, rtol=4 * torch.finfo(kind).eps, atol=0)


ALONE = {
    "BatchNorm": lambda **o: nc.BatchNorm(3, **o),
    "BatchInstanceNorm": lambda **o: nc.BatchInstanceNorm(3, **o),
    "SwitchableNorm": lambda **o: nc.SwitchableNorm(3, **o),
    "MeanOnlyBatchNorm": lambda **o: nc.MeanOnlyBatchNorm(3, **o),
    "LpBatchNorm": lambda **o: nc.LpBatchNorm(3, **o),
    "TopKBatchNorm": lambda **o: nc.TopKBatchNorm(3, k=2, **o),
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel(name, shape):
    x = np.full(shape, 2.0, np.float32)
    says = r"Expected more than 1 value per channel when training, got input size \(1, 3"
    untracked = ALONE[name](track_running_stats=False)
    for layer in (ALONE[name](), untracked, untracked.eval()):
        with pytest.raises(ValueError, match=says):
            layer(x)
        layer(np.concatenate([x, x]))
    with pytest.raises(ValueError, match=says.partition(",")[0]):
        torch.nn.BatchNorm1d(3, track_running_stats=False).eval()(torch.ones(1, 3))
    assert ALONE[name]().eval()(x).shape == shape  # by running statistics
    assert untracked.eval()(x[:0]).shape == (0, *shape[1:])


@pytest.mark.parametrize("kind", [nc.LayerNorm, nc.RMSNorm])
@pytest.mark.parametrize("axis", [1, (1,), (2, 0), (-3, -1), range(2), np.array([0, 1])])
def test_row_layers_over_other_axes(rng, kind, axis):
    x, dy = rng.normal(size=(2, 3, 4, 5))
    axes = sorted(a % 3 for a in np.atleast_1d(axis))
    layer = kind([x.shape[a] for a in axes], axis=axis, dtype=np.float64)
    layer.parameters["weight"][...] = rng.normal(size=layer.parameters["weight"].shape)
    function = nc.layer_norm if kind is nc.LayerNorm else nc.rms_norm
    eps = {} if kind is nc.LayerNorm else {"eps": np.finfo(np.float64).eps}
    want = function(x, *layer.parameters.values(), axis=tuple(axes), **eps)
    np.testing.assert_array_equal(layer(x), want)
    assert layer.backward(dy).shape == x.shape and "axis=" in repr(layer)
    wrong = list(x.shape)
    wrong[axes[0]] += 1
    with pytest.raises(ValueError, match="x has shape"):
        layer(rng.normal(size=wrong))
