"""What each benchmarked function takes beside x, in the order of its call: the table of methods.

Registered methods stand in it by their signatures. A new one is its cells and traffic in
shapes.json; peers are compared where `formulas.py` has a formula, or `peers_torch.py` a builder. A
function that is no registered method is a line here too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
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
    own: tuple[tuple[str, str], ...] = ()  # params of the method's own, and what shape they have
    eps: float = 1e-5  # the function's default

    def values(self, name: str, rng: np.random.Generator, n: int) -> Any:
        """Values of a parameter or buffer for n channels."""
        return VALUES[dict(self.own).get(name, name)](rng, n)


OTHERS = {
    "gdn": Method(("beta", "gamma"), has_stats=False),
    "divisive_norm": Method(("weights", "sigma"), has_stats=False),
    "spectral_norm": Method((), ("u",), has_stats=False, takes_result=True),
    "local_response_norm": Method((), counts=("size",), has_stats=False),
    "local_divisive_norm": Method(("sigma", *AFFINE), has_stats=False),
}
SHARE_TIES = {"topk_batch_norm"}
WITHOUT_BUFFERS = {"instance_norm"}  # few networks give it any


@cache
def methods() -> dict[str, Method]:
    """The table, by the function's name; read when first asked for, as normcore is loaded then."""
    import normcore

    table = {}
    for signature in normcore._core.signatures().values():
        name, options = signature["function"], signature["options"]
        table[name] = Method(
            (*dict(signature["own"]), *signature["affine"]),
            () if name in WITHOUT_BUFFERS else tuple(dict(signature["buffers"])),
            ("num_groups",) if signature["has_groups"] else (),
            has_stats=bool(signature["statistics"]),
            shares_ties=name in SHARE_TIES,
            own=tuple((own, shape) for own, shape in signature["own"]),
            eps=options["eps"]["default"] if "eps" in options else 0.0,
        )
    return table | OTHERS


def _around_one(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(0.5, 1.5, n)


def _around_zero(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def _mixing(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(0.0, 2.0 / n, (n, n))


# The name of a parameter or buffer, or the shape of a method's own: its values, for n channels.
VALUES: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "weight": _around_one,
    "bias": _around_zero,
    "beta": _around_one,
    "gamma": _mixing,
    "weights": _mixing,
    "sigma": _around_one,
    "channels": lambda rng, n: rng.uniform(0.0, 1.0, n),
    "three": lambda rng, n: rng.standard_normal(3),
    "kept": _around_one,
    "u": _around_zero,
    "running_mean": lambda rng, n: 0.1 * rng.standard_normal(n),
    "running_var": _around_one,
    "running_std": _around_one,
    "running_scale": _around_one,
}
