"""The picture of an overview: every contender's time in copies of the memory that must move.

An SVG whose text depends on the run and on the version of matplotlib alone. It holds a digest of
what it shows, so that another version, which draws other paths, need not draw it again.
"""

from __future__ import annotations

import hashlib
import io
import json
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib

from .tables import COMMON, DTYPES, PEER_NAMES, Cell, by_cell, conditions, only_mode

Document = dict[str, Any]
Entry = tuple[Cell, dict[str, float]]
OURS = "normcore"
LOOKS = {  # marker, colour
    OURS: ("o", "#1f5fa8"),
    "torch": ("D", "#d9662b"),
    "compile": ("s", "#4b9a51"),
    "jax": ("^", "#8d69b8"),
    "onnxruntime": ("v", "#b04a7b"),
    "openvino": ("P", "#7f7f7f"),
    "numpy": ("x", "#444444"),
}
# A renderer's own fonts, and no identifiers by chance.
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": OURS,
    "font.size": 9,
    "font.family": "sans-serif",
}

matplotlib.use("Agg")


def save_picture(document: Document, path: Path) -> None:
    """Draw the overview of a run."""
    path.write_text(_draw(document), encoding="utf-8")


def is_current(document: Document, path: Path) -> bool:
    """Whether a picture is of this run."""
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8")
    if _digest(document) not in text:
        return False
    # Of another matplotlib only the digest can be compared.
    return _creator() not in text or text == _draw(document)


def _shown(document: Document) -> dict[tuple[str, str], list[Entry]]:
    """Of each panel, by dtype and pass, the cells with the time in copies of each contender."""
    found = by_cell(only_mode(document))
    shown: dict[tuple[str, str], list[Entry]] = {}
    for dtype, direction in product(DTYPES, ("forward", "backward")):
        entries = shown[dtype, direction] = []
        for cell in COMMON:
            result = found.get((*cell, dtype), {}).get(direction)
            if result is None:
                raise SystemExit(f"the run has no cell {' '.join(cell)} {dtype} {direction}")
            peers = {n: speedup * result["roofline"] for n, speedup in result["speedup"].items()}
            entries.append((cell, {OURS: result["roofline"], **peers}))
    return shown


def _digest(document: Document) -> str:
    text = json.dumps([conditions(document), list(_shown(document).items())])
    return hashlib.sha256(text.encode()).hexdigest()


def _creator() -> str:
    return f"Matplotlib v{matplotlib.__version__},"


def _draw(document: Document) -> str:
    from matplotlib import pyplot as plt

    shown = _shown(document)
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        size = (11, 1.6 + 0.44 * len(COMMON))
        figure, panels = plt.subplots(
            *(2, 2), figsize=size, sharex=True, sharey=True, layout="constrained"
        )
        for panel, ((dtype, direction), entries) in zip(panels.flat, shown.items(), strict=True):
            panel.set_title(f"{DTYPES[dtype]}, {direction}", loc="left", fontweight="bold")
            _draw_panel(panel, entries)
        panels.flat[0].set_ylim(len(COMMON) - 0.5, -0.5)
        panels.flat[0].set_xscale("log")
        panels.flat[0].xaxis.set_major_formatter("{x:g}")
        for panel in panels[-1]:
            panel.set_xlabel("time in copies of what must move (1: the limit)")
        handles, labels = panels.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        metadata = {"Description": _digest(document), "Date": None}
        figure.savefig(file, format="svg", metadata=metadata, facecolor="white")
        plt.close(figure)
    # The end of a line is no place for a blank.
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _draw_panel(panel: Any, entries: list[Entry]) -> None:
    rows = range(len(entries))
    ends = [(min(times.values()), max(times.values())) for _, times in entries]
    panel.axvline(1, color="black", linewidth=0.8)
    panel.hlines(rows, *zip(*ends, strict=True), color="#cccccc", zorder=1)
    for name, (marker, colour) in LOOKS.items():
        drawn = [(times[name], row) for row, (_, times) in enumerate(entries) if name in times]
        if drawn:
            ours = name == OURS
            panel.plot(
                *zip(*drawn, strict=True),
                marker,
                color=colour,
                label=PEER_NAMES.get(name, name),
                markerfacecolor=colour if ours else "white",
                markersize=6 if ours else 5,
                zorder=3 if ours else 2,
            )
    panel.set_yticks(rows, [" ".join(cell) for cell, _ in entries])
    panel.grid(axis="x", which="both", color="#eeeeee", zorder=0)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)
