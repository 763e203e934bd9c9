"""The methods as functions of JAX's arrays, under jit, vmap and grad.

Names, arguments, formulas and errors are those of the functions of :mod:`normcore`; what is said
there of arrays holds for JAX's. Every function is compiled for its options, which are Python's own
numbers and no arrays: calls of other options are traced again. What is wrong with the shapes or
values of arrays is said when the call runs, by JAX's error INVALID_ARGUMENT.

Functions with running buffers change none: where a call moves them, it returns the new ones behind
y. These, the buffers, masks and statistics have no gradient. Derivatives of gradients come in
reverse mode, where a method has them; there is no forward mode.

vmap makes a batch of calls one call where it can. Calls on parameters of their own are a loop in
methods of rows, as are all with a mask of their own, switchable norm, spectral norm, and the
gradients of parameters in methods of neighbourhoods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

import normcore as nc

from .._arguments import axis as checked_axis
from .._arguments import choice, flag, integer, number
from .._interop import spread
from ._gradients import operator
from ._handlers import Arrays, mesh_axes, varying

__all__ = [
    "batch_instance_norm",
    "batch_norm",
    "batch_renorm",
    "divisive_norm",
    "gdn",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "local_divisive_norm",
    "local_response_norm",
    "lp_batch_norm",
    "mean_only_batch_norm",
    "moments",
    "norm",
    "normalize",
    "power_method",
    "rms_norm",
    "spectral_norm",
    "switchable_norm",
    "topk_batch_norm",
    "weight_norm",
]

Axis = int | Sequence[int] | None

_FLOATS = frozenset(map(jnp.dtype, ("float16", "bfloat16", "float32", "float64")))


def _array(value: Any, name: str) -> Array:
    if value is None:
        raise TypeError(f"{name} is None, expected an array")
    a = value if isinstance(value, Array) else jnp.asarray(value)
    if a.dtype not in _FLOATS:
        raise TypeError(
            f"{name} has dtype {a.dtype.name}, expected float16, bfloat16, float32 or float64"
        )
    return a


def _parameter(value: Any, name: str, x: Array) -> Array:
    """A parameter that may be a number, which has no dtype of its own."""
    if isinstance(value, float | int):
        return jnp.asarray(value, jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
    return _array(value, name)


def _axes(axis: Axis, x: Array) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    many = axis if isinstance(axis, Sequence) else (axis,)
    return tuple(checked_axis("axis", a, x.ndim) for a in many)


def _counts(mask: Any, x: Array, channel_axis: int) -> Array | None:
    """A mask as the handlers take it: numbers of x's shape without the channel axis."""
    if mask is None:
        return None
    weights: Array = spread(jnp.asarray(mask), x.shape, channel_axis, jnp.broadcast_to)
    return weights.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def _flag(name: str, value: Any) -> bool:
    return flag(name, bool(value) if type(value) is int and value in (0, 1) else value)


def _real(name: str, value: Any) -> float:
    return number(name, value, "a number", lambda v: True)


def _window(name: str, window: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(integer(name, n) for n in (window if isinstance(window, Sequence) else [window]))


# Of options by their annotations. They are constants of what is compiled: traced ones are refused.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "bool": _flag,
    "int": integer,
    "float": _real,
    "int | Sequence[int]": _window,
    "float | None": lambda name, value: None if value is None else _real(name, value),
}


def _run(name: str, arrays: dict[str, Any], **options: Any) -> Arrays:
    kinds = globals()[name].__annotations__
    for k, value in options.items():
        if (check := _CHECKS.get(kinds.get(k, ""))) is not None:
            options[k] = check(k, value)
    there = {k: _array(a, k) for k, a in arrays.items() if a is not None}
    axes = mesh_axes(there.values())
    there = {k: varying(a, axes) for k, a in there.items()}
    return operator(name, tuple(options.items()))(there)


def _with_others(results: Arrays, *names: str) -> Any:
    """y, or a tuple of it and those of the results that there are."""
    others = [results[name] for name in names if name in results]
    return (results["y"], *others) if others else results["y"]


