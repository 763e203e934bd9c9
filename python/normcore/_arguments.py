"""Arguments of layers, checked one by one.

Errors name the argument, what it is and the rule: a TypeError for another kind, a ValueError for a
value out of range. They come when the layer is made, before anything has changed.
"""

from __future__ import annotations

import math
import operator
import reprlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from . import _core

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80


def shown(value: object) -> str:
    """Return one short line for a message, whatever the value is."""
    return " ".join(_repr.repr(value).split())


def integer(name: str, value: Any, rule: str = "an integer") -> int:
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {shown(value)}, expected {rule}") from None


def positive(name: str, value: Any) -> int:
    result = integer(name, value, "an integer >= 1")
    if result < 1:
        raise ValueError(f"{name} is {result}, expected at least 1")
    if result > sys.maxsize:
        raise ValueError(f"{name} is {shown(result)}, expected at most {sys.maxsize}")
    return result


def axis(name: str, value: Any, ndim: int) -> int:
    """Return an axis of x, counted from the first one."""
    result = integer(name, value)
    if not -ndim <= result < ndim:
        raise ValueError(
            f"{name} is {result}, expected {-ndim} to {ndim - 1} for x with {ndim} axes"
        )
    return result % ndim


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """Return a sequence of positive integers."""
    scalar = isinstance(value, np.ndarray) and value.ndim == 0  # which has __iter__ all the same
    if scalar or isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} is {shown(value)}, expected a sequence of integers >= 1")
    return tuple(positive(name, n) for n in value)


def flag(name: str, value: Any) -> bool:
    # No truth of other objects: "False" is true.
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {shown(value)}, expected a bool")
    return bool(value)


def number(
    name: str,
    value: Any,
    rule: str = "a finite number",
    holds: Callable[[float], bool] = math.isfinite,
) -> float:
    kinds = str, bytes, bytearray, bool, np.bool_
    try:
        if isinstance(value, kinds) or np.ndim(value) > 0:
            raise TypeError
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {shown(value)}, expected {rule}") from None
    except OverflowError:
        result = math.inf
    if not holds(result):
        raise ValueError(f"{name} is {shown(value)}, expected {rule}")
    return result


def not_negative(name: str, value: Any) -> float:
    return number(name, value, "a finite number >= 0", lambda v: 0 <= v < math.inf)


def above_zero(name: str, value: Any) -> float:
    return number(name, value, "a finite number > 0", lambda v: 0 < v < math.inf)


def averaging(name: str, value: Any) -> float | None:
    """Return a momentum, None being the cumulative average."""
    if value is None:
        return None
    return number(name, value, "None or a number from 0 to 1", lambda v: 0 <= v <= 1)


def choice(name: str, value: Any, allowed: Iterable[str]) -> Any:
    rule = f"{name} is {shown(value)}, expected {' or '.join(map(repr, allowed))}"
    if not isinstance(value, str):
        raise TypeError(rule)
    if value not in allowed:
        raise ValueError(rule)
    return value


def generator(name: str, value: Any) -> np.random.Generator:
    try:
        return np.random.default_rng(value)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{name} is {shown(value)}, expected a numpy.random.Generator or a seed >= 0"
        ) from None


def shape_of(x: Any, name: str = "x") -> tuple[int, ...]:
    """Return the shape of an array of any library, or of what NumPy can read as one."""
    shape = getattr(x, "shape", None)
    if type(shape) is tuple:
        return shape
    try:
        if shape is None and hasattr(x, "__dlpack__"):
            return _core.to_numpy(x, name).shape
        return tuple(np.shape(x))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} is {shown(x)}, expected an array: {error}") from None
