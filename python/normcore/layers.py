"""Normalization layers over NumPy parameters, with the names and arguments of ``torch.nn``.

There is no autograd: ``layer(x)`` goes forward, ``layer.backward(dy)`` returns ``dx`` and adds to
``layer.grads``. `normcore._layer` holds what all layers share, `normcore._running` what those with
running statistics do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from . import functional
from ._arguments import flag, integer, not_negative, number, positive, shape_of, sizes
from ._attributes import maybe
from ._dtypes import float_dtype
from ._interop import Array
from ._layer import StateDictError, _Layer, affine_parameters
from ._life import Foldable
from ._running import RUNNING_VAR, _ChannelLayer, _MaskedNorm, _RunningNorm
from ._typing import A, Communicator
from .reductions import Moments

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm", "StateDictError"]


class _RowLayer(_Layer):
    """A layer over the trailing axes, or those of ``axis``, which can add a residual first."""

    _leading = ("normalized_shape",)
    _unusual: ClassVar[dict[str, object]] = {"axis": None}

    weight = maybe("Scale, of shape `normalized_shape`; None without `elementwise_affine`.")

    def __init__(
        self,
        normalized_shape: SupportsIndex | Iterable[SupportsIndex],
        eps: float | None,
        elementwise_affine: bool,
        axis: SupportsIndex | Sequence[SupportsIndex] | None,
        dtype: npt.DTypeLike,
        *,
        bias: bool,
    ) -> None:
        if not isinstance(normalized_shape, Iterable):
            normalized_shape = (positive("normalized_shape", normalized_shape),)
        self.normalized_shape = sizes("normalized_shape", normalized_shape)
        if not self.normalized_shape:
            raise ValueError("normalized_shape is (), expected at least one size")
        self.axis = None if axis is None else _axes(axis)
        if self.axis is not None and len(self.axis) != len(self.normalized_shape):
            raise ValueError(
                f"axis is {self.axis}, expected one axis for each size of "
                f"normalized_shape={self.normalized_shape}"
            )
        self.eps: float | None = eps
        self.elementwise_affine = flag("elementwise_affine", elementwise_affine)
        bias = flag("bias", bias) and self.elementwise_affine
        super().__init__(
            affine_parameters(
                self.normalized_shape,
                dtype,
                "normalized_shape",
                weight=self.elementwise_affine,
                bias=bias,
            )
        )

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        expected = self.normalized_shape
        if self.axis is None:
            if shape[-len(expected) :] != expected:
                wanted = ", ".join(["...", *map(str, expected)])
                raise ValueError(f"x has shape {shape}, expected ({wanted}): {self!r}")
            return
        ndim = len(shape)
        if not all(-ndim <= a < ndim for a in self.axis):
            raise ValueError(f"x has shape {shape}, expected the axes of axis={self.axis}")
        # Axes named twice are for the function to refuse.
        if tuple(shape[a] for a in sorted(a % ndim for a in self.axis)) != expected:
            raise ValueError(
                f"x has shape {shape}, expected {expected} over axis={self.axis}, ascending"
            )

    def _options(self) -> dict[str, Any]:
        axis = tuple(range(-len(self.normalized_shape), 0)) if self.axis is None else self.axis
        return {"axis": axis, "eps": self.eps}

    @overload
    def __call__(self, x: A, residual: None = None) -> A: ...
    @overload
    def __call__(self, x: A, residual: A) -> tuple[A, A]: ...
    def __call__(self, x: A, residual: A | None = None) -> Any:
        """Normalize x, or, with a residual of x's shape, return (y, h) for h = x + residual."""
        self._gradient = None  # so that no gradient of an earlier call outlives a failed one
        y, gradient = self._forward(x, residual=residual)
        self._gradient = partial(_without_residual, gradient) if residual is None else gradient
        return y

    def backward(self, dy: A, dh: A | None = None) -> A:
        """Return dx for the last forward call; add the parameters' gradients to `grads`.

        Parameters
        ----------
        dy : array
            Gradient of the loss with respect to y.
        dh : array, optional
            Gradient with respect to h, where the forward call had a residual.

        Returns
        -------
        array
            Gradient with respect to x and, the same, to the residual.

        Raises
        ------
        RuntimeError
            When no forward call has succeeded before.
        ValueError
            For dh where the forward call had no residual.
        """
        return self._run_backward(dy, dh=dh)


