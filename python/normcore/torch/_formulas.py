"""The methods as formulas of torch's own operations, by which derivatives of derivatives are taken:
double backward, and derivatives in forward mode. Values and first gradients never come from here.

A formula takes what its operator takes, in the same order. 16-bit tensors are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _by_channel(a: Any, x: Tensor, channel_axis: int) -> Any:
    """One value per channel, where x has its channels; None of None."""
    if a is None:
        return None
    shape = [1] * x.dim()
    shape[channel_axis] = -1
    return _wide(a).reshape(shape)


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _over(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    return tuple(sorted(a % ndim for a in axes))


def _along(a: Any, x: Tensor, axes: Sequence[int]) -> Any:
    """A parameter with x's sizes along the axes; None of None."""
    if a is None:
        return None
    shape = [1] * x.dim()
    for i in axes:
        shape[i] = x.shape[i]
    return _wide(a).reshape(shape)


def _standardized(
    x: Tensor, axes: Sequence[int], eps: float, weights: Tensor | None = None
) -> Tensor:
    if weights is None:
        d = x - x.mean(axes, keepdim=True)
        var = d.square().mean(axes, keepdim=True)
    else:
        count = weights.sum(axes, keepdim=True)
        share = weights / torch.where(count > 0, count, 1)
        d = x - (share * x).sum(axes, keepdim=True)
        var = (share * d.square()).sum(axes, keepdim=True)
        d = torch.where(count > 0, d, 0)
    return d * torch.rsqrt(var + eps)


def layer_norm(x: Tensor, weight: Any, bias: Any, axis: Sequence[int], eps: float) -> Tensor:
    axes = _over(axis, x.dim())
    y = _standardized(_wide(x), axes, eps)
    return _affine(y, _along(weight, x, axes), _along(bias, x, axes)).to(x.dtype)


def rms_norm(x: Tensor, weight: Any, axis: Sequence[int], eps: float, offset: float) -> Tensor:
    axes = _over(axis, x.dim())
    wide = _wide(x)
    y = wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + eps)
    weight = _along(weight, x, axes)
    return (y * (1 + offset if weight is None else weight + offset)).to(x.dtype)


def _channels(x: Tensor, channel_axis: int, samples: bool) -> tuple[int, ...]:
    """The axes of one channel's statistics: over the samples too, or within each."""
    channel = channel_axis % x.dim()
    return tuple(i for i in range(x.dim()) if i != channel and (samples or i != 0))


def batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float,
    eps: float, unbiased: bool, channel_axis: int, mask: Any,
) -> Tensor:  # fmt: skip
    if training or mean is None:
        weights = None if mask is None else _wide(mask).unsqueeze(channel_axis % x.dim())
        y = _standardized(_wide(x), _channels(x, channel_axis, True), eps, weights)
    else:
        y = _wide(x) - _by_channel(mean, x, channel_axis)
        y = y * torch.rsqrt(_by_channel(var, x, channel_axis) + eps)
    parts = _by_channel(weight, x, channel_axis), _by_channel(bias, x, channel_axis)
    return _affine(y, *parts).to(x.dtype)


def instance_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, use_input_stats: bool, momentum: float,
    eps: float, unbiased: bool, channel_axis: int,
) -> Tensor:  # fmt: skip
    if not use_input_stats:
        return batch_norm(
            x, weight, bias, mean, var, False, momentum, eps, unbiased, channel_axis, None
        )
    y = _standardized(_wide(x), _channels(x, channel_axis, False), eps)
    parts = _by_channel(weight, x, channel_axis), _by_channel(bias, x, channel_axis)
    return _affine(y, *parts).to(x.dtype)


def group_norm(
    x: Tensor, groups: int, weight: Any, bias: Any, eps: float, channel_axis: int
) -> Tensor:
    channel = channel_axis % x.dim()
    apart = _wide(x).unflatten(channel, (groups, -1))
    axes = tuple(i for i in range(1, apart.dim()) if i != channel)
    y = _standardized(apart, axes, eps).flatten(channel, channel + 1)
    parts = _by_channel(weight, x, channel_axis), _by_channel(bias, x, channel_axis)
    return _affine(y, *parts).to(x.dtype)


