"""Layers that are told something wrong: the error names it, and no state has moved.

Hunts for late errors after early writes: the second chunk, the last array, the last parameter.
"""

import copy
import inspect
from functools import partial

import numpy as np
import pytest
from support import bits, channel_layers

import normcore as nc

EVERY = channel_layers(4, groups=2) | {
    nc.LayerNorm: (4,),
    nc.RMSNorm: (4,),
    nc.WeightNorm: ((4, 3),),
    nc.SpectralNorm: ((4, 3),),
    nc.DivisiveNorm: (4,),
    nc.LocalDivisiveNorm: (4,),
    nc.LocalResponseNorm: (3,),
    nc.GDN: (4,),
}
INF, NAN = np.inf, np.nan
SIZE = {TypeError: ["a", 2.5, None, True, np.True_, [2], 1j], ValueError: [0, -1, 2**70]}
AXIS = {TypeError: ["a", 1.5, True, [1]], ValueError: []}
FLAG = {TypeError: ["False", 1, 0, None, [True], np.ones(2, bool)], ValueError: []}
EPS = {TypeError: ["1e-5", "x", [1.0], 1j, True, b"1"], ValueError: [NAN, -1, INF, -1e-30]}
ABOVE = {**EPS, ValueError: [*EPS[ValueError], 0.0]}
FINITE = {**EPS, ValueError: [NAN, INF, 10**400]}
CHANNELS = {**SIZE, ValueError: [0, -1, 2**62, 2**70]}  # each one a number of an array
SIZES = {
    TypeError: ["ab", "", b"ab", 2.0, None, [2, "a"], [2.0], [[2]]],
    ValueError: [[3, 0], [-1], [2**62, 2], [2**62], [1] * 65],
}
ARGUMENTS = {
    "num_features": CHANNELS,
    "num_channels": CHANNELS,
    "num_groups": {**SIZE, ValueError: [0, -1, 3, 8, 2**70]},
    "size": SIZE,
    "k": SIZE,
    "n_power_iterations": SIZE,
    "ghost_batch_size": {**SIZE, TypeError: ["a", 2.5, True]},
    "time_steps": {**CHANNELS, TypeError: ["a", 2.5, True]},
    "normalized_shape": {**SIZES, ValueError: [[], (), *SIZES[ValueError], 0, -1]},
    "shape": SIZES,
    "summation_window": {TypeError: ["ab", 2.0, True, [3.0]], ValueError: [0, -1, 4, [3, 2]]},
    "suppression_window": {TypeError: ["ab", 2.0, True, [3.0]], ValueError: [0, -1, 4, [3, 2]]},
    "channel_axis": AXIS,
    "affine": FLAG,
    "bias": FLAG,
    "elementwise_affine": FLAG,
    "track_running_stats": FLAG,
    "unbiased_running_var": FLAG,
    "inverse": FLAG,
    "eps": EPS,
    "momentum": {TypeError: ["a", [0.1], True], ValueError: [3, -0.1, 1.01, NAN, INF]},
    "comm_timeout": {TypeError: ["a", True], ValueError: [0, -1, NAN]},
    "dtype": {TypeError: ["nonsense", int, complex, object, "S3", ">f8", 7, [1]], ValueError: []},
    "p": {TypeError: ["a", True, None], ValueError: [0.5, NAN, -INF]},
    "r_max": {TypeError: ["a", True, None], ValueError: [0.5, NAN, INF]},
    "d_max": EPS,
    "schedule": {TypeError: [5, (1.5, 2, 3), "abc"], ValueError: [(1, 2), (5, 2, 9), (-1, 2, 3)]},
    "weight_offset": FINITE,
    "exponent": ABOVE,
    "power": ABOVE,
    "epsilon": FINITE,
    "beta_min": EPS,
    "gamma_init": EPS,
    "sigma": FINITE,
    "bound": {**ABOVE, TypeError: ["a", True, [1.0]]},
    "first": {TypeError: [None, 1], ValueError: ["w", ""]},
    "across": {TypeError: [None, 1], ValueError: ["time"]},
    "even_window": {TypeError: [None, 1], ValueError: ["tf"]},
    "rng": {TypeError: ["a", 1.5], ValueError: [-1]},
}
# Where a name means different things: a positive alpha for GDN, any axis for the weight layers.
OWN = {
    (nc.GDN, "alpha"): ABOVE,
    (nc.LocalResponseNorm, "alpha"): EPS,
    (nc.LocalResponseNorm, "beta"): FINITE,
    (nc.LocalResponseNorm, "k"): EPS,
    (nc.WeightNorm, "axis"): {TypeError: ["a", 1.5, True], ValueError: [2, -3]},
    (nc.SpectralNorm, "axis"): {TypeError: ["a", 1.5, None], ValueError: [2, -3]},
    (nc.LayerNorm, "axis"): {TypeError: ["a", 1.5, [1.0], True], ValueError: [(0, 1), ()]},
    (nc.RMSNorm, "axis"): {TypeError: ["a", 1.5, [1.0], True], ValueError: [(0, 1), ()]},
    (nc.RMSNorm, "eps"): EPS,
    (nc.InstanceNorm, "num_features"): SIZE,  # has no arrays of its own
    (nc.SpectralNorm, "shape"): {**SIZES, ValueError: [[3, 0], [-1], [2**62, 2], [2**62]]},
}