def _without_residual(gradient: Callable[..., Any], dy: Any, dh: Any) -> Any:
    if dh is not None:
        raise ValueError("dh was given, but the forward call had no residual")
    return gradient(dy)


def _axes(axis: Any) -> tuple[int, ...]:
    rule = "an integer or a sequence of integers"
    if isinstance(axis, str | bytes) or np.ndim(axis) == 0:
        return (integer("axis", axis, rule),)
    return tuple(integer("axis", a, rule) for a in axis)


class LayerNorm(_RowLayer):
    r"""Layer normalization over the trailing axes of x.

    .. math:: y = \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \epsilon}}
              \cdot weight + bias

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Sizes of the trailing axes, which share one mean and one (biased) variance.
    eps : float, default 1e-5
        Added to the variance.
    elementwise_affine : bool, default True
        Whether there are parameters at all.
    bias : bool, default True
        Whether, given `elementwise_affine`, there is a ``bias``.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64. x may have another one.
    axis : int or sequence of int, optional
        The axes that are normalized where they are not the trailing ones, in any order;
        `normalized_shape` has their sizes in the order of x.

    Attributes
    ----------
    parameters : dict
        ``weight`` (starts at 1) and ``bias`` (starts at 0), of shape `normalized_shape`.

    Raises
    ------
    ValueError
        For an x that does not end in `normalized_shape`; on construction for sizes below 1.
    TypeError
        For a dtype that is not one of the four.

    Notes
    -----
    ``layer(x, residual)`` returns ``(y, h)``, where ``h = x + residual`` was normalized;
    ``layer.backward(dy, dh)`` then returns the gradient of both x and residual.

    References
    ----------
    Ba, Kiros and Hinton, "Layer Normalization", 2016, arXiv:1607.06450.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.LayerNorm(4)
    >>> layer
    LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=True)
    >>> x = np.array([[1, 1, 3, 3], [-5, 5, -5, 5]], dtype=np.float32)
    >>> layer(x).round(3)
    array([[-1., -1.,  1.,  1.],
           [-1.,  1., -1.,  1.]], dtype=float32)
    >>> dx = layer.backward(np.ones_like(x))
    >>> layer.grads["bias"]
    array([2., 2., 2., 2.], dtype=float32)
    """

    _function = staticmethod(functional.layer_norm)
    _function_backward = staticmethod(functional.layer_norm_backward)
    _named = ("eps", "elementwise_affine", "bias")

    bias = maybe("Shift, of shape `normalized_shape`; None where there is none.")

    def __init__(
        self,
        normalized_shape: SupportsIndex | Iterable[SupportsIndex],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
        *,
        axis: SupportsIndex | Sequence[SupportsIndex] | None = None,
    ) -> None:
        super().__init__(
            normalized_shape, not_negative("eps", eps), elementwise_affine, axis, dtype, bias=bias
        )


