"""Arrays of other libraries: reading them, results handed over through DLPack, current streams."""

from __future__ import annotations

import contextlib
import functools
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from . import _core

Array = npt.NDArray[Any]

_LONGEST_TEXT = 300


class ExportError(BufferError, TypeError):
    """An array's library refuses to hand over its memory.

    A BufferError, which exporters raise, and a TypeError as other arrays of a wrong kind are.
    """


def library_of(array: Any) -> str:
    """Return the name of the library that an array belongs to, as "torch".

    It is that of the nearest of its class and base classes that can take arrays over: a subclass of
    an array of torch may be defined anywhere.
    """
    return _library_of_class(type(array))


def _library_of_class(kind: type) -> str:
    for base in kind.__mro__:
        root = str(base.__module__).partition(".")[0]
        if hasattr(sys.modules.get(root), "from_dlpack"):
            return root
    return str(kind.__module__).partition(".")[0]


def current_stream(array: Any) -> int | None:
    """Return the CUDA stream on which the library of ``array`` works now, 0 for the default.

    None where the library does not say.
    """
    root = library_of(array)
    if root == "torch":
        return int(sys.modules["torch"].cuda.current_stream(array.device).cuda_stream)
    if root == "cupy":
        return int(sys.modules["cupy"].cuda.get_current_stream(array.device.id).ptr)
    return None


def export(array: Any, stream: int) -> Any:
    """Return a DLPack capsule of an array on a CUDA device, ready on ``stream``; -1: as it is."""
    # torch exports of its current device alone.
    with (
        sys.modules["torch"].cuda.device(array.device)
        if library_of(array) == "torch"
        else contextlib.nullcontext()
    ):
        try:
            return array.__dlpack__(stream=stream, max_version=(1, 0))
        except TypeError:
            return array.__dlpack__(stream=stream)  # an exporter of before version 1


def _empty_torch(
    like: Any, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str | None
) -> Any:
    torch = sys.modules["torch"]
    kind = like.dtype if dtype is None else getattr(torch, dtype)
    # Not by DLPack's allocator: of a tensor that comes out of a capsule torch would not know the
    # memory, and its record_stream does nothing.
    made = torch.empty_strided(shape, strides, dtype=kind, device=like.device)
    return made if type(made) is torch.Tensor else None  # in a mode that makes others


def _empty_cupy(
    like: Any, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str | None
) -> Any:
    cupy = sys.modules["cupy"]
    order = sorted(range(len(shape)), key=lambda axis: -strides[axis])
    with like.device:  # on its current stream
        made = cupy.empty([shape[a] for a in order], like.dtype if dtype is None else dtype)
    return made.transpose([order.index(axis) for axis in range(len(shape))])


@functools.lru_cache(maxsize=64)
def _maker(kind: type[Any]) -> Callable[..., Any] | None:
    return {"torch": _empty_torch, "cupy": _empty_cupy}.get(_library_of_class(kind))


def empty(like: Any, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str | None) -> Any:
    """Return a new array of the library and on the device of ``like``, None where we know no way.

    Its strides, in elements, leave no gaps; ``dtype`` is a name, or None for that of ``like``.
    """
    kind: Any = type(like)  # hashable, which mypy does not see of type[Any]
    maker = _maker(kind)
    return None if maker is None else maker(like, shape, strides, dtype)


def adopt(like: Any, buffer: Any) -> Any:
    """Return ``buffer`` as an array of the library that ``like`` belongs to.

    An object whose library is not known gets a NumPy array, or the buffer itself, which has
    ``__dlpack__``, where NumPy lacks the dtype.
    """
    namespace = getattr(like, "__array_namespace__", None)
    library = namespace() if namespace is not None else sys.modules.get(library_of(like))
    from_dlpack = getattr(library, "from_dlpack", None)
    if from_dlpack is not None:
        return from_dlpack(buffer)
    try:
        return np.from_dlpack(buffer)
    except (BufferError, RuntimeError):
        return buffer


def without_gradient(array: Any, name: str) -> Any:
    """Return a tensor that requires a gradient as one that does not, where torch records none."""
    torch = sys.modules.get("torch")
    if torch is None or torch.is_grad_enabled():
        raise ExportError(
            f"{name} requires a gradient, which the functions of normcore do not record: call that "
            f"of normcore.torch, or pass {name}.detach()"
        )
    return array.detach()


def refuse_export(array: Any, name: str, error: BaseException) -> NoReturn:
    """Raise what an exporter of memory raised as an error that names the argument."""
    kind = type(array)
    raise ExportError(
        f"{name} is a {kind.__module__}.{kind.__qualname__} whose memory cannot be taken over, "
        f"expected an array that exports it by DLPack: {str(error)[:_LONGEST_TEXT]}"
    ) from error


def refuse_immutable(array: Any, name: str) -> None:
    """Raise for arrays that are values to their library, which may share their memory.

    Their capsules do not say so.
    """
    kind: Any = type(array)
    library = _immutable(kind)
    if library is not None:
        raise ValueError(
            f"{name} is an array of {library}, whose arrays are immutable, expected a writeable "
            "array"
        )


@functools.lru_cache(maxsize=64)
def _immutable(kind: type[Any]) -> str | None:
    for base in kind.__mro__:
        root = str(base.__module__).partition(".")[0]
        if root in ("jax", "jaxlib", "tensorflow"):
            return "jax" if root == "jaxlib" else root
    return None


