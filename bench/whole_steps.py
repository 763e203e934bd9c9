"""Whole training steps and evaluation of models, with torch's normalizations and with normcore's.

    python bench/whole_steps.py --json steps.json

A norm is a small part of a model: this says what is left of its speed in the end. Models that torch
has norms for get normcore's by `replace_modules`; the others have the method as torch's own
operations beside that of `normcore.torch`. Both take turns, a call each, and a ratio is the median
over rounds of torch's time over ours; over 1 we are faster. Both begin with the same weights; how
far their first losses are from each other, relative, stands in the JSON. Under torch.compile
replaced modules do what torch's do, and methods of ours stay operators.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normcore as nc
import normcore.torch as nt
from normcore.bench import documents
from normcore.bench.machine import describe, summary
from normcore.bench.torch_steps import FormulaGDN, FormulaSwitchableNorm, take_turns

CLASSES = 100
Norm = Callable[[int], nn.Module]


# ---- models


def convolution(i: int, o: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, size, stride, size // 2, groups=groups, bias=False)


class Residual(nn.Module):
    """x plus what `body` makes of it; `shortcut` where the shapes differ."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


def resnet18(norm: Norm = nn.BatchNorm2d) -> nn.Module:
    """With the stem that small pictures get."""
    layers, i = [convolution(3, 64, 3), norm(64), nn.ReLU()], 64
    for o, first_stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for stride in (first_stride, 1):
            body = nn.Sequential(
                convolution(i, o, 3, stride), norm(o), nn.ReLU(), convolution(o, o, 3), norm(o)
            )
            same = stride == 1 and i == o
            down = None if same else nn.Sequential(convolution(i, o, 1, stride), norm(o))
            layers += [Residual(body, down), nn.ReLU()]
            i = o
    return nn.Sequential(*layers, *head(i))


def mobilenet_v2() -> nn.Module:
    """Inverted residuals: a norm after each of many cheap convolutions."""
    layers, i = [convolution(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU6()], 16
    for o, first_stride, count in ((24, 2, 2), (32, 2, 2), (64, 2, 3), (96, 1, 2), (160, 2, 2)):
        for stride in (first_stride, *[1] * (count - 1)):
            h = 6 * i
            body = nn.Sequential(
                convolution(i, h, 1), nn.BatchNorm2d(h), nn.ReLU6(),
                convolution(h, h, 3, stride, h), nn.BatchNorm2d(h), nn.ReLU6(),
                convolution(h, o, 1), nn.BatchNorm2d(o),
            )  # fmt: skip
            layers.append(Residual(body) if stride == 1 and i == o else body)
            i = o
    return nn.Sequential(*layers, *head(i))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inward, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, places, width = x.shape
        parts = self.inward(x).view(n, places, 3, self.heads, width // self.heads)
        y = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4))
        return self.out(y.transpose(1, 2).reshape(n, places, width))


