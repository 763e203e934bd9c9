"""State of other libraries' layers to ours and back.

A state is a dict of arrays by name, as ``layer.state_dict()`` gives and ``layer.load_state_dict``
takes. The functions return new dicts and copy no array that need not change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._dtypes import stored
from ._interop import Array

__all__ = [
    "from_batch_instance_norm",
    "from_compressai",
    "from_flax",
    "from_keras",
    "from_switchable_norm",
    "from_tfc",
    "from_torch",
    "load_safetensors",
    "opposite_momentum",
    "save_safetensors",
    "to_batch_instance_norm",
    "to_compressai",
    "to_flax",
    "to_keras",
    "to_switchable_norm",
    "to_tfc",
    "to_torch",
]

_KERAS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_FLAX = {
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_SWITCHABLE = {
    "weight": "weight",
    "bias": "bias",
    "mean_weight": "mean_logits",
    "var_weight": "var_logits",
    "running_mean": "running_mean",
    "running_var": "running_var",
}
# torch's two ways to keep weight normalization: as a hook of old, and as a parametrization.
_WEIGHT_NORM = {
    "legacy": ("weight_g", "weight_v"),
    "parametrized": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
}


def opposite_momentum(momentum: float) -> float:
    """Return the momentum of the other sign.

    Ours and torch's is the weight of the new value, that of Keras, Flax and ONNX of the old one.

    Examples
    --------
    >>> round(opposite_momentum(0.99), 12)
    0.01
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum is {momentum}, expected a number from 0 to 1")
    return 1 - momentum


def _renamed(state: Mapping[Any, Any], names: Mapping[Any, Any]) -> dict[Any, Array]:
    unknown = [str(key) for key in state if key not in names]
    if unknown:
        raise ValueError(
            f"state has {', '.join(unknown)}, expected only {', '.join(map(str, names))}"
        )
    return {names[key]: stored(value, key) for key, value in state.items()}


def _back(state: Mapping[str, Any], names: Mapping[Any, str]) -> dict[Any, Array]:
    """Return the state under the keys of ``names``; the count of batches has no place there."""
    kept = {k: v for k, v in state.items() if k != "num_batches_tracked"}
    return _renamed(kept, {ours: key for key, ours in names.items()})


def _with_variance(state: dict[Any, Array], name: Any, factor: float) -> dict[Any, Array]:
    if factor != 1 and name in state:
        wide = state[name].astype(np.float64) * factor
        state[name] = wide.astype(state[name].dtype)
    return state


def _bessel(count: int | None) -> float:
    if count is None:
        return 1.0
    if count < 2:
        raise ValueError(f"count is {count}, expected at least 2 values per channel")
    return count / (count - 1)


def from_keras(state: Mapping[str, Any], *, count: int | None = None) -> dict[str, Array]:
    """State of a Keras ``BatchNormalization``, ``LayerNormalization`` or ``GroupNormalization``.

    Parameters
    ----------
    state : mapping of str to array
        Under Keras's names: ``gamma``, ``beta``, ``moving_mean``, ``moving_variance``; what comes
        before the last ``/`` is dropped.
    count : int, optional
        Values per channel of the batches that Keras was trained on. Its moving variance is biased,
        ours unbiased: with ``count`` it is multiplied by ``count / (count - 1)``.

    Returns
    -------
    dict of str to array

    Notes
    -----
    Momentum has the other sign (`opposite_momentum`), and Keras's eps is 1e-3.

    Examples
    --------
    >>> import numpy as np
    >>> from_keras({"gamma": np.ones(2), "moving_variance": np.ones(2)}, count=11)
    {'weight': array([1., 1.]), 'running_var': array([1.1, 1.1])}
    """
    bare = {key.rpartition("/")[2].partition(":")[0]: value for key, value in state.items()}
    return _with_variance(_renamed(bare, _KERAS), "running_var", _bessel(count))


def to_keras(state: Mapping[str, Any], *, count: int | None = None) -> dict[str, Array]:
    """The way back from our state to Keras's names, see `from_keras`."""
    return _with_variance(_back(state, _KERAS), "moving_variance", 1 / _bessel(count))


