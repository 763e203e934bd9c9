"""The methods as formulas of jax.numpy, by which derivatives of gradients are taken. Values and
first gradients never come from here.

A formula takes x, the arrays that are given and the options by their names; those that make no
difference to y go into ``_``. 16-bit arrays are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def _wide(x: Array) -> Array:
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _by_channel(a: Array, x: Array, channel_axis: int) -> Array:
    """One value per channel, where x has its channels."""
    shape = [1] * x.ndim
    shape[channel_axis] = -1
    return _wide(a).reshape(shape)


def _affine(y: Array, weight: Array | None, bias: Array | None) -> Array:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _per_channel(y: Array, x: Array, channel_axis: int, weight: Any, bias: Any) -> Array:
    """y times the weight plus the bias, each of one value per channel, in x's dtype."""
    parts = (None if a is None else _by_channel(a, x, channel_axis) for a in (weight, bias))
    return _affine(y, *parts).astype(x.dtype)


def _over(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    return tuple(sorted(a % ndim for a in axes))


def _along(a: Array | None, x: Array, axes: Sequence[int]) -> Array | None:
    """A parameter with x's sizes along the axes; None of None."""
    if a is None:
        return None
    return _wide(a).reshape([n if i in axes else 1 for i, n in enumerate(x.shape)])


def _centered(x: Array, axes: Sequence[int], mask: Array | None) -> tuple[Array, Array | None]:
    """(x - mean, the share that each position has in it), 0 where nothing counts."""
    if mask is None:
        return x - x.mean(axes, keepdims=True), None
    count = mask.sum(axes, keepdims=True)
    share = mask / jnp.where(count > 0, count, 1)
    return jnp.where(count > 0, x - (share * x).sum(axes, keepdims=True), 0), share


def _standardized(x: Array, axes: Sequence[int], eps: float, mask: Array | None = None) -> Array:
    d, share = _centered(x, axes, mask)
    square = jnp.square(d)
    if share is None:
        var = square.mean(axes, keepdims=True)
    else:
        var = (share * square).sum(axes, keepdims=True)
    return d * jax.lax.rsqrt(var + eps)


def layer_norm(
    x: Array, weight: Any = None, bias: Any = None, *, axis: Sequence[int], eps: float
) -> Array:
    axes = _over(axis, x.ndim)
    y = _standardized(_wide(x), axes, eps)
    return _affine(y, _along(weight, x, axes), _along(bias, x, axes)).astype(x.dtype)


def rms_norm(
    x: Array, weight: Any = None, *, axis: Sequence[int], eps: float, weight_offset: float
) -> Array:
    axes, wide = _over(axis, x.ndim), _wide(x)
    y = wide * jax.lax.rsqrt(jnp.square(wide).mean(axes, keepdims=True) + eps)
    factor: Any = 1.0 if weight is None else _along(weight, x, axes)
    return (y * (factor + weight_offset)).astype(x.dtype)


def normalize(x: Array, *, ord: float, axis: Sequence[int], eps: float) -> Array:
    axes, wide = _over(axis, x.ndim), _wide(x)
    size = jnp.abs(wide)
    largest = size.max(axes, keepdims=True)
    if ord == float("inf"):
        norm = largest
    elif ord == 1:
        norm = size.sum(axes, keepdims=True)
    else:
        # Of a row of zeros: zeros, and no gradient.
        powers = jnp.where(size > 0, size, 1) ** ord
        total = jnp.where(size > 0, powers, 0).sum(axes, keepdims=True)
        norm = jnp.where(largest > 0, jnp.where(largest > 0, total, 1) ** (1 / ord), 0)
    return (wide / jnp.maximum(norm, eps)).astype(x.dtype)


def _channels(x: Array, channel_axis: int, samples: bool) -> tuple[int, ...]:
    """The axes of one channel's statistics: over the samples too, or within each."""
    channel = channel_axis % x.ndim
    return tuple(i for i in range(x.ndim) if i != channel and (samples or i != 0))


def _positions(mask: Array | None, x: Array, channel_axis: int) -> Array | None:
    return None if mask is None else jnp.expand_dims(mask, channel_axis % x.ndim)


def batch_norm(
    x: Array, weight: Any = None, bias: Any = None, running_mean: Any = None,
    running_var: Any = None, mask: Any = None, *, training: bool, eps: float, channel_axis: int,
    **_: Any,
) -> Array:  # fmt: skip
    if training or running_mean is None:
        counts = _positions(mask, x, channel_axis)
        y = _standardized(_wide(x), _channels(x, channel_axis, True), eps, counts)
    else:
        y = _wide(x) - _by_channel(running_mean, x, channel_axis)
        y = y * jax.lax.rsqrt(_by_channel(running_var, x, channel_axis) + eps)
    return _per_channel(y, x, channel_axis, weight, bias)


def instance_norm(
    x: Array, weight: Any = None, bias: Any = None, running_mean: Any = None,
    running_var: Any = None, *, use_input_stats: bool, eps: float, channel_axis: int, **_: Any,
) -> Array:  # fmt: skip
    if not use_input_stats:
        return batch_norm(
            x, weight, bias, running_mean, running_var, training=False, eps=eps,
            channel_axis=channel_axis,
        )  # fmt: skip
    y = _standardized(_wide(x), _channels(x, channel_axis, False), eps)
    return _per_channel(y, x, channel_axis, weight, bias)


def group_norm(
    x: Array, weight: Any = None, bias: Any = None, *, num_groups: int, eps: float,
    channel_axis: int,
) -> Array:  # fmt: skip
    channel = channel_axis % x.ndim
    apart = _wide(x).reshape(*x.shape[:channel], num_groups, -1, *x.shape[channel + 1 :])
    axes = tuple(i for i in range(1, apart.ndim) if i != channel)
    y = _standardized(apart, axes, eps).reshape(x.shape)
    return _per_channel(y, x, channel_axis, weight, bias)


def mean_only_batch_norm(
    x: Array, bias: Any = None, running_mean: Any = None, mask: Any = None, *, training: bool,
    channel_axis: int, **_: Any,
) -> Array:  # fmt: skip
    if training or running_mean is None:
        counts = _positions(mask, x, channel_axis)
        y, _share = _centered(_wide(x), _channels(x, channel_axis, True), counts)
    else:
        y = _wide(x) - _by_channel(running_mean, x, channel_axis)
    return _per_channel(y, x, channel_axis, None, bias)


def batch_instance_norm(
    x: Array, rho: Array, weight: Any = None, bias: Any = None, running_mean: Any = None,
    running_var: Any = None, *, training: bool, eps: float, channel_axis: int, **_: Any,
) -> Array:  # fmt: skip
    wide, gate = _wide(x), _by_channel(rho, x, channel_axis)
    whole = batch_norm(
        wide, None, None, running_mean, running_var, training=training, eps=eps,
        channel_axis=channel_axis,
    )  # fmt: skip
    own = _standardized(wide, _channels(x, channel_axis, False), eps)
    return _per_channel(gate * whole + (1 - gate) * own, x, channel_axis, weight, bias)


def switchable_norm(
    x: Array, mean_logits: Array, var_logits: Array, weight: Any = None, bias: Any = None,
    running_mean: Any = None, running_var: Any = None, *, training: bool, eps: float,
    channel_axis: int, **_: Any,
) -> Array:  # fmt: skip
    wide = _wide(x)

    def moments(axes: Sequence[int]) -> tuple[Array, Array]:
        return wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)

    if training or running_mean is None:
        batch = moments(_channels(x, channel_axis, True))
    else:
        batch = tuple(_by_channel(a, x, channel_axis) for a in (running_mean, running_var))
    pools = moments(_channels(x, channel_axis, False)), moments(range(1, x.ndim)), batch
    shares = jax.nn.softmax(_wide(mean_logits)), jax.nn.softmax(_wide(var_logits))
    mean, var = (
        sum(share[k] * pool[i] for k, pool in enumerate(pools)) for i, share in enumerate(shares)
    )
    y = (wide - mean) * jax.lax.rsqrt(var + eps)
    return _per_channel(y, x, channel_axis, weight, bias)


