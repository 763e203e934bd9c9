"""Instance normalization: forward, backward and layer."""

from __future__ import annotations

import math
from typing import Any, Literal, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from .._arguments import shape_of
from .._attributes import maybe
from .._core import instance_norm as _instance_norm
from .._core import instance_norm_backward as _instance_norm_backward
from .._interop import Array
from .._life import Foldable
from .._results import AffineGradients, MomentStats, saved
from .._running import RUNNING_VAR, _RunningNorm, pairs_in_numpy
from .._typing import A, Floats, SupportsDLPack
from ..reductions import Moments

__all__ = ["InstanceNorm", "instance_norm", "instance_norm_backward"]


class InstanceNormStats(MomentStats[A]):
    """Statistics of :func:`instance_norm`, shape ``(N, C)``."""

    __slots__ = ()


class InstanceNormGradients(AffineGradients[A]):
    """Gradients of :func:`instance_norm`; None where the parameter was None."""

    __slots__ = ()


@overload
def instance_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack | None = ...,
    running_var: SupportsDLPack | None = ...,
    use_input_stats: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    unbiased_running_var: bool = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: Literal[False] = ...,
) -> A: ...
@overload
def instance_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack | None = ...,
    running_var: SupportsDLPack | None = ...,
    use_input_stats: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    unbiased_running_var: bool = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: Literal[True],
) -> tuple[A, InstanceNormStats[A]]: ...
@overload
def instance_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    running_mean: SupportsDLPack | None = ...,
    running_var: SupportsDLPack | None = ...,
    use_input_stats: bool = ...,
    momentum: float = ...,
    eps: float = ...,
    unbiased_running_var: bool = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: bool,
) -> A | tuple[A, InstanceNormStats[A]]: ...
def instance_norm(
    x: A,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    running_mean: SupportsDLPack | None = None,
    running_var: SupportsDLPack | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased_running_var: bool = True,
    channel_axis: int = 1,
    out: A | None = None,
    return_stats: bool = False,
) -> Any:
    """Normalize every channel of every sample over its positions.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias`` with mean and biased variance per sample
    and channel, or from the buffers with ``use_input_stats=False``.

    Parameters
    ----------
    x : array of shape (N, C, ...) or, with ``channel_axis=-1``, (N, ..., C)
    weight, bias : array of shape (C,), optional
        1 and 0 when omitted.
    running_mean, running_var : array of shape (C,), optional
        Both or neither. With ``use_input_stats`` they move in place towards the mean over the batch
        of the means and of the variances, by weight ``momentum``.
    use_input_stats : bool
        Whether statistics come from ``x``; otherwise from the buffers, which must be given.
    momentum : float
        Weight of the new value, from 0 to 1; nothing where the buffers do not move.
    eps : float
        Added to the variance; at least 0.
    unbiased_running_var : bool
        Whether ``running_var`` takes in variances with divisor n - 1, as PyTorch does, or n.
    channel_axis : int
        1 for NCHW, -1 for channels-last; not 0.
    out : array like x, optional
        Where ``y`` is written.
    return_stats : bool
        Whether to return :class:`InstanceNormStats` too.

    Returns
    -------
    y, or (y, stats)

    Raises
    ------
    TypeError
        For a dtype that is no float.
    ValueError
        For one position per channel with ``use_input_stats``, shapes that do not fit, missing or
        read-only buffers, a negative eps, or an ``out`` that does not fit.

    References
    ----------
    Ulyanov, Vedaldi and Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.instance_norm(np.array([[[1.0, 3.0], [10.0, 30.0]]])).round(3)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    result = _instance_norm(
        x,
        weight,
        bias,
        running_mean,
        running_var,
        use_input_stats,
        momentum,
        eps,
        unbiased_running_var,
        channel_axis,
        out,
        return_stats,
    )
    if return_stats and isinstance(result, tuple):
        return result[0], InstanceNormStats(*result[1][:3])
    return result


def instance_norm_backward(
    dy: A,
    x: A,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    running_mean: SupportsDLPack | None = None,
    running_var: SupportsDLPack | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased_running_var: bool = True,
    channel_axis: int = 1,
    stats: InstanceNormStats[A] | None = None,
    out: A | None = None,
) -> InstanceNormGradients[A]:
    """Gradients of :func:`instance_norm`.

    ``dx = weight * rstd * (dy - mean(dy) - xhat * mean(dy * xhat))`` with means over the positions,
    or ``weight * rstd * dy`` with ``use_input_stats=False``. ``dweight = sum(dy * xhat)`` and
    ``dbias = sum(dy)`` over all axes but the channels'.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x, weight, bias, running_mean, running_var, use_input_stats, eps, channel_axis
        As in the forward call. Buffers are read where they were used, and never written.
    momentum, unbiased_running_var
        Taken so that the options of both calls can be one dict; no gradient depends on them.
    stats : InstanceNormStats, optional
        What the forward call returned; computed again when omitted.
    out : array like x, optional
        Where ``dx`` is written.

    Returns
    -------
    InstanceNormGradients
        ``dx`` like x, ``dweight`` and ``dbias`` like the parameters.

    Raises
    ------
    TypeError, ValueError
        As :func:`instance_norm`; also where ``dy`` does not have x's shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[[1.0, 2.0, 4.0]]])
    >>> bool(abs(nc.instance_norm_backward(np.ones_like(x), x).dx).max() < 1e-12)
    True
    """
    return InstanceNormGradients(
        *_instance_norm_backward(
            dy,
            x,
            weight,
            bias,
            running_mean,
            running_var,
            use_input_stats,
            eps,
            channel_axis,
            saved(stats, InstanceNormStats)[0],
            out,
        )
    )


class InstanceNorm(Foldable, _RunningNorm):
    r"""Instance normalization: over all positions of each channel of each sample.

    .. math:: y = \frac{x - mean}{\sqrt{var + \epsilon}} \cdot weight + bias

    Mean and (biased) variance are those of x or, in evaluation and with
    `track_running_stats`, the buffers, which hold running averages over the samples.

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    eps : float, default 1e-5
        Added to the variance.
    momentum : float or None, default 0.1
        Weight of the new value in the buffers; None for the average over all batches so far.
    affine : bool, default False
        Whether there are parameters at all.
    track_running_stats : bool, default False
        Whether there are buffers.
    channel_axis : int, default 1
        1 for NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64. x may have another one.
    bias : bool, default True
        Whether, given `affine`, there is a ``bias``.
    unbiased_running_var : bool, default True
        Whether ``running_var`` holds variances with divisor n - 1, as in torch, or n.
    ghost_batch_size, time_steps : int, optional
        As in `BatchNorm`.

    Attributes
    ----------
    parameters : dict
        ``weight`` (starts at 1) and ``bias`` (starts at 0), of shape (num_features,).
    buffers : dict
        As in `BatchNorm`; unlike torch, ``num_batches_tracked`` counts here too, which
        ``momentum=None`` needs.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or with one value per channel and sample.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Ulyanov, Vedaldi and Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", 2016, arXiv:1607.08022.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.InstanceNorm(2)
    >>> layer(np.array([[[1.0, 3.0], [70.0, 50.0]]])).round(3)
    array([[[-1.,  1.],
            [ 1., -1.]]])
    """

    _function = staticmethod(instance_norm)
    _function_backward = staticmethod(instance_norm_backward)

    running_var = maybe(RUNNING_VAR)

    def __init__(
        self,
        num_features: SupportsIndex,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
        *,
        bias: bool = True,
        unbiased_running_var: bool = True,
        ghost_batch_size: SupportsIndex | None = None,
        time_steps: SupportsIndex | None = None,
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
            unbiased_running_var=unbiased_running_var,
            ghost_batch_size=ghost_batch_size,
            time_steps=time_steps,
        )

    def _options(self) -> dict[str, Any]:
        return {self._learns: self._learning or not self.track_running_stats}

    def _moments_of(self, x: Any) -> Moments:
        # The buffers are averages over the samples: of means, and of variances.
        _, stats = instance_norm(x, channel_axis=self.channel_axis, return_stats=True)
        shape = shape_of(x)
        space = math.prod(shape) / (shape[0] * self.num_features)
        pooled = pairs_in_numpy(x, stats.pooled)
        var = pooled[..., 1] * (space / (space - 1) if self.unbiased_running_var else 1)
        return Moments(float(shape[0]), pooled[..., 0].mean(axis=0), var.sum(axis=0))

    def _merged(self, parts: list[Moments]) -> dict[str, Array]:
        total = Moments.merge(parts)
        return {
            "running_mean": total.mean,
            "running_var": sum(part.m2 for part in parts) / total.count,
        }
