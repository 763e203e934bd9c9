"""Train a small image codec, in torch, on two photographs: what GDN was made for.

Three convolutions with GDN between them take a picture to an eighth of its height and width; the
values there are rounded, and three transposed convolutions with inverse GDN make a picture of them.
In training, noise takes the place of rounding. The rate is that of an ideal coder which knows a
logistic distribution for each channel, learnt with the rest; the loss is bits per pixel plus
`weight` x 255^2 x the mean squared error (Balle, Laparra and Simoncelli 2017, arXiv:1611.01704).

The codec learns from patches of the left two thirds of both photographs and is judged by the rest.
Its training step is timed against the same codec with GDN in torch's own operations.
Writes `torch_codec.png` (losses, and pictures) and `torch_codec.md` (rates and times).

    python examples/torch_codec.py --output-dir build
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn
from tqdm import tqdm

import normcore.torch as nt
from normcore.bench.torch_steps import FormulaGDN, markdown, take_turns

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PATCH, BATCH = 64, 8
WEIGHTS = (0.002, 0.01)  # of the squared error: few bits, and more
SPLIT = 432  # columns to learn from; all sizes are multiples of 8
GAIN = 3.0  # values as they start are small beside the steps of rounding


def smooth(values, width):
    """Means over a sliding window."""
    return np.convolve(values, np.full(width, 1 / width), "valid")


class Codec(nn.Module):
    """Pictures (N, 3, H, W), with values from 0 to 1, to pictures and bits."""

    def __init__(self, gdn=nt.GDN, width=64, channels=32):
        super().__init__()

        def down(i, o):
            return nn.Conv2d(i, o, 5, 2, 2)

        def up(i, o):
            return nn.ConvTranspose2d(i, o, 5, 2, 2, 1)

        self.analysis = nn.Sequential(
            down(3, width), gdn(width), down(width, width), gdn(width), down(width, channels)
        )
        self.synthesis = nn.Sequential(
            up(channels, width), gdn(width, inverse=True),
            up(width, width), gdn(width, inverse=True), up(width, 3),
        )  # fmt: skip
        self.middle = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def bits(self, latent):
        """Of all values together: each has the probability of the interval of 1 around it."""
        scale = self.log_scale.exp()
        low, high = ((latent + side - self.middle) / scale for side in (-0.5, 0.5))
        # Both in the lower tail, where their difference loses no digits.
        sign = -(low + high).sign()
        chance = (torch.sigmoid(sign * high) - torch.sigmoid(sign * low)).abs()
        return -chance.clamp(min=1e-9).log2().sum()

    def forward(self, x):
        """Return the pictures and the bits of all of them."""
        latent = GAIN * self.analysis(x - 0.5)
        latent = latent + torch.rand_like(latent) - 0.5 if self.training else latent.round()
        return self.synthesis(latent / GAIN) + 0.5, self.bits(latent)


def rate_and_error(codec, x):
    """Return bits per pixel, the mean squared error and the pictures."""
    y, bits = codec(x)
    return bits / (x.numel() / 3), (y - x).square().mean(), y


def training_step(codec, weight):
    """Return the optimizer, and a function that learns from patches and returns the loss."""
    networks = [*codec.analysis.parameters(), *codec.synthesis.parameters()]
    # The distributions follow what is coded: they have to be faster.
    distributions = {"params": [codec.middle, codec.log_scale], "lr": 2e-2}
    optimizer = torch.optim.Adam([{"params": networks}, distributions], 1e-3)

    def step(patches):
        optimizer.zero_grad()
        bpp, error, _ = rate_and_error(codec, patches)
        loss = bpp + weight * 255**2 * error
        loss.backward()
        optimizer.step()
        return loss.item()

    return optimizer, step


def patches_of(pictures, rng):
    """Random patches, half of them mirrored: (BATCH, 3, PATCH, PATCH)."""
    _, _, height, width = pictures.shape
    patches = []
    for _ in range(BATCH):
        top, left = rng.integers(height - PATCH), rng.integers(width - PATCH)
        patch = pictures[rng.integers(len(pictures)), :, top : top + PATCH, left : left + PATCH]
        patches.append(patch.flip(-1) if rng.random() < 0.5 else patch)
    return torch.stack(patches)


def train(weight, steps, seed, pictures):
    """Return the codec and its losses."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    codec = Codec()
    optimizer, step = training_step(codec, weight)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 1e-4)
    losses = []
    for _ in tqdm(range(steps), desc=f"weight {weight}", unit="step"):
        losses.append(step(patches_of(pictures, rng)))
        schedule.step()
    return codec, losses


