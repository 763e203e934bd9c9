"""Batches of calls, for ``jax.vmap``.

A batch of calls becomes one call where an axis takes the batch along: in front of the rows, among
the samples, or among the channels, each of which has statistics of its own. Else it is a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ._handlers import HANDLERS, Arrays, Handler, Method, Options

# Options as what a cache takes; calls of other options are traced again.
Items = tuple[tuple[str, Any], ...]
Call = Callable[[Arrays], Arrays]
# A call with other options and, of backward, other gradients.
Again = Callable[..., Call]
Batched = dict[str, bool]

KEPT_CALLS = 1024


def _in_front(a: Array, batched: bool, n: int) -> Array:
    """With the batch as its first axis."""
    return a if batched else jnp.broadcast_to(a, (n, *a.shape))


def _merged(a: Array, at: int) -> Array:
    """An axis and the next one as one."""
    return a.reshape(*a.shape[:at], prod(a.shape[at : at + 2]), *a.shape[at + 2 :])


def _parted(a: Array, at: int, n: int) -> Array:
    """An axis as n of them and the rest."""
    return a.reshape(*a.shape[:at], n, a.shape[at] // n, *a.shape[at + 1 :])


def _loop(again: Again, options: Options, batched: Batched, arrays: Arrays) -> Arrays:
    """One call after the other."""
    call = again(options)
    moving = {k: a for k, a in arrays.items() if batched[k]}
    return jax.lax.map(lambda one: call({**arrays, **one}), moving)


def _over_rows(
    method: Method, again: Again, options: Options, batched: Batched, arrays: Arrays, n: int,
    wanted: tuple[str, ...],
) -> Arrays:  # fmt: skip
    """Rows: the batch is one more axis in front, of which the parameters know nothing."""
    parameters = [p for p in method.gradients if p in arrays]
    if any(batched[p] for p in parameters):
        return _loop(again, options, batched, arrays)
    ndim = arrays["x"].ndim - batched["x"]
    axes = tuple(a % ndim - ndim for a in options["axis"])
    merged = {k: a if k in parameters else _in_front(a, batched[k], n) for k, a in arrays.items()}
    results = again({**options, "axis": axes}, ())(merged)
    if not wanted:
        return results
    # The gradients of parameters are sums over the rows of one call: of dy, and of dy times what
    # the weight multiplies.
    wide = jnp.float64 if merged["x"].dtype == jnp.float64 else jnp.float32
    x, dy = merged["x"].astype(wide), merged["dy"].astype(wide)
    plain = {**options, "axis": axes} | (
        {"weight_offset": 0.0} if method.name == "rms_norm" else {}
    )
    factors = {"bias": None, "weight": forward(method.name, tuple(plain.items()), False)}
    rows = tuple(i for i in range(1, ndim + 1) if i - ndim - 1 not in axes)
    for p in wanted:
        factor = factors[p]
        terms = dy if factor is None else dy * factor({"x": x})["y"]
        shape, dtype = arrays[p].shape, arrays[p].dtype
        results[p] = terms.sum(rows).reshape(n, *shape).astype(dtype)
    return results


def _over_channels(
    method: Method, again: Again, options: Options, batched: Batched, arrays: Arrays, n: int,
    wanted: tuple[str, ...],
) -> Arrays:  # fmt: skip
    """Channels: calls on n batches of C channels are one on n * C channels."""
    if batched.get("mask") or "sample" in method.pools:
        return _loop(again, options, batched, arrays)
    axis = options["channel_axis"] % (arrays["x"].ndim - batched["x"])
    channels = {"x": axis, "dy": axis, "pooled": -4, "given": -4}  # where they stand

    def merge(name: str, a: Array) -> Array:
        if name == "mask":
            return a
        a = _in_front(a, batched[name], n)
        at = channels.get(name, 0) % a.ndim
        return _merged(jnp.moveaxis(a, 0, at), at)

    def part(name: str, a: Array) -> Array:
        at = {"y": axis, "x": axis, "pooled": a.ndim - 3, "given": a.ndim - 3}.get(name, 0)
        return jnp.moveaxis(_parted(a, at, n), at, 0)

    options = {**options, "channel_axis": axis}
    if "num_groups" in options:
        options["num_groups"] *= n
    merged = {k: merge(k, a) for k, a in arrays.items()}
    return {k: part(k, a) for k, a in again(options)(merged).items()}


def _over_weights(
    method: Method, again: Again, options: Options, batched: Batched, arrays: Arrays, n: int,
    wanted: tuple[str, ...],
) -> Arrays:  # fmt: skip
    """Weight norm: weights of n calls have n times as many positions of the kept axis."""
    ndim = arrays["v"].ndim - batched["v"]
    g_shape = arrays["g"].shape[batched["g"] :]
    kept = None if options["axis"] is None else options["axis"] % ndim
    size = 1 if kept is None else arrays["v"].shape[batched["v"] + kept]
    if prod(g_shape) != size:
        return _loop(again, options, batched, arrays)

    def merge(name: str, a: Array) -> Array:
        a = _in_front(a, batched[name], n)
        if name == "g":
            return a.reshape(n * size)
        return a if kept is None else _merged(jnp.moveaxis(a, kept + 1, 1), 0)

    def part(name: str, a: Array) -> Array:
        if name == "g":
            return a.reshape(n, *g_shape)
        return a if kept is None else jnp.moveaxis(_parted(a, 0, n), 1, kept + 1)

    merged = {k: merge(k, a) for k, a in arrays.items()}
    return {k: part(k, a) for k, a in again({**options, "axis": 0})(merged).items()}


def _over_samples(
    handler: Handler, again: Again, options: Options, batched: Batched, arrays: Arrays, n: int,
    wanted: tuple[str, ...],
) -> Arrays:  # fmt: skip
    """Samples: what a method divides by lies within one; the batch is more of them."""
    ndim = arrays["x"].ndim - batched["x"]
    axis = options["channel_axis"] % ndim
    parameters = [p for p in handler.gradients if p in arrays]
    if wanted or any(batched[p] for p in parameters) or axis == 0:
        return _loop(again, options, batched, arrays)

    merged = {
        k: a if k in parameters else _merged(_in_front(a, batched[k], n), 0)
        for k, a in arrays.items()
    }
    results = again({**options, "channel_axis": axis})(merged)
    return {k: _parted(a, 0, n) for k, a in results.items()}


def _over_nothing(
    handler: Handler, again: Again, options: Options, batched: Batched, arrays: Arrays, n: int,
    wanted: tuple[str, ...],
) -> Arrays:  # fmt: skip
    return _loop(again, options, batched, arrays)


def _rule_of(handler: Handler) -> Callable[..., Arrays]:
    if isinstance(handler, Method):
        rules = {"rows": _over_rows, "channels": _over_channels, "weights": _over_weights}
        return rules[handler.family]
    return _over_nothing if handler.name == "spectral_norm" else _over_samples


def _with_rule(
    handler: Handler, call: Call, again: Again, options: Options, wanted: tuple[str, ...]
) -> Call:
    batchable = jax.custom_batching.custom_vmap(call)

    @batchable.def_vmap
    def rule(n: int, batched: Any, arrays: Arrays) -> Any:
        (flags,) = batched
        if n == 0:
            results = _loop(again, options, flags, arrays)
        else:
            results = _rule_of(handler)(handler, again, options, flags, arrays, n, wanted)
        return results, {k: True for k in results}

    return batchable


@lru_cache(KEPT_CALLS)
def forward(name: str, items: Items, saves: bool) -> Call:
    """A handler's forward call, with a batching rule."""
    handler, options = HANDLERS[name], dict(items)

    def again(options: Options, wanted: tuple[str, ...] = ()) -> Call:
        return forward(name, tuple(options.items()), saves)

    return _with_rule(handler, lambda a: handler.forward(a, options, saves), again, options, ())


@lru_cache(KEPT_CALLS)
def backward(name: str, items: Items, wanted: tuple[str, ...]) -> Call:
    """A handler's backward call, with a batching rule."""
    handler, options = HANDLERS[name], dict(items)

    def again(options: Options, wanted: tuple[str, ...] = wanted) -> Call:
        return backward(name, tuple(options.items()), wanted)

    call = lambda a: handler.backward(a, options, wanted)  # noqa: E731
    return _with_rule(handler, call, again, options, wanted)
