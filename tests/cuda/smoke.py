"""Calls of every function on a device, by dtype and layout, each compared with the CPU's result.

    python3 tests/cuda/smoke.py [--device cuda|cpu|emulated] [FUNCTION ...]

A line for each call as it ends, then a table. Calls that fail do not stop the others: after one
that spoils the device (an illegal address), hangs or crashes, a new process goes on with the next.
`cpu` takes torch's CPU for the device and `emulated` the kernels of tests/cuda, to try this file.
"""

import argparse
import contextlib
import faulthandler
import os
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cuda_support import TorchCore, device_fault, emulated_core, running_on
from every_call import CASES, Case
from support import DTYPES, arrange

import normcore as nc

SPOILT = 3  # exit status of a process whose device is spoilt
HANG_SECONDS = 30
# Of the largest result. Both sides round once to the dtype, which is half an ulp of each; sums of
# float32, of float64 for float64, are taken in another order.
TOLERANCE = {"float16": 2**-9, "bfloat16": 2**-6, "float32": 2e-5, "float64": 1e-11}
REFUSAL = "expected the CPU"

IMAGES = (3, 6, 5, 7)
# To both sides of the steps of the ladder of row kernels: a part of a warp, warps, blocks, clusters
# of blocks, rows that are streamed; odd lengths.
ROWS = [(5, n) for n in (8, 64, 129, 1024, 4099, 8192, 20000, 40000, 70000, 140000, 300001)]
# Channels without positions; planes of many pieces; pools that no cluster holds.
PLANES = [(37, 12), (2, 6, 64, 64), (2, 6, 190, 201)]
POOLED = ("batch_norm", "instance_norm", "group_norm")


@dataclass(frozen=True)
class Call:
    case: Case
    shape: tuple
    dtype: str
    layout: str = "contiguous"

    def __str__(self):
        return f"{self.case} {'x'.join(map(str, self.shape))} {self.layout} {self.dtype}"

    def arrays(self):
        """The arrays of the call; the same ones in every process."""
        rng = np.random.default_rng(zlib.crc32(str(self).encode()))
        values = self.case.draw(rng, self.shape, DTYPES[self.dtype])
        return {
            k: arrange(v, self.layout) if k in self.case.tensors else v for k, v in values.items()
        }

    def results(self, values):
        return self.case.results(self.case.complete(values, self.shape), self.shape)


def stem(case):
    return case.function.removesuffix("_backward")


def calls():
    """All calls, the most telling first."""
    dtypes = ("float32", "bfloat16", "float16", "float64")
    for dtype in dtypes:
        yield from (Call(case, IMAGES, dtype) for case in CASES)
    rows = [c for c in CASES if stem(c) in ("layer_norm", "rms_norm") and c.options["axis"] == -1]
    pooled = [c for c in CASES if stem(c) in POOLED and "mask" not in c.arrays]
    for dtype in dtypes:
        yield from (Call(case, shape, dtype) for shape in ROWS for case in rows)
        for shape in PLANES:
            cases = [c for c in pooled if len(shape) >= c.least]
            yield from (Call(case, shape, dtype) for case in cases)
            if len(shape) > 2:
                yield from (Call(case, shape, dtype, "channels_last") for case in cases)
    for layout in ("channels_last", "sliced"):
        for dtype in dtypes:
            yield from (Call(case, IMAGES, dtype, layout) for case in CASES)


class Device:
    """Where the calls run that are compared with the CPU's."""

    def __init__(self, name, **options):
        self.core = emulated_core() if name == "emulated" else TorchCore(name, **options)
        if self.core is None:
            sys.exit("NORMCORE_EMULATED_CUDA does not name the folder of the emulated kernels")

    def results(self, call):
        """The results of a call, as NumPy arrays."""
        values = call.arrays()
        if not isinstance(self.core, TorchCore):
            with running_on(self.core):
                return [np.asarray(r) for r in call.results(values)]
        there = {
            k: self.core.to_device(v) if isinstance(v, np.ndarray) else v for k, v in values.items()
        }
        results = [np.asarray(self.core.to_numpy(r)) for r in call.results(there)]
        for tensor in there.values():
            if isinstance(tensor, self.core.torch.Tensor):
                self.core.check_margins(tensor)
        return results


def compare(got, want, dtype):
    """The errors of the results, as parts of what is allowed."""
    assert len(got) == len(want), f"{len(got)} results, expected {len(want)}"
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.shape == b.shape, f"result {i} has shape {a.shape}, expected {b.shape}"
        # A number is Python's on the host, and an array of no axes on a device.
        if a.ndim > 0:
            assert a.dtype == b.dtype, f"result {i} has dtype {a.dtype}, expected {b.dtype}"
        wide, exact = a.astype(np.float64), b.astype(np.float64)
        scale = np.abs(exact).max(initial=1e-30)
        error = np.abs(wide - exact).max(initial=0) / scale
        # Statistics of float32 may come as float64.
        computed = TOLERANCE["float64" if dtype == "float64" else "float32"]
        yield error / max(TOLERANCE.get(b.dtype.name, 0.5), computed)