def arguments(cls):
    """Names of all arguments that the constructor and its bases take."""
    names = list(cls.__init__.__code__.co_varnames[1 : cls.__init__.__code__.co_argcount])
    code = cls.__init__.__code__
    names += code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    if "ghost_batch_size" not in names and hasattr(cls, "recompute_statistics"):
        names += ["ghost_batch_size", "time_steps"]
    return names


@pytest.mark.parametrize("cls", EVERY, ids=lambda c: c.__name__)
def test_constructors_name_the_argument(cls):
    checked = []
    for name in arguments(cls):
        table = OWN.get((cls, name), ARGUMENTS.get(name))
        if table is None:
            assert name in ("comm", "comm_timeout"), name  # below
            continue
        for error, values in table.items():
            for value in values:
                given = dict(zip(arguments(cls), EVERY[cls], strict=False)) | {name: value}
                with pytest.raises(error) as caught:
                    cls(**given)
                message = str(caught.value)
                assert type(caught.value) is error, (name, value, caught.value)
                assert name in message and len(message) < 200, (name, value, message)
        checked.append(name)
    assert len(checked) >= 4


@pytest.mark.parametrize("cls", EVERY, ids=lambda c: c.__name__)
def test_train_takes_a_bool(cls):
    layer = cls(*EVERY[cls])
    for mode in ("False", 1, None):
        with pytest.raises(TypeError, match=r"^mode is .*, expected a bool$"):
            layer.train(mode)
    assert layer.training and not layer.train(np.bool_(False)).training


def snapshot(layer):
    arrays = {**layer.state_dict(), **{f"d{k}": v for k, v in layer.grads.items()}}
    return {k: bits(v) for k, v in arrays.items()}


def refused(layer, error, match, call):
    before = snapshot(layer)
    with pytest.raises(error, match=match):
        call()
    assert snapshot(layer) == before


NORMS = [
    nc.BatchNorm,
    lambda n, **o: nc.InstanceNorm(n, affine=True, track_running_stats=True, **o),
    nc.BatchRenorm,
    nc.BatchInstanceNorm,
    nc.SwitchableNorm,
    nc.MeanOnlyBatchNorm,
    nc.LpBatchNorm,
    nc.TopKBatchNorm,
]
MASKED = [nc.BatchNorm, nc.BatchRenorm, nc.MeanOnlyBatchNorm]


@pytest.mark.parametrize("make", MASKED)
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 5, 9])
def test_a_refused_mask_of_a_ghost_batch(rng, make, value, where):
    layer = make(6, ghost_batch_size=4)
    x, mask = rng.normal(size=(10, 6, 3)), np.ones((10, 3))
    mask[where, 1] = value
    refused(layer, ValueError, "mask", lambda: layer(x, mask=mask))


class Breaks:
    """An array whose second slice has another dtype: what no check before the first run sees."""

    def __init__(self, x):
        self.x, self.shape, self.taken = x, x.shape, 0

    def __array__(self, dtype=None, copy=None):
        return self.x

    def __getitem__(self, key):
        self.taken += 1
        return self.x[key] if self.taken == 1 else self.x[key].astype(int)


@pytest.mark.parametrize("make", NORMS)
def test_a_later_chunk_that_fails(rng, make):
    layer = make(6, ghost_batch_size=4)
    x, dy = rng.normal(size=(2, 10, 6, 3))
    refused(layer, TypeError, "x has dtype int", lambda: layer(Breaks(x)))
    layer(x)
    refused(layer, TypeError, "dy has dtype", lambda: layer.backward(Breaks(dy)))
    layer.backward(dy)
    assert all(np.any(v) for v in layer.grads.values())


