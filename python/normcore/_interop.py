"""Arrays of other libraries: results handed over through DLPack, and current streams."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def current_stream(array: Any) -> int:
    """Return the CUDA stream on which the library of ``array`` works now, 0 for the default."""
    root = type(array).__module__.partition(".")[0]
    if root == "torch":
        return int(sys.modules["torch"].cuda.current_stream(array.device).cuda_stream)
    if root == "normcore":  # a buffer of ours
        return int(array.stream)
    if root == "cupy":
        return int(sys.modules["cupy"].cuda.get_current_stream(array.device.id).ptr)
    return 0


def adopt(like: Any, buffer: Any) -> Any:
    """Return ``buffer`` as an array of the library that ``like`` belongs to.

    An object whose library is not known gets a NumPy array, or the buffer itself, which has
    ``__dlpack__``, where NumPy lacks the dtype.
    """
    root = type(like).__module__.partition(".")[0]
    namespace = getattr(like, "__array_namespace__", None)
    library = namespace() if namespace is not None else sys.modules.get(root)
    from_dlpack = getattr(library, "from_dlpack", None)
    if from_dlpack is not None:
        return from_dlpack(buffer)
    try:
        return np.from_dlpack(buffer)
    except (BufferError, RuntimeError):
        return buffer
