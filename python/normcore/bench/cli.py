"""Command line of the benchmark: `python -m normcore bench [COMMAND]`.

`run` starts one measuring process per mode (see `worker.py`) and joins their results, which the
other commands show, plot and compare. The exit status is 1 where `--fail-above` finds a regression.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from . import documents, machine, native, require, sweep, tables
from .again import disturbed, replaced
from .cells import ITEM_BYTES, load_cases, matches, select
from .compare import WITNESS, changes, judge
from .lines import AXES, LINES
from .peers import LOADERS
from .report import print_report
from .sweep_report import print_sweep, save_sweep_plot
from .tables import markdown

Document = dict[str, Any]
QUICK_PEERS = ["torch"]  # what compiles takes seconds for each cell
WIDTH = 180  # of a table that is piped into a file
EPILOG = """Without a command: run. Each command has its own --help.

examples:
  python -m normcore bench --quick                      every cell once over, against torch
  python -m normcore bench --dtype f32 --dtype bf16 --peers torch,compile --json new.json
  python -m normcore bench --op layer_norm --shape 4096x768 --mode both
  python -m normcore bench --overhead                   single small calls
  python -m normcore bench show new.json --plot speed.svg
  python -m normcore bench --again new.json --json new.json
  python -m normcore bench compare old.json new.json --fail-above 1.15
  python -m normcore bench sweep --axis "row width" --op layer_norm --plot sweep.svg
