"""The measuring process: times a list of cases in one mode and writes the results as JSON.

Started by `__main__` with the environment that the mode needs (malloc settings are read when a
process starts), with its job as JSON on standard input.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from . import machine
from .cells import Case, load_cases, select
from .measure import Contender, CopyYardstick, Effort, interleave
from .overhead import measure_overhead
from .peers import CROWDED, FOR_SCALE, Peer, load_peers
from .progress import progress_bar
from .workload import (
    Unsupported,
    Workload,
    difference,
    inexact_gradients,
    make_workload,
    our_call,
    our_results,
)

Result = dict[str, Any]
# Heap touched ahead in kernel mode. glibc walks through a dozen tensors' worth of heap before it
# comes back to where it was (see `touch_heap`), beside what a case has alive at once.
HEAP_TENSORS = 32
HEAP_BASE = 256 << 20
HEAP_SHARE = 0.25  # of the machine's memory, at most


class Bench:
    """Everything that outlives a case."""

    def __init__(self, job: dict[str, Any]) -> None:
        import normcore

        self.nc: Any = normcore
        self.kernel = job["mode"] == "kernel"
        self.mode: str = job["mode"]
        self.effort = Effort.of(job["quick"])
        self.cache = machine.last_level_cache()
        self.peers, self.absent = load_peers(job["peers"], job["threads"])
        self.copies = CopyYardstick(normcore._core.copy)
        normcore.set_num_threads(job["threads"])

    def measure(self, case: Case, work: Workload) -> Result:
        """One line of the table."""
        result: Result = {
            "key": f"{self.mode}|{case.key}",
            "mode": self.mode,
            "op": case.name,
            "shape": case.label,
            "dtype": case.dtype,
            "pass": case.direction,
            "tensor_bytes": case.tensor_bytes,
            "traffic": case.traffic(self.cache),
            "notes": {},
        }
        try:
            out = np.empty_like(work.x) if self.kernel else None
            ours = Contender("normcore", our_call(self.nc, work, out))
            expected = [part.copy() for part in our_results(ours.call())]
        except Exception as error:
            result["error"] = _first_line(error)
            return result

        peers = []
        for peer in self.peers:
            contender, note = self._admit(peer, work, expected)
            if contender is not None:
                peers.append(contender)
            if note:
                result["notes"][peer.name] = note
        copies = self.copies.contenders(case.tensor_bytes, result["traffic"])
        del expected
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            interleave([ours, *copies, *peers], self.effort)
        for peer in self.peers:
            peer.forget()

        copy = min(copies, key=lambda contender: contender.median)
        ratios = ours.ratios(copy)
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        counted = [peer for peer in peers if peer.name not in FOR_SCALE]
        fastest = min(counted, key=lambda contender: contender.median, default=None)
        return result | {
            "seconds": {c.name: c.median for c in (ours, *copies, *peers)},
            "page_faults": {c.name: c.faults_per_call for c in (ours, *copies, *peers)},
            "copy": copy.name,
            "roofline": ours.ratio(copy),
            "roofline_quartiles": [quartiles[0], quartiles[2]],
            "speedup": {peer.name: peer.ratio(ours) for peer in peers},
            "fastest": fastest.name if fastest else None,
            "disturbed": [c.name for c in (ours, *copies, *peers) if c.disturbed],
        }

    def _admit(
        self, peer: Peer, work: Workload, expected: list[Any]
    ) -> tuple[Contender | None, str]:
        """The peer as a contender once it has computed what we compute; what there is to say."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                prepared = peer.prepare(work, self.kernel)
                results = prepared.results(prepared.call())
            except Unsupported as reason:
                return None, f"unsupported: {reason}"
            except Exception as error:
                return None, f"failed: {_first_line(error)}"
        wrong = difference(work.case, expected, results)
        if wrong:
            return None, f"wrong: {wrong}"
        inexact = inexact_gradients(work.case, expected, results)
        note = f"inexact: {', '.join(inexact)}" if inexact else ""
        return Contender(peer.name, prepared.call, crowded=peer.name in CROWDED), note


def run(job: dict[str, Any]) -> dict[str, Any]:
    """All cases of a job."""
    filters = [job[name] for name in ("op", "dtype", "shape", "pass")]
    keys = job["keys"]  # of results; None: all that match
    cases = [
        case
        for case in select(load_cases(), *filters)
        if keys is None or f"{job['mode']}|{case.key}" in keys
    ]
    machine.restrict_to(job["threads"])
    if job["high_priority"] and not machine.raise_priority():
        print("no right to raise the priority: measuring without", file=sys.stderr)
    if job["mode"] == "kernel":
        heap = HEAP_BASE + HEAP_TENSORS * max(case.tensor_bytes for case in cases)
        machine.touch_heap(min(heap, int(HEAP_SHARE * machine.memory())))
    bench = Bench(job)
    document: dict[str, Any] = {
        "machine": machine.describe(bench.nc, job["threads"]),
        "peers": {peer.name: peer.version for peer in bench.peers},
        "absent": bench.absent,
        "results": [],
    }
    if job["overhead"]:
        document["overhead"] = measure_overhead(bench.nc, bench.peers, job["quick"])
        return document

    gc.disable()  # nothing of our own may run beside a timing
    with progress_bar() as progress:
        task = progress.add_task("", total=len(cases))
        work: Workload | None = None
        for case in cases:
            text = f"{case.name} {case.label} {case.dtype} {case.direction} ({bench.mode})"
            progress.update(task, description=text, refresh=True)
            gc.collect()
            work = _workload_of(case, work)
            document["results"].append(bench.measure(case, work))
            progress.update(task, advance=1, refresh=True)
    return document


def _workload_of(case: Case, last: Workload | None) -> Workload:
    """The arrays of a case; forward and backward of one cell share them."""
    if last is not None:
        old = last.case
        if (old.name, old.label, old.dtype) == (case.name, case.label, case.dtype):
            last.case = case
            return last
    return make_workload(case)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def main() -> None:
    """Read the job, measure, write the results."""
    job = json.load(sys.stdin)
    Path(job["output"]).write_text(json.dumps(run(job)), encoding="utf-8")


if __name__ == "__main__":
    main()
