"""What all converters share: keys that are renamed, and the variance's divisor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .._dtypes import stored
from .._interop import Array


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


def renamed(state: Mapping[Any, Any], names: Mapping[Any, Any]) -> dict[Any, Array]:
    unknown = [str(key) for key in state if key not in names]
    if unknown:
        raise ValueError(
            f"state has {', '.join(unknown)}, expected only {', '.join(map(str, names))}"
        )
    return {names[key]: stored(value, str(key)) for key, value in state.items()}


def back(state: Mapping[str, Any], names: Mapping[Any, str]) -> dict[Any, Array]:
    """Return the state under the keys of ``names``; the count of batches has no place there."""
    kept = {k: v for k, v in state.items() if k != "num_batches_tracked"}
    return renamed(kept, {ours: key for key, ours in names.items()})


def with_variance(state: dict[Any, Array], name: Any, factor: float) -> dict[Any, Array]:
    if factor != 1 and name in state:
        wide = state[name].astype(np.float64) * factor
        state[name] = wide.astype(state[name].dtype)
    return state


def bessel(count: int | None) -> float:
    if count is None:
        return 1.0
    if count < 2:
        raise ValueError(f"count is {count}, expected at least 2 values per channel")
    return count / (count - 1)


def one_each(items: Iterable[tuple[str, str, Any]]) -> dict[str, Any]:
    """Return a dict of (name, where it was found, value), in which no name may come twice."""
    places: dict[str, str] = {}
    result: dict[str, Any] = {}
    for name, place, value in items:
        if name in places:
            raise ValueError(
                f"state has {name} twice, as {places[name]} and {place}: expected one layer's"
            )
        places[name], result[name] = place, value
    return result


def spectral_state(kernel: Any, u: Any) -> dict[str, Array]:
    """Return the state of a `SpectralNorm` with ``axis=-1`` from a library that stores u alone.

    Under torch's names, the weight too, which the layer leaves alone. The vectors are of length 1,
    which they need not be there: only the direction counts where each call iterates.
    """
    weight, start = stored(kernel, "kernel"), stored(u, "u").reshape(-1)
    if weight.ndim < 2 or weight.shape[-1] != start.size:
        raise ValueError(
            f"kernel has shape {weight.shape}, expected (..., {start.size}): the size of u"
        )
    tiny = np.finfo(np.float64).tiny  # zeros stay zeros
    wide = start.astype(np.float64)
    wide /= max(float(np.linalg.norm(wide)), tiny)
    v = weight.reshape(-1, start.size).astype(np.float64) @ wide
    v /= max(float(np.linalg.norm(v)), tiny)
    kind = np.float64 if start.dtype == np.float64 else np.float32
    return {"weight_orig": weight, "weight_u": wide.astype(kind), "weight_v": v.astype(kind)}


def spectral_parts(state: Mapping[str, Any]) -> tuple[dict[str, Array], Array] | None:
    """Return the kernel and bias, as far as they are there, and u; None for another state."""
    names = {
        "u": ("weight_u", "_u", "u"),
        "v": ("weight_v", "_v", "v"),
        "kernel": ("weight_orig", "parametrizations.weight.original"),
        "bias": ("bias",),
    }
    if not any(key in state for key in names["u"]):
        return None
    found = renamed(state, {key: name for name, keys in names.items() for key in keys})
    found.pop("v", None)  # what one step from u gives again
    u = found.pop("u")
    return found, u.reshape(1, -1)
