"""The life of batch statistics: what layers with running buffers share beside their formula.

Statistics computed again over a whole data set, and folding into the linear layer before.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ._layer import Array, as_numpy


class MergedMoments:
    """Count, means and sums of squared deviations per channel, merged in float64 (Chan)."""

    def __init__(self, channels: int) -> None:
        self.count = 0.0
        self.mean = np.zeros(channels)
        self.m2 = np.zeros(channels)
        self.var_within = np.zeros(channels)  # sum of the variances, weighed by their counts

    def add(self, count: float, mean: Array, var: Array) -> None:
        """Take in ``count`` values a channel of the given mean and biased variance."""
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.m2 = self.m2 + var * count + delta**2 * (self.count * count / total)
        self.var_within = self.var_within + var * count
        self.count = total

    def var(self, *, unbiased: bool) -> Array:
        result: Array = self.m2 / max(1.0, self.count - 1 if unbiased else self.count)
        return result


class Foldable:
    """For layers that in evaluation are one scale and one shift a channel."""

    num_features: int
    eps: float
    parameters: dict[str, Array]
    buffers: dict[str, Array]
    _running: ClassVar[tuple[str, ...]]

    def _scale_and_shift(self) -> tuple[Array, Array]:
        if "running_mean" not in self.buffers:
            raise ValueError("fold_into needs running statistics: track_running_stats is False")
        wide = {
            k: as_numpy(v).astype(np.float64)
            for k, v in {**self.parameters, **self.buffers}.items()
        }
        scale = np.array(wide.get("weight", np.ones(self.num_features)))
        for name in self._running[1:]:
            scale /= np.sqrt(wide[name] + self.eps) if name == "running_var" else wide[name]
        return scale, wide.get("bias", 0.0) - wide["running_mean"] * scale

    def fold_into(
        self, conv_weight: Any, conv_bias: Any = None, transposed: bool = False, groups: int = 1
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
            New arrays in the dtype of `conv_weight`; computed in float64.

        Raises
        ------
        ValueError
            For shapes that do not fit, or without running statistics.
        """
        scale, shift = self._scale_and_shift()
        w = as_numpy(conv_weight)
        if w.ndim < 2:
            raise ValueError(f"conv_weight has shape {w.shape}, expected at least two axes")
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
        bias = np.zeros(channels) if conv_bias is None else as_numpy(conv_bias).astype(np.float64)
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
