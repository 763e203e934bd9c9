"""Lp batch normalization: forward, backward and layer."""

from __future__ import annotations

from typing import Any, Literal, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from .._arguments import number
from .._core import lp_batch_norm as _lp_batch_norm
from .._core import lp_batch_norm_backward as _lp_batch_norm_backward
from .._results import AffineGradients, MomentStats, saved
from .._running import _ScaledNorm
from .._typing import A, Floats, SupportsDLPack

__all__ = ["LpBatchNorm", "lp_batch_norm", "lp_batch_norm_backward"]


class LpBatchNormStats(MomentStats[A]):
    """Statistics of :func:`lp_batch_norm`, shape ``(C,)``; ``rstd`` is ``1 / s``."""

    __slots__ = ()


class LpBatchNormGradients(AffineGradients[A]):
    """Gradients of :func:`lp_batch_norm`; None where the parameter was None."""

    __slots__ = ()


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
    result = _lp_batch_norm(
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
    if return_stats and isinstance(result, tuple):
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
        *_lp_batch_norm_backward(
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


class LpBatchNorm(_ScaledNorm):
    """Lp batch normalization: by the mean p-th power of the deviations.

    The formula is that of `normcore.lp_batch_norm`.

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    p : float, default 1
        The order, at least 1; also ``inf``.
    eps : float, default 1e-5
        Keeps the scale from 0.
    momentum : float or None, default 0.1
        Weight of the new value in the buffers; None for the average over all batches so far.
    affine : bool, default True
        Whether there are parameters at all.
    track_running_stats : bool, default True
        Whether there are buffers.
    channel_axis : int, default 1
        1 for (N, C) and NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64. x may have another one.
    bias : bool, default True
        Whether, given `affine`, there is a ``bias``.
    ghost_batch_size, time_steps : int, optional
        As in `BatchNorm`.

    Attributes
    ----------
    parameters : dict
        ``weight`` (starts at 1) and ``bias`` (starts at 0), of shape (num_features,).
    buffers : dict
        ``running_mean`` (starts at 0) and ``running_scale`` (starts at 1), the scale itself, of
        shape (num_features,), and ``num_batches_tracked``.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or, in training, with one value per channel; for a
        p below 1.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Hoffer, Banner, Golan and Soudry, "Norm matters: efficient and accurate normalization schemes in
    deep networks", 2018, arXiv:1803.01814.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.LpBatchNorm(1, p=np.inf)(np.array([[0.0], [0.0], [3.0]])).round(4).ravel()
    array([-0.5, -0.5,  1. ])
    """

    _function = staticmethod(lp_batch_norm)
    _function_backward = staticmethod(lp_batch_norm_backward)
    _named = ("p", "eps", "momentum", "affine", "bias", "track_running_stats")

    def __init__(
        self,
        num_features: SupportsIndex,
        p: float = 1.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
        *,
        bias: bool = True,
        ghost_batch_size: SupportsIndex | None = None,
        time_steps: SupportsIndex | None = None,
    ) -> None:
        self.p = number("p", p, "a number >= 1 or infinity", lambda v: v >= 1)
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            channel_axis,
            dtype,
            bias=bias,
            ghost_batch_size=ghost_batch_size,
            time_steps=time_steps,
        )
