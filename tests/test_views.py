"""Views over memory of others: nothing that an array says of itself is believed.

Hunts for addresses, sizes and strides that reach the kernels unchecked, capsules that are not given
back or given back twice, values that an array only shows through a mask or a bit, and conversions
of Python objects while another thread has the interpreter lock.
"""

import gc
import subprocess
import sys
import textwrap
import threading
from functools import partial

import numpy as np
import pytest
from lying_dlpack import Lying, Stale
from support import channel_methods, least_arguments

import normcore as nc

# Each function with an x of shape (2, 4, 3), and the arguments that it cannot do without.
W = np.linspace(0.5, 2.0, 4, dtype=np.float32)
BUFFERS = {"running_mean": np.zeros(4, np.float32), "running_var": np.ones(4, np.float32)}
SQUARE = np.ones((4, 4), np.float32)
X = np.random.default_rng(3).normal(size=(2, 4, 3)).astype(np.float32)
CALLS = {
    name: partial(getattr(nc, name), **least_arguments(signature, 4))
    for name, signature in channel_methods().items()
}
CALLS |= {
    "layer_norm": lambda x, **k: nc.layer_norm(x, **k),
    "rms_norm": lambda x, **k: nc.rms_norm(x, **k),
    "normalize": lambda x, **k: nc.normalize(x, **k),
    "weight_norm": lambda x, **k: nc.weight_norm(x, W[:2], **k),
    "spectral_norm": lambda x, **k: nc.spectral_norm(x, W[:2], **k).weight,
    "divisive_norm": lambda x, **k: nc.divisive_norm(x, SQUARE, 1.0, **k),
    "gdn": lambda x, **k: nc.gdn(x, W, SQUARE, **k),
    "local_response_norm": lambda x, **k: nc.local_response_norm(x, 3, **k),
    "local_divisive_norm": lambda x, **k: nc.local_divisive_norm(
        x, 1.0, summation_window=3, suppression_window=3, **k
    ),
}
FIRST = {"weight_norm": "v", "spectral_norm": "weight"}  # the name of the first argument, else x
each_call = pytest.mark.parametrize("name", CALLS)

HUGE = 2**62
LIES = {
    "null": ({"data": None}, ValueError, "data is null"),
    "null with an offset": ({"data": None, "byte_offset": 64}, ValueError, "data is null"),
    "not aligned": ({"byte_offset": 1}, ValueError, "aligned"),
    "an offset beyond memory": ({"byte_offset": 2**64 - 4}, ValueError, "byte_offset"),
    "negative ndim": ({"ndim": -1}, ValueError, "ndim is -1"),
    "many axes": ({"shape": (1,) * 33, "strides": None}, ValueError, "ndim is 33"),
    "most axes": ({"ndim": 2**31 - 1}, ValueError, "ndim is 2147483647"),
    "no shape": ({"shape": None, "ndim": 3}, ValueError, "shape is null"),
    "a negative size": ({"shape": (2, -4, 3)}, ValueError, r"shape\[1\] is -4"),
    "two negative sizes": ({"shape": (-2, -4, 3)}, ValueError, r"shape\[0\] is -2"),
    "a product that is 0 in 64 bits": (
        {"shape": (2**32, 2**32, 1), "strides": (0, 0, 1)},
        ValueError,
        "more elements",
    ),
    "the same without strides": (
        {"shape": (2**32, 2**32, 3), "strides": None},
        ValueError,
        "more elements",
    ),
    "an empty one of the kind": ({"shape": (2**40, 2**40, 0)}, ValueError, "more elements"),
    "far strides": ({"strides": (HUGE, 3, 1)}, ValueError, "strides"),
    "far strides backwards": ({"strides": (-HUGE, 3, 1)}, ValueError, "strides"),
    "strides to below 0": ({"strides": (-(2**48), 3, 1)}, ValueError, "strides"),
    "the least stride": ({"strides": (12, 3, -(2**63))}, ValueError, "strides"),
    "integers": ({"code": 0}, TypeError, "dtype int32"),
    "complex numbers": ({"code": 5, "bits": 64}, TypeError, "dtype complex64"),
    "an unknown dtype": ({"code": 77}, TypeError, "dtype code 77"),
    "lanes": ({"lanes": 2}, TypeError, "2 lanes"),
    "another width": ({"bits": 31}, TypeError, "dtype float31"),
    "another device": ({"capsule_device": (2, 0)}, ValueError, "device 2:0"),
    "a device that is none": ({"capsule_device": (0, 0)}, ValueError, "device 0:0"),
    "a later version": ({"version": (2, 0)}, ValueError, "version 2.0"),
    "a version without meaning": ({"version": (99, 7)}, ValueError, "version 99.7"),
    "no device": ({"device": (None, None)}, TypeError, "__dlpack_device__"),
    "three numbers": ({"device": (1, 0, 0)}, TypeError, "__dlpack_device__"),
    "no tuple": ({"device": "cpu"}, TypeError, "__dlpack_device__"),
    "a device beyond integers": ({"device": (2**40, 0)}, TypeError, "__dlpack_device__"),
    "a device that we have not": ({"device": (7, 0)}, ValueError, "device 7:0"),
    "another capsule": ({"name": b"something"}, TypeError, "something"),
}
each_lie = pytest.mark.parametrize("lie", LIES)