def attempt(call, device):
    """One of "ok", "refused" and "FAIL", and what there is to say."""
    try:
        with np.errstate(all="ignore"):
            want = [np.asarray(r) for r in call.results(call.arrays())]
            errors = list(compare(device.results(call), want, call.dtype))
        good = all(e <= 1 for e in errors)  # a NaN is not
        said = "errors " + " ".join(f"{e:.2g}" for e in errors) + " of what is allowed"
        return "ok" if good else "FAIL", "" if good else said
    except ValueError as e:
        refused = "CUDA" in str(e) and REFUSAL in str(e)
        return "refused" if refused else "FAIL", str(e)
    except Exception as e:  # whatever it is belongs into the table
        return "FAIL", f"{type(e).__name__}: {e}"


def work(todo, args):
    """In a process of its own: make the calls, a line each."""
    device = Device(args.device)
    print("ready", flush=True)
    for call in todo[args.first :]:
        if call.case.function in args.skip:
            print("skipped it has spoilt the device before", flush=True)
            continue
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        state, said = attempt(call, device)
        fault = device_fault()
        if fault:
            state, said = "FAIL", f"spoils the device: {said or fault}"
        print(state, " ".join(said.split())[:200], flush=True)
        if fault:
            os._exit(SPOILT)
        faulthandler.cancel_dump_traceback_later()


def rounds(todo, args):
    """(call, state, what is said) of each call, from as many processes as it takes."""
    done, spoilt = 0, []
    end = time.monotonic() + args.seconds
    while done < len(todo):
        command = [sys.executable, "-u", __file__, *sys.argv[1:], "--first", str(done)]
        skip = {f for f in spoilt if spoilt.count(f) > 1}
        for function in skip:
            command += ["--skip", function]
        ready = False
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                state, _, said = line.rstrip("\n").partition(" ")
                if not ready:
                    ready = state == "ready"
                    continue
                yield todo[done], state, said
                done += 1
                if time.monotonic() > end:
                    process.kill()
                    return
        if process.returncode == 0 and done == len(todo):
            return
        if not ready:
            sys.exit(f"the process that makes the calls ended with status {process.returncode}")
        if process.returncode != SPOILT:
            yield todo[done], "FAIL", f"ends the process: status {process.returncode}"
            done += 1
        # A function is tried again once; not after a hang or a crash, which take longer.
        spoilt += [todo[done - 1].case.function] * (1 if process.returncode == SPOILT else 2)


def print_table(states):
    """Functions by dtypes: how many of the calls failed, or what became of all."""
    functions = dict.fromkeys(call.case.function for call, _ in states)
    dtypes = [d for d in DTYPES if any(call.dtype == d for call, _ in states)]
    print(f"\n{'':30}" + "".join(f"{d:>18}" for d in dtypes))
    for function in functions:
        cells = []
        for dtype in dtypes:
            of = [s for c, s in states if c.case.function == function and c.dtype == dtype]
            bad = len(of) - of.count("ok") - of.count("refused")
            text = f"{bad} of {len(of)} FAIL" if bad else "+".join(dict.fromkeys(of))
            cells.append(f"{text:>18}")
        print(f"{function:30}" + "".join(cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("function", nargs="*", help="only these, forward and backward")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu", "emulated"])
    parser.add_argument("--most", type=int, default=10**9, help="elements of x at most")
    parser.add_argument("--seconds", type=float, default=1e9, help="end after so many")
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--skip", action="append", default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    todo = [
        call
        for call in calls()
        if np.prod(call.shape) <= args.most
        and (not args.function or stem(call.case) in args.function)
    ]
    if args.first is not None:
        work(todo, args)
        return 0
    states = []
    with contextlib.suppress(BrokenPipeError):
        for call, state, said in rounds(todo, args):
            states.append((call, state))
            print(f"{state:7} {call} {said}".rstrip(), flush=True)
    print_table(states)
    count = {s: sum(1 for _, t in states if t == s) for s in ("ok", "refused", "FAIL", "skipped")}
    said = ", ".join(f"{n} {s}" for s, n in count.items() if n)
    print(f"{said}, of {len(todo)} calls on {args.device}")
    return int(count["FAIL"] > 0)


if __name__ == "__main__":
    assert nc  # its errors are those of the first import
    sys.exit(main())