class ViT(nn.Module):
    """ViT-Tiny, with the mean over places in the place of a class token."""

    def __init__(self, width: int = 192, depth: int = 12, side: int = 224, patch: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.places = nn.Parameter(torch.zeros((side // patch) ** 2, width))
        blocks: list[nn.Module] = []
        for _ in range(depth):
            blocks.append(Residual(nn.Sequential(nn.LayerNorm(width), Attention(width, 3))))
            dense = (nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            blocks.append(Residual(nn.Sequential(nn.LayerNorm(width), *dense)))
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.out = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.out(self.blocks(x).mean(1))


class UNet(nn.Module):
    """Residual blocks with group norm at three sizes, as diffusion models have them."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        w = width

        def block(i: int, o: int) -> nn.Module:
            body = nn.Sequential(
                nn.GroupNorm(32, i), nn.SiLU(), nn.Conv2d(i, o, 3, padding=1),
                nn.GroupNorm(32, o), nn.SiLU(), nn.Conv2d(o, o, 3, padding=1),
            )  # fmt: skip
            return Residual(body, None if i == o else nn.Conv2d(i, o, 1))

        self.inward = nn.Conv2d(4, w, 3, padding=1)
        self.down = nn.ModuleList([block(w, w), block(w, 2 * w)])
        self.middle = block(2 * w, 2 * w)
        self.up = nn.ModuleList([block(4 * w, w), block(2 * w, w)])
        self.out = nn.Sequential(nn.GroupNorm(32, w), nn.SiLU(), nn.Conv2d(w, 4, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x, kept = self.inward(x), []
        for block in self.down:
            x = block(x)
            kept.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.middle(x)
        for block in self.up:
            x = torch.cat([F.interpolate(x, scale_factor=2.0), kept.pop()], 1)
            x = block(x)
        return self.out(x)


def alexnet() -> nn.Module:
    """As published, with the two halves of its groups, without dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 96, 11, 4), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, 1, 2, groups=2), nn.ReLU(), nn.LocalResponseNorm(5),
        nn.MaxPool2d(3, 2), nn.Conv2d(256, 384, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(384, 384, 3, 1, 1, groups=2), nn.ReLU(),
        nn.Conv2d(384, 256, 3, 1, 1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(),
        nn.Linear(9216, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(),
        nn.Linear(4096, CLASSES),
    )  # fmt: skip


def codec(gdn: Callable[..., nn.Module], width: int = 128, channels: int = 192) -> nn.Module:
    """The networks of a codec with a factorized prior."""
    layers: list[nn.Module] = []
    for i, o in ((3, width), (width, width), (width, width), (width, channels)):
        layers += [nn.Conv2d(i, o, 5, 2, 2), gdn(o)]
    layers.pop()
    for i, o in ((channels, width), (width, width), (width, width), (width, 3)):
        layers += [nn.ConvTranspose2d(i, o, 5, 2, 2, 1), gdn(o, inverse=True)]
    return nn.Sequential(*layers[:-1])


# ---- what is measured


@dataclass(frozen=True)
class Model:
    """A model twice, and a batch of it."""

    name: str
    shape: tuple[int, ...]
    torchs: Callable[[], nn.Module]
    ours: Callable[[], nn.Module] | None = None  # None: torch's, with its modules replaced
    pictures: bool = False  # the model gives pictures like x, not classes
    compiled: bool = True
    quick: bool = False

    def make(self, ours: bool) -> nn.Module:
        torch.manual_seed(0)
        if ours and self.ours is not None:
            return self.ours()
        model = self.torchs()
        if ours and not nt.replace_modules(model):
            raise ValueError(f"{self.name} has no module to replace")
        return model


MODELS = [
    Model("ResNet-18, batch norm", (32, 3, 32, 32), resnet18, quick=True),
    Model("MobileNetV2, batch norm", (32, 3, 64, 64), mobilenet_v2, quick=True),
    Model("ViT-Tiny, layer norm", (8, 3, 224, 224), ViT),
    Model("U-Net, group norm", (4, 4, 64, 64), UNet, pictures=True),
    Model("AlexNet, local response norm", (16, 3, 227, 227), alexnet),
    Model(
        "ResNet-18, switchable norm", (16, 3, 32, 32), lambda: resnet18(FormulaSwitchableNorm),
        lambda: resnet18(nt.SwitchableNorm), quick=True,
    ),
    Model(
        "codec, GDN", (2, 3, 256, 256), lambda: codec(FormulaGDN), lambda: codec(nt.GDN),
        pictures=True,
    ),
]  # fmt: skip


def calls(model: Model, ours: bool, mode: str) -> tuple[Callable[[], float], Callable[[], Any]]:
    """A training step, which returns the loss, and an evaluation."""
    network = model.make(ours)
    run = torch.compile(network) if mode == "compile" else network
    torch.manual_seed(1)
    x, labels = torch.rand(model.shape), torch.randint(CLASSES, model.shape[:1])
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)

    def step() -> float:
        network.train()
        optimizer.zero_grad()
        y = run(x)
        loss = (y - x).square().mean() if model.pictures else F.cross_entropy(y, labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    def evaluate() -> Any:
        network.eval()
        with torch.no_grad():
            return run(x)

    return step, evaluate


def measure(model: Model, mode: str, rounds: int) -> Iterator[dict[str, Any]]:
    """A result for the training step and one for evaluation."""
    torch._dynamo.reset()
    pairs = {name: calls(model, name == "normcore", mode) for name in ("normcore", "torch")}
    losses = {name: step() for name, (step, _) in pairs.items()}
    for part, which in enumerate(("training step", "evaluation")):
        turns = take_turns({name: pair[part] for name, pair in pairs.items()}, rounds)
        ratios = sorted(turns["torch"].ratios(turns["normcore"]))
        yield {
            "model": model.name,
            "shape": model.shape,
            "mode": mode,
            "pass": which,
            "ms": {name: 1e3 * turn.median for name, turn in turns.items()},
            "ratio": turns["torch"].ratio(turns["normcore"]),
            "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
            "disturbed": any(turn.disturbed for turn in turns.values()),
            "losses_differ": abs(losses["normcore"] / losses["torch"] - 1),
        }


# ---- how it is told

COLUMNS = ("model", "shape", "mode", "pass", "torch ms", "normcore ms", "ratio", "quartiles")


def cells(result: dict[str, Any]) -> list[str]:
    low, high = result["quartiles"]
    return [
        result["model"],
        "x".join(map(str, result["shape"])),
        result["mode"],
        result["pass"],
        *(f"{result['ms'][name]:.1f}" for name in ("torch", "normcore")),
        f"{'~' if result['disturbed'] else ''}{result['ratio']:.2f}",
        f"{low:.2f} .. {high:.2f}",
    ]


def print_table(results: list[dict[str, Any]]) -> None:
    """By rich where it is installed, else as Markdown."""
    rows = [cells(result) for result in results]
    if importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for column in COLUMNS:
            table.add_column(column, no_wrap=True)
        for row in rows:
            table.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 130).print(table)
        return
    for row in (COLUMNS, ["---"] * len(COLUMNS), *rows):
        print(f"| {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three models, eager, 3 rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--rounds", type=int, help="default: 3 with --quick, else 15")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", action="append", help="only those whose name has this in it")
    parser.add_argument("--mode", choices=["eager", "compile"], action="append")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 15)
    modes = arguments.mode or (["eager"] if arguments.quick else ["eager", "compile"])
    if arguments.model:
        wanted = [part.lower() for part in arguments.model]
        models = [m for m in MODELS if any(part in m.name.lower() for part in wanted)]
    else:
        models = [m for m in MODELS if m.quick or not arguments.quick]
    if not models:
        parser.error(f"--model: none of {', '.join(model.name for model in MODELS)}")

    torch.set_num_threads(arguments.threads)
    nc.set_num_threads(arguments.threads)
    machine = describe(nc, arguments.threads)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{summary(machine)}\n{versions}, load {machine['load']:.1f}", flush=True)
    results = []
    for mode in modes:
        for model in models:
            for result in measure(model, mode, rounds):
                results.append(result)
                print(*cells(result), sep="  ", flush=True)
    print_table(results)
    if any(result["disturbed"] for result in results):
        print("~: something else on the machine held a contender up")
    if arguments.json:
        machine["load_after"] = os.getloadavg()[0]
        document = {"machine": machine, "rounds": rounds, "steps": results}
        documents.save(document, arguments.json)


if __name__ == "__main__":
    main()
