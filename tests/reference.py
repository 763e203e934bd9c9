"""The oracle: every registered method, forward and backward, in plain NumPy.

Names and arguments are those of the API (`out=` aside); results are np.longdouble, never rounded to
x's dtype. Formulas are whole-tensor and two-pass centred: mean first, then the mean square of the
centred values. Everything, the mean above all, is done in longdouble, so that float64 results at a
large mean/std are judged by something better than themselves. Slow and obvious on purpose.
"""

from collections import namedtuple

import numpy as np

Real = np.longdouble

Stats = namedtuple("Stats", "mean rstd")
RmsStats = namedtuple("RmsStats", "rstd")
Grads = namedtuple("Grads", "dx dweight dbias")
RmsGrads = namedtuple("RmsGrads", "dx dweight")


def wide(a):
    """`a` in longdouble, by way of float64: exact for all four dtypes."""
    a = np.asarray(a)
    return a if a.dtype == Real else a.astype(np.float64).astype(Real)


def sorted_axes(ndim, axis):
    """The axes as non-negative integers in ascending order."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    return tuple(sorted(a % ndim for a in axes))


def expand(param, axes, shape):
    """A parameter over `axes` (ascending), with 1 along every other axis, to broadcast with x."""
    kept = [n if i in axes else 1 for i, n in enumerate(shape)]
    return wide(param).reshape(kept)


def moments(x, axes):
    """Mean and biased variance with 1 along `axes`, in two passes."""
    mean = x.mean(axis=axes, keepdims=True)
    return mean, np.square(x - mean).mean(axis=axes, keepdims=True)


def jacobian(v, xhat, rstd, axes, centred=True):
    """J(v): the (symmetric) derivative of xhat applied to v; eps is included exactly."""
    result = v - xhat * (v * xhat).mean(axis=axes, keepdims=True)
    if centred:
        result = result - v.mean(axis=axes, keepdims=True)
    return rstd * result


def sum_like(v, param, axes):
    """Sum of v over all axes but `axes`, in the parameter's shape; None for an omitted one."""
    if param is None:
        return None
    others = tuple(i for i in range(v.ndim) if i not in axes)
    return v.sum(axis=others).reshape(np.shape(param))


def affine(xhat, weight, bias, axes):
    """weight * xhat + bias, with an omitted weight being 1 and an omitted bias 0."""
    y = xhat if weight is None else xhat * expand(weight, axes, xhat.shape)
    return y if bias is None else y + expand(bias, axes, xhat.shape)


def scaled(dy, weight, axes):
    """gh = weight * dy: the gradient with respect to xhat."""
    return dy if weight is None else dy * expand(weight, axes, dy.shape)


def add_residual(x, residual):
    """h = x + residual, rounded to x's dtype: the rounded h is what is normalized."""
    return (wide(x) + wide(residual)).astype(x.dtype)


# Row family: the pool is the axes of `axis`, the parameters live on those axes.


def layer_norm(x, weight=None, bias=None, *, axis=-1, eps=1e-5, residual=None, return_stats=False):
    h = x if residual is None else add_residual(x, residual)
    axes = sorted_axes(np.ndim(h), axis)
    mean, var = moments(wide(h), axes)
    rstd = 1 / np.sqrt(var + eps)
    y = affine((wide(h) - mean) * rstd, weight, bias, axes)
    return _result(y, None if residual is None else h, Stats(mean, rstd) if return_stats else None)


def layer_norm_backward(dy, x, weight=None, bias=None, *, axis=-1, eps=1e-5, dh=None, stats=None):
    x, dy = wide(x), wide(dy)
    axes = sorted_axes(x.ndim, axis)
    mean, var = moments(x, axes)
    rstd = 1 / np.sqrt(var + eps)
    xhat = (x - mean) * rstd
    dx = jacobian(scaled(dy, weight, axes), xhat, rstd, axes)
    if dh is not None:
        dx = dx + wide(dh)
    return Grads(dx, sum_like(dy * xhat, weight, axes), sum_like(dy, bias, axes))


def rms_norm(
    x, weight=None, *, axis=-1, eps=1e-6, weight_offset=0.0, residual=None, return_stats=False
):
    h = x if residual is None else add_residual(x, residual)
    axes = sorted_axes(np.ndim(h), axis)
    rstd = 1 / np.sqrt(np.square(wide(h)).mean(axis=axes, keepdims=True) + eps)
    scale = None if weight is None else wide(weight) + weight_offset
    y = affine(wide(h) * rstd, scale, None, axes)
    return _result(y, None if residual is None else h, RmsStats(rstd) if return_stats else None)


def rms_norm_backward(
    dy, x, weight=None, *, axis=-1, eps=1e-6, weight_offset=0.0, dh=None, stats=None
):
    x, dy = wide(x), wide(dy)
    axes = sorted_axes(x.ndim, axis)
    rstd = 1 / np.sqrt(np.square(x).mean(axis=axes, keepdims=True) + eps)
    xhat = x * rstd
    scale = None if weight is None else wide(weight) + weight_offset
    dx = jacobian(scaled(dy, scale, axes), xhat, rstd, axes, centred=False)
    if dh is not None:
        dx = dx + wide(dh)
    return RmsGrads(dx, sum_like(dy * xhat, weight, axes))


def _result(y, h, stats):
    parts = tuple(part for part in (y, h, stats) if part is not None)
    return parts if len(parts) > 1 else y


# Channel family: parameters of shape (C,). Only the pool differs.


