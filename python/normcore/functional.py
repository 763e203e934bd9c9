"""The functions of normcore, forward and backward.

Everything here is axes, names and documentation; arrays are read, checked and normalized by the
compiled core. Shapes are written as NumPy does; ``C`` is ``x.shape[channel_axis]`` and ``N`` is
``x.shape[0]``.

Rules that all functions share:

- ``x`` and its parameters are NumPy arrays of float16, float32, float64 or ``ml_dtypes.bfloat16``
  with any strides, or any object with ``__dlpack__`` on the CPU (PyTorch, JAX); results are arrays
  of the same library. Lists of floats are read as NumPy reads them.
- Results have x's shape, dtype and order in memory. Arithmetic is float32 or better and the result
  is rounded once. Parameters may have another float dtype than ``x``.
- ``out`` is written and returned; it may be ``x`` itself (in backward also ``dy`` or ``dh``), and
  must not overlap ``x`` otherwise, nor any other argument.
- Magnitudes of ``x`` may be anything that float32 or the 16-bit dtypes hold, and from 1e-150 to
  1e150 in float64, whose squares leave its range beyond (:func:`normcore.normalize`,
  :func:`normcore.norm` and :func:`normcore.weight_norm` mind them). A large mean costs no digits in
  float32 and 16 bits; the mean of float64 is one double.
- Masked arrays of NumPy are taken by functions with a mask where theirs is the same for all
  channels, and refused elsewhere.
- With ``return_stats=True`` a function returns its statistics too, for the backward function;
  without them the backward function computes them again. Their field ``pooled`` is a NumPy array
  whatever the library of ``x``, with a last axis of 2.
- Errors are a :class:`TypeError` for a dtype or kind, a :class:`ValueError` for a shape, a size or
  a range; nothing has been written then.
- Empty input gives empty output and leaves running statistics as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Literal, overload

from . import _core
from ._interop import Array
from ._typing import A, Floats, NamedTuple, SupportsDLPack

__all__ = [
    "BatchNormGradients",
    "BatchNormStats",
    "GroupNormGradients",
    "GroupNormStats",
    "InstanceNormGradients",
    "InstanceNormStats",
    "LayerNormGradients",
    "LayerNormStats",
    "RMSNormGradients",
    "RMSNormStats",
    "batch_norm",
    "batch_norm_backward",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "rms_norm",
    "rms_norm_backward",
]

# The compiled functions, bound once: looking them up costs as much as a small call's arithmetic.
_layer_norm = _core.layer_norm
_rms_norm = _core.rms_norm
_batch_norm = _core.batch_norm
_instance_norm = _core.instance_norm
_group_norm = _core.group_norm


class LayerNormStats(NamedTuple, Generic[A]):
    """Statistics of :func:`layer_norm`; x's shape with 1 along ``axis``."""

    mean: A
    rstd: A
    #: Mean and variance in float64, for the backward function.
    pooled: Array


class RMSNormStats(NamedTuple, Generic[A]):
    """Statistics of :func:`rms_norm`; x's shape with 1 along ``axis``."""

    rstd: A
    #: Zeros and mean squares in float64, for the backward function.
    pooled: Array


class BatchNormStats(NamedTuple, Generic[A]):
    """Statistics of :func:`batch_norm`, shape ``(C,)``."""

    mean: A
    rstd: A
    #: Mean and variance in float64, for the backward function.
    pooled: Array


class InstanceNormStats(NamedTuple, Generic[A]):
    """Statistics of :func:`instance_norm`, shape ``(N, C)``."""

    mean: A
    rstd: A
    #: Mean and variance in float64, for the backward function.
    pooled: Array


class GroupNormStats(NamedTuple, Generic[A]):
    """Statistics of :func:`group_norm`, shape ``(N, num_groups)``."""

    mean: A
    rstd: A
    #: Mean and variance in float64, for the backward function.
    pooled: Array


class LayerNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`layer_norm`; None where the parameter was None."""

    dx: A
    dweight: A | None
    dbias: A | None


class RMSNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`rms_norm`; None where the parameter was None."""

    dx: A
    dweight: A | None


class BatchNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`batch_norm`; None where the parameter was None."""

    dx: A
    dweight: A | None
    dbias: A | None


class InstanceNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`instance_norm`; None where the parameter was None."""

    dx: A
    dweight: A | None
    dbias: A | None


class GroupNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`group_norm`; None where the parameter was None."""

    dx: A
    dweight: A | None
    dbias: A | None


def saved(stats: Any, kind: type) -> tuple[Any, Any]:
    """Return what the backward function needs of ``stats``, which must be of ``kind`` or None."""
    if stats is None:
        return None, None
    if not isinstance(stats, kind):
        raise TypeError(
            f"stats is {type(stats).__name__}, expected {kind.__name__}: "
            "what the forward function returned"
        )
    return stats.pooled, getattr(stats, "given", None)  # type: ignore[attr-defined]


@overload
def layer_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    axis: int | Sequence[int] | None = ...,
    eps: float = ...,
    residual: None = ...,
    out: A | None = ...,
    return_stats: Literal[False] = ...,
) -> A: ...
@overload
def layer_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    axis: int | Sequence[int] | None = ...,
    eps: float = ...,
    residual: None = ...,
    out: A | None = ...,
    return_stats: Literal[True],
) -> tuple[A, LayerNormStats[A]]: ...
@overload
def layer_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    axis: int | Sequence[int] | None = ...,
    eps: float = ...,
    residual: None = ...,
    out: A | None = ...,
    return_stats: bool,
) -> A | tuple[A, LayerNormStats[A]]: ...
@overload
def layer_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    axis: int | Sequence[int] | None = ...,
    eps: float = ...,
    residual: A,
    out: A | None = ...,
    return_stats: Literal[False] = ...,
) -> tuple[A, A]: ...
@overload
def layer_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    axis: int | Sequence[int] | None = ...,
    eps: float = ...,
    residual: A,
    out: A | None = ...,
    return_stats: Literal[True],
) -> tuple[A, A, LayerNormStats[A]]: ...
@overload
def layer_norm(
    x: A,
    weight: Floats | None = ...,
    bias: Floats | None = ...,
    *,
    axis: int | Sequence[int] | None = ...,
    eps: float = ...,
    residual: A,
    out: A | None = ...,
    return_stats: bool,
) -> tuple[A, A] | tuple[A, A, LayerNormStats[A]]: ...
def layer_norm(
    x: A,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    axis: int | Sequence[int] | None = -1,
    eps: float = 1e-5,
    residual: A | None = None,
    out: A | None = None,
    return_stats: bool = False,
) -> Any:
    """Normalize over the given axes to mean 0 and variance 1.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias`` with mean and biased variance over
    ``axis``.

    Parameters
    ----------
    x : array of any shape with at least one axis
    weight, bias : array, optional
        x's shape over the axes of ``axis`` in ascending order; 1 and 0 when omitted.
    axis : int, sequence of int or None
        Axes that are normalized, in any order, also ones that are not trailing; None for all.
    eps : float
        Added to the variance; at least 0.
    residual : array like x, optional
        ``h = x + residual`` is normalized, and returned after ``y``.
    out : array like x, optional
        Where ``y`` is written.
    return_stats : bool
        Whether to return :class:`LayerNormStats` too.

    Returns
    -------
    y, or (y, h), (y, stats), (y, h, stats)

    Raises
    ------
    TypeError
        For a dtype that is no float, or a residual of another dtype than x.
    ValueError
        For axes out of range or named twice, shapes that do not fit, a negative eps, or an ``out``
        that does not fit or overlaps.

    References
    ----------
    Ba, Kiros and Hinton, "Layer Normalization", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.layer_norm(np.array([[1.0, 2.0, 3.0]]), eps=0.0).round(4)
    array([[-1.2247,  0.    ,  1.2247]])
    """
    result = _layer_norm(x, weight, bias, axis, eps, residual, out, return_stats)
    if return_stats:
        return (*result[:-1], LayerNormStats(*result[-1][:3]))
    return result


def layer_norm_backward(
    dy: A,
    x: A,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    axis: int | Sequence[int] | None = -1,
    eps: float = 1e-5,
    dh: A | None = None,
    stats: LayerNormStats[A] | None = None,
    out: A | None = None,
) -> LayerNormGradients[A]:
    """Gradients of :func:`layer_norm`.

    ``dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) + dh`` with ``g = weight * dy`` and
    ``xhat = (x - mean) * rstd``; ``dweight = sum(dy * xhat)`` and ``dbias = sum(dy)`` over the axes
    that were kept.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x : array
        What was normalized: ``h`` where the forward call had a residual.
    weight, bias, axis, eps
        As in the forward call.
    dh : array like x, optional
        Gradient of ``h`` from elsewhere. With it ``dx`` is the gradient of both x and residual.
    stats : LayerNormStats, optional
        What the forward call returned; computed again when omitted.
    out : array like x, optional
        Where ``dx`` is written.

    Returns
    -------
    LayerNormGradients
        ``dx`` like x, ``dweight`` and ``dbias`` like the parameters.

    Raises
    ------
    TypeError, ValueError
        As :func:`layer_norm`; also where ``dy`` does not have x's shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 2.0, 4.0]])
    >>> dx, dweight, dbias = nc.layer_norm_backward(np.ones((1, 3)), x, np.ones(3))
    >>> bool(abs(dx).max() < 1e-12), dbias is None
    (True, True)
    """
    return LayerNormGradients(
        *_core.layer_norm_backward(
            dy, x, weight, bias, axis, eps, dh, saved(stats, LayerNormStats)[0], out
        )
    )


@overload
def rms_norm(
    x: A,
    weight: Floats | None = ...,
    *,
    axis: int | Sequence[int] | None = ...,
    eps: float = ...,
    weight_offset: float = ...,
    residual: None = ...,
    out: A | None = ...,
    return_stats: Literal[False] = ...,
) -> A: ...
@overload
def rms_norm(
    x: A,
    weight: Floats | None = ...,
    *,
    axis: int | Sequence[int] | None = ...,
    eps: float = ...,
    weight_offset: float = ...,
    residual: None = ...,
    out: A | None = ...,
    return_stats: Literal[True],
) -> tuple[A, RMSNormStats[A]]: ...
@overload
def rms_norm(
    x: A,
    weight: Floats | None = ...,
    *,
    axis: int | Sequence[int] | None = ...,
    eps: float = ...,
    weight_offset: float = ...,
    residual: None = ...,
    out: A | None = ...,
    return_stats: bool,
) -> A | tuple[A, RMSNormStats[A]]: ...
@overload
def rms_norm(
    x: A,
    weight: Floats | None = ...,
    *,
    axis: int | Sequence[int] | None = ...,
    eps: float = ...,
    weight_offset: float = ...,
    residual: A,
    out: A | None = ...,
    return_stats: Literal[False] = ...,
) -> tuple[A, A]: ...
@overload
def rms_norm(
    x: A,
    weight: Floats | None = ...,
    *,
    axis: int | Sequence[int] | None = ...,
    eps: float = ...,
    weight_offset: float = ...,
    residual: A,
    out: A | None = ...,
    return_stats: Literal[True],
) -> tuple[A, A, RMSNormStats[A]]: ...
@overload
def rms_norm(
    x: A,
    weight: Floats | None = ...,
    *,
    axis: int | Sequence[int] | None = ...,
    eps: float = ...,
    weight_offset: float = ...,
    residual: A,
    out: A | None = ...,
    return_stats: bool,
) -> tuple[A, A] | tuple[A, A, RMSNormStats[A]]: ...
def rms_norm(
    x: A,
    weight: Floats | None = None,
    *,
    axis: int | Sequence[int] | None = -1,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    residual: A | None = None,
    out: A | None = None,
    return_stats: bool = False,
) -> Any:
    """Divide by the root mean square over the given axes.

    ``y = (weight + weight_offset) * x / sqrt(mean(x**2) + eps)``.

    Parameters
    ----------
    x : array of any shape with at least one axis
    weight : array, optional
        x's shape over the axes of ``axis`` in ascending order; 1 when omitted.
    axis : int, sequence of int or None
        Axes that are normalized, in any order, also ones that are not trailing; None for all.
    eps : float
        Added to the mean square; at least 0.
    weight_offset : float
        Added to the weight; 1 for models that store the weight minus one.
    residual : array like x, optional
        ``h = x + residual`` is normalized, and returned after ``y``.
    out : array like x, optional
        Where ``y`` is written.
    return_stats : bool
        Whether to return :class:`RMSNormStats` too.

    Returns
    -------
    y, or (y, h), (y, stats), (y, h, stats)

    Raises
    ------
    TypeError
        For a dtype that is no float, or a residual of another dtype than x.
    ValueError
        For axes out of range or named twice, shapes that do not fit, a negative eps, or an ``out``
        that does not fit or overlaps.

    References
    ----------
    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.rms_norm(np.array([3.0, 4.0]), eps=0.0).round(4)
    array([0.8485, 1.1314])
    """
    result = _rms_norm(x, weight, axis, eps, weight_offset, residual, out, return_stats)
    if return_stats:
        return (*result[:-1], RMSNormStats(*result[-1][1:3]))
    return result


def rms_norm_backward(
    dy: A,
    x: A,
    weight: Floats | None = None,
    *,
    axis: int | Sequence[int] | None = -1,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    dh: A | None = None,
    stats: RMSNormStats[A] | None = None,
    out: A | None = None,
) -> RMSNormGradients[A]:
    """Gradients of :func:`rms_norm`.

    ``dx = rstd * (g - xhat * mean(g * xhat)) + dh`` with ``g = (weight + weight_offset) * dy`` and
    ``xhat = x * rstd``; ``dweight = sum(dy * xhat)`` over the axes that were kept.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x : array
        What was normalized: ``h`` where the forward call had a residual.
    weight, axis, eps, weight_offset
        As in the forward call.
    dh : array like x, optional
        Gradient of ``h`` from elsewhere. With it ``dx`` is the gradient of both x and residual.
    stats : RMSNormStats, optional
        What the forward call returned; computed again when omitted.
    out : array like x, optional
        Where ``dx`` is written.

    Returns
    -------
    RMSNormGradients
        ``dx`` like x, ``dweight`` like the weight.

    Raises
    ------
    TypeError, ValueError
        As :func:`rms_norm`; also where ``dy`` does not have x's shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.rms_norm_backward(np.array([1.0, 0.0]), np.array([3.0, 4.0]), eps=0.0).dx.round(4)
    array([ 0.181 , -0.1358])
    """
    return RMSNormGradients(
        *_core.rms_norm_backward(
            dy, x, weight, axis, eps, weight_offset, dh, saved(stats, RMSNormStats)[0], out
        )
    )


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
    if return_stats:
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
        *_core.batch_norm_backward(
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
    if return_stats:
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
        *_core.instance_norm_backward(
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
    if return_stats:
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
        *_core.group_norm_backward(
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
