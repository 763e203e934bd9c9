"""The methods as formulas of a framework's own operations, by which it takes derivatives that the
compiled core has not: those of gradients, and in forward mode.

A formula takes x, the arrays that are given and the options, by their names in the signature; those
that make no difference to y go into ``_``. 16-bit arrays are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, prod
from typing import Any

Array = Any  # of the framework


class Formulas:
    """The formulas of a framework: ``xp`` has the operations that torch and jax.numpy call alike,
    ``cast(a, dtype)`` converts, and ``softmax(a, axis)`` is theirs."""

    def __init__(
        self, xp: Any, cast: Callable[[Array, Any], Array], softmax: Callable[[Array, int], Array]
    ) -> None:
        self._xp, self._cast, self._softmax = xp, cast, softmax

    def get(self, name: str) -> Callable[..., Array] | None:
        """The formula of a function; None where it has no derivatives of derivatives."""
        return getattr(self, name, None)

    # ---- rows

    def layer_norm(
        self, x: Array, weight: Array = None, bias: Array = None, *, axis: Sequence[int], eps: float
    ) -> Array:
        axes = _over(axis, x.ndim)
        y = self._standardized(self._wide(x), axes, eps)
        return self._affine(y, x, *(self._along(a, x, axes) for a in (weight, bias)))

    def rms_norm(
        self, x: Array, weight: Array = None, *, axis: Sequence[int], eps: float,
        weight_offset: float,
    ) -> Array:  # fmt: skip
        axes, wide = _over(axis, x.ndim), self._wide(x)
        y = wide / self._xp.sqrt(_mean(self._xp.square(wide), axes) + eps)
        factor = 1.0 if weight is None else self._along(weight, x, axes)
        return self._affine(y, x, factor + weight_offset, None)

    def normalize(self, x: Array, *, ord: float, axis: Sequence[int], eps: float) -> Array:
        xp, axes, wide = self._xp, _over(axis, x.ndim), self._wide(x)
        if ord == inf:
            norm = xp.amax(xp.abs(wide), axis=axes, keepdims=True)
        elif ord == 1:
            norm = _sum(xp.abs(wide), axes)
        else:
            norm2 = _sum(xp.square(wide), axes)
            # Of a row of zeros: zeros, and no gradient.
            norm = xp.where(norm2 > 0, xp.sqrt(xp.where(norm2 > 0, norm2, 1)), 0)
        return self._cast(wide / xp.clip(norm, min=eps), x.dtype)

    # ---- channels

    def batch_norm(
        self, x: Array, weight: Array = None, bias: Array = None, running_mean: Array = None,
        running_var: Array = None, mask: Array = None, *, training: bool, eps: float,
        channel_axis: int, **_: Any,
    ) -> Array:  # fmt: skip
        if training or running_mean is None:
            counts = self._counts(mask, x, channel_axis)
            y = self._standardized(self._wide(x), _channels(x, channel_axis, True), eps, counts)
        else:
            y = self._wide(x) - self._by_channel(running_mean, x, channel_axis)
            y = y / self._xp.sqrt(self._by_channel(running_var, x, channel_axis) + eps)
        return self._per_channel(y, x, channel_axis, weight, bias)

    def instance_norm(
        self, x: Array, weight: Array = None, bias: Array = None, running_mean: Array = None,
        running_var: Array = None, *, use_input_stats: bool, eps: float, channel_axis: int,
        **_: Any,
    ) -> Array:  # fmt: skip
        if not use_input_stats:
            return self.batch_norm(
                x, weight, bias, running_mean, running_var, training=False, eps=eps,
                channel_axis=channel_axis,
            )  # fmt: skip
        y = self._standardized(self._wide(x), _channels(x, channel_axis, False), eps)
        return self._per_channel(y, x, channel_axis, weight, bias)

    def group_norm(
        self, x: Array, weight: Array = None, bias: Array = None, *, num_groups: int, eps: float,
        channel_axis: int,
    ) -> Array:  # fmt: skip
        channel = channel_axis % x.ndim
        members = x.shape[channel] // num_groups
        shape = (*x.shape[:channel], num_groups, members, *x.shape[channel + 1 :])
        axes = tuple(i for i in range(1, len(shape)) if i != channel)
        y = self._standardized(self._wide(x).reshape(shape), axes, eps).reshape(x.shape)
        return self._per_channel(y, x, channel_axis, weight, bias)

    def mean_only_batch_norm(
        self, x: Array, bias: Array = None, running_mean: Array = None, mask: Array = None, *,
        training: bool, channel_axis: int, **_: Any,
    ) -> Array:  # fmt: skip
        if training or running_mean is None:
            counts = self._counts(mask, x, channel_axis)
            y, _share = self._centered(self._wide(x), _channels(x, channel_axis, True), counts)
        else:
            y = self._wide(x) - self._by_channel(running_mean, x, channel_axis)
        return self._per_channel(y, x, channel_axis, None, bias)

    def batch_instance_norm(
        self, x: Array, rho: Array, weight: Array = None, bias: Array = None,
        running_mean: Array = None, running_var: Array = None, *, training: bool, eps: float,
        channel_axis: int, **_: Any,
    ) -> Array:  # fmt: skip
        wide, gate = self._wide(x), self._by_channel(rho, x, channel_axis)
        whole = self.batch_norm(
            wide, None, None, running_mean, running_var, training=training, eps=eps,
            channel_axis=channel_axis,
        )  # fmt: skip
        own = self._standardized(wide, _channels(x, channel_axis, False), eps)
        return self._per_channel(gate * whole + (1 - gate) * own, x, channel_axis, weight, bias)

    def switchable_norm(
        self, x: Array, mean_logits: Array, var_logits: Array, weight: Array = None,
        bias: Array = None, running_mean: Array = None, running_var: Array = None, *,
        training: bool, eps: float, channel_axis: int, **_: Any,
    ) -> Array:  # fmt: skip
        wide = self._wide(x)

        def moments(axes: Sequence[int]) -> tuple[Array, Array]:
            mean = _mean(wide, axes)
            return mean, _mean(self._xp.square(wide - mean), axes)

        if training or running_mean is None:
            batch = moments(_channels(x, channel_axis, True))
        else:
            given = running_mean, running_var
            batch = tuple(self._by_channel(a, x, channel_axis) for a in given)
        layer = moments(tuple(range(1, x.ndim)))
        pools = moments(_channels(x, channel_axis, False)), layer, batch
        shares = (self._softmax(self._wide(a), 0) for a in (mean_logits, var_logits))
        mean, var = (
            sum(share[k] * pool[i] for k, pool in enumerate(pools))
            for i, share in enumerate(shares)
        )
        y = (wide - mean) / self._xp.sqrt(var + eps)
        return self._per_channel(y, x, channel_axis, weight, bias)

    # ---- matrices

    def weight_norm(self, v: Array, g: Array, *, eps: float, axis: int | None = None) -> Array:
        xp, wide, g = self._xp, self._wide(v), self._wide(g)
        axes = tuple(i for i in range(v.ndim) if axis is None or i != axis % v.ndim)
        g = g.reshape(()) if axis is None or prod(g.shape) == 1 else self._by_channel(g, v, axis)
        norm2 = _sum(xp.square(wide), axes) + eps
        # Of a row of zeros: zeros, and no gradient.
        norm = xp.sqrt(xp.where(norm2 > 0, norm2, 1))
        return self._cast(wide * xp.where(norm2 > 0, g / norm, 0), v.dtype)

    def spectral_norm(
        self, weight: Array, u: Array, v: Array, *, axis: int, bound: float | None = None, **_: Any
    ) -> Array:
        """With u and v as they are after the iterations: constants."""
        xp, wide = self._xp, self._wide(weight)
        u, v = (self._cast(a, wide.dtype) for a in (u, v))
        sigma = u @ xp.moveaxis(wide, axis, 0).reshape((*u.shape, *v.shape)) @ v
        divisor = sigma if bound is None else xp.clip(sigma / bound, min=1)
        w = xp.where(divisor == 0, 0, wide / xp.where(divisor == 0, 1, divisor))
        return self._cast(w, weight.dtype)

    # ---- what they share

    def _wide(self, a: Array) -> Array:
        return a if a.dtype == self._xp.float64 else self._cast(a, self._xp.float32)

    def _along(self, a: Array, x: Array, axes: Sequence[int]) -> Array:
        """A parameter with x's sizes along the axes; None of None."""
        if a is None:
            return None
        return self._wide(a).reshape([n if i in axes else 1 for i, n in enumerate(x.shape)])

    def _by_channel(self, a: Array, x: Array, channel_axis: int) -> Array:
        """One value per channel, where x has its channels; None of None."""
        return self._along(a, x, (channel_axis % x.ndim,))

    def _affine(self, y: Array, x: Array, weight: Array, bias: Array) -> Array:
        """y times the weight plus the bias, in x's dtype."""
        y = y if weight is None else y * weight
        return self._cast(y if bias is None else y + bias, x.dtype)

    def _per_channel(
        self, y: Array, x: Array, channel_axis: int, weight: Array, bias: Array
    ) -> Array:
        parts = (self._by_channel(a, x, channel_axis) for a in (weight, bias))
        return self._affine(y, x, *parts)

    def _counts(self, mask: Array, x: Array, channel_axis: int) -> Array:
        """A mask, which has no channels, as numbers where x has its positions; None of None."""
        channel = channel_axis % x.ndim
        return self._along(mask, x, [i for i in range(x.ndim) if i != channel])

    def _centered(self, x: Array, axes: Sequence[int], counts: Array) -> tuple[Array, Array]:
        """(x - mean, the share that each position has in it), 0 where nothing counts."""
        if counts is None:
            return x - _mean(x, axes), None
        total = _sum(counts, axes)
        share = counts / self._xp.where(total > 0, total, 1)
        return self._xp.where(total > 0, x - _sum(share * x, axes), 0), share

    def _standardized(
        self, x: Array, axes: Sequence[int], eps: float, counts: Array = None
    ) -> Array:
        d, share = self._centered(x, axes, counts)
        square = self._xp.square(d)
        var = _mean(square, axes) if share is None else _sum(share * square, axes)
        return d / self._xp.sqrt(var + eps)


def _over(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    return tuple(sorted(a % ndim for a in axes))


def _channels(x: Array, channel_axis: int, samples: bool) -> tuple[int, ...]:
    """The axes of one channel's statistics: over the samples too, or within each."""
    channel = channel_axis % x.ndim
    return tuple(i for i in range(x.ndim) if i != channel and (samples or i != 0))


# Over no axes torch would reduce them all.


def _sum(a: Array, axes: Sequence[int]) -> Array:
    return a.sum(axis=axes, keepdims=True) if axes else a


def _mean(a: Array, axes: Sequence[int]) -> Array:
    return a.mean(axis=axes, keepdims=True) if axes else a
