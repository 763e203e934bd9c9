"""What the installed package brings beside Python: the library, its headers, its CMake files.

Hunts for a wheel that only works beside its sources, for a second OpenMP runtime in the process,
and for results that depend on which of its threads did the work.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import normcore as nc

PACKAGE = Path(nc._core.__file__).parent
CONSUMER = Path(__file__).parent / "cpp" / "find_package"
BINDINGS = Path(__file__).parent / "bindings"
# Of the sanitizers' session and of builds by CMake, which have the library in the module.
alone = not (PACKAGE / "lib").is_dir()
needs_library = pytest.mark.skipif(alone, reason="a module without the library beside it")


def run(*command, **options):
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, **options
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture
def library():
    """What a program that knows nothing of CMake is linked with."""
    if alone or sys.platform != "linux":
        pytest.skip("needs the library beside the module, and Linux")
    (file,) = PACKAGE.glob("lib/libnormcore.so.*")
    return file


def tool(name):
    return shutil.which(name) or pytest.skip(f"needs {name}")


def test_folders_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(nc._core, "__file__", str(tmp_path / "_core.so"))
    for function in (nc.get_include, nc.get_cmake_dir):
        with pytest.raises(FileNotFoundError, match="built without its C\\+\\+ library"):
            function()


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has the interpreter lock"
)
def test_the_lock_stays_off():
    run(sys.executable, "-c", "import sys, normcore; assert not sys._is_gil_enabled()")


def test_without_a_compiler_the_build_says_what_to_install(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CMAKE_")}
    result = subprocess.run(
        [tool("cmake"), "-S", Path(__file__).parents[1], "-B", tmp_path],
        env=environment | {"CXX": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode != 0
    assert "no C++ compiler was found. On Debian and Ubuntu: apt install g++." in " ".join(
        result.stderr.split()
    )


@needs_library
def test_the_library_is_there_once():
    (library,) = PACKAGE.glob("lib/libnormcore.*")
    assert not library.is_symlink()
    header = Path(nc.get_include(), "normcore", "version.h").read_text()
    assert f'"{nc.__version__}"' in header


@needs_library
def test_a_project_is_built_with_the_installed_package(tmp_path):
    cmake, *_ = (tool(name) for name in ("cmake", os.environ.get("CXX", "c++"), "cc"))
    build = tmp_path / "build"
    run(cmake, "-S", CONSUMER, "-B", build, f"-Dnormcore_DIR={nc.get_cmake_dir()}")
    run(cmake, "--build", build)
    for program in ("consumer", "c_consumer"):
        run(build / program)


def test_a_c_program_is_built_without_cmake(library, tmp_path):
    program = tmp_path / "program"
    options = ["-I", nc.get_include(), "-o", program, library, f"-Wl,-rpath,{library.parent}"]
    run(tool("cc"), CONSUMER / "main.c", *options, "-lm")
    run(program)


def test_rust_calls_it(library, tmp_path):
    program = tmp_path / "program"
    options = [f"-Clink-arg={library}", f"-Clink-arg=-Wl,-rpath,{library.parent}", "-o", program]
    run(tool("rustc"), "--edition=2021", "-Dwarnings", BINDINGS / "layer_norm.rs", *options)
    run(program)


def test_go_calls_it(library, tmp_path):
    environment = {
        **os.environ,
        "CGO_ENABLED": "1",
        "CGO_CFLAGS": f"-I{nc.get_include()}",
        "CGO_LDFLAGS": f"{library} -Wl,-rpath,{library.parent}",
        "CGO_LDFLAGS_ALLOW": ".*",
        "GOCACHE": str(tmp_path / "cache"),
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "off",
    }
    run(tool("go"), "run", BINDINGS / "layer_norm.go", env=environment)


# ---- threads

CALL = """
import hashlib
import numpy as np
import normcore as nc

x = np.random.default_rng(1).normal(size=(16, 32, 61, 67)).astype(np.float32)
nc.set_num_threads(3)

def digest():
    y = nc.batch_norm(x, training=True)
    grads = nc.group_norm_backward(x, y, 4)
    weight = nc.spectral_norm(x.reshape(512, -1), np.ones(512, np.float32)).weight
    return hashlib.sha256(y.tobytes() + grads.dx.tobytes() + weight.tobytes()).hexdigest()

def runtimes():
    paths = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
    names = ("libgomp", "libomp", "libiomp")
    return {path for path in paths if path.rpartition("/")[2].startswith(names)}
"""
USE = {
    "torch": "import torch; torch.set_num_threads(2); torch.randn(2000, 2000).exp().sum()",
    "sklearn": "import sklearn.ensemble._hist_gradient_boosting._gradient_boosting",
}
WAYS = {
    "alone": "print(digest()); assert nc._core.has_openmp() == bool(runtimes())",
    "before": "print(digest()); {use}; assert nc._core.has_openmp(); print(digest())",
    "after": "{use}; print(digest())",
}


def expected():
    before = nc.get_num_threads()
    space = {}
    exec(CALL, space)
    nc.set_num_threads(1)
    try:
        return space["digest"]()
    finally:
        nc.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("way", "other"), [("alone", ""), *((w, o) for o in USE for w in ("before", "after"))]
)
def test_one_runtime_of_openmp(way, other):
    """The other library's and no other, and the same bits in its threads and in our own."""
    if other:
        pytest.importorskip(other)
    code = CALL + WAYS[way].format(use=USE.get(other, ""))
    if other:
        code += "\nassert nc._core.has_openmp() and len(runtimes()) == 1, runtimes()"
    assert set(run(sys.executable, "-W", "ignore", "-c", code).split()) == {expected()}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_threads_of_our_own():
    code = CALL + "digest(); import os; print(len(os.listdir('/proc/self/task')))"
    count = int(run(sys.executable, "-c", code, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}))
    assert count == 3


@pytest.mark.parametrize(("text", "count"), [("3", 3), ("2,1", 2), ("x", None), ("0", None)])
def test_the_variable_of_openmp_counts_without_it(text, count):
    code = "import normcore as nc; print(nc.get_num_threads())"
    threads = run(sys.executable, "-c", code, env={**os.environ, "OMP_NUM_THREADS": text})
    if count is None and hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    assert int(threads) == count
