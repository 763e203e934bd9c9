"""The methods as functions of torch tensors, with gradients.

Names, arguments, formulas and errors are those of the functions of :mod:`normcore`; what is said
there of arrays holds for tensors. Results have torch's own memory, contiguous or, of methods with
channels, channels-last where x is. Gradients come by torch's autograd. Running buffers are updated
in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor

import normcore as nc

from .._arguments import choice
from .._interop import tensor_weights
from . import _autograd
from ._autograd import OPERATORS, SUMS

__all__ = [
    "batch_instance_norm",
    "batch_norm",
    "batch_renorm",
    "divisive_norm",
    "gdn",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "local_divisive_norm",
    "local_response_norm",
    "lp_batch_norm",
    "mean_only_batch_norm",
    "moments",
    "norm",
    "normalize",
    "power_method",
    "rms_norm",
    "spectral_norm",
    "switchable_norm",
    "topk_batch_norm",
    "weight_norm",
]

Axis = int | Sequence[int] | None

_batch_norm = OPERATORS["batch_norm"]
_layer_norm = OPERATORS["layer_norm"]


def _axes(axis: Axis, x: Tensor) -> Sequence[int]:
    if axis is None:
        return list(range(x.dim()))
    return [index(axis)] if hasattr(axis, "__index__") else axis


def position_weights(mask: Tensor | None, x: Tensor, channel_axis: int) -> Any:
    """A mask as the operators take it: of x's shape without the channel axis."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        mask = torch.as_tensor(mask, device=x.device)
    return tensor_weights(mask, x.shape, x.dtype == torch.float64, channel_axis)


def _tensor(value: Tensor | float | None, x: Tensor) -> Tensor | None:
    """A parameter that may be a number."""
    if value is None or isinstance(value, Tensor):
        return value
    return torch.tensor(
        value, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device
    )


# ---- rows


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Any:
    """Layer normalization: :func:`normcore.layer_norm` with gradients.

    Returns y, or with a residual ``(y, x + residual)``.
    """
    axes = _axes(axis, x)
    if residual is None:
        return _layer_norm(x, weight, bias, axes, eps)
    return SUMS["layer_norm"](x, weight, bias, axes, eps, residual)


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    residual: Tensor | None = None,
) -> Any:
    """RMS normalization: :func:`normcore.rms_norm` with gradients.

    Returns y, or with a residual ``(y, x + residual)``.
    """
    axes = _axes(axis, x)
    if residual is None:
        return OPERATORS["rms_norm"](x, weight, axes, eps, weight_offset)
    return SUMS["rms_norm"](x, weight, axes, eps, weight_offset, residual)


def normalize(x: Tensor, *, ord: float = 2, axis: Axis = -1, eps: float = 1e-12) -> Tensor:
    """x over its norm along the axes: :func:`normcore.normalize` with gradients."""
    return OPERATORS["normalize"](x, float(ord), _axes(axis, x), eps)


# ---- channels


def batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased_running_var: bool = True,
    channel_axis: int = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Batch normalization: :func:`normcore.batch_norm` with gradients."""
    weights = position_weights(mask, x, channel_axis)
    return _batch_norm(
        x, weight, bias, running_mean, running_var, training, momentum, eps, unbiased_running_var,
        channel_axis, weights,
    )  # fmt: skip


def instance_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased_running_var: bool = True,
    channel_axis: int = 1,
) -> Tensor:
    """Instance normalization: :func:`normcore.instance_norm` with gradients."""
    return OPERATORS["instance_norm"](
        x, weight, bias, running_mean, running_var, use_input_stats, momentum, eps,
        unbiased_running_var, channel_axis,
    )  # fmt: skip


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
) -> Tensor:
    """Group normalization: :func:`normcore.group_norm` with gradients."""
    return OPERATORS["group_norm"](x, num_groups, weight, bias, eps, channel_axis)


def batch_renorm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    running_mean: Tensor,
    running_std: Tensor,
    training: bool = False,
    momentum: float = 0.01,
    r_max: float = 3.0,
    d_max: float = 5.0,
    eps: float = 1e-5,
    channel_axis: int = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Batch renormalization: :func:`normcore.batch_renorm` with gradients."""
    weights = position_weights(mask, x, channel_axis)
    return OPERATORS["batch_renorm"](
        x, weight, bias, running_mean, running_std, training, momentum, r_max, d_max, eps,
        channel_axis, weights,
    )  # fmt: skip


def batch_instance_norm(
    x: Tensor,
    rho: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased_running_var: bool = True,
    channel_axis: int = 1,
) -> Tensor:
    """Batch-instance normalization: :func:`normcore.batch_instance_norm` with gradients."""
    return OPERATORS["batch_instance_norm"](
        x, rho, weight, bias, running_mean, running_var, training, momentum, eps,
        unbiased_running_var, channel_axis,
    )  # fmt: skip


def switchable_norm(
    x: Tensor,
    mean_logits: Tensor,
    var_logits: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    channel_axis: int = 1,
) -> Tensor:
    """Switchable normalization: :func:`normcore.switchable_norm` with gradients."""
    return OPERATORS["switchable_norm"](
        x, mean_logits, var_logits, weight, bias, running_mean, running_var, training, momentum,
        eps, channel_axis,
    )  # fmt: skip