class RMSNorm(_RowLayer):
    r"""Root mean square normalization over the trailing axes of x.

    .. math:: y = \frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}} \cdot (weight + weight\_offset)

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Sizes of the trailing axes, which share one mean square.
    eps : float, optional
        Added to the mean square. None, the default as in torch: the epsilon of float32, 1.19e-7, or
        that of float64 for a float64 layer. (The function's default is 1e-6.)
    elementwise_affine : bool, default True
        Whether there is a ``weight``.
    weight_offset : float, default 0.0
        Added to the weight, in the precision of the computation; 1 is Gemma's form. The weight
        starts at ``1 - weight_offset``, so that the layer starts without a scale.
    dtype : dtype, default numpy.float32
        Of the weight: float16, bfloat16, float32 or float64. x may have another one.
    axis : int or sequence of int, optional
        The axes that are normalized where they are not the trailing ones, in any order;
        `normalized_shape` has their sizes in the order of x.

    Attributes
    ----------
    parameters : dict
        ``weight``, of shape `normalized_shape`.

    Raises
    ------
    ValueError
        For an x that does not end in `normalized_shape`; on construction for sizes below 1.
    TypeError
        For a dtype that is not one of the four.

    Notes
    -----
    ``layer(x, residual)`` returns ``(y, h)``, where ``h = x + residual`` was normalized;
    ``layer.backward(dy, dh)`` then returns the gradient of both x and residual.

    References
    ----------
    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.RMSNorm(2, weight_offset=1)
    >>> layer
    RMSNorm((2,), eps=None, elementwise_affine=True, weight_offset=1.0)
    >>> layer.parameters["weight"]
    array([0., 0.], dtype=float32)
    >>> y, h = layer(np.array([[3.0, 0.0]]), residual=np.array([[4.0, 1.0]]))
    >>> h
    array([[7., 1.]])
    >>> y.round(3)
    array([[1.4, 0.2]])
    """

    _function = staticmethod(functional.rms_norm)
    _function_backward = staticmethod(functional.rms_norm_backward)
    _named = ("eps", "elementwise_affine")
    _unusual: ClassVar[dict[str, object]] = {"weight_offset": 0.0, "axis": None}

    def __init__(
        self,
        normalized_shape: SupportsIndex | Iterable[SupportsIndex],
        eps: float | None = None,
        elementwise_affine: bool = True,
        weight_offset: float = 0.0,
        dtype: npt.DTypeLike = np.float32,
        *,
        axis: SupportsIndex | Sequence[SupportsIndex] | None = None,
    ) -> None:
        self.weight_offset = number("weight_offset", weight_offset)
        super().__init__(
            normalized_shape,
            None if eps is None else not_negative("eps", eps),
            elementwise_affine,
            axis,
            dtype,
            bias=False,
        )
        wide = float_dtype(dtype) == np.float64
        self._epsilon = float(np.finfo(np.float64 if wide else np.float32).eps)

    def _start(self, name: str) -> Any:
        return 1.0 - self.weight_offset

    def _options(self) -> dict[str, Any]:
        eps = self._epsilon if self.eps is None else self.eps
        return {**super()._options(), "eps": eps, "weight_offset": self.weight_offset}


class GroupNorm(_ChannelLayer):
    r"""Group normalization: over blocks of channels and all positions of each sample.

    .. math:: y = \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \epsilon}}
              \cdot weight + bias

    Mean and (biased) variance are those of one sample and of ``num_channels / num_groups``
    neighbouring channels.

    Parameters
    ----------
    num_groups : int
        Number of blocks; divides `num_channels`.
    num_channels : int
        Size of x along `channel_axis`.
    eps : float, default 1e-5
        Added to the variance.
    affine : bool, default True
        Whether there are parameters at all.
    channel_axis : int, default 1
        1 for NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64. x may have another one.
    bias : bool, default True
        Whether, given `affine`, there is a ``bias``.

    Attributes
    ----------
    parameters : dict
        ``weight`` (starts at 1) and ``bias`` (starts at 0), of shape (num_channels,).

    Raises
    ------
    ValueError
        For an x without `num_channels` channels; on construction for a number of groups that
        does not divide the channels.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Wu and He, "Group Normalization", 2018, arXiv:1803.08494.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.GroupNorm(2, 4)
    >>> layer
    GroupNorm(2, 4, eps=1e-05, affine=True, bias=True)
    >>> layer(np.array([[1.0, 3.0, 70.0, 50.0]])).round(3)
    array([[-1.,  1.,  1., -1.]])
    """

    _function = staticmethod(functional.group_norm)
    _function_backward = staticmethod(functional.group_norm_backward)
    _leading = ("num_groups", "num_channels")
    _named = ("eps", "affine", "bias")
    _channels = "num_channels"

    def __init__(
        self,
        num_groups: SupportsIndex,
        num_channels: SupportsIndex,
        eps: float = 1e-5,
        affine: bool = True,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
        *,
        bias: bool = True,
    ) -> None:
        self.num_groups = positive("num_groups", num_groups)
        self.num_channels = positive("num_channels", num_channels)
        if self.num_channels % self.num_groups:
            raise ValueError(
                f"num_groups is {self.num_groups}, expected a divisor of "
                f"num_channels={self.num_channels}"
            )
        self.eps = not_negative("eps", eps)
        self.affine = flag("affine", affine)
        self.channel_axis = integer("channel_axis", channel_axis)
        shape = (self.num_channels,)
        bias = flag("bias", bias) and self.affine
        super().__init__(
            affine_parameters(shape, dtype, "num_channels", weight=self.affine, bias=bias)
        )

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "num_groups": self.num_groups}


