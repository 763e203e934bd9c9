"""Divisive normalization by a weighted sum over the channels, forward and backward.

The rules of :mod:`normcore.functional` hold here too; arrays on a CUDA device are refused.
"""

from __future__ import annotations

from typing import Generic

from . import _core
from ._typing import A, Floats, NamedTuple

__all__ = [
    "DivisiveNormGradients",
    "GDNGradients",
    "divisive_norm",
    "divisive_norm_backward",
    "gdn",
    "gdn_backward",
]


class DivisiveNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`divisive_norm`; None where the parameter was None."""

    dx: A
    dweights: A
    dsigma: A | float
    dgain: A | float | None


class GDNGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`gdn`."""

    dx: A
    dbeta: A
    dgamma: A
    dalpha: float
    depsilon: float


def divisive_norm(
    x: A,
    weights: Floats,
    sigma: Floats | float,
    *,
    gain: Floats | float | None = None,
    exponent: float = 2.0,
    power: float = 1.0,
    channel_axis: int = 1,
    out: A | None = None,
) -> A:
    """Divide every element by the pooled activity of the channels at its position.

    ``y[j] = gain[j] * sign(x[j]) * abs(x[j])**power / d[j]**(power / exponent)`` with
    ``d[j] = sigma[j]**exponent + sum(weights[j, k] * abs(x[k])**exponent over k)``.
    With ``power=exponent`` this is Heeger's ratio, with ``power=1`` and ``exponent=2`` the division
    by a root.

    Parameters
    ----------
    x : array of shape (N, C, ...) or, with ``channel_axis=-1``, (N, ..., C)
    weights : array of shape (C, C)
        What channel k adds to the divisor of channel j; finite and not negative.
    sigma : array of shape (C,), or a number
        Where division sets in; finite and not negative. With 0, positions at which all that counts
        is 0 give 0, and a gradient of 0.
    gain : array of shape (C,), or a number, optional
        1 when omitted.
    exponent, power : float
        Greater than 0.
    channel_axis : int
        The axis of C.
    out : array like x, optional
        Where ``y`` is written; may be x itself.

    Returns
    -------
    array
        ``y``, like x. What would overflow or vanish in float32 is computed in float64.

    Raises
    ------
    TypeError
        For a dtype that is no float.
    ValueError
        For shapes that do not fit, negative or infinite weights or sigma, an exponent or power that
        is not above 0, an axis out of range, or an ``out`` that does not fit or overlaps.

    References
    ----------
    Heeger, "Normalization of Cell Responses in Cat Striate Cortex", 1992. Carandini and Heeger,
    "Normalization as a Canonical Neural Computation", 2012.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.divisive_norm(np.array([[3.0, 4.0]]), np.ones((2, 2)), 0.0)
    array([[0.6, 0.8]])
    """
    return _core.divisive_norm(x, weights, sigma, gain, exponent, power, channel_axis, out)


def divisive_norm_backward(
    dy: A,
    x: A,
    weights: Floats,
    sigma: Floats | float,
    *,
    gain: Floats | float | None = None,
    exponent: float = 2.0,
    power: float = 1.0,
    channel_axis: int = 1,
    out: A | None = None,
) -> DivisiveNormGradients[A]:
    """Gradients of :func:`divisive_norm`.

    With ``t = -power / exponent * dy * y / d``, the gradient of the divisors:
    ``dx = dy * slope + exponent * abs(x)**(exponent - 1) * sign(x) * (weights.T @ t)``, where
    ``slope`` is that of y with fixed divisors, ``dweights = sum(t * abs(x)**exponent)`` over all
    pairs of channels, ``dsigma = exponent * sigma**(exponent - 1) * sum(t)`` and
    ``dgain = sum(dy * y) / gain``. Slopes that are infinite at 0 count as 0.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x, weights, sigma, gain, exponent, power, channel_axis
        As in the forward call.
    out : array like x, optional
        Where ``dx`` is written; may be x or dy.

    Returns
    -------
    DivisiveNormGradients
        ``dx`` like x, the others like their parameters; floats for numbers.

    Raises
    ------
    TypeError, ValueError
        As :func:`divisive_norm`; also where ``dy`` does not have x's shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x, weights = np.array([[3.0, 4.0]]), np.ones((2, 2))
    >>> nc.divisive_norm_backward(np.array([[1.0, 0.0]]), x, weights, 0.0).dx
    array([[ 0.128, -0.096]])
    """
    return DivisiveNormGradients(
        *_core.divisive_norm_backward(
            dy, x, weights, sigma, gain, exponent, power, channel_axis, out
        )
    )


