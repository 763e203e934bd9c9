"""Batch normalization: forward, backward and layer."""

from __future__ import annotations

from typing import Any, Literal, overload

from .._attributes import maybe
from .._core import batch_norm as _batch_norm
from .._core import batch_norm_backward as _batch_norm_backward
from .._life import Foldable
from .._results import AffineGradients, MomentStats, saved
from .._running import RUNNING_VAR, _MaskedNorm
from .._typing import A, Floats, SupportsDLPack

__all__ = ["BatchNorm", "batch_norm", "batch_norm_backward"]


class BatchNormStats(MomentStats[A]):
    """Statistics of :func:`batch_norm`, shape ``(C,)``."""

    __slots__ = ()


class BatchNormGradients(AffineGradients[A]):
    """Gradients of :func:`batch_norm`; None where the parameter was None."""

    __slots__ = ()


@overload
def batch_norm(
    x: A,
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
    mask: Floats | None = ...,
    out: A | None = ...,
    return_stats: Literal[False] = ...,
) -> A: ...
@overload
def batch_norm(
    x: A,
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
    mask: Floats | None = ...,
    out: A | None = ...,
    return_stats: Literal[True],
) -> tuple[A, BatchNormStats[A]]: ...
@overload
def batch_norm(
    x: A,
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
    mask: Floats | None = ...,
    out: A | None = ...,
    return_stats: bool,
) -> A | tuple[A, BatchNormStats[A]]: ...
def batch_norm(
    x: A,
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
    mask: Floats | None = None,
    out: A | None = None,
    return_stats: bool = False,
) -> Any:
    """Normalize every channel over the batch and all positions.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias``. Statistics come from ``x`` when training
    or without running buffers, else from the buffers.

    Parameters
    ----------
    x : array of shape (N, C, ...) or, with ``channel_axis=-1``, (N, ..., C)
    weight, bias : array of shape (C,), optional
        1 and 0 when omitted.
    running_mean, running_var : array of shape (C,), optional
        Both or neither. When training they move in place:
        ``running = (1 - momentum) * running + momentum * new``.
    training : bool
        Whether to use the statistics of ``x`` and update the buffers.
    momentum : float
        Weight of the new value, from 0 to 1; nothing where the buffers do not move.
    eps : float
        Added to the variance; positive when training, else at least 0.
    unbiased_running_var : bool
        Whether ``running_var`` takes in the variance with divisor n - 1, as PyTorch does, or n.
        With a mask of weights w the divisor is ``c - sum(w**2) / c`` or ``c = sum(w)``: a factor
        common to all weights changes nothing. Where only one position counts it is c.
    channel_axis : int
        1 for NCHW, -1 for channels-last; not 0.
    mask : array, optional
        How much each position counts in the statistics of ``x``, bools or weights >= 0: of ``x``'s
        shape without the channel axis, or broadcastable to it. Masked positions (0) are normalized
        like the others. Where nothing counts, ``y = bias`` and the buffers stay. CPU only.
    out : array like x, optional
        Where ``y`` is written.
    return_stats : bool
        Whether to return :class:`BatchNormStats` too.

    Returns
    -------
    y, or (y, stats)

    Raises
    ------
    TypeError
        For a dtype that is no float.
    ValueError
        For one value per channel when training, shapes that do not fit, one buffer without the
        other, a read-only buffer when training, an eps out of range, a mask with negative or
        infinite weights, or an ``out`` that does not fit.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
    Covariate Shift", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> mean, var = np.zeros(2), np.ones(2)
    >>> nc.batch_norm(x, running_mean=mean, running_var=var, training=True, momentum=0.5).round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> mean, var
    (array([ 1., 10.]), array([  1.5, 100.5]))
    """
    result = _batch_norm(
        x,
        weight,
        bias,
        running_mean,
        running_var,
        training,
        momentum,
        eps,
        unbiased_running_var,
        channel_axis,
        mask,
        out,
        return_stats,
    )
    if return_stats and isinstance(result, tuple):
        return result[0], BatchNormStats(*result[1][:3])
    return result


