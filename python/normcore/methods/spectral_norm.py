"""Spectral normalization and the power method: forward, backward and layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, Generic, Literal, SupportsIndex

import numpy as np
import numpy.typing as npt

from .._arguments import (
    above_zero,
    choice,
    generator,
    integer,
    not_negative,
    positive,
    shape_of,
    shown,
    sizes,
)
from .._attributes import always
from .._core import power_method as _power_method
from .._core import spectral_norm as _spectral_norm
from .._core import spectral_norm_backward as _spectral_norm_backward
from .._dtypes import float_dtype, new_array
from .._interop import Array
from .._layer import IncompatibleKeys, _Layer, check_writable
from .._owned import write
from .._typing import A, Floats, NamedTuple

__all__ = [
    "PowerMethodResult",
    "SpectralNorm",
    "SpectralNormResult",
    "power_method",
    "spectral_norm",
    "spectral_norm_backward",
]

WARM_UP = 15  # iterations, as torch does before the first call
# torch's names for u and v, by the vector that an iteration renews first.
_NAMES = {"v": ("weight_u", "weight_v"), "u": ("_u", "_v")}
_MODULE = "parametrizations.weight.0."
# What a whole module of torch has beside them.
_OTHERS = frozenset({"bias", "weight_orig", "parametrizations.weight.original"})


class SpectralNormResult(NamedTuple, Generic[A]):
    """What :func:`spectral_norm` returns, and :func:`spectral_norm_backward` takes."""

    weight: A
    sigma: float  # of arrays on a device: an array of no axes, for which nothing waits
    u: A
    v: A
    axis: int


class PowerMethodResult(NamedTuple, Generic[A]):
    """What :func:`power_method` returns."""

    sigma: float  # this and the numbers below, of arrays on a device: arrays of no axes
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
        ``weight`` like the argument; ``sigma``, a float, or of a weight on a CUDA device an array
        of no axes there, for which the call does not wait; new ``u`` and ``v``, float32 (float64
        for a float64 weight); ``axis``.

    Raises
    ------
    TypeError
        For a dtype that is no float, or a missing u.
    ValueError
        For shapes that do not fit, an axis out of range, a negative number of iterations or eps, a
        bound that is not positive, a missing v without iterations, or an ``out`` that does not fit
        or overlaps.

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
    return SpectralNormResult(*_spectral_norm(*arguments), axis)


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
    return _spectral_norm_backward(dw, weight, sigma, u, v, axis, bound, out)


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

    Notes
    -----
    A call on a CUDA device does not wait for its numbers: ``sigma``, ``n_iterations`` and
    ``converged`` (1 or 0) are arrays of no axes there, of the dtype of u. It queues all of
    ``max_iterations``, and those that come after it has converged find nothing to do; say
    ``n_iterations``, or fewer at most, where queueing a thousand of them takes too long.

    Raises
    ------
    TypeError
        For a dtype that is no float.
    ValueError
        For another number of axes, a u that does not fit, numbers of iterations below 1, or a
        negative tol.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> result = nc.power_method(np.array([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> round(result.sigma, 9), result.converged
    (3.0, True)
    """
    return PowerMethodResult(*_power_method(a, u, n_iterations, tol, max_iterations))


