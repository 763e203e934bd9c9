"""What the machine code of the hot kernels says of their speed; needs no device.

    python tests/cuda/machine_code.py build/cuda/CMakeFiles/normcore.dir/cpp/src/cuda/*.o

Reads the objects by cuobjdump, walks through each hot kernel along the way that full, aligned rows
take, and prints a table: registers, spills, accesses of 16 bytes, how many of these loads are
under way before the first of them is used, instructions per element, and the traffic at which
issuing them is the limit. Fails where a kernel is behind its budget, or where one is missing.
Kernels that move single elements are there too: with their loads of any width.

The walk is an estimate: at a conditional branch it keeps off calls, single elements, sums in
float64 and what stores more packs than the result has (the residual's sum); loops run once.
"""

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# H100: multiprocessors x schedulers x lanes x 1.9 GHz, in thread instructions a second.
ISSUE_RATE = 132 * 4 * 32 * 1.9e9

# The storage types and their bytes.
TYPES = {"__nv_bfloat16": 2, "__half": 2, "float": 4, "double": 8}
NAMES = {"__nv_bfloat16": "bfloat16", "__half": "float16", "float": "float32", "double": "float64"}


@dataclass
class Budget:
    """A kernel by its name's pattern, which catches its element type and packs per thread."""

    label: str
    kernel: str  # {T}: the element type
    packs: int  # of each operand that a thread holds; 0: it moves single elements
    loads: int  # of 16 bytes, or of single elements, under way together, at least
    traffic: float  # tensors that it moves: read and written
    most: dict  # element type: instructions per element; None: a loop says nothing of them
    loop: bool = False  # count one turn of the loop that stores the result
    warp: bool = False  # a team is within a warp: no shared memory
    registers: int = 255  # at most


LAYER_NORM = "normcore::Standardize<(normcore::Pool)0, false>"
RMS_NORM = "normcore::Standardize<(normcore::Pool)0, true>"


def rows(kernel, formula, packs):
    return f"normcore::cuda::{kernel}<{formula}, {{T}}, {packs}, true, false>"


def tiles(kernel, arguments="{T}", more=""):
    return f"normcore::cuda::{kernel}<{arguments}, true{more}>"


def cells(kernel, arguments="{T}", more="", packs=4):
    return f"normcore::cuda::{kernel}<{arguments}, {packs}, (normcore::cuda::Form)2{more}>"


NO_MASK = ", false"


def special(kernel):
    return f"normcore::cuda::{kernel}"


def sweep(packs, products):
    return special(f"sweep_matrix<{{T}}, {packs}, {products}>")