@torch.no_grad()
def measure(codec, pictures):
    """Return bits per pixel, PSNR in dB and the decoded pictures, with values rounded."""
    codec.eval()
    bpp, _, y = rate_and_error(codec, pictures)
    y = y.clamp(0, 1)
    return bpp.item(), psnr(y, pictures), y


def psnr(y, x):
    return -10 * (y - x).square().mean().log10().item()


def jpeg(pictures, bpp):
    """Return bits per pixel and PSNR of JPEG at the quality whose rate is nearest."""
    found = []
    for quality in range(1, 96):
        decoded, size = [], 0
        for picture in pictures:
            file = io.BytesIO()
            values = (255 * picture).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(values).save(file, "JPEG", quality=quality, optimize=True)
            size += len(file.getvalue())
            decoded.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255)
        rate = 8 * size / (pictures.numel() / 3)
        found.append((abs(rate - bpp), rate, psnr(torch.stack(decoded), pictures)))
    return min(found)[1:]


def table(rows):
    """Markdown: {name: (bits per pixel, PSNR)}."""
    lines = ["| codec | bits per pixel | PSNR in dB |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {bpp:.3f} | {quality:.2f} |" for name, (bpp, quality) in rows.items()]
    return "".join(f"{line}\n" for line in lines)


def step_times(pictures, rounds):
    """Time a step of the codec with each GDN, and return their first losses too."""
    patches = patches_of(pictures, np.random.default_rng(0))
    calls, losses = {}, {}
    for name, gdn in {"normcore": nt.GDN, "torch operations": FormulaGDN}.items():
        torch.manual_seed(0)
        _, step = training_step(Codec(gdn), WEIGHTS[0])
        losses[name] = step(patches)
        calls[name] = lambda step=step: step(patches)
    return take_turns(calls, rounds), losses


def plot(losses, pictures, decoded, path):
    """Draw losses, smoothed, and the photographs' right parts before and after."""
    columns = 1 + len(decoded)
    figure = plt.figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.4))
    axis = left.subplots()
    for name, values in losses.items():
        width = max(1, len(values) // 20)
        axis.plot(np.arange(width - 1, len(values)) + 1, smooth(values, width), label=name)
    axis.set(xlabel="step", ylabel="loss: bits per pixel and weighted error", yscale="log")
    axis.legend()
    axes = right.subplots(2, columns)
    for column, (name, shown) in zip(
        axes.T, {"photograph": pictures, **decoded}.items(), strict=True
    ):
        for axis, picture in zip(column, shown, strict=True):
            axis.imshow(picture[:, 200:392].permute(1, 2, 0).numpy())
            axis.axis("off")
        column[0].set_title(name)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="for each codec (default: 800)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--rounds", type=int, default=30, help="steps to time (default: 30)")
    parser.add_argument("--output-dir", type=Path, default=Path(), help="default: here")
    parser.add_argument("--quick", action="store_true", help="40 steps, 3 of them timed")
    arguments = parser.parse_args()
    steps, rounds = (40, 3) if arguments.quick else (arguments.steps, arguments.rounds)

    start = time.perf_counter()
    photographs = np.stack(load_sample_images().images)[:, :424]
    photographs = torch.from_numpy(photographs).permute(0, 3, 1, 2).contiguous() / 255
    learnt, test = photographs[..., :SPLIT], photographs[..., SPLIT:]
    times, first_losses = step_times(learnt, rounds)
    torch.manual_seed(arguments.seed)
    rows = {"untrained": measure(Codec(), test)[:2]}
    losses, decoded = {}, {}
    for weight in WEIGHTS:
        name = f"weight {weight}"
        codec, losses[name] = train(weight, steps, arguments.seed, learnt)
        *rows[name], decoded[name] = measure(codec, test)
        rows[f"JPEG near {name}"] = jpeg(test, rows[name][0])

    report = (
        f"Test parts of two photographs, after {steps} steps with {BATCH} patches.\n\n"
        f"{table(rows)}\n"
        f"{markdown(times, first_losses)}"
    )
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    plot(losses, test, decoded, arguments.output_dir / "torch_codec.png")
    (arguments.output_dir / "torch_codec.md").write_text(report, encoding="utf-8")
    print(f"{report}\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