def mean_only_batch_norm(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    running_mean: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    channel_axis: int = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean-only batch normalization: :func:`normcore.mean_only_batch_norm` with gradients."""
    weights = position_weights(mask, x, channel_axis)
    return OPERATORS["mean_only_batch_norm"](
        x, bias, running_mean, training, momentum, channel_axis, weights
    )


def lp_batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    p: float = 1.0,
    running_mean: Tensor | None = None,
    running_scale: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    channel_axis: int = 1,
) -> Tensor:
    """Lp batch normalization: :func:`normcore.lp_batch_norm` with gradients."""
    return OPERATORS["lp_batch_norm"](
        x, weight, bias, float(p), running_mean, running_scale, training, momentum, eps,
        channel_axis,
    )  # fmt: skip


def topk_batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    k: int = 10,
    running_mean: Tensor | None = None,
    running_scale: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    channel_axis: int = 1,
) -> Tensor:
    """Top-k batch normalization: :func:`normcore.topk_batch_norm` with gradients."""
    return OPERATORS["topk_batch_norm"](
        x, weight, bias, k, running_mean, running_scale, training, momentum, eps, channel_axis
    )


# ---- matrices


def weight_norm(v: Tensor, g: Tensor | float, *, axis: int | None = 0, eps: float = 0.0) -> Tensor:
    """Weight normalization: :func:`normcore.weight_norm` with gradients."""
    return OPERATORS["weight_norm"](v, _tensor(g, v), axis, eps)


class SpectralNormResult(NamedTuple):
    """What :func:`spectral_norm` returns; only ``weight`` has a gradient."""

    weight: Tensor
    sigma: Tensor
    u: Tensor
    v: Tensor
    axis: int


def spectral_norm(
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None = None,
    *,
    n_power_iterations: int = 1,
    axis: int = 0,
    eps: float = 1e-12,
    bound: float | None = None,
) -> SpectralNormResult:
    """Spectral normalization: :func:`normcore.spectral_norm` with gradients.

    ``sigma`` is a tensor without axes. u and v are constants of the gradient.
    """
    w, sigma, u, v = _autograd.spectral_norm(
        weight, u, v, n_power_iterations, axis, eps, bound, False
    )
    return SpectralNormResult(w, sigma, u, v, axis)


def _without_gradient(x: Tensor, name: str) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} has no gradient, and its argument requires one: detach it")
    return x


def power_method(
    a: Tensor,
    *,
    u: Tensor | None = None,
    n_iterations: int | None = None,
    tol: float = 1e-6,
    max_iterations: int = 1000,
) -> Any:
    """The largest singular value of a matrix: :func:`normcore.power_method`. No gradient."""
    return nc.power_method(
        _without_gradient(a, "power_method"), u=u, n_iterations=n_iterations, tol=tol,
        max_iterations=max_iterations,
    )  # fmt: skip


# ---- neighbourhoods


def divisive_norm(
    x: Tensor,
    weights: Tensor,
    sigma: Tensor | float,
    *,
    gain: Tensor | float | None = None,
    exponent: float = 2.0,
    power: float = 1.0,
    channel_axis: int = 1,
) -> Tensor:
    """Divisive normalization: :func:`normcore.divisive_norm` with gradients."""
    return OPERATORS["divisive_norm"](
        x, weights, _tensor(sigma, x), _tensor(gain, x), exponent, power, channel_axis
    )


def _window(window: int | Sequence[int]) -> Sequence[int]:
    return [index(window)] if hasattr(window, "__index__") else window


def local_divisive_norm(
    x: Tensor,
    sigma: Tensor | float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    summation_window: int | Sequence[int],
    suppression_window: int | Sequence[int],
    channel_axis: int = 1,
) -> Tensor:
    """Local divisive normalization: :func:`normcore.local_divisive_norm` with gradients."""
    windows = _window(summation_window), _window(suppression_window)
    return OPERATORS["local_divisive_norm"](
        x, _tensor(sigma, x), weight, bias, *windows, channel_axis
    )


def local_response_norm(
    x: Tensor,
    size: int,
    *,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    across: str = "channels",
    even_window: str = "torch",
    channel_axis: int = 1,
) -> Tensor:
    """Local response normalization: :func:`normcore.local_response_norm` with gradients."""
    space = choice("across", across, ("channels", "space")) == "space"
    onnx = choice("even_window", even_window, ("torch", "onnx")) == "onnx"
    return OPERATORS["local_response_norm"](x, size, alpha, beta, k, space, onnx, channel_axis)


def gdn(
    x: Tensor,
    beta: Tensor,
    gamma: Tensor,
    *,
    inverse: bool = False,
    alpha: float | Tensor = 2.0,
    epsilon: float | Tensor = 0.5,
    channel_axis: int = 1,
) -> Tensor:
    """Generalized divisive normalization: :func:`normcore.gdn` with gradients.

    ``alpha`` and ``epsilon`` may be tensors of one value, and learn; their values are then read.
    """
    exponents = None
    if isinstance(alpha, Tensor) or isinstance(epsilon, Tensor):
        parts = [
            (a if isinstance(a, Tensor) else torch.tensor(a)).to(x.device, torch.float64).view(())
            for a in (alpha, epsilon)
        ]
        exponents = torch.stack(parts)
        alpha, epsilon = exponents.tolist()
    return OPERATORS["gdn"](x, beta, gamma, exponents, inverse, alpha, epsilon, channel_axis)


# ---- reductions


def moments(x: Tensor, *, axis: Axis = None, mask: Any = None, keepdims: bool = False) -> Any:
    """Counts, means and sums of squares: :func:`normcore.moments`. No gradient."""
    return nc.moments(_without_gradient(x, "moments"), axis=axis, mask=mask, keepdims=keepdims)


def norm(x: Tensor, *, ord: float = 2, axis: Axis = None, keepdims: bool = False) -> Any:
    """The norm over the axes: :func:`normcore.norm`. No gradient."""
    return nc.norm(_without_gradient(x, "norm"), ord=ord, axis=axis, keepdims=keepdims)
