"""Division by a norm: forward, backward."""

from __future__ import annotations

from collections.abc import Sequence

from .._core import normalize as _normalize
from .._core import normalize_backward as _normalize_backward
from .._typing import A

__all__ = ["normalize", "normalize_backward"]


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
    return _normalize(x, ord, axis, eps, out)


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
    return _normalize_backward(dy, x, ord, axis, eps, out)