def batch_norm_backward(
    dy: A,
    x: A,
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
    mask: Floats | None = None,
    stats: BatchNormStats[A] | None = None,
    out: A | None = None,
) -> BatchNormGradients[A]:
    """Gradients of :func:`batch_norm`.

    With the statistics of ``x``: ``dx = weight * rstd * (dy - mean(dy) - xhat * mean(dy * xhat))``;
    with running statistics: ``dx = weight * rstd * dy``. ``dweight = sum(dy * xhat)`` and
    ``dbias = sum(dy)`` over all axes but the channels'. With a mask only the positions that count
    get a gradient through the statistics, in proportion to their weights: ``dx = weight * rstd *
    (dy - mask * (sum(dy) + xhat * sum(dy * xhat)) / sum(mask))``.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x, weight, bias, running_mean, running_var, training, eps, channel_axis, mask
        As in the forward call. Buffers are read where they were used, and never written.
    momentum, unbiased_running_var
        Taken so that the options of both calls can be one dict; no gradient depends on them.
    stats : BatchNormStats, optional
        What the forward call returned; computed again when omitted.
    out : array like x, optional
        Where ``dx`` is written.

    Returns
    -------
    BatchNormGradients
        ``dx`` like x, ``dweight`` and ``dbias`` like the parameters.

    Raises
    ------
    TypeError, ValueError
        As :func:`batch_norm`; also where ``dy`` does not have x's shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> nc.batch_norm_backward(np.array([[1.0, 2.0], [3.0, 5.0]]), x, bias=np.zeros(2)).dbias
    array([4., 7.])
    """
    return BatchNormGradients(
        *_batch_norm_backward(
            dy,
            x,
            weight,
            bias,
            running_mean,
            running_var,
            training,
            eps,
            channel_axis,
            mask,
            saved(stats, BatchNormStats)[0],
            out,
        )
    )


class BatchNorm(Foldable, _MaskedNorm):
    r"""Batch normalization: over the samples and all positions of each channel.

    .. math:: y = \frac{x - mean}{\sqrt{var + \epsilon}} \cdot weight + bias

    In training, mean and (biased) variance are those of x, and the buffers become
    ``(1 - momentum) * buffer + momentum * statistic``, with the unbiased variance unless told
    otherwise. In evaluation they are the buffers or, without buffers, those of x.

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    eps : float, default 1e-5
        Added to the variance.
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
    unbiased_running_var : bool, default True
        Whether ``running_var`` holds variances with divisor n - 1, as in torch, or n.
    ghost_batch_size : int, optional
        In training, statistics are taken from so many samples at a time: contiguous chunks, each of
        which counts as a batch for the buffers. The last may be short; where it has one value per
        channel it joins the one before.
    time_steps : int, optional
        The buffers have a row for each of so many steps, and calls a ``step``:
        ``layer(x, step=t)``, ``layer.backward(dy, step=t)``. Later steps use the last row.
    comm : mpi4py communicator or object with ``allreduce(array)``, optional
        Batch statistics are those of all processes' samples, weighed by their counts, forward and
        backward; each process may have any number of samples, also none, and all must call the
        layer equally often. Parameters' gradients are those of the own samples. Of x on a CUDA
        device ``allreduce`` gets and returns arrays of x's library there.
    comm_timeout : float, default 600
        Seconds to wait for the others before TimeoutError; for mpi4py.

    Attributes
    ----------
    parameters : dict
        ``weight`` (starts at 1) and ``bias`` (starts at 0), of shape (num_features,).
    buffers : dict
        ``running_mean`` (starts at 0) and ``running_var`` (starts at 1), of shape
        (num_features,) and float32 (float64 for float64 layers), and ``num_batches_tracked``,
        int64 without axes, which counts the training calls that were not empty.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or, in training, with one value per channel.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.BatchNorm(2, momentum=None)
    >>> layer(np.array([[1.0, 10.0], [3.0, 30.0]])).round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> layer.buffers["running_mean"], layer.buffers["running_var"]
    (array([ 2., 20.], dtype=float32), array([  2., 200.], dtype=float32))
    >>> layer.eval()(np.array([[2.0, 20.0]]))
    array([[0., 0.]])
    """

    _function = staticmethod(batch_norm)
    _function_backward = staticmethod(batch_norm_backward)

    running_var = maybe(RUNNING_VAR)
