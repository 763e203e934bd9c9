"""Relatives of batch normalization that mix or correct its statistics, forward and backward.

The rules of :mod:`normcore.functional` hold here too.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, overload

from . import _core
from ._interop import Array
from ._typing import A, Floats, NamedTuple, SupportsDLPack
from .functional import saved

__all__ = [
    "BatchInstanceNormGradients",
    "BatchInstanceNormStats",
    "BatchRenormGradients",
    "BatchRenormStats",
    "MeanOnlyBatchNormGradients",
    "MeanOnlyBatchNormStats",
    "SwitchableNormGradients",
    "SwitchableNormStats",
    "batch_instance_norm",
    "batch_instance_norm_backward",
    "batch_renorm",
    "batch_renorm_backward",
    "mean_only_batch_norm",
    "mean_only_batch_norm_backward",
    "switchable_norm",
    "switchable_norm_backward",
]


class BatchRenormStats(NamedTuple, Generic[A]):
    """Statistics of :func:`batch_renorm`, shape ``(C,)``."""

    mean: A
    rstd: A
    #: Mean and variance in float64, for the backward function.
    pooled: Array
    #: The running mean and squared standard deviation that corrected them; None in evaluation.
    given: Array | None


class BatchInstanceNormStats(NamedTuple, Generic[A]):
    """Statistics of :func:`batch_instance_norm`, for the backward function, in float64."""

    #: Mean and variance of every sample and channel, shape ``(N, C, 2)``.
    pooled: Array
    #: The running mean and variance where they were used, shape ``(C, 2)``, else None.
    given: Array | None


class SwitchableNormStats(NamedTuple, Generic[A]):
    """Statistics of :func:`switchable_norm`, for the backward function, in float64."""

    #: Mean and variance of every sample and channel, shape ``(N, C, 2)``.
    pooled: Array
    #: The running mean and variance where they were used, shape ``(C, 2)``, else None.
    given: Array | None


class MeanOnlyBatchNormStats(NamedTuple, Generic[A]):
    """Statistics of :func:`mean_only_batch_norm`, shape ``(C,)``."""

    mean: A
    #: Mean and variance in float64, for the backward function.
    pooled: Array


class BatchRenormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`batch_renorm`; None where the parameter was None."""

    dx: A
    dweight: A | None
    dbias: A | None


class BatchInstanceNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`batch_instance_norm`; None where the parameter was None."""

    dx: A
    drho: A
    dweight: A | None
    dbias: A | None


class SwitchableNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`switchable_norm`; None where the parameter was None."""

    dx: A
    dmean_logits: A
    dvar_logits: A
    dweight: A | None
    dbias: A | None


class MeanOnlyBatchNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`mean_only_batch_norm`; None where the parameter was None."""

    dx: A
    dbias: A | None


@overload
def batch_renorm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack,
    running_std: SupportsDLPack,
    training: bool = ...,
    momentum: float = ...,
    r_max: float = ...,
    d_max: float = ...,
    eps: float = ...,
    channel_axis: int = ...,
    mask: Floats | None = ...,
    out: A | None = ...,
    return_stats: Literal[False] = ...,
) -> A: ...
@overload
def batch_renorm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack,
    running_std: SupportsDLPack,
    training: bool = ...,
    momentum: float = ...,
    r_max: float = ...,
    d_max: float = ...,
    eps: float = ...,
    channel_axis: int = ...,
    mask: Floats | None = ...,
    out: A | None = ...,
    return_stats: Literal[True],
) -> tuple[A, BatchRenormStats[A]]: ...
@overload
def batch_renorm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack,
    running_std: SupportsDLPack,
    training: bool = ...,
    momentum: float = ...,
    r_max: float = ...,
    d_max: float = ...,
    eps: float = ...,
    channel_axis: int = ...,
    mask: Floats | None = ...,
    out: A | None = ...,
    return_stats: bool,
) -> A | tuple[A, BatchRenormStats[A]]: ...
def batch_renorm(
    x: A,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    running_mean: SupportsDLPack,
    running_std: SupportsDLPack,
    training: bool = False,
    momentum: float = 0.01,
    r_max: float = 3.0,
    d_max: float = 5.0,
    eps: float = 1e-5,
    channel_axis: int = 1,
    mask: Floats | None = None,
    out: A | None = None,
    return_stats: bool = False,
) -> Any:
    """Normalize by batch statistics that are corrected towards the running ones.

    When training, with the buffers as they are before the call:
    ``s = sqrt(var + eps)``, ``r = clip(s / running_std, 1 / r_max, r_max)``,
    ``d = clip((mean - running_mean) / running_std, -d_max, d_max)`` and
    ``y = weight * ((x - mean) / s * r + d) + bias``. Gradients take ``r`` and ``d`` as constants.
    Otherwise ``y = weight * (x - running_mean) / running_std + bias``.

    Parameters
    ----------
    x : array of shape (N, C, ...) or, with ``channel_axis=-1``, (N, ..., C)
    weight, bias : array of shape (C,), optional
        1 and 0 when omitted.
    running_mean, running_std : array of shape (C,)
        When training they move in place by ``momentum`` towards ``mean`` and ``s``.
    training : bool
        Whether to use the statistics of ``x`` and update the buffers.
    momentum : float
        Weight of the new value, from 0 to 1.
    r_max, d_max : float
        Bounds of the corrections; at least 1 and 0, at which this is batch norm.
    eps : float
        Added to the variance; positive when training, else not used.
    channel_axis : int
        1 for NCHW, -1 for channels-last; not 0.
    mask : array, optional
        How much each position counts in the statistics of ``x``, as in :func:`batch_norm`.
    out : array like x, optional
        Where ``y`` is written.
    return_stats : bool
        Whether to return :class:`BatchRenormStats` too.

    Returns
    -------
    y, or (y, stats)

    Raises
    ------
    TypeError
        For a dtype that is no float.
    ValueError
        For one value per channel when training, shapes that do not fit, a read-only buffer when
        training, bounds or eps out of range, a mask with negative or infinite
        weights, or an ``out`` that does not fit.

    References
    ----------
    Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized
    Models", 2017.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0], [3.0]])
    >>> mean, std = np.zeros(1), np.ones(1)
    >>> nc.batch_renorm(x, running_mean=mean, running_std=std, training=True, eps=1e-9).round(3)
    array([[1.],
           [3.]])
    """
    result = _core.batch_renorm(
        x,
        weight,
        bias,
        running_mean,
        running_std,
        training,
        momentum,
        r_max,
        d_max,
        eps,
        channel_axis,
        mask,
        out,
        return_stats,
    )
    if return_stats:
        return result[0], BatchRenormStats(*result[1])
    return result


def batch_renorm_backward(
    dy: A,
    x: A,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    running_mean: SupportsDLPack,
    running_std: SupportsDLPack,
    training: bool = False,
    momentum: float = 0.01,
    r_max: float = 3.0,
    d_max: float = 5.0,
    eps: float = 1e-5,
    channel_axis: int = 1,
    mask: Floats | None = None,
    stats: BatchRenormStats[A] | None = None,
    out: A | None = None,
) -> BatchRenormGradients[A]:
    """Gradients of :func:`batch_renorm`.

    When training, with ``xhat = (x - mean) / s`` and ``g = weight * dy``:
    ``dx = r / s * (g - mean(g) - xhat * mean(g * xhat))``,
    ``dweight = sum(dy * (xhat * r + d))``, ``dbias = sum(dy)``. With a mask as in
    :func:`batch_norm_backward`.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x, weight, bias, running_mean, running_std, training, momentum, r_max, d_max, eps,
    channel_axis, mask
        As in the forward call; the buffers and ``momentum`` are not used where ``stats`` is given.
    stats : BatchRenormStats, optional
        What the forward call returned; needed when training, which has moved the buffers.
    out : array like x, optional
        Where ``dx`` is written.

    Returns
    -------
    BatchRenormGradients
        ``dx`` like x, ``dweight`` and ``dbias`` like the parameters.

    Raises
    ------
    TypeError, ValueError
        As :func:`batch_renorm`; also without ``stats`` when training, or where ``dy`` does not have
        x's shape and dtype.
    """
    pooled, given = saved(stats, BatchRenormStats)
    return BatchRenormGradients(
        *_core.batch_renorm_backward(
            dy,
            x,
            weight,
            bias,
            running_mean,
            running_std,
            training,
            r_max,
            d_max,
            eps,
            channel_axis,
            mask,
            pooled,
            given,
            out,
        )
    )


@overload
def batch_instance_norm(
    x: A,
    rho: Floats,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack | None = ...,
    running_var: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    unbiased_running_var: bool = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: Literal[False] = ...,
) -> A: ...
@overload
def batch_instance_norm(
    x: A,
    rho: Floats,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack | None = ...,
    running_var: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    unbiased_running_var: bool = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: Literal[True],
) -> tuple[A, BatchInstanceNormStats[A]]: ...
@overload
def batch_instance_norm(
    x: A,
    rho: Floats,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack | None = ...,
    running_var: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    unbiased_running_var: bool = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: bool,
) -> A | tuple[A, BatchInstanceNormStats[A]]: ...
def batch_instance_norm(
    x: A,
    rho: Floats,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    running_mean: SupportsDLPack | None = None,
    running_var: SupportsDLPack | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased_running_var: bool = True,
    channel_axis: int = 1,
    out: A | None = None,
    return_stats: bool = False,
) -> Any:
    """Mix batch and instance normalization, channel by channel.

    ``y = weight * (rho * xhat_batch + (1 - rho) * xhat_instance) + bias``, each ``xhat`` being
    ``(x - mean) / sqrt(var + eps)``. Batch statistics come from ``x`` when training or without
    running buffers, else from the buffers; instance statistics always from ``x``.

    Parameters
    ----------
    x : array of shape (N, C, ...) or, with ``channel_axis=-1``, (N, ..., C)
    rho : array of shape (C,)
        The share of batch norm, used as given; 0 to 1 in the paper.
    weight, bias : array of shape (C,), optional
        1 and 0 when omitted.
    running_mean, running_var : array of shape (C,), optional
        Both or neither. When training they move in place by ``momentum`` towards the mean and the
        variance of the batch.
    training : bool
        Whether to use the statistics of ``x`` and update the buffers.
    momentum : float
        Weight of the new value, from 0 to 1.
    eps : float
        Added to the variances; at least 0.
    unbiased_running_var : bool
        Whether ``running_var`` takes in the variance with divisor n - 1 or n.
    channel_axis : int
        1 for NCHW, -1 for channels-last; not 0.
    out : array like x, optional
        Where ``y`` is written.
    return_stats : bool
        Whether to return :class:`BatchInstanceNormStats` too.

    Returns
    -------
    y, or (y, stats)

    Raises
    ------
    TypeError
        For a dtype that is no float, or a missing rho.
    ValueError
        For one value per channel when training, shapes that do not fit, one buffer without the
        other, a read-only buffer when training, an eps out of range, or an ``out`` that does not
        fit.

    References
    ----------
    Nam and Kim, "Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks",
    2018.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[[1.0, 3.0]], [[5.0, 7.0]]])
    >>> nc.batch_instance_norm(x, np.array([0.0])).round(3).ravel()
    array([-1.,  1., -1.,  1.])
    >>> nc.batch_instance_norm(x, np.array([1.0])).round(3).ravel()
    array([-1.342, -0.447,  0.447,  1.342])
    """
    result = _core.batch_instance_norm(
        x,
        rho,
        weight,
        bias,
        running_mean,
        running_var,
        training,
        momentum,
        eps,
        unbiased_running_var,
        channel_axis,
        out,
        return_stats,
    )
    if return_stats:
        return result[0], BatchInstanceNormStats(*result[1][2:])
    return result


def batch_instance_norm_backward(
    dy: A,
    x: A,
    rho: Floats,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    running_mean: SupportsDLPack | None = None,
    running_var: SupportsDLPack | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased_running_var: bool = True,
    channel_axis: int = 1,
    stats: BatchInstanceNormStats[A] | None = None,
    out: A | None = None,
) -> BatchInstanceNormGradients[A]:
    """Gradients of :func:`batch_instance_norm`.

    ``dx`` is the sum of the two norms' gradients for ``rho * weight * dy`` and
    ``(1 - rho) * weight * dy``; ``drho = sum(weight * dy * (xhat_batch - xhat_instance))``.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x, rho, weight, bias, running_mean, running_var, training, momentum, eps, unbiased_running_var,
    channel_axis
        As in the forward call; ``momentum`` and ``unbiased_running_var`` are not used.
    stats : BatchInstanceNormStats, optional
        What the forward call returned; computed again when omitted.
    out : array like x, optional
        Where ``dx`` is written.

    Returns
    -------
    BatchInstanceNormGradients
        ``dx`` like x, the others like their parameters.

    Raises
    ------
    TypeError, ValueError
        As :func:`batch_instance_norm`; also where ``dy`` does not have x's shape and dtype.
    """
    pooled, given = saved(stats, BatchInstanceNormStats)
    return BatchInstanceNormGradients(
        *_core.batch_instance_norm_backward(
            dy,
            x,
            rho,
            weight,
            bias,
            running_mean,
            running_var,
            training,
            eps,
            channel_axis,
            pooled,
            given,
            out,
        )
    )


@overload
def switchable_norm(
    x: A,
    mean_logits: Floats,
    var_logits: Floats,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack | None = ...,
    running_var: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: Literal[False] = ...,
) -> A: ...
@overload
def switchable_norm(
    x: A,
    mean_logits: Floats,
    var_logits: Floats,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack | None = ...,
    running_var: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: Literal[True],
) -> tuple[A, SwitchableNormStats[A]]: ...
@overload
def switchable_norm(
    x: A,
    mean_logits: Floats,
    var_logits: Floats,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack | None = ...,
    running_var: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: bool,
) -> A | tuple[A, SwitchableNormStats[A]]: ...
def switchable_norm(
    x: A,
    mean_logits: Floats,
    var_logits: Floats,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    running_mean: SupportsDLPack | None = None,
    running_var: SupportsDLPack | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    channel_axis: int = 1,
    out: A | None = None,
    return_stats: bool = False,
) -> Any:
    """Normalize by learned mixtures of instance, layer and batch statistics.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias`` with ``mean = sum_k w_k * mean_k`` and
    ``var = sum_k v_k * var_k``, ``w = softmax(mean_logits)``, ``v = softmax(var_logits)`` and ``k``
    running over instance, layer and batch. All variances are biased. Batch statistics come from
    ``x`` when training or without running buffers, else from the buffers.

    Parameters
    ----------
    x : array of shape (N, C, ...) or, with ``channel_axis=-1``, (N, ..., C)
    mean_logits, var_logits : array of shape (3,)
        In the order instance, layer, batch.
    weight, bias : array of shape (C,), optional
        1 and 0 when omitted.
    running_mean, running_var : array of shape (C,), optional
        Both or neither. When training they move in place by ``momentum`` towards the mean and the
        biased variance of the batch.
    training : bool
        Whether to use the statistics of ``x`` and update the buffers.
    momentum : float
        Weight of the new value, from 0 to 1.
    eps : float
        Added to the variance; at least 0.
    channel_axis : int
        1 for NCHW, -1 for channels-last; not 0.
    out : array like x, optional
        Where ``y`` is written.
    return_stats : bool
        Whether to return :class:`SwitchableNormStats` too.

    Returns
    -------
    y, or (y, stats)

    Raises
    ------
    TypeError
        For a dtype that is no float, or missing logits.
    ValueError
        For one value per channel when training, shapes that do not fit, one buffer without the
        other, a read-only buffer when training, an eps out of range, or an ``out`` that does not
        fit.

    References
    ----------
    Luo, Ren, Peng, Zhang and Li, "Differentiable Learning-to-Normalize via Switchable
    Normalization", 2019.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[[1.0, 3.0]], [[5.0, 7.0]]])
    >>> instance_alone = np.array([50.0, 0.0, 0.0])
    >>> nc.switchable_norm(x, instance_alone, instance_alone).round(3).ravel()
    array([-1.,  1., -1.,  1.])
    """
    result = _core.switchable_norm(
        x,
        mean_logits,
        var_logits,
        weight,
        bias,
        running_mean,
        running_var,
        training,
        momentum,
        eps,
        channel_axis,
        out,
        return_stats,
    )
    if return_stats:
        return result[0], SwitchableNormStats(*result[1][2:])
    return result


def switchable_norm_backward(
    dy: A,
    x: A,
    mean_logits: Floats,
    var_logits: Floats,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    running_mean: SupportsDLPack | None = None,
    running_var: SupportsDLPack | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    channel_axis: int = 1,
    stats: SwitchableNormStats[A] | None = None,
    out: A | None = None,
) -> SwitchableNormGradients[A]:
    """Gradients of :func:`switchable_norm`, those of both vectors of logits among them.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x, mean_logits, var_logits, weight, bias, running_mean, running_var, training, momentum, eps, \
