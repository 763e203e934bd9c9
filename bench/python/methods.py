"""What each benchmarked function takes beside x, in the order of its call: the table of methods.

A new method is a line here, its cells and traffic in shapes.json, a formula in `formulas.py` and,
where torch has the function itself, a builder in `peers_torch.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

AFFINE = ("weight", "bias")


@dataclass(frozen=True)
class Method:
    """The arguments of a function."""

    params: tuple[str, ...] = AFFINE  # arrays by position; their gradients have the same order
    buffers: tuple[str, ...] = ()  # running statistics, by name; a training call moves them
    counts: tuple[str, ...] = ()  # options of the cell that go by position, before the arrays
    has_stats: bool = True  # whether backward takes what forward has computed
    takes_result: bool = False  # whether backward takes what forward returned, and dy, alone
    shares_ties: bool = False  # whether values that are equal share a gradient, but not in peers


METHODS = {
    "layer_norm": Method(),
    "rms_norm": Method(("weight",)),
    "group_norm": Method(counts=("num_groups",)),
    "instance_norm": Method(),
    "batch_norm": Method(buffers=("running_mean", "running_var")),
    "batch_renorm": Method(buffers=("running_mean", "running_std")),
    "batch_instance_norm": Method(("rho", *AFFINE), ("running_mean", "running_var")),
    "switchable_norm": Method(
        ("mean_logits", "var_logits", *AFFINE), ("running_mean", "running_var")
    ),
    "mean_only_batch_norm": Method(("bias",), ("running_mean",)),
    "lp_batch_norm": Method(buffers=("running_mean", "running_scale")),
    "topk_batch_norm": Method(buffers=("running_mean", "running_scale"), shares_ties=True),
    "gdn": Method(("beta", "gamma"), has_stats=False),
    "divisive_norm": Method(("weights", "sigma"), has_stats=False),
    "weight_norm": Method(("g",), has_stats=False),
    "normalize": Method((), has_stats=False),
    "spectral_norm": Method((), ("u",), has_stats=False, takes_result=True),
    "local_response_norm": Method((), counts=("size",), has_stats=False),
    "local_divisive_norm": Method(("sigma", *AFFINE), has_stats=False),
}


def _around_one(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(0.5, 1.5, n)


def _around_zero(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def _mixing(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(0.0, 2.0 / n, (n, n))


# name of a parameter or buffer: its values, for n channels
VALUES: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "weight": _around_one,
    "bias": _around_zero,
    "g": _around_one,
    "beta": _around_one,
    "gamma": _mixing,
    "weights": _mixing,
    "sigma": _around_one,
    "rho": lambda rng, n: rng.uniform(0.0, 1.0, n),
    "mean_logits": lambda rng, n: rng.standard_normal(3),
    "var_logits": lambda rng, n: rng.standard_normal(3),
    "u": _around_zero,
    "running_mean": lambda rng, n: 0.1 * rng.standard_normal(n),
    "running_var": _around_one,
    "running_std": _around_one,
    "running_scale": _around_one,
}