def refused(f, lie, name):
    said, error, text = LIES[lie]
    liar = Lying(X.copy(), **said)
    with pytest.raises(error, match=text) as caught:
        f(liar)
    assert str(caught.value).startswith(name)
    assert len(str(caught.value)) < 500
    taken = liar.given and lie != "another capsule"
    assert liar.deleted == int(bool(taken)), "the capsule has one deleter, for one call"


@each_lie
@each_call
def test_lies_of_x(name, lie):
    refused(CALLS[name], lie, FIRST.get(name, "x"))


@each_lie
@each_call
def test_lies_of_out(name, lie):
    x = X.copy()
    refused(lambda out: CALLS[name](x, out=out), lie, "out")


@each_lie
@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("weight", lambda a: nc.batch_norm(X, a)),
        ("bias", lambda a: nc.layer_norm(X, None, a)),
        ("residual", lambda a: nc.rms_norm(X, residual=a)),
        ("dy", lambda a: nc.group_norm_backward(a, X, 2)),
        ("dh", lambda a: nc.layer_norm_backward(X, X, dh=a)),
        ("mask", lambda a: nc.moments(X, mask=a)),
        ("running_mean", lambda a: nc.batch_norm(X, running_mean=a, running_var=W, training=True)),
        ("running_var", lambda a: nc.batch_norm(X, running_mean=W, running_var=a)),
        ("g", lambda a: nc.weight_norm(X, a)),
        ("u", lambda a: nc.spectral_norm(X, a)),
        ("sigma", lambda a: nc.divisive_norm(X, SQUARE, a)),
        ("x", lambda a: nc.norm(a)),
        ("a", lambda a: nc.power_method(a)),
    ],
)
def test_lies_of_other_arguments(name, f, lie):
    if name == "mask" and lie == "integers":
        return  # which a mask may be
    refused(f, lie, name)


@pytest.mark.parametrize(
    "kind", ["bool", "int8", "uint16", "int32", "uint64", "float16", "float64"]
)
def test_masks_of_any_numbers_through_dlpack(kind):
    codes = {"b": 6, "i": 0, "u": 1, "f": 2}
    mask = (np.random.default_rng(0).random((2, 9, 3)) * 2).astype(kind)[:, 1::2]
    given = Lying(mask, code=codes[mask.dtype.kind], bits=8 * mask.itemsize)
    got, want = nc.moments(X, mask=given), nc.moments(X, mask=mask)
    assert got.count == want.count and got.mean == want.mean
    gc.collect()
    assert given.given == given.deleted == 1


