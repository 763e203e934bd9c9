"""The CUDA backend beside torch eager, torch.compile, Triton and a copy on one device.

Rates are model bytes over the time: each tensor that the operation must move, counted once. The
copy of x is the ceiling. Times are CUDA events, medians over rounds in which the contenders take
turns; the second-level cache is flushed before each call, and the device sleeps while the host
queues the call, so that no gap of the host is in them. The host's own time stands beside.

A cell and pass is a line of JSON as soon as it is measured. torch.compile comes last, in few cells,
and only where what was timed is a compiled graph.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

import normcore as nc

try:
    import triton_rows
except ImportError as e:
    if (e.name or "").partition(".")[0] != "triton":
        raise
    triton_rows = None

Calls = dict[str, Callable[[], object]]
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "f16": torch.float16, "f64": torch.float64}
GROUPS = 32


@dataclass(frozen=True)
class Cell:
    op: str
    shape: tuple[int, ...]
    variant: str = ""  # "eval": with running statistics; "last": channels innermost
    quick: bool = False
    compiled: bool = False

    @property
    def rows(self) -> bool:
        return self.op in ("layer_norm", "rms_norm")

    @property
    def traffic(self) -> tuple[int, int]:
        """Tensors read and written at least, forward and backward."""
        return (3, 5) if self.op == "batch_norm" and self.variant != "eval" else (2, 3)


# QuACK's list of rows, then images.
CELLS = [
    Cell("layer_norm", (32768, 256)),
    Cell("layer_norm", (32768, 1024), quick=True, compiled=True),
    Cell("layer_norm", (32768, 4096), quick=True, compiled=True),
    Cell("layer_norm", (32768, 8192)),
    Cell("layer_norm", (16384, 16384)),
    Cell("layer_norm", (2048, 131072), quick=True),
    Cell("layer_norm", (1024, 262144)),
    Cell("layer_norm", (131072, 128), quick=True),
    Cell("rms_norm", (32768, 256)),
    Cell("rms_norm", (32768, 1024)),
    Cell("rms_norm", (32768, 4096), quick=True, compiled=True),
    Cell("rms_norm", (32768, 8192)),
    Cell("batch_norm", (32, 64, 112, 112)),
    Cell("batch_norm", (64, 256, 56, 56), quick=True, compiled=True),
    Cell("batch_norm", (64, 256, 56, 56), "last", quick=True),
    Cell("batch_norm", (64, 256, 56, 56), "eval"),
    Cell("group_norm", (32, 256, 56, 56), quick=True, compiled=True),
    Cell("group_norm", (32, 256, 56, 56), "last"),
    Cell("instance_norm", (32, 128, 64, 64), quick=True),
]


class EventClock:
    """Times on a CUDA device."""

    def __init__(self) -> None:
        self.flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
        torch.cuda._sleep(1000)
        self.cycles_per_us = 1.0
        self.cycles_per_us = 10**7 / self._event_us(lambda: torch.cuda._sleep(10**7))

    def wait(self) -> None:
        torch.cuda.synchronize()

    def microseconds(self, call: Callable[[], object], host_us: float) -> float:
        self.flush.zero_()
        # While it sleeps the host queues the events and the call.
        torch.cuda._sleep(int((min(2 * host_us, 5000) + 50) * self.cycles_per_us))
        return self._event_us(call)

    def _event_us(self, call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return 1000 * start.elapsed_time(end)


class HostClock:
    """Times on torch's CPU, which stands in for a device where this file is tested."""

    cycles_per_us = 0.0

    def wait(self) -> None:
        pass

    def microseconds(self, call: Callable[[], object], host_us: float) -> float:
        start = time.perf_counter()
        call()
        return 1e6 * (time.perf_counter() - start)


Clock = EventClock | HostClock


