"""Local divisive normalization: forward, backward and layer.

There are no statistics: backward computes what it needs again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Generic, SupportsIndex

import numpy as np
import numpy.typing as npt

from .._arguments import flag, integer, number, positive, sizes
from .._attributes import always, maybe
from .._core import local_divisive_norm as _local_divisive_norm
from .._core import local_divisive_norm_backward as _local_divisive_norm_backward
from .._dtypes import float_dtype
from .._interop import Array
from .._layer import _ChannelLayer, affine_parameters
from .._typing import A, Floats, NamedTuple

__all__ = ["LocalDivisiveNorm", "local_divisive_norm", "local_divisive_norm_backward"]


class LocalDivisiveNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`local_divisive_norm`; None for a parameter that was not given."""

    dx: A
    dsigma: A | float
    dweight: A | None
    dbias: A | None


def local_divisive_norm(
    x: A,
    sigma: Floats | float,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    summation_window: int | Sequence[int],
    suppression_window: int | Sequence[int],
    channel_axis: int = 1,
    out: A | None = None,
) -> A:
    """Subtract a local mean and divide by a local standard deviation.

    ``v = x - mean_A(x)`` and ``y = weight * v / sqrt(sigma**2 + mean_B(v**2)) + bias``. The means
    are over all channels and a window over space around each position, or what of it lies inside;
    ``A`` is the summation window and ``B`` the suppression window. Each ``v`` in ``mean_B`` is
    centred by its own window's mean. Where both ``sigma`` and the deviation are 0, ``y`` is
    ``bias``. With windows of size 1 it is layer normalization over the channels.

    Parameters
    ----------
    x : array of shape (N, C, ...)
        With channels at ``channel_axis`` and any number of spatial axes, also none.
    sigma : array of shape (C,) or (), or float
        What a deviation is large or small beside.
    weight, bias : array of shape (C,), optional
        By default 1 and 0.
    summation_window, suppression_window : int or sequence of int
        Odd sizes: one for all spatial axes, or one for each.
    channel_axis : int
        1 for NCHW, -1 for channels-last.
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
        For shapes that do not fit, an even size, an axis out of range, or an ``out`` that does not
        fit or overlaps.

    References
    ----------
    Ren, Liao, Urtasun, Sinz and Zemel, "Normalizing the Normalizers: Comparing and Extending
    Network Normalization Schemes", 2017.

    Examples
    --------
    A step of 1 and one of 1000 come out alike:

    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[[0.0, 1.0, 0.0, 0.0, 1000.0, 0.0]]])
    >>> window = dict(summation_window=3, suppression_window=1)
    >>> np.round(nc.local_divisive_norm(x, 0.1, **window), 2)
    array([[[-0.98,  0.99, -0.96, -1.  ,  1.  , -1.  ]]])
    """
    return _local_divisive_norm(
        x,
        _real(sigma),
        weight,
        bias,
        _window(summation_window),
        _window(suppression_window),
        channel_axis,
        out,
    )


def local_divisive_norm_backward(
    dy: A,
    x: A,
    sigma: Floats | float,
    weight: Floats | None = None,
    bias: Floats | None = None,
    *,
    summation_window: int | Sequence[int],
    suppression_window: int | Sequence[int],
    channel_axis: int = 1,
    out: A | None = None,
) -> LocalDivisiveNormGradients[A]:
    """Gradients of :func:`local_divisive_norm`.

    With ``r = 1 / sqrt(sigma**2 + mean_B(v**2))`` and ``g = weight * dy``, and the transposed means
    ``mean_A^T`` and ``mean_B^T``: ``q = -0.5 * g * v * r**3``,
    ``dv = g * r + 2 * v * mean_B^T(q)``, ``dx = dv - mean_A^T(dv)``; and sums of
    ``2 * sigma * q``, ``dy * v * r`` and ``dy``.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x, sigma, weight, bias, summation_window, suppression_window, channel_axis
        As in the forward call.
    out : array like x, optional
        Where ``dx`` is written; may be x or dy itself.

    Returns
    -------
    LocalDivisiveNormGradients
        ``dx`` like x, ``dsigma`` like sigma (a float for a float), ``dweight`` and ``dbias`` like
        the parameters, or None.

    Raises
    ------
    TypeError, ValueError
        As :func:`local_divisive_norm`; also where ``dy`` does not have x's shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x, dy = np.array([[[3.0, 5.0]]]), np.array([[[0.0, 1.0]]])
    >>> window = dict(summation_window=3, suppression_window=3)
    >>> grads = nc.local_divisive_norm_backward(dy, x, 0.75, **window)
    >>> grads.dx, round(grads.dsigma, 3)
    (array([[[-0.144,  0.144]]]), -0.384)
    """
    dx, dsigma, dweight, dbias = _local_divisive_norm_backward(
        dy,
        x,
        _real(sigma),
        weight,
        bias,
        _window(summation_window),
        _window(suppression_window),
        channel_axis,
        out,
    )
    of_number = isinstance(sigma, (int, float))
    return LocalDivisiveNormGradients(
        dx, float(np.asarray(dsigma)) if of_number else dsigma, dweight, dbias
    )


