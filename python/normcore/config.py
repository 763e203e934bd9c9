"""Settings and facts of this installation."""

from __future__ import annotations

import platform
from typing import Any

from . import _core, methods
from ._core import (
    available_isas,
    get_isa,
    get_num_threads,
    set_isa,
    set_num_threads,
)

__all__ = [
    "available_isas",
    "get_isa",
    "get_num_threads",
    "set_isa",
    "set_num_threads",
    "show_config",
]

# Whose arrays are taken, or who are called.
_LIBRARIES = ("numpy", "ml_dtypes", "torch", "jax", "cupy", "mpi4py")


def version_of(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    from importlib import metadata  # which takes longer than all of normcore

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def facts() -> dict[str, Any]:
    """What `show_config` prints, as values that JSON has."""
    from pkgutil import iter_modules

    versions = {"normcore": _core.__version__, "python": platform.python_version()}
    found = {name: version for name in _LIBRARIES if (version := version_of(name)) is not None}
    return {
        "versions": versions | found,
        "platform": f"{platform.system()} {platform.machine()}",
        "compiler": _core.compiler(),
        "isa": get_isa(),
        "available_isas": available_isas(),
        "threads": get_num_threads(),
        "openmp": _core.has_openmp(),
        "cuda": {"built": _core.cuda_is_built(), "available": _core.cuda_is_available()},
        "methods": sorted(module.name for module in iter_modules(methods.__path__)),
    }


def show_config() -> None:
    """Print versions, instruction sets, threads, how the core was built, and the methods."""
    known = facts()
    there = "available" if known["cuda"]["available"] else "no device or driver"
    rows = {
        **known["versions"],
        "platform": known["platform"],
        "compiler": known["compiler"],
        "isa": f"{known['isa']} (available: {', '.join(known['available_isas'])})",
        "threads": f"{known['threads']} ({'OpenMP' if known['openmp'] else 'no OpenMP'})",
        "cuda": there if known["cuda"]["built"] else "not built",
        "methods": ", ".join(known["methods"]),
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
