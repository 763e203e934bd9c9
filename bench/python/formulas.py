"""The five methods as one formula over an array module: the NumPy and JAX peers, and a check.

A case is reshaped so that its pools are whole axes: `view` is the shape, `axes` the reduced axes,
`param_view` the shape in which weight and bias broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.python.cells import Case

EPS = {"rms_norm": 1e-6}
DEFAULT_EPS = 1e-5


def eps_of(case: Case) -> float:
    """The default eps of the case's function."""
    return EPS.get(case.op, DEFAULT_EPS)


@dataclass(frozen=True)
class Pools:
    """How x is seen: its shape, the axes of a pool, and where the parameters broadcast."""

    view: tuple[int, ...]
    axes: tuple[int, ...]
    param_view: tuple[int, ...]

    @property
    def param_axes(self) -> tuple[int, ...]:
        """The axes over which a parameter's gradient is summed."""
        return tuple(i for i, n in enumerate(self.param_view) if n == 1)


def pools_of(case: Case) -> Pools:
    """The pools of a case; KeyError for an op that has no formula here."""
    shape = case.memory_shape
    ndim = len(shape)
    channel = case.channel_axis % ndim

    def keep(axis: int, view: tuple[int, ...] = shape) -> tuple[int, ...]:
        return tuple(n if i == axis else 1 for i, n in enumerate(view))

    if case.op in ("layer_norm", "rms_norm"):
        axis = case.option("axis", -1) % ndim
        return Pools(shape, (axis,), keep(axis))
    if case.op == "batch_norm":
        return Pools(shape, tuple(i for i in range(ndim) if i != channel), keep(channel))
    if case.op == "instance_norm":
        axes = tuple(i for i in range(1, ndim) if i != channel)
        return Pools(shape, axes, keep(channel))
    if case.op == "group_norm":
        groups = case.option("num_groups")
        split = (groups, shape[channel] // groups)
        view = (*shape[:channel], *split, *shape[channel + 1 :])
        axes = tuple(i for i in range(1, ndim + 1) if i != channel)
        param = tuple(n if i in (channel, channel + 1) else 1 for i, n in enumerate(view))
        return Pools(view, axes, param)
    raise KeyError(case.op)


def forward(xp: Any, case: Case, x: Any, weight: Any, bias: Any, running: tuple[Any, Any]) -> Any:
    """y = (x - mean) * rstd * weight + bias, in float32, rounded once to x's dtype."""
    pools = pools_of(case)
    x32, mean, rstd = _statistics(xp, case, pools, x, running)
    y = (x32 - mean) * rstd if case.op != "rms_norm" else x32 * rstd
    y = y * weight.reshape(pools.param_view).astype(xp.float32)
    if bias is not None:
        y = y + bias.reshape(pools.param_view).astype(xp.float32)
    return y.reshape(x.shape).astype(x.dtype)


def backward(
    xp: Any, case: Case, dy: Any, x: Any, weight: Any, bias: Any, running: tuple[Any, Any]
) -> tuple[Any, ...]:
    """(dx, dweight[, dbias]) of `forward`."""
    pools = pools_of(case)
    x32, mean, rstd = _statistics(xp, case, pools, x, running)
    x_hat = (x32 - mean) * rstd if case.op != "rms_norm" else x32 * rstd
    dy32 = dy.reshape(pools.view).astype(xp.float32)
    g = dy32 * weight.reshape(pools.param_view).astype(xp.float32)
    if case.variant == "eval":
        dx = g * rstd
    else:
        projected = x_hat * xp.mean(g * x_hat, axis=pools.axes, keepdims=True)
        dx = g - projected
        if case.op != "rms_norm":
            dx = dx - xp.mean(g, axis=pools.axes, keepdims=True)
        dx = dx * rstd
    dx = dx.reshape(x.shape).astype(x.dtype)
    dweight = xp.sum(dy32 * x_hat, axis=pools.param_axes).reshape(weight.shape)
    if bias is None:
        return dx, dweight.astype(weight.dtype)
    dbias = xp.sum(dy32, axis=pools.param_axes).reshape(bias.shape)
    return dx, dweight.astype(weight.dtype), dbias.astype(bias.dtype)


def _statistics(
    xp: Any, case: Case, pools: Pools, x: Any, running: tuple[Any, Any]
) -> tuple[Any, Any, Any]:
    x32 = x.reshape(pools.view).astype(xp.float32)
    if case.variant == "eval":
        mean, var = (stat.reshape(pools.param_view) for stat in running)
    elif case.op == "rms_norm":
        mean, var = None, xp.mean(x32 * x32, axis=pools.axes, keepdims=True)
    else:
        mean = xp.mean(x32, axis=pools.axes, keepdims=True)
        centred = x32 - mean
        var = xp.mean(centred * centred, axis=pools.axes, keepdims=True)
    return x32, mean, 1.0 / xp.sqrt(var + eps_of(case))