def weight_norm(v: Array, g: Array, *, eps: float, axis: int | None = None) -> Array:
    wide, g = _wide(v), _wide(g)
    axes = tuple(i for i in range(v.ndim) if axis is None or i != axis % v.ndim)
    if g.size == 1 or axis is None:
        g = g.reshape(())
    else:
        g = _by_channel(g.reshape(-1), v, axis)
    norm2 = jnp.square(wide).sum(axes, keepdims=True) + eps
    # Of a row of zeros: zeros, and no gradient.
    root = jax.lax.rsqrt(jnp.where(norm2 > 0, norm2, 1))
    return (wide * jnp.where(norm2 > 0, g * root, 0)).astype(v.dtype)


def spectral_norm(
    weight: Array, u: Array, v: Array, *, axis: int, bound: float | None = None, **_: Any
) -> Array:
    """With u and v as they are after the iterations: constants."""
    wide = _wide(weight)
    matrix = jnp.moveaxis(wide, axis, 0).reshape(wide.shape[axis], -1)
    sigma = u.astype(wide.dtype) @ matrix @ v.astype(wide.dtype)
    divisor = sigma if bound is None else jnp.maximum(sigma / bound, 1)
    w = jnp.where(divisor == 0, 0, wide / jnp.where(divisor == 0, 1, divisor))
    return w.astype(weight.dtype)


FORMULAS: dict[str, Callable[..., Array]] = {
    f.__name__: f
    for f in (
        layer_norm, rms_norm, normalize, batch_norm, instance_norm, group_norm, weight_norm,
        mean_only_batch_norm, batch_instance_norm, switchable_norm, spectral_norm,
    )
}  # fmt: skip
