"""Batch renormalization: forward, backward and layer."""

from __future__ import annotations

import math
from typing import Any, Generic, Literal, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from .._arguments import integer, not_negative, number, shown
from .._attributes import always
from .._core import batch_renorm as _batch_renorm
from .._core import batch_renorm_backward as _batch_renorm_backward
from .._interop import Array
from .._life import Foldable
from .._results import AffineGradients, saved
from .._running import _MaskedNorm
from .._typing import A, Communicator, Floats, NamedTuple, SupportsDLPack

__all__ = ["BatchRenorm", "batch_renorm", "batch_renorm_backward"]


class BatchRenormStats(NamedTuple, Generic[A]):
    """Statistics of :func:`batch_renorm`, shape ``(C,)``."""

    mean: A
    rstd: A
    #: Mean and variance in float64, for the backward function.
    pooled: Array
    #: The running mean and squared standard deviation that corrected them; None in evaluation.
    given: Array | None


class BatchRenormGradients(AffineGradients[A]):
    """Gradients of :func:`batch_renorm`; None where the parameter was None."""

    __slots__ = ()


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
        How much each position counts in the statistics of ``x``, as in :func:`normcore.batch_norm`.
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
    result = _batch_renorm(
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
    if return_stats and isinstance(result, tuple):
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
    :func:`normcore.batch_norm_backward`.

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
        *_batch_renorm_backward(
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


def _schedule(schedule: Any) -> tuple[int, int, int]:
    rule = "(start, end of r_max, end of d_max), integers with both ends after the start"
    try:
        start, r_end, d_end = schedule
    except (TypeError, ValueError) as error:
        raise type(error)(f"schedule is {shown(schedule)}, expected {rule}") from None
    start, r_end, d_end = (integer("schedule", n, rule) for n in (start, r_end, d_end))
    if start < 0 or min(r_end, d_end) <= start:
        raise ValueError(f"schedule is {shown(schedule)}, expected {rule}")
    return start, r_end, d_end


def scheduled_bounds(
    schedule: tuple[int, int, int] | None, step: int, r_max: float, d_max: float
) -> tuple[float, float]:
    """Return (r_max, d_max) of a training step."""
    if schedule is None:
        return r_max, d_max
    start, r_end, d_end = schedule
    r, d = (min(1.0, max(0.0, (step - start) / (end - start))) for end in (r_end, d_end))
    return 1 + (r_max - 1) * r, d_max * d


class BatchRenorm(Foldable, _MaskedNorm):
    r"""Batch renormalization: batch statistics, corrected towards the running ones.

    In training ``y = weight * ((x - mean) / s * r + d) + bias``, see
    `normcore.batch_renorm`; in evaluation the buffers are used.

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    eps : float, default 1e-5
        Added to the variance.
    momentum : float or None, default 0.01
        Weight of the new value in the buffers; None for the average over all batches so far.
    r_max, d_max : float, default 3 and 5
        Bounds of the corrections, at the end of the schedule.
    schedule : (int, int, int) or None, default (5000, 40000, 25000)
        Training steps: up to the first there are no corrections, which is batch norm; from there
        the bounds rise linearly, r_max until the second and d_max until the third. None: they are
        what they are from the start.
    affine : bool, default True
        Whether there are parameters at all.
    channel_axis : int, default 1
        1 for (N, C) and NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64. x may have another one.
    bias : bool, default True
        Whether, given `affine`, there is a ``bias``.
    ghost_batch_size, time_steps, comm, comm_timeout : optional
        As in `BatchNorm`.

    Attributes
    ----------
    parameters : dict
        ``weight`` (starts at 1) and ``bias`` (starts at 0), of shape (num_features,).
    buffers : dict
        ``running_mean`` (starts at 0) and ``running_std`` (starts at 1), of shape (num_features,),
        and ``num_batches_tracked``, which is the step of the schedule; with one it is left by
        `recompute_statistics`.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or, in training, with one value per channel; on
        construction for a schedule that does not rise.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized
    Models", 2017, arXiv:1702.03275.

    Examples
    --------
    >>> import normcore as nc
    >>> layer = nc.BatchRenorm(4)
    >>> layer.bounds(0), layer.bounds(22500), layer.bounds(50000)
    ((1.0, 0.0), (2.0, 4.375), (3.0, 5.0))
    """

    _function = staticmethod(batch_renorm)
    _function_backward = staticmethod(batch_renorm_backward)
    _named = ("eps", "momentum", "r_max", "d_max", "schedule", "affine", "bias")

    running_std = always("Running standard deviation.")

    def __init__(
        self,
        num_features: SupportsIndex,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        r_max: float = 3.0,
        d_max: float = 5.0,
        schedule: tuple[int, int, int] | None = (5000, 40000, 25000),
        affine: bool = True,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
        *,
        bias: bool = True,
        ghost_batch_size: SupportsIndex | None = None,
        time_steps: SupportsIndex | None = None,
        comm: Communicator | None = None,
        comm_timeout: float = 600.0,
    ) -> None:
        self.r_max = number("r_max", r_max, "a number >= 1", lambda v: 1 <= v < math.inf)
        self.d_max = not_negative("d_max", d_max)
        self.schedule = None if schedule is None else _schedule(schedule)
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            True,
            channel_axis,
            dtype,
            bias=bias,
            ghost_batch_size=ghost_batch_size,
            time_steps=time_steps,
            comm=comm,
            comm_timeout=comm_timeout,
        )

    def _counted(self, batches: int) -> dict[str, Any]:
        return super()._counted(batches) if self.schedule is None else {}

    def bounds(self, step: int) -> tuple[float, float]:
        """Return (r_max, d_max) of a training step."""
        return scheduled_bounds(self.schedule, step, self.r_max, self.d_max)

    def _running_options(self, buffers: dict[str, Array]) -> dict[str, Any]:
        r_max, d_max = self.bounds(int(buffers["num_batches_tracked"]))
        return {**super()._running_options(buffers), "r_max": r_max, "d_max": d_max}
