"""Generalized divisive normalization (GDN): forward, backward and layer.

On a CUDA device the parameters are arrays there. Their values are not looked at, since the call
would wait for them; a divisor that becomes negative gives NaN.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic, SupportsIndex

import numpy as np
import numpy.typing as npt

from .._arguments import above_zero, flag, integer, not_negative, number, positive
from .._attributes import always
from .._core import gdn as _gdn
from .._core import gdn_backward as _gdn_backward
from .._dtypes import float_dtype, new_array
from .._interop import Array
from .._layer import _ChannelLayer
from .._owned import cast, clamped, numpy_dtype, where, wide
from .._typing import A, Floats, NamedTuple

__all__ = ["GDN", "gdn", "gdn_backward"]


class GDNGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`gdn`."""

    dx: A
    dbeta: A
    dgamma: A
    dalpha: float
    depsilon: float


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
    return _gdn(x, beta, gamma, inverse, alpha, epsilon, channel_axis, out)


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
        floats; on a CUDA device float64 arrays of no axes there.

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
        *_gdn_backward(dy, x, beta, gamma, inverse, alpha, epsilon, channel_axis, out)
    )


class GDN(_ChannelLayer):
    r"""Generalized divisive normalization, or its approximate inverse.

    .. math:: y_i = \frac{x_i}{(\beta_i + \sum_j \gamma_{ij} |x_j|^\alpha)^\epsilon}

    What is trained are :math:`q_\beta` and :math:`q_\gamma`, with
    :math:`\beta = \max(q_\beta, \sqrt{b + p})^2 - p` and
    :math:`\gamma = \max(q_\gamma, \sqrt p)^2 - p`, :math:`b` being the least beta and
    :math:`p = 2^{-36}`: any step leaves the divisor positive.

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    inverse : bool, default False
        Whether to multiply instead.
    alpha, epsilon : float, default 2 and 0.5
        1 and 1 is GDN1.
    beta_min : float, default 1e-6
        Bound of beta.
    gamma_init : float, default 0.1
        Where the diagonal of gamma starts; the rest starts at 0, beta at 1.
    channel_axis : int, default 1
        1 for NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the parameters: float32 or float64, as float16 has no place for the pedestal p. x may
        have another one.

    Attributes
    ----------
    parameters : dict
        ``beta`` and ``gamma``: the stored :math:`q`, of shape (num_features,) and
        (num_features, num_features). Where one is below its bound, its gradient passes only if
        descent would raise it.
    effective_beta, effective_gamma : numpy.ndarray
        What they stand for: what `normcore.gdn` is called with.

    Raises
    ------
    ValueError
        For an x without `num_features` channels, or bounds that are negative.
    TypeError
        For a dtype that is not one of the two.

    References
    ----------
    Ballé, Laparra and Simoncelli, "Density Modeling of Images using a Generalized Normalization
    Transformation", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.GDN(2)
    >>> layer(np.array([[1.0, 10.0]])).round(3)
    array([[0.953, 3.015]])
    """

    _function = staticmethod(gdn)
    _function_backward = staticmethod(gdn_backward)
    _leading = ("num_features",)
    _named = ("inverse", "alpha", "epsilon")
    _unusual: ClassVar[dict[str, object]] = {"beta_min": 1e-6, "channel_axis": 1}
    _shared = ("inverse", "alpha", "epsilon", "channel_axis")
    #: Added before the root is taken, so that its slope at 0 is finite.
    pedestal: ClassVar[float] = 2.0**-36

    beta = always("The stored root of beta.")
    gamma = always("The stored root of gamma.")

    def __init__(
        self,
        num_features: SupportsIndex,
        inverse: bool = False,
        alpha: float = 2.0,
        epsilon: float = 0.5,
        beta_min: float = 1e-6,
        gamma_init: float = 0.1,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        kind = float_dtype(dtype)
        if kind.itemsize < 4:
            raise TypeError(f"dtype is {kind.name}, expected float32 or float64")
        self.inverse = flag("inverse", inverse)
        self.alpha, self.epsilon = above_zero("alpha", alpha), number("epsilon", epsilon)
        self.beta_min = not_negative("beta_min", beta_min)
        gamma_init = not_negative("gamma_init", gamma_init)
        self.num_features = n = positive("num_features", num_features)
        self.channel_axis = integer("channel_axis", channel_axis)
        self._gamma_init = float(gamma_init)
        parameters = {
            name: new_array(shape, kind, "num_features")
            for name, shape in (("beta", (n,)), ("gamma", (n, n)))
        }
        super().__init__(parameters)

    def _start(self, name: str) -> Any:
        n = self.num_features
        effective = np.ones(n) if name == "beta" else self._gamma_init * np.eye(n)
        return np.sqrt(effective + self.pedestal)

    def _bound(self, name: str) -> float:
        least = self.beta_min if name == "beta" else 0.0
        # As a number of the parameter's dtype: a stored value at the bound is not below it.
        kind = numpy_dtype(self.parameters[name]).type
        return float(kind(np.sqrt(least + self.pedestal)))

    def _values(self) -> dict[str, Array]:
        return {"beta": self.effective_beta, "gamma": self.effective_gamma}

    def _value(self, name: str) -> Array:
        stored: Any = self.parameters[name]
        bounded = wide(clamped(stored, self._bound(name)))
        value: Array = cast(clamped(bounded**2 - self.pedestal, 0), stored.dtype)
        return value

    @property
    def effective_beta(self) -> Array:
        return self._value("beta")

    @property
    def effective_gamma(self) -> Array:
        return self._value("gamma")

    def _parameter_gradients(self, gradients: Any) -> dict[str, Array]:
        result = {}
        for name, stored in self.parameters.items():
            bound = self._bound(name)
            slope = 2 * clamped(stored, bound) * getattr(gradients, f"d{name}")
            result[name] = where((stored >= bound) | (slope < 0), slope, 0)
        return result
