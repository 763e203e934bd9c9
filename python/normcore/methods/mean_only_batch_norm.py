"""Mean-only batch normalization: forward, backward and layer."""

from __future__ import annotations

from typing import Any, Generic, Literal, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from .._core import mean_only_batch_norm as _mean_only_batch_norm
from .._core import mean_only_batch_norm_backward as _mean_only_batch_norm_backward
from .._interop import Array
from .._life import Foldable
from .._results import saved
from .._running import _MaskedNorm
from .._typing import A, Communicator, Floats, NamedTuple, SupportsDLPack

__all__ = ["MeanOnlyBatchNorm", "mean_only_batch_norm", "mean_only_batch_norm_backward"]


class MeanOnlyBatchNormStats(NamedTuple, Generic[A]):
    """Statistics of :func:`mean_only_batch_norm`, shape ``(C,)``."""

    mean: A
    #: Mean and variance in float64, for the backward function.
    pooled: Array


class MeanOnlyBatchNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`mean_only_batch_norm`; None where the parameter was None."""

    dx: A
    dbias: A | None


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

    ``y = x - mean + bias``; the companion of :func:`normcore.weight_norm`. The mean comes from
    ``x`` when training or without a running mean, else it is the running mean.

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
        How much each position counts in the statistics of ``x``, as in :func:`normcore.batch_norm`.
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
    result = _mean_only_batch_norm(
        x, bias, running_mean, training, momentum, channel_axis, mask, out, return_stats
    )
    if return_stats and isinstance(result, tuple):
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
        *_mean_only_batch_norm_backward(
            dy, x, bias, running_mean, training, channel_axis, mask, pooled, out
        )
    )


class MeanOnlyBatchNorm(Foldable, _MaskedNorm):
    """Mean-only batch normalization: ``y = x - mean + bias``, the companion of `WeightNorm`.

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    momentum : float or None, default 0.1
        Weight of the new value in the buffer; None for the average over all batches so far.
    track_running_stats : bool, default True
        Whether there is a buffer.
    channel_axis : int, default 1
        1 for (N, C) and NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the bias: float16, bfloat16, float32 or float64. x may have another one.
    bias : bool, default True
        Whether there is a ``bias``.
    ghost_batch_size, time_steps, comm, comm_timeout : optional
        As in `BatchNorm`.

    Attributes
    ----------
    parameters : dict
        ``bias`` (starts at 0), of shape (num_features,).
    buffers : dict
        ``running_mean`` (starts at 0), of shape (num_features,), and ``num_batches_tracked``.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or, in training, with one value per channel.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training
    of Deep Neural Networks", 2016, arXiv:1602.07868.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.MeanOnlyBatchNorm(1)
    >>> layer(np.array([[1.0], [3.0]])).ravel()
    array([-1.,  1.])
    >>> layer.buffers["running_mean"]
    array([0.2], dtype=float32)
    """

    _function = staticmethod(mean_only_batch_norm)
    _function_backward = staticmethod(mean_only_batch_norm_backward)
    _named = ("momentum", "bias", "track_running_stats")

    def __init__(
        self,
        num_features: SupportsIndex,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
        *,
        bias: bool = True,
        ghost_batch_size: SupportsIndex | None = None,
        time_steps: SupportsIndex | None = None,
        comm: Communicator | None = None,
        comm_timeout: float = 600.0,
    ) -> None:
        super().__init__(
            num_features,
            eps=0.0,
            momentum=momentum,
            affine=True,
            track_running_stats=track_running_stats,
            channel_axis=channel_axis,
            dtype=dtype,
            bias=bias,
            ghost_batch_size=ghost_batch_size,
            time_steps=time_steps,
            comm=comm,
            comm_timeout=comm_timeout,
        )
