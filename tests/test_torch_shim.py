"""What normcore declares of torch's stable C interface is what torch's headers declare."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]


def test_declarations_are_torchs():
    compiler = os.environ.get("CXX") or shutil.which("c++")
    headers = Path(torch.__path__[0], "include")
    if compiler is None or not (headers / "torch/csrc/stable/c/shim.h").is_file():
        pytest.skip("needs a C++ compiler and torch's headers")
    folders = [ROOT / "cpp/python", headers, headers / "torch/csrc/api/include"]
    # USE_CUDA: what builds with CUDA declare. The version: the first that has all that we use.
    command = [*compiler.split(), "-std=c++20", "-fsyntax-only", "-w", "-DUSE_CUDA"]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000ULL"]
    command += [f"-I{folder}" for folder in folders] + [
        str(ROOT / "tests/bindings/torch_shim_test.cc")
    ]
    subprocess.run(command, check=True)