def batch_norm(
    x,
    weight=None,
    bias=None,
    *,
    running_mean=None,
    running_var=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    unbiased_running_var=True,
    channel_axis=1,
    return_stats=False,
):
    x = wide(x)
    given = running_mean is not None and not training
    mean, var, _, channel = _batch_pool(x, running_mean, running_var, given, channel_axis)
    if training and running_mean is not None:
        n = x.size // x.shape[channel_axis]
        _update(running_mean, mean, momentum)
        _update(running_var, var * n / (n - 1) if unbiased_running_var else var, momentum)
    rstd = 1 / np.sqrt(var + eps)
    y = affine((x - mean) * rstd, weight, bias, channel)
    return _result(y, None, Stats(mean.ravel(), rstd.ravel()) if return_stats else None)


def batch_norm_backward(
    dy,
    x,
    weight=None,
    bias=None,
    *,
    running_mean=None,
    running_var=None,
    training=False,
    eps=1e-5,
    channel_axis=1,
    stats=None,
):
    x = wide(x)
    given = running_mean is not None and not training
    mean, var, pool, channel = _batch_pool(x, running_mean, running_var, given, channel_axis)
    return _channel_backward(wide(dy), x, mean, var, eps, weight, bias, pool, channel, given)


def instance_norm(
    x,
    weight=None,
    bias=None,
    *,
    running_mean=None,
    running_var=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
    channel_axis=1,
    return_stats=False,
):
    x = wide(x)
    given = not use_input_stats
    mean, var, _, channel = _instance_pool(x, running_mean, running_var, given, channel_axis)
    if use_input_stats and running_mean is not None:
        # As torch: the mean over n of the instances' means and of their UNBIASED variances.
        m = x.size // (x.shape[0] * x.shape[channel_axis])
        _update(running_mean, mean.mean(axis=0), momentum)
        _update(running_var, (var * m / (m - 1)).mean(axis=0), momentum)
    rstd = 1 / np.sqrt(var + eps)
    y = affine((x - mean) * rstd, weight, bias, channel)
    table = (x.shape[0], x.shape[channel_axis])
    flat = [np.broadcast_to(s.reshape(-1, table[1]), table) for s in (mean, rstd)]
    return _result(y, None, Stats(*flat) if return_stats else None)


def instance_norm_backward(
    dy,
    x,
    weight=None,
    bias=None,
    *,
    running_mean=None,
    running_var=None,
    use_input_stats=True,
    eps=1e-5,
    channel_axis=1,
    stats=None,
):
    x = wide(x)
    given = not use_input_stats
    mean, var, pool, channel = _instance_pool(x, running_mean, running_var, given, channel_axis)
    return _channel_backward(wide(dy), x, mean, var, eps, weight, bias, pool, channel, given)


def group_norm(
    x, num_groups, weight=None, bias=None, *, eps=1e-5, channel_axis=1, return_stats=False
):
    xg, shape = _split_groups(wide(x), num_groups, channel_axis)
    mean, var = moments(xg, (2, 3))
    rstd = 1 / np.sqrt(var + eps)
    xhat = _join_groups((xg - mean) * rstd, shape, channel_axis)
    y = affine(xhat, weight, bias, sorted_axes(xhat.ndim, channel_axis))
    return _result(y, None, Stats(mean[:, :, 0, 0], rstd[:, :, 0, 0]) if return_stats else None)


def group_norm_backward(
    dy, x, num_groups, weight=None, bias=None, *, eps=1e-5, channel_axis=1, stats=None
):
    dy = wide(dy)
    xg, shape = _split_groups(wide(x), num_groups, channel_axis)
    mean, var = moments(xg, (2, 3))
    rstd = 1 / np.sqrt(var + eps)
    xhat = (xg - mean) * rstd
    channel = sorted_axes(dy.ndim, channel_axis)
    gh, _ = _split_groups(scaled(dy, weight, channel), num_groups, channel_axis)
    dx = _join_groups(jacobian(gh, xhat, rstd, (2, 3)), shape, channel_axis)
    xhat = _join_groups(xhat, shape, channel_axis)
    return Grads(dx, sum_like(dy * xhat, weight, channel), sum_like(dy, bias, channel))


def _batch_pool(x, running_mean, running_var, given, channel_axis):
    channel = sorted_axes(x.ndim, channel_axis)
    pool = tuple(i for i in range(x.ndim) if i not in channel)
    return (*_statistics(x, running_mean, running_var, given, pool, channel), pool, channel)


def _instance_pool(x, running_mean, running_var, given, channel_axis):
    channel = sorted_axes(x.ndim, channel_axis)
    pool = tuple(i for i in range(1, x.ndim) if i not in channel)
    return (*_statistics(x, running_mean, running_var, given, pool, channel), pool, channel)


def _statistics(x, running_mean, running_var, given, pool, channel):
    if given:
        return expand(running_mean, channel, x.shape), expand(running_var, channel, x.shape)
    return moments(x, pool)


def _channel_backward(dy, x, mean, var, eps, weight, bias, pool, channel, given):
    rstd = 1 / np.sqrt(var + eps)
    xhat = (x - mean) * rstd
    gh = scaled(dy, weight, channel)
    dx = gh * rstd if given else jacobian(gh, xhat, rstd, pool)
    return Grads(dx, sum_like(dy * xhat, weight, channel), sum_like(dy, bias, channel))


def _update(buffer, new, momentum):
    """torch's sign: momentum is the weight of the NEW value. In place, as the API does."""
    buffer[...] = (1 - Real(momentum)) * wide(buffer) + Real(momentum) * new.ravel()


def _split_groups(x, num_groups, channel_axis):
    """x as [N, G, C/G, spatial]; groups are blocks of channels (torch), not interleaved."""
    x = np.moveaxis(x, channel_axis, 1)
    n, c = x.shape[:2]
    return x.reshape(n, num_groups, c // num_groups, -1), x.shape


def _join_groups(xg, shape, channel_axis):
    return np.moveaxis(xg.reshape(shape), 1, channel_axis)
