"""Contrast gain control: what normalization over windows does to a photograph.

A photograph has parts of high and of low contrast, as bright sky beside a dark roof. Local divisive
normalization subtracts what is around and divides by how much it varies; local response
normalization over space only divides, so that to it a bright sky is strong; instance normalization
knows one mean and one deviation for the whole picture. The spread of the local standard deviation,
relative to its mean, says how unequal the contrast is.
"""

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.datasets import load_sample_image

import normcore as nc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WINDOW = 31  # pixels; details are smaller, buildings larger

# Of a batch of one picture (1, 3, H, W) with values from 0 to 1; mid-grey is 0 where that matters.
NORMS = {
    "photograph": lambda x: x,
    "instance norm": nc.instance_norm,
    "local response norm": lambda x: nc.local_response_norm(
        x - np.float32(0.5), WINDOW, alpha=100, beta=0.5, across="space"
    ),
    "local divisive norm": lambda x: nc.local_divisive_norm(
        x, 0.05, summation_window=WINDOW, suppression_window=WINDOW
    ),
    # The place for other methods of gain control, such as divisive norm across channels.
}


def window_mean(plane):
    """Means over the window around each pixel, or what of it lies inside."""
    for axis in range(2):
        n, side = plane.shape[axis], WINDOW // 2
        sums = np.insert(plane.cumsum(axis), 0, 0, axis)
        low, high = np.maximum(np.arange(n) - side, 0), np.minimum(np.arange(n) + side + 1, n)
        counts = np.expand_dims(high - low, 1 - axis)
        plane = (sums.take(high, axis) - sums.take(low, axis)) / counts
    return plane


def local_deviation(x):
    """The standard deviation in a window around each pixel, over the channels too: (H, W)."""
    x = x[0].astype(np.float64)
    mean = window_mean(x.mean(axis=0))
    return np.sqrt(window_mean(((x - mean) ** 2).mean(axis=0)))


def measure(x):
    """Mean of the local deviation and its spread relative to that, and lowest and highest part."""
    deviation = local_deviation(x)
    low, high = np.percentile(deviation, [10, 90])
    return deviation.mean(), deviation.std() / deviation.mean(), high / low


def table(pictures):
    """Markdown: a row for each picture."""
    lines = [
        "| | mean local deviation | its spread, relative | 90th over 10th percentile |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, x in pictures.items():
        mean, spread, ratio = measure(x)
        lines.append(f"| {name} | {mean:.3f} | {spread:.2f} | {ratio:.1f} |")
    return "\n".join(lines) + "\n"


def plot(pictures, path):
    """Each picture above a map of its local deviation relative to the mean."""
    figure, axes = plt.subplots(2, len(pictures), figsize=(4 * len(pictures), 5.6))
    for (upper, lower), (name, x) in zip(axes.T, pictures.items(), strict=True):
        low, high = np.percentile(x, [1, 99])
        upper.imshow(np.clip((x[0].transpose(1, 2, 0) - low) / (high - low), 0, 1))
        upper.set_title(name)
        deviation = local_deviation(x)
        lower.imshow(deviation / deviation.mean(), vmin=0, vmax=2.5, cmap="magma")
        for axis in (upper, lower):
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", default="china.jpg", choices=["china.jpg", "flower.jpg"])
    parser.add_argument("--output-dir", type=Path, default=Path(), help="default: here")
    parser.add_argument("--quick", action="store_true", help="every second pixel")
    arguments = parser.parse_args()

    start = time.perf_counter()
    picture = load_sample_image(arguments.picture)
    step = 2 if arguments.quick else 1
    x = (picture[None, ::step, ::step].transpose(0, 3, 1, 2) / 255).astype(np.float32)
    pictures = {name: norm(x) for name, norm in NORMS.items()}
    size = f"{x.shape[3]} x {x.shape[2]}"
    report = f"Local contrast of {arguments.picture}, {size}, in windows of {WINDOW}.\n\n"
    report += table(pictures)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    plot(pictures, arguments.output_dir / "contrast.png")
    (arguments.output_dir / "contrast.md").write_text(report, encoding="utf-8")
    print(f"{report}\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
