"""Settings and facts of this installation."""

from __future__ import annotations

import platform

import numpy as np

from . import _core
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


def show_config() -> None:
    """Print versions, instruction sets, threads and how the core was built."""
    cuda = "available" if _core.cuda_is_available() else "no device or driver"
    rows = {
        "normcore": _core.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "compiler": _core.compiler(),
        "isa": f"{get_isa()} (available: {', '.join(available_isas())})",
        "threads": f"{get_num_threads()} ({'OpenMP' if _core.has_openmp() else 'no OpenMP'})",
        "cuda": cuda if _core.cuda_is_built() else "not built",
        "methods": ", ".join(_core.methods()),
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
