"""Switchable normalization: forward, backward and layer."""

from __future__ import annotations

from typing import Any, Generic, Literal, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from .._attributes import always, maybe
from .._core import switchable_norm as _switchable_norm
from .._core import switchable_norm_backward as _switchable_norm_backward
from .._results import MixedStats, saved
from .._running import RUNNING_VAR, _RunningNorm
from .._typing import A, Communicator, Floats, NamedTuple, SupportsDLPack

__all__ = ["SwitchableNorm", "switchable_norm", "switchable_norm_backward"]


class SwitchableNormStats(MixedStats[A]):
    """Statistics of :func:`switchable_norm`, for the backward function, in float64."""

    __slots__ = ()


class SwitchableNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`switchable_norm`; None where the parameter was None."""

    dx: A
    dmean_logits: A
    dvar_logits: A
    dweight: A | None
    dbias: A | None


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
    result = _switchable_norm(
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
    if return_stats and isinstance(result, tuple):
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
        *_switchable_norm_backward(
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


class SwitchableNorm(_RunningNorm):
    r"""Switchable normalization: learned mixtures of instance, layer and batch statistics.

    .. math:: y = \frac{x - \sum_k w_k mean_k}{\sqrt{\sum_k v_k var_k + \epsilon}} \cdot weight
              + bias

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    eps : float, default 1e-5
        Added to the variance.
    momentum : float or None, default 0.1
        Weight of the new value in the buffers; None for the average over all batches so far, the
        paper's batch average.
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
    ghost_batch_size, time_steps, comm, comm_timeout : optional
        As in `BatchNorm`.

    Attributes
    ----------
    parameters : dict
        ``mean_logits`` and ``var_logits``, of shape (3,) in the order instance, layer, batch, which
        start at 1, equal thirds; ``weight`` and ``bias``, of shape (num_features,).
    buffers : dict
        ``running_mean`` (starts at 0) and ``running_var`` (starts at 1), the biased variance of the
        batch, and ``num_batches_tracked``.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or, in training, with one value per channel.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Luo, Ren, Peng, Zhang and Li, "Differentiable Learning-to-Normalize via Switchable
    Normalization", 2019, arXiv:1806.10779.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.SwitchableNorm(2)
    >>> x = np.array([[[1.0, 3.0], [5.0, 7.0]], [[0.0, 2.0], [8.0, 6.0]]])
    >>> dx = layer.backward(layer(x))
    >>> layer.grads["mean_logits"].shape
    (3,)
    """

    _function = staticmethod(switchable_norm)
    _function_backward = staticmethod(switchable_norm_backward)

    mean_logits = always("Of the mixture of means: instance, layer, batch.")
    var_logits = always("Of the mixture of variances: instance, layer, batch.")
    running_var = maybe(RUNNING_VAR)

    def __init__(
        self,
        num_features: SupportsIndex,
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
        comm: Communicator | None = None,
        comm_timeout: float = 600.0,
    ) -> None:
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
            comm=comm,
            comm_timeout=comm_timeout,
        )