@pytest.mark.parametrize("version", [None, (1, 0), (1, 9)])
def test_the_truth_is_believed(version):
    x = X.copy()
    for view in (x, x[:, ::-1], x[..., ::2], x[:0], x.transpose(2, 0, 1)):
        honest = Lying(view, version=version)
        np.testing.assert_array_equal(np.asarray(nc.rms_norm(honest)), nc.rms_norm(view))
        gc.collect()
        assert honest.given == honest.deleted == 1
    out = np.full_like(x, np.nan)
    given = Lying(out, version=version)
    assert nc.rms_norm(x, out=given) is given
    np.testing.assert_array_equal(out, nc.rms_norm(x))


def test_a_null_of_no_elements_is_memory_enough():
    nothing = Lying(np.zeros((2, 0, 3), np.float32), data=None)
    assert np.shape(nc.batch_norm(nothing)) == (2, 0, 3)
    assert np.shape(nc.layer_norm(np.zeros((0, 4), np.float32), Lying(W, data=W.ctypes.data))) == (
        0,
        4,
    )


def test_read_only_capsules_are_read_and_not_written():
    x = X.copy()
    nc.layer_norm(Lying(x, version=(1, 0), flags=1))
    with pytest.raises(ValueError, match=r"out is read-only"):
        nc.layer_norm(x, out=Lying(x.copy(), version=(1, 0), flags=1))
    with pytest.raises(ValueError, match=r"running_mean is read-only"):
        frozen = Lying(np.zeros(4, np.float32), version=(1, 0), flags=1)
        nc.batch_norm(x, running_mean=frozen, running_var=W.copy(), training=True)


def test_a_capsule_is_taken_once():
    stale = Stale(X.copy())
    nc.layer_norm(stale)
    with pytest.raises(TypeError, match=r"x.*taken over"):
        nc.layer_norm(stale)
    assert stale.deleted == 1


class Raising:
    def __init__(self, error, in_device=False):
        self.error, self.in_device = error, in_device

    def __dlpack_device__(self):
        if self.in_device:
            raise self.error
        return (1, 0)

    def __dlpack__(self, **options):
        raise self.error


@pytest.mark.parametrize("in_device", [False, True])
def test_errors_of_exporters_name_the_argument(in_device):
    for error in (BufferError("b"), ValueError("v"), RuntimeError("r"), AttributeError("a")):
        with pytest.raises(TypeError, match=rf"^weight .*{error}") as caught:
            nc.layer_norm(X, Raising(error, in_device))
        assert isinstance(caught.value, BufferError) and caught.value.__cause__ is error
    for error in (KeyboardInterrupt(), MemoryError(), KeyError("own")):  # not about the argument
        with pytest.raises(type(error)):
            nc.layer_norm(Raising(error, in_device))


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
def test_numpy_arrays_off_their_elements(dtype):
    store = np.zeros(400, np.uint8)
    off = store[1 : 1 + 96].view(dtype)
    with pytest.raises(ValueError, match=r"x is not aligned"):
        nc.layer_norm(off)
    with pytest.raises(ValueError, match=r"out is not aligned"):
        nc.layer_norm(np.ones(off.shape, dtype), out=off)
    fields = np.zeros((3, 4), np.dtype([("tag", "u1"), ("value", dtype)]))["value"]
    with pytest.raises(ValueError, match=r"x is not aligned"):
        nc.layer_norm(fields)


def views_of(a):
    """Arrays equal to a, of other strides."""
    apart = np.full([2 * n for n in a.shape], np.nan, a.dtype)
    apart = apart[tuple(slice(None, None, 2) for _ in a.shape)]
    reverse = tuple(slice(None, None, -1) for _ in a.shape)
    apart[...] = a
    return [apart, np.asfortranarray(a), np.ascontiguousarray(a[reverse])[reverse]]


# Calls of x (N, C, L) that give statistics.
SAVING = {
    "layer_norm": {"axis": 2},
    "rms_norm": {"axis": 1},
    "instance_norm": {},
    "batch_norm": {"training": True},
}


