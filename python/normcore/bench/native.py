"""Runs of the native benchmark (Google Benchmark's JSON), to be compared as the Python ones are.

Ratios only: a benchmark is compared by its roofline, or where it has none by its time over that of
the copies in its own run; and by its speedup over oneDNN, where both runs have timed it.
"""

from __future__ import annotations

import re
import statistics
from typing import Any

from .compare import Change
from .measure import geometric_mean

NANOSECONDS = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}
# What Google Benchmark says at the end of a name about how the time was taken.
CLOCK = re.compile("/(manual|real)_time$")
PEER, PEER_SUFFIX = "oneDNN", "/onednn"
MEASURES = ("roofline", "speedup")


def cells(run: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The time and, where it has them, the ratios of every benchmark: medians of repetitions."""
    samples: dict[str, dict[str, list[float]]] = {}
    for entry in run["benchmarks"]:
        if entry.get("run_type") == "aggregate" or entry.get("error_occurred"):
            continue
        cell = samples.setdefault(CLOCK.sub("", entry["run_name"]), {})
        nanoseconds = entry["real_time"] * NANOSECONDS[entry["time_unit"]]
        cell.setdefault("time", []).append(nanoseconds)
        for measure in MEASURES:
            if measure in entry:
                cell.setdefault(measure, []).append(entry[measure])
    return {
        name: {measure: statistics.median(values) for measure, values in cell.items()}
        for name, cell in samples.items()
    }


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """The benchmarks that both native runs have, worst first; the copies are what is compared by.

    Those without a roofline are left out where the runs share no copy.
    """
    before, after = cells(old), cells(new)
    shared = [name for name in after if name in before]
    copies = [name for name in shared if name.startswith("copy/")]
    yardsticks = [geometric_mean([run[name]["time"] for name in copies]) for run in (before, after)]
    found = []
    for name in shared:
        if name in copies or name.endswith(PEER_SUFFIX):
            continue
        pair = (before[name], after[name])
        if all("roofline" in cell for cell in pair):
            old_ratio, new_ratio = (cell["roofline"] for cell in pair)
        elif copies:
            old_ratio, new_ratio = (
                cell["time"] / y for cell, y in zip(pair, yardsticks, strict=True)
            )
        else:
            continue
        peer = name + PEER_SUFFIX
        found.append(
            Change(
                key=name,
                roofline=(old_ratio, new_ratio),
                speedup=(before[peer]["speedup"], after[peer]["speedup"])
                if peer in before and peer in after
                else None,
            )
        )
    return sorted(found, key=lambda change: -change.factor)