# A turn of a sweep's loop: eight packs of the matrix, and two blocks of 512 threads side by side.
ONE_READ, LOOP = (8, 8, 1), {"loop": True, "registers": 128}
# By coefficients from a table.
APPLIED = "normcore::cuda::KERNEL, normcore::cuda::Coefficients<float> >"
BF16, F32 = "__nv_bfloat16", "float"
BUDGETS = [
    Budget("layer norm", rows("rows_forward", LAYER_NORM, 4), 4, 4, 2, {BF16: 30}),
    Budget("layer norm", rows("rows_forward", LAYER_NORM, 8), 8, 8, 2, {F32: 32}),
    Budget(
        "layer norm, rows of 256",
        rows("rows_forward", LAYER_NORM, 1),
        1,
        1,
        2,
        {BF16: 60},
        warp=True,
    ),
    Budget("RMS norm", rows("rows_forward", RMS_NORM, 4), 4, 4, 2, {BF16: 24}),
    Budget("RMS norm", rows("rows_forward", RMS_NORM, 8), 8, 8, 2, {F32: 24}),
    Budget(
        "layer norm backward", rows("rows_backward", LAYER_NORM, 2), 2, 4, 3, {BF16: 64}, loop=True
    ),
    Budget(
        "layer norm backward", rows("rows_backward", LAYER_NORM, 2), 2, 4, 3, {F32: 96}, loop=True
    ),
    Budget("RMS norm backward", rows("rows_backward", RMS_NORM, 2), 2, 4, 3, {BF16: 64}, loop=True),
    Budget("RMS norm backward", rows("rows_backward", RMS_NORM, 2), 2, 4, 3, {F32: 96}, loop=True),
    Budget("moments of tiles", tiles("tile_moments", "false, {T}"), 8, 8, 1, {BF16: 21}, loop=True),
    Budget(
        "tiles applied",
        APPLIED.replace("KERNEL", "tile_apply<{T}, true"),
        8,
        8,
        2,
        {BF16: 30, F32: 30},
        loop=True,
    ),
    Budget("sums of tiles", tiles("tile_sums"), 4, 4, 2, {BF16: 30, F32: 30}, loop=True),
    Budget(
        "parameters of tiles",
        tiles("tile_parameter_sums"),
        *(4, 8, 2, {BF16: 30, F32: 32}),
        loop=True,
    ),
    Budget(
        "dx of tiles", tiles("tile_grad", more=NO_MASK), 4, 4, 3, {BF16: 43, F32: 43}, loop=True
    ),
    Budget(
        "moments of cells", cells("cell_moments", "false, {T}", packs=8), *(8, 8, 1, {BF16: 21})
    ),
    Budget(
        "cells applied",
        APPLIED.replace("KERNEL", "cell_apply<{T}, 8, (normcore::cuda::Form)2"),
        *(8, 8, 2, {BF16: 30}),
    ),
    Budget("sums of cells", cells("cell_sums"), 4, 8, 2, {BF16: 43}),
    Budget("dx of cells", cells("cell_grad", more=NO_MASK), 4, 8, 3, {BF16: 43}),
    # Blocks of 512 threads that hold several packs, of 128 that hold one.
    Budget("A x and A^T A x", sweep(1, "true, true"), *ONE_READ, {BF16: 16, F32: 26}, **LOOP),
    Budget("A x and A^T A x, wide", sweep(2, "true, true"), *ONE_READ, {BF16: 12}, **LOOP),
    Budget("A x and A^T A x, wide", sweep(4, "true, true"), *ONE_READ, {F32: 12}, **LOOP),
    Budget("A^T y", sweep(1, "false, true"), *ONE_READ, {BF16: 8, F32: 10}, **LOOP),
    Budget("rows times a factor", special("combine_rows<{T}>"), 4, 4, 2, {BF16: 10, F32: 14}),
    Budget("inner product", special("inner_rows<{T}>"), 4, 8, 2, {BF16: 18, F32: 28}),
    Budget(
        "local response",
        special("channels_kernel<{T}, false, false>"),
        *(0, 4, 2, {BF16: None, F32: None}),
        registers=56,
    ),
    Budget(
        "local response backward",
        special("channels_kernel<{T}, true, false>"),
        *(0, 4, 3, {BF16: None, F32: None}),
        registers=64,
    ),
    Budget(
        "local divisive",
        special("(anonymous namespace)::divide_kernel<{T}>"),
        *(0, 4, 2, {BF16: 160, F32: 160}),
        registers=40,
    ),
    Budget(
        "local divisive backward",
        special("(anonymous namespace)::grad_kernel<{T}>"),
        *(0, 4, 3, {BF16: 195, F32: 195}),
        registers=40,
    ),
]

# Products on tensor cores: a kernel, how many of their instructions it has, and the most of all
# instructions for each, from the first of them to the last. Registers for two blocks of 256.
PRODUCT = "normcore::cuda::product_kernel<float, (normcore::cuda::Product){}, false>"
PRODUCTS = [
    *(
        (label, PRODUCT.format(kind), 16, 6, 128)
        for kind, label in enumerate(("gdn", "gdn backward, D", "gdn backward, dx"))
    ),
    ("gdn backward, dgamma", "normcore::cuda::outer_kernel<float, false>", 16, 5, 128),
]


# ---- reading


def cuobjdump():
    found = shutil.which("cuobjdump")
    if found:
        return found
    for folder in map(Path, sys.path):
        for path in sorted(folder.glob("nvidia/cu*/bin/cuobjdump")):
            return str(path)
    return None