@pytest.mark.parametrize("name", SAVING)
def test_saved_statistics_of_any_strides(rng, name):
    arguments, backward = SAVING[name], getattr(nc, name + "_backward")
    x, dy = (rng.standard_normal((6, 5, 19)).astype(np.float32) for _ in "xy")
    *_, stats = getattr(nc, name)(x, return_stats=True, **arguments)
    wanted = backward(dy, x, stats=stats, **arguments)
    for view in views_of(stats.pooled):
        got = backward(dy, x, stats=stats._replace(pooled=view), **arguments)
        np.testing.assert_array_equal(got.dx, wanted.dx)


def test_saved_statistics_that_are_broadcast(rng):
    # One row's for all of a sample, so that the innermost stride is 0 and the next is not.
    x = np.repeat(rng.standard_normal((4, 1, 19)), 5, axis=1)
    dy = rng.standard_normal(x.shape)
    _, stats = nc.layer_norm(x, return_stats=True)
    view = np.broadcast_to(stats.pooled[:, :1], stats.pooled.shape)
    got = nc.layer_norm_backward(dy, x, stats=stats._replace(pooled=view))
    np.testing.assert_array_equal(got.dx, nc.layer_norm_backward(dy, x, stats=stats).dx)


def test_huge_broadcasts():
    one = np.float32(1)
    with pytest.raises(ValueError, match=r"x.shape has more elements"):
        nc.norm(np.broadcast_to(one, (2**59,)))
    with pytest.raises(MemoryError):
        nc.layer_norm(np.broadcast_to(one, (2**50, 8)))


# ---- what an array shows of its memory


def masked(array, where):
    return np.ma.array(array, mask=where)


HIDDEN = np.zeros(X.shape, bool)
HIDDEN[0, :, 1] = True


@each_call
@pytest.mark.parametrize("role", ["x", "out"])
def test_masked_arrays_are_refused(name, role):
    before = X.copy()
    array = masked(before, np.eye(4, 3, dtype=bool) | HIDDEN)
    first = FIRST.get(name, "x")
    with pytest.raises((TypeError, ValueError), match=rf"^{first if role == 'x' else role} is a m"):
        CALLS[name](array) if role == "x" else CALLS[name](X, out=array)
    np.testing.assert_array_equal(before, X)


@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("weight", lambda a: nc.batch_norm(X, a)),
        ("bias", lambda a: nc.group_norm(X, 2, None, a)),
        ("running_mean", lambda a: nc.batch_norm(X, running_mean=a, running_var=W)),
        ("running_var", lambda a: nc.batch_norm(X, running_mean=W, running_var=a, training=True)),
        ("rho", lambda a: nc.batch_instance_norm(X, a)),
        ("beta", lambda a: nc.gdn(X, a, SQUARE)),
        ("conv_weight", lambda a: evaluated().fold_into(np.ma.stack([a] * 4))),
        (
            "weight",
            lambda a: nc.BatchNorm(4).load_state_dict(nc.BatchNorm(4).state_dict() | {"weight": a}),
        ),
    ],
)
def test_masked_parameters_are_refused(name, f):
    # Layers collect what is wrong, as a ValueError.
    with pytest.raises((TypeError, ValueError), match=rf"{name} is a masked array"):
        f(masked(W, [False, True, False, False]))


def evaluated():
    return nc.BatchNorm(4).eval()


def test_masked_gradients_are_refused():
    dy = masked(X, HIDDEN)
    with pytest.raises(TypeError, match=r"^dy is a masked"):
        nc.layer_norm_backward(dy, X)
    layer = nc.BatchNorm(4)
    layer(X)
    with pytest.raises(TypeError, match=r"^dy is a masked"):
        layer.backward(dy)


def test_masked_arrays_that_hide_nothing_are_arrays():
    for array in (np.ma.array(X), masked(X, False), masked(X, np.zeros(X.shape, bool))):
        y = nc.layer_norm(array)
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, nc.layer_norm(X))