@pytest.mark.parametrize("make", NORMS)
@pytest.mark.parametrize("ghosts", [None, 4])
def test_read_only_buffers(rng, make, ghosts):
    x = rng.normal(size=(10, 6, 3))
    for name in make(6).buffers:
        layer = make(6, ghost_batch_size=ghosts)
        layer.buffers[name].flags.writeable = False
        refused(layer, ValueError, f"{name} is read-only", partial(layer, x))
        recompute = partial(layer.recompute_statistics, [x])
        refused(layer, ValueError, f"{name} is read-only", recompute)
        assert np.all(np.isfinite(layer.eval()(x)))  # which only reads


@pytest.mark.parametrize("cls", EVERY, ids=lambda c: c.__name__)
def test_a_state_is_loaded_wholly_or_not(cls):
    layer = cls(*EVERY[cls])
    state = {k: v + 1 for k, v in copy.deepcopy(layer.state_dict()).items()}
    bad = {
        "read-only": None,
        "shape": np.ones((7, 7)),
        "dtype": "abc",
        "array": [[1.0], [1.0, 2.0]],
    }
    for name, array in layer.state_dict().items():
        for match, value in bad.items():
            array.flags.writeable = match != "read-only"
            given = state if value is None else state | {name: value}
            refused(
                layer, RuntimeError, rf"{name} .*{match}", lambda d=given: layer.load_state_dict(d)
            )
            array.flags.writeable = True
    refused(layer, TypeError, "state_dict is 3", lambda: layer.load_state_dict(3))
    refused(layer, TypeError, "strict is 'no'", lambda: layer.load_state_dict(state, "no"))
    layer.load_state_dict(state)
    assert {k: bits(v) for k, v in layer.state_dict().items()} == {
        k: bits(v) for k, v in state.items()
    }


@pytest.mark.parametrize("value", [-1, 2.5, np.nan, 1e30])
def test_counts_are_whole_numbers(value):
    layer = nc.BatchNorm(2)
    state = {**layer.state_dict(), "weight": np.full(2, 7.0), "num_batches_tracked": value}
    refused(layer, RuntimeError, "num_batches_tracked is", lambda: layer.load_state_dict(state))


SHAPES = {nc.LocalResponseNorm: (2, 4, 5), nc.LocalDivisiveNorm: (2, 4, 5, 5)}


@pytest.mark.parametrize(
    "cls", [c for c in EVERY if c not in (nc.LocalResponseNorm, nc.SpectralNorm)]
)
def test_gradients_are_added_for_all_parameters_or_none(rng, cls):
    affine = {"affine": True} if cls is nc.InstanceNorm else {}
    layer = cls(*EVERY[cls], **affine)
    if cls is nc.WeightNorm:
        layer()
        dy = rng.normal(size=(4, 3)).astype(np.float32)
    else:
        x, dy = rng.normal(size=(2, *SHAPES.get(cls, (3, 4, 4)))).astype(np.float32)
        layer(x)
    for name in layer.parameters:
        good = layer.grads[name]
        good.flags.writeable = False
        refused(layer, ValueError, rf'grads\["{name}"\] is read-only', lambda: layer.backward(dy))
        good.flags.writeable = True
        layer.grads[name] = np.zeros((*good.shape, 2), good.dtype)
        refused(layer, ValueError, rf'grads\["{name}"\] has shape', lambda: layer.backward(dy))
        layer.grads[name] = np.zeros(good.shape, int)
        refused(layer, TypeError, rf'grads\["{name}"\] has dtype', lambda: layer.backward(dy))
        layer.grads[name] = good
    layer.backward(dy)
    assert all(layer.grads[name].any() for name in layer.parameters)


class Comm:
    def __init__(self):
        self.answer = lambda total: total

    def allreduce(self, array):
        return self.answer(array)


def fail(total):
    raise OSError("the cable")


