"""Layers with parameters per channel, and those of them that keep running statistics.

The base classes of `normcore.layers` and `normcore.adaptive_layers`. Freezing, recomputing, ghost
batches, time steps and statistics over processes are here; a subclass of `_RunningNorm` names its
buffers (`_running`) and may say how they follow from the moments of many batches (`_store`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt

from ._dtypes import float_dtype
from ._interop import Array, is_wide, position_weights, split_masked
from ._layer import _Layer, affine_parameters, positive
from ._life import Parts, ghost_chunks
from ._processes import Processes
from .reductions import Moments, moments

Running = TypeVar("Running", bound="_RunningNorm")


class _ChannelLayer(_Layer):
    """A layer with one weight and one bias a channel."""

    _unusual: ClassVar[dict[str, object]] = {"channel_axis": 1}
    _channels: ClassVar[str] = "num_features"  # the attribute that holds the channels' number

    eps: float
    channel_axis: int

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        axis, expected = self.channel_axis, getattr(self, self._channels)
        if not -len(shape) <= axis < len(shape) or shape[axis] != expected:
            raise ValueError(
                f"x has shape {shape}, expected {expected} at channel_axis={axis}: "
                f"{self._channels}={expected}"
            )

    def _options(self) -> dict[str, Any]:
        return {"eps": self.eps, "channel_axis": self.channel_axis}


class _Call(NamedTuple):
    """What a forward call leaves for backward: a gradient function for each chunk of x."""

    x: Any
    chunks: list[slice]
    gradients: list[Any]


class _RunningNorm(_ChannelLayer):
    """A channel layer that can keep running statistics."""

    _running: ClassVar[tuple[str, ...]] = ("running_mean", "running_var")
    _unbiased: ClassVar[bool] = True  # the running variance
    _over_processes: ClassVar[bool] = False  # whether batch statistics can be
    _unusual: ClassVar[dict[str, object]] = {
        "channel_axis": 1,
        "ghost_batch_size": None,
        "time_steps": None,
    }
    _leading = ("num_features",)
    _named: ClassVar[tuple[str, ...]] = (
        "eps",
        "momentum",
        "affine",
        "bias",
        "track_running_stats",
    )

    def __init__(
        self,
        num_features: SupportsIndex,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        channel_axis: SupportsIndex,
        dtype: npt.DTypeLike,
        bias: bool,
        own: dict[str, Array] | None = None,
        ghost_batch_size: SupportsIndex | None = None,
        time_steps: SupportsIndex | None = None,
        comm: Any = None,
        comm_timeout: float = 600.0,
    ) -> None:
        self._processes: Processes | None = None
        if comm is not None:
            if not self._over_processes:
                raise ValueError(f"comm is {comm!r}, expected None for {type(self).__name__}")
            if ghost_batch_size is not None:
                raise ValueError("ghost_batch_size and comm are given, expected one of them")
            self._processes = Processes(comm, comm_timeout)
        self.ghost_batch_size = self.time_steps = None
        if ghost_batch_size is not None:
            self.ghost_batch_size = positive("ghost_batch_size", ghost_batch_size)
        if time_steps is not None:
            self.time_steps = positive("time_steps", time_steps)
            if not track_running_stats:
                raise ValueError(
                    "time_steps needs running statistics: track_running_stats is False"
                )
        self._row = 0  # of the buffers of time steps
        self._last: _Call | None = None
        self._by_step: dict[int, _Call] = {}
        self.num_features = positive("num_features", num_features)
        self.eps = float(eps)
        self.momentum = None if momentum is None else float(momentum)
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        self.channel_axis = operator.index(channel_axis)
        shape = (self.num_features,)
        parameters = affine_parameters(
            shape, dtype, weight=self.affine, bias=self.affine and bool(bias)
        )
        buffers: dict[str, Array] = {}
        if self.track_running_stats:
            kind = np.float64 if float_dtype(dtype) == np.float64 else np.float32
            rows = () if self.time_steps is None else (self.time_steps,)
            for name in self._running:
                start = 0.0 if name == "running_mean" else 1.0
                buffers[name] = np.full((*rows, *shape), start, kind)
            buffers["num_batches_tracked"] = np.zeros(rows, np.int64)
        self.frozen = False
        super().__init__({**(own or {}), **parameters}, buffers)

    @property
    def _learning(self) -> bool:
        """Whether a call takes its statistics from x and moves the buffers."""
        return self.training and not self.frozen

    def freeze(self: Running) -> Running:
        """Use and keep the stored statistics also in training; return self.

        Parameters still get gradients. For fine-tuning on small or other batches.

        Raises
        ------
        ValueError
            Where there are no stored statistics.
        """
        if not self.track_running_stats:
            raise ValueError("freeze needs running statistics: track_running_stats is False")
        self.frozen = True
        return self

    def unfreeze(self: Running) -> Running:
        """Take statistics from x in training again; return self."""
        self.frozen = False
        return self

    def _moments_of(self, x: Any) -> Moments:
        """Moments of the channels of a batch, or a mean and a spread that are averaged as these."""
        ndim = np.ndim(x)
        return moments(x, axis=[a for a in range(ndim) if a != self.channel_axis % ndim])

    def _store(self, parts: list[Moments]) -> None:
        """Set the buffers from the batches' moments."""
        total = Moments.merge(parts)
        self._put("running_mean", total.mean)
        for name in self._running[1:]:
            if name == "running_std":
                self._put(name, np.sqrt(total.var() + self.eps))
            else:
                self._put(name, total.var(int(self._unbiased and total.count.max() > 1)))

    def _put(self, name: str, value: Any) -> None:
        buffer = self._buffer(name)
        assert buffer is not None
        buffer[...] = value

    def recompute_statistics(
        self, batches: Iterable[Any], step: SupportsIndex | None = None
    ) -> None:
        """Set the buffers to the statistics of all batches together, which may differ in size.

        What was stored before does not matter. The moments are merged in float64: the result is
        that of one call on the joined batches. With ``comm``, on those of all processes.

        Parameters
        ----------
        batches : iterable of arrays
            Inputs of this layer; empty ones are passed over.
        step : int, optional
            Of a layer with ``time_steps``: the step that the batches belong to.

        Raises
        ------
        ValueError
            Without any batch that is not empty, without buffers, or for a batch of another number
            of channels; the buffers have not been changed.
        """
        if not self.track_running_stats:
            raise ValueError("recompute_statistics needs buffers: track_running_stats is False")
        self._set_step(step)
        parts = list[Moments]()
        for x in batches:
            self._check_shape(np.shape(x))
            if 0 not in np.shape(x):
                parts.append(self._moments_of(x))
        number = len(parts)
        if self._processes is not None:
            parts, number = self._processes.merge_batches(parts, self.num_features)
        if number == 0:
            raise ValueError("batches has nothing to take statistics from")
        self._store(parts)
        self._count(number)

    def _count(self, batches: int) -> None:
        """So many batches are in the buffers."""
        self._put("num_batches_tracked", batches)

    def _options(self) -> dict[str, Any]:
        running = {name: self._buffer(name) for name in self._running}
        return {**super()._options(), **running}

    def _buffer(self, name: str) -> Array | None:
        """A buffer, or the row of it that belongs to the time step."""
        buffer = self.buffers.get(name)
        return buffer if buffer is None or self.time_steps is None else buffer[self._row, ...]

    def _set_step(self, step: SupportsIndex | None) -> None:
        if self.time_steps is None:
            if step is not None:
                raise ValueError(f"step is {step}, expected None: the layer has no time_steps")
            return
        index = -1 if step is None else operator.index(step)
        if index < 0:
            raise ValueError(f"step is {step}, expected an integer >= 0: the layer has time_steps")
        self._row = min(index, self.time_steps - 1)

    def __call__(self, x: Any, step: SupportsIndex | None = None) -> Any:
        """Normalize x, remember what `backward` needs and, in training, update the buffers.

        ``step`` is the time step of a layer with ``time_steps``.
        """
        return self._call(x, step, None)

    def _call(self, x: Any, step: SupportsIndex | None, mask: Array | None) -> Any:
        self._set_step(step)
        self._last = None  # so that no gradient of an earlier call outlives a failed one
        call = _Call(x, self._chunks(np.shape(x)), [])
        parts = Parts(x, call.chunks)
        for chunk in call.chunks:
            part = x if len(call.chunks) == 1 else x[chunk]
            part_of_mask = {} if mask is None else {"mask": mask[chunk]}
            parts.add(self._run_chunk(part, parts.out(chunk), part_of_mask))
            call.gradients.append(self._gradient)
        self._last = call
        if step is not None:
            self._by_step[operator.index(step)] = call
        return parts.joined()

    def _chunks(self, shape: tuple[int, ...]) -> list[slice]:
        """The ghost batches of an x of this shape, or all of it as one."""
        if self.ghost_batch_size is None or not self._learning or 0 in shape:
            return [slice(None)]
        self._check_shape(shape)
        values_per_sample = math.prod(shape[1:]) // self.num_features
        return ghost_chunks(shape[0], self.ghost_batch_size, values_per_sample)

    def _run_chunk(self, x: Any, out: Any, mask: dict[str, Array]) -> Any:
        forward_only = {} if out is None else {"out": out}
        batches = self._buffer("num_batches_tracked")
        if batches is None:
            return self._run_together(x, mask, forward_only)
        momentum = 1.0 / (int(batches) + 1) if self.momentum is None else self.momentum
        y = self._run_together(x, mask, {**forward_only, "momentum": momentum})
        # Batches of nothing leave the statistics alone, so they must not weigh in their average.
        nothing = 0 in np.shape(x) or (mask and not mask["mask"].any())
        if self._processes is not None:
            nothing = self._processes.count == 0
        if self._learning and not nothing:
            batches[...] += 1
        return y

    def _run_together(self, x: Any, mask: dict[str, Array], forward_only: dict[str, Any]) -> Any:
        """Run forward, together with the other processes where statistics come from x."""
        processes = self._processes
        if processes is None or not (self._learning or not self.track_running_stats):
            return self._run(x, mask, **forward_only)
        name = f"{type(self).__name__}({self.num_features})"
        self._check_shape(np.shape(x))  # before anybody waits
        with processes.together(f"{name} forward{' with a mask' if mask else ''}"):
            y = self._run(x, mask, **forward_only)
        gradient = self._gradient
        assert gradient is not None

        def together(dy: Any, **options: Any) -> Any:
            if np.shape(dy) != np.shape(x):  # before anybody waits
                raise ValueError(f"dy has shape {np.shape(dy)}, expected {np.shape(x)}: x's")
            with processes.together(f"{name} backward"):
                return gradient(dy, **options)

        self._gradient = together
        return y

    def backward(self, dy: Any, step: SupportsIndex | None = None) -> Any:
        """Return dx for the last forward call, or that of a time step; add to `grads`.

        Parameters
        ----------
        dy : array
            Gradient of the loss with respect to the output; the output's shape.
        step : int, optional
            Of a layer with ``time_steps``: the forward call with this step, the last where omitted.

        Returns
        -------
        array
            Gradient with respect to x; x's shape, dtype and library.

        Raises
        ------
        RuntimeError
            When no forward call has succeeded before, or none with this step.
        ValueError
            For a dy that does not have x's shape.
        """
        call = self._last if step is None else self._by_step.get(operator.index(step))
        if call is None:
            which = "" if step is None else f" with step={step}"
            raise RuntimeError(
                f"{type(self).__name__}.backward called before a forward call{which}"
            )
        # The function checks dy, but a longer or shorter one can have chunks that fit.
        if len(call.chunks) > 1 and np.shape(dy) != np.shape(call.x):
            raise ValueError(f"dy has shape {np.shape(dy)}, expected {np.shape(call.x)}: x's")
        parts = Parts(call.x, call.chunks)
        for chunk, gradient in zip(call.chunks, call.gradients, strict=True):
            self._gradient, out = gradient, parts.out(chunk)
            part = dy if len(call.chunks) == 1 else dy[chunk]
            parts.add(self._run_backward(part, **({} if out is None else {"out": out})))
        return parts.joined()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": None, "_by_step": {}}


class _MaskedNorm(_RunningNorm):
    """Whose statistics are of the batch alone, so that a mask can say what counts in them."""

    def __call__(self, x: Any, step: SupportsIndex | None = None, mask: Any = None) -> Any:
        """Normalize x, remember what `backward` needs and, in training, update the buffers.

        ``step`` is the time step of a layer with ``time_steps``; ``mask`` says how much each
        position counts in the statistics, as in `batch_norm`.
        """
        x, mask = split_masked(x, mask, self.channel_axis)
        if mask is not None:
            self._check_shape(np.shape(x))
            mask = position_weights(mask, np.shape(x), is_wide(x), self.channel_axis)
        return self._call(x, step, mask)