class Compiled:
    """`function` by torch.compile, which knows whether a compiled graph is what runs.

    Dynamo falls back to the function itself where it meets its limits, with no more than a warning.
    """

    def __init__(self, function: Callable[..., torch.Tensor], inner: Callable | None = None):
        # What a cell left behind counts against the limit of the next.
        torch._dynamo.reset()
        self.graphs = self.runs = self.calls = 0
        self._compile = inner
        self._call = torch.compile(function, backend=self._backend, dynamic=False, fullgraph=True)

    def _backend(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        if self._compile is None:
            from torch._inductor.compile_fx import compile_fx

            self._compile = compile_fx
        run = self._compile(graph, inputs)
        self.graphs += 1

        def counted(*arguments: torch.Tensor) -> object:
            self.runs += 1
            return run(*arguments)

        return counted

    def __call__(self, *arguments: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self._call(*arguments)

    def check(self) -> None:
        """Raise unless every call so far ran a compiled graph."""
        if self.graphs == 0 or self.runs < self.calls:
            raise RuntimeError(
                f"torch.compile: {self.runs} of {self.calls} calls ran one of {self.graphs} "
                "compiled graphs; the others were eager"
            )


class Problem:
    """The arrays of a cell, and the contenders' calls on them."""

    def __init__(self, cell: Cell, dtype: torch.dtype, device: str) -> None:
        self.cell = cell
        make = torch.Generator(device).manual_seed(0)

        def array(*shape: int) -> torch.Tensor:
            values = torch.randn(shape, generator=make, device=device).to(dtype)
            if len(shape) == 4 and cell.variant == "last":
                values = values.contiguous(memory_format=torch.channels_last)
            return values

        self.width = cell.shape[-1] if cell.rows else cell.shape[1]
        self.x, self.dy = array(*cell.shape), array(*cell.shape)
        self.w, self.b = array(self.width), array(self.width)
        self.mean = torch.zeros(self.width, device=device)
        self.var = torch.ones(self.width, device=device)
        self.leaves = [t.detach().clone().requires_grad_() for t in (self.x, self.w, self.b)]
        self.compiled: Compiled | None = None

    def normcore(self) -> Calls:
        op, options = self.cell.op, {}
        if op == "batch_norm" and self.cell.variant == "eval":
            options = {"running_mean": self.mean, "running_var": self.var}
        elif op == "batch_norm":
            options = {"training": True}
        first = (self.x, GROUPS) if op == "group_norm" else (self.x,)
        parameters = (self.w,) if op == "rms_norm" else (self.w, self.b)
        forward, backward = getattr(nc, op), getattr(nc, op + "_backward")
        _, stats = forward(*first, *parameters, **options, return_stats=True)
        return {
            "forward": lambda: forward(*first, *parameters, **options),
            "backward": lambda: backward(self.dy, *first, *parameters, **options, stats=stats),
        }

    def function(self, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The operation by torch."""
        op = self.cell.op
        if op == "layer_norm":
            return F.layer_norm(x, (self.width,), w, b)
        if op == "rms_norm":
            return F.rms_norm(x, (self.width,), w, eps=1e-6)
        if op == "group_norm":
            return F.group_norm(x, GROUPS, w, b)
        if op == "instance_norm":
            return F.instance_norm(x, weight=w, bias=b)
        if self.cell.variant == "eval":
            return F.batch_norm(x, self.mean, self.var, w, b, training=False)
        return F.batch_norm(x, None, None, w, b, training=True)

    def torch(self) -> Calls:
        return self._by_autograd(self.function)

    def compile(self) -> Calls:
        # The compiled backward passes run many times over one graph.
        import torch._functorch.config as functorch

        functorch.donated_buffer = False
        # A closure: a method's `self` would be a guard of the graph.
        function = self.function
        self.compiled = Compiled(lambda x, w, b: function(x, w, b))
        calls = self._by_autograd(self.compiled)
        kind = type(self.y.grad_fn).__name__
        if "Compiled" not in kind:
            raise RuntimeError(f"torch.compile: the backward pass is {kind}, which is eager")
        return calls

    def _by_autograd(self, function: Callable[..., torch.Tensor]) -> Calls:
        self.y = y = function(*self.leaves)
        wanted = self.leaves[:2] if self.cell.op == "rms_norm" else self.leaves
        return {
            "forward": lambda: function(self.x, self.w, self.b),
            "backward": lambda: torch.autograd.grad(y, wanted, self.dy, retain_graph=True),
        }

    def triton(self) -> Calls:
        assert triton_rows is not None
        centered = self.cell.op == "layer_norm"
        x, w, dy, eps = self.x, self.w, self.dy, 1e-5 if centered else 1e-6
        bias = self.b if centered else None
        options = {"centered": centered, "biased": centered}
        return {
            "forward": lambda: triton_rows.forward(x, w, bias, eps, centered=centered),
            "backward": lambda: triton_rows.backward(dy, x, w, eps, **options),
        }

    def copy(self) -> Calls:
        to = torch.empty_like(self.x)
        return {"forward": lambda: to.copy_(self.x), "backward": lambda: to.copy_(self.x)}


def first(result: object) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result[0]


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    got, want = got.detach().float(), want.detach().float()
    return float((got - want).abs_().max() / want.abs().max().clamp_min(1e-30))


def host_time(call: Callable[[], object], clock: Clock) -> float:
    """Microseconds that the host takes to queue a call."""
    times = []
    for _ in range(5):
        clock.wait()
        start = time.perf_counter()
        for _ in range(4):
            call()
        times.append(1e6 * (time.perf_counter() - start) / 4)
    clock.wait()
    return statistics.median(times)


def measure(
    cell: Cell, dtype: str, names: list[str], clock: Clock, rounds: int, device: str
) -> Iterator[dict]:
    """A line of results for each pass."""
    problem = Problem(cell, DTYPES[dtype], device)
    calls: dict[str, Calls] = {}
    failed: dict[str, str] = {}

    def attempt(name: str, step: Callable[[], object]) -> object:
        """One contender's fault is no other's."""
        try:
            result = step()
            clock.wait()
            return result
        except Exception as e:
            failed[name] = " ".join(f"{type(e).__name__}: {e}".split())[:300]
            return None

    for name in names:
        made = attempt(name, getattr(problem, name))
        if made is not None:
            calls[name] = made
    for way, tensors in zip(("forward", "backward"), cell.traffic, strict=True):
        running = {name: of[way] for name, of in calls.items()}
        host, results, differs = {}, {}, {}
        for name, call in list(running.items()):
            results[name] = attempt(name, call)  # for the first time, to warm up
            if name not in failed:
                host[name] = attempt(name, lambda call=call: host_time(call, clock))
        of = results.get("torch")
        for name, result in results.items():
            if name not in ("torch", "copy") and result is not None and of is not None:
                differs[name] = attempt(
                    name, lambda r=result, of=of: difference(first(r), first(of))
                )
        del results, of
        running = {name: call for name, call in running.items() if name not in failed}
        times: dict[str, list[float]] = {name: [] for name in running}
        for _ in range(rounds):
            for name, call in running.items():
                if name not in failed:
                    us = attempt(name, lambda c=call, h=host[name]: clock.microseconds(c, h))
                    times[name].append(us)
        if problem.compiled is not None and "compile" not in failed:
            attempt("compile", problem.compiled.check)
        us = {name: statistics.median(t) for name, t in times.items() if name not in failed}
        moved = {name: (2 if name == "copy" else tensors) * problem.x.nbytes for name in us}
        rate = {name: moved[name] / t / 1e3 for name, t in us.items()}
        share = {n: r / rate["copy"] for n, r in rate.items() if n != "copy" and "copy" in rate}
        yield {
            "op": cell.op,
            "variant": cell.variant,
            "shape": cell.shape,
            "dtype": dtype,
            "pass": way,
            "us": us,
            "host_us": {name: host[name] for name in us},
            "GB/s": rate,
            "of_copy": share,
            "differs_from_torch": {n: d for n, d in differs.items() if d is not None},
            "compiled_graphs": problem.compiled.graphs if problem.compiled else 0,
            "failed": dict(failed),
        }


COLUMNS = ("normcore", "torch", "triton", "compile", "copy")


def heading() -> str:
    return (
        f"{'op':13} {'shape':17} {'':4} {'dtype':5} {'pass':8} "
        + " ".join(f"{name:>8}" for name in COLUMNS)
        + f" {'of copy':>8} {'host us':>8} {'torch':>6}   (GB/s)"
    )


def row(line: dict) -> str:
    cells = [f"{line['GB/s'][n]:8.0f}" if n in line["GB/s"] else f"{'-':>8}" for n in COLUMNS]
    share = line["of_copy"].get("normcore")
    cells.append(f"{share:8.2f}" if share else f"{'-':>8}")
    for name, width in (("normcore", 8), ("torch", 6)):
        us = line["host_us"].get(name)
        cells.append(f"{us:{width}.1f}" if us else f"{'-':>{width}}")
    size = "x".join(map(str, line["shape"]))
    text = f"{line['op']:13} {size:17} {line['variant']:4} {line['dtype']:5} {line['pass']:8} "
    return text + " ".join(cells)


def cut(cell: Cell, elements: int | None) -> Cell:
    """The cell with fewer rows or smaller images, so that x has about so many elements."""
    shape = list(cell.shape)
    for axis in (0, 2, 3) if len(shape) > 2 else (0,):
        count = torch.Size(shape).numel()
        if elements is not None and count > elements:
            shape[axis] = max(1, shape[axis] * elements // count)
    return replace(cell, shape=tuple(shape))


def plan(args: argparse.Namespace) -> Iterator[tuple[Cell, str, list[str]]]:
    """(cell, dtype, contenders), the most telling first; what is compiled comes last."""
    cells = [c for c in CELLS if not args.op or c.op in args.op]
    for cell in cells:
        if cell.quick or not args.quick:
            for dtype in args.dtype or ("bf16", "f32"):
                names = ["normcore", "torch", "copy"]
                if triton_rows and not args.quick and cell.rows:
                    size = cell.shape[-1] * DTYPES[dtype].itemsize
                    names += ["triton"] * (size <= triton_rows.LONGEST_ROW)
                yield cell, dtype, names
    if not args.quick:
        for cell in cells:
            if cell.compiled:
                for dtype in args.dtype or ("bf16", "f32"):
                    yield cell, dtype, ["normcore", "torch", "compile", "copy"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="append a line there for each result")
    parser.add_argument("--quick", action="store_true", help="few cells; ours, torch and a copy")
    parser.add_argument("--rounds", type=int, help="default 10 with --quick, else 20")
    parser.add_argument("--op", action="append", help="only this operation")
    parser.add_argument("--dtype", choices=list(DTYPES), action="append")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a trial")
    parser.add_argument("--elements", type=int, help="cut shapes down to about so many")
    parser.add_argument("--seconds", type=float, help="begin with no further cell after so many")
    args = parser.parse_args()
    if args.device == "cuda" and not nc.cuda.is_available():
        sys.exit("bench/gpu.py needs a CUDA device and a build with -DNORMCORE_CUDA=ON")
    clock: Clock = EventClock() if args.device == "cuda" else HostClock()
    rounds = args.rounds or (10 if args.quick else 20)

    def write(line: dict) -> None:
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(line) + "\n")

    facts = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "the CPU, a trial",
        "torch": torch.__version__,
        "triton": sys.modules["triton"].__version__ if triton_rows else None,
        "normcore": nc.__version__,
        "cycles_per_us": clock.cycles_per_us,
        "rounds": rounds,
    }
    write(facts)
    print(*(f"{name} {value}" for name, value in facts.items()), sep=", ")
    print(heading(), flush=True)
    begun = time.monotonic()
    count = bad = left = 0
    shares = []
    for cell, dtype, names in plan(args):
        if args.seconds is not None and time.monotonic() - begun > args.seconds:
            left += 1
            continue
        for line in measure(cut(cell, args.elements), dtype, names, clock, rounds, args.device):
            write(line)
            print(row(line), flush=True)
            for name, error in line["failed"].items():
                print(f"    {name}: {error}", flush=True)
            count += 1
            bad += len(line["failed"]) > 0
            shares.append(line["of_copy"].get("normcore", 0))
        if args.device == "cuda":
            torch.cuda.empty_cache()
            try:
                clock.wait()
            except Exception as e:
                sys.exit(f"the device is spoilt: {e}")
    middle = f", median share of the copy {statistics.median(shares):.2f}" if shares else ""
    late = f", no time for {left} more cells" if left else ""
    print(f"{count} lines, {bad} with a failure{late}{middle}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
