"""Batch statistics over several processes: a layer's ``comm=``."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from . import _core
from ._interop import Array
from .reductions import Moments


class Processes:
    """The processes of a communicator, which call a layer together.

    ``comm`` is an mpi4py communicator or any object with ``allreduce(array)``, which returns the
    sum of float64 arrays over all processes. Of mpi4py the sums are awaited no longer than
    ``timeout`` seconds; other objects keep their own time.
    """

    def __init__(self, comm: Any, timeout: float) -> None:
        if not callable(getattr(comm, "allreduce", None)):
            raise TypeError(f"comm is {comm!r}, expected an object with allreduce(array)")
        if not timeout > 0:
            raise ValueError(f"comm_timeout is {timeout}, expected a number > 0")
        self._comm, self._timeout = comm, float(timeout)
        self._what = ""
        self._calls = 0
        self.count = 0.0  # values a channel in the last call, of all processes

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Functions called within take batch statistics over all processes."""
        self._meet(what)
        self.count = -1.0
        with _core.Exchange(self._sum_in_place):
            yield

    def merge_batches(self, parts: list[Moments], channels: int) -> tuple[list[Moments], int]:
        """Moments of the batches of all processes as one, and their number; any may have none."""
        nothing = Moments(np.zeros(channels), np.zeros(channels), np.zeros(channels))
        own = Moments.merge([nothing, *parts])
        self._meet("recompute_statistics")
        count, weighted, number = self.sum(
            np.stack([own.count, own.count * own.mean, np.full(channels, float(len(parts)))])
        )
        mean = weighted / np.maximum(count, 1)
        m2 = self.sum(own.m2 + own.count * (mean - own.mean) ** 2)
        return [Moments(count, mean, m2)], int(number[0])

    def _meet(self, what: str) -> None:
        """Make sure that all processes make the same call: fewer sums would be taken for others."""
        self._calls += 1
        self._what = f"{what}, call {self._calls}"
        tag = float(zlib.crc32(self._what.encode()) % 2**16)
        number, tags, squares = self.sum(np.array([1.0, tag, tag * tag]))
        if tags != number * tag or squares != number * tag * tag:  # below 2**53: exact
            raise RuntimeError(
                f"the {number:.0f} processes of comm do not make the same call: "
                f"this one is at {self._what}"
            )

    def _sum_in_place(self, memory: memoryview) -> None:
        values = np.frombuffer(memory)
        values[...] = self.sum(values)
        if self.count < 0:  # the count comes first
            self.count = float(values[0])

    def sum(self, values: Array) -> Array:
        """The sum over all processes."""
        start_sum = getattr(self._comm, "Iallreduce", None)
        if start_sum is None:
            return np.asarray(self._comm.allreduce(values.copy()), np.float64)
        sent, received = values.copy(), np.empty_like(values)
        request = start_sum(sent, received)
        deadline, pause = time.monotonic() + self._timeout, 0.0
        while not request.Test():
            if time.monotonic() > deadline:
                # MPI may still write: the arrays must outlive this call.
                _abandoned.append((request, sent, received))
                raise TimeoutError(
                    f"waited {self._timeout:g} s for the other processes in {self._what}: "
                    "one of them has died, or does not make this call"
                )
            time.sleep(pause)
            pause = min(1e-3, pause + 1e-6)  # short sums are there within microseconds
        return received

    def __deepcopy__(self, memo: Any) -> Processes:
        return Processes(self._comm, self._timeout)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a layer with comm cannot be pickled: its communicator is of this process")


_abandoned: list[Any] = []
