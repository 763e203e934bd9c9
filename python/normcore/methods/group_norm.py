"""Group normalization: forward, backward and layer."""

from __future__ import annotations

from typing import Any, Literal, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from .._arguments import flag, integer, not_negative, positive
from .._core import group_norm as _group_norm
from .._core import group_norm_backward as _group_norm_backward
from .._results import AffineGradients, MomentStats, saved
from .._running import _AffineLayer
from .._typing import A, Floats

__all__ = ["GroupNorm", "group_norm", "group_norm_backward"]


class GroupNormStats(MomentStats[A]):
    """Statistics of :func:`group_norm`, shape ``(N, num_groups)``."""

    __slots__ = ()


class GroupNormGradients(AffineGradients[A]):
    """Gradients of :func:`group_norm`; None where the parameter was None."""

    __slots__ = ()


@overload
def group_norm(
    x: A,
    num_groups: int,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    eps: float = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: Literal[False] = ...,
) -> A: ...
@overload
def group_norm(
    x: A,
    num_groups: int,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    eps: float = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: Literal[True],
) -> tuple[A, GroupNormStats[A]]: ...
@overload
def group_norm(
    x: A,
    num_groups: int,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    eps: float = ...,
    channel_axis: int = ...,
    out: A | None = ...,
    return_stats: bool,
) -> A | tuple[A, GroupNormStats[A]]: ...
def group_norm(
    x: A,
    num_groups: int,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    out: A | None = None,
    return_stats: bool = False,
) -> Any:
    """Normalize every group of consecutive channels of every sample.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias`` with mean and biased variance per sample
    and group of ``C / num_groups`` channels.

    Parameters
    ----------
    x : array of shape (N, C, ...) or, with ``channel_axis=-1``, (N, ..., C)
    num_groups : int
        A positive divisor of C.
    weight, bias : array of shape (C,), optional
        1 and 0 when omitted.
    eps : float
        Added to the variance; at least 0.
    channel_axis : int
        1 for NCHW, -1 for channels-last; not 0.
    out : array like x, optional
        Where ``y`` is written.
    return_stats : bool
        Whether to return :class:`GroupNormStats` too.

    Returns
    -------
    y, or (y, stats)

    Raises
    ------
    TypeError
        For a dtype that is no float.
    ValueError
        For a num_groups that does not divide C, one value per group in a batch of one, shapes that
        do not fit, a negative eps, or an ``out`` that does not fit.

    References
    ----------
    Wu and He, "Group Normalization", 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.group_norm(np.array([[1.0, 3.0, 10.0, 30.0]]), 2).round(3)
    array([[-1.,  1., -1.,  1.]])
    """
    result = _group_norm(x, num_groups, weight, bias, eps, channel_axis, out, return_stats)
    if return_stats and isinstance(result, tuple):
        return result[0], GroupNormStats(*result[1][:3])
    return result


def group_norm_backward(
    dy: A,
    x: A,
    num_groups: int,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    stats: GroupNormStats[A] | None = None,
    out: A | None = None,
) -> GroupNormGradients[A]:
    """Gradients of :func:`group_norm`.

    ``dx = rstd * (g - mean(g) - xhat * mean(g * xhat))`` with ``g = weight * dy`` and means over
    the group; ``dweight = sum(dy * xhat)`` and ``dbias = sum(dy)`` over all axes but the channels'.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x, num_groups, weight, bias, eps, channel_axis
        As in the forward call.
    stats : GroupNormStats, optional
        What the forward call returned; computed again when omitted.
    out : array like x, optional
        Where ``dx`` is written.

    Returns
    -------
    GroupNormGradients
        ``dx`` like x, ``dweight`` and ``dbias`` like the parameters.

    Raises
    ------
    TypeError, ValueError
        As :func:`group_norm`; also where ``dy`` does not have x's shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]])
    >>> nc.group_norm_backward(np.ones((1, 4)), x, 2, bias=np.zeros(4)).dbias
    array([1., 1., 1., 1.])
    """
    return GroupNormGradients(
        *_group_norm_backward(
            dy,
            x,
            num_groups,
            weight,
            bias,
            eps,
            channel_axis,
            saved(stats, GroupNormStats)[0],
            out,
        )
    )


class GroupNorm(_AffineLayer):
    r"""Group normalization: over blocks of channels and all positions of each sample.

    .. math:: y = \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \epsilon}}
              \cdot weight + bias

    Mean and (biased) variance are those of one sample and of ``num_channels / num_groups``
    neighbouring channels.

    Parameters
    ----------
    num_groups : int
        Number of blocks; divides `num_channels`.
    num_channels : int
        Size of x along `channel_axis`.
    eps : float, default 1e-5
        Added to the variance.
    affine : bool, default True
        Whether there are parameters at all.
    channel_axis : int, default 1
        1 for NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64. x may have another one.
    bias : bool, default True
        Whether, given `affine`, there is a ``bias``.

    Attributes
    ----------
    parameters : dict
        ``weight`` (starts at 1) and ``bias`` (starts at 0), of shape (num_channels,).

    Raises
    ------
    ValueError
        For an x without `num_channels` channels; on construction for a number of groups that
        does not divide the channels.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Wu and He, "Group Normalization", 2018, arXiv:1803.08494.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.GroupNorm(2, 4)
    >>> layer
    GroupNorm(2, 4, eps=1e-05, affine=True, bias=True)
    >>> layer(np.array([[1.0, 3.0, 70.0, 50.0]])).round(3)
    array([[-1.,  1.,  1., -1.]])
    """

    _function = staticmethod(group_norm)
    _function_backward = staticmethod(group_norm_backward)
    _leading = ("num_groups", "num_channels")
    _named = ("eps", "affine", "bias")
    _channels = "num_channels"

    def __init__(
        self,
        num_groups: SupportsIndex,
        num_channels: SupportsIndex,
        eps: float = 1e-5,
        affine: bool = True,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
        *,
        bias: bool = True,
    ) -> None:
        self.num_groups = positive("num_groups", num_groups)
        self.num_channels = positive("num_channels", num_channels)
        if self.num_channels % self.num_groups:
            raise ValueError(
                f"num_groups is {self.num_groups}, expected a divisor of "
                f"num_channels={self.num_channels}"
            )
        self.eps = not_negative("eps", eps)
        self.affine = flag("affine", affine)
        self.channel_axis = integer("channel_axis", channel_axis)
        bias = flag("bias", bias) and self.affine
        super().__init__(self._new_parameters(self.num_channels, dtype, self.affine, bias))