def _channels(name: str, x: Any, arrays: dict[str, Any], channel_axis: int, **options: Any) -> Any:
    """A call of a method of channels, with its new running buffers where they move."""
    x = _array(x, "x")
    options["channel_axis"] = axis = checked_axis("channel_axis", channel_axis, x.ndim)
    if "mask" in arrays:
        arrays["mask"] = _counts(arrays["mask"], x, axis)
    results = _run(name, {"x": x, **arrays}, **options)
    return _with_others(results, *(k for k in arrays if k.startswith("running")))


# ---- rows


def layer_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    residual: Array | None = None,
) -> Any:
    """Layer normalization: :func:`normcore.layer_norm` with gradients.

    Returns y, or with a residual ``(y, x + residual)``.
    """
    x = _array(x, "x")
    arrays = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    return _with_others(_run("layer_norm", arrays, axis=_axes(axis, x), eps=eps), "h")


def rms_norm(
    x: Array,
    weight: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    residual: Array | None = None,
) -> Any:
    """RMS normalization: :func:`normcore.rms_norm` with gradients.

    Returns y, or with a residual ``(y, x + residual)``.
    """
    x = _array(x, "x")
    arrays = {"x": x, "weight": weight, "residual": residual}
    options = {"axis": _axes(axis, x), "eps": eps, "weight_offset": weight_offset}
    return _with_others(_run("rms_norm", arrays, **options), "h")


def normalize(x: Array, *, ord: float = 2, axis: Axis = -1, eps: float = 1e-12) -> Array:
    """x over its norm along the axes: :func:`normcore.normalize` with gradients."""
    x = _array(x, "x")
    options = {"ord": ord, "axis": _axes(axis, x), "eps": eps}
    return _run("normalize", {"x": x}, **options)["y"]


# ---- channels


def batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased_running_var: bool = True,
    channel_axis: int = 1,
    mask: Array | None = None,
) -> Any:
    """Batch normalization: :func:`normcore.batch_norm` with gradients.

    Returns y, or in training with buffers ``(y, new_mean, new_var)``.
    """
    arrays = {
        "weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var,
        "mask": mask,
    }  # fmt: skip
    return _channels(
        "batch_norm", x, arrays, channel_axis, training=training, momentum=momentum,
        eps=eps, unbiased_running_var=unbiased_running_var,
    )  # fmt: skip


def instance_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased_running_var: bool = True,
    channel_axis: int = 1,
) -> Any:
    """Instance normalization: :func:`normcore.instance_norm` with gradients.

    Returns y, or with input statistics and buffers ``(y, new_mean, new_var)``.
    """
    arrays = {
        "weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var,
    }  # fmt: skip
    return _channels(
        "instance_norm", x, arrays, channel_axis, use_input_stats=use_input_stats,
        momentum=momentum, eps=eps, unbiased_running_var=unbiased_running_var,
    )  # fmt: skip


def group_norm(
    x: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
) -> Array:
    """Group normalization: :func:`normcore.group_norm` with gradients."""
    arrays = {"weight": weight, "bias": bias}
    options = {"num_groups": num_groups, "eps": eps}
    return _channels("group_norm", x, arrays, channel_axis, **options)


def batch_renorm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    running_mean: Array,
    running_std: Array,
    training: bool = False,
    momentum: float = 0.01,
    r_max: float = 3.0,
    d_max: float = 5.0,
    eps: float = 1e-5,
    channel_axis: int = 1,
    mask: Array | None = None,
) -> Any:
    """Batch renormalization: :func:`normcore.batch_renorm` with gradients.

    Returns y, or in training ``(y, new_mean, new_std)``.
    """
    arrays = {
        "weight": weight, "bias": bias, "running_mean": running_mean, "running_std": running_std,
        "mask": mask,
    }  # fmt: skip
    return _channels(
        "batch_renorm", x, arrays, channel_axis, training=training, momentum=momentum,
        r_max=r_max, d_max=d_max, eps=eps,
    )  # fmt: skip


