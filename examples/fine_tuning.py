"""Fine-tune a small network with batch norm on changed images, at several batch sizes.

The network of `digits.py` learns 1000 handwritten digits with batch size 64, and then 256 others
that are rotated (other shapes), of low contrast (other statistics) or inverted (both). Asked is:

1. Shall batch norm use the statistics of the batch, or stored ones that are frozen?
2. If the batch size is no longer 64, is anything gained by statistics computed again afterwards,
   by ghost batches, or by batch renorm in the place of batch norm?

Each method and batch size has the best of four learning rates, by its accuracy on validation
images. Writes `fine_tuning.png` and `fine_tuning.md` (test accuracies). docs/examples.md has the
numbers; in short:

1. In batches of 2, frozen statistics are better by far; from 4 on those of the batch are, by less.
2. From 4 to 32 nothing is gained. With 128 there are few updates, for which statistics computed
   again and ghost batches make up. With 2, batch renorm loses less than half of what batch norm
   loses.

    python examples/fine_tuning.py --output-dir build
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from digits import Network, accuracy, fit, plt
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import normcore as nc

BATCH_SIZES = (2, 4, 8, 32, 128)
LEARNING_RATES = (0.003, 0.03, 0.1, 0.3)  # at batch size 64, else scaled as in digits.py

DOMAINS = {
    "as in training": lambda images: images,
    "rotated": lambda images: np.rot90(images, axes=(1, 2)),
    "low contrast": lambda images: images / 4 + np.float32(0.5),
    "inverted": lambda images: 1 - images,
}
CHANGED = tuple(DOMAINS)[1:]


class Method(NamedTuple):
    """A normalization of digits.py, and what is done with it in fine-tuning."""

    norm: str = "batch"
    recompute_before: bool = False
    freeze: bool = False
    ghost_batch_size: int | None = None
    recompute_after: bool = False


METHODS = {
    "batch statistics": Method(),
    "frozen": Method(freeze=True),
    "recomputed, then frozen": Method(recompute_before=True, freeze=True),
    "recomputed afterwards": Method(recompute_after=True),
    "ghost batches of 8": Method(ghost_batch_size=8),
    "batch renorm": Method(norm="batch renorm"),
}
# Methods to compare: the rows of the plot.
QUESTIONS = (
    ("batch statistics", "frozen", "recomputed, then frozen"),
    ("batch statistics", "recomputed afterwards", "ghost batches of 8", "batch renorm"),
)


def prepare(seed, digits):
    """Return {domain: {use: (images, labels)}} and {normalization: trained network}.

    The seed decides both which image is for what and how the networks start.
    """
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images = (digits.images[order, ..., np.newaxis] / 16).astype(np.float32)
    uses = ("training", "fine-tuning", "validation", "test")
    cuts = (1000, 1256, 1456)
    parts = list(
        zip(uses, np.split(images, cuts), np.split(digits.target[order], cuts), strict=True)
    )
    data = {
        domain: {use: (change(images), labels) for use, images, labels in parts}
        for domain, change in DOMAINS.items()
    }
    networks = {}
    for norm in sorted({method.norm for method in METHODS.values()}):
        rng = np.random.default_rng(seed)
        network = networks[norm] = Network(norm, rng)
        list(fit(network, *data["as in training"]["training"], batch_size=64, epochs=6, rng=rng))
    return data, networks


def recompute(network, x):
    """Set the statistics of all layers to those that the images x give.

    From the first layer to the last, since new statistics change the inputs of the next layer.
    """
    network.train(False)
    for layer in network.layers:
        if hasattr(layer, "recompute_statistics"):
            layer.recompute_statistics([x])
        x = layer(x)


def fine_tune(network, method, images, labels, **how):
    """Return a copy of the network that has learned the images by the method."""
    network = copy.deepcopy(network)
    if method.recompute_before:
        recompute(network, images)
    for norm in network.norms:
        norm.ghost_batch_size = method.ghost_batch_size
        if method.freeze:
            norm.freeze()
    list(fit(network, images, labels, **how))
    if method.recompute_after:
        recompute(network, images)
    return network


def chosen(runs):
    """Return the test accuracies at the learning rate with the best mean validation accuracy.

    runs: (seeds, learning rates, 2), the last being validation and test.
    """
    validation, test = np.moveaxis(runs, -1, 0)
    return test[:, validation.mean(axis=0).argmax()]


def percent(values):
    """Return mean and standard deviation over the seeds, as text."""
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread} %"


def table(*rows):
    """Return the rows, the header first, as a Markdown table."""
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return "".join(f"| {' | '.join(row)} |\n" for row in (rows[0], rule, *rows[1:]))


def untuned_table(settings):
    """Say what batch norm does without fine-tuning: a row a domain."""
    rows = [["not fine-tuned", "stored statistics", "recomputed"]]
    for domain in DOMAINS:
        pairs = []
        for data, networks in settings:
            network = copy.deepcopy(networks["batch"])
            stored = accuracy(network, *data[domain]["test"])
            recompute(network, data[domain]["fine-tuning"][0])
            pairs.append((stored, accuracy(network, *data[domain]["test"])))
        rows.append([domain, *map(percent, np.transpose(pairs))])
    return table(*rows)


def tuned_table(results, domain):
    """Say what came of fine-tuning on a domain: a row a method."""
    rows = [[domain, *(f"batch size {size}" for size in BATCH_SIZES)]]
    for name in METHODS:
        runs = (results.get((domain, name, size)) for size in BATCH_SIZES)
        rows.append([name, *("" if run is None else percent(chosen(run)) for run in runs)])
    return table(*rows)


def plot(results, path):
    """Draw accuracy by batch size: a row a question, a column a domain; bars are one deviation."""
    figure, axes = plt.subplots(
        len(QUESTIONS), len(CHANGED), figsize=(11, 7), sharex=True, sharey=True
    )
    for row, names in zip(axes, QUESTIONS, strict=True):
        for axis, domain in zip(row, CHANGED, strict=True):
            for i, name in enumerate(names):
                sizes = [size for size in BATCH_SIZES if (domain, name, size) in results]
                values = [100 * chosen(results[domain, name, size]) for size in sizes]
                spread = [np.std(v, ddof=1) if len(v) > 1 else 0 for v in values]
                beside = np.multiply(sizes, 1.06**i)  # so that the bars do not hide each other
                axis.errorbar(beside, np.mean(values, axis=1), spread, capsize=2, label=name)
        row[0].set(ylabel="test accuracy in %")
        row[0].legend(loc="lower right")
    for axis, domain in zip(axes[0], CHANGED, strict=True):
        axis.set(title=domain, xscale="log")
        axis.set_xticks(BATCH_SIZES, map(str, BATCH_SIZES), minor=False)
        axis.minorticks_off()
    for axis in axes[-1]:
        axis.set(xlabel="batch size of the fine-tuning")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10, help="of fine-tuning (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--seeds", type=int, default=4, help="runs to average (default: 4)")
    parser.add_argument("--output-dir", type=Path, default=Path(), help="default: here")
    parser.add_argument(
        "--quick", action="store_true", help="3 epochs, one seed, one learning rate"
    )
    arguments = parser.parse_args()
    epochs, rates = arguments.epochs, LEARNING_RATES
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    if arguments.quick:
        epochs, rates, seeds = 3, rates[1:2], seeds[:1]

    # These arrays are small: threads of NumPy's BLAS and of normcore would wait for each other.
    threadpool_limits(1)
    nc.set_num_threads(1)
    # With a learning rate that is too large a network may run away; validation rejects it.
    np.seterr(over="ignore", invalid="ignore")
    start = time.perf_counter()
    digits = load_digits()
    settings = [prepare(seed, digits) for seed in seeds]
    runs = [
        (domain, name, size)
        for domain in CHANGED
        for name, method in METHODS.items()
        for size in BATCH_SIZES
        # A ghost batch that holds the whole batch changes nothing.
        if method.ghost_batch_size is None or method.ghost_batch_size < size
    ]
    results = {run: np.zeros((len(seeds), len(rates), 2)) for run in runs}
    for domain, name, size in (progress := tqdm(runs, unit="setting")):
        progress.set_description(f"{domain}, {name}, batch size {size}")
        for i, (data, networks) in enumerate(settings):
            for j, rate in enumerate(rates):
                network = fine_tune(
                    networks[METHODS[name].norm],
                    METHODS[name],
                    *data[domain]["fine-tuning"],
                    batch_size=size,
                    epochs=epochs,
                    rng=np.random.default_rng(seeds[i]),
                    learning_rate=rate,
                )
                for k, use in enumerate(("validation", "test")):
                    results[domain, name, size][i, j, k] = accuracy(network, *data[domain][use])

    title = f"Test accuracy (epochs: {epochs}, seeds: {len(seeds)}), mean ± standard deviation."
    tables = [untuned_table(settings), *(tuned_table(results, domain) for domain in CHANGED)]
    report = "\n".join([f"{title}\n", *tables])
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    plot(results, arguments.output_dir / "fine_tuning.png")
    (arguments.output_dir / "fine_tuning.md").write_text(report, encoding="utf-8")
    print(f"{report}\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
