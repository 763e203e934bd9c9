"""States of Flax's layers, of linen and of nnx."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from .._interop import Array
from ._names import back, bessel, one_each, renamed, spectral_parts, spectral_state, with_variance

_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_STATISTICS = ("mean", "var")  # these are in linen's collection batch_stats
_KERNELS = ("kernel", "embedding")  # weights of the layers that the wrappers wrap
# What the wrappers store of such a weight: weight norm its lengths, spectral norm a vector and the
# last singular value.
_WRAPPERS = {"scale": "lengths", "u": "u", "sigma": "sigma"}


def _segments(key: Any) -> Iterator[str]:
    """The parts of a key: linen joins names by slashes, nnx has tuples, also within tuples."""
    if isinstance(key, tuple):
        for part in key:
            yield from _segments(part)
    else:
        yield from str(key).split("/")


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The arrays of a tree of mappings or, as nnx has them flat, of pairs, and their paths."""
    for key, value in tree.items() if isinstance(tree, Mapping) else tree:
        here = (*path, *_segments(key))
        if isinstance(value, Mapping):
            yield from _leaves(value, here)
        else:
            yield here, _unboxed(value)


def _unboxed(value: Any) -> Any:
    """The array in a variable of nnx, of any version, or in one of linen's boxes of metadata."""
    for method in ("get_value", "unbox"):
        if hasattr(value, method):
            return getattr(value, method)()
    return getattr(value, "value", value)


def _name(path: tuple[str, ...]) -> str:
    """What an array is, by the end of its path."""
    *before, last = path
    if "scales" in before and last in _KERNELS:  # nnx: a dict beside the layer
        return "lengths"
    if before and before[-1] in _KERNELS:
        return _WRAPPERS.get(last, "/".join(path))
    return "kernel" if last in _KERNELS else last


def from_flax(
    variables: Mapping[Any, Any] | Iterable[tuple[Any, Any]], *, count: int | None = None
) -> dict[str, Array]:
    """State of one Flax normalization layer, of linen or nnx.

    Parameters
    ----------
    variables : mapping, or pairs of path and array
        Of linen: ``{"params": {"scale": ..., "bias": ...}, "batch_stats": {"mean": ..., "var":
        ...}}``, as far as it is there, also within the names of modules. Of nnx: a ``State``, its
        flat form with tuples for keys, or a pure dict. Also of ``WeightNorm`` and ``SpectralNorm``
        around a layer with one kernel.
    count : int, optional
        As in `from_keras`: Flax's variance is biased too.

    Returns
    -------
    dict of str to array

    Raises
    ------
    ValueError
        For other names, the names of two layers, or a weight norm of several feature axes.

    Notes
    -----
    ``WeightNorm(kernel.shape, axis=-1, eps=1e-12)`` takes ``v``, the kernel, and ``g``; its axis is
    None where Flax's ``feature_axes`` is.

    A spectral norm gets torch's names as in `from_keras`, for
    ``SpectralNorm(kernel.shape, axis=-1)``. In evaluation Flax still iterates, from the stored u
    and without storing, where ours goes by what is stored: the two agree once u has converged.

    Examples
    --------
    >>> import numpy as np
    >>> from normcore.convert import from_flax
    >>> from_flax({("scale",): np.ones(2), ("bias",): np.zeros(2)})
    {'weight': array([1., 1.]), 'bias': array([0., 0.])}
    """
    leaves = ((_name(path), "/".join(path), value) for path, value in _leaves(variables))
    found = one_each(leaves)
    wrapped = {"kernel": "v", "lengths": "g", "u": "u", "sigma": "sigma", "bias": "bias"}
    if "u" in found or "lengths" in found:
        state = renamed(found, wrapped)
        if "v" not in state:
            raise ValueError("state has no kernel beside what normalizes it")
        state.pop("sigma", None)
        if "u" in state:
            state.update(spectral_state(state.pop("v"), state.pop("u")))
        elif state["g"].ndim > 1:
            raise ValueError(
                f"kernel/scale has shape {state['g'].shape}, expected one axis or none: one "
                "feature axis"
            )
        return state
    return with_variance(renamed(found, _NORM), "running_var", bessel(count))


def to_flax(
    state: Mapping[str, Any],
    *,
    count: int | None = None,
    form: Literal["linen", "nnx"] = "linen",
    layer: str = "layer_instance",
) -> dict[Any, Any]:
    """The way back from our state to Flax's variables, see `from_flax`.

    Parameters
    ----------
    state : mapping of str to array
        Of a `WeightNorm` with ``axis=-1`` or None, or a `SpectralNorm` with ``axis=-1``, whose
        kernel may be added as ``weight_orig``; in both the ``bias`` of the layer.
    count : int, optional
        As in `from_keras`.
    form : {"linen", "nnx"}
        What is returned: a dict of collections, or a flat dict with tuples for keys, which
        ``nnx.update(module, nnx.from_flat_state(...))`` takes.
    layer : str, default "layer_instance"
        The name of the layer in the wrapper.

    Examples
    --------
    >>> import normcore as nc
    >>> nc.convert.to_flax(nc.RMSNorm(2).state_dict())
    {'params': {'scale': array([1., 1.], dtype=float32)}}
    >>> nc.convert.to_flax(nc.RMSNorm(2).state_dict(), form="nnx")
    {('scale',): array([1., 1.], dtype=float32)}
    """
    if form not in ("linen", "nnx"):
        raise ValueError(f"form is {form!r}, expected 'linen' or 'nnx'")
    spectral = spectral_parts(state)
    if spectral is not None:
        own, statistics = _spectral_norm(*spectral)
    elif "g" in state:
        own, statistics = _weight_norm(state), {}
    else:
        flat = with_variance(back(state, _NORM), "var", 1 / bessel(count))
        if form == "nnx":
            return {(name,): value for name, value in flat.items()}
        variables: dict[str, dict[str, Array]] = {}
        for name, value in flat.items():
            kind = "batch_stats" if name in _STATISTICS else "params"
            variables.setdefault(kind, {})[name] = value
        return variables
    inner = {name: own[name] for name in ("kernel", "bias") if name in own}
    if form == "nnx":
        result: dict[Any, Any] = {(layer, name): value for name, value in inner.items()}
        result |= {("scales", ("kernel",)): own["scale"]} if "scale" in own else {}
        return result | {("batch_stats", ("kernel", k)): v for k, v in statistics.items()}
    params: dict[str, Any] = {layer: inner} if inner else {}
    params |= {f"{layer}/kernel/scale": own["scale"]} if "scale" in own else {}
    stats = {f"{layer}/kernel/{name}": value for name, value in statistics.items()}
    return {k: v for k, v in (("params", params), ("batch_stats", stats)) if v}


def _weight_norm(state: Mapping[str, Any]) -> dict[str, Array]:
    if "v" not in state:
        raise ValueError("state has g, expected v beside it")
    result = renamed(state, {"v": "kernel", "g": "scale", "bias": "bias"})
    kernel, scale = result["kernel"], result["scale"]
    if scale.ndim and scale.shape != kernel.shape[-1:]:
        raise ValueError(
            f"g has shape {scale.shape}, expected {kernel.shape[-1:]}: Flax's axis is -1"
        )
    return result


def _spectral_norm(own: dict[str, Array], u: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    statistics = {"u": u}
    if "kernel" in own:  # sigma = |W u|, which is u @ W @ v
        v = own["kernel"].reshape(-1, u.size).astype(np.float64) @ u.reshape(-1)
        statistics["sigma"] = np.asarray(np.linalg.norm(v), u.dtype)
    return own, statistics
