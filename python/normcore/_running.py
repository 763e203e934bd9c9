"""Layers with parameters per channel, and those of them that keep running statistics.

Freezing, recomputing, ghost batches, time steps and statistics over processes are here. Buffers and
own parameters are those of the method's signature; a subclass of `_RunningNorm` may say how its
buffers follow from the moments of many batches (`_merged`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt

from ._arguments import averaging, flag, integer, not_negative, number, positive, shape_of, shown
from ._attributes import maybe
from ._dtypes import float_dtype, new_array
from ._interop import (
    Array,
    adopt,
    as_numpy,
    counts_nothing,
    is_wide,
    position_weights,
    split_masked,
)
from ._layer import _ChannelLayer, affine_parameters, check_writable
from ._life import Foldable, Parts, ghost_chunks
from ._owned import copied, in_numpy, like, write
from ._processes import Processes
from ._typing import A, Communicator, Floats, SupportsDLPack
from .reductions import Moments, moments

if TYPE_CHECKING:
    from ._core import Signature

Running = TypeVar("Running", bound="_RunningNorm")

RUNNING_VAR = "Running variance; None without `track_running_stats`."


class _AffineLayer(_ChannelLayer):
    """A layer with one weight and one bias a channel."""

    weight = maybe("Scale of each channel; None where there is none.")
    bias = maybe("Shift of each channel; None where there is none.")

    _own: ClassVar[dict[str, str]]  # parameters beside weight and bias, and their shape
    _affine: ClassVar[list[str]]  # which of weight and bias there can be

    @classmethod
    def _take(cls, signature: Signature) -> None:
        super()._take(signature)
        cls._own = dict(signature["own"])
        cls._affine = signature["affine"]

    def _new_parameters(
        self, channels: int, dtype: npt.DTypeLike, affine: bool, bias: bool
    ) -> dict[str, Array]:
        """Return new parameters, weight and bias only where wanted."""
        lengths = {"channels": channels, "three": 3}
        kind, argument = float_dtype(dtype), self._channels
        own = {name: new_array(lengths[of], kind, argument) for name, of in self._own.items()}
        weight, bias = affine and "weight" in self._affine, bias and "bias" in self._affine
        return own | affine_parameters((channels,), dtype, argument, weight=weight, bias=bias)


def pairs_in_numpy(x: Any, pooled: Any) -> Array:
    """Return the pairs of statistics that a call on x has left for backward, which may lie on x's
    device, as an array of NumPy."""
    return pooled if isinstance(pooled, np.ndarray) else in_numpy(adopt(x, pooled))


class _Call(NamedTuple):
    """What a forward call leaves for backward: a gradient function for each chunk of x."""

    x: Any
    shape: tuple[int, ...]  # x's
    chunks: list[slice]
    gradients: list[Callable[..., Any]]


class _RunningNorm(_AffineLayer):
    """A channel layer that can keep running statistics."""

    _running: ClassVar[dict[str, str]]  # buffers, and which statistic each follows
    _learns: ClassVar[str]  # the option that has statistics taken from x
    _has_variance: ClassVar[bool]  # a running one that can be unbiased or not
    _unusual: ClassVar[dict[str, object]] = {
        "channel_axis": 1,
        "ghost_batch_size": None,
        "time_steps": None,
    }
    _leading = ("num_features",)

    running_mean = maybe("Running mean; None without `track_running_stats`.")
    num_batches_tracked = maybe("Training calls so far; None without `track_running_stats`.")

    _named: ClassVar[tuple[str, ...]] = (
        "eps",
        "momentum",
        "affine",
        "bias",
        "track_running_stats",
    )

    @classmethod
    def _take(cls, signature: Signature) -> None:
        super()._take(signature)
        cls._running = dict(signature["buffers"])
        assert signature["learns"] is not None, "something must tell buffers when to move"
        cls._learns = signature["learns"]
        cls._has_variance = "unbiased_running_var" in signature["options"]
        if cls._has_variance:
            cls._unusual = {**cls._unusual, "unbiased_running_var": True}

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
        timeout = number("comm_timeout", comm_timeout, "a number > 0", lambda v: v > 0)
        self._processes: Processes | None = None
        if comm is not None:
            if ghost_batch_size is not None:
                raise ValueError("ghost_batch_size and comm are given, expected one of them")
            self._processes = Processes(comm, timeout)
        self.ghost_batch_size = self.time_steps = None
        self.track_running_stats = flag("track_running_stats", track_running_stats)
        if ghost_batch_size is not None:
            self.ghost_batch_size = positive("ghost_batch_size", ghost_batch_size)
        if time_steps is not None:
            self.time_steps = positive("time_steps", time_steps)
            if not self.track_running_stats:
                raise ValueError(
                    "time_steps needs running statistics: track_running_stats is False"
                )
        self._last: _Call | None = None
        self._by_step: dict[int, _Call] = {}  # in the order of the calls
        self.num_features = positive("num_features", num_features)
        unbiased = flag("unbiased_running_var", unbiased_running_var)
        self.unbiased_running_var = unbiased and self._has_variance
        self.eps = not_negative("eps", eps)
        self.momentum = averaging("momentum", momentum)
        self.affine = flag("affine", affine)
        self.channel_axis = integer("channel_axis", channel_axis)
        shape = (self.num_features,)
        bias = flag("bias", bias) and self.affine
        parameters = self._new_parameters(self.num_features, dtype, self.affine, bias)
        buffers: dict[str, Array] = {}
        if self.track_running_stats:
            kind = np.float64 if float_dtype(dtype) == np.float64 else np.float32
            rows = () if self.time_steps is None else (self.time_steps,)
            tracked = new_array(rows, np.int64, "time_steps")
            for name in self._running:
                buffers[name] = new_array((*rows, *shape), kind, "num_features")
            buffers["num_batches_tracked"] = tracked
        self.frozen = False
        super().__init__(parameters, buffers)

    @property
    def _learning(self) -> bool:
        """Whether a call takes its statistics from x and moves the buffers."""
        return self.training and not self.frozen

    def _options(self) -> dict[str, Any]:
        return {self._learns: self._learning}

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
        found = moments(x, axis=[a for a in range(ndim) if a != self.channel_axis % ndim])
        return Moments(*map(in_numpy, found))

    def _merged(self, parts: list[Moments]) -> dict[str, Array]:
        """Return the running statistics that follow from the batches' moments."""
        total = Moments.merge(parts)
        values = {
            "mean": total.mean,
            "variance": total.var(int(self.unbiased_running_var and total.count.max() > 1)),
            "deviation": np.sqrt(total.var() + self.eps),
        }
        return {name: values[follows] for name, follows in self._running.items()}

    def recompute_statistics(
        self, batches: Iterable[SupportsDLPack], step: SupportsIndex | None = None
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
        buffers = self._buffers_of(self._row_of(step))
        check_writable(buffers.items())
        if not isinstance(batches, Iterable):
            raise TypeError(f"batches is {shown(batches)}, expected an iterable of arrays")
        parts = list[Moments]()
        for x in batches:
            shape = shape_of(x)
            self._check_shape(shape)
            if 0 not in shape:
                parts.append(self._moments_of(x))
        number = len(parts)
        if self._processes is not None:
            parts, number = self._processes.merge_batches(parts, self.num_features)
        if number == 0:
            raise ValueError("batches has nothing to take statistics from")
        values = {**self._merged(parts), **self._counted(number)}
        # Converted before the first is written.
        new = {name: like(buffers[name], np.asarray(v)) for name, v in values.items()}
        for name, value in new.items():
            write(buffers[name], value)

    def _counted(self, batches: int) -> dict[str, Any]:
        """Return what says that so many batches are in the buffers."""
        return {"num_batches_tracked": batches}

    def _row_of(self, step: SupportsIndex | None) -> int | None:
        """Return the row of the buffers that belongs to a step."""
        if self.time_steps is None:
            if step is not None:
                raise ValueError(
                    f"step is {shown(step)}, expected None: the layer has no time_steps"
                )
            return None
        rule = "an integer >= 0: the layer has time_steps"
        index = -1 if step is None else integer("step", step, rule)
        if index < 0:
            raise ValueError(f"step is {step}, expected {rule}")
        return min(index, self.time_steps - 1)

    def _buffers_of(self, row: int | None) -> dict[str, Array]:
        """Return the buffers, or the row of each, to be read and written."""
        if row is None:
            return dict(self.buffers)
        return {name: buffer[row, ...] for name, buffer in self.buffers.items()}

    def _running_options(self, buffers: dict[str, Array]) -> dict[str, Any]:
        """Return the options of both functions that come from the buffers of a call."""
        return {name: buffers.get(name) for name in self._running}

    def __call__(self, x: A, step: SupportsIndex | None = None) -> A:
        """Normalize x, remember what `backward` needs and, in training, update the buffers.

        ``step`` is the time step of a layer with ``time_steps``.
        """
        y: A = self._call(x, step, None)
        return y

    def _call(self, x: Any, step: SupportsIndex | None, mask: Any) -> Any:
        row = self._row_of(step)
        self._forget(step)
        shape = shape_of(x)
        buffers = own = self._buffers_of(row)
        if self._learning:
            check_writable(own.items())
        call = _Call(x, shape, self._chunks(shape), [])
        parts = Parts(x, call.chunks)
        if len(call.chunks) > 1 and not hasattr(x, "__getitem__"):
            raise TypeError(
                f"x is {shown(x)}, expected an array that can be sliced: ghost_batch_size is given"
            )
        if len(call.chunks) > 1:  # a later one may be refused, and then none has been there
            buffers = {name: copied(buffer) for name, buffer in own.items()}
        for chunk in call.chunks:
            whole = len(call.chunks) == 1  # which not every array could be sliced to
            part = x if whole else x[chunk]
            weights = mask if whole or mask is None else mask[chunk]
            y, gradient = self._run_chunk(part, weights, parts.out(chunk), buffers)
            parts.add(y)
            call.gradients.append(gradient)
        joined = parts.joined()
        if buffers is not own:
            for name, buffer in own.items():
                buffer[...] = buffers[name]
        self._remember(step, call)
        return joined

    def _forget(self, step: SupportsIndex | None) -> None:
        """Drop calls so that no gradient of an earlier call outlives a failed one."""
        self._last = None
        if step is None or not self._by_step:
            return
        if not self.training:
            self._by_step = {}
            return
        # A step that comes again begins a new sequence there: it and what came after it go.
        kept = dict[int, _Call]()
        for other, call in self._by_step.items():
            if other == int(step):
                break
            kept[other] = call
        self._by_step = kept

    def _remember(self, step: SupportsIndex | None, call: _Call) -> None:
        self._last = call
        if step is not None:
            kept = self._by_step if self.training else {}
            self._by_step = {**kept, int(step): call}

    def _chunks(self, shape: tuple[int, ...]) -> list[slice]:
        """The ghost batches of an x of this shape, or all of it as one."""
        if self.ghost_batch_size is None or not self._learning or 0 in shape:
            return [slice(None)]
        self._check_shape(shape)
        values_per_sample = math.prod(shape[1:]) // self.num_features
        return ghost_chunks(shape[0], self.ghost_batch_size, values_per_sample)

    def _run_chunk(
        self, x: Any, mask: Any, out: Any, buffers: dict[str, Array]
    ) -> tuple[Any, Callable[..., Any]]:
        per_call = self._running_options(buffers)
        if mask is not None:
            per_call["mask"] = mask
        forward_only: dict[str, Any] = {} if out is None else {"out": out}
        batches = buffers.get("num_batches_tracked")
        if batches is None:
            return self._run_together(x, per_call, forward_only)
        momentum = 1.0 / (int(batches) + 1) if self.momentum is None else self.momentum
        forward_only["momentum"] = momentum
        if self._has_variance:
            forward_only["unbiased_running_var"] = self.unbiased_running_var
        result = self._run_together(x, per_call, forward_only)
        # Batches of nothing leave the statistics alone, so they must not weigh in their average.
        # On a device nobody knows what counts.
        nothing = 0 in shape_of(x) or (mask is not None and counts_nothing(mask))
        if self._processes is not None:
            nothing = self._processes.count == 0
        if self._learning and not nothing:
            batches[...] += 1
        return result

    def _run_together(
        self, x: Any, per_call: dict[str, Any], forward_only: dict[str, Any]
    ) -> tuple[Any, Callable[..., Any]]:
        """Run forward, together with the other processes where statistics come from x."""
        processes = self._processes
        if processes is None or not (self._learning or not self.track_running_stats):
            return self._forward(x, per_call, **forward_only)
        name = f"{type(self).__name__}({self.num_features})"
        masked = " with a mask" if "mask" in per_call else ""
        with processes.together(f"{name} forward{masked}", x):
            y, gradient = self._forward(x, per_call, **forward_only)

        def together(dy: Any, **options: Any) -> Any:
            with processes.together(f"{name} backward", x):
                return gradient(dy, **options)

        return y, together

    def backward(self, dy: A, step: SupportsIndex | None = None) -> A:
        """Return dx for the last forward call, or that of a time step; add to `grads`.

        In training the calls of a sequence of steps are kept, until its first step comes again; in
        evaluation the last call alone. It is the last call of any thread: threads that share a
        layer go forward alone.

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
        call = self._last if step is None else self._by_step.get(integer("step", step))
        if call is None:
            which = "" if step is None else f" with step={step}"
            raise RuntimeError(
                f"{type(self).__name__}.backward called before a forward call{which}"
            )
        # The function checks dy, but a longer or shorter one can have chunks that fit.
        if len(call.chunks) > 1 and shape_of(dy, "dy") != call.shape:
            raise ValueError(f"dy has shape {shape_of(dy, 'dy')}, expected {call.shape}: x's")
        whole: Any = dy  # which slices, as x does
        if len(call.chunks) > 1 and not hasattr(dy, "__getitem__"):
            raise TypeError(
                f"dy is {shown(dy)}, expected an array that can be sliced: "
                "ghost_batch_size is given"
            )
        parts = Parts(call.x, call.chunks)
        added = []
        for chunk, gradient in zip(call.chunks, call.gradients, strict=True):
            out = parts.out(chunk)
            part = whole if len(call.chunks) == 1 else whole[chunk]
            gradients = gradient(part, **({} if out is None else {"out": out}))
            parts.add(gradients.dx)
            added.append(self._parameter_gradients(gradients))
        dx: A = parts.joined()
        self._add_to_grads(added)
        return dx

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": None, "_by_step": {}}


class _MaskedNorm(_RunningNorm):
    """Whose statistics are of the batch alone, so that a mask can say what counts in them."""

    def __call__(self, x: A, step: SupportsIndex | None = None, mask: Floats | None = None) -> A:
        """Normalize x, remember what `backward` needs and, in training, update the buffers.

        ``step`` is the time step of a layer with ``time_steps``; ``mask`` says how much each
        position counts in the statistics, as in `batch_norm`.
        """
        x, mask = split_masked(x, mask, self.channel_axis)
        if mask is not None:
            shape = shape_of(x)
            self._check_shape(shape)
            mask = position_weights(mask, shape, is_wide(x), self.channel_axis)
        y: A = self._call(x, step, mask)
        return y


class _ScaledNorm(Foldable, _RunningNorm):
    """A layer that divides by another scale than the standard deviation."""

    running_scale = maybe("Running scale; None without `track_running_stats`.")

    def _moments_of(self, x: Any) -> Moments:
        # Scales of this kind do not merge: their average, weighed by the counts, has to do.
        shape = shape_of(x)
        count = math.prod(shape) / self.num_features
        # One value has the scale of two that are the same, which the function does not refuse.
        of = x if count > 1 else np.concatenate([as_numpy(x, "x")] * 2)
        own = {name: getattr(self, name) for name in self._shared}
        _, stats = self._function(of, **own, return_stats=True)
        scale = 1 / as_numpy(stats.rstd).astype(np.float64)
        return Moments(count, pairs_in_numpy(of, stats.pooled)[..., 0], scale * count)

    def _merged(self, parts: list[Moments]) -> dict[str, Array]:
        total = Moments.merge(parts)
        return {
            "running_mean": total.mean,
            "running_scale": sum(part.m2 for part in parts) / total.count,
        }
