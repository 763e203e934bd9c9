"""Results for people: tables on the terminal, and a summary.

Works on the document that is saved as JSON, so an old run can be shown again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from .machine import summary
from .measure import geometric_mean

Result = dict[str, Any]
MODE_TITLES = {
    "kernel": "kernel: no contender allocates fresh memory",
    "called": "as called: y = f(x), default allocators",
}
# Targets, in multiples of the copy, for tensors over 1 MB.
ROOFLINE_TARGET = {"forward": 1.25, "backward": 1.35}
LARGE = 1 << 20
ARITHMETIC = {"gdn", "divisive_norm"}  # bound by it: no roofline of memory says anything
WORST = 10
BUSY = 0.5  # load average per CPU before the run


def by_mode(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results that were measured, of each mode."""
    modes: dict[str, list[Result]] = {}
    for result in results:
        modes.setdefault(result["mode"], []).append(result)
    return modes


def fastest_speedup(result: Result) -> float | None:
    """Speedup over the fastest peer, None where there is no peer."""
    return result["speedup"][result["fastest"]] if result.get("fastest") else None


def misses_target(result: Result) -> bool:
    """Whether a large tensor takes longer than its target."""
    target = ROOFLINE_TARGET[result["pass"]]
    return bool(result["tensor_bytes"] > LARGE and result["roofline"] > target)


def print_report(document: dict[str, Any], console: Console) -> None:
    """Everything a run has to say."""
    machine = document["machine"]
    console.print(summary(machine))
    if machine["load"] > BUSY * machine["cpus"]:
        console.print(
            f"[yellow]the machine was busy at the start (load {machine['load']:.1f}): thread "
            "pools, ours and the peers', may stall for milliseconds; trust only a quiet run[/]"
        )
    versions = " ".join(f"{name} {version}" for name, version in document["peers"].items())
    console.print(f"peers: {versions or 'none'}")
    for name, reason in document["absent"].items():
        console.print(f"absent: {name} ({reason})")
    if "overhead" in document:
        print_overhead(document["overhead"], console)
    for mode, results in by_mode(document["results"]).items():
        console.print(_table(mode, results, list(document["peers"])))
        _print_summary(mode, results, console)


def _table(mode: str, results: Sequence[Result], peers: Sequence[str]) -> Table:
    table = Table(title=MODE_TITLES[mode], header_style="bold")
    for name in ("op", "shape", "dtype", "pass"):
        table.add_column(name, no_wrap=True)
    for name in ("us", "GB/s", "roofline", *peers):
        table.add_column(name, justify="right", no_wrap=True)
    last = ""
    for result in results:
        if last and result["op"] != last:
            table.add_section()
        last = result["op"]
        head = [last, result["shape"], result["dtype"], result["pass"]]
        if "error" in result:
            table.add_row(*head, "-", "-", f"[red]{result['error'][:40]}", *["-"] * len(peers))
            continue
        seconds = result["seconds"]["normcore"]
        rate = result["traffic"] * result["tensor_bytes"] / seconds / 1e9
        roofline = f"{'~' if result['disturbed'] else ''}{result['roofline']:.2f}"
        if misses_target(result):
            roofline = f"[yellow]{roofline}[/]"
        speedups = [_speedup_text(result, peer) for peer in peers]
        table.add_row(*head, f"{1e6 * seconds:.4g}", f"{rate:.1f}", roofline, *speedups)
    return table


def _speedup_text(result: Result, peer: str) -> str:
    speedup = result["speedup"].get(peer)
    if speedup is None:
        return "-"
    text = f"{speedup:.2f}" if speedup < 100 else f"{speedup:.0f}"
    if peer == result["fastest"]:
        return f"[bold {'red' if speedup < 1 else 'green'}]{text}[/]"
    return text


def of_memory(results: Sequence[Result]) -> list[Result]:
    """Those that the aims for the roofline are about."""
    return [r for r in results if r["tensor_bytes"] > LARGE and r["op"] not in ARITHMETIC]


def _print_summary(mode: str, results: Sequence[Result], console: Console) -> None:
    everything = [result for result in results if "error" not in result]
    measured = [result for result in everything if not result["disturbed"]]
    speedups = [s for s in map(fastest_speedup, measured) if s is not None]
    large = of_memory(measured)
    if speedups:
        slower = sum(s < 1 for s in speedups)
        console.print(
            f"[bold]{mode}: geometric mean of the speedup over the fastest peer "
            f"{geometric_mean(speedups):.2f}[/] ({len(speedups)} cells, {slower} slower than it)"
        )
    if large:
        missed = sum(map(misses_target, large))
        mean = geometric_mean([result["roofline"] for result in large])
        console.print(
            f"{mode}: geometric mean of the roofline over 1 MB {mean:.2f} "
            f"({len(large)} cells, {missed} beyond the target)"
        )
    worst = sorted(large, key=lambda result: -result["roofline"])[:WORST]
    for result in worst:
        low, high = result["roofline_quartiles"]
        console.print(
            f"  roofline {result['roofline']:.2f} ({low:.2f}-{high:.2f})  {result['op']} "
            f"{result['shape']} {result['dtype']} {result['pass']}"
        )
    disturbed = len(everything) - len(measured)
    if disturbed:
        console.print(
            f"[yellow]{disturbed} of {len(everything)} cells (~) were held up by other processes "
            "and are left out above: measure them again in quiet or with --high-priority[/]"
        )
    wrong = [
        f"  {peer}: {note} in {result['op']} {result['shape']} {result['dtype']} {result['pass']}"
        for result in results
        for peer, note in result["notes"].items()
        if not note.startswith("unsupported")
    ]
    if wrong:
        console.print(
            "peers that do not agree with us (only where inexact they are timed):",
            *wrong,
            sep="\n",
            markup=False,
        )


def print_overhead(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Microseconds of one small call."""
    names = list(dict.fromkeys(name for row in rows for name in row["microseconds"]))
    table = Table(title="one small call from Python, us (f32)", header_style="bold")
    for name in ("op", "shape"):
        table.add_column(name, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        times = (row["microseconds"].get(name) for name in names)
        cells = ["-" if t is None else f"{t:.2f}" for t in times]
        table.add_row(row["op"], row["shape"], *cells)
    console.print(table)
