"""Draws the pictures of the gallery: four panels for each method.

    python docs/gallery/draw.py [FOLDER]

- `pool`: the elements of x on which one element of y depends, by backward of that element alone;
- `effect`: what the method does to a photograph, a batch, a matrix;
- `field`: an element of y as two elements of its pool vary, and its gradient, by backward;
- `cost`: its time in copies of its memory, from the run of the benchmark that the repository keeps.

`docs/conf.py` calls it at each build. It draws from the library and from that run alone, and draws
the same each time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
from methods import METHODS, Method
from scenes import BLUE, GREY, RED

matplotlib.use("Agg")
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
RUN = HERE.parents[1] / "bench/results/zen5.json"
PANELS = ("pool", "effect", "field", "cost")
SIZE, DPI = (3.5, 3.1), 170  # inches
POOL_SIZE = (3.5, 2.5)  # of the table of samples and channels

TENSOR, MARKED = (4, 6, 5, 5), (1, 2, 2, 2)  # samples, channels, height, width
MATRIX, ENTRY = (6, 8), (2, 3)
OTHERS = (-1.0, 1.0)  # of the four numbers of a field, the two that stay


# ---- what one element depends on -------------------------------------------------------------


def influence(method: Method) -> np.ndarray:
    """1 where an element of x has a share in the marked element of y, 2 at that element itself."""
    shape, marked = (MATRIX, ENTRY) if method.matrix else (TENSOR, MARKED)
    x = np.random.default_rng(0).normal(1, 1, shape)
    dy = np.zeros(shape)
    dy[marked] = 1
    shares = np.abs(method.backward(dy, x)) > 1e-12
    result = shares.astype(int)
    result[marked] = 2
    return result


def draw_pool(method: Method, figure: Figure) -> None:
    colors = ListedColormap(["#e9e9e6", "#8fb5d3", "#1f4e79"])
    shares = influence(method)
    axes = figure.subplots()
    axes.set_axis_off()
    if method.matrix:
        cells = [(0, 0, shares)]
        across, down = "inputs", "outputs"
    else:
        cells = [(n, c, shares[n, c]) for n in range(TENSOR[0]) for c in range(TENSOR[1])]
        across, down = "channels", "samples"
    width, height = shares.shape[-1] + 1, shares.shape[-2] + 1
    for row, column, cell in cells:
        left, top = column * width, row * height
        extent = (left, left + cell.shape[1], top + cell.shape[0], top)
        axes.imshow(cell, cmap=colors, vmin=0, vmax=2, extent=extent, interpolation="nearest")
        for i in range(1, cell.shape[1]):
            axes.plot([left + i] * 2, extent[2:], color="white", lw=0.4)
        for i in range(1, cell.shape[0]):
            axes.plot(extent[:2], [top + i] * 2, color="white", lw=0.4)
    right, bottom = (cells[-1][1] + 1) * width - 1, (cells[-1][0] + 1) * height - 1
    gap = 0.04 * right
    axes.set_xlim(-3 * gap, right)
    axes.set_ylim(bottom, -3 * gap)
    axes.text(right / 2, -gap, across, ha="center", va="bottom", fontsize=11)
    axes.text(-gap, bottom / 2, down, ha="right", va="center", rotation=90, fontsize=11)


# ---- the gradient ----------------------------------------------------------------------------


def value_and_gradient(method: Method, a: float, b: float) -> tuple[float, np.ndarray]:
    """The first element of y where the first two of the pool are a and b, and its gradient."""
    first, second = 0, 3 if method.matrix and method.arrangement == (2, 2) else 1
    if method.arrangement[0] == 2 and not method.matrix:
        second = 2  # of the other sample
    numbers = np.empty(4)
    numbers[[i for i in range(4) if i not in (first, second)]] = OTHERS
    numbers[[first, second]] = a, b
    x = numbers.reshape(method.arrangement)
    dy = np.zeros_like(x)
    dy.flat[0] = 1
    gradient = method.backward(dy, x).ravel()
    return float(method.forward(x).ravel()[0]), gradient[[first, second]]


def draw_field(method: Method, figure: Figure) -> None:
    axes = figure.subplots()
    # An even number of points: none at 0, where a row of zeros would have no direction.
    fine, coarse = np.linspace(-3, 3, 48), np.linspace(-2.7, 2.7, 12)
    values = np.array([[value_and_gradient(method, a, b)[0] for a in fine] for b in fine])
    arrows = np.array([[value_and_gradient(method, a, b)[1] for a in coarse] for b in coarse])
    limit = np.abs(values).max()
    levels = np.linspace(-limit, limit, 15)
    axes.contourf(fine, fine, values, levels, cmap="RdBu_r", alpha=0.55)
    # Lengths by the root, so that small ones are seen beside large ones.
    lengths = np.linalg.norm(arrows, axis=-1, keepdims=True)
    arrows = arrows / np.sqrt(np.maximum(lengths, 1e-12))
    axes.quiver(coarse, coarse, arrows[..., 0], arrows[..., 1], color="#222222", width=0.006)
    axes.set_aspect("equal")
    axes.set_xlabel("$x_1$")
    axes.set_ylabel("$x_2$")
    axes.set_title(f"$y_1$, from {values.min():.2g} to {values.max():.2g}", fontsize=10)


# ---- the cost --------------------------------------------------------------------------------


def draw_cost(method: Method, figure: Figure, run: dict) -> None:
    op, shape = method.cell
    found = {
        (r["dtype"], r["pass"]): r
        for r in run["results"]
        if (r["op"], r["shape"], r["mode"]) == (op, shape, "kernel")
    }
    axes = figure.subplots()
    bars = [(d, p) for d in ("f32", "bf16") for p in ("forward", "backward")]
    longest = max(found[bar]["roofline"] for bar in bars)
    for place, bar in enumerate(bars):
        result = found[bar]
        length, faster = result["roofline"], result["speedup"].get(result["fastest"])
        color = BLUE if bar[0] == "f32" else "#8fb5d3"
        axes.barh(-place, length, color=color, height=0.6)
        text = f"{'~' if result['disturbed'] else ''}{length:.2f}"
        if faster:
            text += f"  ({faster:.1f}x)"
        axes.text(length + longest * 0.03, -place, text, va="center", fontsize=10)
    axes.axvline(1, color=RED, lw=1.2)
    axes.set_yticks(range(0, -4, -1), [f"{d} {p}" for d, p in bars])
    axes.set_xlim(0, longest * 1.8)
    axes.set_xlabel("time, in copies of its memory")
    axes.set_title(shape, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


# ---- all -------------------------------------------------------------------------------------


def draw(folder: Path) -> None:
    """Write `METHOD-PANEL.png` of all methods into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    run = json.loads(RUN.read_text(encoding="utf-8"))
    with matplotlib.rc_context({"font.size": 11, "axes.edgecolor": GREY, "svg.hashsalt": "0"}):
        for name, method in METHODS.items():
            for panel in PANELS:
                figure = Figure(POOL_SIZE if panel == "pool" else SIZE, layout="constrained")
                if panel == "pool":
                    draw_pool(method, figure)
                elif panel == "effect":
                    method.scene(method, figure)
                elif panel == "field":
                    draw_field(method, figure)
                else:
                    draw_cost(method, figure, run)
                # No version of matplotlib in the file: the same bytes each time.
                path = folder / f"{name}-{panel}.png"
                figure.savefig(path, dpi=DPI, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "pictures")
