"""The cells of the benchmark: what shapes.json lists, with their minimum traffic, and filters.

A `Case` is one line of a result table: a cell in one dtype and one pass. Everything here is
plain data; arrays are made in `workload.py`.
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# An installed package holds a copy beside this file; in a checkout there is the one list alone.
_HERE = Path(__file__).resolve().parent
_INSTALLED, _SOURCE = _HERE / "shapes.json", _HERE.parents[2] / "bench" / "shapes.json"
SHAPES_FILE = _INSTALLED if _INSTALLED.is_file() else _SOURCE
ITEM_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "f64": 8}
LAYOUTS = ("C", "NC", "NCHW", "NHWC")


@dataclass(frozen=True)
class Case:
    """One cell in one dtype and one pass."""

    op: str
    variant: str
    shape: tuple[int, ...]  # logical: (rows, columns) or (N, C, spatial...)
    layout: str
    options: tuple[tuple[str, Any], ...]
    dtype: str
    direction: str  # "forward" or "backward"
    traffic_in_cache: float  # minimum traffic, in tensors, when the tensor fits the cache
    traffic_beyond: float
    param_dtype: str

    @property
    def name(self) -> str:
        """The op with its variant, as in the tables of shapes.json."""
        return f"{self.op}/{self.variant}" if self.variant else self.op

    @property
    def label(self) -> str:
        """The shape as a reader writes it, with the layout where it tells something."""
        text = "x".join(map(str, self.shape))
        axis = self.option("axis", -1)
        if self.layout in ("NCHW", "NHWC"):
            text += f" {self.layout}"
        return text if axis == -1 else f"{text} axis={axis}"

    @property
    def key(self) -> str:
        """Identifies the case in saved results; stable between versions of the benchmark."""
        return f"{self.name}|{self.label}|{self.dtype}|{self.direction}"

    @property
    def tensor_bytes(self) -> int:
        """Bytes of one tensor of x's shape and dtype."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """Shape of the C-contiguous array that is handed over."""
        if self.layout == "NHWC":
            return (self.shape[0], *self.shape[2:], self.shape[1])
        return self.shape

    @property
    def channel_axis(self) -> int:
        """Where the channels are in `memory_shape`."""
        return -1 if self.layout == "NHWC" else 1

    def option(self, name: str, default: Any = None) -> Any:
        """One of the cell's options."""
        return dict(self.options).get(name, default)

    def traffic(self, cache_bytes: int) -> float:
        """Minimum traffic in tensors on a machine with that much last-level cache."""
        return self.traffic_in_cache if self.tensor_bytes <= cache_bytes else self.traffic_beyond


def load_cases(path: Path = SHAPES_FILE) -> list[Case]:
    """All cases of shapes.json: every cell in every dtype and pass, cells in file order.

    Cells of the native benchmark alone are left out.
    """
    table = json.loads(path.read_text(encoding="utf-8"))
    return [
        make_case(table, cell, dtype, direction)
        for cell in table["cells"]
        if cell.get("only", "python") == "python"
        for dtype in cell.get("dtypes", table["dtypes"])
        for direction in cell["passes"]
    ]


def make_case(table: dict[str, Any], cell: dict[str, Any], dtype: str, direction: str) -> Case:
    """A cell in the form of shapes.json, by what that table has of its op."""
    variant = cell.get("variant", "")
    names = [f"{cell['op']}/{variant}", cell["op"], "default"]
    if cell["layout"] not in LAYOUTS:
        raise ValueError(f"layout is {cell['layout']!r}, expected one of {LAYOUTS}")
    in_cache, beyond = _both(_first(table["traffic"], names)[direction])
    param = _first(table["parameters"], names)
    return Case(
        op=cell["op"],
        variant=variant,
        shape=tuple(cell["shape"]),
        layout=cell["layout"],
        options=tuple(sorted(cell["options"].items())),
        dtype=dtype,
        direction=direction,
        traffic_in_cache=in_cache,
        traffic_beyond=beyond,
        param_dtype=dtype if param == "x" else param,
    )


def select(
    cases: Iterable[Case],
    ops: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    shapes: Sequence[str] = (),
    directions: Sequence[str] = (),
) -> list[Case]:
    """The cases that match every filter given; ops and shapes are patterns (`*` and `?`).

    An op matches by its name, with or without the variant; a shape by its label or one word of
    it, such as `4096x768` or `NHWC`.
    """

    def match(case: Case) -> bool:
        return (
            (not ops or any(matches(case, pattern) for pattern in ops))
            and (not dtypes or case.dtype in dtypes)
            and (not shapes or any(_match_shape(case, pattern) for pattern in shapes))
            and (not directions or case.direction in directions)
        )

    return [case for case in cases if match(case)]


class Named(Protocol):
    """What has an op, and a name with the variant."""

    @property
    def op(self) -> str: ...

    @property
    def name(self) -> str: ...


def matches(case: Named, pattern: str) -> bool:
    """Whether the op is of that pattern, with or without its variant."""
    return fnmatch.fnmatch(case.op, pattern) or fnmatch.fnmatch(case.name, pattern)


def _match_shape(case: Case, pattern: str) -> bool:
    # Whole words of the label, so that 1x768 does not also select 4096x768's neighbours.
    return any(fnmatch.fnmatch(text, pattern) for text in (case.label, *case.label.split()))


def _first(table: dict[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if name in table:
            return table[name]
    raise KeyError(f"shapes.json has no entry for {names[0]!r}")


def _both(traffic: float | dict[str, float]) -> tuple[float, float]:
    if isinstance(traffic, dict):
        return traffic["in_cache"], traffic["beyond"]
    return traffic, traffic
