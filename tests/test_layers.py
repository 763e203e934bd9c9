"""The layers: against torch.nn where it is installed, and what they promise by themselves."""

import copy
import pickle

import numpy as np
import pytest

import normcore as nc

# name: (our layer, torch's, shape of x); both are made from a dtype of their library.
PAIRS = {
    "batch": (
        lambda d: nc.BatchNorm(4, dtype=d),
        lambda nn, d: nn.BatchNorm2d(4, dtype=d),
        (3, 4, 5, 2),
    ),
    "batch 1d": (
        lambda d: nc.BatchNorm(4, eps=1e-3, momentum=0.3, dtype=d),
        lambda nn, d: nn.BatchNorm1d(4, eps=1e-3, momentum=0.3, dtype=d),
        (6, 4),
    ),
    "batch cumulative": (
        lambda d: nc.BatchNorm(4, momentum=None, affine=False, dtype=d),
        lambda nn, d: nn.BatchNorm1d(4, momentum=None, affine=False, dtype=d),
        (3, 4, 5),
    ),
    "batch untracked": (
        lambda d: nc.BatchNorm(4, track_running_stats=False, dtype=d),
        lambda nn, d: nn.BatchNorm1d(4, track_running_stats=False, dtype=d),
        (3, 4, 5),
    ),
    "instance": (
        lambda d: nc.InstanceNorm(4, dtype=d),
        lambda nn, d: nn.InstanceNorm1d(4, dtype=d),
        (3, 4, 5),
    ),
    "instance tracked": (
        lambda d: nc.InstanceNorm(4, affine=True, track_running_stats=True, dtype=d),
        lambda nn, d: nn.InstanceNorm2d(4, affine=True, track_running_stats=True, dtype=d),
        (3, 4, 5, 2),
    ),
    "group": (
        lambda d: nc.GroupNorm(2, 4, dtype=d),
        lambda nn, d: nn.GroupNorm(2, 4, dtype=d),
        (3, 4, 5, 2),
    ),
    "group plain": (
        lambda d: nc.GroupNorm(2, 4, affine=False, dtype=d),
        lambda nn, d: nn.GroupNorm(2, 4, affine=False, dtype=d),
        (3, 4, 5),
    ),
    "layer": (
        lambda d: nc.LayerNorm((5, 2), dtype=d),
        lambda nn, d: nn.LayerNorm((5, 2), dtype=d),
        (3, 4, 5, 2),
    ),
    "layer unbiased": (
        lambda d: nc.LayerNorm(5, bias=False, dtype=d),
        lambda nn, d: nn.LayerNorm(5, bias=False, dtype=d),
        (7, 5),
    ),
    "rms": (
        lambda d: nc.RMSNorm(5, dtype=d),
        lambda nn, d: nn.RMSNorm(5, dtype=d),
        (3, 4, 5),
    ),
    "rms plain": (
        lambda d: nc.RMSNorm((4, 5), elementwise_affine=False, dtype=d),
        lambda nn, d: nn.RMSNorm((4, 5), elementwise_affine=False, dtype=d),
        (3, 4, 5),
    ),
}
ROW_LAYERS = {"layer": lambda: nc.LayerNorm(4), "rms": lambda: nc.RMSNorm(4)}

# Values and gradients here are of size 1 to 10, sums run over at most 120 of them: some ten
# roundings of either library.
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}

every_pair = pytest.mark.parametrize("pair", PAIRS)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def make(torch, pair, dtype="float32", rng=None):
    """Return our layer, torch's, and x; with rng, their parameters are equal and random."""
    ours, theirs, shape = PAIRS[pair]
    ours, theirs = ours(dtype), theirs(torch.nn, getattr(torch, dtype))
    if rng is not None:
        for name, array in ours.parameters.items():
            array[...] = rng.normal(1, 0.5, array.shape)
            theirs.get_parameter(name).data = torch.tensor(array)
    return ours, theirs, shape


