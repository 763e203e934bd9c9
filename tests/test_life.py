"""The life of batch statistics: frozen, computed again, folded away.

Hunts for buffers that move when they are frozen, for a mean of batch means where sizes differ, and
for a transposed convolution folded along the wrong axis.
"""

import re

import numpy as np
import pytest
from support import bits

import normcore as nc

LAYERS = {
    "batch": lambda **o: nc.BatchNorm(6, **o),
    "instance": lambda **o: nc.InstanceNorm(6, affine=True, track_running_stats=True, **o),
    "renorm": lambda **o: nc.BatchRenorm(6, schedule=None, **o),
    "batch-instance": lambda **o: nc.BatchInstanceNorm(6, **o),
    "switchable": lambda **o: nc.SwitchableNorm(6, **o),
    "mean-only": lambda **o: nc.MeanOnlyBatchNorm(6, **o),
    "l1": lambda **o: nc.LpBatchNorm(6, **o),
    "top-k": lambda **o: nc.TopKBatchNorm(6, k=3, **o),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def make(rng, name, **options):
    """A layer whose parameters and buffers are nowhere near their start."""
    layer = LAYERS[name](**options)
    for value in layer.parameters.values():
        value[...] = rng.uniform(0.5, 1.5, value.shape)
    for key, value in layer.buffers.items():
        if key.startswith("running"):
            value[...] = rng.uniform(0.5, 2, value.shape)
    return layer


@each_layer
def test_frozen_statistics_are_used_and_kept(rng, name):
    layer = make(rng, name)
    before = {k: bits(v) for k, v in layer.buffers.items()}
    x, dy = rng.normal(3, 2, (2, 5, 6, 4)).astype(np.float32)
    want_y, want_dx = bits(layer.eval()(x)), bits(layer.backward(dy))
    want = {k: bits(v) for k, v in layer.grads.items()}
    layer.zero_grad()
    assert layer.train().freeze() is layer
    assert bits(layer(x)) == want_y and bits(layer.backward(dy)) == want_dx
    assert {k: bits(v) for k, v in layer.grads.items()} == want
    assert all(np.abs(v).max() > 0 for v in layer.grads.values())
    assert {k: bits(v) for k, v in layer.buffers.items()} == before
    layer.unfreeze()(x)
    assert {k: bits(v) for k, v in layer.buffers.items()} != before


def test_layers_without_buffers_cannot_freeze():
    layer = nc.BatchNorm(3, track_running_stats=False)
    for call in (layer.freeze, lambda: layer.recompute_statistics([]), lambda: layer.fold_into(0)):
        with pytest.raises(ValueError, match="track_running_stats is False"):
            call()


@each_layer
@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_recomputed_statistics_are_those_of_all_batches(rng, name, mean, channel_axis):
    layer = make(rng, name, dtype=np.float64, channel_axis=channel_axis)
    sizes = [1, 7, 0, 32, 3]
    batches = [rng.normal(mean + n, 1 + n / 8, (n, 5, 6)) for n in sizes]
    joined = np.concatenate(batches)
    if channel_axis == 1:
        batches = [np.moveaxis(x, -1, 1) for x in batches]
    layer.recompute_statistics(iter(batches))
    assert layer.buffers["num_batches_tracked"] == 4
    # Exact but for float64's roundings of the mean.
    rtol = 1e-13 * max(1.0, mean)
    np.testing.assert_allclose(layer.buffers["running_mean"], joined.mean((0, 1)), rtol=1e-13)
    if name == "instance":
        want = joined.var(1, ddof=1).mean(0)
    else:
        want = joined.var((0, 1), ddof=0 if name in ("switchable", "renorm") else 1)
    if name == "renorm":
        np.testing.assert_allclose(layer.buffers["running_std"], np.sqrt(want + 1e-5), rtol=rtol)
    elif "running_var" in layer.buffers:
        np.testing.assert_allclose(layer.buffers["running_var"], want, rtol=rtol)
    # What follows is evaluation by them.
    if name == "batch":
        y = layer.eval()(batches[3])
        kept = joined.mean((0, 1)), joined.var((0, 1), ddof=1)
        shape = (-1, 1) if channel_axis == 1 else (-1,)
        m, v, w, b = (a.reshape(shape) for a in (*kept, *layer.parameters.values()))
        np.testing.assert_allclose(y, (batches[3] - m) / np.sqrt(v + 1e-5) * w + b, atol=1e-9)


def test_recomputing_leaves_the_schedule_of_renorm(rng):
    layer = nc.BatchRenorm(6, schedule=(2, 8, 8))
    batches = rng.normal(0, 1, (9, 4, 6)).astype(np.float32)
    for x in batches:
        layer(x)
    layer.recompute_statistics(batches[:2])
    assert layer.buffers["num_batches_tracked"] == 9
    assert layer.bounds(int(layer.buffers["num_batches_tracked"])) == (3.0, 5.0)


@each_layer
def test_recomputing_from_nothing_changes_nothing(rng, name):
    layer = make(rng, name)
    before = {k: bits(v) for k, v in layer.buffers.items()}
    good, bad = np.ones((3, 6, 2), np.float32), np.ones((3, 5, 2), np.float32)
    for batches in ([], [np.empty((0, 6, 2), np.float32)], [good, bad]):
        with pytest.raises(ValueError, match=r"batches|x has shape"):
            layer.recompute_statistics(batches)
    assert {k: bits(v) for k, v in layer.buffers.items()} == before


FOLDED = ["batch", "instance", "renorm", "mean-only", "l1", "top-k"]


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("with_bias", [True, False])
def test_folding_into_a_dense_layer(rng, name, with_bias):
    layer = make(rng, name, dtype=np.float64).eval()
    weight, bias = rng.normal(size=(6, 9)), rng.normal(size=6) if with_bias else None
    x = rng.normal(size=(5, 9))
    want = layer((x @ weight.T + (0 if bias is None else bias))[..., None])[..., 0]
    before = bits(weight), bits(bias)
    w, b = layer.fold_into(weight, bias)
    np.testing.assert_allclose(x @ w.T + b, want, rtol=1e-12, atol=1e-12)
    assert (bits(weight), bits(bias)) == before
    half, _ = layer.fold_into(weight.astype(np.float16))
    assert half.dtype == np.float16


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_folding_into_a_convolution(rng, name, groups, transposed):
    torch = pytest.importorskip("torch")
    layer = make(rng, name, dtype=np.float64).eval()
    conv = torch.nn.functional.conv_transpose2d if transposed else torch.nn.functional.conv2d
    shape = (12, 6 // groups, 3, 2) if transposed else (6, 12 // groups, 3, 2)
    weight, bias = torch.from_numpy(rng.normal(size=shape)), torch.from_numpy(rng.normal(size=6))
    x = torch.from_numpy(rng.normal(size=(2, 12, 7, 5)))
    want = layer(conv(x, weight, bias, groups=groups))
    folded = layer.fold_into(weight, bias, transposed=transposed, groups=groups)
    w, b = (torch.from_numpy(a) for a in folded)
    np.testing.assert_allclose(conv(x, w, b, groups=groups), want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_folding_is_exact_and_leaves_the_layer_alone(rng, name, mean):
    # Buffers in float32, a layer in training, between forward and backward.
    layer, other = (make(rng, name, channel_axis=-1) for _ in range(2))
    layer.buffers["running_mean"] += np.float32(mean)
    other.load_state_dict(layer.state_dict())
    x, dy = rng.normal(mean, 2, (2, 5, 3, 6)).astype(np.float32)
    layer(x), other(x)
    scale, shift = layer.fold_into(np.eye(6))
    assert layer.training and layer.channel_axis == -1
    assert bits(layer.backward(dy)) == bits(other.backward(dy))
    for ours, theirs in [(layer.grads, other.grads), (layer.buffers, other.buffers)]:
        assert {k: bits(v) for k, v in ours.items()} == {k: bits(v) for k, v in theirs.items()}

    wide = {k: v.astype(np.longdouble) for k, v in layer.state_dict().items()}
    spread = wide.get("running_std", wide.get("running_scale", 1))
    if "running_var" in wide:
        spread = np.sqrt(wide["running_var"] + layer.eps)
    want = wide.get("weight", np.ones(6)) / spread
    terms = np.stack([wide["bias"], -wide["running_mean"] * want])
    # Float64 rounds the sum, the root, its inverse and the product; the product with the mean and
    # the sum; and as often again where longdouble is float64.
    ulp = np.finfo(np.float64).eps / 2
    np.testing.assert_allclose(np.diag(scale), want, rtol=8 * ulp)
    assert np.all(np.abs(shift - terms.sum(0)) <= 12 * ulp * np.abs(terms).sum(0))


def test_errors_of_folding(rng):
    layer = make(rng, "batch")
    for arguments, says in [
        (dict(conv_weight=np.ones(6)), "at least two axes"),
        (dict(conv_weight=np.ones((5, 3))), r"conv_weight has shape \(5, 3\), 5 output channels"),
        (dict(conv_weight=np.ones((6, 3)), groups=4), "groups is 4"),
        (dict(conv_weight=np.ones((6, 3)), groups=0), "groups is 0"),
        (dict(conv_weight=np.ones((6, 3)), conv_bias=np.ones(5)), r"conv_bias has shape \(5,\)"),
        (dict(conv_weight=np.ones((6, 3)), transposed=True), "3 output channels"),
    ]:
        with pytest.raises(ValueError, match=says):
            layer.fold_into(**arguments)
    # Layers whose evaluation depends on x cannot be folded.
    assert not hasattr(make(rng, "switchable"), "fold_into")
    assert not hasattr(make(rng, "batch-instance"), "fold_into")


@each_layer
@pytest.mark.parametrize("samples", [4, 9, 12])
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_ghost_batches_are_batches_of_their_own(rng, name, samples, library):
    layer, plain = make(rng, name, ghost_batch_size=4), make(rng, name)
    plain.load_state_dict(layer.state_dict())
    x, dy = (np.moveaxis(a, -1, 1) for a in rng.normal(1, 2, (2, samples, 3, 6)).astype(np.float32))
    if library == "jax":  # which makes its arrays contiguous
        x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    chunks = [slice(0, 4), slice(4, 8), slice(8, samples)][: -(-samples // 4)]
    want_y, want_dx = [], []
    for chunk in chunks:
        want_y.append(plain(x[chunk]))
        want_dx.append(plain.backward(dy[chunk]))
    if library == "torch":
        array = pytest.importorskip("torch").from_numpy
    else:
        array = np.asarray if library == "numpy" else pytest.importorskip("jax").numpy.asarray
    y, dx = layer(array(x)), layer.backward(array(dy))
    assert type(y) is type(dx) is type(array(x))
    y, dx = np.asarray(y), np.asarray(dx)
    assert y.strides == x.strides and dx.strides == x.strides
    assert bits(y) == bits(np.concatenate(want_y))
    assert bits(dx) == bits(np.concatenate(want_dx))
    for key, value in plain.buffers.items():
        assert bits(layer.buffers[key]) == bits(value), key
    for key, value in plain.grads.items():
        assert bits(layer.grads[key]) == bits(value), key
    # Evaluation knows no ghosts.
    assert bits(layer.eval()(x)) == bits(plain.eval()(x))


def test_a_lone_last_sample_joins_the_chunk_before(rng):
    layer, plain = (nc.BatchNorm(6, **o) for o in ({"ghost_batch_size": 4}, {}))
    x = rng.normal(size=(9, 6)).astype(np.float32)
    want = np.concatenate([plain(x[:4]), plain(x[4:])])
    assert bits(layer(x)) == bits(want)
    assert layer.buffers["num_batches_tracked"] == 2
    with pytest.raises(ValueError, match="more than 1 value"):
        nc.BatchNorm(6, ghost_batch_size=1)(x)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("shape", [(9, 3, 6), (9, 4, 2, 6)])
def test_ghost_batches_keep_the_memory_order_of_x(rng, library, shape):
    x = np.moveaxis(rng.normal(size=shape).astype(np.float16), -1, 1)
    dy = np.broadcast_to(x[:1], x.shape)  # has another one
    layer = nc.BatchNorm(6, ghost_batch_size=4)
    want = bits(layer(x)), bits(layer.backward(dy))
    if library == "torch":
        torch = pytest.importorskip("torch")
        x, dy = torch.from_numpy(x), torch.from_numpy(x[:1].copy()).expand(x.shape)
    y, dx = (np.asarray(a) for a in (layer(x), layer.backward(dy)))
    assert (bits(y), bits(dx)) == want
    assert y.strides == dx.strides == np.asarray(x).strides


def test_ghost_batches_check_the_shape_of_dy(rng):
    layer = nc.BatchNorm(6, ghost_batch_size=4)
    layer(rng.normal(size=(9, 6)))
    for samples in (8, 12):  # all or some of their chunks have the shape of x's
        with pytest.raises(ValueError, match=rf"dy has shape \({samples}, 6\), expected \(9, 6\)"):
            layer.backward(np.ones((samples, 6)))
    assert not any(value.any() for value in layer.grads.values())


def test_ghost_batches_of_lists(rng):
    layer, plain = (nc.BatchNorm(6, ghost_batch_size=4) for _ in range(2))
    x = rng.normal(size=(9, 6))
    assert bits(layer(x.tolist())) == bits(plain(x))
    assert bits(layer.backward(x.tolist())) == bits(plain.backward(x))


def test_a_failed_call_with_ghost_batches_leaves_no_gradient(rng):
    layer = nc.BatchNorm(6, ghost_batch_size=4)
    x = rng.normal(size=(9, 6, 2)).astype(np.float32)
    for wrong in (np.ones((9, 5, 2)), np.float32(1)):
        layer(x)
        with pytest.raises(ValueError, match=rf"x has shape {re.escape(str(np.shape(wrong)))}"):
            layer(wrong)
        with pytest.raises(RuntimeError, match="before a forward call"):
            layer.backward(x)


@each_layer
def test_every_time_step_has_statistics_of_its_own(rng, name):
    layer = make(rng, name, time_steps=2)
    steps = [make(rng, name) for _ in range(2)]
    for t, plain in enumerate(steps):
        for key, value in layer.parameters.items():
            plain.parameters[key][...] = value
        for key, value in layer.buffers.items():
            plain.buffers[key][...] = value[t]
    xs = [rng.normal(t, 1 + t, (5, 6, 3)).astype(np.float32) for t in range(3)]
    dys = [rng.normal(size=x.shape).astype(np.float32) for x in xs]
    for t, x in enumerate(xs):  # the third step uses the second row
        assert bits(layer(x, step=t)) == bits(steps[min(t, 1)](x))
        if t == 1:
            want_dx = steps[1].backward(dys[1])
    for key in layer.buffers:
        assert layer.buffers[key].shape[0] == 2
        for t in range(2):
            assert bits(layer.buffers[key][t]) == bits(steps[t].buffers[key]), (key, t)
    assert layer.buffers["num_batches_tracked"].tolist() == [1, 2]
    # Backward goes through time, from the last step to the first.
    layer.backward(dys[2], step=2)
    assert bits(layer.backward(dys[1], step=1)) == bits(want_dx)
    assert bits(layer.backward(dys[0], step=0)) == bits(steps[0].backward(dys[0]))
    other = LAYERS[name](time_steps=2)
    other.load_state_dict(layer.state_dict())
    assert bits(other.eval()(xs[0], step=7)) == bits(steps[1].eval()(xs[0]))


def test_errors_of_time_steps(rng):
    x = rng.normal(size=(5, 6)).astype(np.float32)
    layer = nc.BatchNorm(6, time_steps=3)
    for step in (None, -1):
        with pytest.raises(ValueError, match=f"step is {step}"):
            layer(x, step=step)
    with pytest.raises(ValueError, match="step is 1, expected None"):
        nc.BatchNorm(6)(x, step=1)
    with pytest.raises(ValueError, match="time_steps"):
        nc.BatchNorm(6, time_steps=3, track_running_stats=False)
    with pytest.raises(ValueError, match="fold_into needs one row"):
        layer.fold_into(np.ones((6, 2)))
    layer(x, step=1)
    with pytest.raises(RuntimeError, match="step=2"):
        layer.backward(x, step=2)
    layer.recompute_statistics([x, x[:2]], step=2)
    want = np.concatenate([x, x[:2]]).mean(0)
    np.testing.assert_allclose(layer.buffers["running_mean"][2], want, rtol=1e-6, atol=1e-7)
    assert not layer.buffers["running_mean"][0].any()


@each_layer
def test_recomputing_from_tensors(rng, name):
    torch = pytest.importorskip("torch")
    layer, other = make(rng, name), make(rng, name)
    batches = [rng.normal(size=(n, 6, 4)).astype(np.float32) for n in (3, 8)]
    layer.recompute_statistics(batches)
    other.recompute_statistics(torch.from_numpy(x) for x in batches)
    assert {k: bits(v) for k, v in layer.buffers.items()} == {
        k: bits(v) for k, v in other.buffers.items()
    }
