"""States of the papers' own repositories, and of the two libraries that have GDN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._dtypes import stored
from .._interop import Array
from ._names import back, renamed

_SWITCHABLE = {
    "weight": "weight",
    "bias": "bias",
    "mean_weight": "mean_logits",
    "var_weight": "var_logits",
    "running_mean": "running_mean",
    "running_var": "running_var",
}


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
    result = renamed(state, _SWITCHABLE)
    for name in ("mean_logits", "var_logits"):
        if name in result and result[name].shape != (3,):
            raise ValueError(
                f"{name.replace('logits', 'weight')} has shape {result[name].shape}, expected "
                "(3,): instance, layer, batch"
            )
    return {k: v if k.endswith("logits") else v.reshape(-1) for k, v in result.items()}


def to_switchable_norm(state: Mapping[str, Any], *, ndim: int = 4) -> dict[str, Array]:
    """The way back, for inputs with ``ndim`` axes; see `from_switchable_norm`."""
    result = back(state, _SWITCHABLE)
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
    return renamed(state, _BATCH_INSTANCE)


def to_batch_instance_norm(state: Mapping[str, Any]) -> dict[str, Array]:
    """The way back, see `from_batch_instance_norm`."""
    return renamed(state, {ours: key for key, ours in _BATCH_INSTANCE.items()})


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
        if not key.endswith("pedestal"):
            continue
        value = stored(state[key], key)
        if not np.isclose(value, _PEDESTAL, rtol=1e-5):
            raise ValueError(f"{key} is {value}, expected {_PEDESTAL}")
    kept = {key: value for key, value in state.items() if key not in constants}
    return renamed(kept, {"beta": "beta", "gamma": "gamma"})


def to_compressai(state: Mapping[str, Any], *, beta_min: float = 1e-6) -> dict[str, Array]:
    """The way back, with the buffers that CompressAI keeps; ``beta_min`` is the layer's bound."""
    result = renamed(state, {"beta": "beta", "gamma": "gamma"})
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
    result = renamed(bare, {"reparam_beta": "beta", "reparam_gamma": "gamma"})
    return {name: value.T for name, value in result.items()}


def to_tfc(state: Mapping[str, Any]) -> dict[str, Array]:
    """The way back, see `from_tfc`."""
    result = renamed(state, {"beta": "reparam_beta", "gamma": "reparam_gamma"})
    return {name: value.T for name, value in result.items()}
