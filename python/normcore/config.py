"""Settings and facts of this installation."""

from __future__ import annotations

import platform
from pathlib import Path
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
    "get_cmake_dir",
    "get_include",
    "get_isa",
    "get_num_threads",
    "set_isa",
    "set_num_threads",
    "show_config",
]

# Whose arrays are taken, or who are called.
_LIBRARIES = ("numpy", "ml_dtypes", "torch", "jax", "cupy", "mpi4py")


def _installed(folder: str) -> str:
    # Beside the module, which need not be where these sources are.
    path = Path(_core.__file__).parent / folder
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is not there: this normcore was built without its C++ library beside it, "
            "as `pip install` builds it"
        )
    return str(path)


def get_include() -> str:
    """The folder of the C and C++ headers: `-I` to a compiler, as with `numpy.get_include`.

    Examples
    --------
    >>> from pathlib import Path
    >>> Path(get_include(), "normcore", "c_api.h").exists()
    True
    """
    return _installed("include")


def get_cmake_dir() -> str:
    """The folder in which CMake's ``find_package(normcore)`` finds the library of this package.

    Give it as ``-Dnormcore_DIR=...``. Programs that are linked with this library share its threads
    and settings with Python. The C++ interface wants a compiler whose C++ runtime is that of the
    library, such as any GCC; the C interface any compiler.

    Examples
    --------
    >>> from pathlib import Path
    >>> Path(get_cmake_dir(), "normcore-config.cmake").exists()
    True
    """
    return _installed("lib/cmake/normcore")


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
        "threads": f"{known['threads']} ({'of OpenMP' if known['openmp'] else 'our own'})",
        "cuda": there if known["cuda"]["built"] else "not built",
        "methods": ", ".join(known["methods"]),
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
