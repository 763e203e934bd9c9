"""Results as arrays of the caller's own library, handed over through DLPack."""

from __future__ import annotations

import sys
from typing import Any


def adopt(like: Any, buffer: Any) -> Any:
    """Return ``buffer`` as an array of the library that ``like`` belongs to."""
    root = type(like).__module__.partition(".")[0]
    if root == "torch":
        return sys.modules["torch"].from_dlpack(buffer)
    namespace = getattr(like, "__array_namespace__", None)
    if namespace is not None:
        return namespace().from_dlpack(buffer)
    library = sys.modules.get(root)
    from_dlpack = getattr(library, "from_dlpack", None)
    if from_dlpack is None:
        raise TypeError(
            f"x is {type(like).__module__}.{type(like).__qualname__}, expected an array of a "
            "library with from_dlpack, to return a result of the same library"
        )
    return from_dlpack(buffer)
