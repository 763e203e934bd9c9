"""What functions give to those that compute their gradients."""

from __future__ import annotations

from typing import Any


def saved(stats: Any, kind: type) -> tuple[Any, Any]:
    """Return what the backward function needs of ``stats``, which must be of ``kind`` or None."""
    if stats is None:
        return None, None
    if not isinstance(stats, kind):
        raise TypeError(
            f"stats is {type(stats).__name__}, expected {kind.__name__}: "
            "what the forward function returned"
        )
    return stats.pooled, getattr(stats, "given", None)  # type: ignore[attr-defined]
