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

from .cells import Case
from .methods import Method, methods

NUMPY_DTYPES: dict[str, Any] = {
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
# Loose on purpose: a peer may round in other places, but must not compute something else.
TOLERANCE = {"f64": 1e-5, "f32": 1e-3, "f16": 1e-2, "bf16": 5e-2}
CHECKED_ITEMS = 1 << 20  # compared at either end of an output; all of it would take seconds
TIES = 1e-3  # share of dx that may differ where equal values share a gradient with us alone


class Unsupported(Exception):
    """A peer has no such op, dtype or pass; the text says which."""


@dataclass
class Workload:
    """x and dy in the layout of the case; parameters and running buffers by name."""

    case: Case
    x: np.ndarray
    dy: np.ndarray
    params: dict[str, np.ndarray]  # in the order of the call
    buffers: dict[str, np.ndarray]  # whoever moves them copies them first

    @property
    def method(self) -> Method:
        """What the case's function takes."""
        return methods()[self.case.op]


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

    # dy is independent of x: its sums with x must not overflow float16.
    return workload_on(case, tensor(noise, 1.5, 0.5), tensor(noise[::-1], 0.7, 0.0))


def workload_on(case: Case, x: np.ndarray, dy: np.ndarray) -> Workload:
    """The workload of a case on these arrays, with reproducible parameters and buffers."""
    rng = np.random.default_rng(20241)
    method, size = methods()[case.op], case.shape[case.option("axis", 1)]

    def draw(names: Sequence[str], dtype: str) -> dict[str, np.ndarray]:
        return {name: method.values(name, rng, size).astype(NUMPY_DTYPES[dtype]) for name in names}

    params, buffers = draw(method.params, case.param_dtype), draw(method.buffers, "f32")
    return Workload(case, x, dy, params, buffers)


def our_call(nc: Any, work: Workload, out: np.ndarray | None) -> Callable[[], Any]:
    """Our function on a workload; with `out`, nothing of the tensor's size is allocated."""
    case, method = work.case, work.method
    positional = [*(case.option(name) for name in method.counts), *work.params.values()]
    keywords = {k: v for k, v in case.options if k not in method.counts}
    if case.layout != "C" and "axis" not in keywords:
        keywords["channel_axis"] = case.channel_axis
    keywords |= {name: buffer.copy() for name, buffer in work.buffers.items()}

    function = getattr(nc, case.op)
    if case.direction == "forward":
        if out is not None:
            keywords["out"] = out
        return partial(function, work.x, *positional, **keywords)

    if method.takes_result:
        result = function(work.x, *positional, **keywords)
        given = {} if out is None else {"out": out}
        return partial(getattr(nc, f"{case.op}_backward"), work.dy, result, **given)
    if method.has_stats:
        stats = function(work.x, *positional, **keywords, return_stats=True)[1]
        keywords["stats"] = stats
    if out is not None:
        keywords["out"] = out
    return partial(getattr(nc, f"{case.op}_backward"), work.dy, work.x, *positional, **keywords)


def our_results(output: Any) -> list[np.ndarray]:
    """What a call of ours gave: [y], or the arrays among dx, dweight and so on."""
    output = getattr(output, "weight", output)  # of spectral_norm without its vectors
    if isinstance(output, tuple):
        arrays = (part for part in output if part is not None and not isinstance(part, float))
        return [np.asarray(part) for part in arrays]
    return [output]


def difference(case: Case, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> str:
    """Empty when a peer agrees with us in y or dx, else how it does not."""
    if len(ours) != len(theirs):
        return f"gives {len(theirs)} arrays, expected {len(ours)}"
    ties = case.direction == "backward" and methods()[case.op].shares_ties
    worst = _error(ours[0], theirs[0], TIES if ties else 0.0)
    return "" if worst <= TOLERANCE[case.dtype] else f"differs by {worst:.2g}"


def inexact_gradients(
    case: Case, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]
) -> list[str]:
    """The parameter gradients in which a peer is far from us.

    No reason to leave it out: torch sums bfloat16 gradients of long columns in bfloat16, loses
    most of them, and is still what others are measured by.
    """
    pairs = zip(methods()[case.op].params, ours[1:], theirs[1:], strict=False)
    errors = {f"d{name}": _error(a, b) for name, a, b in pairs}
    return [f"{k} differs by {v:.2g}" for k, v in errors.items() if not v <= TOLERANCE[case.dtype]]


def _error(a: np.ndarray, b: np.ndarray, ignored: float = 0.0) -> float:
    """Largest difference over both ends of the arrays, relative to their largest value.

    `ignored` is the share of items that may differ by more.
    """
    if a.size != b.size:
        return math.inf
    ends = (slice(CHECKED_ITEMS), slice(-CHECKED_ITEMS, None))
    return max(_part_error(a, b, part, ignored) for part in ends)


def _part_error(a: np.ndarray, b: np.ndarray, part: slice, ignored: float) -> float:
    left = a.reshape(-1)[part].astype(np.float32)
    right = b.reshape(-1)[part].astype(np.float32)
    errors = np.abs(left - right)
    largest = float(np.max(np.abs(left), initial=np.finfo(np.float32).tiny))
    if not ignored:
        return float(np.max(errors, initial=0)) / largest
    return float(np.quantile(errors, 1 - ignored, method="higher")) / largest