"""


# ---- the command line ------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; `command` is the function to call with it."""
    parser = argparse.ArgumentParser(
        prog="python -m normcore bench",
        description="Times normcore against a copy of memory and against other libraries.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_run, _add_show, _add_compare, _add_sweep, _add_tables):
        add(commands)
    if not arguments or arguments[0] not in {*commands.choices, "-h", "--help"}:
        arguments = ["run", *arguments]
    options = parser.parse_args(arguments)
    options.check(commands.choices[arguments[0]], options)
    return options


def _add_run(commands: Any) -> None:
    text = "measure the cells of shapes.json, with what other libraries take for the same"
    parser = commands.add_parser("run", help=text, description=text)
    parser.set_defaults(command=run, check=_check_run)
    cells = parser.add_argument_group("cells (each may be given several times)")
    _add_filters(cells, [])
    cells.add_argument("--shape", action="append", default=[], help="e.g. 4096x768, NHWC, 32x*")
    how = parser.add_argument_group("measurement")
    how.add_argument("--mode", choices=["kernel", "called", "both"], default="kernel")
    how.add_argument("--peers", help=f"list with commas of {', '.join(LOADERS)}; or none")
    how.add_argument("--threads", type=int, help="for all contenders; default all CPUs")
    how.add_argument(
        "--quick", action="store_true", help="fewer, shorter rounds; torch alone unless --peers"
    )
    how.add_argument(
        "--again",
        type=Path,
        metavar="JSON",
        help="only what was disturbed in that run; the rest is its own, as are peers and threads",
    )
    how.add_argument("--high-priority", action="store_true", help="for a busy machine; needs root")
    how.add_argument("--machine", metavar="NAME", help="what tables call it; default its CPU")
    how.add_argument("--overhead", action="store_true", help="time single small calls instead")
    result = parser.add_argument_group("results")
    result.add_argument("--json", type=Path, metavar="FILE", help="save the run")
    result.add_argument("--compare", type=Path, metavar="JSON", help="compare with a saved run")
    _add_fail_above(result)
    _add_forms(result)


def _add_sweep(commands: Any) -> None:
    text = "look for sizes that are slower than their neighbours, and for threads that do not pay"
    parser = commands.add_parser("sweep", help=text, description=sweep.__doc__)
    parser.set_defaults(command=run_sweep, check=_check_sweep)
    lines = parser.add_argument_group("lines (each may be given several times)")
    lines.add_argument("--axis", action="append", default=[], choices=AXES)
    _add_filters(lines, ["f32", "bf16"])
    how = parser.add_argument_group("measurement")
    how.add_argument("--threads", type=int, help="beside one; default all CPUs")
    how.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    result = parser.add_argument_group("results")
    result.add_argument("--json", type=Path, metavar="FILE", help="save the sweep")
    result.add_argument("--plot", type=Path, metavar="FILE", help=".png or .svg")


def _add_filters(parser: Any, dtypes: Sequence[str]) -> None:
    parser.add_argument("--op", action="append", default=[], help="pattern, e.g. batch_norm/eval")
    default = f"; default {' and '.join(dtypes)}" if dtypes else ""
    parser.add_argument(
        "--dtype",
        action="append",
        default=[],
        choices=sorted(ITEM_BYTES),
        help=f"of the tensors{default}",
    )
    parser.add_argument(
        "--pass", action="append", default=[], dest="direction", choices=["forward", "backward"]
    )


def _add_show(commands: Any) -> None:
    text = "show a saved run again"
    parser = commands.add_parser("show", help=text, description=text)
    parser.set_defaults(command=show, check=_check_show)
    parser.add_argument("saved", type=Path, metavar="JSON")
    _add_forms(parser)


def _add_compare(commands: Any) -> None:
    text = "set two saved runs side by side, of this benchmark or of the native one"
    parser = commands.add_parser("compare", help=text, description=native.__doc__)
    parser.set_defaults(command=compare, check=lambda parser, options: None)
    parser.add_argument("old", type=Path, metavar="OLD", help="JSON of the earlier run")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument(
        "--filter", type=re.compile, default="", metavar="REGEX", help="of the cells' names"
    )
    _add_fail_above(parser)


def _add_tables(commands: Any) -> None:
    text = "write the tables and pictures of the documentation from the runs that they name"
    parser = commands.add_parser("tables", help=text, description=tables.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(command=write_tables, check=_check_tables)
    parser.add_argument(
        "--check",
        action="store_true",
        dest="only_check",
        help="write nothing; exit with 1 if one is not up to date",
    )


def _add_fail_above(parser: Any) -> None:
    parser.add_argument(
        "--fail-above", type=float, metavar="R", help="exit with 1 if a cell got R times worse"
    )


def _add_forms(parser: Any) -> None:
    parser.add_argument("--plot", type=Path, metavar="FILE", help=".png or .svg")
    parser.add_argument("--markdown", action="store_true", help="print a table in Markdown only")


def _check_run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.fail_above is not None and options.compare is None:
        parser.error("--fail-above needs --compare")
    if options.again:
        _check_again(parser, options)
    if options.peers is None:
        options.peers = QUICK_PEERS if options.quick else list(LOADERS)
    else:
        options.peers = [p for p in options.peers.split(",") if p and p != "none"]
    unknown = sorted(set(options.peers) - set(LOADERS))
    if unknown:
        parser.error(f"--peers is {', '.join(unknown)}, expected some of {', '.join(LOADERS)}")
    _check_threads(parser, options)
    if not select(load_cases(), options.op, options.dtype, options.shape, options.direction):
        parser.error("no cell of shapes.json matches the filters")
    _check_show(parser, options)


def _check_again(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.peers is not None or options.threads is not None or options.overhead:
        parser.error("--again goes without --peers, --threads and --overhead")
    options.again = documents.load_run(options.again)
    options.peers = ",".join(options.again["peers"])
    options.threads = options.again["machine"]["threads"]
    options.machine = options.machine or options.again["machine"].get("name")


def _check_show(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    # Before anything is measured.
    if options.plot:
        require("matplotlib")
    for file in (getattr(options, "json", None), options.plot):
        if file and not file.resolve().parent.is_dir():
            parser.error(f"there is no folder {file.resolve().parent} for {file.name}")


def _check_sweep(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    _check_threads(parser, options)
    _check_show(parser, options)
    options.lines = [
        line
        for line in LINES
        if (not options.axis or line.axis in options.axis)
        and (not options.op or any(matches(line, pattern) for pattern in options.op))
    ]
    if not options.lines:
        parser.error("no line of the sweep matches the filters")


def _check_tables(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    require("matplotlib")
    options.root = machine.checkout()
    if options.root is None:
        parser.error("this is no checkout of normcore, which has the documentation")


def _check_threads(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    cpus = len(machine.available_cpus())
    if options.threads is None:
        options.threads = cpus
    elif not 1 <= options.threads <= cpus:
        parser.error(f"--threads is {options.threads}, expected 1 to the number of CPUs, {cpus}")


# ---- commands --------------------------------------------------------------------------------


def run(options: argparse.Namespace, console: Console) -> int:
    """Measure, then do with the results what was asked."""
    # Before the measurement, which may take an hour.
    old = documents.load_run(options.compare) if options.compare else None
    try:
        document = measure(options)
    except subprocess.CalledProcessError as error:
        print(f"the measuring process ended with {error.returncode}", file=sys.stderr)
        return 2
    if options.json:
        documents.save(document, options.json)
    _present(document, options, console)
    return judge(changes(old, document), options.fail_above, console) if old else 0


def run_sweep(options: argparse.Namespace, console: Console) -> int:
    """Measure a sweep."""
    document = sweep.run(
        options.lines,
        options.dtype or ["f32", "bf16"],
        options.direction or list(sweep.PASSES),
        options.threads,
        options.quick,
    )
    document = _finished(document, options)
    if options.json:
        documents.save(document, options.json)
    _present_sweep(document, options, console)
    return 0


def show(options: argparse.Namespace, console: Console) -> int:
    """What `run` would have shown."""
    kind, document = documents.load(options.saved)
    if kind == "sweep":
        _present_sweep(document, options, console)
    elif kind == "python":
        _present(document, options, console)
    else:
        raise SystemExit(f"{options.saved} is a {kind} run, expected one of this benchmark")
    return 0


def compare(options: argparse.Namespace, console: Console) -> int:
    """Two runs of one kind, worst changes first."""
    kind, old = documents.load(options.old)
    other, new = documents.load(options.new)
    if kind != other or kind not in ("native", "python"):
        raise SystemExit(f"{options.old} is a {kind} run and {options.new} a {other} one")
    found = native.changes(old, new) if kind == "native" else changes(old, new)
    chosen = [change for change in found if re.search(options.filter, change.key)]
    witness = native.PEER if kind == "native" else WITNESS
    return judge(chosen, options.fail_above, console, witness)


def write_tables(options: argparse.Namespace, console: Console) -> int:
    """Pages and pictures as they should be."""
    stale = tables.write(options.root, options.only_check)
    for name in stale:
        print(f"{name}: {'not up to date' if options.only_check else 'written'}")
    return int(options.only_check and bool(stale))


def _present(document: Document, options: argparse.Namespace, console: Console) -> None:
    if options.markdown:
        print(markdown(document))
    else:
        print_report(document, console)
    if options.plot:
        from .plot import save_plot

        save_plot(document, options.plot)


def _present_sweep(document: Document, options: argparse.Namespace, console: Console) -> None:
    print_sweep(document, console)
    if options.plot:
        save_sweep_plot(document, options.plot)


def _finished(document: Document, options: argparse.Namespace) -> Document:
    """What was measured, as it is saved: a saved run then shows the very same numbers."""
    document.setdefault("arguments", options.arguments)
    document["date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return dict(documents.rounded(document))


def measure(options: argparse.Namespace) -> Document:
    """Run a measuring process for each mode and join what they found."""
    modes = ["kernel", "called"] if options.mode == "both" else [options.mode]
    if options.overhead:
        modes = ["called"]
    filters = (options.op, options.dtype, options.shape, options.direction)
    keys = disturbed(options.again, filters) if options.again else {}
    modes = list(keys) or modes
    document: Document = {}
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
                "keys": keys.get(mode),
                "high_priority": options.high_priority,
                "output": str(output),
            }
            subprocess.run(
                [sys.executable, "-m", "normcore.bench.worker"],
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
    if options.machine:
        document["machine"]["name"] = options.machine
    if options.again:
        document = replaced(options.again, document)
    return _finished(document, options)


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks; the exit status."""
    options = parse_arguments(arguments)
    options.arguments = list(arguments)
    # A table that is piped into a file keeps its width.
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    status: int = options.command(options, console)
    return status