def refuse_masked(array: Any, name: str) -> None:
    """Raise for a NumPy masked array that hides values: its mask would be lost."""
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise TypeError(
            f"{name} is a masked array with {np.count_nonzero(array.mask)} masked values, expected "
            "an array without a mask: fill it, or pass mask= to a function that has one"
        )


def split_masked(x: Any, mask: Any, channel_axis: Any = None) -> tuple[Any, Any]:
    """Return x and mask where x may be a NumPy masked array: its data, and what it does not hide.

    With a channel axis the mask must hide all channels of a position, or none.
    """
    if not isinstance(x, np.ma.MaskedArray):
        return x, mask
    data, hidden = np.asarray(np.ma.getdata(x)), np.ma.getmaskarray(x)
    if not hidden.any():
        return data, mask
    if mask is not None:
        raise ValueError("x is a masked array and mask is given, expected one of them")
    if channel_axis is not None:
        axis = operator.index(channel_axis) if hasattr(channel_axis, "__index__") else data.ndim
        if not -data.ndim <= axis < data.ndim:
            return data, mask  # the core refuses the axis
        first = hidden.take([0], axis)
        if (hidden != first).any():
            raise ValueError(
                "x is a masked array that hides some channels of a position and not others, "
                "expected all or none: pass mask=, of x's shape without the channel axis"
            )
        hidden = first.squeeze(axis)
    return data, ~hidden


def as_array(value: Any, name: str) -> Array:
    """Return what NumPy makes of a value that is no array; of nested lists, say."""
    if isinstance(value, (list, tuple)):
        for item in value:
            refuse_masked(item, f"an item of {name}")
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{name} is {repr(value)[:100]}, expected an array or nested lists of one shape: "
            f"{str(error)[:_LONGEST_TEXT]}"
        ) from error


def as_numpy(value: Any, name: str = "the array") -> Array:
    """Return an array or tensor of any library, also a torch parameter, as a NumPy array."""
    refuse_masked(value, name)
    if hasattr(value, "detach"):  # torch: off the tape and the device; NumPy lacks its bfloat16
        value = value.detach().cpu()
        for bit in ("conj", "neg"):  # which say that the memory holds something else
            if hasattr(value, f"resolve_{bit}"):
                value = getattr(value, f"resolve_{bit}")()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    elif library_of(value) == "cupy":
        value = value.get()
    elif hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return _core.to_numpy(value, name)
    return as_array(value, name)


def is_wide(x: Any) -> bool:
    """Whether the statistics of x are float64."""
    return str(getattr(x, "dtype", "float64")).rpartition(".")[2] == "float64"


_CUDA = 2  # of DLPack


def _is_there(array: Any) -> bool:
    """Whether an array lies on a device."""
    return bool(getattr(array, "__dlpack_device__", lambda: (1, 0))()[0] == _CUDA)


def spread(
    mask: Any,
    shape: Sequence[int],
    channel_axis: int | None,
    broadcast: Callable[[Any, tuple[int, ...]], Any],
) -> Any:
    """Return a mask broadcast, by its library's way, to x's shape or to that without channels."""
    kept, rule = list(shape), "x.shape"
    if channel_axis is not None:
        if not -len(kept) <= channel_axis < len(kept):
            return mask  # the core refuses the axis
        del kept[channel_axis]
        rule += " without the channel axis"
    try:
        return broadcast(mask, tuple(kept))
    except (ValueError, RuntimeError):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, expected {tuple(kept)}, {rule}, "
            "or what broadcasts to it"
        ) from None


def tensor_weights(mask: Any, shape: Sequence[int], wide: bool, channel_axis: int | None) -> Any:
    """As `position_weights`, of a tensor of torch."""
    torch = sys.modules["torch"]
    if mask.dtype.is_complex:
        raise TypeError(f"mask has dtype {mask.dtype}, expected bools or real numbers")
    weights = mask.detach().to(torch.float64 if wide else torch.float32)
    return spread(weights, shape, channel_axis, lambda a, kept: a.expand(kept))


def _weights_there(mask: Any, shape: Sequence[int], wide: bool, channel_axis: int | None) -> Any:
    """As `position_weights`, of a mask on a device, which stays there."""
    library = library_of(mask)
    if library == "torch":
        return tensor_weights(mask, shape, wide, channel_axis)
    if library == "cupy":
        weights = mask.astype("float64" if wide else "float32")
        return spread(weights, shape, channel_axis, sys.modules[library].broadcast_to)
    return mask  # which the core takes where shape and dtype are those of the weights


def counts_nothing(weights: Any) -> bool:
    """Whether no weight of a mask counts, as far as that is known without waiting for a device."""
    return not _is_there(weights) and not weights.any()


def position_weights(
    mask: Any, shape: tuple[int, ...], wide: bool, channel_axis: int | None = None
) -> Any:
    """Return ``mask`` as the core takes it: of x's shape, or of that without the channel axis, in
    the dtype of x's statistics."""
    if _is_there(mask):
        return _weights_there(mask, shape, wide, channel_axis)
    weights = as_numpy(mask, "mask")
    if weights.dtype.kind not in "buif" and weights.dtype.name != "bfloat16":
        raise TypeError(f"mask has dtype {weights.dtype}, expected bools or real numbers")
    weights = weights.astype(np.float64 if wide else np.float32)
    return spread(weights, shape, channel_axis, np.broadcast_to)
