"""What machine and which versions a result comes from, and how the process must be started."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..config import version_of

LIBRARIES = ("numpy", "ml_dtypes", "torch", "jax", "jaxlib", "onnxruntime", "openvino", "onnx")
ISA_FLAGS = ("sse4_2", "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")
# Documentation, tests and saved runs may change without any effect on a measurement.
SOURCES = ("CMakeLists.txt", "cmake", "cpp", "python")
MADV_HUGEPAGE = 14
DEFAULT_CACHE = 32 << 20  # where the system does not tell

# In kernel mode malloc keeps what is freed, so that peers touch no fresh pages. A threshold
# alone does not hold in every glibc (older ones cap it at 32 MB): allow no mmap at all.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 40),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_ARENA_MAX": "1",  # the arenas of threads hold no more than 64 MB: JAX allocates there
}


def available_cpus() -> list[int]:
    """The CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def environment(mode: str, threads: int) -> dict[str, str]:
    """The environment of a measuring process: its malloc, and the same threads for all."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    if mode == "kernel":
        env |= KEEP_MEMORY
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        env[name] = str(threads)
    env["JAX_PLATFORMS"] = "cpu"
    env["TF_CPP_MIN_LOG_LEVEL"] = "3"
    return env


def restrict_to(threads: int) -> None:
    """Leave the process that many CPUs: JAX has no other way to be told its threads."""
    cpus = available_cpus()
    if hasattr(os, "sched_setaffinity") and threads < len(cpus):
        os.sched_setaffinity(0, set(cpus[:threads]))


def raise_priority() -> bool:
    """Keep other processes off the CPUs as far as the scheduler allows; False without the right."""
    autogroup = Path("/proc/self/autogroup")
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        if autogroup.exists():  # there a nice value counts only within its session
            os.setsid()
            autogroup.write_text("-20", encoding="ascii")
    except (OSError, AttributeError):
        return False
    return True


def memory() -> int:
    """Bytes of physical memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30


def touch_heap(size: int) -> None:
    """Let malloc own that many bytes whose pages are there already, for kernel mode.

    Keeping freed memory is not enough: an aligned allocation does not fit the hole of its like,
    so glibc takes fresh pages for it a dozen times over. The pages are huge ones where the system
    allows it, for every contender alike; without this only NumPy's arrays would have them.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if block:
        page = os.sysconf("SC_PAGE_SIZE")
        start = (block + page - 1) // page * page
        libc.madvise(start, (block + size - start) // page * page, MADV_HUGEPAGE)  # may fail
        ctypes.memset(block, 0, size)
        libc.free(block)


def caches() -> dict[str, int]:
    """Bytes of each cache level, of one instance, as L1d, L2, L3."""
    found: dict[str, int] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level = _read(index / "type"), _read(index / "level")
        if kind != "Instruction" and level:
            found["L1d" if level == "1" else f"L{level}"] = _bytes_of(_read(index / "size"))
    return found


def last_level_cache() -> int:
    """Bytes of last-level cache that the available CPUs have together."""
    instances: dict[str, int] = {}
    for cpu in available_cpus():
        folders = list(Path(f"/sys/devices/system/cpu/cpu{cpu}/cache").glob("index*"))
        if folders:
            last = max(folders, key=lambda folder: int(_read(folder / "level") or 0))
            instances[_read(last / "shared_cpu_list")] = _bytes_of(_read(last / "size"))
    return sum(instances.values()) or DEFAULT_CACHE


def describe(nc: Any, threads: int) -> dict[str, Any]:
    """Machine and versions, for the JSON."""
    versions = {"python": platform.python_version(), "normcore": getattr(nc, "__version__", "?")}
    versions |= {name: v for name in LIBRARIES if (v := version_of(name)) is not None}
    model, flags = _cpu_info()
    return {
        "cpu": model,
        "cpus": len(available_cpus()),
        "threads": threads,
        "caches": caches(),
        "last_level_cache": last_level_cache(),
        "flags": [flag for flag in ISA_FLAGS if flag in flags],
        "compiler": nc._core.compiler(),
        "isa": nc.get_isa() if hasattr(nc, "get_isa") else "?",
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        "system": platform.platform(),
        "commit": _git_commit(),
        "versions": versions,
    }


def _cpu_info() -> tuple[str, set[str]]:
    model, flags = platform.processor() or platform.machine(), set[str]()
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
        if name.strip() in ("flags", "Features"):
            flags = set(value.split())
    return model, flags


def summary(machine: dict[str, Any]) -> str:
    """What `describe` has found, in a line."""
    return (
        f"{machine['cpu']}, {machine['threads']} of {machine['cpus']} CPUs, last-level cache "
        f"{machine['last_level_cache'] / 2**20:.0f} MiB, ISA {machine['isa']}"
    )


def checkout() -> Path | None:
    """The sources of normcore: those that this module is of, else those we are called in."""
    here = Path.cwd()
    for folder in (Path(__file__).resolve().parents[3], here, *here.parents):
        if (folder / "bench" / "shapes.json").is_file():
            return folder
    return None


def _git_commit() -> str:
    """The last commit that changed what is measured, and whether something changed since."""
    root = checkout()
    if root is None:
        return "?"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments, "--", *SOURCES]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain")
        return git("log", "-1", "--format=%h") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "?"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _bytes_of(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    if not text:
        return 0
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)