@dataclass
class Kernel:
    name: str
    instructions: list  # (address, text)
    registers: int = 0
    stack: int = 0


def opcode(text):
    words = text.split()
    return words[1] if words[0].startswith("@") else words[0]


def read_object(tool, path):
    """The kernels of an object file, by their names in C++."""
    environment = {"PATH": str(Path(tool).parent) + ":/usr/bin:/bin"}

    def run(*args):
        command = [tool, *args, str(path)]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout

    kernels = {}
    current = None
    for line in run("-sass").splitlines():
        if match := re.search(r"Function : (\S+)", line):
            current = kernels.setdefault(match[1], Kernel(match[1], []))
        elif current and (match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", line)):
            current.instructions.append((int(match[1], 16), match[2].strip()))
    usage = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", run("-res-usage"))
    for mangled, registers, stack in usage:
        if mangled in kernels:
            kernels[mangled].registers = int(registers)
            kernels[mangled].stack = int(stack)
    names = subprocess.run(
        ["c++filt"], input="\n".join(kernels), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for kernel, name in zip(kernels.values(), names, strict=True):
        kernel.name = name
    return list(kernels.values())


# ---- walking


def is_load(op):
    return op.startswith("LDG.") and op.endswith("128")


def registers_of_load(op, single):
    """How many registers a load fills; 0 where it is none, or not of 16 bytes and not asked for."""
    if not op.startswith("LDG.") or not (single or is_load(op)):
        return 0
    return 4 if op.endswith("128") else 2 if op.endswith("64") else 1


def is_copy(op):
    """Of 16 bytes into shared memory, which no register waits for."""
    return op.startswith("LDGSTS") and "128" in op


def is_store(op):
    return op.startswith("STG") and op.endswith("128")


def keeps_off(instructions, packs, stores_after, warp):
    """Whether a stretch that a branch may leave out is not on the way of full, aligned rows."""
    ops = [opcode(text) for _, text in instructions]
    if packs == 0:
        return any(op.startswith("CALL") for op in ops)
    return (
        any(op.startswith(("CALL", "LDG.E.U16", "STG.E.U16")) for op in ops)
        or any(op in ("LDG.E", "STG.E", "F2F.F64.F32") for op in ops)
        or (any(map(is_store, ops)) and stores_after >= packs)
        or (warp and any(op.startswith(("BAR", "LDS", "STS")) for op in ops))
    )


def hot_path(kernel, budget):
    """The instructions that a thread of a full, aligned row executes."""
    code = kernel.instructions
    index = {address: i for i, (address, _) in enumerate(code)}

    def target(text):
        found = re.findall(r"0x([0-9a-f]+)", text)
        return index.get(int(found[-1], 16)) if found else None

    start, end = 0, len(code)
    if budget.loop:  # the loop with the most stores
        best = -1
        for i, (_, text) in enumerate(code):
            j = target(text) if opcode(text) == "BRA" else None
            if j is None or j >= i:
                continue
            stores = sum(is_store(opcode(t)) for _, t in code[j:i])
            loads = sum(is_load(opcode(t)) for _, t in code[j:i])
            if stores + loads > best:
                best, start, end = stores + loads, j, i + 1
    path = []
    i = start
    while i < end:
        text = code[i][1]
        op = opcode(text)
        path.append(text)
        if op.startswith("EXIT") and not text.startswith("@"):
            break
        if op == "BRA":
            j = target(text)
            if j is None or j <= i:
                i += 1
                continue
            if not text.startswith("@"):
                i = j
                continue
            after = sum(is_store(opcode(t)) for _, t in code[j:end])
            if keeps_off(code[i + 1 : j], budget.packs, after, budget.warp):
                i = j
                continue
        i += 1
    return path


def loads_together(path, single=False):
    """The largest number of loads that are issued before one is used: of 16 bytes, or of any.

    Copies into shared memory count together: they are waited for in the next turn of the loop.
    """
    waiting = set()
    most = sum(is_copy(opcode(text)) for text in path)
    count = 0
    for text in path:
        op = opcode(text)
        registers = [int(r) for r in re.findall(r"\bR(\d+)\b", text)]
        if filled := registers_of_load(op, single):
            waiting.update(range(registers[0], registers[0] + filled))
            count += 1
            continue
        sources = registers if op.startswith("ST") else registers[1:]
        if waiting.intersection(sources):
            most = max(most, count)
            waiting, count = set(), 0
    return max(most, count)


# ---- the table


def examine(kernels, budget, dtype):
    pattern = budget.kernel.replace("{T}", dtype) + "("
    found = [k for k in kernels if pattern in k.name]
    label = f"{budget.label} {NAMES[dtype]}"
    if not found:
        return f"{label:40} missing", [f"{label}: no kernel {pattern}"]
    kernel = found[0]
    path = hot_path(kernel, budget)
    single = budget.packs == 0
    elements = 1 if single else budget.packs * 16 // TYPES[dtype]
    per_element, most = len(path) / elements, budget.most[dtype]
    loads = loads_together(path, single)
    ops = [opcode(text) for text in path]
    spills = sum(op.startswith(("LDL", "STL")) for op in ops)
    packs = sum(is_load(op) or is_copy(op) or is_store(op) for op in ops)
    bound = ISSUE_RATE / per_element * budget.traffic * TYPES[dtype] / 1e12
    line = f"{label:40} {kernel.registers:4} {spills:6} {packs:7} {loads:6}"
    if most is not None:
        line += f" {per_element:12.1f} {most:7} {bound:8.1f}"
    faults = []
    if most is not None and per_element > most:
        faults.append(f"{label}: {per_element:.1f} instructions, budget {most}")
    if kernel.registers > budget.registers:
        faults.append(f"{label}: {kernel.registers} registers, budget {budget.registers}")
    if loads < budget.loads:
        faults.append(f"{label}: {loads} loads under way, budget {budget.loads}")
    if spills:
        faults.append(f"{label}: {spills} spills on the hot path")
    return line, faults


def examine_product(kernels, label, pattern, products, most, most_registers):
    found = [k for k in kernels if pattern + "(" in k.name]
    if not found:
        return f"{label:40} missing", [f"{label}: no kernel {pattern}"]
    ops = [opcode(text) for _, text in found[0].instructions]
    places = [i for i, op in enumerate(ops) if op.startswith("DMMA.16x8x8")]
    each = (places[-1] + 1 - places[0]) / len(places) if places else float("inf")
    spills = sum(op.startswith(("LDL", "STL")) for op in ops)
    line = (
        f"{label:40} {found[0].registers:4} {spills:6} {len(places):4} products,"
        f" {each:.1f} instructions each, budget {most}"
    )
    faults = []
    if len(places) != products or each > most:
        faults.append(f"{label}: {len(places)} products of {each:.1f} instructions")
    if spills or found[0].registers > most_registers:
        faults.append(f"{label}: {found[0].registers} registers, {spills} spills")
    return line, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("objects", nargs="+", type=Path)
    parser.add_argument("--path", help="print the hot path of the kernels whose label has this")
    options = parser.parse_args()
    tool = cuobjdump()
    if tool is None:
        sys.exit("machine_code.py needs cuobjdump (PyPI: nvidia-cuda-cuobjdump and -nvdisasm)")
    kernels = [k for path in options.objects for k in read_object(tool, path)]
    head = ("kernel", "regs", "spills", "16-byte", "loads", "instructions", "budget", "TB/s")
    print("{:40} {:>4} {:>6} {:>7} {:>6} {:>12} {:>7} {:>8}".format(*head))
    faults = []
    for budget in BUDGETS:
        for dtype in budget.most:
            line, found = examine(kernels, budget, dtype)
            print(line)
            faults += found
            if options.path and options.path in f"{budget.label} {NAMES[dtype]}":
                for k in kernels:
                    if budget.kernel.replace("{T}", dtype) + "(" in k.name:
                        print("\n".join(hot_path(k, budget)))
    for product in PRODUCTS:
        line, found = examine_product(kernels, *product)
        print(line)
        faults += found
    if faults:
        sys.exit("\n".join(["behind the budget:", *faults]))


if __name__ == "__main__":
    main()
