"""Modules: torch's own normalizations with the operators of normcore, and the methods that torch
does not have."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import normcore as nc

from .._arguments import averaging, positive
from .._arguments import axis as checked_axis
from .._life import ghost_chunks
from .._processes import Processes as _Meeting
from ..methods.batch_renorm import scheduled_bounds
from . import _functions as f
from ._autograd import OPERATORS, Processes, is_recorded
from ._export import recorded
from ._operators import METHODS

__all__ = [
    "GDN",
    "BatchInstanceNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm",
    "DivisiveNorm",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LocalDivisiveNorm",
    "LocalResponseNorm",
    "LpBatchNorm",
    "MeanOnlyBatchNorm",
    "RMSNorm",
    "SwitchableNorm",
    "TopKBatchNorm",
    "replace_modules",
    "restore_modules",
]


def _left_to_torch(x: Tensor) -> bool:
    """Whether torch compiles, exports or traces the call: it knows its own operations, and fuses
    them, and not ours. It has nested tensors, too."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_nested


# ---- torch's modules


def _trailing(x: Tensor, shape: Sequence[int]) -> list[int]:
    """The axes of x that have this shape, the last ones."""
    if x.shape[-len(shape) :] != shape:
        raise ValueError(
            f"input has shape {tuple(x.shape)}, expected (*, {', '.join(map(str, shape))}), with "
            "normalized_shape at its end"
        )
    return list(range(-len(shape), 0))


class LayerNorm(nn.LayerNorm):
    """``torch.nn.LayerNorm`` by :func:`layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        if _left_to_torch(input):
            return super().forward(input)
        axes = _trailing(input, self.normalized_shape)
        return OPERATORS["layer_norm"](input, self.weight, self.bias, axes, self.eps)


class RMSNorm(nn.RMSNorm):
    """``torch.nn.RMSNorm`` by :func:`rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        if _left_to_torch(x):
            return super().forward(x)
        axes, eps = _trailing(x, self.normalized_shape), self.eps
        if eps is None:  # as torch has it: of what 16 bits are computed in
            eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
        return OPERATORS["rms_norm"](x, self.weight, axes, eps, 0.0)


class GroupNorm(nn.GroupNorm):
    """``torch.nn.GroupNorm`` by :func:`group_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        if _left_to_torch(input):
            return super().forward(input)
        return f.group_norm(input, self.num_groups, self.weight, self.bias, eps=self.eps)


class LocalResponseNorm(nn.LocalResponseNorm):
    """``torch.nn.LocalResponseNorm`` by :func:`local_response_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        if _left_to_torch(input):
            return super().forward(input)
        return f.local_response_norm(input, self.size, alpha=self.alpha, beta=self.beta, k=self.k)


class _InstanceNorm:
    """What takes the place of a step of torch's classes."""

    def _apply_instance_norm(self: Any, input: Tensor) -> Tensor:
        if _left_to_torch(input):
            return super()._apply_instance_norm(input)  # type: ignore[misc]
        own = self.training or not self.track_running_stats
        with _buffers(self, input, ("running_mean", "running_var")) as buffers:
            return f.instance_norm(
                input,
                self.weight,
                self.bias,
                **buffers,
                use_input_stats=own,
                momentum=0.0 if self.momentum is None else self.momentum,
                eps=self.eps,
            )


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """``torch.nn.InstanceNorm1d`` by :func:`instance_norm`."""


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d`` by :func:`instance_norm`."""


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d`` by :func:`instance_norm`."""


# ---- running statistics


@torch.compiler.disable  # a graph has no numbers that depend on data
def _number(count: Tensor) -> float:
    return float(count)


