"""Sets two runs side by side: `python bench/compare.py OLD NEW` from the repository root.

Runs of the native benchmark (Google Benchmark's JSON) or of the Python one. Ratios only: a cell is
compared by its roofline, or where it has none by its time over that of the copies in its own run;
and by its speedup over a peer, where both runs have timed one.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as `python bench/compare.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.console import Console

from bench.python.compare import WITNESS, Change, changes, judge
from bench.python.measure import geometric_mean

NANOSECONDS = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}
# What Google Benchmark says at the end of a name about how the time was taken.
CLOCK = re.compile("/(manual|real)_time$")
PEER, PEER_SUFFIX = "oneDNN", "/onednn"
MEASURES = ("roofline", "speedup")


def native_cells(run: dict[str, Any]) -> dict[str, dict[str, float]]:
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


def native_changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """The benchmarks that both native runs have, worst first; the copies are what is compared by.

    Those without a roofline are left out where the runs share no copy.
    """
    before, after = native_cells(old), native_cells(new)
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


def load(path: Path) -> tuple[str, dict[str, Any]]:
    """A run and which benchmark it is of."""
    run = json.loads(path.read_text(encoding="utf-8"))
    for kind, key in (("native", "benchmarks"), ("python", "results")):
        if isinstance(run, dict) and key in run:
            return kind, run
    raise SystemExit(f"{path}: neither a native run ('benchmarks') nor a Python one ('results')")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python bench/compare.py", description=__doc__)
    parser.add_argument("old", type=Path, metavar="OLD", help="JSON of the earlier run")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument(
        "--filter", type=re.compile, default="", metavar="REGEX", help="of the cells' names"
    )
    parser.add_argument(
        "--fail-above", type=float, metavar="FACTOR", help="exit with 1 if a cell got that worse"
    )
    return parser.parse_args(arguments)


def main() -> int:
    """Compare as asked; the exit status."""
    options = parse_arguments()
    (kind, old), (other, new) = load(options.old), load(options.new)
    if kind != other:
        raise SystemExit(f"{options.old} is a {kind} run and {options.new} a {other} one")
    native = kind == "native"
    found = native_changes(old, new) if native else changes(old, new)
    chosen = [change for change in found if re.search(options.filter, change.key)]
    console = Console() if sys.stdout.isatty() else Console(width=140)
    return judge(chosen, options.fail_above, console, PEER if native else WITNESS)


if __name__ == "__main__":
    sys.exit(main())