channel_axis
        As in the forward call; ``momentum`` is not used.
    stats : SwitchableNormStats, optional
        What the forward call returned; computed again when omitted.
    out : array like x, optional
        Where ``dx`` is written.

    Returns
    -------
    SwitchableNormGradients
        ``dx`` like x, the others like their parameters.

    Raises
    ------
    TypeError, ValueError
        As :func:`switchable_norm`; also where ``dy`` does not have x's shape and dtype.
    """
    pooled, given = saved(stats, SwitchableNormStats)
    return SwitchableNormGradients(
        *_core.switchable_norm_backward(
            dy,
            x,
            mean_logits,
            var_logits,
            weight,
            bias,
            running_mean,
            running_var,
            training,
            eps,
            channel_axis,
            pooled,
            given,
            out,
        )
    )


@overload
def mean_only_batch_norm(
    x: A,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    channel_axis: int = ...,
    mask: Floats | None = ...,
    out: A | None = ...,
    return_stats: Literal[False] = ...,
) -> A: ...
@overload
def mean_only_batch_norm(
    x: A,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    channel_axis: int = ...,
    mask: Floats | None = ...,
    out: A | None = ...,
    return_stats: Literal[True],
) -> tuple[A, MeanOnlyBatchNormStats[A]]: ...
@overload
def mean_only_batch_norm(
    x: A,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    channel_axis: int = ...,
    mask: Floats | None = ...,
    out: A | None = ...,
    return_stats: bool,
) -> A | tuple[A, MeanOnlyBatchNormStats[A]]: ...
def mean_only_batch_norm(
    x: A,
    bias: Floats | None = None,
    *,
    running_mean: SupportsDLPack | None = None,
    training: bool = False,
    momentum: float = 0.1,
    channel_axis: int = 1,
    mask: Floats | None = None,
    out: A | None = None,
    return_stats: bool = False,
) -> Any:
    """Subtract every channel's mean over the batch and all positions.

    ``y = x - mean + bias``; the companion of :func:`weight_norm`. The mean comes from ``x`` when
    training or without a running mean, else it is the running mean.

    Parameters
    ----------
    x : array of shape (N, C, ...) or, with ``channel_axis=-1``, (N, ..., C)
    bias : array of shape (C,), optional
        0 when omitted.
    running_mean : array of shape (C,), optional
        When training it moves in place: ``(1 - momentum) * running + momentum * new``.
    training : bool
        Whether to use the mean of ``x`` and update the buffer.
    momentum : float
        Weight of the new value, from 0 to 1.
    channel_axis : int
        1 for NCHW, -1 for channels-last; not 0.
    mask : array, optional
        How much each position counts in the statistics of ``x``, as in :func:`batch_norm`.
    out : array like x, optional
        Where ``y`` is written.
    return_stats : bool
        Whether to return :class:`MeanOnlyBatchNormStats` too.

    Returns
    -------
    y, or (y, stats)

    Raises
    ------
    TypeError
        For a dtype that is no float.
    ValueError
        For one value per channel when training, shapes that do not fit, a read-only buffer when
        training, a mask with negative or infinite weights, or an ``out`` that does not fit.

    References
    ----------
    Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training
    of Deep Neural Networks", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.mean_only_batch_norm(np.array([[1.0, 10.0], [3.0, 30.0]]), np.array([0.0, 5.0]))
    array([[-1., -5.],
           [ 1., 15.]])
    """
    result = _core.mean_only_batch_norm(
        x, bias, running_mean, training, momentum, channel_axis, mask, out, return_stats
    )
    if return_stats:
        mean, _, pooled, _ = result[1]
        return result[0], MeanOnlyBatchNormStats(mean, pooled)
    return result


def mean_only_batch_norm_backward(
    dy: A,
    x: A,
    bias: Floats | None = None,
    *,
    running_mean: SupportsDLPack | None = None,
    training: bool = False,
    momentum: float = 0.1,
    channel_axis: int = 1,
    mask: Floats | None = None,
    stats: MeanOnlyBatchNormStats[A] | None = None,
    out: A | None = None,
) -> MeanOnlyBatchNormGradients[A]:
    """Gradients of :func:`mean_only_batch_norm`.

    ``dx = dy - mean(dy)``, or ``dx = dy`` where the running mean was used; ``dbias = sum(dy)``.
    With a mask ``dx = dy - mask * sum(dy) / sum(mask)``.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x, bias, running_mean, training, momentum, channel_axis, mask
        As in the forward call; ``momentum`` is not used.
    stats : MeanOnlyBatchNormStats, optional
        What the forward call returned; computed again when omitted.
    out : array like x, optional
        Where ``dx`` is written.

    Returns
    -------
    MeanOnlyBatchNormGradients
        ``dx`` like x, ``dbias`` like the bias.

    Raises
    ------
    TypeError, ValueError
        As :func:`mean_only_batch_norm`; also where ``dy`` does not have x's shape and dtype.
    """
    pooled, _ = saved(stats, MeanOnlyBatchNormStats)
    return MeanOnlyBatchNormGradients(
        *_core.mean_only_batch_norm_backward(
            dy, x, bias, running_mean, training, channel_axis, mask, pooled, out
        )
    )
