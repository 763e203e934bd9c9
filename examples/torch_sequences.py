"""Read lines of handwritten digits of different lengths, in torch: batch norm with a mask.

A line is some digits side by side, their columns of pixels a sequence; a batch is padded to its
longest line. What fills the places after a line must not count, but batch norm averages over it,
unless a mask says which places are real. Convolutions over the columns learn, by CTC, to tell the
digits, with three normalizations: batch norm with the mask, batch norm without, and RMS norm of the
channels of each place, which has nothing to mask.

More padding is then added to a batch: with the mask nothing changes, in outputs, gradients and
running statistics. The masked step is timed against torch's own, which takes the real places out
and puts them back. Writes `torch_sequences.png` (losses and test errors) and `torch_sequences.md`.

    python examples/torch_sequences.py --output-dir build
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from tqdm import tqdm

import normcore.torch as nt
from normcore.bench.torch_steps import markdown, take_turns

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROWS, BATCH, WIDTH = 8, 16, 64  # pixels in a column, lines, channels
LONGEST = 16  # digits in a line
PADDINGS = (8, 64, 512)  # columns


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm of the places that count by torch alone: they are taken out and put back."""

    def forward(self, x, mask):
        rows = x.transpose(1, 2)
        y = torch.zeros_like(rows)
        y[mask] = super().forward(rows[mask])
        return y.transpose(1, 2)


class UnmaskedBatchNorm(nt.BatchNorm1d):
    """Batch norm of all places."""

    def forward(self, x, mask):
        return super().forward(x)


class ChannelRMSNorm(nt.RMSNorm):
    """RMS norm over the channels of each place."""

    def forward(self, x, mask):
        return nt.rms_norm(x, self.weight, axis=1)


# Layers of x (N, C, T) and mask (N, T).
NORMS = {
    "batch norm, mask": nt.BatchNorm1d,
    "batch norm, no mask": UnmaskedBatchNorm,
    "RMS norm": ChannelRMSNorm,
}


class Reader(nn.Module):
    """Three convolutions of 5 columns, each with a normalization, and one to 10 digits and a blank.

    What is written in the padding is cleared before each convolution, whatever the normalization:
    so only through statistics can it be seen.
    """

    def __init__(self, norm):
        super().__init__()
        channels = (ROWS, WIDTH, WIDTH, WIDTH)
        pairs = itertools.pairwise(channels)
        self.convolutions = nn.ModuleList(nn.Conv1d(i, o, 5, padding=2) for i, o in pairs)
        self.norms = nn.ModuleList(norm(WIDTH) for _ in self.convolutions)
        self.head = nn.Conv1d(WIDTH, 11, 1)

    def forward(self, x, mask):
        """Return log probabilities (N, 11, T) for x (N, 8, T) and mask (N, T)."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x * mask[:, None]), mask).relu()
        return self.head(x).log_softmax(1)


def cropped(images):
    """Digits as (8, columns), without their empty columns."""
    parts = []
    for image in images:
        (inked,) = np.nonzero(image.any(axis=0))
        parts.append(image[:, inked[0] : inked[-1] + 1].astype(np.float32) / 16)
    return parts


class Lines:
    """Batches of lines, made of the digits at random; most lines are short, a few long."""

    def __init__(self, digits, labels, seed):
        self.digits, self.labels = digits, labels
        self.rng = np.random.default_rng(seed)

    def batch(self):
        """Return x (N, 8, T), mask (N, T) and the labels of each line."""
        counts = np.minimum(self.rng.geometric(0.25, BATCH), LONGEST)
        chosen = [self.rng.integers(len(self.digits), size=count) for count in counts]
        lines = [np.concatenate([self.digits[i] for i in line], axis=1) for line in chosen]
        longest = max(line.shape[1] for line in lines)
        x = torch.zeros(BATCH, ROWS, longest)
        mask = torch.zeros(BATCH, longest, dtype=torch.bool)
        for i, line in enumerate(lines):
            x[i, :, : line.shape[1]] = torch.from_numpy(line)
            mask[i, : line.shape[1]] = True
        return x, mask, [torch.from_numpy(self.labels[line]) for line in chosen]


def padded(x, mask, columns):
    """The batch with so many more columns of padding."""
    return F.pad(x, (0, columns)), F.pad(mask, (0, columns))


def loss_of(reader, x, mask, labels):
    """CTC: the blank is class 10."""
    log_probabilities = reader(x, mask).permute(2, 0, 1)
    counts = torch.tensor([len(line) for line in labels])
    return F.ctc_loss(log_probabilities, torch.cat(labels), mask.sum(1), counts, blank=10)


def training_step(reader, rate=3e-3):
    optimizer = torch.optim.Adam(reader.parameters(), rate)

    def step(batch):
        optimizer.zero_grad()
        loss = loss_of(reader, *batch)
        loss.backward()
        optimizer.step()
        return loss.item()

    return optimizer, step


def edits(a, b):
    """The least number of digits to insert, delete and change from one to the other."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a):
        above, row = row, [i + 1]
        for j, right in enumerate(b):
            row.append(min(above[j] + (left != right), above[j + 1] + 1, row[j] + 1))
    return row[-1]


