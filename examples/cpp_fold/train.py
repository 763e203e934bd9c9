"""Train the network of `digits.py` with batch norm, and write it for the C++ program `fold`.

The file has the weights, batch norms' parameters and running statistics, and of the test images the
labels and the logits that Python computes.

    python examples/cpp_fold/train.py digits.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

import normcore as nc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from digits import Network, accuracy, fit


def state(network):
    """Return all arrays, named by layer: conv1, conv2, dense, each with norm, and output."""
    linear = [layer for layer in network.trained if layer not in network.norms]
    arrays = {}
    for name, layer in zip(("conv1", "conv2", "dense", "output"), linear, strict=True):
        arrays |= {f"{name}.{key}": array for key, array in layer.parameters.items()}
    for name, norm in zip(("conv1", "conv2", "dense"), network.norms, strict=True):
        arrays |= {f"{name}.norm.{key}": array for key, array in norm.state_dict().items()}
    return arrays


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the safetensors file to write")
    parser.add_argument("--epochs", type=int, default=6, help="default: 6")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    arguments = parser.parse_args()

    threadpool_limits(1)
    nc.set_num_threads(1)
    digits = load_digits()
    images = (digits.images[..., np.newaxis] / 16).astype(np.float32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    rng = np.random.default_rng(arguments.seed)
    network = Network("batch", rng)
    for epoch, loss in enumerate(
        fit(network, train_images, train_labels, 64, arguments.epochs, rng)
    ):
        print(f"epoch {epoch + 1}: loss {loss:.4f}")
    print(f"test accuracy {100 * accuracy(network, test_images, test_labels):.1f} %")

    network.train(False)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "images": test_images,
        "labels": test_labels.astype(np.int64),
        "logits": network(test_images),
    }
    nc.convert.save_safetensors(state(network) | results, arguments.output)


if __name__ == "__main__":
    main()
