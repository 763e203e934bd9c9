"""Prints the table of docs/exactness.md: errors at large means, ours and other libraries'.

    python bench/accuracy.py

The data is float32, normal with variance 1 around the mean of the row. An error is the largest
absolute difference from a float64 computation in two passes on the same float32 data. Libraries
that are not installed are left out.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import numpy as np

import normcore as nc

MEANS = (0, 10, 100, 1000, 1e4, 1e6)
IMAGES = (4, 64, 16, 16)  # group norm, 8 groups
ROWS = (256, 1024)  # layer norm
GROUPS = 8
EPS = 1e-5

Call = Callable[[np.ndarray], np.ndarray]


def exact(x: np.ndarray) -> np.ndarray:
    """Normalize the last axis in float64, in two passes."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    scaled: np.ndarray = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + EPS)
    return scaled


def exact_groups(x: np.ndarray) -> np.ndarray:
    """Group norm by `exact`: a group of a sample is contiguous in NCHW."""
    return exact(x.reshape(len(x), GROUPS, -1)).reshape(x.shape)


def channels_last(x: np.ndarray) -> np.ndarray:
    """The same values with the channels innermost in memory; the shape stays NCHW."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def contenders() -> list[tuple[str, bool, Call]]:
    """Name, whether it is a group norm, and the call."""
    calls: list[tuple[str, bool, Call]] = [
        ("normcore `group_norm`", True, lambda x: nc.group_norm(x, GROUPS, eps=EPS)),
        (
            "normcore `group_norm`, channels-last",
            True,
            lambda x: nc.group_norm(channels_last(x), GROUPS, eps=EPS),
        ),
        ("normcore `layer_norm`", False, lambda x: nc.layer_norm(x, eps=EPS)),
    ]
    try:
        import torch
        from torch.nn import functional
    except ImportError:
        print("torch is not installed")
    else:

        def torch_group_norm(x: np.ndarray, memory_format: torch.memory_format) -> np.ndarray:
            tensor = torch.from_numpy(x).contiguous(memory_format=memory_format)
            return functional.group_norm(tensor, GROUPS, eps=EPS).numpy()

        name = f"torch {importlib.metadata.version('torch')}"
        calls += [
            (
                f"{name} `group_norm`",
                True,
                lambda x: torch_group_norm(x, torch.contiguous_format),
            ),
            (
                f"{name} `group_norm`, channels-last",
                True,
                lambda x: torch_group_norm(x, torch.channels_last),
            ),
            (
                f"{name} `layer_norm`",
                False,
                lambda x: functional.layer_norm(torch.from_numpy(x), x.shape[-1:], eps=EPS).numpy(),
            ),
        ]
    try:
        import jax
    except ImportError:
        print("jax is not installed")
    else:
        calls.append(
            (
                f"jax {jax.__version__} `nn.standardize`",
                False,
                lambda x: np.asarray(jax.nn.standardize(jax.numpy.asarray(x), epsilon=EPS)),
            )
        )
    return calls


def main() -> None:
    rng = np.random.default_rng(0)
    noise = {shape: rng.standard_normal(shape) for shape in (IMAGES, ROWS)}
    print(f"numpy {np.__version__}, normcore {nc.__version__} on {nc.get_isa()}\n")
    print(f"| | {' | '.join(f'{mean:g}' for mean in MEANS)} |")
    print(f"|---|{'---:|' * len(MEANS)}")
    for name, grouped, call in contenders():
        errors = []
        for mean in MEANS:
            x = (noise[IMAGES if grouped else ROWS] + mean).astype(np.float32)
            wanted = exact_groups(x) if grouped else exact(x)
            errors.append(np.abs(call(x).astype(np.float64) - wanted).max())
        print(f"| {name} | {' | '.join(f'{error:.1e}' for error in errors)} |")


if __name__ == "__main__":
    main()
