"""States of Keras and Flax, there and back: what they compute, our layers compute from them.

Where a library is installed its own layers say what is right; without it, states written out here
in its format, with the formula beside them. Hunts for statistics of training taken for those of
evaluation, kernels that lie transposed, and vectors of another length.
"""

import os

import numpy as np
import pytest
from support import bits

import normcore as nc
from normcore import convert

EPS = 1e-3  # Keras's


@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    pytest.importorskip("jax")
    return pytest.importorskip("keras")


@pytest.fixture(scope="module")
def flax():
    return pytest.importorskip("flax")


def floats(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def close(a, b, rtol=1e-5):
    """Equal but for the rounding of a few float32 operations on each side.

    Of numbers up to 3 around a mean, over deviations of which 8 and more are rarely below 0.3.
    """
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=rtol)


def randomize(rng, variables):
    """Other values for Keras's variables: positive ones suit the spreads too."""
    for v in variables:
        v.assign(rng.uniform(0.5, 1.5, v.shape).astype(np.float32))


def weights_of(layer):
    return {v.path: np.asarray(v) for v in layer.weights}


# ---- the formats, written out


def test_keras_rms_normalization_by_hand(rng):
    state = convert.from_keras({"model/rms_normalization/scale": floats(rng, 4)})
    layer = nc.RMSNorm(4, eps=1e-6)
    layer.load_state_dict(state)
    back = convert.to_keras(layer.state_dict(), rms=True)
    assert list(back) == ["scale"] and bits(back["scale"]) == bits(state["weight"])


def test_keras_renorm_by_hand(rng):
    names = "gamma beta moving_mean moving_stddev renorm_mean renorm_stddev".split()
    theirs = {name: rng.uniform(0.5, 1.5, 4) for name in names}
    theirs["moving_variance"] = theirs["moving_stddev"] ** 2 - EPS
    layer = nc.BatchRenorm(4, eps=EPS, dtype=np.float64).eval()
    layer.load_state_dict(convert.from_keras({f"bn/{k}": v for k, v in theirs.items()}))
    x = rng.normal(size=(5, 4))
    right = (x - theirs["moving_mean"]) / np.sqrt(theirs["moving_variance"] + EPS)
    close(layer(x), right * theirs["gamma"] + theirs["beta"], 1e-12)
    back = convert.to_keras(layer.state_dict(), eps=EPS)
    assert set(back) == set(theirs)
    for name in ("gamma", "beta", "moving_mean", "moving_stddev"):
        assert bits(back[name]) == bits(theirs[name])
    close(back["moving_variance"], theirs["moving_variance"], 1e-14)
    assert bits(back["renorm_stddev"]) == bits(back["moving_stddev"])
    # A spread below eps has no variance: 0, as in Keras, not a negative one.
    small = {k: v * 0 for k, v in layer.state_dict().items()}
    assert not convert.to_keras(small)["moving_variance"].any()


def spectral_by_hand(rng, kernel):
    """One step of Keras and Flax from a u of any length: the new u, and sigma."""
    w = kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
    u = rng.normal(size=(1, w.shape[1]))
    v = w @ u[0]
    v /= np.linalg.norm(v)
    new = v @ w
    return u, new / np.linalg.norm(new), np.linalg.norm(new)


