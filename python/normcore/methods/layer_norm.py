"""Layer normalization: forward, backward and layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from .._arguments import not_negative
from .._attributes import maybe
from .._core import layer_norm as _layer_norm
from .._core import layer_norm_backward as _layer_norm_backward
from .._results import AffineGradients, MomentStats, saved
from .._row_layer import _RowLayer
from .._typing import A, Floats

__all__ = ["LayerNorm", "layer_norm", "layer_norm_backward"]


class LayerNormStats(MomentStats[A]):
    """Statistics of :func:`layer_norm`; x's shape with 1 along ``axis``."""

    __slots__ = ()


class LayerNormGradients(AffineGradients[A]):
    """Gradients of :func:`layer_norm`; None where the parameter was None."""

    __slots__ = ()


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
    result: Any = _layer_norm(x, weight, bias, axis, eps, residual, out, return_stats)
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
        *_layer_norm_backward(
            dy, x, weight, bias, axis, eps, dh, saved(stats, LayerNormStats)[0], out
        )
    )


class LayerNorm(_RowLayer):
    r"""Layer normalization over the trailing axes of x.

    .. math:: y = \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \epsilon}}
              \cdot weight + bias

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Sizes of the trailing axes, which share one mean and one (biased) variance.
    eps : float, default 1e-5
        Added to the variance.
    elementwise_affine : bool, default True
        Whether there are parameters at all.
    bias : bool, default True
        Whether, given `elementwise_affine`, there is a ``bias``.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64. x may have another one.
    axis : int or sequence of int, optional
        The axes that are normalized where they are not the trailing ones, in any order;
        `normalized_shape` has their sizes in the order of x.

    Attributes
    ----------
    parameters : dict
        ``weight`` (starts at 1) and ``bias`` (starts at 0), of shape `normalized_shape`.

    Raises
    ------
    ValueError
        For an x that does not end in `normalized_shape`; on construction for sizes below 1.
    TypeError
        For a dtype that is not one of the four.

    Notes
    -----
    ``layer(x, residual)`` returns ``(y, h)``, where ``h = x + residual`` was normalized;
    ``layer.backward(dy, dh)`` then returns the gradient of both x and residual.

    References
    ----------
    Ba, Kiros and Hinton, "Layer Normalization", 2016, arXiv:1607.06450.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.LayerNorm(4)
    >>> layer
    LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=True)
    >>> x = np.array([[1, 1, 3, 3], [-5, 5, -5, 5]], dtype=np.float32)
    >>> layer(x).round(3)
    array([[-1., -1.,  1.,  1.],
           [-1.,  1., -1.,  1.]], dtype=float32)
    >>> dx = layer.backward(np.ones_like(x))
    >>> layer.grads["bias"]
    array([2., 2., 2., 2.], dtype=float32)
    """

    _function = staticmethod(layer_norm)
    _function_backward = staticmethod(layer_norm_backward)
    _named = ("eps", "elementwise_affine", "bias")

    bias = maybe("Shift, of shape `normalized_shape`; None where there is none.")

    def __init__(
        self,
        normalized_shape: SupportsIndex | Iterable[SupportsIndex],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
        *,
        axis: SupportsIndex | Sequence[SupportsIndex] | None = None,
    ) -> None:
        super().__init__(
            normalized_shape, not_negative("eps", eps), elementwise_affine, axis, dtype, bias=bias
        )
