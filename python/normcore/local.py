"""Normalization by what is near: windows of neighbours along the channels or over space.

The rules of :mod:`normcore.functional` hold here too. These functions run on the CPU alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Literal

from . import _core
from ._typing import A, Floats, NamedTuple

__all__ = [
    "LocalDivisiveNormGradients",
    "LocalResponseNormGradients",
    "local_divisive_norm",
    "local_divisive_norm_backward",
    "local_response_norm",
    "local_response_norm_backward",
]


class LocalResponseNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`local_response_norm`."""

    dx: A


class LocalDivisiveNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`local_divisive_norm`; None for a parameter that was not given."""

    dx: A
    dsigma: A | float
    dweight: A | None
    dbias: A | None


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
        words for ``across`` or ``even_window``, an ``out`` that does not fit or overlaps, or an
        array on a CUDA device.

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
    return _core.local_response_norm(
        x, size, alpha, beta, k, across, even_window, channel_axis, out
    )


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
    dx = _core.local_response_norm_backward(
        dy, x, size, alpha, beta, k, across, even_window, channel_axis, out
    )
    return LocalResponseNormGradients(dx)


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
        For shapes that do not fit, an even size, an axis out of range, an ``out`` that does not fit
        or overlaps, or an array on a CUDA device.

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
    return _core.local_divisive_norm(
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
    dx, dsigma, dweight, dbias = _core.local_divisive_norm_backward(
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
    if isinstance(sigma, (int, float)):
        dsigma = float(dsigma)
    return LocalDivisiveNormGradients(dx, dsigma, dweight, dbias)


def _real(sigma: Any) -> Any:
    """A plain integer is a number here, but integer arrays are none."""
    return float(sigma) if isinstance(sigma, int) else sigma


def _window(sizes: int | Sequence[int]) -> Any:
    """Tuples, lists, and whatever else has a length, such as a shape."""
    return tuple(sizes) if isinstance(sizes, Sequence) and not isinstance(sizes, str) else sizes
