"""Who may include whom among the C++ sources: the layers of docs/hacking.md, kept by a test.

Hunts for a layer that reaches up or sideways: plans that know a backend, kernels that know a norm,
operations that compile the pipeline's loops for every method again. Headers are found as the
compiler finds them: beside the file, then from the folders of the build.
"""

import re
from pathlib import Path

import pytest

CPP = Path(__file__).parents[1] / "cpp"
BENCH = CPP.parent / "bench"

PUBLIC = "include/normcore"
# What the sources of a folder may include, beside those of the same folder and public headers:
# folders, or single files.
LAYERS = {
    "include/normcore": set(),
    "src/plan": set(),
    "src/cpu": {
        "src/plan",
        "src/special/divisive_formulas.h",
        "src/special/formulas.h",
        "src/special/mixing_formulas.h",
        "src/special/response_formulas.h",
    },
    "src/pipeline": {"src/plan"},
    "src/cuda": {
        "src/plan",
        "src/pipeline",
        "src/special/divisive_formulas.h",
        "src/special/formulas.h",
        "src/special/mixing.h",
        "src/special/mixing_formulas.h",
        "src/special/numbers.h",
        "src/special/response_formulas.h",
        "src/special/spectral_formulas.h",
    },
    "src/special": {
        "src/plan",
        "src/cpu",
        "src/ops/checks.h",
        "src/pipeline/memory.h",
        "src/cuda/special.h",
        "src/cuda/spectral.h",
    },
    "src/ops": {
        "src/plan",
        "src/pipeline/arguments.h",
        "src/pipeline/masked.h",
        "src/pipeline/memory.h",
        "src/pipeline/methods.h",
        "src/cpu/running_call.h",
    },
    # Views of arrays are checked as the operations check them, and methods take what these say.
    "python": {"src/ops/view.h", "src/ops/signatures.h", "src/ops/describe.h"},
    "python/jax": {"python", "src/ops/view.h", "src/ops/signatures.h"},
    "python/torch": {"python", "src/ops/view.h", "src/ops/signatures.h"},
    "tools": {"src/ops/describe.h"},
    "bench/probes": {"src/cpu"},
    "bench/native": {"src/cpu", "src/ops/signatures.h", "bench/probes"},
}
# Single includes beyond that, and why.
EXCEPTIONS = {
    # The one file that makes the pipeline for the CPU.
    ("src/pipeline/instantiate.cc", "src/cpu/backend.h"),
    ("src/pipeline/instantiate.cc", "src/cpu/explain.h"),
    # HostMemory: what an operation's small arrays are on the host.
    ("src/pipeline/memory.h", "src/cpu/arrays.h"),
    # get_isa of the C interface, which hands out a pointer that stays valid.
    ("src/ops/c_api.cc", "src/cpu/dispatch.h"),
    # What the Python module offers of the insides: the yardstick of its benchmark and the names of
    # methods for its tests.
    ("python/system.cc", "src/cpu/dispatch.h"),
    ("python/system.cc", "src/pipeline/run.h"),
    # Memory of a device that is handed to other libraries.
    ("python/array.h", "src/cuda/device_buffer.h"),
}
# The loops of the pipeline, compiled once for each method by instantiate.cc.
TEMPLATES = {f"src/pipeline/{name}.h" for name in ("statistics", "forward", "backward", "spread")}


def name_of(path):
    root = BENCH.parent if BENCH in path.parents else CPP
    return path.relative_to(root).as_posix()


def sources(folder):
    root = BENCH.parent if folder.startswith("bench") else CPP
    kinds = (".h", ".cc", ".inl", ".cu", ".cuh")
    return sorted(p for p in (root / folder).rglob("*") if p.suffix in kinds)


def included(path):
    """The files of the project that a file includes by name."""
    for name in re.findall(r'^\s*#\s*include "([^"]+)"', path.read_text(), re.MULTILINE):
        places = [path.parent, CPP / "src", CPP / "include", CPP / "src/cpu", BENCH / "probes"]
        found = [place / name for place in places if (place / name).is_file()]
        if found:
            yield found[0].resolve()
        else:  # cells.inc is written by CMake
            assert name == "cells.inc", f"{name_of(path)} includes {name}, which is not there"


def reached(path, seen=None):
    """All files that a file includes, itself or by others."""
    seen = set() if seen is None else seen
    for other in included(path):
        if other not in seen:
            seen.add(other)
            reached(other, seen)
    return {name_of(p) for p in seen}


def test_every_folder_has_a_rule():
    folders = {name_of(p.parent) for p in CPP.rglob("*") if p.suffix in (".cc", ".cu", ".h")}
    known = set(LAYERS) | {"include", "include/normcore/methods"}
    assert folders <= known, folders - known


@pytest.mark.parametrize("folder", LAYERS)
def test_layer_includes_what_is_below_it(folder):
    used = set()
    for path in sources(folder):
        for other in map(name_of, included(path)):
            edge = (name_of(path), other)
            allowed = LAYERS[folder] | {folder, PUBLIC}
            if edge in EXCEPTIONS:
                used.add(edge)
            else:
                fits = any(other == rule or other.startswith(rule + "/") for rule in allowed)
                assert fits, f"{edge[0]} includes {other}, and {folder} may include {allowed}"
    mine = {e for e in EXCEPTIONS if e[0].startswith(folder + "/")}
    assert used == mine, f"no longer needed: {mine - used}"


@pytest.mark.parametrize("path", sources("src/ops"), ids=name_of)
def test_operations_compile_no_loops_of_the_pipeline(path):
    assert not reached(path) & TEMPLATES


@pytest.mark.parametrize("path", sources("src/special"), ids=name_of)
def test_special_operations_know_no_method(path):
    assert not [p for p in reached(path) if "/methods/" in p or p == "src/pipeline/methods.h"]


@pytest.mark.parametrize("path", sorted((CPP / "src/cpu").glob("kernels_*.cc")), ids=name_of)
def test_kernels_include_nothing_that_other_sources_compile_too(path):
    # An inline function of both could be taken from the wrong one: docs/hacking.md, Kernels. The
    # formulas are templates of a type that is the kernels' own, and shuffle.h is a macro alone.
    kernels = re.compile(
        r"src/cpu/(\w+\.inl|kernels\.h|shuffle\.h|simd\.h|vector_math\.h)|src/plan/safe_squares\.h"
        r"|src/special/((divisive_|mixing_|response_)?formulas\.h)|include/normcore/export\.h"
    )
    files = reached(path)
    assert files and all(kernels.fullmatch(p) for p in files), files
    standard = set()
    for name in files:
        standard |= set(re.findall(r"#include <(.+)>", (CPP / name).read_text()))
    assert standard <= {"cstddef", "cstdint", "immintrin.h", "arm_neon.h"}
