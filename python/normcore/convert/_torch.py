"""States of torch's layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._dtypes import stored
from .._interop import Array

# torch's two ways to keep weight normalization: as a hook of old, and as a parametrization.
_WEIGHT_NORM = {
    "legacy": ("weight_g", "weight_v"),
    "parametrized": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
}


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