def _real(sigma: Any) -> Any:
    """A plain integer is a number here, but integer arrays are none."""
    return float(sigma) if isinstance(sigma, int) else sigma


def _window(sizes: int | Sequence[int]) -> Any:
    """Tuples, lists, and whatever else has a length, such as a shape."""
    return tuple(sizes) if isinstance(sizes, Sequence) and not isinstance(sizes, str) else sizes


def _odd_sizes(name: str, value: SupportsIndex | Iterable[SupportsIndex]) -> int | tuple[int, ...]:
    result: int | tuple[int, ...]
    result = sizes(name, value) if isinstance(value, Iterable) else positive(name, value)
    for n in result if isinstance(result, tuple) else (result,):
        if n % 2 == 0:
            raise ValueError(f"{name} is {n}, expected an odd number")
    return result


class LocalDivisiveNorm(_ChannelLayer):
    r"""Divisive normalization by windows over space and all channels.

    .. math:: v = x - \mathrm{mean}_A(x), \qquad
        y = w \frac{v}{\sqrt{\sigma^2 + \mathrm{mean}_B(v^2)}} + b

    Parameters
    ----------
    num_features : int
        Number of channels.
    summation_window, suppression_window : int or sequence of int, default 5
        Odd sizes of the windows A and B: one for all spatial axes, or one for each.
    sigma : float, default 1.0
        Where ``sigma`` starts.
    affine : bool, default True
        Whether there are ``weight`` (starts at 1) and ``bias`` (starts at 0).
    channel_axis : int, default 1
        Axis of the channels: 1 for NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64.

    Attributes
    ----------
    parameters : dict
        ``sigma`` of shape (), ``weight`` and ``bias`` of shape (num_features,).

    Raises
    ------
    ValueError
        For a number of channels or a size below 1 or an even size; in a call for an input with
        another number of channels.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Ren, Liao, Urtasun, Sinz and Zemel, "Normalizing the Normalizers: Comparing and Extending
    Network Normalization Schemes", 2017.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.LocalDivisiveNorm(3, 5, 7)
    >>> layer
    LocalDivisiveNorm(3, 5, 7)
    >>> y = layer(np.random.default_rng(0).normal(2, 1, (4, 3, 8, 8)).astype(np.float32))
    >>> layer.backward(y).shape, layer.grads["sigma"].shape
    ((4, 3, 8, 8), ())
    """

    _function: ClassVar[Callable[..., Any]] = staticmethod(local_divisive_norm)
    _function_backward: ClassVar[Callable[..., Any]] = staticmethod(local_divisive_norm_backward)
    _leading = ("num_features", "summation_window", "suppression_window")
    _named = ()
    _unusual: ClassVar[dict[str, object]] = {"affine": True, "channel_axis": 1}
    _shared = ("summation_window", "suppression_window", "channel_axis")

    sigma = always("What a deviation is large or small beside.")
    weight = maybe("Scale of each channel; None without `affine`.")
    bias = maybe("Shift of each channel; None without `affine`.")

    def __init__(
        self,
        num_features: SupportsIndex,
        summation_window: SupportsIndex | Iterable[SupportsIndex] = 5,
        suppression_window: SupportsIndex | Iterable[SupportsIndex] = 5,
        sigma: float = 1.0,
        affine: bool = True,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.num_features = positive("num_features", num_features)
        self.summation_window = _odd_sizes("summation_window", summation_window)
        self.suppression_window = _odd_sizes("suppression_window", suppression_window)
        self.affine = flag("affine", affine)
        self.channel_axis = integer("channel_axis", channel_axis)
        self._sigma = number("sigma", sigma)
        parameters: dict[str, Array] = {"sigma": np.empty((), float_dtype(dtype))}
        shape = (self.num_features,)
        super().__init__(
            parameters | affine_parameters(shape, dtype, weight=self.affine, bias=self.affine)
        )

    def _start(self, name: str) -> Any:
        return self._sigma if name == "sigma" else super()._start(name)
