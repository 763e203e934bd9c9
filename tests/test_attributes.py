"""Parameters and buffers as attributes of layers, and layers set back to their start.

Hunts for an attribute that is another array than the one that is trained, an assignment that lets a
wrong array in or leaves half of it, and a start that is not that of a new layer.
"""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
from lying_dlpack import Lying
from support import bits, channel_layers

import normcore as nc

LAYERS = {layer.__name__: partial(layer, *sizes) for layer, sizes in channel_layers(3).items()}
LAYERS |= {
    "BatchNorm bare": lambda **o: nc.BatchNorm(3, affine=False, track_running_stats=False, **o),
    "BatchNorm steps": lambda **o: nc.BatchNorm(3, time_steps=2, **o),
    "InstanceNorm": lambda **o: nc.InstanceNorm(3, affine=True, track_running_stats=True, **o),
    "GroupNorm": lambda **o: nc.GroupNorm(1, 3, bias=False, **o),
    "LayerNorm": lambda **o: nc.LayerNorm((2, 3), **o),
    "RMSNorm": lambda **o: nc.RMSNorm(3, weight_offset=1.0, **o),
    "WeightNorm": lambda **o: nc.WeightNorm((3, 2), rng=7, **o),
    "SpectralNorm": lambda **o: nc.SpectralNorm((3, 2), rng=7, **o),
    "DivisiveNorm": lambda **o: nc.DivisiveNorm(3, **o),
    "LocalDivisiveNorm": lambda **o: nc.LocalDivisiveNorm(3, sigma=0.5, **o),
    "GDN": lambda **o: nc.GDN(3, gamma_init=0.3, **o),
}
RANDOM = {"WeightNorm": ("v",), "SpectralNorm": ("u", "v")}  # drawn anew by a reset


def arrays_of(layer):
    return {**layer.parameters, **layer.buffers}


@pytest.fixture(params=LAYERS)
def name(request):
    return request.param


@pytest.fixture
def layer(name):
    return LAYERS[name]()


def test_every_array_is_an_attribute(layer):
    for key, array in arrays_of(layer).items():
        assert getattr(layer, key) is array
        assert key in dir(layer)
        assert getattr(type(layer), key).__doc__
    assert all(a is layer.parameters[k] for k, a in layer.named_parameters())
    assert [k for k, _ in layer.named_parameters()] == list(layer.parameters)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_assignment_copies_into_the_array_that_is_there(rng, name, dtype):
    if name == "GDN" and dtype == "bfloat16":
        dtype = "float32"  # which has a place for the pedestal
    layer = LAYERS[name](dtype=dtype)
    for key, array in arrays_of(layer).items():
        held, new = array, rng.uniform(1, 9, array.shape).astype(array.dtype)
        setattr(layer, key, new)
        assert getattr(layer, key) is held
        assert bits(held) == bits(new) and held is not new
        # What has no dtype of its own, and what NumPy's files make of bfloat16.
        setattr(layer, key, np.ones(array.shape, int).tolist())
        assert (held == np.ones(array.shape, array.dtype)).all()
        if array.dtype.name == "bfloat16":
            setattr(layer, key, new.view("V2"))
            assert bits(held) == bits(new)
        # In place, and from itself.
        before = held.copy()
        setattr(layer, key, held[::-1] if held.ndim else held)
        assert bits(held) == bits(before[::-1] if before.ndim else before)


def test_operators_work_in_place():
    layer = nc.BatchNorm(2)
    weight, count = layer.weight, layer.num_batches_tracked
    layer.weight *= 3
    layer.weight -= np.float32([1, 2])
    layer.num_batches_tracked += 5
    assert layer.parameters["weight"] is weight and weight.tolist() == [2, 1]
    assert layer.buffers["num_batches_tracked"] is count and count == 5
    layer.num_batches_tracked = 7
    assert count == 7
    layer.weight = layer.weight * 2 + 1
    assert layer.parameters["weight"] is weight and weight.tolist() == [5, 3]


def test_other_libraries_arrays():
    layer = nc.LayerNorm(2, dtype="bfloat16")
    torch = pytest.importorskip("torch")
    layer.weight = torch.nn.Parameter(torch.tensor([2.0, 3.0], dtype=torch.bfloat16))
    assert layer.weight.tolist() == [2, 3]
    with pytest.raises(TypeError, match=r"LayerNorm.bias has dtype torch.float64, expected bf"):
        layer.bias = torch.zeros(2, dtype=torch.float64)


