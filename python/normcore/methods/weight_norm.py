"""Weight normalization: forward, backward and layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, SupportsIndex

import numpy as np
import numpy.typing as npt

from .._arguments import above_zero, generator, integer, not_negative, shown, sizes
from .._attributes import always
from .._core import weight_norm as _weight_norm
from .._core import weight_norm_backward as _weight_norm_backward
from .._dtypes import float_dtype, new_array
from .._interop import Array
from .._layer import _Layer, check_writable, real_array
from .._owned import in_numpy, like, write
from .._typing import A, Floats, NamedTuple

__all__ = ["WeightNorm", "weight_norm", "weight_norm_backward"]


class WeightNormGradients(NamedTuple, Generic[A]):
    """Gradients of :func:`weight_norm`."""

    dv: A
    dg: A


def weight_norm(
    v: A,
    g: Floats | float,
    *,
    axis: int | None = 0,
    eps: float = 0.0,
    out: A | None = None,
) -> A:
    """Write a weight as a direction and a length.

    ``w = g * v / sqrt(sum(v**2) + eps)``, the sum being over all axes but ``axis``. Where it is 0,
    ``w`` is 0; no square overflows or underflows.

    Parameters
    ----------
    v : array of any shape
        The direction.
    g : array
        The length, for each position of ``axis``: shape ``(v.shape[axis],)``, also with v's other
        axes as 1, or a single value for all.
    axis : int or None
        The axis that is kept, 0 for the output channels of PyTorch's layers; None for one norm of
        the whole of ``v``.
    eps : float
        Added to the sum of squares; at least 0.
    out : array like v, optional
        Where ``w`` is written; may be v itself.

    Returns
    -------
    array
        ``w``, like v.

    Raises
    ------
    TypeError
        For a dtype that is no float, or a missing g.
    ValueError
        For shapes that do not fit, an axis out of range, a negative eps, or an ``out`` that does
        not fit or overlaps.

    References
    ----------
    Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training
    of Deep Neural Networks", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.weight_norm(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([10.0, 10.0]))
    array([[6., 8.],
           [0., 0.]])
    """
    return _weight_norm(v, g, axis, eps, out)


def weight_norm_backward(
    dw: A,
    v: A,
    g: Floats | float,
    *,
    axis: int | None = 0,
    eps: float = 0.0,
    out: A | None = None,
) -> WeightNormGradients[A]:
    """Gradients of :func:`weight_norm`.

    With ``s = 1 / sqrt(sum(v**2) + eps)``: ``dg = s * sum(dw * v)`` and
    ``dv = g * s * (dw - s**2 * sum(dw * v) * v)``; both 0 where ``v`` is.

    Parameters
    ----------
    dw : array of v's shape and dtype
        Gradient of w; any strides, also broadcast ones.
    v, g, axis, eps
        As in the forward call.
    out : array like v, optional
        Where ``dv`` is written.

    Returns
    -------
    WeightNormGradients
        ``dv`` like v, ``dg`` like g.

    Raises
    ------
    TypeError, ValueError
        As :func:`weight_norm`; also where ``dw`` does not have v's shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> v, g = np.array([[3.0, 4.0]]), np.array([5.0])
    >>> nc.weight_norm_backward(np.array([[1.0, 0.0]]), v, g)
    WeightNormGradients(dv=array([[ 0.64, -0.48]]), dg=array([0.6]))
    """
    return WeightNormGradients(*_weight_norm_backward(dw, v, g, axis, eps, out))


class WeightNorm(_Layer):
    r"""Weight normalization: a weight as a direction ``v`` and a length ``g``.

    .. math:: w = g \frac{v}{\|v\|}

    Called without an input, it returns the weight; ``backward(dw)`` adds to ``grads``.

    Parameters
    ----------
    shape : sequence of int
        Of the weight.
    axis : int or None, default 0
        The axis that is kept: one length for each of its positions. None: one for all.
    eps : float, default 0
        Added to the sum of squares under the root.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64.
    rng : numpy.random.Generator or int, optional
        Where the start of ``v`` comes from, normal with standard deviation 0.05.

    Attributes
    ----------
    parameters : dict
        ``v``, of `shape`, and ``g`` (starts at 1), of shape (shape[axis],) or ().

    Raises
    ------
    ValueError
        For sizes below 1 or an axis out of range.
    TypeError
        For a dtype that is not one of the four.

    Notes
    -----
    `load_state_dict` leaves the ``bias`` alone that states of whole modules have.

    References
    ----------
    Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training
    of Deep Neural Networks", 2016, arXiv:1602.07868.

    Examples
    --------
    A dense layer, started on a batch so that its outputs have mean 0 and variance 1:

    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.random.default_rng(0).normal(3, 2, (256, 20))
    >>> layer = nc.WeightNorm((5, 20), rng=1)
    >>> bias = layer.initialize(x @ layer().T)
    >>> y = x @ layer().T + bias
    >>> bool(abs(y.mean(0)).max() < 1e-5), bool(abs(y.std(0) - 1).max() < 1e-5)
    (True, True)
    """

    _leading = ("shape",)
    _named = ("axis",)
    _unusual: ClassVar[dict[str, object]] = {"eps": 0.0}
    _foreign = frozenset({"bias"})

    v = always("The direction, of `shape`.")
    g = always("The lengths.")

    def __init__(
        self,
        shape: Iterable[SupportsIndex],
        axis: SupportsIndex | None = 0,
        eps: float = 0.0,
        dtype: npt.DTypeLike = np.float32,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        self.shape = sizes("shape", shape)
        self.axis = None if axis is None else integer("axis", axis, "None or an integer")
        if self.axis is not None and not -len(self.shape) <= self.axis < len(self.shape):
            raise ValueError(f"axis is {axis}, expected an axis of shape {self.shape}")
        self.eps = not_negative("eps", eps)
        kind = float_dtype(dtype)
        self._rng = generator("rng", rng)
        lengths = () if self.axis is None else (self.shape[self.axis],)
        shapes = {"v": self.shape, "g": lengths}
        super().__init__({name: new_array(n, kind, "shape") for name, n in shapes.items()})

    def _start(self, name: str) -> Any:
        return self._rng.normal(0, 0.05, self.shape) if name == "v" else 1.0

    def __call__(self) -> Array:  # type: ignore[override]
        """Return the weight."""
        v, g = self.parameters["v"], self.parameters["g"]
        w: Array = weight_norm(v, g, axis=self.axis, eps=self.eps)
        return w

    def backward(self, dw: Array) -> None:  # type: ignore[override]
        """Add the gradients of ``v`` and ``g`` to `grads`.

        Parameters
        ----------
        dw : array
            Gradient of the loss with respect to the weight; of `shape` and the layer's dtype.
        """
        v, g = self.parameters["v"], self.parameters["g"]
        dv, dg = weight_norm_backward(dw, v, g, axis=self.axis, eps=self.eps)
        self._add_to_grads([{"v": dv, "g": dg}])

    def initialize(
        self,
        x_preactivation: Floats,
        *,
        channel_axis: SupportsIndex = 1,
        init_scale: float = 1.0,
        eps: float = 1e-10,
    ) -> Array:
        """Scale ``g`` so that a batch of outputs gets unit variance; return the bias for mean 0.

        The data-dependent start of the paper: ``g`` is multiplied by
        ``init_scale / sqrt(var + eps)``, and the bias is ``-mean`` times that. A single length
        takes the mean variance of the channels.

        Parameters
        ----------
        x_preactivation : array
            What the layer around this weight gives for one batch, without a bias.
        channel_axis : int, default 1
            Its axis of output channels, which ``g`` runs along.
        init_scale : float, default 1
            The standard deviation wanted.
        eps : float, default 1e-10
            Added to the (biased) variance.

        Returns
        -------
        array of shape (channels,)
            Of the library and the dtype of ``g``.

        Raises
        ------
        ValueError
            Where the channels are not those of ``g``, or have no finite variance.
        """
        t = real_array("x_preactivation", x_preactivation)
        axis = integer("channel_axis", channel_axis)
        init_scale, eps = above_zero("init_scale", init_scale), not_negative("eps", eps)
        stored = self.parameters["g"]
        check_writable([("g", stored)])
        g = in_numpy(stored)
        if not -t.ndim <= axis < t.ndim or (g.ndim and t.shape[axis] != g.size):
            raise ValueError(
                f"x_preactivation has shape {t.shape}, expected {g.size} at channel_axis={axis}: "
                "the channels of g"
            )
        if t.size == 0:
            raise ValueError(f"x_preactivation has shape {t.shape}, expected at least one value")
        over = tuple(i for i in range(t.ndim) if i != axis % t.ndim)
        mean = t.mean(axis=over, dtype=np.float64)
        var = t.var(axis=over, dtype=np.float64)
        spread = np.asarray((var if g.ndim else var.mean()) + eps)
        if not np.all((spread > 0) & (spread < math.inf)):
            raise ValueError(
                "x_preactivation has a channel without a positive, finite variance, expected one: "
                f"{shown(spread)} with eps={eps}"
            )
        scale = init_scale / np.sqrt(spread)
        write(stored, (g.astype(np.float64) * scale).astype(g.dtype))
        bias: Array = like(stored, -mean * scale)
        return bias
