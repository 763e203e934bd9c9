"""The sweep: no size may cost much more than its neighbours, and no second thread may cost at all.

Along a line (`lines.py`) every size is timed with one thread and with all of them, the sizes of a
stretch in turn, so that neighbours share whatever else the machine does. Two ratios come of it,
medians over rounds:

- `cliff`: time over that of the neighbours, the cheaper side. Smaller neighbours count by their
  time per element. A larger one counts by its time per row (plane, position), which must not be
  lower: per element it may be, as a row costs something whatever its length.
- `gain`: time of one thread over that of all.

What looks worst is measured again, until the worst are of a second measurement: the largest of
thousands of ratios is else the largest disturbance.
"""

from __future__ import annotations

import gc
import heapq
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import machine
from .lines import ALIGNMENT, Line
from .measure import run_loop
from .progress import progress_bar
from .workload import NUMPY_DTYPES, our_call, workload_on

REACH = 3  # neighbours on each side
STRETCH = 16  # sizes that are timed in turn
CONFIRMED = 3  # of the worst sizes of a series, those that are sure to be measured a second time
AGAIN = 15  # sizes that are, at most
PASSES = ("forward", "backward")

Document = dict[str, Any]
Times = dict[int, list[list[float]]]  # by threads: of each round, seconds of each size


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    again: int  # rounds of what is measured a second time
    min_time: float  # seconds, of one timing

    @staticmethod
    def of(quick: bool) -> Effort:
        """The usual effort, or the quick one."""
        return Effort(3, 9, 0.0002) if quick else Effort(5, 15, 0.0004)


@dataclass
class Point:
    """One size: its call, how often a timing repeats it, and what its time is divided by."""

    size: int
    call: Callable[[], Any]
    repeats: int
    elements: int
    tensor_bytes: int

    def run_timed(self, least: float) -> float:
        """Seconds per call, after one call that brings data and threads back."""
        self.call()
        if not self.repeats:
            self.repeats = max(1, math.ceil(least / run_loop(self.call, 1)))
        return run_loop(self.call, self.repeats)


