"""Spectral normalization and the power method, forward and backward.

The rules of :mod:`normcore.functional` hold here too.
"""

from __future__ import annotations

from typing import Generic

from . import _core
from ._arguments import shown
from ._typing import A, Floats, NamedTuple

__all__ = [
    "PowerMethodResult",
    "SpectralNormResult",
    "power_method",
    "spectral_norm",
    "spectral_norm_backward",
]


class SpectralNormResult(NamedTuple, Generic[A]):
    """What :func:`spectral_norm` returns, and :func:`spectral_norm_backward` takes."""

    weight: A
    sigma: float
    u: A
    v: A
    axis: int


class PowerMethodResult(NamedTuple, Generic[A]):
    """What :func:`power_method` returns."""

    sigma: float
    u: A
    v: A
    n_iterations: int
    converged: bool


def spectral_norm(
    weight: A,
    u: Floats,
    v: Floats | None = None,
    *,
    n_power_iterations: int = 1,
    axis: int = 0,
    eps: float = 1e-12,
    bound: float | None = None,
    out: A | None = None,
) -> SpectralNormResult[A]:
    """Divide a weight by its largest singular value, estimated by power iteration.

    With W the weight as a matrix, ``axis`` by all other axes: ``n_power_iterations`` times
    ``v = W.T @ u / norm`` and ``u = W @ v / norm``; then ``sigma = u @ W @ v`` and the result is
    ``weight / sigma``. Zeros where the weight is zero.

    Parameters
    ----------
    weight : array of any shape with at least one axis
    u : array of shape (weight.shape[axis],)
        Where iterations start, of any length but 0: the ``u`` of the call before, or at first
        random numbers. Not changed.
    v : array of shape (weight.size // weight.shape[axis],), optional
        Used, and needed, without iterations alone. Its order is that of the other axes.
    n_power_iterations : int
        0 takes u and v as they are, as in evaluation.
    axis : int
        The axis of outputs: 0 for dense layers and convolutions in PyTorch, 1 for its transposed
        convolutions, -1 in Keras and Flax.
    eps : float
        Where ``norm(W.T @ u)`` is less (times the largest ``abs(weight)``, where that is below 1),
        u is orthogonal to the weight, and a fixed start takes its place; at least 0.
    bound : float, optional
        Divide by ``max(1, sigma / bound)``: a weight whose norm is at most this stays as it is.
    out : array like weight, optional
        Where the weight is written; may be weight itself.

    Returns
    -------
    SpectralNormResult
        ``weight`` like the argument; ``sigma``, a float; new ``u`` and ``v``, float32 (float64 for
        a float64 weight); ``axis``.

    Raises
    ------
    TypeError
        For a dtype that is no float, or a missing u.
    ValueError
        For shapes that do not fit, an axis out of range, a negative number of iterations or eps, a
        bound that is not positive, a missing v without iterations, an ``out`` that does not fit or
        overlaps, or an array on a CUDA device.

    References
    ----------
    Miyato et al., "Spectral Normalization for Generative Adversarial Networks", 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> result = nc.spectral_norm(np.diag([4.0, 2.0, 0.0]), np.ones(3), n_power_iterations=30)
    >>> round(result.sigma, 12)
    4.0
    >>> result.weight.round(12)
    array([[1. , 0. , 0. ],
           [0. , 0.5, 0. ],
           [0. , 0. , 0. ]])
    """
    arguments = (weight, u, v, n_power_iterations, axis, eps, bound, False, out)
    return SpectralNormResult(*_core.spectral_norm(*arguments), axis)


def spectral_norm_backward(
    dw: A,
    result: SpectralNormResult[A],
    *,
    bound: float | None = None,
    out: A | None = None,
) -> A:
    """Gradient of :func:`spectral_norm` with respect to the weight; u and v are constants.

    ``dweight = (dw - sum(dw * w) * outer(u, v)) / sigma``, with ``w`` the normalized weight; with a
    bound as that of ``weight / max(1, sigma / bound)``. Zeros where the weight is zero.

    Parameters
    ----------
    dw : array like result.weight
        Gradient of the normalized weight; any strides, also broadcast ones.
    result : SpectralNormResult
        What the forward call returned.
    bound : float, optional
        As in the forward call.
    out : array like result.weight, optional
        Where the gradient is written; may be dw or result.weight itself.

    Returns
    -------
    array
        ``dweight``, like the weight.

    Raises
    ------
    TypeError, ValueError
        Where ``dw`` does not have the weight's shape and dtype, or ``out`` does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> result = nc.spectral_norm(np.diag([4.0, 2.0]), np.array([1.0, 0.0]))
    >>> nc.spectral_norm_backward(np.eye(2), result)
    array([[-0.125,  0.   ],
           [ 0.   ,  0.25 ]])
    """
    if not isinstance(result, tuple) or len(result) != len(SpectralNormResult._fields):
        raise TypeError(f"result is {shown(result)}, expected what spectral_norm returned")
    weight, sigma, u, v, axis = result
    return _core.spectral_norm_backward(dw, weight, sigma, u, v, axis, bound, out)


def power_method(
    a: A,
    *,
    u: Floats | None = None,
    n_iterations: int | None = None,
    tol: float = 1e-6,
    max_iterations: int = 1000,
) -> PowerMethodResult[A]:
    """The largest singular value of a matrix, and its vectors.

    Each iteration is ``v = a.T @ u / norm``, ``u = a @ v / norm``, ``sigma = norm(a @ v)``. The
    residual ``norm(a.T @ u - sigma * v)`` shrinks by the square of the ratio of the second singular
    value to the first, so values that are close but not equal take many iterations; equal ones
    share their space, and any vectors in it are an answer.

    Parameters
    ----------
    a : array of shape (m, n)
        Each iteration reads it once, and one more read begins them.
    u : array of shape (m,), optional
        The start, of any length but 0. One that has no part of the answer leads to another
        singular value. Default: a fixed pseudo-random vector, so that results repeat.
    n_iterations : int, optional
        Exactly so many, at least 1. Default: until it has converged.
    tol : float
        It has converged when the residual is at most ``tol * sigma``. For float32, float16 and
        bfloat16 arrays, which are computed in float32, less than 1e-6 may never be reached.
    max_iterations : int
        The most, where ``n_iterations`` is None.

    Returns
    -------
    PowerMethodResult
        ``sigma``, a float; ``u`` and ``v`` of length 1, float32 (float64 for a float64 array), with
        ``a @ v = sigma * u``; ``n_iterations``; ``converged``, whether the residual of exactly
        this result is within tol. Of zeros sigma is 0.

    Raises
    ------
    TypeError
        For a dtype that is no float.
    ValueError
        For another number of axes, a u that does not fit, numbers of iterations below 1, a negative
        tol, or an array on a CUDA device.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> result = nc.power_method(np.array([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> round(result.sigma, 9), result.converged
    (3.0, True)
    """
    return PowerMethodResult(*_core.power_method(a, u, n_iterations, tol, max_iterations))
