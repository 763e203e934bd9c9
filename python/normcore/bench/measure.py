"""Interleaved timing. Only ratios within one round are used: they survive a noisy machine.

A round times every contender once: ours, the two copies, each peer. A timing is a loop long
enough for the clock after one untimed call, which brings the contender's data and threads back
after the others ran. The ratio of two contenders is the median over rounds of their ratio.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SLOW_CALL = 0.1  # seconds; a contender this slow is timed in every third round only
WARM_CALL = 0.03  # seconds; above this no data stays warm, so the untimed call is skipped
DISTURBED = 1.5  # median over minimum of a contender that something else on the machine held up
WAITED = 0.05  # of the time of timing: threads were ready, and something else had their CPU
PREEMPTED = 50.0  # per second, where nothing tells how long that took; one that waits has 100
EXTRA_SETS = 2  # of rounds, for cases with a disturbed contender
PAUSE = 0.001  # seconds, again and again, until the last contender's threads have stopped spinning
MOST_PAUSES = 50


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    min_time: float  # seconds, of one timing
    patience: float  # seconds; a disturbed case that took longer gets no more rounds

    @staticmethod
    def of(quick: bool) -> Effort:
        """The usual effort, or the quick one."""
        if quick:
            return Effort(rounds=5, min_time=0.001, patience=0.3)
        return Effort(rounds=9, min_time=0.003, patience=2.0)


@dataclass
class Contender:
    """A call to time, and its seconds per call in each round (NaN where it was left out)."""

    name: str
    call: Callable[[], Any]
    seconds: list[float] = field(default_factory=list)
    repeats: int = 1
    estimate: float = 0.0
    calls: int = 0
    faults: int = 0  # page faults of the process during those calls
    preempted: int = 0  # times that another thread took a CPU from one of this process
    waited: float = 0.0  # seconds that its threads waited for a CPU, NaN where that is not told
    crowded: bool = False  # it has more threads than CPUs, which preempt each other

    def run_timed(self) -> None:
        """One timing."""
        before = process_events()
        self.seconds.append(run_loop(self.call, self.repeats))
        after = process_events()
        self.faults += after[0] - before[0]
        self.preempted += after[1] - before[1]
        self.waited += after[2] - before[2]
        self.calls += self.repeats

    @property
    def faults_per_call(self) -> float:
        """Page faults per call: none in kernel mode, else the mode does not hold."""
        return self.faults / self.calls

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return statistics.median(s for s in self.seconds if not math.isnan(s))

    @property
    def disturbed(self) -> bool:
        """Whether its times tell of a busy machine, not of the code.

        Half of the timings are far from the best; or threads waited for a CPU. The latter matters
        most: with one CPU taken, every parallel region waits for a time slice, and the ratio of two
        contenders that both wait looks like 1. How often they were preempted says less: a task of
        the system that runs for microseconds does that a hundred times a second too.
        """
        timed = [s for s in self.seconds if not math.isnan(s)]
        if self.median > DISTURBED * min(timed):
            return True
        total = statistics.fmean(timed) * self.calls
        lost = self.preempted / PREEMPTED if math.isnan(self.waited) else self.waited / WAITED
        return not self.crowded and lost > total

    def ratios(self, other: Contender) -> list[float]:
        """Our time over the other's, round by round."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return [a / b for a, b in pairs if not (math.isnan(a) or math.isnan(b))]

    def ratio(self, other: Contender) -> float:
        """Median of `ratios`."""
        return statistics.median(self.ratios(other))


def process_events() -> tuple[int, int, float]:
    """Page faults of this process so far, preemptions, and the seconds that its threads waited.

    The first two are 0 where the system does not tell, the last is NaN.
    """
    if not resource:
        return 0, 0, math.nan
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt, usage.ru_nivcsw, waited_for_cpu()


def waited_for_cpu() -> float:
    """Seconds in which threads of this process were ready to run and did not, as Linux counts."""
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return math.nan
    waited = turns = 0
    for thread in threads:
        try:
            with open(f"/proc/self/task/{thread}/schedstat") as stat:
                fields = stat.read().split()
        except OSError:  # it has ended, or the kernel keeps no account
            continue
        waited += int(fields[1])
        turns += int(fields[2])
    return waited * 1e-9 if turns else math.nan  # without an account all is zero


def run_loop(call: Callable[[], Any], repeats: int) -> float:
    """Seconds per call. The last result is kept until the next replaces it, as in `y = f(x)`."""
    start = time.perf_counter()
    for _ in repeat(None, repeats):
        y = call()  # noqa: F841
    return (time.perf_counter() - start) / repeats


def interleave(contenders: Sequence[Contender], effort: Effort) -> None:
    """Fill in `seconds` of every contender, with more rounds where the machine was busy."""
    for contender in contenders:
        _calibrate(contender, effort)
    start = time.perf_counter()
    for _ in range(1 + EXTRA_SETS):
        for round_number in range(effort.rounds):
            _run_round(contenders, round_number)
        impatient = time.perf_counter() - start > effort.patience
        if impatient or not any(contender.disturbed for contender in contenders):
            break


def _run_round(contenders: Sequence[Contender], round_number: int) -> None:
    for contender in contenders:
        if contender.estimate > SLOW_CALL and round_number % 3:
            contender.seconds.append(math.nan)
            continue
        settle()
        if contender.estimate < WARM_CALL:
            contender.call()
        contender.run_timed()


def settle() -> None:
    """Wait until this process is idle: whose threads still spin takes a CPU from the next."""
    for _ in range(MOST_PAUSES):
        used = time.process_time()
        time.sleep(PAUSE)
        if time.process_time() - used < PAUSE / 4:
            return


def _calibrate(contender: Contender, effort: Effort) -> None:
    settle()
    contender.call()
    estimate = run_loop(contender.call, 1)
    if estimate < effort.min_time:  # a first single call says little of a short one
        trial = max(1, math.ceil(0.2 * effort.min_time / estimate))
        estimate = min(estimate, run_loop(contender.call, trial))
    contender.estimate = estimate
    contender.repeats = max(1, math.ceil(effort.min_time / estimate))


class CopyYardstick:
    """Copies of the core, all threads, over one pair of buffers that every case shares."""

    def __init__(self, copy: Callable[[np.ndarray, np.ndarray, bool], Any]) -> None:
        self._copy = copy
        self._dst = self._src = np.ones(0, np.float32)

    def contenders(self, tensor_bytes: int, traffic: float) -> tuple[Contender, Contender]:
        """Plain and streaming copy that read and write `traffic` tensors in all."""
        # A copy of n bytes reads n and writes n: half the traffic.
        items = max(1, math.ceil(tensor_bytes * traffic / 2 / self._src.itemsize))
        if self._src.size < items:
            self._src = np.ones(items, np.float32)
            self._dst = np.ones(items, np.float32)
        dst, src = self._dst[:items], self._src[:items]
        return (
            Contender("copy plain", lambda: self._copy(dst, src, False)),
            Contender("copy streaming", lambda: self._copy(dst, src, True)),
        )


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean; NaN of nothing."""
    return math.exp(statistics.fmean(map(math.log, values))) if values else math.nan