def test_moments_take_the_mask_of_x():
    where = np.random.default_rng(0).random(X.shape) < 0.4
    got, want = nc.moments(masked(X, where), axis=1), nc.moments(X, axis=1, mask=~where)
    for field in ("count", "mean", "m2"):
        np.testing.assert_array_equal(getattr(got, field), getattr(want, field))
    with pytest.raises(ValueError, match=r"x is a masked array and mask is given"):
        nc.moments(masked(X, where), mask=~where)


@pytest.mark.parametrize("name", ["batch_norm", "batch_renorm", "mean_only_batch_norm"])
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_a_mask_of_all_channels_is_taken(name, channel_axis):
    options = {"training": True, "channel_axis": channel_axis}
    channels = X.shape[channel_axis]
    if name == "batch_renorm":
        options |= {"running_mean": np.zeros(channels), "running_std": np.ones(channels)}
    where = np.random.default_rng(1).random(np.delete(X.shape, channel_axis)) < 0.3
    array = masked(X, np.broadcast_to(np.expand_dims(where, channel_axis), X.shape))
    copies = [
        {k: np.copy(v) if k.startswith("run") else v for k, v in options.items()} for _ in "ab"
    ]
    y, stats = getattr(nc, name)(array, **copies[0], return_stats=True)
    want, want_stats = getattr(nc, name)(X, mask=~where, **copies[1], return_stats=True)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, want)
    for key in copies[0]:
        np.testing.assert_array_equal(copies[0][key], copies[1][key])
    backward = getattr(nc, name + "_backward")
    got = backward(X, array, **copies[0], stats=stats)
    want = backward(X, X, mask=~where, **copies[1], stats=want_stats)
    np.testing.assert_array_equal(got.dx, want.dx)
    with pytest.raises(ValueError, match=r"x is a masked array that hides some channels.*mask="):
        getattr(nc, name)(masked(X, np.arange(24).reshape(X.shape) == 5), **copies[0])


