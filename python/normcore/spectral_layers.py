"""The layer of spectral normalization, which keeps the vectors of a power iteration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, SupportsIndex

import numpy as np
import numpy.typing as npt

from . import _core
from ._arguments import (
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
from ._attributes import always
from ._dtypes import float_dtype, new_array
from ._interop import Array, as_numpy
from ._layer import IncompatibleKeys, _Layer, check_writable
from ._typing import A
from .spectral import SpectralNormResult, spectral_norm_backward

__all__ = ["SpectralNorm"]

WARM_UP = 15  # iterations, as torch does before the first call
# torch's names for u and v, by the vector that an iteration renews first.
_NAMES = {"v": ("weight_u", "weight_v"), "u": ("_u", "_v")}
_MODULE = "parametrizations.weight.0."
# What a whole module of torch has beside them.
_OTHERS = frozenset({"bias", "weight_orig", "parametrizations.weight.original"})


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
        Of the last call.

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
        values = _core.spectral_norm(weight, u, v, iterations, *options)
        result = SpectralNormResult(*values, self.axis)
        if iterations:
            u[...], v[...] = as_numpy(result.u), as_numpy(result.v)
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

    def state_dict(self) -> dict[str, Array]:
        """Return ``u`` and ``v`` under torch's names; see `_Layer.state_dict`."""
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
