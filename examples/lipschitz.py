"""How much may a network's outputs change with its inputs? Spectral norm, and what it costs.

A dense network with ReLU changes its outputs by at most L times the change of its inputs, in the
Euclidean norm, where L is the product of the largest singular values of its weights. Nobody keeps
that product small in plain training. With spectral norm it is what one asks for.

Networks learn the handwritten digits without it, with weights of norm 1, and with norms of at most
2 (the bound). Of each the table has, on test images and from `nc.power_method`:

- the accuracy;
- `upper`: the product of the norms, above which the Lipschitz constant cannot be;
- `lower`: the largest norm of the outputs' derivative found, which it cannot be below. The search
  begins at the test images and climbs from the steepest;
- `safe radius`: the median distance, as `upper` proves, that an image must be moved before another
  class can win; 0 for images that are misread. (The images have norms around 3.5.)

Writes `lipschitz.png` (upper and lower bounds by epoch) and `lipschitz.md` (the table).

    python examples/lipschitz.py --output-dir build
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
from digits import Dense, ReLU, SpectralNormed, accuracy, fit, plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import normcore as nc

WIDTHS = (64, 128, 128, 10)
KINDS = {
    "none": lambda linear: linear,
    "spectral norm": SpectralNormed,
    "spectral norm, at most 2": lambda linear: SpectralNormed(linear, bound=2),
}


class Network:
    """Dense layers with ReLU between them; what `digits.fit` trains."""

    def __init__(self, kind, rng):
        self.trained = [KINDS[kind](Dense(*pair, rng)) for pair in itertools.pairwise(WIDTHS)]
        self.layers = [part for layer in self.trained for part in (layer, ReLU())][:-1]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def backward(self, dy):
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def train(self, mode):
        for layer in self.trained:
            if hasattr(layer, "train"):
                layer.train(mode)

    def weights(self):
        """Return the weights as they are used: call the network before."""
        return [getattr(layer, "linear", layer).parameters["weight"] for layer in self.trained]


def upper_bound(network):
    """Return the product of the largest singular values."""
    return np.prod([nc.power_method(weight).sigma for weight in network.weights()])


def slopes(network, x):
    """Return the norm of the outputs' derivative at each of the inputs."""
    network.train(False)
    network(x)
    outputs = WIDTHS[-1]
    rows = [
        network.backward(np.tile(np.eye(outputs, dtype=x.dtype)[i], (len(x), 1)))
        for i in range(outputs)
    ]
    return np.array([nc.power_method(jacobian, tol=1e-4).sigma for jacobian in np.stack(rows, 1)])


def lower_bound(network, x, rng, rounds=20, kept=16):
    """Return the largest slope found: at x, then by random steps from where it is steepest."""
    found = slopes(network, x)
    for _ in range(rounds):
        best = np.argsort(found)[-kept:]
        steps = rng.normal(0, 0.1, (4, kept, x.shape[1])).astype(x.dtype)
        x = np.concatenate([x[best], (x[best] + steps).reshape(-1, x.shape[1])])
        found = np.concatenate([found[best], slopes(network, x[kept:])])
    return found.max()


def safe_radius(network, x, labels, upper):
    """Return the median distance within which no other class can win."""
    logits = network(x)
    rows = np.arange(len(x))
    right = logits[rows, labels].copy()
    logits[rows, labels] = -np.inf
    # A difference of two outputs changes by at most sqrt(2) times what all of them change by.
    return np.median(np.maximum(right - logits.max(axis=1), 0)) / (np.sqrt(2) * upper)


def measure(network, x, labels, rng):
    """Return accuracy, upper bound, lower bound and safe radius."""
    hits = accuracy(network, x, labels)
    upper = upper_bound(network)
    return hits, upper, lower_bound(network, x, rng), safe_radius(network, x, labels, upper)


def train(kind, epochs, seed, data):
    """Return what is measured after each epoch: (epochs, 4)."""
    train_images, test_images, train_labels, test_labels = data
    rng = np.random.default_rng(seed)
    network = Network(kind, rng)
    losses = fit(network, train_images, train_labels, batch_size=64, epochs=epochs, rng=rng)
    return np.array([measure(network, test_images, test_labels, rng) for _ in losses])


def table(results):
    """Return the last measurements as a Markdown table, means of seeds."""
    rows = [["weights", "accuracy", "upper", "lower", "safe radius"], ["---", *["---:"] * 4]]
    for kind, runs in results.items():
        hits, upper, lower, radius = np.mean(runs, axis=0)[-1]
        rows.append([kind, f"{100 * hits:.1f} %", f"{upper:.3g}", f"{lower:.3g}", f"{radius:.3f}"])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def plot(results, path):
    """Draw both bounds by epoch; the Lipschitz constant is in the band between them."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for kind, runs in results.items():
        _, upper, lower, _ = np.mean(runs, axis=0).T
        epochs = np.arange(1, len(upper) + 1)
        (line,) = axis.plot(epochs, upper, label=kind)
        axis.fill_between(epochs, lower, upper, color=line.get_color(), alpha=0.2)
    axis.set(xlabel="epoch", ylabel="Lipschitz constant, upper and lower bound", yscale="log")
    axis.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="for every run (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--seeds", type=int, default=2, help="runs to average (default: 2)")
    parser.add_argument("--output-dir", type=Path, default=Path(), help="default: here")
    parser.add_argument("--quick", action="store_true", help="4 epochs, one seed")
    arguments = parser.parse_args()
    epochs, seeds = arguments.epochs, range(arguments.seed, arguments.seed + arguments.seeds)
    if arguments.quick:
        epochs, seeds = 4, seeds[:1]

    # These arrays are small: threads of NumPy's BLAS and of normcore would wait for each other.
    threadpool_limits(1)
    nc.set_num_threads(1)
    start = time.perf_counter()
    digits = load_digits()
    images = (digits.data / 16).astype(np.float32)
    data = train_test_split(
        images, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    results = {kind: [] for kind in KINDS}
    for kind in (progress := tqdm(KINDS, unit="network")):
        progress.set_description(kind)
        results[kind] = [train(kind, epochs, seed, data) for seed in seeds]

    title = f"After {epochs} epochs (seeds: {len(seeds)}, test images: {len(data[1])})."
    report = f"{title}\n\n{table(results)}"
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    plot(results, arguments.output_dir / "lipschitz.png")
    (arguments.output_dir / "lipschitz.md").write_text(report, encoding="utf-8")
    print(f"{report}\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