def test_layers_take_the_mask_of_x():
    where = np.broadcast_to(np.array([[True, False, False], [False] * 3])[:, None], X.shape)
    layers = [nc.BatchNorm(4), nc.BatchNorm(4)]
    y = layers[0](masked(X, where))
    np.testing.assert_array_equal(y, layers[1](X, mask=~where[:, 0]))
    np.testing.assert_array_equal(layers[0].backward(X), layers[1].backward(X))
    for key, value in layers[0].state_dict().items():
        np.testing.assert_array_equal(value, layers[1].state_dict()[key])
    layers[0](masked(X, True))  # counts nothing
    assert layers[0].buffers["num_batches_tracked"] == 1
    with pytest.raises(TypeError, match=r"^x is a masked"):
        nc.LayerNorm(3)(masked(X, where))


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_negative_bits_of_torch(torch):
    z = torch.randn(2, 4, 3, dtype=torch.complex64)
    x = z.conj().imag
    assert x.is_neg()
    want = nc.layer_norm(x.resolve_neg().numpy())
    y = nc.layer_norm(x)
    assert isinstance(y, torch.Tensor) and not y.is_neg()
    np.testing.assert_array_equal(y.numpy(), want)
    got = nc.layer_norm_backward(x, X, stats=None).dx
    np.testing.assert_array_equal(got, nc.layer_norm_backward(-z.imag.numpy(), X).dx)
    for function, options in (
        (nc.layer_norm, {"out": x}),
        (nc.batch_norm, {"running_mean": x[0, :, 0], "running_var": W.copy(), "training": True}),
    ):
        before = z.clone()
        with pytest.raises(ValueError, match=r"^(out|running_mean) has torch's negative bit"):
            function(X, **options)
        assert torch.equal(z, before)
    # As a buffer that is read, as a mask, as a state.
    mean = x[0, :, 0]
    np.testing.assert_array_equal(
        nc.batch_norm(X, running_mean=mean, running_var=W),
        nc.batch_norm(X, running_mean=mean.resolve_neg().numpy(), running_var=W),
    )
    weights = torch.complex(torch.zeros(2, 3), -torch.rand(2, 3)).conj().imag
    np.testing.assert_array_equal(
        nc.batch_norm(X, mask=weights), nc.batch_norm(X, mask=weights.resolve_neg().numpy())
    )
    layer = nc.LayerNorm(4)
    layer.load_state_dict({"weight": mean, "bias": mean})
    np.testing.assert_array_equal(layer.parameters["weight"], mean.resolve_neg().numpy())


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_tensors_of_other_kinds_than_memory(torch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(2, 4, 3)
    real = torch.ones(2, 4, 3)
    for x, name in (
        (fake, "x.data is null"),
        (real.to_sparse(), "x is a torch"),
        (real.to("meta"), "x is a torch"),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"^{name}"):
            nc.layer_norm(x)
    with pytest.raises((TypeError, ValueError), match=r"^weight.*pass weight\.detach\(\)"):
        nc.layer_norm(real, torch.nn.Parameter(torch.ones(3)))
    with pytest.raises((TypeError, ValueError), match=r"^out.*detach"):
        nc.layer_norm(real, out=torch.nn.Parameter(real))
    odd = torch.frombuffer(bytearray(4 * 24 + 4), dtype=torch.float32, offset=1, count=24)
    with pytest.raises(ValueError, match=r"^out is not aligned"):
        nc.layer_norm(real, out=odd.reshape(2, 4, 3))


def test_subclasses_of_torch_tensors_are_answered_in_torch(torch):
    class Image(torch.Tensor):
        pass

    class Photograph(Image):
        pass

    x = torch.from_numpy(X.copy())
    for kind in (Image, Photograph):
        ours = x.as_subclass(kind)
        y, stats = nc.batch_norm(ours, return_stats=True)
        dx = nc.batch_norm_backward(ours, ours, stats=stats).dx
        for result in (y, stats.mean, dx, nc.BatchNorm(4, ghost_batch_size=1)(ours)):
            assert isinstance(result, torch.Tensor)
            result.mul_(1)  # writeable
        assert torch.equal(y.as_subclass(torch.Tensor), nc.batch_norm(x))


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of np.matrix itself
def test_subclasses_of_arrays_are_answered_in_arrays(tmp_path):
    np.save(tmp_path / "x.npy", X[0])
    for x in (np.matrix(X[0]), np.load(tmp_path / "x.npy", mmap_mode="r"), X[0].view(np.recarray)):
        y = nc.layer_norm(x)
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, nc.layer_norm(X[0]))
    with pytest.raises(ValueError, match=r"out is read-only"):
        nc.layer_norm(X[0], out=np.load(tmp_path / "x.npy", mmap_mode="r"))


def test_jax_arrays_are_no_place_to_write():
    jax = pytest.importorskip("jax")
    with pytest.raises(ValueError, match=r"out.*immutable"):
        nc.layer_norm(X, out=jax.numpy.zeros(X.shape, np.float32))


# ---- numbers, bools and axes

BOOLS = [
    ("training", lambda v: nc.batch_norm(X, training=v)),
    ("unbiased_running_var", lambda v: nc.batch_norm(X, unbiased_running_var=v)),
    ("use_input_stats", lambda v: nc.instance_norm(X, **BUFFERS, use_input_stats=v)),
    ("return_stats", lambda v: nc.layer_norm(X, return_stats=v)),
    ("return_stats", lambda v: nc.topk_batch_norm(X, k=2, return_stats=v)),
    ("keepdims", lambda v: nc.norm(X, keepdims=v)),
    ("keepdims", lambda v: nc.moments(X, keepdims=v)),
    ("inverse", lambda v: nc.gdn(X, W, SQUARE, inverse=v)),
    ("training", lambda v: nc.switchable_norm_backward(X, X, W[:3], W[:3], training=v)),
]


