"""The handlers of the compiled core in XLA: what they are called with, and what they give.

A handler takes the arrays that are there, in the order of its signature, and its options as
attributes. Here arrays and results are dicts by their names; a gradient has the name of its array.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .. import _core

Arrays = dict[str, Array]
Options = dict[str, Any]
Shapes = dict[str, jax.ShapeDtypeStruct]


def _register() -> None:
    for platform, handlers in _core.jax_handlers().items():
        for name, handler in handlers.items():
            jax.ffi.register_ffi_target(f"normcore_{name}", handler, platform=platform)


_register()


def _like(a: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _pairs(shape: Sequence[int]) -> jax.ShapeDtypeStruct:
    """Pairs of doubles, whose bytes travel as uint32: there may be no float64."""
    return jax.ShapeDtypeStruct((*shape, 2, 2), jnp.uint32)


def _attribute(value: Any) -> Any:
    if isinstance(value, tuple):
        return np.array(value, np.int64)
    if isinstance(value, bool):
        return np.bool_(value)
    return np.int64(value) if isinstance(value, int) else np.float64(value)


def mesh_axes(arrays: Iterable[Array]) -> frozenset[str]:
    """The axes of a mesh along which, within ``jax.shard_map``, some of the arrays differ."""
    axes: frozenset[str] = frozenset()
    for kind in map(jax.typeof, arrays):
        manual = getattr(kind, "manual_axis_type", None)
        axes |= getattr(kind, "vma", frozenset()) if manual is None else manual.varying
    return axes


def varying(a: Array, axes: frozenset[str]) -> Array:
    """The same array, as one that differs along the axes: its gradient is then summed over them.

    JAX does so where its own operations take some arrays that differ and some that do not.
    """
    missing = tuple(axes - mesh_axes([a]))
    if not missing:
        return a
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(a, missing, to="varying")
    return jax.lax.pvary(a, missing)  # as jax 0.6.1 has it


def _bits(flags: Iterable[bool]) -> int:
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def _call(
    target: str, arrays: Sequence[Array], results: Shapes, attributes: Options, moved: Any = ()
) -> Arrays:
    """A handler's results. Those in ``moved`` begin as the arrays at these places."""
    names = list(results)
    aliases = {at: names.index(name) for name, at in moved}
    call = jax.ffi.ffi_call(
        f"normcore_{target}",
        tuple(results.values()),
        vmap_method="sequential",  # not used: `_batching` comes before
        input_output_aliases=aliases,
    )
    attributes = {k: _attribute(v) for k, v in attributes.items() if v is not None}
    made, axes = call(*arrays, **attributes), mesh_axes(arrays)
    return {name: varying(a, axes) for name, a in zip(names, made, strict=True)}


class Handler:
    """A handler and that of its backward.

    ``arrays`` are those behind x in their order, ``gradients`` those of them that have a gradient,
    ``counted`` those of which an attribute says whether they are there.
    """

    x, dy = "x", "dy"
    arrays: Sequence[str]
    gradients: Sequence[str]
    counted: Sequence[str]

    def __init__(self, name: str) -> None:
        self.name = name

    def forward(self, arrays: Arrays, options: Options, saves: bool) -> Arrays:
        """y, and with ``saves`` what backward takes beside the arrays."""
        given = [a for a in (self.x, *self.arrays) if a in arrays]
        attributes = {**options, "arrays": _bits(a in arrays for a in self.counted)}
        results = {"y": _like(arrays[self.x])}
        return _call(self.name, [arrays[a] for a in given], results, attributes)

    def backward(self, arrays: Arrays, options: Options, wanted: Sequence[str]) -> Arrays:
        """The gradients of x and of those wanted; dy is one of the arrays."""
        given = [a for a in (self.dy, self.x, *self.arrays) if a in arrays]
        attributes = {**options, "arrays": _bits(a in arrays for a in self.counted)}
        attributes["wanted"] = _bits(a in wanted for a in self.gradients)
        results = {a: _like(arrays[a]) for a in (self.x, *self.gradients) if a in (self.x, *wanted)}
        return _call(f"{self.name}_backward", [arrays[a] for a in given], results, attributes)

    def for_backward(self, arrays: Arrays, results: Arrays) -> Arrays:
        """What backward takes beside dy, of a call's arrays and results."""
        return arrays

    def backward_options(self, options: Options) -> Options:
        return options

    def outputs(self, results: Arrays) -> Arrays:
        """What the caller sees of the results."""
        return results