def batch_instance_norm(
    x: Array,
    rho: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased_running_var: bool = True,
    channel_axis: int = 1,
) -> Any:
    """Batch-instance normalization: :func:`normcore.batch_instance_norm` with gradients.

    Returns y, or in training with buffers ``(y, new_mean, new_var)``.
    """
    arrays = {
        "rho": _array(rho, "rho"), "weight": weight, "bias": bias, "running_mean": running_mean,
        "running_var": running_var,
    }  # fmt: skip
    return _channels(
        "batch_instance_norm", x, arrays, channel_axis, training=training,
        momentum=momentum, eps=eps, unbiased_running_var=unbiased_running_var,
    )  # fmt: skip


def switchable_norm(
    x: Array,
    mean_logits: Array,
    var_logits: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    channel_axis: int = 1,
) -> Any:
    """Switchable normalization: :func:`normcore.switchable_norm` with gradients.

    Returns y, or in training with buffers ``(y, new_mean, new_var)``.
    """
    arrays = {
        "mean_logits": _array(mean_logits, "mean_logits"),
        "var_logits": _array(var_logits, "var_logits"), "weight": weight, "bias": bias,
        "running_mean": running_mean, "running_var": running_var,
    }  # fmt: skip
    return _channels(
        "switchable_norm", x, arrays, channel_axis, training=training,
        momentum=momentum, eps=eps,
    )  # fmt: skip


def mean_only_batch_norm(
    x: Array,
    bias: Array | None = None,
    *,
    running_mean: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    channel_axis: int = 1,
    mask: Array | None = None,
) -> Any:
    """Mean-only batch normalization: :func:`normcore.mean_only_batch_norm` with gradients.

    Returns y, or in training with a buffer ``(y, new_mean)``.
    """
    arrays = {"bias": bias, "running_mean": running_mean, "mask": mask}
    options = {"training": training, "momentum": momentum}
    return _channels("mean_only_batch_norm", x, arrays, channel_axis, **options)


def lp_batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    p: float = 1.0,
    running_mean: Array | None = None,
    running_scale: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    channel_axis: int = 1,
) -> Any:
    """Lp batch normalization: :func:`normcore.lp_batch_norm` with gradients.

    Returns y, or in training with buffers ``(y, new_mean, new_scale)``.
    """
    arrays = {
        "weight": weight, "bias": bias, "running_mean": running_mean,
        "running_scale": running_scale,
    }  # fmt: skip
    return _channels(
        "lp_batch_norm", x, arrays, channel_axis, p=p, training=training,
        momentum=momentum, eps=eps,
    )  # fmt: skip


def topk_batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    k: int = 10,
    running_mean: Array | None = None,
    running_scale: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    channel_axis: int = 1,
) -> Any:
    """Top-k batch normalization: :func:`normcore.topk_batch_norm` with gradients.

    Returns y, or in training with buffers ``(y, new_mean, new_scale)``.
    """
    arrays = {
        "weight": weight, "bias": bias, "running_mean": running_mean,
        "running_scale": running_scale,
    }  # fmt: skip
    return _channels(
        "topk_batch_norm", x, arrays, channel_axis, k=k, training=training,
        momentum=momentum, eps=eps,
    )  # fmt: skip


# ---- matrices


def weight_norm(v: Array, g: Array | float, *, axis: int | None = 0, eps: float = 0.0) -> Array:
    """Weight normalization: :func:`normcore.weight_norm` with gradients."""
    v = _array(v, "v")
    kept = None if axis is None else checked_axis("axis", axis, v.ndim)
    arrays = {"v": v, "g": _parameter(g, "g", v)}
    return _run("weight_norm", arrays, axis=kept, eps=eps)["y"]


class SpectralNormResult(NamedTuple):
    """What :func:`spectral_norm` returns; only ``weight`` has a gradient."""

    weight: Array
    sigma: Array
    u: Array
    v: Array
    axis: int


def spectral_norm(
    weight: Array,
    u: Array | None,
    v: Array | None = None,
    *,
    n_power_iterations: int = 1,
    axis: int = 0,
    eps: float = 1e-12,
    bound: float | None = None,
) -> SpectralNormResult:
    """Spectral normalization: :func:`normcore.spectral_norm` with gradients.

    ``sigma`` is an array without axes. u and v are constants of the gradient. Under jit return the
    arrays of the result and not the result itself, whose axis is a number of Python.
    """
    weight = _array(weight, "weight")
    results = _run(
        "spectral_norm", {"weight": weight, "u": u, "v": v},
        n_power_iterations=n_power_iterations, axis=checked_axis("axis", axis, weight.ndim),
        eps=eps, bound=bound,
    )  # fmt: skip
    return SpectralNormResult(results["y"], results["sigma"], results["u"], results["v"], axis)


