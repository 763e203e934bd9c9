"""What functions return beside arrays: the fields of several methods' named tuples.

The tuples themselves stand beside their functions, each with its name and documentation. Fields are
written out, since a type checker sees none that are made at run time; tests/test_signatures.py
compares them with the signatures.
"""

from __future__ import annotations

from typing import Any, Generic

from ._interop import Array
from ._typing import A, NamedTuple


class MomentStats(NamedTuple, Generic[A]):
    """Of methods that divide by one deviation, or by another spread."""

    mean: A
    rstd: A
    #: Mean and variance, or spread, in float64, for the backward function.
    pooled: Array


class MixedStats(NamedTuple, Generic[A]):
    """Of methods that mix the statistics of pools; for the backward function, in float64."""

    #: Mean and variance of every sample and channel, shape ``(N, C, 2)``.
    pooled: Array
    #: The running mean and variance where they were used, shape ``(C, 2)``, else None.
    given: Array | None


class AffineGradients(NamedTuple, Generic[A]):
    """Of methods without arrays of their own; None where the parameter was None."""

    dx: A
    dweight: A | None
    dbias: A | None


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
