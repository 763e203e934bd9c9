"""The CUDA backend."""

from __future__ import annotations

from ._core import cuda_empty_cache as empty_cache
from ._core import cuda_is_available as is_available

__all__ = ["empty_cache", "is_available"]