def from_flax(variables: Mapping[str, Any], *, count: int | None = None) -> dict[str, Array]:
    """State of one Flax normalization layer.

    Parameters
    ----------
    variables : mapping
        ``{"params": {"scale": ..., "bias": ...}, "batch_stats": {"mean": ..., "var": ...}}``, as
        far as it is there.
    count : int, optional
        As in `from_keras`: Flax's variance is biased too.
    """
    flat = {(kind, name): v for kind, group in variables.items() for name, v in group.items()}
    return _with_variance(_renamed(flat, _FLAX), "running_var", _bessel(count))


def to_flax(state: Mapping[str, Any], *, count: int | None = None) -> dict[str, dict[str, Array]]:
    """The way back from our state to Flax's variables, see `from_flax`."""
    flat = _back(state, _FLAX)
    _with_variance(flat, ("batch_stats", "var"), 1 / _bessel(count))
    variables: dict[str, dict[str, Array]] = {}
    for (kind, name), value in flat.items():
        variables.setdefault(kind, {})[name] = value
    return variables


def from_switchable_norm(state: Mapping[str, Any]) -> dict[str, Array]:
    """State of a ``SwitchNorm2d`` or ``SwitchNorm3d`` of the paper's repository.

    Parameters
    ----------
    state : mapping of str to array
        ``weight``, ``bias``, ``mean_weight``, ``var_weight`` and the running buffers, with axes of
        1 beside the channels.

    Raises
    ------
    ValueError
        For a layer without batch statistics, or ``SwitchNorm1d``, which have two logits.

    Notes
    -----
    There the instance variance is unbiased, here biased; its running buffers start at 0. Those that
    hold sums (``using_moving_average=False``) must be divided by the number of batches first.
    """
    result = _renamed(state, _SWITCHABLE)
    for name in ("mean_logits", "var_logits"):
        if name in result and result[name].shape != (3,):
            raise ValueError(
                f"{name.replace('logits', 'weight')} has shape {result[name].shape}, expected "
                "(3,): instance, layer, batch"
            )
    return {k: v if k.endswith("logits") else v.reshape(-1) for k, v in result.items()}


def to_switchable_norm(state: Mapping[str, Any], *, ndim: int = 4) -> dict[str, Array]:
    """The way back, for inputs with ``ndim`` axes; see `from_switchable_norm`."""
    result = _back(state, _SWITCHABLE)
    for name, value in result.items():
        if name.startswith("running"):
            result[name] = value.reshape(1, -1, 1)
        elif name in ("weight", "bias"):
            result[name] = value.reshape(1, -1, *(1,) * (ndim - 2))
    return result


_BATCH_INSTANCE = {
    "gate": "rho",
    "weight": "weight",
    "bias": "bias",
    "running_mean": "running_mean",
    "running_var": "running_var",
    "num_batches_tracked": "num_batches_tracked",
}


def from_batch_instance_norm(state: Mapping[str, Any]) -> dict[str, Array]:
    """State of a layer of the batch-instance norm repository, whose ``gate`` is our ``rho``."""
    return _renamed(state, _BATCH_INSTANCE)


def to_batch_instance_norm(state: Mapping[str, Any]) -> dict[str, Array]:
    """The way back, see `from_batch_instance_norm`."""
    return _renamed(state, {ours: key for key, ours in _BATCH_INSTANCE.items()})


_PEDESTAL = 2.0**-36  # of GDN's parameters, there and here


def from_compressai(state: Mapping[str, Any]) -> dict[str, Array]:
    """State of a CompressAI ``GDN`` or ``GDN1``, whose stored ``beta`` and ``gamma`` are ours.

    Parameters
    ----------
    state : mapping of str to array
        The buffers of bounds and pedestals, which are constants, may be there.

    Raises
    ------
    ValueError
        For other keys, or a pedestal that is not ours.
    """
    constants = [key for key in state if "_reparam." in key]
    for key in constants:
        if key.endswith("pedestal") and not np.isclose(stored(state[key]), _PEDESTAL, rtol=1e-5):
            raise ValueError(f"{key} is {stored(state[key])}, expected {_PEDESTAL}")
    kept = {key: value for key, value in state.items() if key not in constants}
    return _renamed(kept, {"beta": "beta", "gamma": "gamma"})


