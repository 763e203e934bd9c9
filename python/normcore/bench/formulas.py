"""Every method as one formula over an array module: the peers where a library has no such function.

NumPy, JAX and torch all run `forward`, as it stands in the papers; JAX and torch derive backward
from it. Running buffers are read, never moved. A case is reshaped so that its pools are whole axes:
`view` is the shape, `axes` the reduced axes, `param_view` the shape in which parameters broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .cells import Case
from .methods import methods

R_MAX, D_MAX = 3.0, 5.0  # of batch_renorm

Arrays = dict[str, Any]


def eps_of(case: Case) -> float:
    """The default eps of the case's function."""
    return methods()[case.op].eps


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
    """The pools of a case, those of the batch where it has several."""
    shape = case.memory_shape
    ndim = len(shape)
    channel = case.channel_axis % ndim

    def keep(axis: int, view: tuple[int, ...] = shape) -> tuple[int, ...]:
        return tuple(n if i == axis else 1 for i, n in enumerate(view))

    if case.op in ("layer_norm", "rms_norm", "normalize"):
        axis = case.option("axis", -1) % ndim
        return Pools(shape, (axis,), keep(axis))
    if case.op == "instance_norm":
        axes = tuple(i for i in range(1, ndim) if i != channel)
        return Pools(shape, axes, keep(channel))
    groups = case.option("num_groups")
    if groups:
        split = (groups, shape[channel] // groups)
        view = (*shape[:channel], *split, *shape[channel + 1 :])
        axes = tuple(i for i in range(1, ndim + 1) if i != channel)
        param = tuple(n if i in (channel, channel + 1) else 1 for i, n in enumerate(view))
        return Pools(view, axes, param)
    kept = case.option("axis", channel) % ndim
    return Pools(shape, tuple(i for i in range(ndim) if i != kept), keep(kept))


class Formula:
    """A case over an array module: x in float32, in the view of its pools."""

    def __init__(
        self, xp: Any, case: Case, x: Any, params: Arrays, buffers: Arrays, eps: float
    ) -> None:
        self.xp, self.case, self.pools, self.eps = xp, case, pools_of(case), eps
        self.training = case.variant != "eval"
        self.x = self.tensor(x)
        self.params = {name: self._parameter(name, value) for name, value in params.items()}
        self.buffers = {name: self._parameter(name, value) for name, value in buffers.items()}

    def tensor(self, x: Any) -> Any:
        """An array like x as it is computed with."""
        return _cast(x.reshape(self.pools.view), self.xp.float32)

    def _parameter(self, name: str, value: Any) -> Any:
        by_channel = not name.endswith("logits") and len(value.shape) == 1
        value = value.reshape(self.pools.param_view) if by_channel else value
        return _cast(value, self.xp.float32)

    def mean(self, values: Any, axes: tuple[int, ...] | None = None) -> Any:
        """The mean over the pools, or other axes."""
        axes = self.pools.axes if axes is None else axes
        return self.xp.mean(values, axis=axes, keepdims=True)

    def moments(self, axes: tuple[int, ...] | None = None) -> tuple[Any, Any]:
        """Mean and biased variance of x."""
        mean = self.mean(self.x, axes)
        centred = self.x - mean
        return mean, self.mean(centred * centred, axes)

    def batch_moments(self) -> tuple[Any, Any]:
        """Mean and variance of the batch, or the running ones."""
        if self.training:
            return self.moments()
        return self.buffers["running_mean"], self.buffers["running_var"]

    @property
    def sample_axes(self) -> tuple[int, ...]:
        """The axes of a pool of one sample and channel."""
        return self.pools.axes[1:]

    def rstd(self, var: Any) -> Any:
        """The reciprocal standard deviation."""
        return 1.0 / self.xp.sqrt(var + self.eps)


# ---- x_hat, what the weight multiplies, of each method


def _standardized(f: Formula) -> Any:
    mean, var = f.batch_moments()
    return (f.x - mean) * f.rstd(var)


def _rms_norm(f: Formula) -> Any:
    return f.x * f.rstd(f.mean(f.x * f.x))


def _batch_renorm(f: Formula) -> Any:
    if not f.training:
        return (f.x - f.buffers["running_mean"]) / f.buffers["running_std"]
    mean, var = f.moments()
    scale = f.xp.sqrt(var + f.eps)
    r, d = _corrections(f, mean, scale)
    return (f.x - mean) / scale * r + d


def _corrections(f: Formula, mean: Any, scale: Any) -> tuple[Any, Any]:
    old_mean, old_std = f.buffers["running_mean"], f.buffers["running_std"]
    r = f.xp.clip(scale / old_std, 1 / R_MAX, R_MAX)
    d = f.xp.clip((mean - old_mean) / old_std, -D_MAX, D_MAX)
    return _constant(f.xp, r), _constant(f.xp, d)


def _batch_instance_norm(f: Formula) -> Any:
    rho = f.params["rho"]
    mean, var = f.batch_moments()
    of_batch = (f.x - mean) * f.rstd(var)
    mean, var = f.moments(f.sample_axes)
    of_instance = (f.x - mean) * f.rstd(var)
    return rho * of_batch + (1 - rho) * of_instance


def _switchable_norm(f: Formula) -> Any:
    # Layer and batch statistics follow from those of the instances, as in the authors' code.
    mean, var = f.moments(f.sample_axes)
    square = var + mean * mean
    layer, batch = (1,), (0,)
    layer_mean, batch_mean = f.mean(mean, layer), f.mean(mean, batch)
    layer_var = f.mean(square, layer) - layer_mean * layer_mean
    batch_var = f.mean(square, batch) - batch_mean * batch_mean
    if not f.training:
        batch_mean, batch_var = f.batch_moments()
    w, v = (_softmax(f.xp, f.params[name]) for name in ("mean_logits", "var_logits"))
    mean = w[0] * mean + w[1] * layer_mean + w[2] * batch_mean
    var = v[0] * var + v[1] * layer_var + v[2] * batch_var
    return (f.x - mean) * f.rstd(var)


def _mean_only_batch_norm(f: Formula) -> Any:
    return f.x - (f.mean(f.x) if f.training else f.buffers["running_mean"])


def _lp_batch_norm(f: Formula) -> Any:
    centred = f.x - f.mean(f.x)
    return centred / (math.sqrt(math.pi / 2) * f.mean(abs(centred)) + f.eps)  # p = 1


def _topk_batch_norm(f: Formula) -> Any:
    centred = f.x - f.mean(f.x)
    channels, k = f.case.shape[1], f.case.option("k")
    columns = f.xp.moveaxis(abs(centred), f.case.channel_axis, 0).reshape(channels, -1)
    if hasattr(f.xp, "topk"):
        largest = f.xp.topk(columns, k, sorted=False).values
    else:
        largest = f.xp.partition(columns, columns.shape[1] - k)[:, -k:]
    range_of_normal = 2 * math.sqrt(2 * math.log(columns.shape[1]))
    factor = (1 + math.sqrt(math.pi * math.log(4))) / range_of_normal
    spread = f.xp.mean(largest, axis=1).reshape(f.pools.param_view)
    return centred / (factor * spread + f.eps)


def _gdn(f: Formula) -> Any:
    return f.x / f.xp.sqrt(_mixed(f, f.params["gamma"]) + f.params["beta"])


def _divisive_norm(f: Formula) -> Any:
    sigma = f.params["sigma"]
    return f.x / f.xp.sqrt(_mixed(f, f.params["weights"]) + sigma * sigma)


def _mixed(f: Formula, weights: Any) -> Any:
    """The squares of the channels of every position, mixed: a product of matrices."""
    squares = f.x * f.x
    if f.case.channel_axis == -1:
        return squares @ f.xp.swapaxes(weights, 0, 1)
    n, c, *space = squares.shape
    return (weights @ squares.reshape((n, c, -1))).reshape((n, c, *space))


def _weight_norm(f: Formula) -> Any:
    return f.x * (f.params["g"] / _length(f))


def _normalize(f: Formula) -> Any:
    return f.x / f.xp.clip(_length(f), f.eps, math.inf)


def _spectral_norm(f: Formula) -> Any:
    return f.x / _singular_triplet(f)[2]


def _singular_triplet(f: Formula) -> tuple[Any, Any, Any]:
    """u, v and sigma; no gradient flows through the iterations."""
    w, u = _constant(f.xp, f.x), f.buffers["u"]
    for _ in range(f.case.option("n_power_iterations")):
        v = w.T @ u
        v = v / f.xp.sqrt(f.xp.sum(v * v))
        u = w @ v
        u = u / f.xp.sqrt(f.xp.sum(u * u))
    return u, v, f.xp.sum(u * (f.x @ v))


def _length(f: Formula) -> Any:
    return f.xp.sqrt(f.xp.sum(f.x * f.x, axis=f.pools.axes, keepdims=True) + f.eps**2)


def _local_response_norm(f: Formula) -> Any:
    size = f.case.option("size")
    sums = _window_sum(f.xp, f.x * f.x, f.case.channel_axis, size // 2, (size - 1) // 2)
    return f.x * (1 + 1e-4 / size * sums) ** -0.75


def _local_divisive_norm(f: Formula) -> Any:
    v = f.x - _window_mean(f, f.x, f.case.option("summation_window"))
    of_squares = _window_mean(f, v * v, f.case.option("suppression_window"))
    return v / f.xp.sqrt(f.params["sigma"] ** 2 + of_squares)


def _window_mean(f: Formula, values: Any, size: int) -> Any:
    """Over all channels and the part of a window over space that lies inside."""
    channel, side = f.case.channel_axis % values.ndim, size // 2
    mean = f.xp.mean(values, axis=(channel,), keepdims=True)
    for axis in range(1, mean.ndim):
        if axis != channel:
            inside = _window_sum(f.xp, f.xp.ones_like(mean), axis, side, side)
            mean = _window_sum(f.xp, mean, axis, side, side) / inside
    return mean


def _window_sum(xp: Any, values: Any, axis: int, before: int, after: int) -> Any:
    last = xp.moveaxis(values, axis, -1)
    zeros, n = xp.zeros_like(last), last.shape[-1]
    padded = xp.concatenate([zeros[..., :before], last, zeros[..., :after]], -1)
    total = sum(padded[..., k : k + n] for k in range(before + after + 1))
    return xp.moveaxis(total, -1, axis)


_FORWARD: dict[str, Callable[[Formula], Any]] = {
    "layer_norm": _standardized,
    "rms_norm": _rms_norm,
    "batch_norm": _standardized,
    "instance_norm": _standardized,
    "group_norm": _standardized,
    "batch_renorm": _batch_renorm,
    "batch_instance_norm": _batch_instance_norm,
    "switchable_norm": _switchable_norm,
    "mean_only_batch_norm": _mean_only_batch_norm,
    "lp_batch_norm": _lp_batch_norm,
    "topk_batch_norm": _topk_batch_norm,
    "gdn": _gdn,
    "divisive_norm": _divisive_norm,
    "weight_norm": _weight_norm,
    "normalize": _normalize,
    "spectral_norm": _spectral_norm,
    "local_response_norm": _local_response_norm,
    "local_divisive_norm": _local_divisive_norm,
}


def forward(
    xp: Any, case: Case, x: Any, params: Arrays, buffers: Arrays, eps: float | None = None
) -> Any:
    """y = x_hat * weight + bias, in float32, rounded once to x's dtype.

    Compilers are given `eps`, as they cannot see through what asks for the default.
    """
    f = Formula(xp, case, x, params, buffers, eps_of(case) if eps is None else eps)
    y = _FORWARD[case.op](f)
    if "weight" in params:
        y = y * f.params["weight"]
    if "bias" in params:
        y = y + f.params["bias"]
    return _cast(y.reshape(x.shape), x.dtype)


# ---- backward, for libraries that cannot derive it


def has(case: Case, direction: str) -> bool:
    """Whether `forward` or `backward` is spelt out for the case."""
    return case.op in (_FORWARD if direction == "forward" else _BACKWARD)


def backward(
    xp: Any, case: Case, dy: Any, x: Any, params: Arrays, buffers: Arrays
) -> tuple[Any, ...]:
    """(dx, the gradients of the parameters) of `forward`."""
    f = Formula(xp, case, x, params, buffers, eps_of(case))
    dx, gradients = _BACKWARD[case.op](f, f.tensor(dy))
    parts = (_cast(gradients[name].reshape(p.shape), p.dtype) for name, p in params.items())
    return _cast(dx.reshape(x.shape), x.dtype), *parts


def _affine_gradients(f: Formula, dy: Any, x_hat: Any) -> Arrays:
    axes = f.pools.param_axes
    return {"weight": f.xp.sum(dy * x_hat, axis=axes), "bias": f.xp.sum(dy, axis=axes)}


def _through_moments(f: Formula, g: Any, x_hat: Any, axes: tuple[int, ...] | None = None) -> Any:
    """The gradient of x_hat = (x - mean) / std, times std."""
    return g - f.mean(g, axes) - x_hat * f.mean(g * x_hat, axes)


def _standardized_backward(f: Formula, dy: Any) -> tuple[Any, Arrays]:
    mean, var = f.batch_moments()
    rstd = f.rstd(var)
    x_hat, g = (f.x - mean) * rstd, dy * f.params["weight"]
    dx = _through_moments(f, g, x_hat) if f.training else g
    return dx * rstd, _affine_gradients(f, dy, x_hat)


def _rms_norm_backward(f: Formula, dy: Any) -> tuple[Any, Arrays]:
    rstd = f.rstd(f.mean(f.x * f.x))
    x_hat, g = f.x * rstd, dy * f.params["weight"]
    return (g - x_hat * f.mean(g * x_hat)) * rstd, _affine_gradients(f, dy, x_hat)


def _batch_renorm_backward(f: Formula, dy: Any) -> tuple[Any, Arrays]:
    g = dy * f.params["weight"]
    if not f.training:
        return g / f.buffers["running_std"], _affine_gradients(f, dy, _batch_renorm(f))
    mean, var = f.moments()
    scale = f.xp.sqrt(var + f.eps)
    r, d = _corrections(f, mean, scale)
    x_hat = (f.x - mean) / scale
    return _through_moments(f, g, x_hat) * (r / scale), _affine_gradients(f, dy, x_hat * r + d)


def _batch_instance_norm_backward(f: Formula, dy: Any) -> tuple[Any, Arrays]:
    rho, g = f.params["rho"], dy * f.params["weight"]
    mean, var = f.batch_moments()
    rstd = f.rstd(var)
    of_batch = (f.x - mean) * rstd
    dx = _through_moments(f, rho * g, of_batch) if f.training else rho * g
    dx = dx * rstd
    mean, var = f.moments(f.sample_axes)
    rstd = f.rstd(var)
    of_instance = (f.x - mean) * rstd
    dx = dx + _through_moments(f, (1 - rho) * g, of_instance, f.sample_axes) * rstd
    gradients = _affine_gradients(f, dy, rho * of_batch + (1 - rho) * of_instance)
    drho = f.xp.sum(g * (of_batch - of_instance), axis=f.pools.param_axes)
    return dx, gradients | {"rho": drho}


def _mean_only_backward(f: Formula, dy: Any) -> tuple[Any, Arrays]:
    dbias = f.xp.sum(dy, axis=f.pools.param_axes)
    return (dy - f.mean(dy) if f.training else dy), {"bias": dbias}


def _weight_norm_backward(f: Formula, dw: Any) -> tuple[Any, Arrays]:
    s = 1.0 / _length(f)
    direction = f.x * s
    dg = f.xp.sum(dw * direction, axis=f.pools.axes, keepdims=True)
    return f.params["g"] * s * (dw - dg * direction), {"g": dg}


def _normalize_backward(f: Formula, dy: Any) -> tuple[Any, Arrays]:
    s = 1.0 / _length(f)
    y = f.x * s
    return s * (dy - y * f.xp.sum(dy * y, axis=f.pools.axes, keepdims=True)), {}


def _spectral_norm_backward(f: Formula, dw: Any) -> tuple[Any, Arrays]:
    u, v, sigma = _singular_triplet(f)
    return (dw - f.xp.sum(dw * f.x) / sigma * (u * v.T)) / sigma, {}


_BACKWARD: dict[str, Callable[[Formula, Any], tuple[Any, Arrays]]] = {
    "layer_norm": _standardized_backward,
    "rms_norm": _rms_norm_backward,
    "batch_norm": _standardized_backward,
    "instance_norm": _standardized_backward,
    "group_norm": _standardized_backward,
    "batch_renorm": _batch_renorm_backward,
    "batch_instance_norm": _batch_instance_norm_backward,
    "mean_only_batch_norm": _mean_only_backward,
    "weight_norm": _weight_norm_backward,
    "normalize": _normalize_backward,
    "spectral_norm": _spectral_norm_backward,
}


# ---- what the array modules call by different names


def _cast(array: Any, dtype: Any) -> Any:
    return array.astype(dtype) if hasattr(array, "astype") else array.to(dtype)


def _constant(xp: Any, value: Any) -> Any:
    """The value, through which no gradient flows."""
    if hasattr(value, "detach"):
        return value.detach()
    if xp.__name__ == "jax.numpy":
        import jax

        return jax.lax.stop_gradient(value)
    return value


def _softmax(xp: Any, logits: Any) -> Any:
    powers = xp.exp(logits - _constant(xp, xp.max(logits)))
    return powers / xp.sum(powers)
