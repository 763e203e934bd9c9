"""The declarations of XLA's interface that normcore.jax has are those of jaxlib's header."""

import shutil
import subprocess
from pathlib import Path

import pytest

jax = pytest.importorskip("jax")

ROOT = Path(__file__).parents[1]


def test_declarations_are_those_of_jaxlib():
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    include = Path(jax.ffi.include_dir())
    if not compiler:
        pytest.skip("no C++ compiler")
    if not (include / "xla/ffi/api/c_api.h").exists():
        pytest.skip("this jaxlib has no headers")
    folders = [f"-I{ROOT / 'cpp'}", "-isystem", str(include)]
    source = ROOT / "tests/bindings/jax_ffi_layout.cc"
    done = subprocess.run(
        [compiler, "-std=c++20", "-fsyntax-only", "-Wno-invalid-offsetof", *folders, str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