@torch.no_grad()
def error_rate(reader, batches):
    """Edits that the read lines need, in percent of their digits."""
    reader.eval()
    wrong = total = 0
    for x, mask, labels in batches:
        classes = reader(x, mask).argmax(1)
        for line, real, wanted in zip(classes, mask, labels, strict=True):
            read = [c for c in line[real].unique_consecutive().tolist() if c != 10]
            wrong += edits(read, wanted.tolist())
            total += len(wanted)
    reader.train()
    return 100 * wrong / total


def train(norm, steps, seed, lines, test):
    """Return the reader, its losses, and the test error at 12 times."""
    torch.manual_seed(seed)
    reader = Reader(NORMS[norm])
    optimizer, step = training_step(reader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses, errors = [], {}
    for i in tqdm(range(steps), desc=norm, unit="step"):
        losses.append(step(lines.batch()))
        schedule.step()
        if (i + 1) % (steps // 12) == 0:
            errors[i + 1] = error_rate(reader, test)
    return reader, losses, errors


def seen(reader, x, mask, labels):
    """What training shows of a batch: log probabilities where places are real, gradients of the
    first convolution, running statistics."""
    reader = copy.deepcopy(reader).train()
    y = reader(x, mask).transpose(1, 2)[mask]
    loss_of(reader, x, mask, labels).backward()
    buffers = [b.double().flatten() for b in reader.buffers()]
    gradient = reader.convolutions[0].weight.grad
    return y.detach(), gradient, torch.cat(buffers) if buffers else torch.zeros(1)


def changes(reader, batch):
    """How much more padding changes what is seen, each relative to its largest value."""
    x, mask, labels = batch
    before = seen(reader, x, mask, labels)
    found = []
    for columns in PADDINGS:
        after = seen(reader, *padded(x, mask, columns), labels)
        pairs = zip(after, before, strict=True)
        differences = [(a - b).abs().max() / b.abs().max().clamp(min=1e-9) for a, b in pairs]
        found.append(max(differences).item())
    return found


def step_times(batch, rounds):
    """Time a step with each masked batch norm, and return their first losses too."""
    calls, losses = {}, {}
    for name, norm in {"normcore": nt.BatchNorm1d, "torch": MaskedBatchNorm}.items():
        torch.manual_seed(0)
        _, step = training_step(Reader(norm))
        losses[name] = step(batch)
        calls[name] = lambda step=step: step(batch)
    return take_turns(calls, rounds), losses


def table(header, rows):
    """Markdown: a row for each name."""
    lines = [f"| {' | '.join(header)} |", f"| --- |{' ---: |' * (len(header) - 1)}"]
    lines += [f"| {' | '.join([name, *cells])} |" for name, cells in rows.items()]
    return "".join(f"{line}\n" for line in lines)


def plot(curves, path):
    """Draw losses, smoothed, and test errors by step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, (losses, errors) in curves.items():
        width = max(1, len(losses) // 25)
        smooth = np.convolve(losses, np.full(width, 1 / width), "valid")
        left.plot(np.arange(width - 1, len(losses)) + 1, smooth, label=name)
        right.plot(list(errors), list(errors.values()), label=name)
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    right.set(xlabel="step", ylabel="wrong digits of test lines in %", yscale="log")
    left.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="for each reader (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--rounds", type=int, default=50, help="steps to time (default: 50)")
    parser.add_argument("--output-dir", type=Path, default=Path(), help="default: here")
    parser.add_argument("--quick", action="store_true", help="60 steps, 3 of them timed")
    arguments = parser.parse_args()
    steps, rounds = (60, 3) if arguments.quick else (arguments.steps, arguments.rounds)

    # These tensors are small: threads would wait for each other.
    torch.set_num_threads(1)
    start = time.perf_counter()
    digits = load_digits()
    train_digits, test_digits, train_labels, test_labels = train_test_split(
        cropped(digits.images), digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    test_lines = Lines(test_digits, test_labels, 1)
    test = [test_lines.batch() for _ in range(4 if arguments.quick else 16)]
    times, first_losses = step_times(test[0], rounds)

    curves, error_rows, change_rows = {}, {}, {}
    for norm in NORMS:
        lines = Lines(train_digits, train_labels, arguments.seed)
        reader, losses, errors = train(norm, steps, arguments.seed, lines, test)
        curves[norm] = losses, errors
        error_rows[norm] = [f"{losses[-1]:.3f}", f"{errors[max(errors)]:.1f} %"]
        change_rows[norm] = [f"{change:.1g}" for change in changes(reader, test[0])]

    share = 100 * np.mean([1 - mask.float().mean().item() for _, mask, _ in test])
    report = (
        f"After {steps} steps with {BATCH} lines, {share:.0f} % of whose places are padding.\n\n"
        f"{table(['normalization', 'last loss', 'wrong digits'], error_rows)}\n"
        "Largest change in training by columns of padding added, relative: outputs, gradients, "
        "running statistics.\n\n"
        f"{table(['normalization', *(f'{c} columns' for c in PADDINGS)], change_rows)}\n"
        f"{markdown(times, first_losses)}"
    )
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    plot(curves, arguments.output_dir / "torch_sequences.png")
    (arguments.output_dir / "torch_sequences.md").write_text(report, encoding="utf-8")
    print(f"{report}\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
