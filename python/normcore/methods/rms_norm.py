"""Root mean square normalization: forward, backward and layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Generic, Literal, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from .._arguments import not_negative, number
from .._core import rms_norm as _rms_norm
from .._core import rms_norm_backward as _rms_norm_backward
from .._dtypes import float_dtype
from .._interop import Array
from .._results import saved
from .._row_layer import _RowLayer
from .._typing import A, Floats, NamedTuple

__all__ = ["RMSNorm", "rms_norm", "rms_norm_backward"]


class RMSNormStats(NamedTuple, Generic[A]):
    """Statistics of :func:`rms_norm`; x's shape with 1 along ``axis``."""

    rstd: A
    #: Zeros and mean squares in float64, for the backward function.
    pooled: Array


class RMSNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`rms_norm`; None where the parameter was None."""

    dx: A
    dweight: A | None


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
    result: Any = _rms_norm(x, weight, axis, eps, weight_offset, residual, out, return_stats)
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
        *_rms_norm_backward(
            dy, x, weight, axis, eps, weight_offset, dh, saved(stats, RMSNormStats)[0], out
        )
    )


class RMSNorm(_RowLayer):
    r"""Root mean square normalization over the trailing axes of x.

    .. math:: y = \frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}} \cdot (weight + weight\_offset)

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Sizes of the trailing axes, which share one mean square.
    eps : float, optional
        Added to the mean square. None, the default as in torch: the epsilon of float32, 1.19e-7, or
        that of float64 for a float64 layer. (The function's default is 1e-6.)
    elementwise_affine : bool, default True
        Whether there is a ``weight``.
    weight_offset : float, default 0.0
        Added to the weight, in the precision of the computation; 1 is Gemma's form. The weight
        starts at ``1 - weight_offset``, so that the layer starts without a scale.
    dtype : dtype, default numpy.float32
        Of the weight: float16, bfloat16, float32 or float64. x may have another one.
    axis : int or sequence of int, optional
        The axes that are normalized where they are not the trailing ones, in any order;
        `normalized_shape` has their sizes in the order of x.

    Attributes
    ----------
    parameters : dict
        ``weight``, of shape `normalized_shape`.

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
    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.RMSNorm(2, weight_offset=1)
    >>> layer
    RMSNorm((2,), eps=None, elementwise_affine=True, weight_offset=1.0)
    >>> layer.parameters["weight"]
    array([0., 0.], dtype=float32)
    >>> y, h = layer(np.array([[3.0, 0.0]]), residual=np.array([[4.0, 1.0]]))
    >>> h
    array([[7., 1.]])
    >>> y.round(3)
    array([[1.4, 0.2]])
    """

    _function = staticmethod(rms_norm)
    _function_backward = staticmethod(rms_norm_backward)
    _named = ("eps", "elementwise_affine")
    _unusual: ClassVar[dict[str, object]] = {"weight_offset": 0.0, "axis": None}

    def __init__(
        self,
        normalized_shape: SupportsIndex | Iterable[SupportsIndex],
        eps: float | None = None,
        elementwise_affine: bool = True,
        weight_offset: float = 0.0,
        dtype: npt.DTypeLike = np.float32,
        *,
        axis: SupportsIndex | Sequence[SupportsIndex] | None = None,
    ) -> None:
        self.weight_offset = number("weight_offset", weight_offset)
        super().__init__(
            normalized_shape,
            None if eps is None else not_negative("eps", eps),
            elementwise_affine,
            axis,
            dtype,
            bias=False,
        )
        wide = float_dtype(dtype) == np.float64
        self._epsilon = float(np.finfo(np.float64 if wide else np.float32).eps)

    def _start(self, name: str) -> Any:
        return 1.0 - self.weight_offset

    def _options(self) -> dict[str, Any]:
        eps = self._epsilon if self.eps is None else self.eps
        return {**super()._options(), "eps": eps}