def weight_norm(v: Tensor, g: Tensor, axis: int | None, eps: float) -> Tensor:
    wide, g = _wide(v), _wide(g)
    axes = tuple(i for i in range(v.dim()) if axis is None or i != axis % v.dim())
    if g.numel() == 1 or axis is None:
        g = g.reshape(())
    else:
        g = _by_channel(g.reshape(-1), v, axis)
    norm2 = wide.square().sum(axes, keepdim=True) + eps
    # Of a row of zeros: zeros, and no gradient.
    root = torch.where(norm2 > 0, norm2, 1).rsqrt()
    return (wide * torch.where(norm2 > 0, g * root, 0)).to(v.dtype)


def spectral_norm(weight: Tensor, u: Tensor, v: Tensor, axis: int, bound: float | None) -> Tensor:
    """With u and v as they are after the iterations: constants."""
    wide = _wide(weight)
    matrix = wide.movedim(axis, 0).flatten(1) if weight.dim() > 1 else wide[:, None]
    sigma = torch.dot(u.to(wide.dtype), matrix @ v.to(wide.dtype))
    divisor = sigma if bound is None else torch.clamp(sigma / bound, min=1)
    return torch.where(divisor == 0, 0, wide / torch.where(divisor == 0, 1, divisor)).to(
        weight.dtype
    )


def normalize(x: Tensor, ord: float, axis: Sequence[int], eps: float) -> Tensor:
    wide = _wide(x)
    norm = torch.linalg.vector_norm(wide, ord, dim=_over(axis, x.dim()), keepdim=True)
    return (wide / norm.clamp(min=eps)).to(x.dtype)


def mean_only_batch_norm(
    x: Tensor, bias: Any, mean: Any, training: bool, momentum: float, channel_axis: int, mask: Any
) -> Tensor:
    wide, axes = _wide(x), _channels(x, channel_axis, True)
    if not training and mean is not None:
        y = wide - _by_channel(mean, x, channel_axis)
    elif mask is None:
        y = wide - wide.mean(axes, keepdim=True)
    else:
        weights = _wide(mask).unsqueeze(channel_axis % x.dim())
        count = weights.sum(axes, keepdim=True)
        center = (weights * wide).sum(axes, keepdim=True) / torch.where(count > 0, count, 1)
        y = torch.where(count > 0, wide - center, 0)
    return _affine(y, None, _by_channel(bias, x, channel_axis)).to(x.dtype)


def batch_instance_norm(
    x: Tensor, rho: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool,
    momentum: float, eps: float, unbiased: bool, channel_axis: int,
) -> Tensor:  # fmt: skip
    wide, gate = _wide(x), _by_channel(rho, x, channel_axis)
    whole = batch_norm(
        wide, None, None, mean, var, training, momentum, eps, unbiased, channel_axis, None
    )
    own = _standardized(wide, _channels(x, channel_axis, False), eps)
    parts = _by_channel(weight, x, channel_axis), _by_channel(bias, x, channel_axis)
    return _affine(gate * whole + (1 - gate) * own, *parts).to(x.dtype)


def switchable_norm(
    x: Tensor, mean_logits: Tensor, var_logits: Tensor, weight: Any, bias: Any, running_mean: Any,
    running_var: Any, training: bool, momentum: float, eps: float, channel_axis: int,
) -> Tensor:  # fmt: skip
    wide = _wide(x)

    def moments(axes: Sequence[int]) -> tuple[Tensor, Tensor]:
        mean = wide.mean(axes, keepdim=True)
        return mean, (wide - mean).square().mean(axes, keepdim=True)

    instance = moments(_channels(x, channel_axis, False))
    layer = moments(tuple(range(1, x.dim())))
    if training or running_mean is None:
        batch = moments(_channels(x, channel_axis, True))
    else:
        batch = (
            _by_channel(running_mean, x, channel_axis),
            _by_channel(running_var, x, channel_axis),
        )
    shares = _wide(mean_logits).softmax(0), _wide(var_logits).softmax(0)
    mean, var = (
        sum(share[k] * pool[i] for k, pool in enumerate((instance, layer, batch)))
        for i, share in enumerate(shares)
    )
    parts = _by_channel(weight, x, channel_axis), _by_channel(bias, x, channel_axis)
    return _affine((wide - mean) * torch.rsqrt(var + eps), *parts).to(x.dtype)


FORMULAS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f
    for f in (
        layer_norm, rms_norm, batch_norm, instance_norm, group_norm, weight_norm, normalize,
        mean_only_batch_norm, batch_instance_norm, switchable_norm,
    )
}  # fmt: skip