class SpectralNorm(_Layer):
    r"""Spectral normalization: a weight over its largest singular value.

    .. math:: \hat W = W / \sigma, \quad \sigma = u^T W v

    Called with a weight, it returns the normalized one; ``backward(dw)`` returns the weight's
    gradient. In training every call improves the vectors by some power iterations, in evaluation
    they are used as they are. The first call of a layer whose state was not loaded, in either mode,
    begins with 15 iterations; threads share a layer in evaluation after that call.

    Parameters
    ----------
    shape : sequence of int
        Of the weight.
    n_power_iterations : int, default 1
        Of each call in training; at least 1.
    axis : int, default 0
        The axis of outputs: 1 for torch's transposed convolutions, -1 for Keras and Flax.
    eps : float, default 1e-12
        See :func:`normcore.spectral_norm`.
    bound : float, optional
        Divide by ``max(1, sigma / bound)``: a weight whose norm is at most this stays as it is.
    first : {"v", "u"}
        What an iteration renews first: ``v = W.T @ u`` as in the paper and in torch's
        ``torch.nn.utils.spectral_norm``, or ``u = W @ v`` as in torch's parametrization.
    dtype : dtype, default numpy.float32
        Of the weight: float16, bfloat16, float32 or float64.
    rng : numpy.random.Generator or int, optional
        Where the start of the vectors comes from.

    Attributes
    ----------
    buffers : dict
        ``u`` and ``v``, float32 (float64 for a float64 weight).
    sigma : float or None
        Of the last call; see :func:`normcore.spectral_norm`.

    Raises
    ------
    ValueError
        For sizes or numbers of iterations below 1, an axis out of range, a bound that is not
        positive, or another ``first``.
    TypeError
        For a dtype that is not one of the four.

    Notes
    -----
    `state_dict` has the keys of that form of torch which has the same order of iterations:
    ``weight_u`` and ``weight_v``, or ``_u`` and ``_v``. `load_state_dict` takes either, also from
    the state of the whole torch module (whose weight it leaves alone), and then iterates in the
    order of that form, so that training goes on as it would have in torch; ``u`` and ``v`` do not
    change the order.

    References
    ----------
    Miyato et al., "Spectral Normalization for Generative Adversarial Networks", 2018,
    arXiv:1802.05957.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> weight = np.random.default_rng(0).normal(size=(8, 20)).astype(np.float32)
    >>> layer = nc.SpectralNorm((8, 20), rng=1)
    >>> for _ in range(200):
    ...     normalized = layer(weight)
    >>> bool(abs(np.linalg.norm(normalized, 2) - 1) < 1e-5)
    True
    """

    _leading = ("shape",)
    _named = ("n_power_iterations", "axis")
    _unusual: ClassVar[dict[str, object]] = {"eps": 1e-12, "bound": None, "first": "v"}
    _foreign = _OTHERS

    u = always("The left singular vector so far.")
    v = always("The right singular vector so far.")

    def __init__(
        self,
        shape: Iterable[SupportsIndex],
        n_power_iterations: SupportsIndex = 1,
        axis: SupportsIndex = 0,
        eps: float = 1e-12,
        bound: float | None = None,
        first: Literal["v", "u"] = "v",
        dtype: npt.DTypeLike = np.float32,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        self.shape = sizes("shape", shape)
        self.n_power_iterations = positive("n_power_iterations", n_power_iterations)
        self.axis = integer("axis", axis)
        if not -len(self.shape) <= self.axis < len(self.shape):
            raise ValueError(f"axis is {axis}, expected an axis of shape {self.shape}")
        self.eps = not_negative("eps", eps)
        self.bound = None if bound is None else above_zero("bound", bound)
        self.first = choice("first", first, _NAMES)
        kind = np.float64 if float_dtype(dtype) == np.float64 else np.float32
        self._rng = generator("rng", rng)
        outputs = self.shape[self.axis]
        rest = math.prod(self.shape) // outputs
        sizes_of = {"u": outputs, "v": rest}
        super().__init__({}, {name: new_array(n, kind, "shape") for name, n in sizes_of.items()})

    def _start(self, name: str) -> Any:
        vector = self._rng.normal(size=self.buffers[name].shape)
        return vector / np.linalg.norm(vector)

    def reset_running_stats(self) -> None:
        """Start from new random vectors, and from the iterations of a first call."""
        super().reset_running_stats()
        self.sigma: float | None = None
        self._due = WARM_UP  # iterations that the next call does beside its own

    def __call__(self, weight: A) -> A:
        """Return the normalized weight, and remember what `backward` needs.

        Parameters
        ----------
        weight : array of `shape`
        """
        self._gradient = None
        shape = shape_of(weight, "weight")
        if shape != self.shape:
            raise ValueError(f"weight has shape {shape}, expected {self.shape}")
        iterations = self._due + (self.n_power_iterations if self.training else 0)
        u, v = self.buffers["u"], self.buffers["v"]
        if iterations:
            check_writable(self.buffers.items())
        options = (self.axis, self.eps, self.bound, self.first == "u", None)
        values = _spectral_norm(weight, u, v, iterations, *options)
        result = SpectralNormResult(*values, self.axis)
        if iterations:
            write(u, result.u)
            write(v, result.v)
        self._due = 0
        self.sigma = result.sigma
        self._gradient = partial(spectral_norm_backward, result=result, bound=self.bound)
        return result.weight

    def backward(self, dw: A) -> A:
        """Return the gradient of the weight that the last call was given.

        Parameters
        ----------
        dw : array
            Gradient of the loss with respect to the normalized weight.
        """
        gradient = self._gradient
        if gradient is None:
            raise RuntimeError("SpectralNorm.backward called before a forward call")
        dweight: A = gradient(dw)
        return dweight

    def _stored(self) -> dict[str, Array]:
        return dict(zip(_NAMES[self.first], self.buffers.values(), strict=True))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> IncompatibleKeys:
        """Copy ``u`` and ``v`` from a state of ours or of torch; see the class's notes.

        Parameters
        ----------
        state_dict : mapping of str to array
        strict : bool, default True
            Whether missing and unexpected keys are errors.

        Returns
        -------
        IncompatibleKeys
            A named tuple of ``missing_keys`` and ``unexpected_keys``.

        Raises
        ------
        StateDictError
            Names every missing or unexpected key and every misfit; nothing has been changed.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict is {shown(state_dict)}, expected a mapping")
        state = {str(k).removeprefix(_MODULE): v for k, v in state_dict.items()}
        before = self.first
        try:
            for first, names in _NAMES.items():
                if any(name in state for name in names):
                    self.first = first
            own = _NAMES[self.first]
            plain = dict(zip(("u", "v"), own, strict=True))
            result = super().load_state_dict({plain.get(k, k): v for k, v in state.items()}, strict)
        except BaseException:
            self.first = before
            raise
        if len(result.missing_keys) < len(own):
            self._due = 0
        return result
