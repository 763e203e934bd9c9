"""The arrays of a case, our own call on them, and the check that a peer computes the same.

Every contender of a case works on the same memory of x and dy where its library allows it, so
that what is warm in cache is warm for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from bench.python.cells import Case

NUMPY_DTYPES: dict[str, Any] = {
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
# Loose on purpose: a peer may round in other places, but must not compute something else.
TOLERANCE = {"f64": 1e-5, "f32": 1e-3, "f16": 1e-2, "bf16": 5e-2}
CHECKED_ITEMS = 1 << 20  # compared at either end of an output; all of it would take seconds


class Unsupported(Exception):
    """A peer has no such op, dtype or pass; the text says which."""


@dataclass
class Workload:
    """x and dy in the layout of the case; weight, bias and running buffers per channel."""

    case: Case
    x: np.ndarray
    dy: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    running_mean: np.ndarray | None
    running_var: np.ndarray | None

    @property
    def running(self) -> tuple[Any, Any]:
        """The running buffers, or two None."""
        return self.running_mean, self.running_var

    @property
    def params(self) -> tuple[np.ndarray, ...]:
        """The parameters that are not None."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


def make_workload(case: Case) -> Workload:
    """Reproducible arrays for a case."""
    rng = np.random.default_rng(20240)
    # A period that divides no row length, so that large tensors cost no large random numbers.
    noise = rng.standard_normal((1 << 20) + 7, dtype=np.float32)

    def tensor(noise: np.ndarray, scale: float, shift: float) -> np.ndarray:
        values = noise[: math.prod(case.shape)] * np.float32(scale) + np.float32(shift)
        # A fresh array of its own: resize with one period returns it, else it repeats.
        repeated = np.resize(values.astype(NUMPY_DTYPES[case.dtype]), case.memory_shape)
        return np.ascontiguousarray(repeated)

    axis = case.option("axis", -1) if case.op in ("layer_norm", "rms_norm") else 1
    size = case.shape[axis]
    param = NUMPY_DTYPES[case.param_dtype]
    buffers: tuple[Any, Any] = (None, None)
    if case.op == "batch_norm":
        buffers = (
            rng.standard_normal(size, dtype=np.float32) * np.float32(0.1),
            rng.uniform(0.5, 1.5, size).astype(np.float32),
        )
    return Workload(
        case=case,
        x=tensor(noise, 1.5, 0.5),
        # Independent of x: its sums with x must not overflow float16.
        dy=tensor(noise[::-1], 0.7, 0.0),
        weight=rng.uniform(0.5, 1.5, size).astype(param),
        bias=None if case.op == "rms_norm" else rng.standard_normal(size).astype(param),
        running_mean=buffers[0],
        running_var=buffers[1],
    )


def our_call(nc: Any, work: Workload, kernel: bool) -> Callable[[], Any]:
    """Our function on a workload; with `kernel`, nothing of the tensor's size is allocated."""
    case = work.case
    positional: list[Any] = [*work.params]
    keywords = {k: v for k, v in case.options if k != "num_groups"}
    if case.op == "group_norm":
        positional.insert(0, case.option("num_groups"))
    if case.layout != "C" and case.op not in ("layer_norm", "rms_norm"):
        keywords["channel_axis"] = case.channel_axis
    if work.running_mean is not None:
        keywords |= {"running_mean": work.running_mean, "running_var": work.running_var}

    function = getattr(nc, case.op)
    if case.direction == "forward":
        if kernel:
            keywords["out"] = np.empty_like(work.x)
        return partial(function, work.x, *positional, **keywords)

    stats = function(work.x, *positional, **keywords, return_stats=True)[1]
    keywords["stats"] = stats
    if kernel:
        keywords["out"] = np.empty_like(work.x)
    return partial(getattr(nc, f"{case.op}_backward"), work.dy, work.x, *positional, **keywords)


def our_results(output: Any) -> list[np.ndarray]:
    """What a call of ours gave: [y], or [dx, dweight, dbias] without those that are None."""
    if isinstance(output, tuple):
        return [np.asarray(part) for part in output if part is not None]
    return [output]


def difference(case: Case, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> str:
    """Empty when a peer agrees with us in y or dx, else how it does not."""
    if len(ours) != len(theirs):
        return f"gives {len(theirs)} arrays, expected {len(ours)}"
    worst = _error(ours[0], theirs[0])
    return "" if worst <= TOLERANCE[case.dtype] else f"differs by {worst:.2g}"


def inexact_gradients(
    case: Case, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]
) -> list[str]:
    """The parameter gradients in which a peer is far from us.

    No reason to leave it out: torch sums bfloat16 gradients of long columns in bfloat16, loses
    most of them, and is still what others are measured by.
    """
    pairs = zip(("dweight", "dbias"), ours[1:], theirs[1:], strict=False)
    errors = {name: _error(a, b) for name, a, b in pairs}
    return [f"{k} differs by {v:.2g}" for k, v in errors.items() if not v <= TOLERANCE[case.dtype]]


def _error(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference over both ends of the arrays, relative to their largest value."""
    if a.size != b.size:
        return math.inf
    return max(
        _part_error(a, b, slice(CHECKED_ITEMS)), _part_error(a, b, slice(-CHECKED_ITEMS, None))
    )


def _part_error(a: np.ndarray, b: np.ndarray, part: slice) -> float:
    left = a.reshape(-1)[part].astype(np.float32)
    right = b.reshape(-1)[part].astype(np.float32)
    return float(np.max(np.abs(left - right), initial=0) / max(1.0, float(np.max(np.abs(left)))))
