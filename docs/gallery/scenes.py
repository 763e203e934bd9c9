"""Scenes of the gallery: what a method does to photographs, matrices and responses.

Each takes a method and a figure and fills the figure. The photographs are those that come with
scikit-learn: the Summer Palace, and a dahlia.
"""

from __future__ import annotations

import functools

import numpy as np
from sklearn.datasets import load_sample_image

import normcore as nc

BLUE, RED, GREY = "#2f6f9f", "#b5483a", "#9a9a9a"


@functools.cache
def photograph_of(name: str) -> np.ndarray:
    """A photograph of shape (3, 106, 160) with values from 0 to 1."""
    pixels = load_sample_image(name)[:424, :640].reshape(106, 4, 160, 4, 3).mean((1, 3))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) / 255, np.float32)


def show(axes, picture: np.ndarray, title: str = "") -> None:
    axes.imshow(np.clip(picture.transpose(1, 2, 0), 0, 1), interpolation="nearest")
    axes.set_title(title, fontsize=9, pad=3)
    axes.set_axis_off()


def batch_of_photographs(method, figure) -> None:
    """Two photographs, each as it is and dim: what is left of the difference?"""
    china, flower = photograph_of("china.jpg"), photograph_of("flower.jpg")
    x = np.stack([china, 0.15 + 0.25 * china, flower, 0.15 + 0.25 * flower])
    y = method.forward(x)
    # Those that divide have numbers around 1; what only subtracts stays as it is.
    scale = 0.22 if y.std() > 0.5 else 1.0
    grid = figure.subplots(4, 2)
    for row, before, after in zip(grid, x, y, strict=True):
        show(row[0], before)
        show(row[1], 0.5 + scale * after)
    grid[0][0].set_title("the batch", fontsize=9, pad=3)
    grid[0][1].set_title("normalized", fontsize=9, pad=3)


def one_photograph(figure, before: np.ndarray, after: np.ndarray) -> None:
    top, bottom = figure.subplots(2, 1)
    show(top, before, "photograph")
    show(bottom, after, "normalized")


def photograph(method, figure) -> None:
    """The channels of each pixel are a row."""
    x = photograph_of("china.jpg")
    y = method.forward(x[None])[0]
    one_photograph(figure, x, y / y.max() if y.min() >= 0 else 0.5 + 0.25 * y)


def local_response(method, figure) -> None:
    x = photograph_of("china.jpg")
    y = nc.local_response_norm(x[None] - 0.5, 15, alpha=100, beta=0.5, across="space")[0]
    one_photograph(figure, x, 0.5 + 2 * y)


def local_divisive(method, figure) -> None:
    x = photograph_of("china.jpg")
    y = nc.local_divisive_norm(x[None], 0.05, summation_window=15, suppression_window=15)[0]
    one_photograph(figure, x, 0.5 + 0.25 * y)


def rows_of_a_matrix(method, figure) -> None:
    """Rows of two numbers, as arrows: before and after."""
    v = np.random.default_rng(3).normal(0, 1, (9, 2))
    w = method.forward(v)
    axes = plane(figure, 2.4)
    axes.plot(*circle(), color=GREY, lw=0.8)
    for rows, color, width, label in ((v, GREY, 1.5, "v"), (w, BLUE, 2.2, "w, g = 1")):
        for i, (a, b) in enumerate(rows):
            axes.plot([0, a], [0, b], color=color, lw=width, label=label if i == 0 else None)
            axes.plot(a, b, "o", color=color, ms=4)
    axes.legend(loc="upper left", fontsize=9, frameon=False)


def image_of_the_circle(method, figure) -> None:
    """Where a matrix takes the unit circle, before and after."""
    weight = np.array([[1.8, 0.9], [-0.4, 1.1]])
    axes = plane(figure, 2.4)
    axes.plot(*circle(), color=GREY, lw=0.8, label="unit circle")
    axes.plot(*weight @ circle(), color=RED, lw=2, label="by W")
    axes.plot(*method.forward(weight) @ circle(), color=BLUE, lw=2, label="by W / sigma")
    axes.legend(loc="upper left", fontsize=9, frameon=False)


def responses_to_contrast(method, figure) -> None:
    """A unit's response to a grating, alone and with another unit's grating laid over it."""
    contrast = np.geomspace(0.01, 1, 60)
    axes = figure.subplots()
    for mask, color in ((0.0, BLUE), (0.1, "#6f8f4f"), (0.3, RED)):
        drive = np.stack([contrast, np.full_like(contrast, mask)], 1)
        y = nc.divisive_norm(drive, np.ones((2, 2)), 0.1, exponent=2.0, power=2.0)
        axes.plot(contrast, y[:, 0], color=color, lw=2, label=f"{mask:.0%}")
    axes.set_xscale("log")
    axes.set_xlabel("contrast")
    axes.set_ylabel("response")
    axes.legend(title="of the other", fontsize=9, title_fontsize=9, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def neighbouring_differences(method, figure) -> None:
    """Differences of neighbouring pixels: how much one varies, given the next one's size."""
    grey = photograph_of("china.jpg").mean(0)
    steps = np.diff(grey, axis=1)
    pairs = np.stack([steps[:, :-1].ravel(), steps[:, 1:].ravel()], 1).astype(np.float64)
    pairs /= pairs.std()
    # How the square of one grows with that of the other, by least squares: with these parameters
    # GDN divides by what a neighbour tells. (A codec learns its own, with the filters.)
    gamma, beta = np.polyfit(pairs[:, 1] ** 2, pairs[:, 0] ** 2, 1)
    y = nc.gdn(pairs, np.full(2, beta), gamma * (1 - np.eye(2)))
    axes = figure.subplots()
    for data, color, label in ((pairs, GREY, "before"), (y, BLUE, "after GDN")):
        size = np.abs(data[:, 1])
        # A tenth of the pairs in each bin.
        edges = np.quantile(size, np.linspace(0, 1, 11))
        bins = np.clip(np.searchsorted(edges, size) - 1, 0, 9)
        spread = [data[bins == i, 0].std() / data[:, 0].std() for i in range(10)]
        axes.plot(range(5, 100, 10), spread, "o-", color=color, ms=4, label=label)
    axes.set_xlabel("size of the neighbour, percentile")
    axes.set_ylabel("deviation, relative")
    axes.set_ylim(0)
    axes.legend(fontsize=9, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def circle() -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 200)
    return np.stack([np.cos(angle), np.sin(angle)])


def plane(figure, limit: float):
    axes = figure.subplots()
    axes.set_aspect("equal")
    axes.set_xlim(-limit, limit)
    axes.set_ylim(-limit, limit)
    axes.spines[["top", "right"]].set_visible(False)
    return axes
