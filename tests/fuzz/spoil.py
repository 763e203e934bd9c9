"""Spoils one argument of a valid call, and says what must then be true of the answer."""

from dataclasses import dataclass

import hostile
import numpy as np
from hypothesis import strategies as st

# These count iterations: a large one is valid, and takes for ever.
LONG = ("n_power_iterations", "n_iterations", "max_iterations", "n")
ITERABLES = ("axis", "normalized_shape", "shape", "summation_window", "suppression_window")
FLAGS = (
    *("training", "return_stats", "keepdims", "use_input_stats", "unbiased_running_var"),
    *("inverse", "affine", "elementwise_affine", "track_running_stats", "bias"),
)
NO_DTYPE_OF_OURS = ("complex64", "object", "words", "dates", "records", "ragged", "long double")
NOT_WRITABLE = ("read-only", "overlapping", "broadcast")


@dataclass
class Spoilt:
    name: str
    value: object
    what: str
    refused: bool = False  # no answer can be right

    def __str__(self):
        return f"{self.name} is {self.what}" + (", must be refused" if self.refused else "")


def spoil(draw, name, value, others):
    """Return something else than ``value`` for the argument; ``others`` are those of the call."""
    kinds = [_never, _number, _object, _none]
    if isinstance(value, np.ndarray):
        kinds += [_array, _array, _capsule, _capsule, _alias]
    return draw(st.sampled_from(kinds))(draw, name, value, others)


def _none(draw, name, value, others):
    return Spoilt(name, None, "None")


def _never(draw, name, value, others):
    what = draw(st.sampled_from(sorted(hostile.NEVER)))
    refused = not (name in ITERABLES and what in ("a generator", "a dict", "a set", "bytes"))
    if name == "rng":  # whatever NumPy takes
        refused = False
    return Spoilt(name, hostile.NEVER[what](), what, refused)


def _number(draw, name, value, others):
    ints = [n for n in hostile.INTS if name not in LONG or not 2 < n < 2**63]
    number = draw(st.sampled_from([*ints, *hostile.FLOATS]))
    wraps = draw(st.sampled_from((None, np.float32, np.float64, np.int64, np.uint8, np.array)))
    if wraps is None:
        return Spoilt(name, number, repr(number))
    with np.errstate(all="ignore"):
        try:
            return Spoilt(name, wraps(number), f"{wraps.__name__}({number!r})")
        except (OverflowError, ValueError):
            return Spoilt(name, number, repr(number))


def _object(draw, name, value, others):
    what = draw(st.sampled_from(sorted(hostile.OBJECTS)))
    return Spoilt(name, hostile.OBJECTS[what](), f"an object whose {what}")


def _array(draw, name, value, others):
    what = draw(st.sampled_from(sorted(hostile.ARRAYS)))
    with np.errstate(all="ignore"):
        try:
            new = hostile.ARRAYS[what](value)
        except Exception:  # an array for which there is no such change
            return _none(draw, name, value, others)
    refused = what in NO_DTYPE_OF_OURS
    if name == "out" and what in NOT_WRITABLE and value.size > 1:
        refused = what != "overlapping" or max(value.shape) < value.size
    return Spoilt(name, new, what, refused)


def _capsule(draw, name, value, others):
    what, sound, make = draw(st.sampled_from(hostile.CAPSULES))
    wrong = not sound and value.size > 1
    if name == "out" and what == "read-only":
        wrong = True
    if name == "mask":  # converted by NumPy, which reads what the library does not
        wrong = False
    return Spoilt(name, make(value), f"DLPack, {what}", wrong)


def _alias(draw, name, value, others):
    """The memory of another argument, or a part of it."""
    arrays = {k: v for k, v in others.items() if isinstance(v, np.ndarray) and k != name}
    if not arrays:
        return _none(draw, name, value, others)
    of = draw(st.sampled_from(sorted(arrays)))
    other = arrays[of]
    how = draw(st.sampled_from(("itself", "reversed", "shifted")))
    if how == "reversed" and other.ndim:
        other = other[::-1]
    if how == "shifted" and other.ndim and other.size:
        base = np.ascontiguousarray(other).reshape(-1)
        long = np.concatenate([base, base[:1]])
        others[of] = long[:-1].reshape(other.shape)
        other = long[1:].reshape(other.shape)
    # In place is what callers may ask for; a single element has no other way round.
    refused = name == "out" and how != "itself" and other.size > 1
    refused = refused and np.shares_memory(other, others[of])
    if how == "reversed":
        refused = refused and other.shape[0] > 1
    return Spoilt(name, other, f"{of} {how}", refused)