def _there(a: Array, name: str) -> Array:
    if isinstance(a, jax.core.Tracer):
        raise TypeError(f"{name} cannot be traced, by jit, vmap or grad: call it on arrays")
    return a


def power_method(
    a: Array,
    *,
    u: Array | None = None,
    n_iterations: int | None = None,
    tol: float = 1e-6,
    max_iterations: int = 1000,
) -> Any:
    """The largest singular value of a matrix: :func:`normcore.power_method`.

    It has no gradient and is called on arrays, not under jit.
    """
    return nc.power_method(
        _there(a, "power_method"), u=u, n_iterations=n_iterations, tol=tol,
        max_iterations=max_iterations,
    )  # fmt: skip


# ---- neighbourhoods


def divisive_norm(
    x: Array,
    weights: Array,
    sigma: Array | float,
    *,
    gain: Array | float | None = None,
    exponent: float = 2.0,
    power: float = 1.0,
    channel_axis: int = 1,
) -> Array:
    """Divisive normalization: :func:`normcore.divisive_norm` with gradients."""
    x = _array(x, "x")
    arrays = {
        "weights": _array(weights, "weights"), "sigma": _parameter(sigma, "sigma", x),
        "gain": None if gain is None else _parameter(gain, "gain", x),
    }  # fmt: skip
    options = {"exponent": exponent, "power": power}
    return _channels("divisive_norm", x, arrays, channel_axis, **options)


def local_divisive_norm(
    x: Array,
    sigma: Array | float,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    summation_window: int | Sequence[int],
    suppression_window: int | Sequence[int],
    channel_axis: int = 1,
) -> Array:
    """Local divisive normalization: :func:`normcore.local_divisive_norm` with gradients."""
    x = _array(x, "x")
    arrays = {"sigma": _parameter(sigma, "sigma", x), "weight": weight, "bias": bias}
    return _channels(
        "local_divisive_norm", x, arrays, channel_axis,
        summation_window=summation_window, suppression_window=suppression_window,
    )  # fmt: skip


def local_response_norm(
    x: Array,
    size: int,
    *,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    across: str = "channels",
    even_window: str = "torch",
    channel_axis: int = 1,
) -> Array:
    """Local response normalization: :func:`normcore.local_response_norm` with gradients."""
    return _channels(
        "local_response_norm", x, {}, channel_axis, size=size, alpha=alpha,
        beta=beta, k=k,
        across_space=choice("across", across, ("channels", "space")) == "space",
        onnx_window=choice("even_window", even_window, ("torch", "onnx")) == "onnx",
    )  # fmt: skip


def gdn(
    x: Array,
    beta: Array,
    gamma: Array,
    *,
    inverse: bool = False,
    alpha: float = 2.0,
    epsilon: float = 0.5,
    channel_axis: int = 1,
) -> Array:
    """Generalized divisive normalization: :func:`normcore.gdn` with gradients.

    ``alpha`` and ``epsilon`` are numbers and do not learn.
    """
    arrays = {"beta": _array(beta, "beta"), "gamma": _array(gamma, "gamma")}
    options = {"inverse": inverse, "alpha": alpha, "epsilon": epsilon}
    return _channels("gdn", x, arrays, channel_axis, **options)


# ---- reductions


def moments(x: Array, *, axis: Axis = None, mask: Any = None, keepdims: bool = False) -> Any:
    """Counts, means and sums of squares: :func:`normcore.moments`.

    It has no gradient and is called on arrays, not under jit.
    """
    return nc.moments(_there(x, "moments"), axis=axis, mask=mask, keepdims=keepdims)


def norm(x: Array, *, ord: float = 2, axis: Axis = None, keepdims: bool = False) -> Any:
    """The norm over the axes: :func:`normcore.norm`.

    It has no gradient and is called on arrays, not under jit.
    """
    return nc.norm(_there(x, "norm"), ord=ord, axis=axis, keepdims=keepdims)
