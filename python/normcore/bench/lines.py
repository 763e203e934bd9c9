"""The lines of the sweep: cells that differ in one size alone, so that a cliff along it shows.

Sizes that are no line's own are such that a tensor has `TENSOR_BYTES`: in the caches of any core of
today, and so much that the cost of a call is small beside it. Along `N` alone tensors grow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .cells import ITEM_BYTES, SHAPES_FILE, Case, make_case

TENSOR_BYTES = 1 << 20
ALIGNMENT = 64  # bytes; offsets count from there

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """Cells of one op, by the size that differs."""

    axis: str
    op: str
    variant: str
    layout: str
    label: str  # of the shape, with the size as n
    shape: Callable[[int, int], Shape]  # of a size, for so many elements
    sizes: Sequence[int]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The op with its variant."""
        return f"{self.op}/{self.variant}" if self.variant else self.op

    @property
    def shifts(self) -> bool:
        """Whether the size is an offset in memory, and the shape always the same."""
        return self.axis == "offset"

    def case(self, size: int, dtype: str, direction: str) -> Case:
        """The cell of that size."""
        elements = TENSOR_BYTES // ITEM_BYTES[dtype]
        cell = {
            "op": self.op,
            "variant": self.variant,
            "shape": self.shape(size, elements),
            "layout": self.layout,
            "options": self.options,
        }
        return make_case(_TABLE, cell, dtype, direction)

    def chosen(self, quick: bool) -> list[int]:
        """All sizes, or with `quick` the small ones and those around round numbers."""
        return [n for n in self.sizes if not quick or self.shifts or _is_telling(n)]


_TABLE = json.loads(SHAPES_FILE.read_text(encoding="utf-8"))


def _is_telling(n: int) -> bool:
    # Four round numbers to each power of two, with the sizes next to them.
    step = 1 << max(0, n.bit_length() - 3)
    return n <= 32 or n % step in (0, 1, step - 1)


def _rows(width: int, elements: int) -> Shape:
    return (max(1, elements // width), width)


def _planes(size: int, elements: int) -> Shape:
    return (max(1, elements // (64 * size)), 64, size)


def _channels(count: int, elements: int) -> Shape:
    return (max(1, elements // (49 * count)), count, 49)


def _samples(*rest: int) -> Callable[[int, int], Shape]:
    return lambda n, elements: (n, *rest)


def _fixed(shape: Callable[[int, int], Shape], size: int) -> Callable[[int, int], Shape]:
    return lambda offset, elements: shape(size, elements)


LAST, CHANNELS = {"axis": -1}, {"axis": 1}
TRAIN, EVAL = {"training": True}, {"training": False}
GROUPS = {"num_groups": 32}
WIDTHS, PLANES, COUNTS, NUMBERS = range(1, 4098), range(1, 401), range(1, 514), range(1, 65)
OFFSETS = (0, 16, 4)

LINES = (
    Line("row width", "layer_norm", "", "C", "R x n", _rows, WIDTHS, LAST),
    Line("row width", "rms_norm", "", "C", "R x n", _rows, WIDTHS, LAST),
    Line("plane size", "batch_norm", "train", "NCHW", "N x 64 x n", _planes, PLANES, TRAIN),
    Line("plane size", "batch_norm", "eval", "NCHW", "N x 64 x n", _planes, PLANES, EVAL),
    Line("plane size", "group_norm", "", "NCHW", "N x 64 x n", _planes, PLANES, GROUPS),
    # A plane of one element has no statistics.
    Line("plane size", "instance_norm", "", "NCHW", "N x 64 x n", _planes, PLANES[1:]),
    Line("channels", "batch_norm", "train", "NCHW", "N x n x 49", _channels, COUNTS, TRAIN),
    Line("channels", "batch_norm", "train", "NHWC", "N x n x 49", _channels, COUNTS, TRAIN),
    Line("channels", "batch_norm", "eval", "NHWC", "N x n x 49", _channels, COUNTS, EVAL),
    Line("channels", "layer_norm", "", "NCHW", "N x n x 49", _channels, COUNTS, CHANNELS),
    Line("N", "layer_norm", "", "C", "n x 768", _samples(768), NUMBERS, LAST),
    Line("N", "layer_norm", "", "C", "n x 4096", _samples(4096), NUMBERS, LAST),
    Line("N", "batch_norm", "train", "NCHW", "n x 64 x 196", _samples(64, 196), NUMBERS, TRAIN),
    Line("N", "batch_norm", "train", "NHWC", "n x 64 x 196", _samples(64, 196), NUMBERS, TRAIN),
    Line("N", "group_norm", "", "NCHW", "n x 64 x 196", _samples(64, 196), NUMBERS, GROUPS),
    Line("N", "instance_norm", "", "NCHW", "n x 64 x 196", _samples(64, 196), NUMBERS),
    Line("offset", "layer_norm", "", "C", "R x 768", _fixed(_rows, 768), OFFSETS, LAST),
    Line("offset", "rms_norm", "", "C", "R x 4095", _fixed(_rows, 4095), OFFSETS, LAST),
    Line(
        *("offset", "batch_norm", "train", "NCHW", "N x 64 x 196"),
        *(_fixed(_planes, 196), OFFSETS, TRAIN),
    ),
    Line(
        *("offset", "batch_norm", "train", "NHWC", "N x 64 x 196"),
        *(_fixed(_planes, 196), OFFSETS, TRAIN),
    ),
    Line("offset", "group_norm", "", "NCHW", "N x 64 x 49", _fixed(_planes, 49), OFFSETS, GROUPS),
)
AXES = tuple(dict.fromkeys(line.axis for line in LINES))
