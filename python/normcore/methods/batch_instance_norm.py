"""Batch-instance normalization: forward, backward and layer."""

from __future__ import annotations

from typing import Any, Generic, Literal, overload

from .._attributes import always, maybe
from .._core import batch_instance_norm as _batch_instance_norm
from .._core import batch_instance_norm_backward as _batch_instance_norm_backward
from .._owned import clamped
from .._results import MixedStats, saved
from .._running import RUNNING_VAR, _RunningNorm
from .._typing import A, Floats, NamedTuple, SupportsDLPack

__all__ = ["BatchInstanceNorm", "batch_instance_norm", "batch_instance_norm_backward"]


class BatchInstanceNormStats(MixedStats[A]):
    """Statistics of :func:`batch_instance_norm`, for the backward function, in float64."""

    __slots__ = ()


class BatchInstanceNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`batch_instance_norm`; None where the parameter was None."""

    dx: A
    drho: A
    dweight: A | None
    dbias: A | None


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
    result = _batch_instance_norm(
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
    if return_stats and isinstance(result, tuple):
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
        *_batch_instance_norm_backward(
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


class BatchInstanceNorm(_RunningNorm):
    r"""Batch-instance normalization: a learned gate per channel between the two.

    .. math:: y = (\rho \hat x {}_B + (1 - \rho) \hat x {}_I) \cdot weight + bias

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    eps : float, default 1e-5
        Added to the variances.
    momentum : float or None, default 0.1
        Weight of the new value in the buffers; None for the average over all batches so far.
    affine : bool, default True
        Whether there are ``weight`` and ``bias``.
    track_running_stats : bool, default True
        Whether there are buffers.
    channel_axis : int, default 1
        1 for NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64. x may have another one.
    bias : bool, default True
        Whether, given `affine`, there is a ``bias``.
    unbiased_running_var : bool, default True
        Whether ``running_var`` holds variances with divisor n - 1, as in torch, or n.
    ghost_batch_size, time_steps, comm, comm_timeout : optional
        As in `BatchNorm`.

    Attributes
    ----------
    parameters : dict
        ``rho`` (starts at 1, which is batch norm), ``weight`` and ``bias``, of shape
        (num_features,). The paper trains ``rho`` with ten times the learning rate, and keeps it in
        [0, 1]: call `project` after each step.
    buffers : dict
        As in `BatchNorm`.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or, in training, with one value per channel.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Nam and Kim, "Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks",
    2018, arXiv:1805.07925.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.BatchInstanceNorm(2)
    >>> layer.parameters["rho"] += np.float32([0.5, -0.5])  # a step
    >>> layer.project()
    >>> layer.parameters["rho"]
    array([1. , 0.5], dtype=float32)
    """

    _function = staticmethod(batch_instance_norm)
    _function_backward = staticmethod(batch_instance_norm_backward)

    rho = always("The share of batch norm in each channel.")
    running_var = maybe(RUNNING_VAR)

    def project(self) -> None:
        """Clamp ``rho`` to [0, 1], in place; after each step of the optimizer."""
        rho = self.parameters["rho"]
        rho[...] = clamped(rho, 0, 1)
