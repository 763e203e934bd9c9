"""Weight normalization and division by a norm, forward and backward.

The rules of :mod:`normcore.functional` hold here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic

from . import _core
from ._typing import A, Floats, NamedTuple

__all__ = [
    "WeightNormGradients",
    "normalize",
    "normalize_backward",
    "weight_norm",
    "weight_norm_backward",
]


class WeightNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`weight_norm`."""

    dv: A
    dg: A


def weight_norm(
    v: A,
    g: Floats | float,
    *,
    axis: int | None = 0,
    eps: float = 0.0,
    out: A | None = None,
) -> A:
    """Write a weight as a direction and a length.

    ``w = g * v / sqrt(sum(v**2) + eps)``, the sum being over all axes but ``axis``. Where it is 0,
    ``w`` is 0; no square overflows or underflows.

    Parameters
    ----------
    v : array of any shape
        The direction.
    g : array
        The length, for each position of ``axis``: shape ``(v.shape[axis],)``, also with v's other
        axes as 1, or a single value for all.
    axis : int or None
        The axis that is kept, 0 for the output channels of PyTorch's layers; None for one norm of
        the whole of ``v``.
    eps : float
        Added to the sum of squares; at least 0.
    out : array like v, optional
        Where ``w`` is written; may be v itself.

    Returns
    -------
    array
        ``w``, like v.

    Raises
    ------
    TypeError
        For a dtype that is no float, or a missing g.
    ValueError
        For shapes that do not fit, an axis out of range, a negative eps, or an ``out`` that does
        not fit or overlaps.

    References
    ----------
    Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training
    of Deep Neural Networks", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.weight_norm(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([10.0, 10.0]))
    array([[6., 8.],
           [0., 0.]])
    """
    return _core.weight_norm(v, g, axis, eps, out)


def weight_norm_backward(
    dw: A,
    v: A,
    g: Floats | float,
    *,
    axis: int | None = 0,
    eps: float = 0.0,
    out: A | None = None,
) -> WeightNormGradients[A]:
    """Gradients of :func:`weight_norm`.

    With ``s = 1 / sqrt(sum(v**2) + eps)``: ``dg = s * sum(dw * v)`` and
    ``dv = g * s * (dw - s**2 * sum(dw * v) * v)``; both 0 where ``v`` is.

    Parameters
    ----------
    dw : array of v's shape and dtype
        Gradient of w; any strides, also broadcast ones.
    v, g, axis, eps
        As in the forward call.
    out : array like v, optional
        Where ``dv`` is written.

    Returns
    -------
    WeightNormGradients
        ``dv`` like v, ``dg`` like g.

    Raises
    ------
    TypeError, ValueError
        As :func:`weight_norm`; also where ``dw`` does not have v's shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> v, g = np.array([[3.0, 4.0]]), np.array([5.0])
    >>> nc.weight_norm_backward(np.array([[1.0, 0.0]]), v, g)
    WeightNormGradients(dv=array([[ 0.64, -0.48]]), dg=array([0.6]))
    """
    return WeightNormGradients(*_core.weight_norm_backward(dw, v, g, axis, eps, out))


def normalize(
    x: A,
    *,
    ord: float = 2,
    axis: int | Sequence[int] | None = -1,
    eps: float = 1e-12,
    out: A | None = None,
) -> A:
    """Divide by the norm over the given axes.

    ``y = x / max(norm, eps)``; with ``eps=0``, zeros give zeros. The norm is ``sqrt(sum(x**2))``,
    ``sum(abs(x))`` or ``max(abs(x))``; no square overflows or underflows.

    Parameters
    ----------
    x : array of any shape with at least one axis
    ord : {2, 1, inf}
        The order of the norm.
    axis : int, sequence of int or None
        Axes over which the norm is taken, in any order; None for all.
    eps : float
        The least divisor; at least 0.
    out : array like x, optional
        Where ``y`` is written; may be x itself.

    Returns
    -------
    array
        ``y``, like x.

    Raises
    ------
    TypeError
        For a dtype that is no float.
    ValueError
        For another order, axes out of range or named twice, a negative eps, or an ``out`` that
        does not fit or overlaps.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.normalize(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    return _core.normalize(x, ord, axis, eps, out)


def normalize_backward(
    dy: A,
    x: A,
    *,
    ord: float = 2,
    axis: int | Sequence[int] | None = -1,
    eps: float = 1e-12,
    out: A | None = None,
) -> A:
    """Gradient of :func:`normalize` with respect to x.

    ``dx = (dy - slope * sum(dy * y)) / norm``, or ``dy / eps`` where the norm is below ``eps``; the
    slope of the norm is ``y``, ``sign(x)``, or the sign of the largest element, which several that
    are equally large share.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x, ord, axis, eps
        As in the forward call.
    out : array like x, optional
        Where ``dx`` is written.

    Returns
    -------
    array
        ``dx``, like x.

    Raises
    ------
    TypeError, ValueError
        As :func:`normalize`; also where ``dy`` does not have x's shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.normalize_backward(np.array([1.0, 0.0]), np.array([3.0, 4.0]))
    array([ 0.128, -0.096])
    """
    return _core.normalize_backward(dy, x, ord, axis, eps, out)
