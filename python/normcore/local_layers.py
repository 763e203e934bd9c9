"""The layers of normalization by what is near, with torch's names and defaults where torch has one.

Neither has statistics: backward computes what it needs again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, SupportsIndex

import numpy as np
import numpy.typing as npt

from . import local
from ._arguments import choice, flag, integer, not_negative, number, positive, sizes
from ._attributes import always, maybe
from ._dtypes import float_dtype
from ._interop import Array
from ._layer import _Layer, affine_parameters

__all__ = ["LocalDivisiveNorm", "LocalResponseNorm"]


class _LocalLayer(_Layer):
    """A layer whose functions neither return nor take statistics."""

    _has_stats = False


class LocalResponseNorm(_LocalLayer):
    r"""Local response normalization: an element over its neighbours' sum of squares.

    .. math:: y = x \left(k + \frac{\alpha}{n} \sum_{\text{window}} x^2\right)^{-\beta}

    Parameters
    ----------
    size : int
        Of the window.
    alpha : float, default 1e-4
    beta : float, default 0.75
    k : float, default 1.0
    across : {"channels", "space"}, default "channels"
        What the window is along; over space it is `size` along each axis, within the channel.
    even_window : {"torch", "onnx"}, default "torch"
        Where a window of even size is longer: below its element, or above it.
    channel_axis : int, default 1
        Axis of the channels: 1 for NCHW, -1 for channels-last.

    Raises
    ------
    ValueError
        For a size below 1; in a call for an input of fewer than three axes, as torch does.

    References
    ----------
    Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural
    Networks", 2012.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.LocalResponseNorm(2, alpha=1.0)
    >>> layer
    LocalResponseNorm(2, alpha=1.0, beta=0.75, k=1.0)
    >>> y = layer(np.ones((4, 3, 8, 8), np.float32))
    >>> layer.backward(y).shape
    (4, 3, 8, 8)
    """

    _function: ClassVar[Callable[..., Any]] = staticmethod(local.local_response_norm)
    _function_backward: ClassVar[Callable[..., Any]] = staticmethod(
        local.local_response_norm_backward
    )
    _leading = ("size",)
    _named = ("alpha", "beta", "k")
    _unusual: ClassVar[dict[str, object]] = {
        "across": "channels",
        "even_window": "torch",
        "channel_axis": 1,
    }

    def __init__(
        self,
        size: SupportsIndex,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        across: Literal["channels", "space"] = "channels",
        even_window: Literal["torch", "onnx"] = "torch",
        channel_axis: SupportsIndex = 1,
    ) -> None:
        self.size = positive("size", size)
        self.alpha, self.beta = not_negative("alpha", alpha), number("beta", beta)
        self.k = not_negative("k", k)
        self.across = choice("across", across, ("channels", "space"))
        self.even_window = choice("even_window", even_window, ("torch", "onnx"))
        self.channel_axis = integer("channel_axis", channel_axis)
        super().__init__({})

    def _options(self) -> dict[str, Any]:
        names = (*self._leading, *self._named, *self._unusual)
        return {name: getattr(self, name) for name in names}

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) < 3:
            raise ValueError(f"x has shape {shape}, expected at least three axes")


class LocalDivisiveNorm(_LocalLayer):
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

    _function: ClassVar[Callable[..., Any]] = staticmethod(local.local_divisive_norm)
    _function_backward: ClassVar[Callable[..., Any]] = staticmethod(
        local.local_divisive_norm_backward
    )
    _leading = ("num_features", "summation_window", "suppression_window")
    _named = ()
    _unusual: ClassVar[dict[str, object]] = {"affine": True, "channel_axis": 1}

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
        self.summation_window = _window("summation_window", summation_window)
        self.suppression_window = _window("suppression_window", suppression_window)
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

    def _options(self) -> dict[str, Any]:
        return {
            "summation_window": self.summation_window,
            "suppression_window": self.suppression_window,
            "channel_axis": self.channel_axis,
        }

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        axis = self.channel_axis
        if not -len(shape) <= axis < len(shape) or shape[axis] != self.num_features:
            raise ValueError(
                f"x has shape {shape}, expected {self.num_features} at channel_axis={axis}"
            )


def _window(name: str, value: SupportsIndex | Iterable[SupportsIndex]) -> int | tuple[int, ...]:
    result: int | tuple[int, ...]
    result = sizes(name, value) if isinstance(value, Iterable) else positive(name, value)
    for n in result if isinstance(result, tuple) else (result,):
        if n % 2 == 0:
            raise ValueError(f"{name} is {n}, expected an odd number")
    return result
