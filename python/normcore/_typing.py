"""Types of what functions and layers take and return, for type checkers.

Arrays of every library go in and come out as what they are: `A` is the type of x. Lists of numbers
are read for x too, but a checker asks for an array there, since a list does not come back.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

if sys.version_info >= (3, 11):
    from typing import NamedTuple
else:  # where named tuples cannot be generic
    from typing_extensions import NamedTuple

__all__ = ["A", "Communicator", "Floats", "NamedTuple", "SupportsDLPack"]


class SupportsDLPack(Protocol):
    """An array of NumPy, PyTorch, JAX, CuPy, or of any library with DLPack."""

    def __dlpack__(self) -> Any: ...
    def __dlpack_device__(self) -> Any: ...


class Communicator(Protocol):
    """What sums arrays over processes, such as a communicator of mpi4py."""

    def allreduce(self, array: Any, /) -> Any: ...


A = TypeVar("A", bound=SupportsDLPack)

# A parameter: an array of any library, or numbers as NumPy reads them.
Floats = SupportsDLPack | Sequence[float] | Sequence[Sequence[float]]