@pytest.mark.parametrize("make", [m for m in NORMS if "comm" in inspect.signature(m).parameters])
@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (lambda total: None, TypeError, "comm.allreduce returned None"),
        (lambda total: 3.0, TypeError, r"comm.allreduce returned 3\.0"),
        (lambda total: total.astype(np.float32), TypeError, "comm.allreduce returned .*float64"),
        (lambda total: total.astype(int), TypeError, "comm.allreduce returned .*float64"),
        (lambda total: total[:1], ValueError, r"comm.allreduce returned .*not \(1,\)"),
        (lambda total: total[None], ValueError, "comm.allreduce returned .*of shape"),
        (lambda total: total * 0, ValueError, "comm.allreduce gave 0.0"),
        (fail, OSError, "the cable"),
    ],
)
def test_what_a_comm_returns(rng, make, answer, error, match):
    comm = Comm()
    layer, alone = make(6, comm=comm), make(6)
    x, dy = rng.normal(size=(2, 5, 6)).astype(np.float32)
    comm.answer = answer
    refused(layer, error, match, lambda: layer(x))
    refused(layer, error, match, lambda: layer.recompute_statistics([x]))
    comm.answer = lambda total: total
    # What was refused before anybody waited is told so, and the sums go on.
    refused(layer, ValueError, "x has shape", lambda: layer(x[:, :5]))
    np.testing.assert_allclose(layer(x), alone(x), rtol=1e-5, atol=1e-5)
    comm.answer = answer
    refused(layer, error, match, lambda: layer.backward(dy))
    comm.answer = lambda total: total
    np.testing.assert_allclose(layer.backward(dy), alone.backward(dy), rtol=1e-4, atol=1e-5)


def test_spectral_norm_writes_both_vectors_or_none(rng):
    weight = rng.normal(size=(4, 3)).astype(np.float32)
    for name in ("u", "v"):
        layer = nc.SpectralNorm((4, 3), rng=1)
        layer.buffers[name].flags.writeable = False
        refused(layer, ValueError, f"{name} is read-only", partial(layer, weight))
        assert layer.sigma is None
        layer.buffers[name].flags.writeable = True
        layer(weight)
        layer.buffers[name].flags.writeable = False
        assert layer.eval()(weight).shape == (4, 3)  # which only reads


def test_the_start_of_weight_norm(rng):
    layer = nc.WeightNorm((4, 3), rng=1)
    t = rng.normal(size=(9, 4))
    for call, error, match in [
        (lambda: layer.initialize(t[:0]), ValueError, "x_preactivation has shape"),
        (lambda: layer.initialize(t[:, :3]), ValueError, "x_preactivation has shape"),
        (lambda: layer.initialize(np.full((9, 4), np.nan)), ValueError, "x_preactivation has a"),
        (lambda: layer.initialize(np.ones((9, 4)), eps=0), ValueError, "x_preactivation has a"),
        (lambda: layer.initialize([[1.0], [1.0, 2.0]]), TypeError, "x_preactivation is"),
        (lambda: layer.initialize(t, eps="a"), TypeError, "eps is 'a'"),
        (lambda: layer.initialize(t, init_scale=0), ValueError, "init_scale is 0"),
        (lambda: layer.initialize(t, channel_axis=1.0), TypeError, "channel_axis is 1.0"),
    ]:
        refused(layer, error, match, call)
    layer.parameters["g"].flags.writeable = False
    refused(layer, ValueError, "g is read-only", lambda: layer.initialize(t))


def test_other_arguments_of_calls(rng):
    x = rng.normal(size=(5, 6)).astype(np.float32)
    layer, steps = nc.BatchNorm(6), nc.BatchNorm(6, time_steps=2)
    weight = np.ones((6, 2))
    for call, error, match in [
        (lambda: layer([[1.0], [1.0, 2.0]]), ValueError, "^x is"),
        (lambda: layer.recompute_statistics(3), TypeError, "batches is 3"),
        (lambda: layer.recompute_statistics([x, x.astype(int)]), TypeError, "x has dtype int"),
        (lambda: layer.fold_into(np.ones((6, 2), int)), TypeError, "conv_weight has dtype int64"),
        (
            lambda: layer.fold_into(weight, np.ones(6) * 1j),
            TypeError,
            "conv_bias has dtype",
        ),
        (
            lambda: layer.fold_into(weight, transposed="no"),
            TypeError,
            "transposed is 'no'",
        ),
        (lambda: layer.fold_into(weight, groups=1.0), TypeError, "groups is 1.0"),
    ]:
        refused(layer, error, match, call)
    for step in ("a", 1.5, True):
        for call in (lambda s=step: steps(x, step=s), lambda s=step: steps.backward(x, step=s)):
            refused(steps, TypeError, "step is", call)
