"""Divisive normalization by a weighted sum over the channels: forward, backward and layer.

On a CUDA device the parameters are arrays there. Their values are not looked at, since the call
would wait for them; a divisor that becomes negative gives NaN.
"""

from __future__ import annotations

from typing import Any, Generic, SupportsIndex

import numpy as np
import numpy.typing as npt

from .._arguments import above_zero, integer, positive
from .._attributes import always
from .._core import divisive_norm as _divisive_norm
from .._core import divisive_norm_backward as _divisive_norm_backward
from .._dtypes import float_dtype, new_array
from .._layer import _ChannelLayer
from .._owned import clamped
from .._typing import A, Floats, NamedTuple

__all__ = ["DivisiveNorm", "divisive_norm", "divisive_norm_backward"]


class DivisiveNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`divisive_norm`; None where the parameter was None."""

    dx: A
    dweights: A
    dsigma: A | float
    dgain: A | float | None


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
    return _divisive_norm(x, weights, sigma, gain, exponent, power, channel_axis, out)


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
        *_divisive_norm_backward(dy, x, weights, sigma, gain, exponent, power, channel_axis, out)
    )


class DivisiveNorm(_ChannelLayer):
    r"""Divisive normalization by the activity of all channels at a position.

    .. math:: y_j = gain_j \frac{\mathrm{sgn}(x_j) |x_j|^m}
              {(\sigma_j^n + \sum_k weights_{jk} |x_k|^n)^{m / n}}

    with :math:`n` the exponent and :math:`m` the power.

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    exponent, power : float, default 2 and 1
        Greater than 0. ``power=exponent`` is Heeger's ratio.
    channel_axis : int, default 1
        1 for NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64. x may have another one.

    Attributes
    ----------
    parameters : dict
        ``weights`` (starts at ``1 / num_features``: the mean over the channels), of shape
        (num_features, num_features), ``sigma`` and ``gain`` (start at 1), of shape
        (num_features,). ``weights`` and ``sigma`` must not be negative: call `project` after each
        step.

    Raises
    ------
    ValueError
        For an x without `num_features` channels.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Heeger, "Normalization of Cell Responses in Cat Striate Cortex", 1992.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.DivisiveNorm(2)
    >>> layer(np.array([[1.0, 7.0]])).round(3)
    array([[0.196, 1.373]])
    """

    _function = staticmethod(divisive_norm)
    _function_backward = staticmethod(divisive_norm_backward)
    _leading = ("num_features",)
    _named = ("exponent", "power")
    _shared = ("exponent", "power", "channel_axis")

    weights = always("What each channel adds to the divisors of the others.")
    sigma = always("Where division sets in.")
    gain = always("Scale of each channel.")

    def __init__(
        self,
        num_features: SupportsIndex,
        exponent: float = 2.0,
        power: float = 1.0,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.exponent, self.power = above_zero("exponent", exponent), above_zero("power", power)
        self.num_features = n = positive("num_features", num_features)
        self.channel_axis = integer("channel_axis", channel_axis)
        kind = float_dtype(dtype)
        parameters = {
            name: new_array(shape, kind, "num_features")
            for name, shape in (("weights", (n, n)), ("sigma", (n,)), ("gain", (n,)))
        }
        super().__init__(parameters)

    def _start(self, name: str) -> Any:
        return 1 / self.num_features if name == "weights" else 1.0

    def project(self) -> None:
        """Raise negative ``weights`` and ``sigma`` to 0, in place; after each optimizer step."""
        for name in ("weights", "sigma"):
            values = self.parameters[name]
            values[...] = clamped(values, 0)
