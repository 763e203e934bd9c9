"""The life of batch statistics: what layers with running buffers share beside their formula.

Ghost batches, statistics computed again over a whole data set, and folding into the linear layer
before.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._arguments import flag, integer
from ._interop import Array, library_of
from ._layer import _Layer, float_array, real_array
from ._owned import in_numpy
from ._typing import Floats


def ghost_chunks(samples: int, size: int, values_per_sample: int) -> list[slice]:
    """Return contiguous chunks of ``size`` samples, the last not with one value per channel."""
    starts = list(range(0, samples, size))
    if len(starts) > 1 and (samples - starts[-1]) * values_per_sample == 1:
        starts.pop()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], samples], strict=True)]


def writable_like(x: Any) -> Any:
    """Return a new array of x's library and memory order, None where it could not be written."""
    if library_of(x) in ("torch", "cupy"):
        return sys.modules[library_of(x)].empty_like(x)
    if hasattr(x, "__dlpack__") and not isinstance(x, np.ndarray):  # JAX
        return None
    return np.empty_like(x, subok=False)


class Parts:
    """The results of chunks of ``like``, as one array of its library.

    They are written where they belong in it, or joined at the end where that cannot be.
    """

    def __init__(self, like: Any, chunks: Sequence[slice]) -> None:
        self._like = like
        self._parts: list[Any] = []
        self._out = None if len(chunks) == 1 else writable_like(like)

    def out(self, chunk: slice) -> Any:
        """Where the result of a chunk is to be written, if that is known beforehand."""
        return None if self._out is None else self._out[chunk]

    def add(self, part: Any) -> None:
        self._parts.append(part)

    def joined(self) -> Any:
        if self._out is not None:
            return self._out
        if len(self._parts) == 1:
            return self._parts[0]
        return self._like.__array_namespace__().concat(self._parts)


class Foldable(_Layer):
    """For layers that in evaluation are one scale and one shift a channel."""

    num_features: int
    channel_axis: int

    def _scale_and_shift(self) -> tuple[Array, Array]:
        if "running_mean" not in self.buffers:
            raise ValueError("fold_into needs running statistics: track_running_stats is False")
        if self.buffers["running_mean"].ndim > 1:
            raise ValueError("fold_into needs one row of statistics: the layer has time_steps")
        # In evaluation y = scale * x + shift: the shift is y at x = 0, the scale is dx for dy = 1.
        probe = copy.copy(self).eval()  # takes the calls, so that this layer keeps its last one
        probe.channel_axis = 1
        probe.parameters = {k: in_numpy(v) for k, v in self.parameters.items()}
        probe.buffers = {k: in_numpy(v) for k, v in self.buffers.items()}
        probe.grads = {}
        probe.zero_grad()
        shift = probe(np.zeros((1, self.num_features)))
        scale = probe.backward(np.ones((1, self.num_features)))
        return scale[0], shift[0]

    def fold_into(
        self,
        conv_weight: Floats,
        conv_bias: Floats | None = None,
        transposed: bool = False,
        groups: int = 1,
    ) -> tuple[Array, Array]:
        """Fold this layer, as it is in evaluation, into the linear layer before it.

        Parameters
        ----------
        conv_weight : array
            Of a dense layer or convolution, (out, in / groups, ...), or with `transposed` of a
            transposed convolution, (in, out / groups, ...), as in PyTorch.
        conv_bias : array of shape (out,), optional
            0 when omitted.
        transposed : bool, default False
            Whether the convolution is transposed.
        groups : int, default 1
            Of the convolution.

        Returns
        -------
        weight, bias
            New arrays of NumPy in the dtype of `conv_weight`; computed in float64.

        Raises
        ------
        ValueError
            For shapes that do not fit, or without running statistics.
        TypeError
            For a `conv_weight` that is not of floats, or a `conv_bias` not of real numbers.
        """
        scale, shift = self._scale_and_shift()
        w = float_array("conv_weight", conv_weight)
        if w.ndim < 2:
            raise ValueError(f"conv_weight has shape {w.shape}, expected at least two axes")
        transposed, groups = flag("transposed", transposed), integer("groups", groups)
        if groups < 1 or w.shape[0] % groups:
            raise ValueError(
                f"groups is {groups}, expected a positive divisor of "
                f"conv_weight.shape[0]={w.shape[0]}"
            )
        channels = w.shape[1] * groups if transposed else w.shape[0]
        if channels != self.num_features:
            raise ValueError(
                f"conv_weight has shape {w.shape}, {channels} output channels, expected "
                f"{self.num_features}: num_features"
            )
        bias = np.zeros(channels)
        if conv_bias is not None:
            bias = real_array("conv_bias", conv_bias).astype(np.float64)
        if bias.shape != (channels,):
            raise ValueError(f"conv_bias has shape {bias.shape}, expected ({channels},)")
        space = (1,) * (w.ndim - 2)
        wide = w.astype(np.float64)
        if transposed:  # the groups are blocks of the inputs, and share none of the outputs
            blocks = wide.reshape(groups, w.shape[0] // groups, *w.shape[1:])
            folded = (blocks * scale.reshape(groups, 1, -1, *space)).reshape(w.shape)
        else:
            folded = wide * scale.reshape(-1, 1, *space)
        return folded.astype(w.dtype), (bias * scale + shift).astype(w.dtype)
