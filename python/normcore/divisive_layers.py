"""The layers of divisive normalization."""

from __future__ import annotations

from typing import Any, ClassVar, SupportsIndex

import numpy as np
import numpy.typing as npt

from . import divisive
from ._arguments import above_zero, flag, integer, not_negative, number, positive
from ._attributes import always
from ._dtypes import float_dtype, new_array
from ._interop import Array
from ._layer import _Layer

__all__ = ["GDN", "DivisiveNorm"]


class _MixingLayer(_Layer):
    """A layer whose parameters mix the channels, and which has no statistics."""

    _has_stats = False

    def __init__(
        self, num_features: SupportsIndex, channel_axis: SupportsIndex, parameters: dict[str, Array]
    ) -> None:
        self.num_features = positive("num_features", num_features)
        self.channel_axis = integer("channel_axis", channel_axis)
        super().__init__(parameters)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        axis = self.channel_axis
        if not -len(shape) <= axis < len(shape) or shape[axis] != self.num_features:
            raise ValueError(
                f"x has shape {shape}, expected {self.num_features} channels along axis {axis}"
            )


class DivisiveNorm(_MixingLayer):
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

    _function = staticmethod(divisive.divisive_norm)
    _function_backward = staticmethod(divisive.divisive_norm_backward)
    _leading = ("num_features",)
    _named = ("exponent", "power")
    _unusual: ClassVar[dict[str, object]] = {"channel_axis": 1}

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
        n, kind = positive("num_features", num_features), float_dtype(dtype)
        parameters = {
            name: new_array(shape, kind, "num_features")
            for name, shape in (("weights", (n, n)), ("sigma", (n,)), ("gain", (n,)))
        }
        super().__init__(n, channel_axis, parameters)

    def _start(self, name: str) -> Any:
        return 1 / self.num_features if name == "weights" else 1.0

    def _options(self) -> dict[str, Any]:
        return {
            "exponent": self.exponent,
            "power": self.power,
            "channel_axis": self.channel_axis,
        }

    def project(self) -> None:
        """Raise negative ``weights`` and ``sigma`` to 0, in place; after each optimizer step."""
        for name in ("weights", "sigma"):
            values = self.parameters[name]
            np.maximum(values, values.dtype.type(0), out=values)


class GDN(_MixingLayer):
    r"""Generalized divisive normalization, or its approximate inverse.

    .. math:: y_i = x_i \Big/ \Big(\beta_i + \sum_j \gamma_{ij} |x_j|^\alpha\Big)^\epsilon

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

    _function = staticmethod(divisive.gdn)
    _function_backward = staticmethod(divisive.gdn_backward)
    _leading = ("num_features",)
    _named = ("inverse", "alpha", "epsilon")
    _unusual: ClassVar[dict[str, object]] = {"beta_min": 1e-6, "channel_axis": 1}
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
        n = positive("num_features", num_features)
        self._gamma_init = float(gamma_init)
        parameters = {
            name: new_array(shape, kind, "num_features")
            for name, shape in (("beta", (n,)), ("gamma", (n, n)))
        }
        super().__init__(n, channel_axis, parameters)

    def _start(self, name: str) -> Any:
        n = self.num_features
        effective = np.ones(n) if name == "beta" else self._gamma_init * np.eye(n)
        return np.sqrt(effective + self.pedestal)

    def _bound(self, name: str) -> Array:
        least = self.beta_min if name == "beta" else 0.0
        # As a number of the parameter's dtype: a stored value at the bound is not below it.
        return np.asarray(np.sqrt(least + self.pedestal), self.parameters[name].dtype)

    def _values(self) -> dict[str, Array]:
        return {"beta": self.effective_beta, "gamma": self.effective_gamma}

    def _value(self, name: str) -> Array:
        bounded = np.maximum(self.parameters[name], self._bound(name)).astype(np.float64)
        value = np.maximum(bounded**2 - self.pedestal, 0)
        return value.astype(self.parameters[name].dtype)

    @property
    def effective_beta(self) -> Array:
        return self._value("beta")

    @property
    def effective_gamma(self) -> Array:
        return self._value("gamma")

    def _options(self) -> dict[str, Any]:
        return {
            "inverse": self.inverse,
            "alpha": self.alpha,
            "epsilon": self.epsilon,
            "channel_axis": self.channel_axis,
        }

    def _parameter_gradients(self, gradients: Any) -> dict[str, Array]:
        result = {}
        for name, stored in self.parameters.items():
            bound = self._bound(name)
            slope = 2 * np.maximum(stored, bound) * getattr(gradients, f"d{name}")
            result[name] = np.where((stored >= bound) | (slope < 0), slope, 0)
        return result
