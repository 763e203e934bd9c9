"""The plot: roofline bars and the speedup over each peer, a row per cell; PNG or SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .report import MODE_TITLES, ROOFLINE_TARGET, by_mode

COLOURS = {"forward": "#3b75af", "backward": "#ef8536"}
MARKERS = {
    "torch": "o",
    "compile": "s",
    "jax": "^",
    "onnxruntime": "D",
    "openvino": "v",
    "numpy": ".",
}
CLIP = 4.0  # rooflines beyond are cut, with their number


def save_plot(document: dict[str, Any], path: Path) -> None:
    """Write the plot; a file per mode when there are two (`name-kernel.png`)."""
    import matplotlib

    matplotlib.use("Agg")
    modes = by_mode(r for r in document["results"] if "error" not in r)
    for mode, results in modes.items():
        name = path if len(modes) == 1 else path.with_stem(f"{path.stem}-{mode}")
        _plot_mode(mode, results, document, name)


def _plot_mode(
    mode: str, results: list[dict[str, Any]], document: dict[str, Any], path: Path
) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    cells = list(dict.fromkeys((r["op"], r["shape"], r["dtype"]) for r in results))
    rows = {cell: index for index, cell in enumerate(cells)}
    height = 1.6 + 0.26 * len(cells)
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, height), sharey=True)
    for result in results:
        backward = result["pass"] == "backward"
        y = rows[(result["op"], result["shape"], result["dtype"])] + (0.2 if backward else -0.2)
        colour = COLOURS[result["pass"]]
        left.barh(y, min(result["roofline"], CLIP), height=0.38, color=colour)
        if result["roofline"] > CLIP:
            left.text(CLIP, y, f" {result['roofline']:.1f}", va="center", fontsize=6)
        for peer, speedup in result["speedup"].items():
            marker = MARKERS.get(peer, "x")
            right.plot(speedup, y, marker, color=colour, markersize=4, alpha=0.8)

    left.set_yticks(range(len(cells)), [" ".join(cell) for cell in cells], fontsize=7)
    left.set_ylim(len(cells) - 0.4, -0.6)
    left.axvline(1.0, color="black", linewidth=1)
    for direction, colour in COLOURS.items():
        left.axvline(ROOFLINE_TARGET[direction], color=colour, linestyle=":", linewidth=1)
    left.set_xlabel("time / time of the copy (1 is the limit; dotted: target)")
    bars = [Patch(color=colour) for colour in COLOURS.values()]
    left.legend(bars, list(COLOURS), fontsize=7, loc="lower right")

    right.set_xscale("log")
    right.axvline(1.0, color="black", linewidth=1)
    right.grid(axis="x", which="both", alpha=0.25)
    right.set_xlabel("speedup: time of the peer / our time")
    peers = list(dict.fromkeys(peer for result in results for peer in result["speedup"]))
    for peer in peers:  # for the legend: the marker without the colour of a pass
        right.plot([], [], MARKERS.get(peer, "x"), color="grey", markersize=4, label=peer)
    if peers:
        right.legend(fontsize=7, loc="lower right")
    machine = document["machine"]
    figure.suptitle(f"{MODE_TITLES[mode]}; {machine['cpu']}, {machine['threads']} threads")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
