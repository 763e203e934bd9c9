"""Plant faults in the kernels, one at a time, and demand that the tests of each kernel find them.

A fault whose place is not found, or is not the only one, fails as well: adapt its pattern to the
kernel as it now is.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
CUDA_TESTS = ROOT / "tests/cuda"


class Fault(NamedTuple):
    """`pattern` within the body of `function`, in cpp/src/cuda/`file`, becomes `planted`.

    Spaces of a pattern stand for any white space. Where it occurs several times, `which` says the
    one meant (-1: the last).
    """

    name: str
    file: str
    function: str
    pattern: str
    planted: str
    which: int | None = None
    quick: bool = False  # one of each kind


STEP = r"crew\.barrier\(\);"
BLOCK, CLUSTER = r"__syncthreads\(\);", r"cluster_barrier\(\);"
GRID = r"grid_barrier\(\);"
LEAVE = r"if \([^()]*[cC]luster[^()]*\) cluster_barrier\(\);"
FAULTS = (
    Fault("team_sum: no block barrier", "reduce.cuh", "team_sum", BLOCK, ";", quick=True),
    Fault(
        "team_sum: one scratch for all phases",
        "reduce.cuh",
        "team_sum",
        r"team\.scratch \+ phase % 2",
        "team.scratch + phase * 0",
    ),
    Fault(
        "team_sum: one cluster slot for all phases",
        "reduce.cuh",
        "team_sum",
        r"(2 \* Team::kMostWarps \* Team::kMostSums \+ )phase % 2",
        r"\1phase * 0",
    ),
    Fault(
        "team_sum: a block's barrier for a cluster's",
        "reduce.cuh",
        "team_sum",
        CLUSTER,
        "__syncthreads();",
        quick=True,
    ),
    Fault(
        "rows_forward: a block leaves early", "rows.cuh", "rows_forward", LEAVE, "", -1, quick=True
    ),
    Fault("rows_backward: a block leaves early", "rows.cuh", "rows_backward", LEAVE, "", -1),
    Fault(
        "rows_backward: blocks share a row of sums",
        "rows.cuh",
        "rows_backward",
        r"a\.dweight \+ block \* a\.n",
        "a.dweight",
        quick=True,
    ),
    Fault("sum_over_teams: no barrier before", "rows.cuh", "sum_over_teams", BLOCK, ";", 0),
    Fault("sum_over_teams: no barrier after", "rows.cuh", "sum_over_teams", BLOCK, ";", -1),
    Fault("sum_parameter_rows: no barrier", "rows.cuh", "sum_parameter_rows", BLOCK, ";"),
    Fault("member_sums: no block barrier", "pools.cuh", "member_sums", BLOCK, ";"),
    Fault("member_sums: no cluster barrier", "pools.cuh", "member_sums", CLUSTER, ";"),
    Fault("pool_forward: a block leaves early", "pools.cuh", "pool_forward", LEAVE, "", -1),
    Fault("pool_backward: a block leaves early", "pools.cuh", "pool_backward", LEAVE, "", -1),
    Fault(
        "store_pack_by_warp: no warp barrier",
        "elements.cuh",
        "store_pack_by_warp",
        r"__syncwarp\(\);",
        ";",
        quick=True,
    ),
    Fault("fold_tile: no barrier", "columns.cuh", "fold_tile", BLOCK, ";"),
    Fault("tiles_forward: no barrier of tiles", "together.cuh", "tiles_forward", BLOCK, ";"),
    Fault("tiles_forward: pools too early", "together.cuh", "tiles_forward", GRID, ";", 0),
    Fault("tiles_forward: applied too early", "together.cuh", "tiles_forward", GRID, ";", 1),
    Fault("tiles_backward: sums too early", "together.cuh", "tiles_backward", GRID, ";", 0),
    Fault("tiles_backward: no barrier of tiles", "together.cuh", "tiles_backward", BLOCK, ";"),
    Fault("tiles_backward: solved too early", "together.cuh", "tiles_backward", GRID, ";", 1),
    Fault(
        "tiles_backward: shared out too early",
        "together.cuh",
        "tiles_backward",
        GRID,
        ";",
        2,
        quick=True,
    ),
    Fault(
        "tiles: pieces share an entry",
        "columns.cuh",
        "part",
        r"g\.pieces \+ strip",
        "g.pieces",
        quick=True,
    ),
    Fault(
        "channels_kernel: offsets without a barrier",
        "local_response.cuh",
        "channels_kernel",
        BLOCK,
        ";",
        0,
    ),
    Fault(
        "channels_kernel: values without a barrier",
        "local_response.cuh",
        "channels_kernel",
        BLOCK,
        ";",
        1,
        quick=True,
    ),
    Fault(
        "channels_kernel: terms without a barrier",
        "local_response.cuh",
        "channels_kernel",
        BLOCK,
        ";",
        -1,
    ),
    Fault("product_kernel: offsets too early", "mixing.cuh", "product_kernel", BLOCK, ";", 0),
    Fault(
        "product_kernel: tiles without a barrier",
        "mixing.cuh",
        "product_kernel",
        BLOCK,
        ";",
        1,
        quick=True,
    ),
    Fault("product_kernel: tiles over those in use", "mixing.cuh", "product_kernel", BLOCK, ";", 2),
    Fault("product_kernel: stage without a barrier", "mixing.cuh", "product_kernel", BLOCK, ";", 3),
    Fault("product_kernel: rows without a barrier", "mixing.cuh", "product_kernel", BLOCK, ";", 4),
    Fault("product_kernel: stage over one in use", "mixing.cuh", "product_kernel", BLOCK, ";", -1),
    Fault(
        "product_kernel: blocks share a row of sums",
        "mixing.cuh",
        "product_kernel",
        r"\(Index\(blockIdx\.x\) \* 2 \+ k\)",
        "k",
        quick=True,
    ),
    Fault(
        "product_kernel: blocks share a sum",
        "mixing.cuh",
        "product_kernel",
        r"Index\(blockIdx\.y\) \* gridDim\.x \+ blockIdx\.x",
        "blockIdx.x",
    ),
    Fault("block_total: no barrier", "special.cuh", "block_total", BLOCK, ";"),
    Fault("outer_kernel: offsets without a barrier", "mixing.cuh", "outer_kernel", BLOCK, ";", 0),
    Fault("outer_kernel: tiles without a barrier", "mixing.cuh", "outer_kernel", BLOCK, ";", -1),
    Fault(
        "outer_kernel: splits share their sums",
        "mixing.cuh",
        "outer_kernel",
        r"split \* n \+ row",
        "row",
    ),
    Fault("fold_kernel: warps share a sum", "mixing.cuh", "fold_kernel", r" \* kWarps", ""),
    Fault("sums of channels: no barrier", "special.cuh", "run", BLOCK, ";"),
    Fault("block_sums: no barrier", "spectral.cuh", "block_sums", BLOCK, ";"),
    Fault(
        "block_sums: one memory for all phases",
        "spectral.cuh",
        "block_sums",
        r"phase\+\+ & 1",
        "phase++ & 0",
    ),
    Fault("sweep_matrix: tops over sums", "spectral.cuh", "sweep_matrix", BLOCK, ";", 0),
    Fault("sweep_matrix: tops without a barrier", "spectral.cuh", "sweep_matrix", BLOCK, ";", -1),
    Fault(
        "sweep_matrix: blocks share a row of shares",
        "spectral.cuh",
        "sweep_matrix",
        r"s\.shares \+ Index\(blockIdx\.x\)",
        "s.shares + 0",
    ),
    Fault("collect_shares: no barrier", "spectral.cuh", "collect_shares", BLOCK, ";"),
    Fault("Crew: no block barrier", "spectral.cuh", "joined", BLOCK, ";"),
    Fault("Crew: no cluster barrier", "spectral.cuh", "joined", CLUSTER, ";"),
    Fault("Crew: one memory for all phases", "spectral.cuh", "joined", r"phase_\+\+ & 1", "0"),
    Fault("Crew: a block leaves early", "spectral.cuh", "leave", CLUSTER, ";", quick=True),
    Fault(
        "Crew: a barrier of blocks alone", "spectral.cuh", "barrier", CLUSTER, "__syncthreads();"
    ),
    Fault("HeldRows: x without a barrier", "spectral.cuh", "multiply", BLOCK, ";", 0),
    Fault("HeldRows: A x without a barrier", "spectral.cuh", "multiply", BLOCK, ";", -1),
    Fault("HeldRows: y without a barrier", "spectral.cuh", "take_y", BLOCK, ";"),
    Fault("HeldRows: parts without a barrier", "spectral.cuh", "share", BLOCK, ";"),
    Fault(
        "HeldRows: groups share their parts",
        "spectral.cuh",
        "share",
        r"group\(\) \* shape_\.padded_cols\(\) \+",
        "",
    ),
    Fault("iterate_held: shares too early", "spectral.cuh", "iterate_held", STEP, ";", 0),
    Fault("iterate_held: vectors too early", "spectral.cuh", "iterate_held", STEP, ";", -1),
    Fault("block_sum: no barrier", "spectral.cuh", "block_sum", BLOCK, ";"),
    Fault("settle_gradient: no barrier", "spectral.cuh", "settle_gradient", BLOCK, ";"),
    Fault("kth_largest: no barrier before", "spread.cuh", "kth_largest", BLOCK, ";", 0),
    Fault("kth_largest: no barrier after", "spread.cuh", "kth_largest", BLOCK, ";", 1),
    Fault("choose_digit: no barrier before", "spread.cuh", "choose_digit", BLOCK, ";", 0),
    Fault("choose_digit: no barrier after", "spread.cuh", "choose_digit", BLOCK, ";", 1),
    Fault("select_largest: no barrier", "spread.cuh", "select_largest", BLOCK, ";"),
)
# The tests of a file of kernels; of any other: kernels_test.cc.
TESTS = {
    "local_response.cuh": "special_test.cc",
    "mixing.cuh": "special_test.cc",
    "special.cuh": "special_test.cc",
    "spectral.cuh": "special_test.cc",
}


def body_of(function: str, text: str) -> slice:
    """Where the function lies: from the line of its name to a brace in the column it begins in."""
    begin = rf"^( *)(?:static )?__(?:device|global)__[^\n]*(?:\n *)?\b{function}\("
    starts = list(re.finditer(begin, text, re.M))
    if len(starts) != 1:
        raise LookupError(f"{len(starts)} definitions of {function}, expected one")
    return slice(starts[0].start(), text.index(f"\n{starts[0][1]}}}", starts[0].start()))


def plant(fault: Fault, text: str) -> str:
    """The source with the fault."""
    where = body_of(fault.function, text)
    body = text[where]
    found = list(re.finditer(fault.pattern.replace(" ", r"\s+"), body))
    if not found or (fault.which is None and len(found) > 1):
        raise LookupError(f"{fault.pattern!r} occurs {len(found)} times in {fault.function}")
    match = found[fault.which or 0]
    body = body[: match.start()] + match.expand(fault.planted) + body[match.end() :]
    return text[: where.start] + body + text[where.stop :]


class Tests:
    """The tests that launch kernels by hand, compiled against any sources."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.compiler = os.environ.get("CXX", "c++")
        self.rest = []  # what knows no kernels is compiled once
        for name in ("races/reports.cc", "emulation/emulation.cc"):
            compiled = str(work / (Path(name).stem + ".o"))
            self.compile("-O1", "-DNORMCORE_RACES", str(CUDA_TESTS / name), "-o", compiled)
            self.rest.append(compiled)
        # Some kernels of Linux place memory where the sanitizer may not have any.
        setarch = shutil.which("setarch")
        self.launcher = [setarch, "-R"] if setarch else []

    def compile(self, *arguments: str) -> None:
        include = ["-I", str(CUDA_TESTS / "emulation"), "-I", str(ROOT / "cpp/include")]
        command = [self.compiler, "-std=c++20", *include, "-c", *arguments]
        self.run(command)

    def run(self, command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")

    def reports(self, test_name: str, sources: Path, name: str) -> int:
        """The sanitizer's reports of the tests against these sources."""
        compiled, program = str(self.work / f"{name}.o"), str(self.work / name)
        sanitized = ["-fsanitize=thread", "-O1", "-g1", "-Wno-unknown-pragmas", "-ffp-contract=off"]
        test = str(CUDA_TESTS / "races" / test_name)
        self.compile("-I", str(sources), *sanitized, test, "-o", compiled)
        libraries = ["-lgtest", "-lgtest_main", "-pthread"]
        objects = [compiled, *self.rest]
        self.run([self.compiler, "-fsanitize=thread", *objects, *libraries, "-o", program])
        done = subprocess.run([*self.launcher, program], capture_output=True, text=True)
        if done.returncode not in (0, 1):
            raise RuntimeError(f"{name} ended with {done.returncode}\n{done.stderr}")
        return done.stderr.count("WARNING: ThreadSanitizer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few faults, one of each kind")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("text", nargs="*", help="only faults whose name has it")
    options = parser.parse_args()
    chosen = [
        f
        for f in FAULTS
        if (f.quick or not options.quick)
        and (not options.text or any(t in f.name for t in options.text))
    ]
    missed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        tests = Tests(Path(folder))

        def found(number: int, fault: Fault | None, test: str) -> str:
            """What the tests say of a fault, or of none; "" where it is as it must be."""
            sources = Path(folder, f"sources{number}")
            shutil.copytree(ROOT / "cpp/src", sources)
            if fault is not None:
                path = sources / "cuda" / fault.file
                path.write_text(plant(fault, path.read_text()))
            reports = tests.reports(test, sources, f"fault{number}")
            if fault is None:
                return f"{reports} races without a fault" if reports else ""
            return "" if reports else "NOT FOUND"

        cases: list[tuple[str, Fault | None, str]] = [
            (fault.name, fault, TESTS.get(fault.file, "kernels_test.cc")) for fault in chosen
        ]
        cases += [(f"{test}: no fault", None, test) for test in sorted({c[2] for c in cases})]
        runs = [
            (name, pool.submit(found, number, fault, test))
            for number, (name, fault, test) in enumerate(cases)
        ]
        for name, run in runs:
            try:
                answer = run.result()
            except (LookupError, RuntimeError) as error:
                answer = f"FAILED: {error}"
            missed += bool(answer)
            print(f"{name:45} {answer or 'as it must be'}", flush=True)
    if missed:
        sys.exit(f"{missed} of {len(runs)} are not as they must be")


if __name__ == "__main__":
    main()