class BatchNorm(Foldable, _MaskedNorm):
    r"""Batch normalization: over the samples and all positions of each channel.

    .. math:: y = \frac{x - mean}{\sqrt{var + \epsilon}} \cdot weight + bias

    In training, mean and (biased) variance are those of x, and the buffers become
    ``(1 - momentum) * buffer + momentum * statistic``, with the unbiased variance unless
    told otherwise. In evaluation
    they are the buffers or, without buffers, those of x.

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    eps : float, default 1e-5
        Added to the variance.
    momentum : float or None, default 0.1
        Weight of the new value in the buffers; None for the average over all batches so far.
    affine : bool, default True
        Whether there are parameters at all.
    track_running_stats : bool, default True
        Whether there are buffers.
    channel_axis : int, default 1
        1 for (N, C) and NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64. x may have another one.
    bias : bool, default True
        Whether, given `affine`, there is a ``bias``.
    unbiased_running_var : bool, default True
        Whether ``running_var`` holds variances with divisor n - 1, as in torch, or n.
    ghost_batch_size : int, optional
        In training, statistics are taken from so many samples at a time: contiguous chunks, each of
        which counts as a batch for the buffers. The last may be short; where it has one value per
        channel it joins the one before.
    time_steps : int, optional
        The buffers have a row for each of so many steps, and calls a ``step``:
        ``layer(x, step=t)``, ``layer.backward(dy, step=t)``. Later steps use the last row.
    comm : mpi4py communicator or object with ``allreduce(array)``, optional
        Batch statistics are those of all processes' samples, weighed by their counts, forward and
        backward; each process may have any number of samples, also none, and all must call the
        layer equally often. Parameters' gradients are those of the own samples.
    comm_timeout : float, default 600
        Seconds to wait for the others before TimeoutError; for mpi4py.

    Attributes
    ----------
    parameters : dict
        ``weight`` (starts at 1) and ``bias`` (starts at 0), of shape (num_features,).
    buffers : dict
        ``running_mean`` (starts at 0) and ``running_var`` (starts at 1), of shape
        (num_features,) and float32 (float64 for float64 layers), and ``num_batches_tracked``,
        int64 without axes, which counts the training calls that were not empty.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or, in training, with one value per channel.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.BatchNorm(2, momentum=None)
    >>> layer(np.array([[1.0, 10.0], [3.0, 30.0]])).round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> layer.buffers["running_mean"], layer.buffers["running_var"]
    (array([ 2., 20.], dtype=float32), array([  2., 200.], dtype=float32))
    >>> layer.eval()(np.array([[2.0, 20.0]]))
    array([[0., 0.]])
    """

    _over_processes = True
    _function = staticmethod(functional.batch_norm)
    _function_backward = staticmethod(functional.batch_norm_backward)

    _has_variance = True
    _unusual: ClassVar[dict[str, object]] = {
        **_RunningNorm._unusual,
        "unbiased_running_var": True,
    }

    running_var = maybe(RUNNING_VAR)

    def __init__(
        self,
        num_features: SupportsIndex,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
        *,
        bias: bool = True,
        unbiased_running_var: bool = True,
        ghost_batch_size: SupportsIndex | None = None,
        time_steps: SupportsIndex | None = None,
        comm: Communicator | None = None,
        comm_timeout: float = 600.0,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            channel_axis,
            dtype,
            bias,
            unbiased_running_var=unbiased_running_var,
            ghost_batch_size=ghost_batch_size,
            time_steps=time_steps,
            comm=comm,
            comm_timeout=comm_timeout,
        )

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "training": self._learning}