@pytest.mark.parametrize(("name", "f"), BOOLS)
def test_bools_are_bools(name, f):
    for value in (True, False, np.True_, np.False_, 1, 0, np.int64(1)):
        if name == "use_input_stats" or value is not None:
            f(value)
    for value in ("False", "", None, 0.0, 1.0, 2, -1, np.array([True]), [], object()):
        with pytest.raises(TypeError, match=rf"^{name} is .*expected True or False"):
            f(value)


def test_numbers_in_messages_are_the_ones_given():
    for f, name, value in (
        (lambda v: nc.group_norm(X, v, return_stats=True), "num_groups", 2**40),
        (lambda v: nc.group_norm_backward(X, X, v), "num_groups", -(2**62)),
        (lambda v: nc.group_norm(X, v, return_stats=True), "num_groups", 2**64),
        (lambda v: nc.layer_norm(X, axis=v), "axis", 2**40),
        (lambda v: nc.layer_norm(X, axis=[0, v]), "axis", -(2**40)),
        (lambda v: nc.batch_norm(X, channel_axis=v), "channel_axis", 1234567),
        (lambda v: nc.topk_batch_norm(X, k=v), "k", 2**63),
        (lambda v: nc.local_response_norm(X, v), "size", -(2**63) - 1),
        (lambda v: nc.spectral_norm(X, W[:2], n_power_iterations=v), "n_power_iterations", 2**99),
        (lambda v: nc.layer_norm(X, eps=v), "eps", 10**310),
        (lambda v: nc.batch_norm(X, training=True, momentum=v), "momentum", 3),
        (lambda v: nc.lp_batch_norm(X, training=True, momentum=v), "momentum", -0.5),
    ):
        with pytest.raises(ValueError, match=rf"^{name} is {str(value)[:90]}"):
            f(value)


def test_no_message_is_longer_than_a_reader():
    for value in (np.ones((99, 99)), "x" * 10**6, [1.0] * 10**5, 10**6000, {1: "y" * 9999}):
        with pytest.raises((TypeError, ValueError), match=r"^eps is ") as caught:
            nc.layer_norm(X, eps=value)
        assert len(str(caught.value)) < 250
        assert "\n" not in str(caught.value)


class Number:
    def __init__(self, f):
        self.f = f

    def __index__(self):
        return self.f()

    def __float__(self):
        return float(self.f())


def test_errors_of_a_number_itself_go_on():
    def fail():
        raise LookupError("its own")

    for f in (
        lambda n: nc.group_norm(X, n),
        lambda n: nc.layer_norm(X, axis=(0, n)),
        lambda n: nc.layer_norm(X, eps=n),
    ):
        with pytest.raises(LookupError, match=r"its own"):
            f(Number(fail))


def test_lists_that_shrink_while_they_are_read():
    axes = [Number(lambda: (axes.clear(), 1)[1]), Number(lambda: 2)]
    np.testing.assert_array_equal(nc.layer_norm(X, axis=axes), nc.layer_norm(X, axis=(1, 2)))
    windows = [Number(lambda: (windows.clear(), 3)[1])]
    nc.local_divisive_norm(X, 1.0, summation_window=windows, suppression_window=3)


def test_axes_of_any_sequence():
    want = nc.layer_norm(X, axis=(1, 2))
    for axes in ([1, 2], range(1, 3), np.array([1, 2]), (np.int8(1), Number(lambda: -1))):
        np.testing.assert_array_equal(nc.layer_norm(X, axis=axes), want)
    np.testing.assert_array_equal(nc.layer_norm(X, axis=np.array(2)), nc.layer_norm(X))
    for axes in ("12", b"12", {1: 2}, 1.0, [1.0], [[1]], [True]):
        with pytest.raises(TypeError, match=r"^axis is "):
            nc.layer_norm(X, axis=axes)
    with pytest.raises(ValueError, match=r"^axis has 1000000000000 items"):
        nc.layer_norm(X, axis=range(10**12))


