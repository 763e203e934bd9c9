"""Arrays of other libraries: results handed over through DLPack, and current streams."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


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


def as_numpy(value: Any) -> Array:
    """Return an array or tensor of any library, also a torch parameter, as a NumPy array."""
    if hasattr(value, "detach"):  # torch: off the tape and the device; NumPy lacks its bfloat16
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    elif hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return np.from_dlpack(value)
    return np.asarray(value)


def position_weights(mask: Any, x: Any, channel_axis: int | None = None) -> Array:
    """Return ``mask`` as the core takes it: of x's shape, or of that without the channel axis, in
    the dtype of x's statistics."""
    weights = as_numpy(mask)
    if weights.dtype.kind not in "buif" and weights.dtype.name != "bfloat16":
        raise TypeError(f"mask has dtype {weights.dtype}, expected bools or real numbers")
    wide = str(getattr(x, "dtype", "float64")).rpartition(".")[2] == "float64"
    weights = weights.astype(np.float64 if wide else np.float32)
    shape, rule = list(np.shape(x)), "x.shape"
    if channel_axis is not None:
        if not -len(shape) <= channel_axis < len(shape):
            return weights  # the core refuses the axis
        del shape[channel_axis]
        rule += " without the channel axis"
    try:
        return np.broadcast_to(weights, shape)
    except ValueError:
        raise ValueError(
            f"mask has shape {weights.shape}, expected {tuple(shape)}, {rule}, "
            "or what broadcasts to it"
        ) from None
