"""Batch statistics over several processes: a layer's ``comm=``."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from . import _core
from ._arguments import shown
from ._interop import Array
from .reductions import Moments


class Processes:
    """The processes of a communicator, which call a layer together.

    ``comm`` is an mpi4py communicator or any object with ``allreduce(array)``, which returns the
    sum of float64 arrays over all processes. Of mpi4py the sums are awaited no longer than
    ``timeout`` seconds; other objects keep their own time.

    In calls on a CUDA device an ``allreduce`` gets an array of x's library there, and nothing waits
    for it: neither is the count known here, nor do the processes make sure that they make the same
    call. mpi4py's communicators get the numbers by the host, which waits.
    """

    def __init__(self, comm: Any, timeout: float) -> None:
        if not callable(getattr(comm, "allreduce", None)):
            raise TypeError(f"comm is {shown(comm)}, expected an object with allreduce(array)")
        self._comm = comm
        self._timeout = timeout
        self._what = ""
        self._pending: str | None = None  # the call that has not met the other processes yet
        self._calls = 0
        # Values a channel in the last call, of all processes; negative where a device knows them.
        self.count = 0.0

    @contextmanager
    def together(self, what: str, x: Any) -> Iterator[None]:
        """A function of x called within takes batch statistics over all processes.

        They meet at its first sum: what it refuses, it refuses before anybody waits.
        """
        self.count, self._pending = -1.0, what

        def sum_there(values: _core.ValuesThere) -> None:
            if hasattr(self._comm, "Iallreduce"):
                host = values.to_numpy()
                self._sum_in_place(host.data)
                values.set(host)
                return
            total = self._comm.allreduce(values.array_like(x))
            values.set(total)
            if self.count < 0 and isinstance(total, np.ndarray):
                self.count = float(total[0])

        try:
            with _core.Exchange(self._sum_in_place, sum_there):
                yield
        finally:
            self._pending = None

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
        self._what = f"{what}, call {self._calls + 1}"
        tag = float(zlib.crc32(self._what.encode()) % 2**16)
        processes, tags, squares = self.sum(np.array([1.0, tag, tag * tag]))
        if not (processes >= 1 and processes == np.trunc(processes)):
            raise ValueError(
                f"comm.allreduce gave {processes} for a 1 of every process, expected their number"
            )
        if tags != processes * tag or squares != processes * tag * tag:  # below 2**53: exact
            raise RuntimeError(
                f"the {processes:.0f} processes of comm do not make the same call: "
                f"this one is at {self._what}"
            )
        self._calls += 1  # a call that comm has refused is made again under its number

    def _sum_in_place(self, memory: memoryview) -> None:
        if self._pending is not None:
            what, self._pending = self._pending, None
            self._meet(what)
        values = np.frombuffer(memory)
        values[...] = self.sum(values)
        if self.count < 0:  # the count comes first
            self.count = float(values[0])

    def sum(self, values: Array) -> Array:
        """The sum over all processes."""
        start_sum = getattr(self._comm, "Iallreduce", None)
        if start_sum is None:
            return _checked_sum(self._comm.allreduce(values.copy()), values.shape)
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


def _checked_sum(result: Any, shape: tuple[int, ...]) -> Array:
    """What a comm returned, which must not be broadcast or converted."""
    rule = f"comm.allreduce returned {shown(result)}, expected the sum: "
    try:
        total = np.asarray(result)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{rule}a float64 array of shape {shape}: {error}") from None
    if total.dtype != np.float64 or np.isscalar(result):
        raise TypeError(f"{rule}a float64 array of shape {shape}, as it was given")
    if total.shape != shape:
        raise ValueError(f"{rule}an array of shape {shape}, not {total.shape}")
    return total


_abandoned: list[Any] = []
