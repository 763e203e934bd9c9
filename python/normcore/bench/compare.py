"""Comparison with an earlier run. Ratios only: two runs share no clock that could be trusted.

A cell has become worse by the factor that its roofline grew. Where both runs timed a witness (torch
eager, or oneDNN in the native benchmark), the speedup over it must have fallen too, and the smaller
of both factors counts: the copy and the peer seldom slip together, so what a noisy neighbour did to
one of them is no regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from .measure import geometric_mean

WITNESS = "torch"
SHOWN = 15


@dataclass(frozen=True)
class Change:
    """One cell in both runs; factors over 1 are worse now."""

    key: str
    roofline: tuple[float, float]  # old, new
    speedup: tuple[float, float] | None  # over the witness, old, new

    @property
    def factor(self) -> float:
        """How much worse the cell has become, by what both ratios agree on."""
        slower = self.roofline[1] / self.roofline[0]
        if self.speedup is None:
            return slower
        lost = self.speedup[0] / self.speedup[1]
        if (slower > 1) != (lost > 1):
            return 1.0
        return min(slower, lost) if slower > 1 else max(slower, lost)


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """The cells that both runs measured undisturbed, worst first."""
    before = {result["key"]: result for result in old["results"] if "error" not in result}
    found = []
    for result in new["results"]:
        earlier = before.get(result["key"])
        if earlier is None or "error" in result or earlier["disturbed"] or result["disturbed"]:
            continue
        pair = (earlier["speedup"].get(WITNESS), result["speedup"].get(WITNESS))
        found.append(
            Change(
                key=result["key"],
                roofline=(earlier["roofline"], result["roofline"]),
                speedup=None if None in pair else pair,
            )
        )
    return sorted(found, key=lambda change: -change.factor)


def print_changes(found: Sequence[Change], console: Console, witness: str = WITNESS) -> float:
    """Show what changed; return the largest factor, 1 when the runs share no cell."""
    if not found:
        console.print("nothing to compare: the runs share no undisturbed cell")
        return 1.0
    with_witness = any(change.speedup for change in found)
    names = ["cell", "roofline", *([f"speedup over {witness}"] if with_witness else []), "factor"]
    table = Table(title="change against the earlier run (over 1: worse now)", header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name == "cell" else "right", no_wrap=True)
    shown = found if len(found) <= 2 * SHOWN else [*found[:SHOWN], *found[-SHOWN:]]
    for change in shown:
        speedup = "-" if change.speedup is None else "{:.2f} -> {:.2f}".format(*change.speedup)
        row = [change.key.replace("|", " "), "{:.2f} -> {:.2f}".format(*change.roofline)]
        table.add_row(*row, *([speedup] if with_witness else []), f"{change.factor:.2f}")
    console.print(table)
    mean = geometric_mean([change.factor for change in found])
    console.print(f"geometric mean of the factor {mean:.3f} over {len(found)} cells")
    return found[0].factor


def judge(
    found: Sequence[Change],
    fail_above: float | None,
    console: Console,
    witness: str = WITNESS,
) -> int:
    """Show what changed; the exit status: 1 where a cell got worse by more than `fail_above`.

    And where there is nothing to compare: a check of no cells must not pass.
    """
    worst = print_changes(found, console, witness)
    if fail_above is None:
        return 0
    if not found:
        return 1
    if worst <= fail_above:
        return 0
    console.print(f"[bold red]regression: {worst:.2f} is above {fail_above}")
    return 1