class InstanceNorm(Foldable, _RunningNorm):
    r"""Instance normalization: over all positions of each channel of each sample.

    .. math:: y = \frac{x - mean}{\sqrt{var + \epsilon}} \cdot weight + bias

    Mean and (biased) variance are those of x or, in evaluation and with
    `track_running_stats`, the buffers, which hold running averages over the samples.

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    eps : float, default 1e-5
        Added to the variance.
    momentum : float or None, default 0.1
        Weight of the new value in the buffers; None for the average over all batches so far.
    affine : bool, default False
        Whether there are parameters at all.
    track_running_stats : bool, default False
        Whether there are buffers.
    channel_axis : int, default 1
        1 for NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64. x may have another one.
    bias : bool, default True
        Whether, given `affine`, there is a ``bias``.
    unbiased_running_var : bool, default True
        Whether ``running_var`` holds variances with divisor n - 1, as in torch, or n.
    ghost_batch_size, time_steps : int, optional
        As in `BatchNorm`.

    Attributes
    ----------
    parameters : dict
        ``weight`` (starts at 1) and ``bias`` (starts at 0), of shape (num_features,).
    buffers : dict
        As in `BatchNorm`; unlike torch, ``num_batches_tracked`` counts here too, which
        ``momentum=None`` needs.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or with one value per channel and sample.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Ulyanov, Vedaldi and Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", 2016, arXiv:1607.08022.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.InstanceNorm(2)
    >>> layer(np.array([[[1.0, 3.0], [70.0, 50.0]]])).round(3)
    array([[[-1.,  1.],
            [ 1., -1.]]])
    """

    _function = staticmethod(functional.instance_norm)
    _function_backward = staticmethod(functional.instance_norm_backward)

    _has_variance = True
    _unusual: ClassVar[dict[str, object]] = {
        **_RunningNorm._unusual,
        "unbiased_running_var": True,
    }

    running_var = maybe(RUNNING_VAR)

    def __init__(
        self,
        num_features: SupportsIndex,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
        *,
        bias: bool = True,
        unbiased_running_var: bool = True,
        ghost_batch_size: SupportsIndex | None = None,
        time_steps: SupportsIndex | None = None,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            channel_axis,
            dtype,
            bias,
            unbiased_running_var=unbiased_running_var,
            ghost_batch_size=ghost_batch_size,
            time_steps=time_steps,
        )

    def _options(self) -> dict[str, Any]:
        use_input_stats = self._learning or not self.track_running_stats
        return {**super()._options(), "use_input_stats": use_input_stats}

    def _moments_of(self, x: Any) -> Moments:
        # The buffers are averages over the samples: of means, and of variances.
        _, stats = functional.instance_norm(x, channel_axis=self.channel_axis, return_stats=True)
        shape = shape_of(x)
        space = math.prod(shape) / (shape[0] * self.num_features)
        pooled = np.asarray(stats.pooled)
        var = pooled[..., 1] * (space / (space - 1) if self.unbiased_running_var else 1)
        return Moments(float(shape[0]), pooled[..., 0].mean(axis=0), var.sum(axis=0))

    def _merged(self, parts: list[Moments]) -> dict[str, Array]:
        total = Moments.merge(parts)
        return {
            "running_mean": total.mean,
            "running_var": sum(part.m2 for part in parts) / total.count,
        }
