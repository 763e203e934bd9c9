"""The tables of the documentation, written from runs that the repository keeps.

A page has them between comments that name the run and what to write of it:

    <!-- speed: bench/results/NAME.json overview -->
    <!-- end of speed -->

`python -m normcore bench tables` fills them in, with the picture `docs/NAME.svg` of the run; a test
compares pages and pictures with the runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from . import documents
from .measure import geometric_mean
from .report import (
    ARITHMETIC,
    MODE_TITLES,
    ROOFLINE_TARGET,
    by_mode,
    fastest_speedup,
    misses_target,
    of_memory,
)

Document = dict[str, Any]
Result = dict[str, Any]
Cell = tuple[str, str]  # op and shape

PAGES = ("README.md", "docs/speed.md", "docs/benchmarks.md")
SECTION = re.compile(
    r"(?P<head><!-- speed: (?P<run>\S+) (?P<kind>\w+) -->\n).*?(?P<foot><!-- end of speed -->)",
    re.DOTALL,
)
PEER_NAMES = {"compile": "torch.compile", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
DTYPES = {"f32": "float32", "bf16": "bfloat16"}

# What an overview shows, of functions that torch has ...
COMMON: tuple[Cell, ...] = (
    ("layer_norm", "4096x768"),
    ("layer_norm", "8192x4096"),
    ("layer_norm", "65536x64"),
    ("layer_norm", "32x96x56x56 NCHW axis=1"),
    ("rms_norm", "4096x768"),
    ("rms_norm", "8192x4096"),
    ("batch_norm/train", "32x64x56x56 NCHW"),
    ("batch_norm/train", "32x64x56x56 NHWC"),
    ("batch_norm/train", "32x512x7x7 NCHW"),
    ("batch_norm/eval", "32x64x56x56 NCHW"),
    ("group_norm", "4x320x64x64 NCHW"),
    ("group_norm", "4x320x64x64 NHWC"),
    ("instance_norm", "4x64x256x256 NCHW"),
    ("instance_norm", "16x128x32x32 NCHW"),
    ("weight_norm", "4096x4096 axis=0"),
    ("normalize", "4096x4096"),
    ("spectral_norm/1", "4096x4096 axis=0"),
    ("local_response_norm", "32x64x56x56 NCHW"),
)
# ... and of methods that are formulas there.
OTHERS: tuple[Cell, ...] = (
    ("batch_renorm/train", "32x64x56x56 NCHW"),
    ("batch_instance_norm/train", "32x64x56x56 NCHW"),
    ("switchable_norm/train", "32x64x56x56 NCHW"),
    ("mean_only_batch_norm/train", "32x64x56x56 NCHW"),
    ("lp_batch_norm/train", "32x64x56x56 NCHW"),
    ("topk_batch_norm/train", "32x64x56x56 NCHW"),
    ("gdn", "8x192x64x64 NCHW"),
    ("divisive_norm", "8x128x32x32 NCHW"),
    ("local_divisive_norm", "8x64x56x56 NCHW"),
)
WITH_PICTURE = ("means", "overview")
FORMULAS = {name.partition("/")[0] for name, _ in OTHERS}


# ---- the whole -------------------------------------------------------------------------------


def write(root: Path, check: bool = False) -> list[str]:
    """Fill in the pages and draw the pictures; the names of those that were not up to date.

    With `check` nothing is written.
    """
    stale, pictures = [], set[str]()
    for name in PAGES:
        page = root / name
        old = page.read_text(encoding="utf-8")

        def filled(match: re.Match[str], page: Path = page) -> str:
            if match["kind"] in WITH_PICTURE:
                pictures.add(match["run"])
            return match["head"] + section(page, match["run"], match["kind"], root) + match["foot"]

        new = SECTION.sub(filled, old)
        if new.count("<!-- speed: ") != len(SECTION.findall(new)):
            raise SystemExit(f"{name}: a comment that begins with <!-- speed: is not of the form")
        if new != old:
            stale.append(name)
            if not check:
                page.write_text(new, encoding="utf-8")
    for run in sorted(pictures):
        from .picture import is_current, save_picture

        path = root / picture_of(run)
        document = documents.load_run(root / run)
        if not is_current(document, path):
            stale.append(picture_of(run))
            if not check:
                save_picture(document, path)
    return stale


def section(page: Path, run: str, kind: str, root: Path) -> str:
    """What stands between the comments of a page."""
    kinds = {"means": means, "overview": overview, "cells": cells}
    if kind not in kinds:
        raise SystemExit(f"<!-- speed: {run} {kind} -->: expected one of {', '.join(kinds)}")
    document = documents.load_run(root / run)
    text = kinds[kind](document)
    if kind in WITH_PICTURE:
        picture = (root / picture_of(run)).relative_to(page.parent).as_posix()
        text = f"![Time of each operation, in copies of its memory]({picture})\n\n" + text
    return f"\n{text}\n\n"


def picture_of(run: str) -> str:
    """The picture of a run, from the root of the repository."""
    return f"docs/{Path(run).stem}.svg"


# ---- what is written -------------------------------------------------------------------------


def means(document: Document) -> str:
    """What all cells come to."""
    return "\n\n".join([conditions(document), "\n".join(summary(document))])


def overview(document: Document) -> str:
    """The cells that matter most, and the means."""
    results = only_mode(document)
    parts = [
        f"Forward / backward. {conditions(document)}",
        compact_table(results, COMMON),
        "Methods that torch does not have, beside their formulas in its operations:",
        compact_table(results, OTHERS),
        "\n".join(summary(document)),
    ]
    return "\n\n".join(parts)


def cells(document: Document) -> str:
    """Every cell, with every peer."""
    results = only_mode(document)
    return f"Forward / backward. {conditions(document)}\n\n{full_table(document, results)}"


def conditions(document: Document) -> str:
    """Machine, versions and mode, in two sentences."""
    machine, versions = document["machine"], document["machine"]["versions"]
    (mode,) = by_mode(document["results"])
    libraries = [f"{PEER_NAMES.get(n, n)} {v}" for n, v in document["peers"].items()]
    if {"torch", "compile"} <= set(document["peers"]):
        libraries.remove(f"torch.compile {document['peers']['compile']}")
        libraries[libraries.index(f"torch {document['peers']['torch']}")] += " (eager and compiled)"
    return (
        f"{MODE_TITLES[mode][0].upper()}{MODE_TITLES[mode][1:]}. {_threads(machine['threads'])} of "
        f"{machine.get('name', machine['cpu'])}, {machine['isa']}; {', '.join(libraries)}, "
        f"NumPy {versions['numpy']}, built by {machine['compiler']}; "
        f"{document['date'][:10]}, at {machine['commit']}."
    )


def compact_table(results: Sequence[Result], chosen: Sequence[Cell]) -> str:
    """A line for each of these cells, both dtypes in it."""
    found = by_cell(results)
    heads = [f"{title}: {what}" for title in DTYPES.values() for what in ("roofline", "vs fastest")]
    lines = [f"| op | shape | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for op, shape in chosen:
        columns = []
        for dtype in DTYPES:
            passes = found.get((op, shape, dtype))
            if passes is None:
                raise SystemExit(f"the run has no cell {op} {shape} {dtype}")
            columns += [_rooflines(passes), _pair(passes, fastest_speedup)]
        lines.append(f"| {op} | {shape} | {' | '.join(columns)} |")
    return "\n".join(lines)


def full_table(document: Document, results: Sequence[Result]) -> str:
    """A line for each cell in each dtype, with a column for each peer."""
    heads = ["roofline", *(f"vs {PEER_NAMES.get(name, name)}" for name in document["peers"])]
    lines = [f"| op | shape | dtype | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for (op, shape, dtype), passes in by_cell(results).items():
        columns = [_rooflines(passes), *(_speedups(passes, peer) for peer in document["peers"])]
        lines.append(f"| {op} | {shape} | {dtype} | {' | '.join(columns)} |")
    return "\n".join(lines)


def summary(document: Document) -> list[str]:
    """What all cells come to, as a list of sentences."""
    everything = [r for r in only_mode(document) if "error" not in r]
    quiet = [result for result in everything if not result["disturbed"]]
    groups = {
        "Functions that torch has": [r for r in quiet if _op(r) not in FORMULAS],
        "The other methods": [r for r in quiet if _op(r) in FORMULAS],
    }
    lines = []
    for title, results in groups.items():
        compared = [r for r in results if fastest_speedup(r) is not None]
        speedups = [float(fastest_speedup(r) or 0) for r in compared]
        slower = [r for r, speedup in zip(compared, speedups, strict=True) if speedup < 1]
        text = (
            f"- {title}: {geometric_mean(speedups):.2f} times as fast as the fastest peer "
            f"(geometric mean of {len(speedups)} measurements)"
        )
        if slower:
            least = min(slower, key=lambda r: fastest_speedup(r) or 0)
            text += (
                f"; slower than it in {len(slower)}, most in {_place(least)} "
                f"({fastest_speedup(least):.2f})"
            )
        lines.append(text + ".")
    large = of_memory(quiet)
    within = sum(not misses_target(r) for r in large)
    mean = geometric_mean([r["roofline"] for r in large])
    limits = " and ".join(f"{limit} {name}" for name, limit in ROOFLINE_TARGET.items())
    lines.append(
        f"- Roofline of tensors over 1 MB: {mean:.2f} (geometric mean of {len(large)}); {within} "
        f"are within the aim of {limits}."
    )
    disturbed = len(everything) - len(quiet)
    if disturbed:
        lines.append(
            f"- Held up by other processes, marked ~ and in no mean: {disturbed} of "
            f"{len(everything)} measurements."
        )
    return lines


def markdown(document: Document) -> str:
    """The full table of each mode."""
    parts = []
    for mode, results in by_mode(document["results"]).items():
        parts.append(f"**{MODE_TITLES[mode]}** (forward / backward)")
        parts.append(full_table(document, results))
    return "\n\n".join(parts)


# ---- pieces ----------------------------------------------------------------------------------


def only_mode(document: Document) -> list[Result]:
    """The results of a run that has one mode."""
    modes = by_mode(document["results"])
    if len(modes) != 1:
        raise SystemExit(f"a page shows a run of one mode, this has {', '.join(modes) or 'none'}")
    return next(iter(modes.values()))


def by_cell(results: Iterable[Result]) -> dict[tuple[str, str, str], dict[str, Result]]:
    """Results that were measured, by op, shape and dtype, then by pass."""
    found: dict[tuple[str, str, str], dict[str, Result]] = {}
    for result in results:
        if "error" not in result:
            key = (result["op"], result["shape"], result["dtype"])
            found.setdefault(key, {})[result["pass"]] = result
    return found


def _op(result: Result) -> str:
    return str(result["op"]).partition("/")[0]


def _place(result: Result) -> str:
    return f"`{result['op']}` {result['shape']} {result['dtype']} {result['pass']}"


def _threads(count: int) -> str:
    return "One thread" if count == 1 else f"{count} threads"


def _rooflines(passes: dict[str, Result]) -> str:
    if any(_op(result) in ARITHMETIC for result in passes.values()):
        return "arithmetic"
    return _pair(passes, lambda result: float(result["roofline"]))


def _speedups(passes: dict[str, Result], peer: str) -> str:
    return _pair(passes, lambda result: result["speedup"].get(peer))


def _pair(passes: dict[str, Result], value: Callable[[Result], float | None]) -> str:
    texts = []
    for direction in ("forward", "backward"):
        number = value(passes[direction]) if direction in passes else None
        if number is None:
            texts.append("-")
        else:
            mark = "~" if passes[direction]["disturbed"] else ""
            texts.append(f"{mark}{number:.2f}" if number < 100 else f"{mark}{number:.0f}")
    return " / ".join(texts)