def test_wrong_arrays_are_refused_and_nothing_changes(layer):
    for key, array in arrays_of(layer).items():
        before = bits(array)
        place = rf"{type(layer).__name__}\.{key} "
        other = np.float64 if array.dtype != np.float64 else np.float32
        for value, error, message in (
            (np.zeros((*array.shape, 2), array.dtype), ValueError, "has shape .*expected"),
            (np.zeros((5, 7), array.dtype), ValueError, "has shape .*expected"),
            (np.zeros(array.shape, complex), TypeError, "has dtype complex128, expected"),
            (np.zeros(array.shape, other), TypeError, "has dtype float64, expected"),
            (np.zeros(array.shape, np.int8), TypeError, "has dtype int8, expected"),
            (np.full(array.shape, "a"), TypeError, "has dtype .*, expected"),
            ((np.zeros(array.shape) + 1j).tolist(), TypeError, "has dtype complex128"),
            (None, TypeError, "is None, expected an array of shape"),
        ):
            with pytest.raises(error, match=place + message):
                setattr(layer, key, value)
            assert bits(array) == before
        # What is no array at all is named as well.
        for value, error, message in (
            ([[1.0], [1.0, 2.0]], ValueError, r" is \[\[1.0\], \[1.0, 2.0\]\], expected"),
            (np.ma.masked_array(array, mask=True), TypeError, " .*mask"),
            (
                Lying(np.ones(3, np.float32), data=None),
                ValueError,
                ".data is null, expected memory",
            ),
        ):
            with pytest.raises(error, match="^" + place.strip() + message):
                setattr(layer, key, value)
            assert bits(array) == before
        array.flags.writeable = False
        with pytest.raises(ValueError, match=place + "is read-only"):
            setattr(layer, key, array.copy())


def test_absent_arrays_are_none():
    layer = nc.BatchNorm(3, affine=False, track_running_stats=False)
    for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        assert getattr(layer, key) is None
        setattr(layer, key, None)
        with pytest.raises(ValueError, match=rf"BatchNorm\.{key} is absent"):
            setattr(layer, key, np.ones(3, np.float32))
        assert key not in arrays_of(layer)
    assert nc.GroupNorm(1, 2, bias=False).bias is None
    assert nc.MeanOnlyBatchNorm(2).weight is None
    with pytest.raises(AttributeError, match="no attribute 'heft'"):
        layer.heft  # noqa: B018


def test_copies_have_arrays_of_their_own(layer):
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for key, array in arrays_of(layer).items():
            theirs = getattr(other, key)
            assert theirs is arrays_of(other)[key] and theirs is not array
            assert bits(theirs) == bits(array)


def test_a_reset_layer_is_as_new(rng, name, layer):
    held = arrays_of(layer)
    grads = layer.grads
    new = LAYERS[name]()
    drawn = RANDOM.get(name, ())
    for reset, keys in (
        (layer.reset_running_stats, layer.buffers),
        (layer.reset_parameters, held),
    ):
        for array in held.values():
            array[...] = rng.uniform(20, 30, array.shape).astype(array.dtype)
        reset()
        for key, array in held.items():
            assert arrays_of(layer)[key] is array
            if key not in keys:
                assert (array >= 20).all()
            elif key not in drawn:
                assert bits(array) == bits(arrays_of(new)[key]), key
            else:
                assert np.isfinite(array).all() and bits(array) != bits(arrays_of(new)[key])
    assert layer.grads is grads


def test_random_starts_are_drawn_as_before_and_anew():
    layer = nc.WeightNorm((40, 50), rng=3)
    want = np.random.default_rng(3).normal(0, 0.05, (40, 50)).astype(np.float32)
    assert bits(layer.v) == bits(want)
    layer.reset_parameters()
    # The standard deviation of 2000 draws is off by 1/sqrt(4000); five of these.
    assert abs(layer.v.std() / 0.05 - 1) < 5 / np.sqrt(4000) and bits(layer.v) != bits(want)
    spectral = nc.SpectralNorm((6, 4), rng=3)
    weight = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    spectral(weight)
    spectral.reset_running_stats()
    assert spectral.sigma is None
    assert abs(np.linalg.norm(spectral.u) - 1) < 1e-6
    # As in a new layer the first call iterates before its own step, also in evaluation.
    sigma = np.linalg.norm(weight, 2)
    spectral.eval()(weight)
    assert spectral.sigma > 0.8 * sigma
