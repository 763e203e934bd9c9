"""Whole training steps in torch, ours and others' in turns.

The examples in torch and bench/whole_steps.py use it. The rivals are modules of normcore.torch with
the forward that one would write in torch: what torch has no operator for. They have the same
parameters and running statistics, and start alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

import normcore.torch as nt

from .measure import Contender


class FormulaGDN(nt.GDN):
    """GDN of images by a convolution of 1 x 1 of the squares."""

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.effective_gamma[:, :, None, None]
        pool = F.conv2d(x.square(), gamma, self.effective_beta)
        return x * (pool.sqrt() if self.inverse else pool.rsqrt())


class FormulaSwitchableNorm(nt.SwitchableNorm):
    """Switchable norm of images: layer and batch statistics follow from those of instances."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            raise ValueError("mask is given, and switchable norm takes none")
        mean = x.mean((2, 3), keepdim=True)
        var = x.var((2, 3), keepdim=True, correction=0)
        square = var + mean.square()
        layer_mean = mean.mean(1, keepdim=True)
        layer_var = square.mean(1, keepdim=True) - layer_mean.square()
        by_channel = (1, -1, 1, 1)
        if self.training:
            batch_mean = mean.mean(0, keepdim=True)
            batch_var = square.mean(0, keepdim=True) - batch_mean.square()
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(batch_mean.detach().flatten(), self.momentum)
            self.running_var.lerp_(batch_var.detach().flatten(), self.momentum)
        else:
            batch_mean = self.running_mean.view(by_channel)
            batch_var = self.running_var.view(by_channel)
        w, v = self.mean_logits.softmax(0), self.var_logits.softmax(0)
        mean = w[0] * mean + w[1] * layer_mean + w[2] * batch_mean
        var = v[0] * var + v[1] * layer_var + v[2] * batch_var
        x_hat = (x - mean) * (var + self.eps).rsqrt()
        return x_hat * self.weight.view(by_channel) + self.bias.view(by_channel)


def take_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Contender]:
    """Time each call once a round, after two calls that do not count."""
    contenders = {name: Contender(name, call) for name, call in calls.items()}
    for call in calls.values():
        call()
        call()
    for _ in range(rounds):
        for contender in contenders.values():
            contender.run_timed()
    return contenders


def markdown(contenders: Mapping[str, Contender], losses: Mapping[str, float]) -> str:
    """A table of training steps: the median time of each, the median over the rounds of its ratio
    to the first, and its loss before it has learnt anything."""
    first, *_ = contenders.values()
    rows = [f"| training step | ms | over {first.name}'s | first loss |"]
    rows.append("| --- | ---: | ---: | ---: |")
    for name, contender in contenders.items():
        ratio = f"{contender.ratio(first):.2f}" if contender is not first else ""
        rows.append(f"| {name} | {1e3 * contender.median:.1f} | {ratio} | {losses[name]:.5f} |")
    return "".join(f"{row}\n" for row in rows)