class Arena:
    """Memory that all sizes share: they differ in nothing else than their shape."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, str], np.ndarray] = {}

    def view(self, name: str, dtype: str, shape: tuple[int, ...], offset: int) -> np.ndarray:
        """Normal numbers as an array of that shape, `offset` bytes behind an aligned address."""
        kind = NUMPY_DTYPES[dtype]
        size = math.prod(shape)
        array = self._arrays.get((name, dtype), np.empty(0, kind))
        if array.size < size + ALIGNMENT:
            seed = sum(name.encode())
            values = np.random.default_rng(seed).standard_normal(2 * size + ALIGNMENT, np.float32)
            array = self._arrays[name, dtype] = values.astype(kind)
        start = (-array.ctypes.data % ALIGNMENT + offset) // kind.itemsize
        return array[start : start + size].reshape(shape)


def measure_series(
    nc: Any, arena: Arena, line: Line, dtype: str, direction: str, threads: int, quick: bool
) -> Document:
    """Every size of a line in one dtype and one pass."""
    effort = Effort.of(quick)
    points = [_point(nc, arena, line, n, dtype, direction) for n in line.chosen(quick)]
    teams = sorted({threads, 1}, reverse=True)
    rounds: Times = {team: [] for team in teams}
    for _ in range(effort.rounds):
        _add_round(nc, points, effort, rounds)
    series = Series(line, points, rounds)
    _measure_again(nc, series, effort)
    nc.set_num_threads(threads)
    return {
        "axis": line.axis,
        "op": line.name,
        "shape": f"{line.label} {line.layout}" if line.layout != "C" else line.label,
        "dtype": dtype,
        "pass": direction,
        "sizes": [point.size for point in points],
        "tensor_bytes": [point.tensor_bytes for point in points],
        # Per element, of all threads and of one.
        "nanoseconds": {
            str(team): [1e9 * t / p.elements for t, p in zip(times, points, strict=True)]
            for team, times in series.medians().items()
        },
        "cliff": {str(team): series.cliffs[team] for team in teams},
        "gain": series.gains,
    }


class Series:
    """The sizes of a line with their times, and the ratios that follow."""

    def __init__(self, line: Line, points: Sequence[Point], rounds: Times) -> None:
        self.line, self.points, self.rounds = line, points, rounds
        everywhere = range(len(points))
        self.cliffs = {team: [self.cliff(team, i) for i in everywhere] for team in rounds}
        self.gains = [self.gain(i) for i in everywhere] if len(rounds) > 1 else []

    def medians(self) -> dict[int, list[float]]:
        """Seconds of each size."""
        return {
            team: [statistics.median(times) for times in zip(*rounds, strict=True)]
            for team, rounds in self.rounds.items()
        }

    def cliff(self, team: int, index: int) -> float:
        """Time of a size over that of its neighbours."""
        return statistics.median(self._cliff(times, index) for times in self.rounds[team])

    def gain(self, index: int) -> float:
        """Time of one thread over that of all."""
        team = max(self.rounds)
        pairs = zip(self.rounds[1], self.rounds[team], strict=True)
        return statistics.median(one[index] / all_[index] for one, all_ in pairs)

    def worst_cliffs(self, team: int) -> Callable[[], list[int]]:
        """Where the worst cliffs are at the moment."""
        return lambda: heapq.nlargest(
            CONFIRMED, range(len(self.points)), key=lambda i: self.cliffs[team][i]
        )

    def worst_gains(self) -> list[int]:
        """Where more threads pay least."""
        return heapq.nsmallest(CONFIRMED, range(len(self.gains)), key=lambda i: self.gains[i])

    def replace(self, index: int, other: Series, there: int) -> None:
        """Take the ratios of a size from another measurement."""
        for team in self.rounds:
            self.cliffs[team][index] = other.cliffs[team][there]
        if self.gains:
            self.gains[index] = other.gains[there]

    def window(self, index: int) -> range:
        """A size and its neighbours."""
        return range(max(0, index - REACH), min(len(self.points), index + REACH + 1))

    def _cliff(self, times: Sequence[float], index: int) -> float:
        here, window = self.points[index], self.window(index)
        expected = []
        for side in (range(window.start, index), range(index + 1, window.stop)):
            costs = [times[i] * self._factor(here, self.points[i]) for i in side]
            if costs:
                expected.append(statistics.median(costs))
        return times[index] / min(expected)

    def _factor(self, here: Point, other: Point) -> float:
        """What the time of another size is multiplied by to be the most that this may take."""
        share = here.elements / other.elements
        if self.line.shifts or other.size < here.size:
            return share
        return share * other.size / here.size


def _measure_again(nc: Any, series: Series, effort: Effort) -> None:
    """Measure the worst sizes a second time, whose ratios are then of that measurement alone."""
    for worst in (*map(series.worst_cliffs, series.rounds), series.worst_gains):
        done: set[int] = set()
        while len(done) < AGAIN and (fresh := [i for i in worst() if i not in done]):
            index = fresh[0]
            done.add(index)
            window = series.window(index)
            points = series.points[window.start : window.stop]
            again: Times = {team: [] for team in series.rounds}
            for _ in range(effort.again):
                _add_round(nc, points, effort, again)
            series.replace(index, Series(series.line, points, again), index - window.start)


def _add_round(nc: Any, points: Sequence[Point], effort: Effort, rounds: Times) -> None:
    times: dict[int, list[float]] = {team: [] for team in rounds}
    for start in range(0, len(points), STRETCH):
        for team in rounds:
            nc.set_num_threads(team)
            for point in points[start : start + STRETCH]:
                times[team].append(point.run_timed(effort.min_time))
    for team in rounds:
        rounds[team].append(times[team])


def _point(nc: Any, arena: Arena, line: Line, size: int, dtype: str, direction: str) -> Point:
    case = line.case(size, dtype, direction)
    offset = size if line.shifts else 0
    x, dy, out = (arena.view(n, dtype, case.memory_shape, offset) for n in ("x", "dy", "out"))
    call = our_call(nc, workload_on(case, x, dy), out)
    return Point(size, call, 0, x.size, case.tensor_bytes)


def run(
    lines: Sequence[Line],
    dtypes: Sequence[str],
    directions: Sequence[str],
    threads: int,
    quick: bool,
) -> Document:
    """All series of these lines."""
    import normcore

    arena = Arena()
    jobs = [(line, dtype, d) for line in lines for dtype in dtypes for d in directions]
    document: Document = {"machine": machine.describe(normcore, threads), "quick": quick}
    document["series"] = []
    gc.disable()  # nothing of our own may run beside a timing
    with progress_bar() as progress:
        task = progress.add_task("", total=len(jobs))
        for line, dtype, direction in jobs:
            text = f"{line.axis}: {line.name} {line.label} {dtype} {direction}"
            progress.update(task, description=text, refresh=True)
            gc.collect()
            series = measure_series(normcore, arena, line, dtype, direction, threads, quick)
            document["series"].append(series)
            progress.update(task, advance=1, refresh=True)
    return document
