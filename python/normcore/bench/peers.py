"""The peers: other libraries that do the same work. Each is used when importable.

A peer is built once per run and asked for each case for a `Prepared`: a call to time, and how to
read its results for the check. It raises `Unsupported` where it has no such op, dtype or pass.
A new peer is a class with this protocol and a line in `LOADERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .workload import Workload


@dataclass(frozen=True)
class Prepared:
    """A peer's call on one workload."""

    call: Callable[[], Any]
    results: Callable[[Any], Sequence[np.ndarray]]  # as `workload.our_results`, float arrays


class Peer(Protocol):
    """What each peer module offers."""

    name: str
    version: str

    def prepare(self, work: Workload, kernel: bool) -> Prepared:
        """The call for this workload; may compile."""
        ...

    def forget(self) -> None:
        """Drop what was compiled for the last case."""
        ...


# name: (the module of this package, its class, the libraries it imports)
LOADERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "torch": ("peers_torch", "TorchEager", ("torch",)),
    "compile": ("peers_torch", "TorchCompile", ("torch",)),
    "jax": ("peers_array", "Jax", ("jax",)),
    "onnxruntime": ("peers_onnx", "OnnxRuntime", ("onnx", "onnxruntime")),
    "openvino": ("peers_onnx", "OpenVino", ("onnx", "openvino")),
    "numpy": ("peers_array", "NumPy", ("numpy",)),
}
FOR_SCALE = ("numpy",)  # shown, but never counted as the fastest peer
CROWDED = ("jax",)  # XLA's threads and the one that waits for them preempt each other


def load_peers(names: Sequence[str], threads: int) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can be had, and why each of the others cannot."""
    peers: list[Peer] = []
    absent: dict[str, str] = {}
    for name in names:
        module, class_name, libraries = LOADERS[name]
        try:
            for library in libraries:
                importlib.import_module(library)
            loaded = importlib.import_module(f"{__package__}.{module}")
            peers.append(getattr(loaded, class_name)(threads))
        except Exception as error:  # a library may also fail on its own while it starts
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return peers, absent