def to_compressai(state: Mapping[str, Any], *, beta_min: float = 1e-6) -> dict[str, Array]:
    """The way back, with the buffers that CompressAI keeps; ``beta_min`` is the layer's bound."""
    result = _renamed(state, {"beta": "beta", "gamma": "gamma"})
    for name, least in (("beta", beta_min), ("gamma", 0.0)):
        bound = np.sqrt(least + _PEDESTAL)
        result[f"{name}_reparam.pedestal"] = np.full(1, _PEDESTAL, np.float32)
        result[f"{name}_reparam.lower_bound.bound"] = np.full(1, bound, np.float32)
    return result


def from_tfc(state: Mapping[str, Any]) -> dict[str, Array]:
    """State of a TensorFlow Compression ``GDN``, whose gamma is ours transposed.

    Parameters
    ----------
    state : mapping of str to array
        ``reparam_beta`` and ``reparam_gamma``; what comes before the last ``/`` is dropped.

    Notes
    -----
    Its alpha and epsilon start at 1; give them to the layer.

    Examples
    --------
    >>> import numpy as np
    >>> from_tfc({"gdn_0/reparam_gamma:0": np.array([[1, 2], [3, 4]])})
    {'gamma': array([[1, 3],
           [2, 4]])}
    """
    bare = {key.rpartition("/")[2].partition(":")[0]: value for key, value in state.items()}
    result = _renamed(bare, {"reparam_beta": "beta", "reparam_gamma": "gamma"})
    return {name: value.T for name, value in result.items()}


def to_tfc(state: Mapping[str, Any]) -> dict[str, Array]:
    """The way back, see `from_tfc`."""
    result = _renamed(state, {"beta": "reparam_beta", "gamma": "reparam_gamma"})
    return {name: value.T for name, value in result.items()}


def from_torch(state: Mapping[str, Any]) -> dict[str, Array]:
    """State of a torch layer as NumPy arrays.

    Names are ours already, but for weight normalization: ``weight_g`` and ``weight_v`` of
    ``torch.nn.utils.weight_norm``, or ``parametrizations.weight.original0`` and ``original1`` of
    ``torch.nn.utils.parametrizations.weight_norm``, become ``g`` and ``v``.

    Returns
    -------
    dict of str to array
        ``g`` without its axes of 1, as `WeightNorm` has it.

    Examples
    --------
    >>> import numpy as np
    >>> from_torch({"weight_g": np.ones((2, 1)), "weight_v": np.ones((2, 3))})["g"]
    array([1., 1.])
    """
    result = {key: stored(value, key) for key, value in state.items()}
    for g_name, v_name in _WEIGHT_NORM.values():
        if g_name in result and v_name in result:
            g = result.pop(g_name)
            result["g"] = g.reshape(-1) if g.size > 1 else g.reshape(g.shape[:1])
            result["v"] = result.pop(v_name)
    return result


def to_torch(
    state: Mapping[str, Any], *, weight_norm: str = "parametrized", axis: int | None = 0
) -> dict[str, Array]:
    """The way back: the state for ``{k: torch.from_numpy(v) for k, v in ...}``.

    Parameters
    ----------
    state : mapping of str to array
    weight_norm : {"parametrized", "legacy"}
        Which of torch's names ``g`` and ``v`` get.
    axis : int or None, default 0
        The kept axis of ``v``, along which torch's g lies.
    """
    if weight_norm not in _WEIGHT_NORM:
        raise ValueError(f"weight_norm is {weight_norm!r}, expected 'parametrized' or 'legacy'")
    result = {key: stored(value, key) for key, value in state.items()}
    if "g" in result and "v" in result:
        g_name, v_name = _WEIGHT_NORM[weight_norm]
        g, v = result.pop("g"), result.pop("v")
        if axis is None:
            result[g_name] = g.reshape(())
        else:
            result[g_name] = g.reshape([-1 if i == axis % v.ndim else 1 for i in range(v.ndim)])
        result[v_name] = v
    return result


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ImportError("safetensors files need the package safetensors") from error
    return safetensors.numpy


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read a safetensors file; needs the package ``safetensors``."""
    result: dict[str, Array] = _safetensors().load_file(os.fspath(path))
    return result


def save_safetensors(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state to a safetensors file; needs the package ``safetensors``."""
    arrays = {key: np.ascontiguousarray(stored(value, key)) for key, value in state.items()}
    # Arrays without axes become arrays of one axis in ascontiguousarray.
    shaped = {key: arrays[key].reshape(np.shape(value)) for key, value in state.items()}
    _safetensors().save_file(shaped, os.fspath(path))
