"""Batch normalization by other scales than the standard deviation, forward and backward.

The rules of :mod:`normcore.functional` hold here too.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, overload

from . import _core
from ._interop import Array
from ._typing import A, Floats, NamedTuple, SupportsDLPack
from .functional import saved

__all__ = [
    "LpBatchNormGradients",
    "LpBatchNormStats",
    "TopKBatchNormGradients",
    "TopKBatchNormStats",
    "lp_batch_norm",
    "lp_batch_norm_backward",
    "topk_batch_norm",
    "topk_batch_norm_backward",
]


class LpBatchNormStats(NamedTuple, Generic[A]):
    """Statistics of :func:`lp_batch_norm`, shape ``(C,)``; ``rstd`` is ``1 / s``."""

    mean: A
    rstd: A
    #: Mean and spread in float64, for the backward function.
    pooled: Array


class TopKBatchNormStats(NamedTuple, Generic[A]):
    """Statistics of :func:`topk_batch_norm`, shape ``(C,)``; ``rstd`` is ``1 / s``."""

    mean: A
    rstd: A
    #: Mean and spread in float64, for the backward function.
    pooled: Array


class LpBatchNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`lp_batch_norm`; None where the parameter was None."""

    dx: A
    dweight: A | None
    dbias: A | None


class TopKBatchNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`topk_batch_norm`; None where the parameter was None."""

    dx: A
    dweight: A | None
    dbias: A | None


@overload
def lp_batch_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    p: float = ...,
    running_mean: SupportsDLPack | None = ...,
    running_scale: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: Literal[False] = ...,
) -> A: ...
@overload
def lp_batch_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    p: float = ...,
    running_mean: SupportsDLPack | None = ...,
    running_scale: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: Literal[True],
) -> tuple[A, LpBatchNormStats[A]]: ...
@overload
def lp_batch_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    p: float = ...,
    running_mean: SupportsDLPack | None = ...,
    running_scale: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: bool,
) -> A | tuple[A, LpBatchNormStats[A]]: ...
def lp_batch_norm(
    x: A,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    p: float = 1.0,
    running_mean: SupportsDLPack | None = None,
    running_scale: SupportsDLPack | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    channel_axis: int = 1,
    out: A | None = None,
    return_stats: bool = False,
) -> Any:
    """Normalize every channel by its mean and the mean p-th power of its deviations.

    ``y = weight * (x - mean) / s + bias`` over the batch and all positions, with
    ``s = sqrt(pi / 2) * mean(abs(x - mean)) + eps`` for ``p = 1``, which is the standard deviation
    of normal data, ``s = max(abs(x - mean)) + eps`` for ``p = inf``, and
    ``s = (mean(abs(x - mean)**p) + eps)**(1 / p)`` otherwise. Statistics come from ``x`` when
    training or without running buffers, else from the buffers.

    Parameters
    ----------
    x : array of shape (N, C, ...) or, with ``channel_axis=-1``, (N, ..., C)
    weight, bias : array of shape (C,), optional
        1 and 0 when omitted.
    p : float
        The order, at least 1; also ``inf``.
    running_mean, running_scale : array of shape (C,), optional
        Both or neither. When training they move in place by ``momentum`` towards the mean and
        ``s`` itself.
    training : bool
        Whether to use the statistics of ``x`` and update the buffers.
    momentum : float
        Weight of the new value.
    eps : float
        Keeps ``s`` from 0; positive when training, else at least 0.
    channel_axis : int
        1 for NCHW, -1 for channels-last; not 0.
    out : array like x, optional
        Where ``y`` is written.
    return_stats : bool
        Whether to return :class:`LpBatchNormStats` too.

    Returns
    -------
    y, or (y, stats)

    Raises
    ------
    TypeError
        For a dtype that is no float.
    ValueError
        For a p below 1, one value per channel when training, shapes that do not fit, one buffer
        without the other, a read-only buffer when training, an eps out of range, or an ``out`` that
        does not fit.

    References
    ----------
    Hoffer, Banner, Golan and Soudry, "Norm matters: efficient and accurate normalization schemes in
    deep networks", 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[0.0], [0.0], [3.0]])
    >>> nc.lp_batch_norm(x, p=np.inf, eps=0.0).ravel()
    array([-0.5, -0.5,  1. ])
    """
    result = _core.lp_batch_norm(
        x,
        weight,
        bias,
        p,
        running_mean,
        running_scale,
        training,
        momentum,
        eps,
        channel_axis,
        out,
        return_stats,
    )
    if return_stats:
        return result[0], LpBatchNormStats(*result[1][:3])
    return result


def lp_batch_norm_backward(
    dy: A,
    x: A,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    p: float = 1.0,
    running_mean: SupportsDLPack | None = None,
    running_scale: SupportsDLPack | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    channel_axis: int = 1,
    stats: LpBatchNormStats[A] | None = None,
    out: A | None = None,
) -> LpBatchNormGradients[A]:
    """Gradients of :func:`lp_batch_norm`.

    With ``xhat = (x - mean) / s``, ``g = weight * dy`` and ``h = ds / d(x - mean)`` times the
    number of elements: ``dx = (g - mean(g) - mean(g * xhat) * (h - mean(h))) / s``. The slope of
    ``abs`` at 0 is 0; largest elements that are equally large share.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x, weight, bias, p, running_mean, running_scale, training, momentum, eps, channel_axis
        As in the forward call; ``momentum`` is not used.
    stats : LpBatchNormStats, optional
        What the forward call returned; computed again when omitted.
    out : array like x, optional
        Where ``dx`` is written.

    Returns
    -------
    LpBatchNormGradients
        ``dx`` like x, ``dweight`` and ``dbias`` like the parameters.

    Raises
    ------
    TypeError, ValueError
        As :func:`lp_batch_norm`; also where ``dy`` does not have x's shape and dtype.
    """
    pooled, _ = saved(stats, LpBatchNormStats)
    return LpBatchNormGradients(
        *_core.lp_batch_norm_backward(
            dy,
            x,
            weight,
            bias,
            p,
            running_mean,
            running_scale,
            training,
            eps,
            channel_axis,
            pooled,
            out,
        )
    )


@overload
def topk_batch_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    k: int = ...,
    running_mean: SupportsDLPack | None = ...,
    running_scale: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: Literal[False] = ...,
) -> A: ...
@overload
def topk_batch_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    k: int = ...,
    running_mean: SupportsDLPack | None = ...,
    running_scale: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: Literal[True],
) -> tuple[A, TopKBatchNormStats[A]]: ...
@overload
def topk_batch_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    k: int = ...,
    running_mean: SupportsDLPack | None = ...,
    running_scale: SupportsDLPack | None = ...,
    training: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: bool,
) -> A | tuple[A, TopKBatchNormStats[A]]: ...
def topk_batch_norm(
    x: A,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    k: int = 10,
    running_mean: SupportsDLPack | None = None,
    running_scale: SupportsDLPack | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    channel_axis: int = 1,
    out: A | None = None,
    return_stats: bool = False,
) -> Any:
    """Normalize every channel by its mean and the mean of its k largest deviations.

    ``y = weight * (x - mean) / s + bias`` over the batch and all positions, with
    ``s = c * mean(k largest of abs(x - mean)) + eps`` and
    ``c = (1 + sqrt(pi * log(4))) / (2 * sqrt(2 * log(m)))`` for ``m`` elements. Statistics come
    from ``x`` when training or without running buffers, else from the buffers.

    Parameters
    ----------
    x : array of shape (N, C, ...) or, with ``channel_axis=-1``, (N, ..., C)
    weight, bias : array of shape (C,), optional
        1 and 0 when omitted.
    k : int
        At least 1; all elements of a channel where there are fewer.
    running_mean, running_scale : array of shape (C,), optional
        Both or neither. When training they move in place by ``momentum`` towards the mean and
        ``s`` itself.
    training : bool
        Whether to use the statistics of ``x`` and update the buffers.
    momentum : float
        Weight of the new value.
    eps : float
        Keeps ``s`` from 0; positive when training, else at least 0.
    channel_axis : int
        1 for NCHW, -1 for channels-last; not 0.
    out : array like x, optional
        Where ``y`` is written.
    return_stats : bool
        Whether to return :class:`TopKBatchNormStats` too.

    Returns
    -------
    y, or (y, stats)

    Raises
    ------
    TypeError
        For a dtype that is no float.
    ValueError
        For a k below 1, one value per channel when training, shapes that do not fit, one buffer
        without the other, a read-only buffer when training, an eps out of range, or an ``out`` that
        does not fit.

    References
    ----------
    Hoffer, Banner, Golan and Soudry, "Norm matters: efficient and accurate normalization schemes in
    deep networks", 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[0.0], [0.0], [3.0], [5.0]])
    >>> y, stats = nc.topk_batch_norm(x, k=2, eps=0.0, return_stats=True)
    >>> stats.pooled  # mean, and mean of the two largest deviations
    array([[2. , 2.5]])
    """
    result = _core.topk_batch_norm(
        x,
        weight,
        bias,
        k,
        running_mean,
        running_scale,
        training,
        momentum,
        eps,
        channel_axis,
        out,
        return_stats,
    )
    if return_stats:
        return result[0], TopKBatchNormStats(*result[1][:3])
    return result


def topk_batch_norm_backward(
    dy: A,
    x: A,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    k: int = 10,
    running_mean: SupportsDLPack | None = None,
    running_scale: SupportsDLPack | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    channel_axis: int = 1,
    stats: TopKBatchNormStats[A] | None = None,
    out: A | None = None,
) -> TopKBatchNormGradients[A]:
    """Gradients of :func:`topk_batch_norm`.

    As :func:`lp_batch_norm_backward`, the slope being the sign of the k largest deviations. Those
    that equal the least of them share its place.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x, weight, bias, k, running_mean, running_scale, training, momentum, eps, channel_axis
        As in the forward call; ``momentum`` is not used.
    stats : TopKBatchNormStats, optional
        What the forward call returned; computed again when omitted.
    out : array like x, optional
        Where ``dx`` is written.

    Returns
    -------
    TopKBatchNormGradients
        ``dx`` like x, ``dweight`` and ``dbias`` like the parameters.

    Raises
    ------
    TypeError, ValueError
        As :func:`topk_batch_norm`; also where ``dy`` does not have x's shape and dtype.
    """
    pooled, _ = saved(stats, TopKBatchNormStats)
    return TopKBatchNormGradients(
        *_core.topk_batch_norm_backward(
            dy,
            x,
            weight,
            bias,
            k,
            running_mean,
            running_scale,
            training,
            eps,
            channel_axis,
            pooled,
            out,
        )
    )
