"""Train a small GAN on handwritten digits, in torch: what spectral norm does to it.

The generator makes pictures of 8 x 8 with batch or switchable norm; the discriminator has spectral
norm (Miyato et al. 2018, arXiv:1802.05957) or none. Both are trained with the hinge loss, and the
pictures judged by a classifier of the digits:

- `distance`: the Frechet distance between its features of real digits and of made ones, as normal
  distributions; beside it that of two halves of the real ones, and that of noise;
- `sure`: the share of pictures to which it gives one class with more than 90 %.

The training step is timed against the same networks with torch's own spectral norm and batch norm,
or with switchable norm in torch's operations. Writes `torch_gan.png` (losses, distances, pictures)
and `torch_gan.md`.

    python examples/torch_gan.py --output-dir build
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parametrizations as torch_parametrizations
from tqdm import tqdm

import normcore.torch as nt
from normcore.bench.torch_steps import FormulaSwitchableNorm, markdown, take_turns

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BATCH, NOISE = 32, 32
MEASURED = 20  # times in a run
NORMS = {"switchable": nt.SwitchableNorm, "batch": nt.BatchNorm2d}
RIVALS = {"switchable": FormulaSwitchableNorm, "batch": nn.BatchNorm2d}
BOUNDS = {"spectral norm": nt.parametrizations.spectral_norm, "none": lambda layer: layer}


def generator(norm):
    """From noise (N, 32) to pictures (N, 1, 8, 8) with values from 0 to 1."""
    return nn.Sequential(
        nn.Linear(NOISE, 32 * 2 * 2, bias=False), nn.Unflatten(1, (32, 2, 2)), norm(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 32, 4, 2, 1, bias=False), norm(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), norm(16), nn.ReLU(),
        nn.Conv2d(16, 1, 3, 1, 1), nn.Sigmoid(),
    )  # fmt: skip


def discriminator(bound):
    """From pictures to one number each; `bound` changes each layer with weights."""
    return nn.Sequential(
        bound(nn.Conv2d(1, 32, 3, 1, 1)), nn.LeakyReLU(0.1),
        bound(nn.Conv2d(32, 64, 4, 2, 1)), nn.LeakyReLU(0.1),
        bound(nn.Conv2d(64, 64, 4, 2, 1)), nn.LeakyReLU(0.1),
        nn.Flatten(), bound(nn.Linear(64 * 2 * 2, 1)),
    )  # fmt: skip


def training_step(maker, judge):
    """Return a function that learns from real digits, and returns both losses."""
    # The discriminator learns faster, so that a generator that makes one picture alone is caught.
    optimizers = [
        torch.optim.Adam(network.parameters(), rate, (0.0, 0.9))
        for network, rate in ((maker, 5e-4), (judge, 2e-3))
    ]

    def step(real):
        made = maker(torch.randn(len(real), NOISE))
        verdicts = judge(torch.cat([real, made.detach()]))
        loss = (1 - verdicts[: len(real)]).relu().mean() + (1 + verdicts[len(real) :]).relu().mean()
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()

        maker_loss = -judge(made).mean()
        optimizers[0].zero_grad()
        maker_loss.backward()
        optimizers[0].step()
        return maker_loss.item(), loss.item()

    return step


class Classifier:
    """A dense network with 32 features, which learns half of the digits."""

    def __init__(self, images, labels):
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU()
        )
        self.head = nn.Linear(32, 10)
        optimizer = torch.optim.Adam([*self.features.parameters(), *self.head.parameters()], 3e-3)
        for _ in range(200):
            optimizer.zero_grad()
            F.cross_entropy(self.head(self.features(images)), labels).backward()
            optimizer.step()

    @torch.no_grad()
    def judge(self, images, real):
        """Return the distance of images from real ones, and the share that is surely a digit."""
        features = self.features(images)
        sure = self.head(features).softmax(1).amax(1) > 0.9
        return frechet(features, self.features(real)), 100 * sure.float().mean().item()


def frechet(a, b):
    """Between the normal distributions of rows: |m - n|^2 + tr(A + B - 2 (A B)^(1/2))."""
    a, b = a.double(), b.double()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    a, b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # A B has the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    mixed = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    return (shift + a.trace() + b.trace() - 2 * mixed).item()


def train(norm, bound, steps, seed, images, score):
    """Return losses (steps, 2), scores {step: (distance, sure)} and made pictures."""
    torch.manual_seed(seed)
    maker, judge = generator(NORMS[norm]), discriminator(BOUNDS[bound])
    step = training_step(maker, judge)
    noise = torch.randn(900, NOISE)
    losses, scores = [], {}
    for i in tqdm(range(steps), desc=f"{bound}, seed {seed}", unit="step"):
        losses.append(step(images[torch.randint(len(images), (BATCH,))]))
        if (i + 1) % (steps // MEASURED) == 0:
            maker.eval()
            with torch.no_grad():
                made = maker(noise)
            maker.train()
            scores[i + 1] = score(made)
    return np.array(losses), scores, made


def step_times(norm, images, rounds):
    """Time a step of ours and of torch's, and return the first losses of the discriminator too."""
    real = images[:BATCH]
    calls, losses = {}, {}
    pairs = {
        "normcore": (NORMS[norm], nt.parametrizations.spectral_norm),
        "torch": (RIVALS[norm], torch_parametrizations.spectral_norm),
    }
    for name, (kind, bound) in pairs.items():
        torch.manual_seed(0)
        step = training_step(generator(kind), discriminator(bound))
        _, losses[name] = step(real)
        calls[name] = lambda step=step: step(real)
    return take_turns(calls, rounds), losses


