"""States in safetensors files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._dtypes import stored
from .._interop import Array


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ImportError("safetensors files need the package safetensors") from error
    return safetensors.numpy


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read a safetensors file; needs the package ``safetensors``."""
    result: dict[str, Array] = _safetensors().load_file(os.fspath(path))
    return result


def save_safetensors(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state to a safetensors file; needs the package ``safetensors``."""
    arrays = {key: np.ascontiguousarray(stored(value, key)) for key, value in state.items()}
    # Arrays without axes become arrays of one axis in ascontiguousarray.
    shaped = {key: arrays[key].reshape(np.shape(value)) for key, value in state.items()}
    _safetensors().save_file(shaped, os.fspath(path))
