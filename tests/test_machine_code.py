"""The reader of machine code (tests/cuda/machine_code.py) on listings made by hand.

Hunts for a check that passes whatever the kernels look like. The kernels themselves are read where
they are compiled: `python3 dev.py cuda`.
"""

import importlib.util
from pathlib import Path

import pytest

path = Path(__file__).parent / "cuda" / "machine_code.py"
spec = importlib.util.spec_from_file_location("machine_code", path)
machine_code = importlib.util.module_from_spec(spec)
spec.loader.exec_module(machine_code)

BUDGET = machine_code.Budget(
    "a kernel", "kernel<{T}>", packs=2, loads=2, traffic=2, most={"float": 2}
)
# Two packs, a sum of another operand that is stored too, a slow division, the result.
FAST = """
LDG.E.128 R4, [R2.64]
LDG.E.128 R8, [R2.64+0x200]
@P0 BRA after
LDG.E.128 R12, [R20.64]
FADD R4, R4, R12
STG.E.128 [R22.64], R4
after:
FADD R4, R4, R8
@P1 BRA fast
CALL.REL.NOINC slow
fast:
STG.E.128 [R24.64], R4
STG.E.128 [R24.64+0x200], R8
EXIT
"""
SERIAL = """
LDG.E.128 R4, [R2.64]
FADD R4, R4, R4
LDG.E.128 R8, [R2.64+0x200]
FADD R8, R8, R8
STG.E.128 [R24.64], R4
STG.E.128 [R24.64+0x200], R8
EXIT
"""
SPILLING = FAST.replace("after:", "after:\nSTL [R1], R4")
SLOW = FAST.replace("after:", "after:\n" + "FADD R4, R4, R4\n" * 20)


def kernel(listing):
    places, lines = {}, []
    for line in listing.split("\n"):
        if line.endswith(":"):
            places[line[:-1]] = 16 * len(lines)
        elif line:
            lines.append(line)
    for name, place in places.items():
        lines = [line.replace(f"BRA {name}", f"BRA {place:#x}") for line in lines]
    code = [(16 * i, line) for i, line in enumerate(lines)]
    return machine_code.Kernel("void kernel<float>(int)", code)


def test_the_way_of_full_rows():
    ops = [machine_code.opcode(text) for text in machine_code.hot_path(kernel(FAST), BUDGET)]
    assert ops.count("STG.E.128") == 2  # without the other operand's
    assert not any(op.startswith("CALL") for op in ops)
    assert len(ops) == 8


def test_what_is_in_order_has_no_faults():
    _, faults = machine_code.examine([kernel(FAST)], BUDGET, "float")
    assert not faults


@pytest.mark.parametrize(
    ("listing", "fault"),
    [(SERIAL, "1 loads"), (SPILLING, "1 spills"), (SLOW, "instructions")],
    ids=["loads one by one", "spills", "instructions"],
)
def test_faults_are_found(listing, fault):
    _, faults = machine_code.examine([kernel(listing)], BUDGET, "float")
    assert len(faults) == 1
    assert fault in faults[0]


def test_a_kernel_that_is_missing_is_a_fault():
    _, faults = machine_code.examine([kernel(FAST)], BUDGET, "double")
    assert "no kernel" in faults[0]
