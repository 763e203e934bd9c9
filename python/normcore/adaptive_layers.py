"""Layers of the adaptive methods.

What all layers share is in `normcore._layer`; running statistics live as in `BatchNorm`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, SupportsIndex

import numpy as np
import numpy.typing as npt

from . import adaptive, scaled
from ._arguments import flag, integer, not_negative, number, positive, shape_of, shown
from ._attributes import always, maybe
from ._dtypes import float_dtype, new_array
from ._interop import Array, as_numpy
from ._layer import affine_parameters
from ._life import Foldable
from ._running import RUNNING_VAR, _MaskedNorm, _RunningNorm
from ._typing import Communicator
from .reductions import Moments

__all__ = [
    "BatchInstanceNorm",
    "BatchRenorm",
    "LpBatchNorm",
    "MeanOnlyBatchNorm",
    "SwitchableNorm",
    "TopKBatchNorm",
]


class _TrainingNorm(_RunningNorm):
    """A layer with running statistics whose functions take ``training``."""

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "training": self._learning}


class BatchRenorm(Foldable, _MaskedNorm, _TrainingNorm):
    r"""Batch renormalization: batch statistics, corrected towards the running ones.

    In training ``y = weight * ((x - mean) / s * r + d) + bias``, see
    `normcore.batch_renorm`; in evaluation the buffers are used.

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    eps : float, default 1e-5
        Added to the variance.
    momentum : float or None, default 0.01
        Weight of the new value in the buffers; None for the average over all batches so far.
    r_max, d_max : float, default 3 and 5
        Bounds of the corrections, at the end of the schedule.
    schedule : (int, int, int) or None, default (5000, 40000, 25000)
        Training steps: up to the first there are no corrections, which is batch norm; from there
        the bounds rise linearly, r_max until the second and d_max until the third. None: they are
        what they are from the start.
    affine : bool, default True
        Whether there are parameters at all.
    channel_axis : int, default 1
        1 for (N, C) and NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64. x may have another one.
    bias : bool, default True
        Whether, given `affine`, there is a ``bias``.
    ghost_batch_size, time_steps, comm, comm_timeout : optional
        As in `BatchNorm`.

    Attributes
    ----------
    parameters : dict
        ``weight`` (starts at 1) and ``bias`` (starts at 0), of shape (num_features,).
    buffers : dict
        ``running_mean`` (starts at 0) and ``running_std`` (starts at 1), of shape (num_features,),
        and ``num_batches_tracked``, which is the step of the schedule; with one it is left by
        `recompute_statistics`.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or, in training, with one value per channel; on
        construction for a schedule that does not rise.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized
    Models", 2017, arXiv:1702.03275.

    Examples
    --------
    >>> import normcore as nc
    >>> layer = nc.BatchRenorm(4)
    >>> layer.bounds(0), layer.bounds(22500), layer.bounds(50000)
    ((1.0, 0.0), (2.0, 4.375), (3.0, 5.0))
    """

    _over_processes = True
    _function = staticmethod(adaptive.batch_renorm)
    _function_backward = staticmethod(adaptive.batch_renorm_backward)
    _running = ("running_mean", "running_std")
    _named = ("eps", "momentum", "r_max", "d_max", "schedule", "affine", "bias")

    running_std = always("Running standard deviation.")

    def __init__(
        self,
        num_features: SupportsIndex,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        r_max: float = 3.0,
        d_max: float = 5.0,
        schedule: tuple[int, int, int] | None = (5000, 40000, 25000),
        affine: bool = True,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
        *,
        bias: bool = True,
        ghost_batch_size: SupportsIndex | None = None,
        time_steps: SupportsIndex | None = None,
        comm: Communicator | None = None,
        comm_timeout: float = 600.0,
    ) -> None:
        self.r_max = number("r_max", r_max, "a number >= 1", lambda v: 1 <= v < math.inf)
        self.d_max = not_negative("d_max", d_max)
        self.schedule = None if schedule is None else _schedule(schedule)
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            True,
            channel_axis,
            dtype,
            bias,
            ghost_batch_size=ghost_batch_size,
            time_steps=time_steps,
            comm=comm,
            comm_timeout=comm_timeout,
        )

    def _counted(self, batches: int) -> dict[str, Any]:
        return super()._counted(batches) if self.schedule is None else {}

    def bounds(self, step: int) -> tuple[float, float]:
        """Return (r_max, d_max) of a training step."""
        if self.schedule is None:
            return self.r_max, self.d_max
        start, r_end, d_end = self.schedule
        r, d = (min(1.0, max(0.0, (step - start) / (end - start))) for end in (r_end, d_end))
        return 1 + (self.r_max - 1) * r, self.d_max * d

    def _running_options(self, buffers: dict[str, Array]) -> dict[str, Any]:
        r_max, d_max = self.bounds(int(buffers["num_batches_tracked"]))
        return {**super()._running_options(buffers), "r_max": r_max, "d_max": d_max}


def _schedule(schedule: Any) -> tuple[int, int, int]:
    rule = "(start, end of r_max, end of d_max), integers with both ends after the start"
    try:
        start, r_end, d_end = schedule
    except (TypeError, ValueError) as error:
        raise type(error)(f"schedule is {shown(schedule)}, expected {rule}") from None
    start, r_end, d_end = (integer("schedule", n, rule) for n in (start, r_end, d_end))
    if start < 0 or min(r_end, d_end) <= start:
        raise ValueError(f"schedule is {shown(schedule)}, expected {rule}")
    return start, r_end, d_end


class BatchInstanceNorm(_TrainingNorm):
    r"""Batch-instance normalization: a learned gate per channel between the two.

    .. math:: y = (\rho \hat x_B + (1 - \rho) \hat x_I) \cdot weight + bias

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    eps : float, default 1e-5
        Added to the variances.
    momentum : float or None, default 0.1
        Weight of the new value in the buffers; None for the average over all batches so far.
    affine : bool, default True
        Whether there are ``weight`` and ``bias``.
    track_running_stats : bool, default True
        Whether there are buffers.
    channel_axis : int, default 1
        1 for NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64. x may have another one.
    bias : bool, default True
        Whether, given `affine`, there is a ``bias``.
    unbiased_running_var : bool, default True
        Whether ``running_var`` holds variances with divisor n - 1, as in torch, or n.
    ghost_batch_size, time_steps, comm, comm_timeout : optional
        As in `BatchNorm`.

    Attributes
    ----------
    parameters : dict
        ``rho`` (starts at 1, which is batch norm), ``weight`` and ``bias``, of shape
        (num_features,). The paper trains ``rho`` with ten times the learning rate, and keeps it in
        [0, 1]: call `project` after each step.
    buffers : dict
        As in `BatchNorm`.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or, in training, with one value per channel.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Nam and Kim, "Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks",
    2018, arXiv:1805.07925.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.BatchInstanceNorm(2)
    >>> layer.parameters["rho"] += np.float32([0.5, -0.5])  # a step
    >>> layer.project()
    >>> layer.parameters["rho"]
    array([1. , 0.5], dtype=float32)
    """

    _over_processes = True
    _function = staticmethod(adaptive.batch_instance_norm)
    _function_backward = staticmethod(adaptive.batch_instance_norm_backward)

    _has_variance = True
    _unusual: ClassVar[dict[str, object]] = {
        **_RunningNorm._unusual,
        "unbiased_running_var": True,
    }

    rho = always("The share of batch norm in each channel.")
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
        n = positive("num_features", num_features)
        own = {"rho": new_array(n, float_dtype(dtype), "num_features")}
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            channel_axis,
            dtype,
            bias,
            own,
            unbiased_running_var=unbiased_running_var,
            ghost_batch_size=ghost_batch_size,
            time_steps=time_steps,
            comm=comm,
            comm_timeout=comm_timeout,
        )

    def project(self) -> None:
        """Clamp ``rho`` to [0, 1], in place; after each step of the optimizer."""
        rho = self.parameters["rho"]
        np.clip(rho, rho.dtype.type(0), rho.dtype.type(1), out=rho)


class SwitchableNorm(_TrainingNorm):
    r"""Switchable normalization: learned mixtures of instance, layer and batch statistics.

    .. math:: y = \frac{x - \sum_k w_k mean_k}{\sqrt{\sum_k v_k var_k + \epsilon}} \cdot weight
              + bias

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    eps : float, default 1e-5
        Added to the variance.
    momentum : float or None, default 0.1
        Weight of the new value in the buffers; None for the average over all batches so far, the
        paper's batch average.
    affine : bool, default True
        Whether there are ``weight`` and ``bias``.
    track_running_stats : bool, default True
        Whether there are buffers.
    channel_axis : int, default 1
        1 for NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the parameters: float16, bfloat16, float32 or float64. x may have another one.
    bias : bool, default True
        Whether, given `affine`, there is a ``bias``.
    ghost_batch_size, time_steps, comm, comm_timeout : optional
        As in `BatchNorm`.

    Attributes
    ----------
    parameters : dict
        ``mean_logits`` and ``var_logits``, of shape (3,) in the order instance, layer, batch, which
        start at 1, equal thirds; ``weight`` and ``bias``, of shape (num_features,).
    buffers : dict
        ``running_mean`` (starts at 0) and ``running_var`` (starts at 1), the biased variance of the
        batch, and ``num_batches_tracked``.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or, in training, with one value per channel.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Luo, Ren, Peng, Zhang and Li, "Differentiable Learning-to-Normalize via Switchable
    Normalization", 2019, arXiv:1806.10779.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.SwitchableNorm(2)
    >>> x = np.array([[[1.0, 3.0], [5.0, 7.0]], [[0.0, 2.0], [8.0, 6.0]]])
    >>> dx = layer.backward(layer(x))
    >>> layer.grads["mean_logits"].shape
    (3,)
    """

    _over_processes = True
    _function = staticmethod(adaptive.switchable_norm)
    _function_backward = staticmethod(adaptive.switchable_norm_backward)

    mean_logits = always("Of the mixture of means: instance, layer, batch.")
    var_logits = always("Of the mixture of variances: instance, layer, batch.")
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
        ghost_batch_size: SupportsIndex | None = None,
        time_steps: SupportsIndex | None = None,
        comm: Communicator | None = None,
        comm_timeout: float = 600.0,
    ) -> None:
        own = {name: np.empty(3, float_dtype(dtype)) for name in ("mean_logits", "var_logits")}
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            channel_axis,
            dtype,
            bias,
            own,
            unbiased_running_var=False,
            ghost_batch_size=ghost_batch_size,
            time_steps=time_steps,
            comm=comm,
            comm_timeout=comm_timeout,
        )


class MeanOnlyBatchNorm(Foldable, _MaskedNorm, _TrainingNorm):
    """Mean-only batch normalization: ``y = x - mean + bias``, the companion of `WeightNorm`.

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    momentum : float or None, default 0.1
        Weight of the new value in the buffer; None for the average over all batches so far.
    track_running_stats : bool, default True
        Whether there is a buffer.
    channel_axis : int, default 1
        1 for (N, C) and NCHW, -1 for channels-last.
    dtype : dtype, default numpy.float32
        Of the bias: float16, bfloat16, float32 or float64. x may have another one.
    bias : bool, default True
        Whether there is a ``bias``.
    ghost_batch_size, time_steps, comm, comm_timeout : optional
        As in `BatchNorm`.

    Attributes
    ----------
    parameters : dict
        ``bias`` (starts at 0), of shape (num_features,).
    buffers : dict
        ``running_mean`` (starts at 0), of shape (num_features,), and ``num_batches_tracked``.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or, in training, with one value per channel.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training
    of Deep Neural Networks", 2016, arXiv:1602.07868.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.MeanOnlyBatchNorm(1)
    >>> layer(np.array([[1.0], [3.0]])).ravel()
    array([-1.,  1.])
    >>> layer.buffers["running_mean"]
    array([0.2], dtype=float32)
    """

    _over_processes = True
    _function = staticmethod(adaptive.mean_only_batch_norm)
    _function_backward = staticmethod(adaptive.mean_only_batch_norm_backward)
    _running = ("running_mean",)
    _named = ("momentum", "bias", "track_running_stats")

    def __init__(
        self,
        num_features: SupportsIndex,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
        *,
        bias: bool = True,
        ghost_batch_size: SupportsIndex | None = None,
        time_steps: SupportsIndex | None = None,
        comm: Communicator | None = None,
        comm_timeout: float = 600.0,
    ) -> None:
        own = affine_parameters(
            (positive("num_features", num_features),), dtype, weight=False, bias=flag("bias", bias)
        )
        super().__init__(
            num_features,
            eps=0.0,
            momentum=momentum,
            affine=False,
            track_running_stats=track_running_stats,
            channel_axis=channel_axis,
            dtype=dtype,
            bias=False,
            own=own,
            ghost_batch_size=ghost_batch_size,
            time_steps=time_steps,
            comm=comm,
            comm_timeout=comm_timeout,
        )

    def _options(self) -> dict[str, Any]:
        options = super()._options()
        del options["eps"]
        return options


class _ScaledNorm(Foldable, _TrainingNorm):
    _running = ("running_mean", "running_scale")

    running_scale = maybe("Running scale; None without `track_running_stats`.")

    def _moments_of(self, x: Any) -> Moments:
        # Scales of this kind do not merge: their average, weighed by the counts, has to do.
        shape = shape_of(x)
        count = math.prod(shape) / self.num_features
        # One value has the scale of two that are the same, which the function does not refuse.
        of = x if count > 1 else np.concatenate([as_numpy(x)] * 2)
        own = {k: v for k, v in self._options().items() if k != "training"}
        _, stats = self._function(of, **own, return_stats=True)
        scale = 1 / as_numpy(stats.rstd).astype(np.float64)
        return Moments(count, np.asarray(stats.pooled)[..., 0], scale * count)

    def _merged(self, parts: list[Moments]) -> dict[str, Array]:
        total = Moments.merge(parts)
        return {
            "running_mean": total.mean,
            "running_scale": sum(part.m2 for part in parts) / total.count,
        }


class LpBatchNorm(_ScaledNorm):
    """Lp batch normalization: by the mean p-th power of the deviations.

    The formula is that of `normcore.lp_batch_norm`.

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    p : float, default 1
        The order, at least 1; also ``inf``.
    eps : float, default 1e-5
        Keeps the scale from 0.
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
    ghost_batch_size, time_steps : int, optional
        As in `BatchNorm`.

    Attributes
    ----------
    parameters : dict
        ``weight`` (starts at 1) and ``bias`` (starts at 0), of shape (num_features,).
    buffers : dict
        ``running_mean`` (starts at 0) and ``running_scale`` (starts at 1), the scale itself, of
        shape (num_features,), and ``num_batches_tracked``.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or, in training, with one value per channel; for a
        p below 1.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Hoffer, Banner, Golan and Soudry, "Norm matters: efficient and accurate normalization schemes in
    deep networks", 2018, arXiv:1803.01814.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.LpBatchNorm(1, p=np.inf)(np.array([[0.0], [0.0], [3.0]])).round(4).ravel()
    array([-0.5, -0.5,  1. ])
    """

    _function = staticmethod(scaled.lp_batch_norm)
    _function_backward = staticmethod(scaled.lp_batch_norm_backward)
    _named = ("p", "eps", "momentum", "affine", "bias", "track_running_stats")

    def __init__(
        self,
        num_features: SupportsIndex,
        p: float = 1.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
        *,
        bias: bool = True,
        ghost_batch_size: SupportsIndex | None = None,
        time_steps: SupportsIndex | None = None,
    ) -> None:
        self.p = number("p", p, "a number >= 1 or infinity", lambda v: v >= 1)
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            channel_axis,
            dtype,
            bias,
            ghost_batch_size=ghost_batch_size,
            time_steps=time_steps,
        )

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "p": self.p}


class TopKBatchNorm(_ScaledNorm):
    """Top-k batch normalization: by the k largest deviations, see `normcore.topk_batch_norm`.

    Parameters
    ----------
    num_features : int
        Size of x along `channel_axis`.
    k : int, default 10
        At least 1.
    eps : float, default 1e-5
        Added to the scale.
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
    ghost_batch_size, time_steps : int, optional
        As in `BatchNorm`.

    Attributes
    ----------
    parameters : dict
        ``weight`` (starts at 1) and ``bias`` (starts at 0), of shape (num_features,).
    buffers : dict
        As in `LpBatchNorm`.

    Raises
    ------
    ValueError
        For an x without `num_features` channels or, in training, with one value per channel; for a
        k below 1.
    TypeError
        For a dtype that is not one of the four.

    References
    ----------
    Hoffer, Banner, Golan and Soudry, "Norm matters: efficient and accurate normalization schemes in
    deep networks", 2018, arXiv:1803.01814.

    Examples
    --------
    >>> import normcore as nc
    >>> nc.TopKBatchNorm(8, k=3)
    TopKBatchNorm(8, k=3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """

    _function = staticmethod(scaled.topk_batch_norm)
    _function_backward = staticmethod(scaled.topk_batch_norm_backward)
    _named = ("k", "eps", "momentum", "affine", "bias", "track_running_stats")

    def __init__(
        self,
        num_features: SupportsIndex,
        k: SupportsIndex = 10,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        channel_axis: SupportsIndex = 1,
        dtype: npt.DTypeLike = np.float32,
        *,
        bias: bool = True,
        ghost_batch_size: SupportsIndex | None = None,
        time_steps: SupportsIndex | None = None,
    ) -> None:
        self.k = positive("k", k)
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            channel_axis,
            dtype,
            bias,
            ghost_batch_size=ghost_batch_size,
            time_steps=time_steps,
        )

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "k": self.k}