@pytest.mark.parametrize("shape", [(6, 3), (2, 2, 4, 3)])
def test_spectral_states_by_hand(rng, shape):
    kernel, bias = rng.normal(size=shape), rng.normal(size=shape[-1])
    u, new_u, sigma = spectral_by_hand(rng, kernel)
    keras = {"sn/vector_u": u, "sn/dense/kernel": kernel, "sn/dense/bias": bias}
    linen = {
        "params": {"Dense_0": {"kernel": kernel, "bias": bias}},
        "batch_stats": {
            "SpectralNorm_0": {"Dense_0/kernel/u": u, "Dense_0/kernel/sigma": np.ones(())}
        },
    }
    nnx = {
        "batch_stats": {("kernel", "sigma"): np.ones(()), ("kernel", "u"): u},
        "layer_instance": {"bias": bias, "kernel": kernel},
    }
    for state in (convert.from_keras(keras), convert.from_flax(linen), convert.from_flax(nnx)):
        layer = nc.SpectralNorm(shape, axis=-1, dtype=np.float64)
        layer.load_state_dict(state)
        close(layer(state["weight_orig"]), kernel / sigma, 1e-12)
        close(layer.buffers["u"], new_u, 1e-12)
        assert bits(state["bias"]) == bits(bias)
        again = {**layer.state_dict(), "weight_orig": kernel, "bias": bias}
        back = convert.to_keras(again)
        assert {k: v.shape for k, v in back.items()} == {
            "vector_u": (1, shape[-1]),
            "kernel": shape,
            "bias": (shape[-1],),
        }
        flat = convert.to_flax(again, form="nnx")
        sigma_of_u = flat["batch_stats", ("kernel", "sigma")]
        tree = convert.to_flax(again)
        assert tree["batch_stats"]["layer_instance/kernel/sigma"] == sigma_of_u
        close(sigma_of_u, np.linalg.norm(kernel.reshape(-1, shape[-1]) @ new_u), 1e-12)
        for there in (back, flat, tree):
            conversion = convert.from_keras if there is back else convert.from_flax
            close(conversion(there)["weight_u"], new_u, 1e-12)


def test_weight_norm_states_by_hand(rng):
    kernel, scale, bias = rng.normal(size=(2, 5, 3)), rng.normal(size=3), rng.normal(size=3)
    linen = {
        "params": {
            "layer_instance": {"kernel": kernel, "bias": bias},
            "layer_instance/kernel/scale": scale,
        }
    }
    nnx = {
        ("layer_instance", "kernel"): kernel,
        ("layer_instance", "bias"): bias,
        ("scales", ("kernel",)): scale,
    }
    right = kernel / np.sqrt((kernel**2).sum((0, 1)) + 1e-12) * scale
    for variables in (linen, nnx, list(nnx.items())):
        state = convert.from_flax(variables)
        layer = nc.WeightNorm((2, 5, 3), axis=-1, eps=1e-12, dtype=np.float64)
        layer.load_state_dict(state)
        close(layer(), right, 1e-12)
        again = {**layer.state_dict(), "bias": bias}
        assert convert.to_flax(again)["params"].keys() == linen["params"].keys()
        assert convert.to_flax(again, form="nnx").keys() == nnx.keys()
    one = convert.from_flax({"params": {"d/kernel/scale": scale[0], "d": {"kernel": kernel}}})
    single = nc.WeightNorm((2, 5, 3), axis=None, dtype=np.float64)
    single.load_state_dict(one)
    close(np.linalg.norm(single()), abs(scale[0]), 1e-12)


class Variable:
    """What older versions of nnx (VariableState) and linen's boxes of metadata look like."""

    def __init__(self, value):
        self.value = value


def test_nnx_states_by_hand(rng):
    layer = nc.BatchNorm(4)
    for value in (*layer.parameters.values(), *layer.buffers.values()):
        value[...] = rng.uniform(1, 2, value.shape).astype(value.dtype)
    flat = convert.to_flax(layer.state_dict(), form="nnx")
    assert set(flat) == {("scale",), ("bias",), ("mean",), ("var",)}
    boxed = {path: Variable(value) for path, value in flat.items()}
    pure = {path[0]: value for path, value in flat.items()}
    for variables in (flat, list(flat.items()), boxed, pure, {"norm": pure}):
        state = convert.from_flax(variables)
        assert all(bits(state[k]) == bits(layer.state_dict()[k]) for k in state) and len(state) == 4