def table(rows):
    """Markdown: {name: (distance, sure)}."""
    lines = ["| pictures | distance | sure |", "| --- | ---: | ---: |"]
    lines += [
        f"| {name} | {distance:.2f} | {sure:.1f} % |" for name, (distance, sure) in rows.items()
    ]
    return "".join(f"{line}\n" for line in lines)


def sheet(pictures, side=6):
    """The first pictures side by side, a pixel between them."""
    framed = F.pad(pictures[: side * side], (1, 1, 1, 1)).reshape(side, side, 10, 10)
    return framed.swapaxes(1, 2).reshape(side * 10, -1).numpy()


def plot(runs, real, path):
    """Draw losses, smoothed, distances by step (each seed), and pictures of the first seed."""
    figure = plt.figure(figsize=(13, 6), layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    left, middle, right = upper.subplots(1, 3)
    sheets = {"real": real}
    for (bound, results), color in zip(runs.items(), plt.cm.tab10.colors, strict=False):
        sheets[bound] = results[0][2]
        for seed, (losses, scores, _) in enumerate(results):
            label = bound if seed == 0 else None
            width = max(1, len(losses) // 50)
            at = np.arange(width - 1, len(losses)) + 1
            for axis, values in zip((left, middle), losses.T, strict=True):
                smooth = np.convolve(values, np.full(width, 1 / width), "valid")
                axis.plot(at, smooth, color=color, label=label)
            distances = [distance for distance, _ in scores.values()]
            right.plot(list(scores), distances, color=color, label=label)
    left.set(xlabel="step", ylabel="generator's loss")
    middle.set(xlabel="step", ylabel="discriminator's loss")
    right.set(xlabel="step", ylabel="distance", yscale="log")
    right.legend(title="discriminator")
    for axis, (name, pictures) in zip(lower.subplots(1, len(sheets)), sheets.items(), strict=True):
        axis.imshow(sheet(pictures), cmap="gray_r")
        axis.set_title(name)
        axis.axis("off")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--norm", choices=NORMS, default="switchable", help="of the generator")
    parser.add_argument("--bound", choices=BOUNDS, help="of the discriminator (default: both)")
    parser.add_argument("--steps", type=int, default=1200, help="for every run (default: 1200)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--seeds", type=int, default=2, help="runs to average (default: 2)")
    parser.add_argument("--rounds", type=int, default=100, help="steps to time (default: 100)")
    parser.add_argument("--output-dir", type=Path, default=Path(), help="default: here")
    parser.add_argument("--quick", action="store_true", help="60 steps, 3 of them timed, one seed")
    arguments = parser.parse_args()
    steps, seeds, rounds = arguments.steps, arguments.seeds, arguments.rounds
    if arguments.quick:
        steps, seeds, rounds = 60, 1, 3

    # These tensors are small: threads would wait for each other.
    torch.set_num_threads(1)
    start = time.perf_counter()
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    learnt, other = images[::2], images[1::2]
    classifier = Classifier(learnt, torch.from_numpy(digits.target)[::2])
    times, first_losses = step_times(arguments.norm, learnt, rounds)

    rows = {"real": classifier.judge(other, learnt)}
    runs = {}
    for bound in [arguments.bound] if arguments.bound else BOUNDS:
        runs[bound] = [
            train(
                arguments.norm, bound, steps, arguments.seed + seed, learnt,
                lambda made: classifier.judge(made, learnt),
            )
            for seed in range(seeds)
        ]  # fmt: skip
        rows[bound] = np.mean([scores[max(scores)] for _, scores, _ in runs[bound]], axis=0)
    rows["noise"] = classifier.judge(torch.rand(len(other), 1, 8, 8), learnt)

    report = (
        f"Generator with {arguments.norm} norm, by the norm of the discriminator, after {steps} "
        f"steps (seeds: {seeds}).\n\n"
        f"{table(rows)}\n"
        f"{markdown(times, first_losses)}"
    )
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    plot(runs, learnt, arguments.output_dir / "torch_gan.png")
    (arguments.output_dir / "torch_gan.md").write_text(report, encoding="utf-8")
    print(f"{report}\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
