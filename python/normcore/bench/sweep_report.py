"""A sweep for people: the worst of each series on the terminal, and a plot of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .machine import summary
from .sweep import CONFIRMED

Document = dict[str, Any]
GAIN_SHARE = 0.9  # of the threads: what they should be worth in cache
SHARED_BYTES = 256 << 10  # of a tensor; below it a second thread need only do no harm
NO_LOSS = 0.95  # a gain that is none
WORST = 20
COLOURS = {"f32": "#3b75af", "bf16": "#ef8536", "f16": "#519e3e", "f64": "#8d69b8"}
STYLES = {"forward": "-", "backward": ":"}
MARKERS = {"forward": "o", "backward": "x"}


@dataclass(frozen=True)
class Spot:
    """A ratio of one size."""

    ratio: float
    size: int
    team: int
    series: Document

    @property
    def text(self) -> str:
        """The ratio, and where it is."""
        return f"{self.ratio:.2f} at {self.size}"

    @property
    def place(self) -> str:
        """The whole of where it is."""
        names = ("axis", "op", "shape", "dtype", "pass")
        return f"{' '.join(str(self.series[n]) for n in names)}, n = {self.size}"


def cliffs(series: Document, team: int) -> Iterator[Spot]:
    """Time over that of the neighbours, of every size, with so many threads."""
    for size, ratio in zip(series["sizes"], series["cliff"][str(team)], strict=True):
        yield Spot(ratio, size, team, series)


def gains(series: Document, shared: bool) -> Iterator[Spot]:
    """What threads are worth, of the tensors that are large enough for them, or of the others."""
    for size, ratio, length in zip(
        series["sizes"], series["gain"], series["tensor_bytes"], strict=False
    ):
        if (length > SHARED_BYTES) == shared:
            yield Spot(ratio, size, max(_teams(series)), series)


def print_sweep(document: Document, console: Console) -> None:
    """The worst of each series, then the worst of all."""
    machine = document["machine"]
    console.print(summary(machine))
    threads = machine["threads"]
    target = GAIN_SHARE * threads
    several = threads > 1
    table = Table(
        title="cliff: time over that of neighbouring sizes; gain: time of one thread "
        f"over that of {threads}",
        header_style="bold",
    )
    for name in ("axis", "op", "shape", "dtype", "pass"):
        table.add_column(name, no_wrap=True)
    names = ["cliff, 1 thread"]
    if several:
        names += [f"cliff, {threads} threads", "least gain", f"of {target:.1f}", "of small"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    for series in document["series"]:
        if last not in (None, series["axis"]):
            table.add_section()
        last = series["axis"]
        row = [_worst(cliffs(series, 1))]
        if several:
            large = list(gains(series, True))
            reached = sum(spot.ratio >= target for spot in large)
            share = f"{100 * reached / len(large):.0f} %" if large else "-"
            row += [_worst(cliffs(series, threads)), _least(large), share]
            row.append(_least(gains(series, False)))
        table.add_row(*(series[n] for n in ("axis", "op", "shape", "dtype", "pass")), *row)
    console.print(table)

    everywhere = [(series, team) for series in document["series"] for team in _teams(series)]
    highest = [sorted(cliffs(*of), key=_ratio, reverse=True)[:CONFIRMED] for of in everywhere]
    worst = sorted((spot for spots in highest for spot in spots), key=_ratio, reverse=True)
    places: dict[tuple[Any, ...], Spot] = {}  # of any dtype, pass and team, the worst
    for spot in worst:
        series = spot.series
        places.setdefault((series["axis"], series["op"], series["shape"], spot.size), spot)
    console.print("[bold]worst cliffs[/] (ratio, threads)")
    for spot in list(places.values())[:WORST]:
        console.print(f"  {spot.ratio:.2f}  {spot.team}  {spot.place}")
    if not several:
        return
    least = []
    for series in document["series"]:
        spots = sorted((*gains(series, True), *gains(series, False)), key=_ratio)
        least += [spot for spot in spots[:CONFIRMED] if spot.ratio < NO_LOSS]
    if least:
        console.print(f"[bold]slower with {threads} threads[/]")
    for spot in sorted(least, key=_ratio)[:WORST]:
        console.print(f"  {spot.ratio:.2f}  {spot.place}")


def save_sweep_plot(document: Document, path: Path) -> None:
    """Write a panel for each line of the sweep: time per element by size, of all threads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[tuple[str, str, str], list[Document]] = {}
    for series in document["series"]:
        panels.setdefault((series["axis"], series["op"], series["shape"]), []).append(series)
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (5 * columns, 3 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for panel in axes.flat[len(panels) :]:
        panel.axis("off")
    for panel, (names, found) in zip(axes.flat, panels.items(), strict=False):
        panel.set_title(" ".join(names), fontsize=8)
        panel.set_yscale("log")
        if names[0] != "offset":
            panel.set_xscale("log", base=2)
        for series in found:
            label = f"{series['dtype']} {series['pass']}"
            style = (MARKERS if names[0] == "offset" else STYLES)[series["pass"]]
            times = series["nanoseconds"][str(max(_teams(series)))]
            colour = COLOURS[series["dtype"]]
            panel.plot(series["sizes"], times, style, color=colour, linewidth=1, label=label)
        panel.tick_params(labelsize=7)
    axes.flat[0].legend(fontsize=6)
    threads = document["machine"]["threads"]
    figure.suptitle(f"ns per element by size; {document['machine']['cpu']}, {threads} threads")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _teams(series: Document) -> list[int]:
    return [int(team) for team in series["cliff"]]


def _ratio(spot: Spot) -> float:
    return spot.ratio


def _worst(spots: Iterable[Spot]) -> str:
    return max(spots, key=_ratio).text


def _least(spots: Iterable[Spot]) -> str:
    least = min(spots, key=_ratio, default=None)
    return least.text if least else "-"
