"""The CUDA backend beside torch eager, torch.compile and Triton on one device, in model bytes.

Times by CUDA events, medians over rounds in which the contenders take turns; the second-level cache
is flushed before every call. Model bytes: each tensor that the operation must move, counted once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch._functorch.config
import torch.nn.functional as F

import normcore as nc

try:
    import triton_rows
except ModuleNotFoundError as e:
    if e.name != "triton":
        raise
    triton_rows = None

# (op, shape); QuACK's list of rows, then images.
CELLS = [
    *(("layer_norm", (32768, n)) for n in (256, 1024, 4096, 8192)),
    ("layer_norm", (16384, 16384)),
    ("layer_norm", (2048, 131072)),
    ("layer_norm", (1024, 262144)),
    ("layer_norm", (131072, 128)),
    *(("rms_norm", (32768, n)) for n in (256, 1024, 4096, 8192)),
    ("batch_norm", (32, 64, 112, 112)),
    ("batch_norm", (64, 256, 56, 56)),
    ("group_norm", (32, 256, 56, 56)),
    ("instance_norm", (32, 128, 64, 64)),
]
# Tensors read and written at least: forward and backward.
TRAFFIC = {"batch_norm": (3, 5)}


def contenders(op: str, x: torch.Tensor, dy: torch.Tensor) -> dict[str, dict[str, Callable]]:
    """Forward and backward calls of each library, by name of the pass."""
    width = x.shape[-1] if op in ("layer_norm", "rms_norm") else x.shape[1]
    w = torch.randn(width, device=x.device, dtype=x.dtype)
    b = torch.randn_like(w)
    options = {"training": True} if op == "batch_norm" else {}
    first = (x, 32) if op == "group_norm" else (x,)
    parameters = (w,) if op == "rms_norm" else (w, b)
    ours = getattr(nc, op)
    _, stats = ours(*first, *parameters, **options, return_stats=True)
    ours_backward = getattr(nc, op + "_backward")

    def theirs(x, w, b):
        return {
            "layer_norm": lambda: F.layer_norm(x, (width,), w, b),
            "rms_norm": lambda: F.rms_norm(x, (width,), w),
            "batch_norm": lambda: F.batch_norm(x, None, None, w, b, training=True),
            "group_norm": lambda: F.group_norm(x, 32, w, b),
            "instance_norm": lambda: F.instance_norm(x, weight=w, bias=b),
        }[op]()

    leaves = [t.detach().clone().requires_grad_() for t in (x, w, b)]
    compiled = torch.compile(theirs)
    passes: dict[str, dict[str, Callable]] = {
        "forward": {"normcore": lambda: ours(*first, *parameters, **options)},
        "backward": {
            "normcore": lambda: ours_backward(dy, *first, *parameters, stats=stats, **options)
        },
    }
    wanted = leaves[:2] if op == "rms_norm" else leaves
    for name, call in (("torch", theirs), ("compile", compiled)):
        y = call(*leaves)
        passes["forward"][name] = lambda call=call: call(x, w, b)
        passes["backward"][name] = lambda y=y: torch.autograd.grad(y, wanted, dy, retain_graph=True)
    rows = op in ("layer_norm", "rms_norm") and width * x.element_size()
    if triton_rows and 0 < rows <= triton_rows.LONGEST_ROW:
        centered = op == "layer_norm"
        bias = b if centered else None
        passes["forward"]["triton"] = lambda: triton_rows.forward(
            x, w, bias, 1e-5, centered=centered
        )
        passes["backward"]["triton"] = lambda: triton_rows.backward(
            dy, x, w, 1e-5, centered=centered, biased=centered
        )
    return passes


def milliseconds(calls: dict[str, Callable], flush: torch.Tensor, rounds: int) -> dict[str, float]:
    """The median time of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--op", action="append", help="only this operation")
    parser.add_argument("--dtype", choices=["bf16", "f32"], action="append")
    args = parser.parse_args()
    if not nc.cuda.is_available():
        sys.exit("bench/gpu.py needs a CUDA device and a build with -DNORMCORE_CUDA=ON")
    # The compiled backward passes run many times over one graph.
    torch._functorch.config.donated_buffer = False
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    results = []
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}", f"normcore {nc.__version__}")
    print(
        f"{'op':14} {'shape':20} {'dtype':5} {'pass':9} {'GB/s: normcore':>15} "
        f"{'torch':>7} {'compile':>7} {'triton':>7}"
    )
    for op, shape in CELLS:
        for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "f32")):
            if (args.op and op not in args.op) or (args.dtype and name not in args.dtype):
                continue
            x = torch.randn(shape, device="cuda").to(dtype)
            dy = torch.randn_like(x)
            both = contenders(op, x, dy)
            for (way, calls), traffic in zip(both.items(), TRAFFIC.get(op, (2, 3)), strict=True):
                ms = milliseconds(calls, flush, args.rounds)
                rate = {k: traffic * x.nbytes / t / 1e6 for k, t in ms.items()}
                results.append(
                    {"op": op, "shape": shape, "dtype": name, "pass": way, "ms": ms, "GB/s": rate}
                )
                size = "x".join(map(str, shape))
                rates = f"{rate['normcore']:15.0f} {rate['torch']:7.0f} {rate['compile']:7.0f}"
                rates += f" {rate['triton']:7.0f}" if "triton" in rate else f" {'-':>7}"
                print(f"{op:14} {size:20} {name:5} {way:9} {rates}", flush=True)
            del x, dy, both
    if args.json:
        facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        args.json.write_text(json.dumps(facts | {"results": results}, indent=1))


if __name__ == "__main__":
    main()
