"""Local response normalization: forward, backward and layer.

There are no statistics: backward computes what it needs again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, Literal, SupportsIndex

from .._arguments import choice, integer, not_negative, number, positive
from .._core import local_response_norm as _local_response_norm
from .._core import local_response_norm_backward as _local_response_norm_backward
from .._layer import _Layer
from .._typing import A, NamedTuple

__all__ = ["LocalResponseNorm", "local_response_norm", "local_response_norm_backward"]


class LocalResponseNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`local_response_norm`."""

    dx: A


def local_response_norm(
    x: A,
    size: int,
    *,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    across: Literal["channels", "space"] = "channels",
    even_window: Literal["torch", "onnx"] = "torch",
    channel_axis: int = 1,
    out: A | None = None,
) -> A:
    """Divide by a power of the sum of squares of neighbouring channels, or positions.

    ``y = x * (k + alpha / n * sum(x**2))**-beta``, with the sum over a window of ``size`` channels
    around the element's, ``n = size``; or over ``size`` positions along each spatial axis, within
    the channel, ``n = size**(spatial axes)``. At the edges fewer elements are summed, over the same
    ``n``. No square overflows or underflows.

    Parameters
    ----------
    x : array of shape (N, C, ...)
        With channels at ``channel_axis``; at least three axes with ``across="space"``.
    size : int
        Of the window, at least 1.
    alpha, beta, k : float
        ``alpha`` and ``k`` are at least 0. 0.5, 0.75 and 1 are the fastest values of ``beta``.
    across : {"channels", "space"}
        What the window is along.
    even_window : {"torch", "onnx"}
        Where a window of even size is longer: below its element as in PyTorch, or above it as in
        ONNX and cuDNN.
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
        For too few axes, an axis out of range, a size below 1, a negative ``alpha`` or ``k``, other
        words for ``across`` or ``even_window``, or an ``out`` that does not fit or overlaps.

    References
    ----------
    Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural
    Networks", 2012. There ``alpha`` stands for ``alpha / n`` here.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.local_response_norm(np.array([[[3.0], [4.0]]]), 3, alpha=3.0, beta=0.5, k=0.0)
    array([[[0.6],
            [0.8]]])
    """
    return _local_response_norm(x, size, alpha, beta, k, across, even_window, channel_axis, out)


def local_response_norm_backward(
    dy: A,
    x: A,
    size: int,
    *,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    across: Literal["channels", "space"] = "channels",
    even_window: Literal["torch", "onnx"] = "torch",
    channel_axis: int = 1,
    out: A | None = None,
) -> LocalResponseNormGradients[A]:
    """Gradient of :func:`local_response_norm`.

    With ``s = k + alpha / n * sum(x**2)``: ``dx = dy * s**-beta - 2 * alpha * beta / n * x *
    sum(dy * x * s**(-beta - 1))``, the sum being over all elements whose windows reach this one.

    Parameters
    ----------
    dy : array of x's shape and dtype
        Gradient of y; any strides, also broadcast ones.
    x, size, alpha, beta, k, across, even_window, channel_axis
        As in the forward call.
    out : array like x, optional
        Where ``dx`` is written; may be x or dy itself.

    Returns
    -------
    LocalResponseNormGradients
        ``dx``, like x.

    Raises
    ------
    TypeError, ValueError
        As :func:`local_response_norm`; also where ``dy`` does not have x's shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x, dy = np.array([[[3.0], [4.0]]]), np.array([[[1.0], [0.0]]])
    >>> nc.local_response_norm_backward(dy, x, 3, alpha=3.0, beta=0.5, k=0.0)
    LocalResponseNormGradients(dx=array([[[ 0.128],
            [-0.096]]]))
    """
    dx = _local_response_norm_backward(
        dy, x, size, alpha, beta, k, across, even_window, channel_axis, out
    )
    return LocalResponseNormGradients(dx)


class LocalResponseNorm(_Layer):
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

    _function: ClassVar[Callable[..., Any]] = staticmethod(local_response_norm)
    _function_backward: ClassVar[Callable[..., Any]] = staticmethod(local_response_norm_backward)
    _leading = ("size",)
    _named = ("alpha", "beta", "k")
    _unusual: ClassVar[dict[str, object]] = {
        "across": "channels",
        "even_window": "torch",
        "channel_axis": 1,
    }
    _shared = (*_leading, *_named, *_unusual)

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

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) < 3:
            raise ValueError(f"x has shape {shape}, expected at least three axes")