@pytest.mark.parametrize("value", [[[1.0], [1.0, 2.0]], [1.0, [2.0]]], ids=str)
def test_ragged_lists(value):
    for name, f in (
        ("x", nc.layer_norm),
        ("weight", lambda v: nc.layer_norm(X, v)),
        ("mask", lambda v: nc.batch_norm(X, mask=v)),
    ):
        with pytest.raises(ValueError, match=rf"^{name} is .*nested lists of one shape"):
            f(value)


def test_a_mask_beside_an_exporter_that_has_no_shape():
    mask = np.random.default_rng(0).random((2, 3)) < 0.5
    np.testing.assert_array_equal(
        np.asarray(nc.batch_norm(Lying(X.copy()), mask=mask)), nc.batch_norm(X, mask=mask)
    )
    for axis in (1.0, "1", None):
        with pytest.raises(TypeError, match=r"^channel_axis is "):
            nc.batch_norm(X, channel_axis=axis, mask=mask)
    with pytest.raises(ValueError, match=r"^mask is on device 2:0"):
        nc.moments(X, mask=Lying(X, device=(2, 0)))


# ---- the interpreter lock: a fault ends the process, so another one is risked


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])


def test_wrong_numbers_beside_arrays_that_let_go_of_the_lock():
    run(
        """
        import numpy as np, normcore as nc
        x = np.random.default_rng(0).normal(size=(8, 16, 10, 10)).astype(np.float32)
        w = np.random.default_rng(0).normal(size=(80, 80)).astype(np.float32)
        r = nc.spectral_norm(w, np.ones(80, np.float32))
        class Index:
            def __index__(self): return len([1, 2, 3, 4])
        for groups in (2.0, None, "2", [2], object()):
            for f in (nc.group_norm, lambda x, g: nc.group_norm_backward(x, x, g)):
                try: f(x, groups)
                except TypeError as e: assert str(e).startswith("num_groups is "), e
                else: raise SystemExit("accepted")
        for sigma in (None, "a", [], {}):
            try: nc.spectral_norm_backward(w, r._replace(sigma=sigma))
            except TypeError as e: assert str(e).startswith("result.sigma is "), e
            else: raise SystemExit("accepted")
        nc.group_norm_backward(x, x, Index())
        nc.spectral_norm_backward(w, r._replace(sigma=np.float32(1)))
        nc.spectral_norm_backward(w, r._replace(sigma=np.array(1.0)))
        """
    )


def test_numbers_of_python_in_many_threads():
    run(
        """
        import threading, numpy as np, normcore as nc
        nc.set_num_threads(1)
        x = np.random.default_rng(0).normal(size=(8, 16, 10, 10)).astype(np.float32)
        w = np.random.default_rng(0).normal(size=(80, 80)).astype(np.float32)
        r = nc.spectral_norm(w, np.ones(80, np.float32))
        class Fresh:
            # New objects at every conversion: their counts and the heap suffer without the lock.
            def __index__(self): return int("".join([str(n) for n in (4,)]))
            def __float__(self): return float("".join(["1", ".", "5"]))
        failures = []
        def work():
            try:
                for i in range(150):
                    g = Fresh()
                    nc.group_norm_backward(x, x, g, eps=Fresh(), channel_axis=1)
                    nc.spectral_norm_backward(w, r._replace(sigma=Fresh()))
                    nc.layer_norm(x, axis=[3, Number()], eps=Fresh())
                    [str(j) for j in range(100)]
            except BaseException as e:
                failures.append(repr(e))
        class Number:
            def __index__(self): return int("2")
        threads = [threading.Thread(target=work) for _ in range(6)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert not failures, failures
        """
    )


def test_lists_that_other_threads_change():
    stop = threading.Event()
    axes = [1, 2]

    def change():
        while not stop.is_set():
            axes[:] = [2]
            axes[:] = [1, 2]

    changer = threading.Thread(target=change)
    changer.start()
    allowed = {nc.layer_norm(X, axis=a).tobytes() for a in ((1, 2), 2)}
    try:
        for _ in range(2000):
            assert nc.layer_norm(X, axis=axes).tobytes() in allowed
    finally:
        stop.set()
        changer.join()