@contextmanager
def _buffers(module: nn.Module, x: Tensor, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A module's running statistics in the dtype of x's statistics. Those of another dtype, as
    ``module.half()`` makes them, are copied there and back."""
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    own = {name: getattr(module, name) for name in names}
    used = {name: b if b is None or b.dtype == exact else b.to(exact) for name, b in own.items()}
    yield used
    for name, buffer in own.items():
        if used[name] is not buffer and module.training:
            buffer.copy_(used[name])


@contextmanager
def _all_or_none(buffers: Sequence[Tensor | None]) -> Iterator[None]:
    """Buffers stay as they were where one of several parts of a batch is refused."""
    if torch.compiler.is_compiling():  # a graph has no errors on the way
        yield
        return
    kept = [(buffer, buffer.clone()) for buffer in buffers if buffer is not None]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
        raise


class _Group:
    """A group of torch.distributed, as `normcore._processes` takes a communicator."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def allreduce(self, values: Any) -> Any:
        import torch.distributed as dist

        if isinstance(values, Tensor):
            dist.all_reduce(values, group=self._group)
            return values
        total = torch.from_numpy(values)
        dist.all_reduce(total, group=self._group)
        return total.numpy()


class _Sharing(Processes):
    """A call whose statistics are those of the batches of all processes of a group."""

    def __init__(self, meeting: _Meeting, what: str, x: Tensor) -> None:
        # Of x no more than its library and device is needed, and graphs may keep this for long.
        self._meeting, self._what, self._x = meeting, what, x.detach().new_empty(0)

    def together(self) -> AbstractContextManager[None]:
        return self._meeting.together(self._what, self._x)


class _Life:
    """The life of batch statistics, in modules whose forward is `_normalize`.

    ``ghost_batch_size`` splits a training batch into parts with statistics of their own, each of
    which counts as a batch; ``process_group`` is a group of ``torch.distributed`` whose processes
    call the module together, in forward and backward, and share statistics: exact for any number
    of samples in each, also none. ``freeze()`` makes training use the running statistics, and keep
    them.
    """

    ghost_batch_size: int | None = None
    process_group: Any = None  # which pickled modules come back without
    frozen = False

    def _live(self, ghost_batch_size: int | None, process_group: Any) -> None:
        if ghost_batch_size is not None and process_group is not None:
            raise ValueError("ghost_batch_size and process_group are given, expected one of them")
        if ghost_batch_size is not None and ghost_batch_size < 1:
            raise ValueError(f"ghost_batch_size is {ghost_batch_size}, expected at least 1")
        self.ghost_batch_size, self.process_group = ghost_batch_size, process_group

    def freeze(self: Any) -> Any:
        """Use the running statistics in training too, and keep them; parameters still learn."""
        if not self.track_running_stats:
            raise ValueError("freeze needs running statistics: track_running_stats is False")
        self.frozen = True
        return self

    def unfreeze(self) -> Any:
        """Undo `freeze`."""
        self.frozen = False
        return self

    # What differs between torch's classes and ours.
    _buffer_names: Sequence[str] = ("running_mean", "running_var")
    _counts_empty = True  # whether a batch of no samples is one
    channel_axis = 1

    def _normalize(
        self: Any, x: Tensor, mask: Any, training: bool, momentum: float, buffers: dict[str, Any]
    ) -> Tensor:
        raise NotImplementedError

    def _learns(self: Any) -> bool:
        """Whether a call takes statistics from x: also where there are no others."""
        return bool(self.training) and not self.frozen

    def _run(self: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        learns = self._learns()
        mask = f.position_weights(mask, x, self.channel_axis)
        chunks = [slice(None)]
        if learns and self.ghost_batch_size is not None and x.numel() > 0:
            per_sample = x[0].numel() // x.shape[self.channel_axis]
            chunks = ghost_chunks(x.shape[0], self.ghost_batch_size, per_sample)
        if len(chunks) == 1:
            return self._run_chunk(x, mask, learns)
        with _all_or_none([getattr(self, n) for n in (*self._buffer_names, "num_batches_tracked")]):
            parts = [
                self._run_chunk(x[c], None if mask is None else mask[c], learns) for c in chunks
            ]
        return torch.cat(parts)

    def _run_chunk(self: Any, x: Tensor, mask: Tensor | None, learns: bool) -> Tensor:
        tracks = self.track_running_stats and self.training and not self.frozen
        counter = self.num_batches_tracked if tracks else None
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.momentum is None and counter is not None:
            momentum = 1.0 / (_number(counter) + 1.0)
        # In training buffers that are not tracked stay out; torch keeps them for evaluation.
        names = self._buffer_names
        used = (
            _buffers(self, x, names) if tracks or not learns else nullcontext(dict.fromkeys(names))
        )
        shares = learns and self.process_group is not None
        with used as buffers:
            normalize = self._normalize_together if shares else self._normalize
            y = normalize(x, mask, learns, momentum, buffers)
        if counter is not None:
            # Batches of nothing leave the statistics alone, and must not weigh in their average.
            if shares:
                counter.add_(int(self._meeting().count != 0))
            elif mask is not None:
                counter.add_(mask.any())
            else:
                counter.add_(int(self._counts_empty or x.numel() > 0))
        return y

    @torch.compiler.disable  # a graph would not know of the processes
    def _normalize_together(
        self: Any, x: Tensor, mask: Any, training: bool, momentum: float, buffers: dict[str, Any]
    ) -> Tensor:
        with _Sharing(self._meeting(), type(self).__name__, x).entered():
            return self._normalize(x, mask, training, momentum, buffers)

    def _meeting(self: Any) -> _Meeting:
        kept = self.__dict__.get("_met")
        if kept is None or kept[0] is not self.process_group:
            kept = (self.process_group, _Meeting(_Group(self.process_group), 600.0))
            self.__dict__["_met"] = kept
        return kept[1]

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        new: Any = object.__new__(type(self))
        memo[id(self)] = new
        # Not by __getstate__, which torch's parametrizations take away.
        new.__dict__.update(copy.deepcopy(self._state(), memo))
        new.process_group = self.process_group
        return new

    def __getstate__(self) -> dict[str, Any]:
        return self._state()

    def _state(self: Any) -> dict[str, Any]:
        state = dict(self.__dict__)
        state.pop("_met", None)
        if state.get("process_group") is not None:  # it is of this process
            state["process_group"] = None
        return state


class _BatchNorm(_Life):
    """What takes the place of the forward of torch's classes."""

    def __init__(
        self,
        *arguments: Any,
        ghost_batch_size: int | None = None,
        process_group: Any = None,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self._live(ghost_batch_size, process_group)

    def _learns(self: Any) -> bool:
        return (self.training and not self.frozen) or self.running_mean is None

    def _normalize(
        self: Any, x: Tensor, mask: Any, training: bool, momentum: float, buffers: dict[str, Any]
    ) -> Tensor:
        return f.batch_norm(
            x, self.weight, self.bias, **buffers, training=training, momentum=momentum,
            eps=self.eps, mask=mask,
        )  # fmt: skip

    def forward(self: Any, input: Tensor, mask: Tensor | None = None) -> Tensor:
        plain = mask is None and self.ghost_batch_size is None and self.process_group is None
        if plain and not self.frozen and _left_to_torch(input):
            return super().forward(input)  # type: ignore[misc]
        self._check_input_dim(input)
        return self._run(input, mask)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` by :func:`batch_norm`, with masks and the life of statistics."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` by :func:`batch_norm`, with masks and the life of statistics."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` by :func:`batch_norm`, with masks and the life of statistics."""


# ---- methods that torch does not have


class _Channels(nn.Module):
    """A module of one value a channel: what it has and how it starts is in its signature."""

    _function = ""  # its name
    _starts: ClassVar[dict[str, float]] = {
        "running_var": 1.0,
        "running_std": 1.0,
        "running_scale": 1.0,
        "weight": 1.0,
    }

    def _make(
        self, num_features: int, affine: bool, bias: bool, tracks: bool, device: Any, dtype: Any
    ) -> None:
        if num_features < 1:
            raise ValueError(f"num_features is {num_features}, expected at least 1")
        method = METHODS[self._function]
        lengths = {"channels": num_features, "three": 3}
        for name, of in method.own_shapes.items():
            value = torch.empty(lengths[of], device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(value))
        for name in method.affine:
            wanted = affine if name == "weight" else bias
            value = torch.empty(num_features, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, None if value is None else nn.Parameter(value))
        for name in method.buffer_names:
            value = torch.empty(num_features, device=device, dtype=dtype) if tracks else None
            self.register_buffer(name, value)
        if method.buffer_names:
            count = torch.tensor(0, dtype=torch.long, device=device) if tracks else None
            self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Running statistics as they start."""
        for name in (*METHODS[self._function].buffer_names, "num_batches_tracked"):
            buffer = getattr(self, name)
            if buffer is not None:
                buffer.fill_(self._starts.get(name, 0.0))

    def reset_parameters(self) -> None:
        """Parameters and running statistics as they start."""
        self.reset_running_stats()
        for name, parameter in self.named_parameters(recurse=False):
            nn.init.constant_(parameter, self._starts.get(name, 0.0))


class _RunningNorm(_Life, _Channels):
    """Such a module with running statistics."""

    num_features: int
    track_running_stats: bool
    _counts_empty = False
    _options: tuple[str, ...] = ("eps",)  # attributes that are arguments of the function
    _shown: tuple[str, ...] = ()  # others that `repr` has

    def _begin(
        self, num_features: int, momentum: float | None, affine: bool, track_running_stats: bool,
        channel_axis: int, device: Any, dtype: Any, bias: bool, ghost_batch_size: int | None,
        process_group: Any,
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        self.num_features, self.momentum = num_features, averaging("momentum", momentum)
        self.affine, self.track_running_stats = affine, track_running_stats
        self.channel_axis = channel_axis
        self._buffer_names = METHODS[self._function].buffer_names
        self._live(ghost_batch_size, process_group)
        self._make(num_features, affine, affine and bias, track_running_stats, device, dtype)

    def _arguments(self, training: bool) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._options}

    def _normalize(
        self, x: Tensor, mask: Any, training: bool, momentum: float, buffers: dict[str, Any]
    ) -> Tensor:
        method = METHODS[self._function]
        parameters = [getattr(self, name) for name in (*method.own_shapes, *method.affine)]
        options = self._arguments(training)
        if mask is not None:
            if "mask" not in method.arguments:
                raise ValueError(f"mask is given, and {type(self).__name__} takes none")
            options["mask"] = mask
        return getattr(f, self._function)(
            x, *parameters, **buffers, training=training, momentum=momentum,
            channel_axis=self.channel_axis, **options,
        )  # fmt: skip

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        axis = checked_axis("channel_axis", self.channel_axis, x.dim()) if x.dim() > 1 else 0
        if x.dim() < 2 or x.shape[axis] != self.num_features:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected {self.num_features} channels on axis "
                f"{self.channel_axis}"
            )
        return self._run(x, mask)

    def extra_repr(self) -> str:
        shown = {"momentum": self.momentum}
        if "weight" in METHODS[self._function].affine:
            shown["affine"] = self.affine
        shown |= {name: getattr(self, name) for name in (*self._options, *self._shown)}
        if self.ghost_batch_size is not None:
            shown["ghost_batch_size"] = self.ghost_batch_size
        parts = [str(self.num_features), *(f"{k}={v}" for k, v in shown.items())]
        if not self.track_running_stats:
            parts.append("track_running_stats=False")
        if self.channel_axis != 1:
            parts.append(f"channel_axis={self.channel_axis}")
        return ", ".join(parts)


class BatchRenorm(_RunningNorm):
    """Batch renormalization: :class:`normcore.BatchRenorm` as a module.

    The bounds of the corrections follow the paper's schedule by the number of batches tracked.
    """

    _function = "batch_renorm"
    _shown = ("r_max", "d_max", "schedule")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        r_max: float = 3.0,
        d_max: float = 5.0,
        schedule: tuple[int, int, int] | None = (5000, 40000, 25000),
        affine: bool = True,
        channel_axis: int = 1,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        ghost_batch_size: int | None = None,
        process_group: Any = None,
    ) -> None:
        self._begin(
            num_features, momentum, affine, True, channel_axis, device, dtype, bias,
            ghost_batch_size, process_group,
        )  # fmt: skip
        self.eps, self.r_max, self.d_max, self.schedule = eps, r_max, d_max, schedule

    def bounds(self, step: int) -> tuple[float, float]:
        """(r_max, d_max) of a training step."""
        return scheduled_bounds(self.schedule, step, self.r_max, self.d_max)

    def _arguments(self, training: bool) -> dict[str, Any]:
        r_max, d_max = self.r_max, self.d_max
        if training and self.schedule is not None:
            r_max, d_max = self.bounds(int(_number(self.num_batches_tracked)))
        return {**super()._arguments(training), "r_max": r_max, "d_max": d_max}


class BatchInstanceNorm(_RunningNorm):
    """Batch-instance normalization: :class:`normcore.BatchInstanceNorm` as a module.

    ``rho`` is used as it is: `project` clamps it to [0, 1], as the paper does after each step.
    """

    _function = "batch_instance_norm"
    _options = ("eps", "unbiased_running_var")
    _starts: ClassVar[dict[str, float]] = {**_Channels._starts, "rho": 1.0}

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        channel_axis: int = 1,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        unbiased_running_var: bool = True,
        ghost_batch_size: int | None = None,
        process_group: Any = None,
    ) -> None:
        self._begin(
            num_features, momentum, affine, track_running_stats, channel_axis, device, dtype, bias,
            ghost_batch_size, process_group,
        )  # fmt: skip
        self.eps, self.unbiased_running_var = eps, unbiased_running_var

    @torch.no_grad()
    def project(self) -> None:
        """Clamp ``rho`` to [0, 1]: call it after each step of the optimizer."""
        self.rho.clamp_(0, 1)


class SwitchableNorm(_RunningNorm):
    """Switchable normalization: :class:`normcore.SwitchableNorm` as a module."""

    _function = "switchable_norm"
    _starts: ClassVar[dict[str, float]] = {
        **_Channels._starts,
        "mean_logits": 1.0,
        "var_logits": 1.0,
    }

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        channel_axis: int = 1,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        ghost_batch_size: int | None = None,
        process_group: Any = None,
    ) -> None:
        self._begin(
            num_features, momentum, affine, track_running_stats, channel_axis, device, dtype, bias,
            ghost_batch_size, process_group,
        )  # fmt: skip
        self.eps = eps


class MeanOnlyBatchNorm(_RunningNorm):
    """Mean-only batch normalization: :class:`normcore.MeanOnlyBatchNorm` as a module."""

    _function = "mean_only_batch_norm"
    _options = ()

    def __init__(
        self,
        num_features: int,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        channel_axis: int = 1,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        ghost_batch_size: int | None = None,
        process_group: Any = None,
    ) -> None:
        self._begin(
            num_features, momentum, True, track_running_stats, channel_axis, device, dtype, bias,
            ghost_batch_size, process_group,
        )  # fmt: skip


class LpBatchNorm(_RunningNorm):
    """Lp batch normalization: :class:`normcore.LpBatchNorm` as a module."""

    _function = "lp_batch_norm"
    _options = ("p", "eps")

    def __init__(
        self,
        num_features: int,
        p: float = 1.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        channel_axis: int = 1,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        ghost_batch_size: int | None = None,
    ) -> None:
        self._begin(
            num_features, momentum, affine, track_running_stats, channel_axis, device, dtype, bias,
            ghost_batch_size, None,
        )  # fmt: skip
        self.p, self.eps = p, eps


class TopKBatchNorm(_RunningNorm):
    """Top-k batch normalization: :class:`normcore.TopKBatchNorm` as a module."""

    _function = "topk_batch_norm"
    _options = ("k", "eps")

    def __init__(
        self,
        num_features: int,
        k: int = 10,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        channel_axis: int = 1,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        ghost_batch_size: int | None = None,
    ) -> None:
        self._begin(
            num_features, momentum, affine, track_running_stats, channel_axis, device, dtype, bias,
            ghost_batch_size, None,
        )  # fmt: skip
        self.k, self.eps = positive("k", k), eps


class DivisiveNorm(nn.Module):
    """Divisive normalization: :class:`normcore.DivisiveNorm` as a module."""

    def __init__(
        self,
        num_features: int,
        exponent: float = 2.0,
        power: float = 1.0,
        channel_axis: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.exponent, self.power = num_features, exponent, power
        self.channel_axis = channel_axis
        kind = {"device": device, "dtype": dtype}
        self.weights = nn.Parameter(torch.empty(num_features, num_features, **kind))
        self.sigma = nn.Parameter(torch.empty(num_features, **kind))
        self.gain = nn.Parameter(torch.empty(num_features, **kind))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Parameters as they start: the mean over the channels, and ones."""
        nn.init.constant_(self.weights, 1 / self.num_features)
        nn.init.ones_(self.sigma)
        nn.init.ones_(self.gain)

    @torch.no_grad()
    def project(self) -> None:
        """Clamp weights and sigma to 0 and more: call it after each step of the optimizer."""
        self.weights.clamp_(min=0)
        self.sigma.clamp_(min=0)

    def forward(self, x: Tensor) -> Tensor:
        return f.divisive_norm(
            x, self.weights, self.sigma, gain=self.gain, exponent=self.exponent, power=self.power,
            channel_axis=self.channel_axis,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.num_features}, exponent={self.exponent}, power={self.power}"


class LocalDivisiveNorm(nn.Module):
    """Local divisive normalization: :class:`normcore.LocalDivisiveNorm` as a module."""

    def __init__(
        self,
        num_features: int,
        summation_window: int | Sequence[int] = 5,
        suppression_window: int | Sequence[int] = 5,
        sigma: float = 1.0,
        affine: bool = True,
        channel_axis: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.channel_axis = num_features, channel_axis
        self.summation_window, self.suppression_window = summation_window, suppression_window
        self._sigma = sigma
        kind = {"device": device, "dtype": dtype}
        self.sigma = nn.Parameter(torch.empty((), **kind))
        for name in ("weight", "bias"):
            value = nn.Parameter(torch.empty(num_features, **kind)) if affine else None
            self.register_parameter(name, value)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Parameters as they start."""
        nn.init.constant_(self.sigma, self._sigma)
        if self.weight is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return f.local_divisive_norm(
            x, self.sigma, self.weight, self.bias, summation_window=self.summation_window,
            suppression_window=self.suppression_window, channel_axis=self.channel_axis,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.num_features}, {self.summation_window}, {self.suppression_window}"


class _LowerBound(torch.autograd.Function):
    """max(x, bound), whose gradient passes below the bound where descent would raise x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bound: float) -> Tensor:
        return x.clamp(min=bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.bound = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return torch.where((x >= ctx.bound) | (dy < 0), dy, 0), None


_recorded_lower_bound = recorded(
    "lower_bound_recorded", "lower_bound(Tensor x, float bound) -> Tensor",
    lambda x, bound: x.clamp(min=bound), _LowerBound, 1,
)  # fmt: skip


class GDN(nn.Module):
    """Generalized divisive normalization: :class:`normcore.GDN` as a module.

    The parameters are roots of beta and gamma, as there: ``effective_beta`` and
    ``effective_gamma`` are what they stand for.
    """

    pedestal = nc.GDN.pedestal

    def __init__(
        self,
        num_features: int,
        inverse: bool = False,
        alpha: float = 2.0,
        epsilon: float = 0.5,
        beta_min: float = 1e-6,
        gamma_init: float = 0.1,
        channel_axis: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.inverse = num_features, inverse
        self.alpha, self.epsilon, self.beta_min = alpha, epsilon, beta_min
        self.channel_axis, self._gamma_init = channel_axis, gamma_init
        kind = {"device": device, "dtype": dtype}
        self.beta = nn.Parameter(torch.empty(num_features, **kind))
        self.gamma = nn.Parameter(torch.empty(num_features, num_features, **kind))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Parameters as they start: beta 1 and gamma ``gamma_init`` on its diagonal."""
        self.beta.fill_((1.0 + self.pedestal) ** 0.5)
        self.gamma.copy_(self._gamma_init * torch.eye(self.num_features))
        self.gamma.add_(self.pedestal).sqrt_()

    def _effective(self, root: Tensor, least: float) -> Tensor:
        lower_bound = _recorded_lower_bound if is_recorded() else _LowerBound.apply
        bounded = lower_bound(root, (least + self.pedestal) ** 0.5)
        return bounded.square() - self.pedestal

    @property
    def effective_beta(self) -> Tensor:
        return self._effective(self.beta, self.beta_min)

    @property
    def effective_gamma(self) -> Tensor:
        return self._effective(self.gamma, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return f.gdn(
            x, self.effective_beta, self.effective_gamma, inverse=self.inverse, alpha=self.alpha,
            epsilon=self.epsilon, channel_axis=self.channel_axis,
        )  # fmt: skip

    def extra_repr(self) -> str:
        exponents = f"alpha={self.alpha}, epsilon={self.epsilon}"
        return f"{self.num_features}, inverse={self.inverse}, {exponents}"


# ---- trained models

_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    getattr(nn, c.__name__): c
    for c in (
        BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, InstanceNorm1d, InstanceNorm2d,
        InstanceNorm3d, LayerNorm, LocalResponseNorm, RMSNorm,
    )
}  # fmt: skip


def _chosen(kinds: Any) -> set[type[nn.Module]]:
    if kinds is None:
        return set(_REPLACEMENTS)
    if isinstance(kinds, str | type):
        kinds = [kinds]
    chosen = set()
    for kind in kinds:
        matches = {c for c in _REPLACEMENTS if c is kind or c.__name__ == kind}
        if not matches:
            names = ", ".join(sorted(c.__name__ for c in _REPLACEMENTS))
            raise ValueError(
                f"kinds has {kind!r}, expected classes of torch.nn or their names: {names}"
            )
        chosen |= matches
    return chosen


def replace_modules(model: nn.Module, kinds: Any = None) -> dict[str, int]:
    """Give the normalizations of a model, which may be trained, the operators of normcore.

    The modules stay the same objects, with the same parameters, buffers, hooks and names in
    ``state_dict``: their class becomes that of this package, which derives from theirs. Subclasses
    of torch's classes stay what they are. Under ``torch.compile`` and in exports (``torch.export``,
    ONNX) they do what torch's own do, which fuses those and not ours.

    Parameters
    ----------
    model : torch.nn.Module
    kinds : classes of torch.nn or their names, one or several, optional
        Default: all that torch.nn has.

    Returns
    -------
    dict
        How many modules were changed, by the name of their class.

    Raises
    ------
    ValueError
        For a kind that is not one of them; nothing has changed then.
    """
    chosen, counts = _chosen(kinds), dict[str, int]()
    for module in model.modules():
        if type(module) in chosen:
            module.__class__ = _REPLACEMENTS[type(module)]
            name = type(module).__name__
            counts[name] = counts.get(name, 0) + 1
    return counts


def restore_modules(model: nn.Module) -> dict[str, int]:
    """Undo :func:`replace_modules`: modules of this package become torch's own, which have neither
    ghost batches nor process groups.

    Returns
    -------
    dict
        How many modules were changed, by the name of their class.
    """
    back = {ours: theirs for theirs, ours in _REPLACEMENTS.items()}
    counts = dict[str, int]()
    for module in model.modules():
        if type(module) in back:
            module.__class__ = back[type(module)]
            name = type(module).__name__
            counts[name] = counts.get(name, 0) + 1
            for attribute in ("ghost_batch_size", "process_group", "frozen", "_met"):
                module.__dict__.pop(attribute, None)
    return counts