def gdn(
    x: A,
    beta: Floats,
    gamma: Floats,
    *,
    inverse: bool = False,
    alpha: float = 2.0,
    epsilon: float = 0.5,
    channel_axis: int = 1,
    out: A | None = None,
) -> A:
    """Generalized divisive normalization, or its approximate inverse.

    ``y[i] = x[i] / d[i]**epsilon``, with ``inverse=True`` ``x[i] * d[i]**epsilon``, where
    ``d[i] = beta[i] + sum(gamma[i, j] * abs(x[j])**alpha over j)``. ``alpha=1, epsilon=1`` is the
    cheaper GDN1.

    Parameters
    ----------
    x : array of shape (N, C, ...) or, with ``channel_axis=-1``, (N, ..., C)
    beta : array of shape (C,)
        Finite and not negative. With 0, positions at which all that counts is 0 give 0, and a
        gradient of 0.
    gamma : array of shape (C, C)
        What channel j adds to the divisor of channel i (TensorFlow Compression has it transposed);
        finite and not negative.
    inverse : bool
        Whether to multiply instead.
    alpha : float
        Greater than 0.
    epsilon : float
    channel_axis : int
        The axis of C.
    out : array like x, optional
        Where ``y`` is written; may be x itself.

    Returns
    -------
    array
        ``y``, like x. What would overflow or vanish in float32 is computed in float64.

    Raises
    ------
    TypeError
        For a dtype that is no float.
    ValueError
        For shapes that do not fit, negative or infinite beta or gamma, an alpha that is not above
        0, an axis out of range, or an ``out`` that does not fit or overlaps.

    References
    ----------
    Ballé, Laparra and Simoncelli, "Density Modeling of Images using a Generalized Normalization
    Transformation", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.gdn(np.array([[3.0, -4.0]]), np.array([0.0, 9.0]), np.ones((2, 2)), alpha=1, epsilon=1)
    array([[ 0.42857143, -0.25      ]])
    """
    return _core.gdn(x, beta, gamma, inverse, alpha, epsilon, channel_axis, out)


def gdn_backward(
    dy: A,
    x: A,
    beta: Floats,
    gamma: Floats,
    *,
    inverse: bool = False,
    alpha: float = 2.0,
    epsilon: float = 0.5,
    channel_axis: int = 1,
    out: A | None = None,
) -> GDNGradients[A]:
    """Gradients of :func:`gdn`.

    With ``t = -epsilon * dy * y / d`` (``+`` for the inverse), the gradient of the divisors:
    ``dx = dy / d**epsilon + alpha * abs(x)**(alpha - 1) * sign(x) * (gamma.T @ t)``,
    ``dbeta = sum(t)``, ``dgamma = sum(t * abs(x)**alpha)`` over all pairs of channels,
    ``dalpha = sum(abs(x)**alpha * log(abs(x)) * (gamma.T @ t))`` and
    ``depsilon = -sum(dy * y * log(d))`` (``+`` for the inverse).

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x, beta, gamma, inverse, alpha, epsilon, channel_axis
        As in the forward call.
    out : array like x, optional
        Where ``dx`` is written; may be x or dy.

    Returns
    -------
    GDNGradients
        ``dx`` like x, ``dbeta`` and ``dgamma`` like their parameters, ``dalpha`` and ``depsilon``
        floats.

    Raises
    ------
    TypeError, ValueError
        As :func:`gdn`; also where ``dy`` does not have x's shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x, beta, gamma = np.array([[3.0, 4.0]]), np.zeros(2), np.ones((2, 2))
    >>> nc.gdn_backward(np.array([[1.0, 0.0]]), x, beta, gamma).dx
    array([[ 0.128, -0.096]])
    """
    return GDNGradients(
        *_core.gdn_backward(dy, x, beta, gamma, inverse, alpha, epsilon, channel_axis, out)
    )
