"""Layers over rows: the trailing axes, or those that are named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, ClassVar, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from ._arguments import flag, integer, positive, sizes
from ._attributes import maybe
from ._layer import _Layer, affine_parameters
from ._typing import A


class _RowLayer(_Layer):
    """A layer over the trailing axes, or those of ``axis``, which can add a residual first."""

    _leading = ("normalized_shape",)
    _unusual: ClassVar[dict[str, object]] = {"axis": None}

    weight = maybe("Scale, of shape `normalized_shape`; None without `elementwise_affine`.")

    def __init__(
        self,
        normalized_shape: SupportsIndex | Iterable[SupportsIndex],
        eps: float | None,
        elementwise_affine: bool,
        axis: SupportsIndex | Sequence[SupportsIndex] | None,
        dtype: npt.DTypeLike,
        *,
        bias: bool,
    ) -> None:
        if not isinstance(normalized_shape, Iterable):
            normalized_shape = (positive("normalized_shape", normalized_shape),)
        self.normalized_shape = sizes("normalized_shape", normalized_shape)
        if not self.normalized_shape:
            raise ValueError("normalized_shape is (), expected at least one size")
        self.axis = None if axis is None else axes_of(axis)
        if self.axis is not None and len(self.axis) != len(self.normalized_shape):
            raise ValueError(
                f"axis is {self.axis}, expected one axis for each size of "
                f"normalized_shape={self.normalized_shape}"
            )
        self.eps: float | None = eps
        self.elementwise_affine = flag("elementwise_affine", elementwise_affine)
        bias = flag("bias", bias) and self.elementwise_affine
        super().__init__(
            affine_parameters(
                self.normalized_shape,
                dtype,
                "normalized_shape",
                weight=self.elementwise_affine,
                bias=bias,
            )
        )

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        expected = self.normalized_shape
        if self.axis is None:
            if shape[-len(expected) :] != expected:
                wanted = ", ".join(["...", *map(str, expected)])
                raise ValueError(f"x has shape {shape}, expected ({wanted}): {self!r}")
            return
        ndim = len(shape)
        if not all(-ndim <= a < ndim for a in self.axis):
            raise ValueError(f"x has shape {shape}, expected the axes of axis={self.axis}")
        # Axes named twice are for the function to refuse.
        if tuple(shape[a] for a in sorted(a % ndim for a in self.axis)) != expected:
            raise ValueError(
                f"x has shape {shape}, expected {expected} over axis={self.axis}, ascending"
            )

    def _options(self) -> dict[str, Any]:
        return {"axis": last_axes(len(self.normalized_shape)) if self.axis is None else self.axis}

    @overload
    def __call__(self, x: A, residual: None = None) -> A: ...
    @overload
    def __call__(self, x: A, residual: A) -> tuple[A, A]: ...
    def __call__(self, x: A, residual: A | None = None) -> Any:
        """Normalize x, or, with a residual of x's shape, return (y, h) for h = x + residual."""
        self._gradient = None  # so that no gradient of an earlier call outlives a failed one
        y, gradient = self._forward(x, residual=residual)
        self._gradient = partial(_without_residual, gradient) if residual is None else gradient
        return y

    def backward(self, dy: A, dh: A | None = None) -> A:
        """Return dx for the last forward call; add the parameters' gradients to `grads`.

        Parameters
        ----------
        dy : array
            Gradient of the loss with respect to y.
        dh : array, optional
            Gradient with respect to h, where the forward call had a residual.

        Returns
        -------
        array
            Gradient with respect to x and, the same, to the residual.

        Raises
        ------
        RuntimeError
            When no forward call has succeeded before.
        ValueError
            For dh where the forward call had no residual.
        """
        return self._run_backward(dy, dh=dh)


def _without_residual(gradient: Callable[..., Any], dy: Any, dh: Any) -> Any:
    if dh is not None:
        raise ValueError("dh was given, but the forward call had no residual")
    return gradient(dy)


@cache
def last_axes(n: int) -> tuple[int, ...]:
    return tuple(range(-n, 0))


def axes_of(axis: Any) -> tuple[int, ...]:
    rule = "an integer or a sequence of integers"
    if isinstance(axis, str | bytes) or np.ndim(axis) == 0:
        return (integer("axis", axis, rule),)
    return tuple(integer("axis", a, rule) for a in axis)
