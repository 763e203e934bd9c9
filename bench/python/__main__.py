"""Command line of the benchmark: `python -m bench.python` from the repository root.

Starts one measuring process per mode (see `worker.py`), joins their results, and shows, saves,
plots or compares them. Exits with 1 when `--fail-above` finds a regression.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as `python bench/python`
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

from rich.console import Console

from bench.python import machine
from bench.python.cells import ITEM_BYTES, load_cases, select
from bench.python.compare import changes, judge
from bench.python.peers import LOADERS
from bench.python.report import markdown, print_report

QUICK_PEERS = ["torch"]  # what compiles takes seconds for each cell
EPILOG = """examples:
  python -m bench.python --quick                        every cell once over, against torch
  python -m bench.python --dtype f32 --dtype bf16 --peers torch,compile --json new.json
  python -m bench.python --op layer_norm --shape 4096x768 --mode both
  python -m bench.python --load new.json --compare old.json --fail-above 1.15
  python -m bench.python --load new.json --markdown --plot speed.svg
  python -m bench.python --overhead
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.python",
        description="Times normcore against a copy of memory and against other libraries.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cells = parser.add_argument_group("cells (each may be given several times)")
    cells.add_argument("--op", action="append", default=[], help="pattern, e.g. batch_norm/eval")
    cells.add_argument("--dtype", action="append", default=[], choices=sorted(ITEM_BYTES))
    cells.add_argument("--shape", action="append", default=[], help="e.g. 4096x768, NHWC, 32x*")
    cells.add_argument(
        "--pass", action="append", default=[], dest="direction", choices=["forward", "backward"]
    )
    how = parser.add_argument_group("measurement")
    how.add_argument("--mode", choices=["kernel", "called", "both"], default="kernel")
    how.add_argument("--peers", help=f"list with commas of {', '.join(LOADERS)}; or none")
    how.add_argument("--threads", type=int, help="for all contenders; default all CPUs")
    how.add_argument(
        "--quick", action="store_true", help="fewer, shorter rounds; torch alone unless --peers"
    )
    how.add_argument("--high-priority", action="store_true", help="for a busy machine; needs root")
    how.add_argument("--overhead", action="store_true", help="time single small calls instead")
    how.add_argument("--load", type=Path, metavar="JSON", help="show a saved run, measure nothing")
    result = parser.add_argument_group("results")
    result.add_argument("--json", type=Path, metavar="FILE", help="save the run")
    result.add_argument("--compare", type=Path, metavar="JSON", help="compare with a saved run")
    result.add_argument(
        "--fail-above", type=float, metavar="R", help="exit with 1 if a cell got R times worse"
    )
    result.add_argument("--plot", type=Path, metavar="FILE", help=".png or .svg")
    result.add_argument("--markdown", action="store_true", help="print the README's table only")
    options = parser.parse_args(arguments)

    if options.fail_above is not None and options.compare is None:
        parser.error("--fail-above needs --compare")
    if options.peers is None:
        options.peers = QUICK_PEERS if options.quick else list(LOADERS)
    else:
        options.peers = [p for p in options.peers.split(",") if p and p != "none"]
    unknown = sorted(set(options.peers) - set(LOADERS))
    if unknown:
        parser.error(f"--peers is {', '.join(unknown)}, expected some of {', '.join(LOADERS)}")
    if options.threads is None:
        options.threads = len(machine.available_cpus())
    elif not 1 <= options.threads <= len(machine.available_cpus()):
        parser.error(f"--threads is {options.threads}, expected 1 to the number of CPUs")
    if not options.load and not select(
        load_cases(), options.op, options.dtype, options.shape, options.direction
    ):
        parser.error("no cell of bench/shapes.json matches the filters")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run a measuring process for each mode and join what they found."""
    modes = ["kernel", "called"] if options.mode == "both" else [options.mode]
    if options.overhead:
        modes = ["called"]
    document: dict[str, Any] = {}
    for mode in modes:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "results.json"
            job = {
                "mode": mode,
                "op": options.op,
                "dtype": options.dtype,
                "shape": options.shape,
                "pass": options.direction,
                "peers": options.peers,
                "threads": options.threads,
                "quick": options.quick,
                "overhead": options.overhead,
                "high_priority": options.high_priority,
                "output": str(output),
            }
            subprocess.run(
                [sys.executable, "-m", "bench.python.worker"],
                input=json.dumps(job),
                text=True,
                check=True,
                env=machine.environment(mode, options.threads),
            )
            part = json.loads(output.read_text(encoding="utf-8"))
        if document:
            document["results"] += part["results"]
        else:
            document = part
    document["arguments"] = sys.argv[1:]
    document["date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return document


def main() -> int:
    """Measure or load, then do with the results what was asked."""
    options = parse_arguments()
    # A table that is piped into a file keeps its width.
    console = Console(width=None if sys.stdout.isatty() else 180)
    if options.load:
        document = json.loads(options.load.read_text(encoding="utf-8"))
    else:
        try:
            document = measure(options)
        except subprocess.CalledProcessError as error:
            print(f"the measuring process ended with {error.returncode}", file=sys.stderr)
            return 2
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        print(markdown(document))
    else:
        print_report(document, console)
    if options.plot:
        try:
            from bench.python.plot import save_plot

            save_plot(document, options.plot)
        except ImportError as error:
            console.print(f"no plot: {error}")
    if options.compare:
        old = json.loads(options.compare.read_text(encoding="utf-8"))
        return judge(changes(old, document), options.fail_above, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
