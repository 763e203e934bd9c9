"""Stored states: every dtype of parameters survives every way to a file and back.

Hunts for bfloat16 that NumPy's files turn into raw bytes, for a name of a dtype that works only
after somebody else's import, and for raw bytes that are taken for numbers.
"""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from support import DTYPES, bits, channel_layers

import normcore as nc
from normcore import convert

LAYERS = {
    layer.__name__: lambda d, layer=layer, sizes=sizes: layer(*sizes, dtype=d)
    for layer, sizes in channel_layers(3).items()
}
LAYERS |= {
    "InstanceNorm": lambda d: nc.InstanceNorm(3, affine=True, track_running_stats=True, dtype=d),
    "LayerNorm": lambda d: nc.LayerNorm((2, 3), dtype=d),
    "RMSNorm": lambda d: nc.RMSNorm(3, dtype=d),
    "WeightNorm": lambda d: nc.WeightNorm((3, 2), dtype=d),
    "SpectralNorm": lambda d: nc.SpectralNorm((3, 2), dtype=d),
    "DivisiveNorm": lambda d: nc.DivisiveNorm(3, dtype=d),
    "LocalDivisiveNorm": lambda d: nc.LocalDivisiveNorm(3, dtype=d),
}


def through_npz(state, folder):
    np.savez(folder / "state.npz", **state)
    return dict(np.load(folder / "state.npz"))


def through_npy(state, folder):
    result = {}
    for key, value in state.items():
        np.save(folder / f"{key}.npy", value)
        # Arrays without axes cannot be mapped in all versions of NumPy; mapped ones are read-only.
        mode = "r" if value.ndim else None
        result[key] = np.load(folder / f"{key}.npy", mmap_mode=mode)
    return result


def through_pickle(state, folder):
    return pickle.loads(pickle.dumps(state))


def through_safetensors(state, folder):
    pytest.importorskip("safetensors")
    convert.save_safetensors(state, folder / "state.safetensors")
    return convert.load_safetensors(folder / "state.safetensors")


def through_converters(state, folder):
    """Another library's names in NumPy's file: the functions of convert read it too."""
    flax = convert.to_flax(convert.from_keras(through_npz(convert.to_keras(state), folder)))
    result = convert.from_flax({kind: through_npz(group, folder) for kind, group in flax.items()})
    counts = {key: state[key] for key in state if key == "num_batches_tracked"}
    return convert.from_torch(through_npz({**result, **counts}, folder))


WAYS = {
    **{w: LAYERS for w in (through_npz, through_npy, through_pickle, through_safetensors)},
    through_converters: ["BatchNorm", "InstanceNorm", "GroupNorm", "LayerNorm", "RMSNorm"],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("way", "name"), [(way, name) for way in WAYS for name in WAYS[way]])
def test_a_state_comes_back_to_the_last_bit(rng, tmp_path, way, name, dtype):
    layer = LAYERS[name](dtype)
    for array in layer.state_dict().values():
        array[...] = rng.uniform(1, 9, array.shape).astype(array.dtype)
    other = LAYERS[name](dtype)
    other.load_state_dict(way(layer.state_dict(), tmp_path))
    theirs = other.state_dict()
    for key, array in layer.state_dict().items():
        assert theirs[key].dtype == array.dtype
        assert bits(theirs[key]) == bits(array), key


def test_a_stored_bfloat16_state_goes_into_layers_of_other_dtypes(rng, tmp_path):
    layer = nc.LayerNorm(5, dtype="bfloat16")
    layer.parameters["weight"][...] = rng.normal(size=5).astype("bfloat16")
    stored = through_npz(layer.state_dict(), tmp_path)
    assert stored["weight"].dtype.kind == "V"  # else this test tests nothing
    wide = nc.LayerNorm(5, dtype="float64")
    wide.load_state_dict(stored)
    np.testing.assert_array_equal(
        wide.parameters["weight"], layer.parameters["weight"].astype(np.float64)
    )
    # Strides do not matter, nor does a place without axes.
    wide.load_state_dict({k: np.stack([v, v], 1)[:, 0] for k, v in stored.items()})
    assert wide.parameters["weight"][2] == np.float64(layer.parameters["weight"][2])


@pytest.mark.parametrize(
    "dtype", ["V1", "V4", np.dtype([("a", "u1"), ("b", "u1")]), "complex64", "S2", object]
)
def test_other_raw_bytes_are_no_numbers(dtype):
    layer = nc.LayerNorm(3)
    before = bits(layer.parameters["weight"])
    state = {"weight": np.zeros(3, dtype), "bias": np.ones(3)}
    with pytest.raises(ValueError, match="weight has dtype"):
        layer.load_state_dict(state)
    assert bits(layer.parameters["weight"]) == before


def in_a_new_process(code):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_name_bfloat16_needs_no_import_before_it(tmp_path):
    layer = nc.LayerNorm(2, dtype="bfloat16")
    layer.parameters["weight"][...] = [1, 2]
    np.savez(tmp_path / "state.npz", **layer.state_dict())
    for call in (
        "nc.BatchNorm(2, dtype='bfloat16')",
        "nc.WeightNorm((2, 2), dtype='bfloat16')",
        "nc.SpectralNorm((2, 2), dtype='bfloat16')",
        "nc.DivisiveNorm(2, dtype='bfloat16')",
        f"nc.LayerNorm(2).load_state_dict(dict(np.load({str(tmp_path / 'state.npz')!r})))",
        f"nc.convert.from_torch(dict(np.load({str(tmp_path / 'state.npz')!r})))",
    ):
        first = "import sys, numpy as np, normcore as nc; assert 'ml_dtypes' not in sys.modules\n"
        in_a_new_process(first + call)
        # Without the package: which one it is, and how to get it.
        missing = (
            "import sys, numpy as np, normcore as nc; sys.modules['ml_dtypes'] = None\n"
            f"try:\n    {call}\nexcept ImportError as error:\n    print(error)"
        )
        assert "pip install 'normcore[bfloat16]'" in in_a_new_process(missing)


@pytest.mark.parametrize("dtype", ["int8", "complex128", "no dtype", object, "V2"])
def test_other_dtypes_are_refused_by_name(dtype):
    with pytest.raises(TypeError, match=r"dtype is .*expected one of float16, bfloat16"):
        nc.LayerNorm(2, dtype=dtype)
