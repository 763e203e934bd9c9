"""Train a small convolutional network on handwritten digits, once per normalization layer.

NumPy and normcore only, forward and backward: a model for writing a training loop with the layers
of normcore. Every normalization is trained with three batch sizes and the same settings: with
pairs, batch norm in the dense layer sees two values a channel and can only tell which is larger,
and so do most methods that divide by a spread over the batch.
Writes `digits.png` (learning curves) and `digits.md` (test accuracies).

    python examples/digits.py --output-dir build

Images are channels-last, (N, H, W, C), which lets a convolution be a plain matrix product.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import normcore as nc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BATCH_SIZES = (2, 8, 64)
# At batch size 64, else scaled by the square root; chosen there for all normalizations together.
LEARNING_RATE = 0.1

# Normalization of activations of shape (N, *shape), the last axis of `shape` being the channels.
NORMS = {
    "none": lambda shape: None,
    "batch": lambda shape: nc.BatchNorm(shape[-1], channel_axis=-1),
    "layer": lambda shape: nc.LayerNorm(shape),
    "rms": lambda shape: nc.RMSNorm(shape),
    # A dense layer has one value a channel, so instance norm has nothing to average there.
    "instance": lambda shape: (
        nc.InstanceNorm(shape[-1], affine=True, channel_axis=-1) if len(shape) > 1 else None
    ),
    "group": lambda shape: nc.GroupNorm(4, shape[-1], channel_axis=-1),
    # The paper's corrections begin at step 5000; these runs end between steps 132 and 4308.
    "batch renorm": lambda shape: nc.BatchRenorm(
        shape[-1], momentum=0.1, schedule=(20, 100, 60), channel_axis=-1
    ),
    "batch-instance": lambda shape: nc.BatchInstanceNorm(shape[-1], channel_axis=-1),
    "switchable": lambda shape: nc.SwitchableNorm(shape[-1], channel_axis=-1),
    "Lp batch, p = 1": lambda shape: nc.LpBatchNorm(shape[-1], p=1, channel_axis=-1),
    "top-k batch": lambda shape: nc.TopKBatchNorm(shape[-1], k=10, channel_axis=-1),
    # Neighbouring channels stand for nothing in particular here; the paper's constants do next to
    # nothing to values near 1. A dense layer has none of the axes that the layer asks for.
    "local response": lambda shape: (
        nc.LocalResponseNorm(5, alpha=1.0, channel_axis=-1) if len(shape) > 1 else None
    ),
    "local divisive": lambda shape: nc.LocalDivisiveNorm(shape[-1], 3, 3, 0.5, channel_axis=-1),
    "divisive": lambda shape: nc.DivisiveNorm(shape[-1], channel_axis=-1),
    "GDN": lambda shape: nc.GDN(shape[-1], channel_axis=-1),
    "weight": lambda shape: None,
    "spectral, at most 2": lambda shape: None,
    "weight and mean-only batch": lambda shape: nc.MeanOnlyBatchNorm(shape[-1], channel_axis=-1),
}


class Dense:
    """y = x @ weight + bias over the last axis; He initialization."""

    def __init__(self, fan_in, fan_out, rng):
        weight = rng.normal(0, np.sqrt(2 / fan_in), (fan_in, fan_out))
        self.parameters = {
            "weight": weight.astype(np.float32),
            "bias": np.zeros(fan_out, np.float32),
        }
        self.grads = {}

    def __call__(self, x):
        self.x = x
        return x @ self.parameters["weight"] + self.parameters["bias"]

    def backward(self, dy):
        x, flat_dy = self.x.reshape(-1, self.x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        self.grads = {"weight": x.T @ flat_dy, "bias": flat_dy.sum(axis=0)}
        return dy @ self.parameters["weight"].T


class Conv3x3(Dense):
    """A 3 x 3 convolution with padding 1: a dense layer on patches of (N, H, W, C)."""

    def __init__(self, channels_in, channels_out, stride, rng):
        super().__init__(9 * channels_in, channels_out, rng)
        self.stride = stride

    def _windows(self, padded):
        """Return nine views of the padded images, one for each tap of the kernel."""
        height, width = padded.shape[1] - 2, padded.shape[2] - 2
        step = self.stride
        return [
            padded[:, i : i + height : step, j : j + width : step]
            for i in range(3)
            for j in range(3)
        ]

    def __call__(self, x):
        n, height, width, channels = x.shape
        padded = np.zeros((n, height + 2, width + 2, channels), x.dtype)
        padded[:, 1:-1, 1:-1] = x
        self.padded_shape = padded.shape
        return super().__call__(np.concatenate(self._windows(padded), axis=-1))

    def backward(self, dy):
        dpatches = super().backward(dy)
        dpadded = np.zeros(self.padded_shape, dy.dtype)
        channels = dpadded.shape[-1]
        for tap, window in enumerate(self._windows(dpadded)):
            window += dpatches[..., tap * channels : (tap + 1) * channels]
        return dpadded[:, 1:-1, 1:-1]


class WeightNormed:
    """A linear layer with weight norm, a length for each output channel."""

    def __init__(self, linear):
        self.linear = linear
        weight = linear.parameters["weight"]
        self.norm = nc.WeightNorm(weight.shape, axis=1)
        self.norm.parameters["v"][...] = weight
        self.parameters = {**self.norm.parameters, "bias": linear.parameters["bias"]}

    def initialize(self, x):
        """Give the outputs for x mean 0 and variance 1; expects a new layer, its bias 0."""
        self.parameters["bias"] += self.norm.initialize(self(x), channel_axis=-1)

    def __call__(self, x):
        self.linear.parameters["weight"] = self.norm()
        return self.linear(x)

    def backward(self, dy):
        dx = self.linear.backward(dy)
        self.norm.zero_grad()
        self.norm.backward(self.linear.grads["weight"])
        self.grads = {**self.norm.grads, "bias": self.linear.grads["bias"]}
        return dx


class SpectralNormed:
    """A linear layer whose weight is divided by its largest singular value."""

    def __init__(self, linear, **options):
        self.linear = linear
        self.parameters = dict(linear.parameters)
        self.norm = nc.SpectralNorm(self.parameters["weight"].shape, axis=1, rng=0, **options)

    def train(self, mode):
        self.norm.train(mode)

    def __call__(self, x):
        self.linear.parameters["weight"] = self.norm(self.parameters["weight"])
        return self.linear(x)

    def backward(self, dy):
        dx = self.linear.backward(dy)
        grads = self.linear.grads
        self.grads = {"weight": self.norm.backward(grads["weight"]), "bias": grads["bias"]}
        return dx


# Normalizations of the weight of the layer before, alone or with one of NORMS.
WEIGHT_NORMS = {
    "weight": WeightNormed,
    "weight and mean-only batch": WeightNormed,
    # Three layers of norm 1 would leave little for the last one to tell classes by.
    "spectral, at most 2": lambda linear: SpectralNormed(linear, bound=2),
}


class ReLU:
    def __call__(self, x):
        self.positive = x > 0
        return x * self.positive

    def backward(self, dy):
        return dy * self.positive


class Flatten:
    def __call__(self, x):
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy):
        return dy.reshape(self.shape)


class Network:
    """conv 16, conv 32 with stride 2, dense 64, each with normalization and ReLU, and dense 10."""

    def __init__(self, norm, rng):
        blocks = [
            ([Conv3x3(1, 16, 1, rng)], (8, 8, 16)),
            ([Conv3x3(16, 32, 2, rng)], (4, 4, 32)),
            ([Flatten(), Dense(4 * 4 * 32, 64, rng)], (64,)),
        ]
        self.layers = []
        for linear, shape in blocks:
            if norm in WEIGHT_NORMS:
                linear[-1] = WEIGHT_NORMS[norm](linear[-1])
            normalization = NORMS[norm](shape)
            self.layers += [*linear, *([normalization] if normalization else []), ReLU()]
        self.layers.append(Dense(64, 10, rng))
        self.trained = [layer for layer in self.layers if hasattr(layer, "parameters")]
        self.norms = [layer for layer in self.trained if hasattr(layer, "zero_grad")]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def backward(self, dy):
        for norm in self.norms:
            norm.zero_grad()  # normcore layers add to their gradients
        for layer in reversed(self.layers):
            dy = layer.backward(dy)

    def initialize(self, x):
        """Start the layers whose start depends on data, each with the output of the one before."""
        self.train(False)
        for layer in self.layers:
            if hasattr(layer, "initialize"):
                layer.initialize(x)
            x = layer(x)

    def train(self, mode):
        for layer in self.layers:
            if hasattr(layer, "train"):
                layer.train(mode)


class Momentum:
    """Stochastic gradient descent with momentum, on the layers' own arrays.

    The gate of batch-instance norm learns ten times faster and stays in [0, 1], as in its paper.
    """

    def __init__(self, layers, decay=0.9):
        self.decay = decay
        self.layers = layers
        self.velocities = [
            {name: np.zeros_like(array) for name, array in layer.parameters.items()}
            for layer in layers
        ]

    def step(self, learning_rate):
        for layer, velocities in zip(self.layers, self.velocities, strict=True):
            for name, velocity in velocities.items():
                rate = 10 * learning_rate if name == "rho" else learning_rate
                velocity *= self.decay
                velocity -= rate * layer.grads[name]
                layer.parameters[name] += velocity
            if hasattr(layer, "project"):
                layer.project()


def cross_entropy(logits, labels):
    """Return the mean loss and its gradient with respect to the logits."""
    logits = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    gradient = np.exp(log_probabilities)
    gradient[rows, labels] -= 1
    return -log_probabilities[rows, labels].mean(), gradient / np.float32(len(labels))


def accuracy(network, images, labels):
    network.train(False)
    return float(np.mean(network(images).argmax(axis=1) == labels))


def fit(network, images, labels, batch_size, epochs, rng, learning_rate=LEARNING_RATE):
    """Train, and yield the mean loss of each epoch: between two of them the caller can look in."""
    optimizer = Momentum(network.trained)
    peak = learning_rate * np.sqrt(batch_size / 64)
    steps = len(images) // batch_size  # equal batches: each epoch leaves out other images
    for epoch in range(epochs):
        network.train(True)
        order = rng.permutation(len(images))
        losses = []
        for step in range(steps):
            batch = order[step * batch_size : (step + 1) * batch_size]
            loss, dlogits = cross_entropy(network(images[batch]), labels[batch])
            network.backward(dlogits)
            progress = (epoch * steps + step) / (epochs * steps)
            optimizer.step(np.float32(peak * (1 - progress)))
            losses.append(loss)
        yield np.mean(losses)


def train(norm, batch_size, epochs, seed, data):
    """Return the mean training loss and the test accuracy after each epoch: (2, epochs)."""
    train_images, test_images, train_labels, test_labels = data
    rng = np.random.default_rng(seed)
    network = Network(norm, rng)
    network.initialize(train_images[:256])  # one large batch, whatever follows
    epoch_losses = fit(network, train_images, train_labels, batch_size, epochs, rng)
    curves = [(loss, accuracy(network, test_images, test_labels)) for loss in epoch_losses]
    return np.transpose(curves)


def table(results):
    """Return final test accuracies as a Markdown table: a row a normalization, means of seeds."""
    rows = [["normalization", *(f"batch size {size}" for size in BATCH_SIZES)]]
    rows.append(["---", *("---:" for _ in BATCH_SIZES)])
    for norm in NORMS:
        final = (np.mean(results[norm, size], axis=0)[1, -1] for size in BATCH_SIZES)
        rows.append([norm, *(f"{100 * value:.1f} %" for value in final)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def plot(results, path):
    """Draw loss and accuracy by epoch, a column a batch size; lines are means of seeds."""
    styles = plt.cycler(linestyle=["-", "--"]) * plt.cycler(color=plt.cm.tab10.colors)
    plt.rc("axes", prop_cycle=styles)  # there are more lines than colours
    figure, axes = plt.subplots(
        2, len(BATCH_SIZES), figsize=(13, 6), sharex=True, sharey="row", layout="constrained"
    )
    for (above, below), size in zip(axes.T, BATCH_SIZES, strict=True):
        for norm in NORMS:
            losses, accuracies = np.mean(results[norm, size], axis=0)
            epochs = np.arange(1, len(losses) + 1)
            above.plot(epochs, losses, label=norm)
            below.plot(epochs, 100 * accuracies, label=norm)
        above.set(title=f"batch size {size}", yscale="log")
        below.set(xlabel="epoch")
    axes[0, 0].set(ylabel="training loss")
    axes[1, 0].set(ylabel="test accuracy in %")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="normalization", loc="outside right center")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6, help="for every run (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--seeds", type=int, default=2, help="runs to average (default: 2)")
    parser.add_argument("--output-dir", type=Path, default=Path(), help="default: here")
    parser.add_argument("--quick", action="store_true", help="3 epochs of 256 images, one seed")
    arguments = parser.parse_args()
    epochs, seeds = arguments.epochs, range(arguments.seed, arguments.seed + arguments.seeds)

    digits = load_digits()
    images = (digits.images[..., np.newaxis] / 16).astype(np.float32)
    data = train_test_split(
        images, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    if arguments.quick:
        data = [part[:256] for part in data]
        epochs, seeds = 3, seeds[:1]

    # These arrays are small: threads of NumPy's BLAS and of normcore would wait for each other.
    threadpool_limits(1)
    nc.set_num_threads(1)
    start = time.perf_counter()
    runs = [(norm, size, seed) for size in BATCH_SIZES for norm in NORMS for seed in seeds]
    results = {run[:2]: [] for run in runs}
    for norm, size, seed in (progress := tqdm(runs, unit="run")):
        progress.set_description(f"{norm}, batch size {size}")
        results[norm, size].append(train(norm, size, epochs, seed, data))

    report = (
        f"Test accuracy (epochs: {epochs}, seeds: {len(seeds)}, test images: {len(data[1])}). "
        "With other seeds most values move by 1 or 2 points, those below 90 % by tens.\n\n"
        f"{table(results)}"
    )
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    plot(results, arguments.output_dir / "digits.png")
    (arguments.output_dir / "digits.md").write_text(report, encoding="utf-8")
    print(f"{report}\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