def test_errors_name_what_was_found(rng):
    kernel, u = floats(rng, 4, 3), floats(rng, 1, 3)
    two = {"params": {"a": {"scale": u}, "b": {"scale": u}}}
    wrapped = {"params": {"d": {"kernel": kernel}}}
    for call, message in {
        lambda: convert.from_flax(two): "scale twice, as params/a/scale and params/b/scale",
        lambda: convert.from_keras({"a/gamma": u, "b/gamma": u}): "gamma twice",
        lambda: convert.from_keras({"vector_u": u}): "vector_u without the kernel",
        lambda: convert.from_keras({"vector_u": u, "kernel": kernel.T}): r"kernel has shape \(3, 4",
        lambda: convert.from_keras({"vector_u": u, "gamma": u}): "state has gamma",
        lambda: convert.from_flax({"batch_stats": {"d/kernel/u": u}}): "state has no kernel",
        lambda: convert.from_flax(wrapped): "state has kernel",
        lambda: convert.from_flax({**wrapped, "x": {"d/bias/scale": u}}): "d/bias/scale|kernel",
        lambda: convert.from_flax({**wrapped, "d/kernel/scale": kernel}): "one feature axis",
        lambda: convert.to_flax({"g": u[0], "v": kernel.T}): r"g has shape \(3,\), expected \(4,\)",
        lambda: convert.to_flax({"g": u[0]}): "state has g",
        lambda: convert.to_flax({"weight": u[0]}, form="haiku"): "form is 'haiku'",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


# ---- the libraries themselves


def test_keras_layers(rng, keras):
    x = floats(rng, 8, 16)
    for theirs, ours in (
        (keras.layers.RMSNormalization(), nc.RMSNorm(16, eps=1e-6)),
        (keras.layers.BatchNormalization(), nc.BatchNorm(16, eps=EPS)),
        (keras.layers.BatchNormalization(renorm=True), nc.BatchRenorm(16, eps=EPS)),
        (keras.layers.LayerNormalization(), nc.LayerNorm(16, eps=EPS)),
        (keras.layers.GroupNormalization(2, epsilon=EPS), nc.GroupNorm(2, 16, eps=EPS)),
    ):
        theirs.build((8, 16))
        randomize(rng, theirs.trainable_variables)
        for _ in range(3):
            theirs(floats(rng, 8, 16) * 2 + 1, training=True)
        ours.load_state_dict(convert.from_keras(weights_of(theirs)))
        right = np.asarray(theirs(x))
        close(ours.eval()(x), right)
        # And back into a new layer.
        rms = isinstance(ours, nc.RMSNorm)
        again = type(theirs).from_config(theirs.get_config())
        again.build((8, 16))
        state = convert.to_keras(ours.state_dict(), rms=rms)
        for v in again.weights:
            v.assign(state[v.name])
        close(again(x), right)


def test_keras_spectral_normalization_goes_on_as_there(rng, keras):
    for inner, shape in (
        (keras.layers.Dense(3), (8, 4)),
        (keras.layers.Conv2D(3, 2), (2, 6, 6, 4)),
    ):
        theirs = keras.layers.SpectralNormalization(inner)
        theirs.build(shape)
        randomize(rng, [inner.kernel])
        for _ in range(3):
            state = convert.from_keras(weights_of(theirs))
            layer = nc.SpectralNorm(inner.kernel.shape, axis=-1)
            layer.load_state_dict(state)
            normalized = layer(state["weight_orig"])
            theirs(floats(rng, *shape), training=True)  # overwrites its kernel
            close(normalized, inner.kernel)
            close(layer.buffers["u"], np.asarray(theirs.vector_u)[0])
        back = convert.to_keras({**layer.state_dict(), "weight_orig": normalized})
        theirs.vector_u.assign(back["vector_u"])
        inner.kernel.assign(back["kernel"])


def test_linen_layers(rng, flax):
    import jax

    nn, key = flax.linen, jax.random.key(0)
    x = floats(rng, 8, 16)  # the fast variance cancels
    for theirs, ours in (
        (nn.BatchNorm(use_running_average=True), nc.BatchNorm(16)),
        (nn.LayerNorm(use_fast_variance=False), nc.LayerNorm(16, eps=1e-6)),
        (nn.RMSNorm(), nc.RMSNorm(16, eps=1e-6)),
        (nn.GroupNorm(2, use_fast_variance=False), nc.GroupNorm(2, 16, eps=1e-6)),
    ):
        variables = jax.tree.map(
            lambda a: rng.uniform(0.5, 1.5, a.shape).astype(np.float32), theirs.init(key, x)
        )
        ours.load_state_dict(convert.from_flax(variables))
        close(ours.eval()(x), theirs.apply(variables, x))
        close(theirs.apply(convert.to_flax(ours.state_dict()), x), theirs.apply(variables, x))


def test_linen_weight_norm_and_spectral_norm(rng, flax):
    import jax

    nn, key = flax.linen, jax.random.key(0)
    for inner, shape in ((nn.Dense(3), (8, 4)), (nn.Conv(3, (2, 2)), (2, 6, 6, 4))):
        x = floats(rng, *shape)
        for axis in (-1, None):
            theirs = nn.WeightNorm(inner, feature_axes=axis)
            variables = jax.tree.map(lambda a: floats(rng, *a.shape), theirs.init(key, x))
            state = convert.from_flax(variables)
            layer = nc.WeightNorm(state["v"].shape, axis=axis, eps=1e-12)
            layer.load_state_dict(state)
            plain = {"params": {"kernel": layer(), "bias": state["bias"]}}
            close(inner.apply(plain, x), theirs.apply(variables, x))
            back = convert.to_flax(state)
            close(theirs.apply(back, x), theirs.apply(variables, x), 0)
        theirs = nn.SpectralNorm(inner)
        variables = theirs.init(key, x, update_stats=False)
        for _ in range(3):
            state = convert.from_flax(variables)
            layer = nc.SpectralNorm(state["weight_orig"].shape, axis=-1)
            layer.load_state_dict(state)
            plain = {"params": {"kernel": layer(state["weight_orig"]), "bias": state["bias"]}}
            y, changed = theirs.apply(variables, x, update_stats=True, mutable=["batch_stats"])
            close(inner.apply(plain, x), y)
            variables = {**variables, **changed}
            after = {**state, **layer.state_dict()}
            ours = convert.to_flax(after)["batch_stats"]
            for name, value in variables["batch_stats"].items():
                if name.endswith("/u"):
                    close(ours[name], value)
            theirs.apply(convert.to_flax(after), x, update_stats=False)  # it takes what we return


def test_nnx_layers(rng, flax):
    from flax import nnx

    rngs, x = nnx.Rngs(0), floats(rng, 8, 16)
    exact = {"rngs": rngs, "use_fast_variance": False}  # which cancels in a few elements
    for theirs, ours in (
        (nnx.BatchNorm(16, use_running_average=True, rngs=rngs), nc.BatchNorm(16)),
        (nnx.LayerNorm(16, **exact), nc.LayerNorm(16, eps=1e-6)),
        (nnx.RMSNorm(16, rngs=rngs), nc.RMSNorm(16, eps=1e-6)),
        (nnx.GroupNorm(16, num_groups=2, **exact), nc.GroupNorm(2, 16, eps=1e-6)),
    ):
        for array in ours.state_dict().values():
            array[...] = rng.uniform(0.5, 1.5, array.shape).astype(array.dtype)
        flat = convert.to_flax(ours.state_dict(), form="nnx")
        nnx.update(theirs, nnx.from_flat_state(flat))
        close(theirs(x), ours.eval()(x))
        state = nnx.state(theirs)
        for variables in (state, nnx.to_flat_state(state), nnx.to_pure_dict(state)):
            read = convert.from_flax(variables)
            assert all(bits(value) == bits(ours.state_dict()[k]) for k, value in read.items())
            assert set(read) == set(ours.state_dict()) - {"num_batches_tracked"}


def test_nnx_weight_norm_and_spectral_norm(rng, flax):
    from flax import nnx

    x = floats(rng, 8, 4)
    for wrap in (nnx.WeightNorm, nnx.SpectralNorm):
        rngs = nnx.Rngs(0)
        theirs = wrap(nnx.Linear(4, 3, rngs=rngs), rngs=rngs)
        state = nnx.state(theirs)
        read = convert.from_flax(state)
        for form in (nnx.to_flat_state(state), nnx.to_pure_dict(state)):
            again = convert.from_flax(form)
            assert all(bits(again[k]) == bits(read[k]) for k in read)
        if wrap is nnx.WeightNorm:
            layer = nc.WeightNorm((4, 3), axis=-1, eps=1e-12)
            layer.load_state_dict(read)
            weight = layer()
        else:
            layer = nc.SpectralNorm((4, 3), axis=-1)
            layer.load_state_dict(read)
            weight = layer(read["weight_orig"])
        close(x @ weight + read["bias"], theirs(x))
        flat = convert.to_flax({**read, **layer.state_dict()}, form="nnx")
        assert set(flat) <= {path for path, _ in nnx.to_flat_state(state)}
        nnx.update(theirs, nnx.from_flat_state(flat))