def close(actual, desired, tolerance=1e-5):
    if hasattr(desired, "detach"):
        desired = desired.detach().numpy()
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance, strict=True)


@every_pair
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_matches_torch(torch, rng, pair, dtype):
    ours, theirs, shape = make(torch, pair, dtype, rng)
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = rng.normal(2, 3, shape).astype(dtype)
        dy = rng.normal(size=shape).astype(dtype)
        leaf = torch.tensor(x, requires_grad=True)
        expected = theirs(leaf)
        expected.backward(torch.tensor(dy))  # adds to the parameters' gradients, as ours does
        close(ours(x), expected, TOLERANCE[dtype])
        close(ours.backward(dy), leaf.grad, TOLERANCE[dtype])
    for name, parameter in theirs.named_parameters():
        close(ours.grads[name], parameter.grad, 10 * TOLERANCE[dtype])  # of size 10 to 100
    assert ours.grads.keys() == dict(theirs.named_parameters()).keys()


@every_pair
def test_state_dict_goes_to_torch_and_back(torch, rng, pair):
    ours, theirs, shape = make(torch, pair, rng=rng)
    ours(rng.normal(2, 3, shape).astype(np.float32))  # moves the buffers
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})
    x = rng.normal(2, 3, shape).astype(np.float32)
    close(ours.eval()(x), theirs.eval()(torch.tensor(x)))

    fresh = PAIRS[pair][0]("float32").eval()
    fresh.load_state_dict(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(fresh.state_dict()[name], value.numpy(), strict=True)
    np.testing.assert_array_equal(fresh(x), ours(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_loads_torch_parameters_of_any_dtype(torch, dtype):
    weight = torch.nn.Parameter(torch.tensor([0.5, 1.5], dtype=getattr(torch, dtype)))
    layer = nc.RMSNorm(2)
    layer.load_state_dict({"weight": weight})
    np.testing.assert_array_equal(layer.parameters["weight"], np.float32([0.5, 1.5]), strict=True)


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_running_statistics_match_torch_over_20_steps(torch, rng, momentum):
    ours = nc.BatchNorm(3, momentum=momentum)
    theirs = torch.nn.BatchNorm1d(3, momentum=momentum)
    for step in range(20):
        n = 2 + step % 5
        x = rng.normal(step, 1 + step, (n, 3, 4)).astype(np.float32)
        ours(x)
        theirs(torch.tensor(x))
    for name, buffer in theirs.named_buffers():
        close(ours.buffers[name], buffer)


def test_instance_norm_averages_cumulatively(rng):
    # torch has no such mode: its InstanceNorm takes momentum=None for 0.
    layer = nc.InstanceNorm(3, momentum=None, track_running_stats=True, dtype=np.float64)
    batches = rng.normal(5, 2, (20, 2, 3, 6))
    for x in batches:
        layer(x)
    close(layer.buffers["running_mean"], batches.mean(axis=(0, 1, 3)), 1e-13)
    close(layer.buffers["running_var"], batches.var(axis=3, ddof=1).mean(axis=(0, 1)), 1e-13)
    assert layer.buffers["num_batches_tracked"] == 20


@every_pair
def test_repr_is_torchs(torch, pair):
    ours, theirs, _ = make(torch, pair)
    name = type(theirs).__name__
    if not isinstance(theirs, torch.nn.RMSNorm) and "bias=" not in repr(theirs):
        pytest.skip("this torch does not print bias yet")
    assert repr(ours) == repr(theirs).replace(name, name.removesuffix("1d").removesuffix("2d"))


def test_repr_shows_what_torch_lacks():
    assert repr(nc.BatchNorm(4, channel_axis=-1)).endswith("=True, channel_axis=-1)")
    assert repr(nc.RMSNorm(4, weight_offset=1)).endswith("=True, weight_offset=1.0)")


@pytest.mark.parametrize(
    "make_layer",
    [
        lambda axis: nc.BatchNorm(4, channel_axis=axis),
        lambda axis: nc.InstanceNorm(4, affine=True, channel_axis=axis),
        lambda axis: nc.GroupNorm(2, 4, channel_axis=axis),
    ],
)
def test_channels_last_is_channels_first_moved(rng, make_layer):
    x, dy = rng.normal(size=(2, 3, 4, 5, 2)).astype(np.float32)
    first, last = make_layer(1), make_layer(-1)
    close(np.moveaxis(last(np.moveaxis(x, 1, -1)), -1, 1), first(x))
    close(np.moveaxis(last.backward(np.moveaxis(dy, 1, -1)), -1, 1), first.backward(dy))
    for name, grad in first.grads.items():
        close(last.grads[name], grad)


def test_gradients_add_up_until_zero_grad(rng):
    layer = nc.LayerNorm(4)
    np.testing.assert_array_equal(layer.grads["weight"], np.zeros(4, np.float32), strict=True)
    x, dy = rng.normal(size=(2, 3, 4)).astype(np.float32)
    layer(x)
    layer.backward(dy)
    once = copy.deepcopy(layer.grads)
    layer.backward(dy)
    for name, grad in layer.grads.items():
        np.testing.assert_array_equal(grad, 2 * once[name])
    layer.zero_grad()
    assert not any(grad.any() for grad in layer.grads.values())
    assert once["bias"].any()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
@every_pair
def test_copies_are_independent(rng, pair, duplicate):
    layer, shape = PAIRS[pair][0]("float32"), PAIRS[pair][2]
    x = rng.normal(size=shape).astype(np.float32)
    layer(x)
    layer.backward(x)
    twin = duplicate(layer)
    assert repr(twin) == repr(layer)
    for own, other in ((layer.state_dict(), twin.state_dict()), (layer.grads, twin.grads)):
        assert own.keys() == other.keys()
        for name, array in own.items():
            np.testing.assert_array_equal(other[name], array, strict=True)
            assert not np.shares_memory(other[name], array)
    with pytest.raises(RuntimeError, match="before a forward call"):
        twin.backward(x)  # a copy carries no activations
    np.testing.assert_array_equal(twin(x), layer(x))
    np.testing.assert_array_equal(twin.backward(x), layer.backward(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": None}, "missing weight$"),
        ({"weight": None, "running_var": None}, "missing weight, running_var$"),
        ({"scale": np.ones(2)}, "unexpected scale$"),
        ({"bias": np.ones(3)}, r"bias has shape \(3,\), expected \(2,\)$"),
        ({"running_mean": np.ones(2, complex)}, "running_mean has dtype complex128"),
        ({"bias": None, "a": 1, "weight": 1.0}, r"missing bias; unexpected a; weight has shape"),
    ],
)
def test_load_state_dict_errors_change_nothing(change, message):
    layer = nc.BatchNorm(2)
    before = copy.deepcopy(layer.state_dict())
    state = {name: array + 5 for name, array in before.items()} | change
    state = {name: array for name, array in state.items() if array is not None}
    with pytest.raises(RuntimeError, match=message) as caught:
        layer.load_state_dict(state)
    assert isinstance(caught.value, ValueError)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name], strict=True)


def test_load_state_dict_copies_in_place():
    layer = nc.BatchNorm(2)
    weight, source = layer.parameters["weight"], np.array([2.0, 3.0])
    layer.load_state_dict(
        {"weight": source, "bias": [1, 2], "running_mean": [0, 0], "running_var": [1, 1]}
    )
    source[:] = 0
    assert layer.parameters["weight"] is weight
    np.testing.assert_array_equal(weight, np.float32([2, 3]), strict=True)
    own = layer.state_dict()
    assert own["weight"] is weight
    layer.load_state_dict({**own, "weight": own["bias"], "bias": own["weight"]})  # exchanged
    np.testing.assert_array_equal(own["weight"], [1, 2])
    np.testing.assert_array_equal(own["bias"], [2, 3])


@pytest.mark.parametrize("kind", ROW_LAYERS)
def test_residual_matches_torch(torch, rng, kind):
    ours = ROW_LAYERS[kind]()
    theirs = torch.nn.LayerNorm(4) if kind == "layer" else torch.nn.RMSNorm(4)
    x, residual, dy, dh = rng.normal(size=(4, 3, 4)).astype(np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    expected_h = leaf + torch.tensor(residual)
    expected_y = theirs(expected_h)
    y, h = ours(x, residual)
    close(h, expected_h)
    close(y, expected_y)
    torch.autograd.backward([expected_y, expected_h], [torch.tensor(dy), torch.tensor(dh)])
    close(ours.backward(dy, dh), leaf.grad)
    close(ours.grads["weight"], theirs.weight.grad)
    close(ours.backward(dy) + dh, leaf.grad)  # without dh


@pytest.mark.parametrize("kind", ROW_LAYERS)
def test_dh_needs_a_residual(kind):
    layer, x = ROW_LAYERS[kind](), np.eye(4)
    layer(x)
    with pytest.raises(ValueError, match="dh was given"):
        layer.backward(x, x)


@every_pair
def test_backward_needs_a_forward_call(rng, pair):
    layer, shape = PAIRS[pair][0]("float32"), PAIRS[pair][2]
    x = rng.normal(size=shape)
    message = f"{type(layer).__name__}.backward called before a forward call"
    with pytest.raises(RuntimeError, match=message):
        layer.backward(x)
    layer(x)
    with pytest.raises(ValueError, match="x has shape"):
        layer(np.ones((2, 3)))
    with pytest.raises(RuntimeError, match=message):  # no gradient of the call before
        layer.backward(x)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nc.BatchNorm(4), (2, 5, 3), r"\(2, 5, 3\), expected 4 at channel_axis=1: num_features=4"),
        (nc.BatchNorm(4, channel_axis=-1), (2, 4, 3), "channel_axis=-1: num_features=4"),
        (nc.BatchNorm(4), (4,), "num_features=4"),
        (nc.InstanceNorm(4), (2, 3, 4), "num_features=4"),
        (nc.GroupNorm(2, 4), (2, 6), "num_channels=4"),
        (nc.LayerNorm((4, 2)), (2, 4), r"\(2, 4\), expected \(\.\.\., 4, 2\)"),
        (nc.RMSNorm(4), (4, 1), r"\(4, 1\), expected \(\.\.\., 4\)"),
    ],
)
def test_misfitting_x(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer(np.ones(shape, np.float32))


@pytest.mark.parametrize(
    ("construct", "error", "message"),
    [
        (lambda: nc.BatchNorm(0), ValueError, "num_features is 0"),
        (lambda: nc.BatchNorm(2.5), TypeError, "num_features is 2.5, expected an integer"),
        (lambda: nc.InstanceNorm(-1), ValueError, "num_features is -1"),
        (lambda: nc.GroupNorm(3, 4), ValueError, "num_groups is 3, .* num_channels=4"),
        (lambda: nc.GroupNorm(0, 4), ValueError, "num_groups is 0"),
        (lambda: nc.LayerNorm(()), ValueError, r"normalized_shape is \(\)"),
        (lambda: nc.RMSNorm((3, 0)), ValueError, "normalized_shape is 0"),
        (lambda: nc.LayerNorm(3, dtype=int), TypeError, "dtype is int64"),
        (lambda: nc.BatchNorm(3, affine=False, dtype=complex), TypeError, "dtype is complex128"),
    ],
)
def test_impossible_layers(construct, error, message):
    with pytest.raises(error, match=message):
        construct()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_only_batches_that_count_are_counted(rng, momentum):
    layer = nc.BatchNorm(3, momentum=momentum)
    x = rng.normal(2, 1, (5, 3)).astype(np.float32)
    with pytest.raises(ValueError, match=r"(?i)more than (1|one) value"):
        layer(x[:1])
    assert layer(x[:0]).shape == (0, 3)
    layer.eval()(x)
    assert layer.buffers["num_batches_tracked"] == 0
    np.testing.assert_array_equal(layer.buffers["running_var"], np.ones(3, np.float32))
    layer.train()(x)
    assert layer.buffers["num_batches_tracked"] == 1
    factor = 1 if momentum is None else momentum
    close(layer.buffers["running_mean"], factor * x.mean(axis=0))


@pytest.mark.parametrize(
    ("dtype", "buffer_dtype"),
    [("float16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_dtypes(rng, dtype, buffer_dtype):
    layer = nc.BatchNorm(3, dtype=dtype)
    layer(rng.normal(size=(4, 3)).astype(np.float32))  # x may have another dtype
    assert layer.backward(np.ones((4, 3), np.float32)).dtype == np.float32
    for arrays in (layer.parameters, layer.grads):
        assert {array.dtype.name for array in arrays.values()} == {dtype}
    kinds = [layer.buffers[name].dtype.name for name in ("running_mean", "running_var")]
    assert kinds == [buffer_dtype] * 2
    assert layer.buffers["num_batches_tracked"].dtype == np.int64
    assert layer.buffers["num_batches_tracked"].shape == ()


def test_bfloat16_parameters(rng):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    layer = nc.LayerNorm(4, dtype=bfloat16)
    x = rng.normal(size=(3, 4)).astype(bfloat16)
    assert layer(x).dtype == bfloat16
    assert layer.backward(x).dtype == bfloat16
    assert layer.grads["weight"].dtype == bfloat16
    layer.load_state_dict({"weight": np.full(4, 2.0), "bias": np.ones(4, bfloat16)})
    assert set(layer.parameters["weight"].tolist()) == {2.0}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_pair
def test_torch_tensors_go_through(torch, rng, pair, dtype):
    layer, shape = PAIRS[pair][0]("float32"), PAIRS[pair][2]
    x = torch.tensor(rng.normal(size=shape), dtype=getattr(torch, dtype))
    y = layer(x)
    dx = layer.backward(x)
    assert isinstance(y, torch.Tensor)
    assert isinstance(dx, torch.Tensor)
    assert y.dtype == dx.dtype == x.dtype
    twin = PAIRS[pair][0]("float32")
    twin(x.float().numpy())
    twin.backward(x.float().numpy())
    for name, grad in twin.grads.items():  # sums in float32 of the same values
        close(layer.grads[name], grad)


def test_weight_offset_starts_without_scale(rng):
    x, dy = rng.normal(size=(2, 3, 4)).astype(np.float32)
    plain, offset = nc.RMSNorm(4), nc.RMSNorm(4, weight_offset=1)
    np.testing.assert_array_equal(offset.parameters["weight"], np.zeros(4, np.float32))
    np.testing.assert_array_equal(offset(x), plain(x))
    np.testing.assert_array_equal(offset.backward(dy), plain.backward(dy))
    np.testing.assert_array_equal(offset.grads["weight"], plain.grads["weight"])


def test_train_and_eval_return_the_layer():
    layer = nc.GroupNorm(1, 2)
    assert layer.training
    assert layer.eval() is layer
    assert not layer.training
    assert layer.train() is layer
    assert layer.training
    assert not layer.train(False).training


def test_parameters_may_be_updated_in_place(rng):
    x = rng.normal(size=(3, 4)).astype(np.float32)
    layer = nc.LayerNorm(4)
    before = layer(x)
    layer.parameters["weight"] *= 2
    layer.state_dict()["bias"][...] = 1  # a reference, as in torch
    close(layer(x), 2 * before + 1)
