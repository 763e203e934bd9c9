"""States of Keras's layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._interop import Array
from ._names import back, bessel, one_each, renamed, spectral_parts, spectral_state, with_variance

_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# With renorm=True: evaluation goes by the moving statistics, and of these by moving_stddev.
_RENORM = {**_NORM, "moving_stddev": "running_std"}
_RENORM_ONLY = ("moving_variance", "renorm_mean", "renorm_stddev")


def from_keras(state: Mapping[str, Any], *, count: int | None = None) -> dict[str, Array]:
    """State of a Keras normalization layer.

    Parameters
    ----------
    state : mapping of str to array
        Under Keras's names, as ``{v.path: v for v in layer.weights}``; what comes before the last
        ``/`` is dropped. Of ``BatchNormalization``, ``LayerNormalization``,
        ``GroupNormalization``: ``gamma``, ``beta``, ``moving_mean``, ``moving_variance``. Of
        ``RMSNormalization``: ``scale``. Of ``BatchNormalization(renorm=True)``, for `BatchRenorm`:
        ``moving_stddev`` too. Of ``SpectralNormalization``: ``vector_u``, ``kernel``, ``bias``.
    count : int, optional
        Values per channel of the batches that Keras was trained on. Its moving variance is biased,
        ours unbiased: with ``count`` it is multiplied by ``count / (count - 1)``.

    Returns
    -------
    dict of str to array

    Raises
    ------
    ValueError
        For other names, or the names of two layers.

    Notes
    -----
    Momentum has the other sign (`opposite_momentum`), and Keras's eps is 1e-3.

    With renorm Keras keeps two pairs of statistics, for evaluation (``moving_...``) and for the
    corrections in training (``renorm_...``), which differ only where the two momenta do. Ours are
    those for evaluation.

    Of a spectral normalization the result has torch's names: load it into
    ``SpectralNorm(kernel.shape, axis=-1)``, and call that with ``result["weight_orig"]``, the
    kernel. Keras stores no v: it is what one step from u gives. Keras overwrites its kernel by the
    normalized one in training, so that there is nothing left to divide by in evaluation.

    Examples
    --------
    >>> import numpy as np
    >>> from normcore.convert import from_keras
    >>> from_keras({"gamma": np.ones(2), "moving_variance": np.ones(2)}, count=11)
    {'weight': array([1., 1.]), 'running_var': array([1.1, 1.1])}
    >>> from_keras({"rms_normalization/scale": np.ones(2)})
    {'weight': array([1., 1.])}
    """
    bare = one_each((k.rpartition("/")[2].partition(":")[0], k, v) for k, v in state.items())
    if "vector_u" in bare:
        names = {"vector_u": "u", "kernel": "kernel", "embeddings": "kernel", "bias": "bias"}
        found = renamed(bare, names)
        if "kernel" not in found:
            raise ValueError("state has vector_u without the kernel, from which v follows")
        bias = {"bias": found["bias"]} if "bias" in found else {}
        return {**spectral_state(found["kernel"], found["u"]), **bias}
    if "moving_stddev" in bare:
        return renamed({k: v for k, v in bare.items() if k not in _RENORM_ONLY}, _RENORM)
    names = {"scale": "weight"} if "scale" in bare else _NORM  # of RMSNormalization
    return with_variance(renamed(bare, names), "running_var", bessel(count))


def to_keras(
    state: Mapping[str, Any], *, count: int | None = None, rms: bool = False, eps: float = 1e-3
) -> dict[str, Array]:
    """The way back from our state to Keras's names, see `from_keras`.

    Parameters
    ----------
    state : mapping of str to array
        Of a `SpectralNorm`, the kernel may be added as ``weight_orig``.
    count : int, optional
        As in `from_keras`.
    rms : bool, default False
        Whether it is for an ``RMSNormalization``, whose weight is called ``scale``.
    eps : float, default 1e-3
        Of a renormalization: Keras's, which is part of its standard deviations, not of its
        variance.

    Examples
    --------
    >>> import normcore as nc
    >>> sorted(nc.convert.to_keras(nc.BatchRenorm(2, eps=1e-3).state_dict()))
    ['beta', 'gamma', 'moving_mean', 'moving_stddev', 'moving_variance', 'renorm_mean', \
'renorm_stddev']
    >>> nc.convert.to_keras(nc.RMSNorm(2).state_dict(), rms=True)
    {'scale': array([1., 1.], dtype=float32)}
    """
    if (spectral := spectral_parts(state)) is not None:
        layer, u = spectral
        return {**layer, "vector_u": u}
    if "running_std" in state:
        result = back(state, _RENORM)
        mean, std = result["moving_mean"], result["moving_stddev"]
        variance = np.maximum(std.astype(np.float64) ** 2 - eps, 0).astype(std.dtype)
        return {**result, "moving_variance": variance, "renorm_mean": mean, "renorm_stddev": std}
    names = {"scale": "weight"} if rms else _NORM
    return with_variance(back(state, names), "moving_variance", 1 / bessel(count))
