"""The cost of one call on a tiny array from Python, in microseconds, ours and the peers'.

Ours and torch's are timed as statements, exactly as a user writes them; the other peers through
the closure of their `prepare`, which adds about 0.05 us to some 10.
"""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Sequence
from typing import Any

import numpy as np

from .cells import Case, load_cases, select
from .measure import settle
from .peers import Peer
from .workload import Unsupported, make_workload

CELLS = (("layer_norm", "1x768"), ("rms_norm", "1x768"), ("batch_norm/eval", "1x64x8x8 NCHW"))
STATEMENTS = {
    "layer_norm": "nc.layer_norm(x, w, b{out})",
    "rms_norm": "nc.rms_norm(x, w{out})",
    "batch_norm/eval": "nc.batch_norm(x, w, b, running_mean=mean, running_var=var{out})",
}
TORCH_STATEMENTS = {
    "layer_norm": "F.layer_norm(x, shape, w, b)",
    "rms_norm": "F.rms_norm(x, shape, w, 1e-6)",
    "batch_norm/eval": "F.batch_norm(x, mean, var, w, b)",
}


def measure_overhead(nc: Any, peers: Sequence[Peer], quick: bool) -> list[dict[str, Any]]:
    """Microseconds per call: for each cell, the median over many interleaved loops."""
    rows = []
    for op, shape in CELLS:
        case = select(load_cases(), [op], ["f32"], [shape], ["forward"])[0]
        timers, notes = _timers(nc, peers, case)
        for timer in timers.values():
            timer.timeit(200)
        samples: dict[str, list[float]] = {name: [] for name in timers}
        repeats = {name: max(20, int(0.002 / (t.timeit(50) / 50))) for name, t in timers.items()}
        for _ in range(15 if quick else 101):
            for name, timer in timers.items():
                settle()
                timer.timeit(10)
                samples[name].append(timer.timeit(repeats[name]) / repeats[name])
        times = {name: 1e6 * statistics.median(values) for name, values in samples.items()}
        rows.append({"op": op, "shape": shape, "microseconds": times, "notes": notes})
        for peer in peers:
            peer.forget()
    return rows


def _timers(
    nc: Any, peers: Sequence[Peer], case: Case
) -> tuple[dict[str, timeit.Timer], dict[str, str]]:
    work = make_workload(case)
    names: dict[str, Any] = {
        "nc": nc,
        "x": work.x,
        "w": work.params["weight"],
        "b": work.params.get("bias"),
        "mean": work.buffers.get("running_mean"),
        "var": work.buffers.get("running_var"),
        "out": np.empty_like(work.x),
    }
    statement = STATEMENTS[case.name]
    timers = {
        "normcore": timeit.Timer(statement.format(out=""), globals=names),
        "normcore out=": timeit.Timer(statement.format(out=", out=out"), globals=names),
    }
    notes = {}
    for peer in peers:
        if peer.name == "torch":
            timers["torch"] = _torch_timer(case, names)
            continue
        try:
            call = peer.prepare(work, kernel=False).call
            call()
        except Unsupported as reason:
            notes[peer.name] = str(reason)
        else:
            timers[peer.name] = timeit.Timer("call()", globals={"call": call})
    return timers, notes


def _torch_timer(case: Case, names: dict[str, Any]) -> timeit.Timer:
    import torch

    tensors = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in names.items()
    }
    tensors |= {"F": torch.nn.functional, "shape": (case.shape[-1],)}
    return timeit.Timer(TORCH_STATEMENTS[case.name], globals=tensors)