class Method(Handler):
    """Handlers of a method with a signature."""

    def __init__(self, name: str, signature: _core.Signature) -> None:
        super().__init__(name)
        self.family = signature["family"]
        if self.family == "weights":
            self.x, self.dy = "v", "dw"
        self.buffers = [a for a, _ in signature["buffers"]]
        learned = [a for a, _ in signature["own"]] + signature["affine"]
        others = {*learned, *self.buffers, "mask", "residual"}
        self.arrays = self.counted = [a for a in signature["arguments"] if a in others]
        self.gradients = [a for a in self.arrays if a in learned]
        self.pools = list(signature["pools"])
        self._forward_only = set(signature["forward_only"])
        self._learns = signature["learns"] or ""
        self._always_given = signature["always_given"]
        self._leaves_stats = "pooled" in signature["statistics"]
        self._may_save_given = "given" in signature["statistics"]

    def _saved(self, arrays: Arrays, options: Options) -> Shapes:
        """What forward leaves for backward."""
        x = arrays[self.x]
        if self.family == "rows":
            axes = {a % x.ndim for a in options["axis"]}
            return {"pooled": _pairs([1 if i in axes else n for i, n in enumerate(x.shape)])}
        channels, last = x.shape[options["channel_axis"]], self.pools[-1]
        entries = max(options["num_groups"], 0) if last == "group" else channels
        saved = {"pooled": _pairs([entries] if last == "batch" else [x.shape[0], entries])}
        if self._may_save_given:
            learns = options[self._learns]
            if learns if self._always_given else not learns and self.buffers[0] in arrays:
                saved["given"] = _pairs([channels])
        return saved

    def forward(self, arrays: Arrays, options: Options, saves: bool) -> Arrays:
        given = [a for a in (self.x, *self.arrays) if a in arrays]
        results = {"y": _like(arrays[self.x])}
        if "residual" in arrays:
            results["h"] = results["y"]
        moved = [b for b in self.buffers if b in arrays] if options.get(self._learns) else []
        results |= {b: _like(arrays[b]) for b in moved}
        attributes = {**options, "arrays": _bits(a in arrays for a in self.arrays)}
        if self._leaves_stats:
            attributes["saves"] = saves
            results |= self._saved(arrays, options) if saves else {}
        places = [(b, given.index(b)) for b in moved]
        return _call(self.name, [arrays[a] for a in given], results, attributes, places)

    def backward(self, arrays: Arrays, options: Options, wanted: Sequence[str]) -> Arrays:
        counted = ["dh" if a == "residual" else a for a in self.arrays]
        saved = ["pooled", "given"]
        given = [a for a in (self.dy, self.x, *counted, *saved) if a in arrays]
        attributes = {
            **options,
            "arrays": _bits(a in arrays for a in counted),
            "saved": _bits(a in arrays for a in saved),
            "wanted": _bits(a in wanted for a in self.gradients),
        }
        results = {a: _like(arrays[a]) for a in (self.x, *self.gradients) if a in (self.x, *wanted)}
        return _call(f"{self.name}_backward", [arrays[a] for a in given], results, attributes)

    def for_backward(self, arrays: Arrays, results: Arrays) -> Arrays:
        kept = {k: a for k, a in arrays.items() if k != "residual"}
        if "h" in results:
            kept[self.x] = results["h"]
        return kept | {k: results[k] for k in ("pooled", "given") if k in results}

    def backward_options(self, options: Options) -> Options:
        return {k: v for k, v in options.items() if k not in self._forward_only}

    def outputs(self, results: Arrays) -> Arrays:
        return {k: a for k, a in results.items() if k not in ("pooled", "given")}


class Special(Handler):
    """Handlers without a signature, whose backward takes what forward does."""

    def __init__(self, name: str, arrays: str, optional: str = "") -> None:
        super().__init__(name)
        self.arrays = self.gradients = arrays.split()
        self.counted = optional.split()


class SpectralNorm(Handler):
    """Spectral norm: its backward takes what forward gave, and u and v are constants."""

    x, dy = "weight", "dw"
    arrays = counted = ("u", "v")
    gradients = ()

    def forward(self, arrays: Arrays, options: Options, saves: bool) -> Arrays:
        weight = arrays["weight"]
        dtype = jnp.float64 if weight.dtype == jnp.float64 else jnp.float32
        out = weight.shape[options["axis"]]
        rest = prod(weight.shape) // max(out, 1)
        shapes = {"sigma": (), "u": (out,), "v": (rest,)}
        results = {"y": _like(weight)}
        results |= {k: jax.ShapeDtypeStruct(shape, dtype) for k, shape in shapes.items()}
        given = [a for a in ("weight", "u", "v") if a in arrays]
        attributes = {**options, "arrays": _bits(a in arrays for a in self.counted)}
        return _call(self.name, [arrays[a] for a in given], results, attributes)

    def backward(self, arrays: Arrays, options: Options, wanted: Sequence[str]) -> Arrays:
        given = [arrays[a] for a in ("dw", "y", "sigma", "u", "v")]
        results = {"weight": _like(arrays["y"])}
        return _call(f"{self.name}_backward", given, results, options)

    def for_backward(self, arrays: Arrays, results: Arrays) -> Arrays:
        return {"weight": arrays["weight"], **results}

    def backward_options(self, options: Options) -> Options:
        return {k: options[k] for k in ("axis", "bound")}


HANDLERS: dict[str, Handler] = {
    name: Method(name, signature)
    for name, signature in _core.signatures().items()
    if name == signature["function"]
}
for _handler in (
    Special("divisive_norm", "weights sigma gain", "gain"),
    Special("gdn", "beta gamma"),
    Special("local_divisive_norm", "sigma weight bias", "weight bias"),
    Special("local_response_norm", ""),
    SpectralNorm("spectral_norm"),
):
    HANDLERS[_handler.name] = _handler
