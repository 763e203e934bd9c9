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
# Of methods that mix several statistics: what x is multiplied by, for bounds on errors.
Gain = namedtuple("Gain", "rstd")
MeanStats = namedtuple("MeanStats", "mean")
RhoGrads = namedtuple("RhoGrads", "dx drho dweight dbias")
LogitGrads = namedtuple("LogitGrads", "dx dmean_logits dvar_logits dweight dbias")
BiasGrads = namedtuple("BiasGrads", "dx dbias")
ResponseGrads = namedtuple("ResponseGrads", "dx")
DivisiveGrads = namedtuple("DivisiveGrads", "dx dsigma dweight dbias")
WeightNormGrads = namedtuple("WeightNormGrads", "dv dg")
# With the largest deviation, for bounds on errors.
Moments = namedtuple("Moments", "count mean m2 peak")


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


# Masked batch norm, straight from the formula, x being (N, C, ...) and mask without C.


def masked_batch_norm(x, weight, bias, mask, *, eps=1e-5):
    """y, mean, biased variance and the sum of the mask."""
    x, m, pool = _masked(x, mask)
    count = m.sum(pool, keepdims=True)
    # What does not count may hold anything.
    seen = np.where(m > 0, x, 0)
    mean = (m * seen).sum(pool, keepdims=True) / count
    var = (m * (seen - mean) ** 2 * (m > 0)).sum(pool, keepdims=True) / count
    y = affine((x - mean) / np.sqrt(var + eps), weight, bias, (1,))
    return y, mean.ravel(), var.ravel(), count.ravel()[0]


def bessel(mask, x):
    """From the biased variance of weighted positions to the unbiased one; 1 for a single one."""
    w = _masked(x, mask)[1][:, 0].ravel()
    pairs = (w[1:] * np.cumsum(w)[:-1]).sum()  # c**2 - sum(w**2) is twice that
    return w.sum() ** 2 / (2 * pairs) if pairs > 0 else Real(1)


def masked_batch_norm_backward(dy, x, weight, bias, mask, *, eps=1e-5):
    _, mean, var, count = masked_batch_norm(x, weight, bias, mask, eps=eps)
    x, m, pool = _masked(x, mask)
    mean, rstd = (expand(v, (1,), x.shape) for v in (mean, 1 / np.sqrt(var + eps)))
    dy, xhat = wide(dy), (x - mean) * rstd
    gh = scaled(dy, weight, (1,))
    through = gh.sum(pool, keepdims=True) + xhat * (gh * xhat).sum(pool, keepdims=True)
    dx = rstd * (gh - m * through / count)
    return Grads(dx, sum_like(dy * xhat, weight, (1,)), sum_like(dy, bias, (1,)))


def _masked(x, mask):
    x = wide(x)
    m = np.broadcast_to(np.asarray(mask, Real), x.shape[:1] + x.shape[2:])
    return x, np.broadcast_to(m[:, None], x.shape), (0, *range(2, x.ndim))


# The adaptive methods: other coefficients, or several pools at once.


def batch_renorm(
    x,
    weight=None,
    bias=None,
    *,
    running_mean,
    running_std,
    training=False,
    momentum=0.01,
    r_max=3.0,
    d_max=5.0,
    eps=1e-5,
    channel_axis=1,
    return_stats=False,
):
    x = wide(x)
    channel = sorted_axes(x.ndim, channel_axis)
    mean, std, r, d, _ = _renorm(
        x, running_mean, running_std, training, r_max, d_max, eps, channel_axis
    )
    y = affine((x - mean) / std * r + d, weight, bias, channel)
    if training:
        _update(running_mean, mean, momentum)
        _update(running_std, std, momentum)
    return _result(y, None, Stats(mean.ravel(), (1 / std).ravel()) if return_stats else None)


def batch_renorm_backward(
    dy,
    x,
    weight=None,
    bias=None,
    *,
    running_mean,
    running_std,
    training=False,
    r_max=3.0,
    d_max=5.0,
    eps=1e-5,
    channel_axis=1,
    stats=None,
):
    x, dy = wide(x), wide(dy)
    channel = sorted_axes(x.ndim, channel_axis)
    mean, std, r, d, pool = _renorm(
        x, running_mean, running_std, training, r_max, d_max, eps, channel_axis
    )
    xhat = (x - mean) / std
    gh = scaled(dy, weight, channel)
    dx = jacobian(gh, xhat, r / std, pool) if training else gh / std
    y = xhat * r + d
    return Grads(dx, sum_like(dy * y, weight, channel), sum_like(dy, bias, channel))


def _renorm(x, running_mean, running_std, training, r_max, d_max, eps, channel_axis):
    channel = sorted_axes(x.ndim, channel_axis)
    pool = tuple(i for i in range(x.ndim) if i not in channel)
    mu, sigma = (expand(b, channel, x.shape) for b in (running_mean, running_std))
    if not training:
        return mu, sigma, Real(1), Real(0), pool
    mean, var = moments(x, pool)
    std = np.sqrt(var + eps)
    r = np.clip(std / sigma, 1 / Real(r_max), r_max)
    d = np.clip((mean - mu) / sigma, -d_max, d_max)
    return mean, std, r, d, pool


def batch_instance_norm(
    x,
    rho,
    weight=None,
    bias=None,
    *,
    running_mean=None,
    running_var=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    channel_axis=1,
    return_stats=False,
):
    x = wide(x)
    given = running_mean is not None and not training
    mean, var, _, channel = _batch_pool(x, running_mean, running_var, given, channel_axis)
    instance_mean, instance_var, _, _ = _instance_pool(x, None, None, False, channel_axis)
    if training and running_mean is not None:
        n = x.size // x.shape[channel_axis]
        _update(running_mean, mean, momentum)
        _update(running_var, var * n / (n - 1), momentum)
    share = expand(rho, channel, x.shape)
    rstd, instance_rstd = (1 / np.sqrt(v + eps) for v in (var, instance_var))
    xhat = share * (x - mean) * rstd + (1 - share) * (x - instance_mean) * instance_rstd
    y = affine(xhat, weight, bias, channel)
    gain = np.abs(share) * rstd + np.abs(1 - share) * instance_rstd
    return _result(y, None, Gain(gain) if return_stats else None)


def batch_instance_norm_backward(
    dy,
    x,
    rho,
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
    x, dy = wide(x), wide(dy)
    given = running_mean is not None and not training
    mean, var, pool, channel = _batch_pool(x, running_mean, running_var, given, channel_axis)
    instance_mean, instance_var, instance, _ = _instance_pool(x, None, None, False, channel_axis)
    share = expand(rho, channel, x.shape)
    gh = scaled(dy, weight, channel)
    rstd, instance_rstd = (1 / np.sqrt(v + eps) for v in (var, instance_var))
    batch_hat, instance_hat = (x - mean) * rstd, (x - instance_mean) * instance_rstd
    dx = jacobian((1 - share) * gh, instance_hat, instance_rstd, instance)
    dx = dx + (share * gh * rstd if given else jacobian(share * gh, batch_hat, rstd, pool))
    xhat = share * batch_hat + (1 - share) * instance_hat
    return RhoGrads(
        dx,
        sum_like(gh * (batch_hat - instance_hat), rho, channel),
        sum_like(dy * xhat, weight, channel),
        sum_like(dy, bias, channel),
    )


def switchable_norm(
    x,
    mean_logits,
    var_logits,
    weight=None,
    bias=None,
    *,
    running_mean=None,
    running_var=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    channel_axis=1,
    return_stats=False,
):
    x = wide(x)
    given = running_mean is not None and not training
    pools, _, channel = _three_pools(x, running_mean, running_var, given, channel_axis)
    if training and running_mean is not None:
        _update(running_mean, pools[2][0], momentum)
        _update(running_var, pools[2][1], momentum)
    mean, var = _mixture(pools, mean_logits, var_logits)
    rstd = 1 / np.sqrt(var + eps)
    y = affine((x - mean) * rstd, weight, bias, channel)
    return _result(y, None, Gain(rstd) if return_stats else None)


def switchable_norm_backward(
    dy,
    x,
    mean_logits,
    var_logits,
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
    x, dy = wide(x), wide(dy)
    given = running_mean is not None and not training
    pools, axes, channel = _three_pools(x, running_mean, running_var, given, channel_axis)
    mean, var = _mixture(pools, mean_logits, var_logits)
    rstd = 1 / np.sqrt(var + eps)
    xhat = (x - mean) * rstd
    gh = scaled(dy, weight, channel)
    # Gradients of the mixed mean and variance, element by element; then each pool's share.
    dmean, dvar = -rstd * gh, -(rstd**2) * gh * xhat / 2
    dx = rstd * gh
    shares = _softmax(mean_logits), _softmax(var_logits)
    for k in range(3):
        if k == 2 and given:
            continue
        dx = dx + shares[0][k] * dmean.mean(axis=axes[k], keepdims=True)
        pull = dvar.mean(axis=axes[k], keepdims=True)
        dx = dx + shares[1][k] * pull * 2 * (x - pools[k][0])
    logits = []
    for which, upstream, mixed in ((0, dmean, mean), (1, dvar, var)):
        logits.append(
            np.array(
                [shares[which][k] * (upstream * (pools[k][which] - mixed)).sum() for k in range(3)]
            )
        )
    return LogitGrads(
        dx, *logits, sum_like(dy * xhat, weight, channel), sum_like(dy, bias, channel)
    )


def _three_pools(x, running_mean, running_var, given, channel_axis):
    """Mean and variance of instance, layer and batch, their axes, and the channel's."""
    mean, var, batch, channel = _batch_pool(x, running_mean, running_var, given, channel_axis)
    instance_mean, instance_var, instance, _ = _instance_pool(x, None, None, False, channel_axis)
    layer = tuple(range(1, x.ndim))
    pools = (instance_mean, instance_var), moments(x, layer), (mean, var)
    return pools, (instance, layer, batch), channel


def _softmax(logits):
    e = np.exp(wide(logits) - wide(logits).max())
    return e / e.sum()


def _mixture(pools, mean_logits, var_logits):
    w, v = _softmax(mean_logits), _softmax(var_logits)
    # From one of them on: the weights add up to 1 but for a rounding, and means may be large.
    base = pools[0][0]
    mean = base + sum(w[k] * (pools[k][0] - base) for k in range(3))
    return mean, sum(v[k] * pools[k][1] for k in range(3))


def mean_only_batch_norm(
    x,
    bias=None,
    *,
    running_mean=None,
    training=False,
    momentum=0.1,
    channel_axis=1,
    return_stats=False,
):
    x = wide(x)
    given = running_mean is not None and not training
    mean, _, _, channel = _batch_pool(x, running_mean, running_mean, given, channel_axis)
    if training and running_mean is not None:
        _update(running_mean, mean, momentum)
    y = affine(x - mean, None, bias, channel)
    return _result(y, None, MeanStats(mean.ravel()) if return_stats else None)


def mean_only_batch_norm_backward(
    dy, x, bias=None, *, running_mean=None, training=False, channel_axis=1, stats=None
):
    dy = wide(dy)
    channel = sorted_axes(dy.ndim, channel_axis)
    pool = tuple(i for i in range(dy.ndim) if i not in channel)
    given = running_mean is not None and not training
    dx = dy if given else dy - dy.mean(axis=pool, keepdims=True)
    return BiasGrads(dx, sum_like(dy, bias, channel))


# Batch normalization by other scales. `spread` is what the scale is made of, and slope its
# derivative by the deviation, times the number of elements.


def lp_batch_norm(x, weight=None, bias=None, *, p=1.0, **options):
    return _scaled_norm(x, weight, bias, lambda d, pool, eps: _lp_scale(d, pool, p, eps), **options)


def lp_batch_norm_backward(dy, x, weight=None, bias=None, *, p=1.0, stats=None, **options):
    scale_of = lambda d, pool, eps: _lp_scale(d, pool, p, eps)  # noqa: E731
    return _scaled_backward(dy, x, weight, bias, scale_of, **options)


def topk_batch_norm(x, weight=None, bias=None, *, k=10, **options):
    return _scaled_norm(
        x, weight, bias, lambda d, pool, eps: _topk_scale(d, pool, k, eps), **options
    )


def topk_batch_norm_backward(dy, x, weight=None, bias=None, *, k=10, stats=None, **options):
    scale_of = lambda d, pool, eps: _topk_scale(d, pool, k, eps)  # noqa: E731
    return _scaled_backward(dy, x, weight, bias, scale_of, **options)


def _lp_scale(d, pool, p, eps):
    size = np.abs(d)
    if p == 1:
        c = np.sqrt(Real(np.pi) / 2)
        return c * size.mean(axis=pool, keepdims=True) + eps, c * np.sign(d)
    if np.isinf(p):
        scale, slope = _largest(d, pool, 1)
        return scale + eps, slope
    # From the largest on, whose powers are the first to leave the range.
    top = size.max(axis=pool, keepdims=True)
    unit = np.where(top == 0, 1, top)
    mean = ((size / unit) ** Real(p)).mean(axis=pool, keepdims=True) + eps / unit ** Real(p)
    scale = unit * mean ** (1 / Real(p))
    return scale, np.sign(d) * (size / scale) ** (Real(p) - 1)


def _topk_scale(d, pool, k, eps):
    m = d.size // d.max(axis=pool).size
    c = (1 + np.sqrt(Real(np.pi) * np.log(Real(4)))) / (2 * np.sqrt(2 * np.log(Real(m))))
    spread, slope = _largest(d, pool, k)
    return c * spread + eps, c * slope


def _largest(d, pool, k):
    """The mean of the k largest |d|, and its slope; equals of the least share its place."""
    moved = np.moveaxis(
        np.abs(d), [i for i in range(d.ndim) if i not in pool], range(d.ndim - len(pool))
    )
    flat = np.sort(moved.reshape(*moved.shape[: d.ndim - len(pool)], -1), axis=-1)
    m = flat.shape[-1]
    k = min(k, m)
    kept = [1 if i in pool else n for i, n in enumerate(d.shape)]
    least = flat[..., -k].reshape(kept)
    above, equal = np.abs(d) > least, np.abs(d) == least
    share = (k - above.sum(axis=pool, keepdims=True)) / equal.sum(axis=pool, keepdims=True).astype(
        Real
    )
    slope = np.sign(d) * (above + share * equal) * m / k
    return flat[..., -k:].mean(axis=-1).reshape(kept), slope


def _scaled_statistics(x, scale_of, running_mean, running_scale, training, eps, channel_axis):
    channel = sorted_axes(x.ndim, channel_axis)
    pool = tuple(i for i in range(x.ndim) if i not in channel)
    if running_mean is not None and not training:
        mean, scale = (expand(b, channel, x.shape) for b in (running_mean, running_scale))
        return mean, scale, None, pool, channel
    mean = x.mean(axis=pool, keepdims=True)
    scale, slope = scale_of(x - mean, pool, eps)
    return mean, scale, slope, pool, channel


def _scaled_norm(
    x,
    weight,
    bias,
    scale_of,
    *,
    running_mean=None,
    running_scale=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    channel_axis=1,
    return_stats=False,
):
    x = wide(x)
    mean, scale, slope, _, channel = _scaled_statistics(
        x, scale_of, running_mean, running_scale, training, eps, channel_axis
    )
    if running_mean is not None and slope is not None:
        _update(running_mean, mean, momentum)
        _update(running_scale, scale, momentum)
    y = affine((x - mean) / scale, weight, bias, channel)
    return _result(y, None, Stats(mean.ravel(), (1 / scale).ravel()) if return_stats else None)


def _scaled_backward(
    dy,
    x,
    weight,
    bias,
    scale_of,
    *,
    running_mean=None,
    running_scale=None,
    training=False,
    eps=1e-5,
    channel_axis=1,
):
    x, dy = wide(x), wide(dy)
    mean, scale, slope, pool, channel = _scaled_statistics(
        x, scale_of, running_mean, running_scale, training, eps, channel_axis
    )
    xhat = (x - mean) / scale
    gh = scaled(dy, weight, channel)
    dx = gh
    if slope is not None:
        product = (gh * xhat).mean(axis=pool, keepdims=True)
        dx = dx - gh.mean(axis=pool, keepdims=True)
        dx = dx - product * (slope - slope.mean(axis=pool, keepdims=True))
    return Grads(dx / scale, sum_like(dy * xhat, weight, channel), sum_like(dy, bias, channel))


# Weights, and division by a norm.


def divisive_norm(x, weights, sigma, *, gain=None, exponent=2.0, power=1.0, channel_axis=1):
    """y = gain sgn(x) |x|^power / d^(power / exponent), d = sigma^exponent + w |x|^exponent."""
    w, s = wide(weights), np.power(wide(sigma), exponent)
    x = np.moveaxis(wide(x), channel_axis, -1)
    d = s + np.abs(x) ** exponent @ w.T
    y = np.sign(x) * np.abs(x) ** power * _inverse_power(d, power / exponent)
    return np.moveaxis(y * (1 if gain is None else wide(gain)), -1, channel_axis)


def divisive_norm_backward(
    dy, x, weights, sigma, *, gain=None, exponent=2.0, power=1.0, channel_axis=1
):
    w, s, g = wide(weights), wide(sigma), np.asarray(1.0 if gain is None else wide(gain))
    x, dy = (np.moveaxis(wide(v), channel_axis, -1) for v in (x, dy))
    dx, dw, dd, by_gain, *_ = _mixing_backward(
        dy, x, w, s**exponent, g, exponent, power, power / exponent
    )
    per_channel = exponent * s ** (exponent - 1) * dd
    names = ("dx", "dweights", "dsigma", "dgain")
    dsigma = per_channel if s.ndim else per_channel.sum()
    dgain = None if gain is None else by_gain if g.ndim else by_gain.sum()
    values = (np.moveaxis(dx, -1, channel_axis), dw, dsigma, dgain)
    return namedtuple("DivisiveNormGradients", names)(*values)


def gdn(x, beta, gamma, *, inverse=False, alpha=2.0, epsilon=0.5, channel_axis=1):
    """y = x / d^epsilon, or times it, d = beta + gamma |x|^alpha."""
    x = np.moveaxis(wide(x), channel_axis, -1)
    d = wide(beta) + np.abs(x) ** alpha @ wide(gamma).T
    return np.moveaxis(x * _inverse_power(d, -epsilon if inverse else epsilon), -1, channel_axis)


def gdn_backward(dy, x, beta, gamma, *, inverse=False, alpha=2.0, epsilon=0.5, channel_axis=1):
    x, dy = (np.moveaxis(wide(v), channel_axis, -1) for v in (x, dy))
    e = -epsilon if inverse else epsilon
    dx, dgamma, dbeta, _, dalpha, de = _mixing_backward(
        dy, x, wide(gamma), wide(beta), np.asarray(1.0), alpha, 1.0, e
    )
    names = ("dx", "dbeta", "dgamma", "dalpha", "depsilon")
    dx = np.moveaxis(dx, -1, channel_axis)
    values = (dx, dbeta, dgamma, dalpha, -de if inverse else de)
    return namedtuple("GDNGradients", names)(*values)


def _inverse_power(d, e):
    """d^-e, and where that is infinite 0: there all that is divided is 0 too."""
    return np.where(d > 0, np.power(np.where(d > 0, d, 1), -e), 0 if e > 0 else 0.0**-e)


def _mixing_backward(dy, x, w, b, g, a, p, e):
    """Gradients of g sgn(x) |x|^p (b + w |x|^a)^-e by x, w, b, g, a and e; channels come last."""
    m = np.abs(x)
    d = b + m**a @ w.T
    f, n = _inverse_power(d, e), np.sign(x) * m**p
    positive, logarithm = np.where(d > 0, d, 1), np.log(np.where(m > 0, m, 1))
    t = -e * dy * g * n * f / positive
    back = t @ w
    slope = np.where(m > 0, np.power(np.where(m > 0, m, 1), p - 1), 1.0 if p == 1 else 0.0)
    of_power = np.where(m > 0, np.power(np.where(m > 0, m, 1), a - 1), 0.0)
    dx = dy * g * f * p * slope + a * of_power * np.sign(x) * back
    axes = tuple(range(x.ndim - 1))
    dw = np.tensordot(t, m**a, (axes, axes))
    de = -(dy * g * n * f * np.log(positive)).sum()
    return dx, dw, t.sum(axes), (dy * n * f).sum(axes), (back * m**a * logarithm).sum(), de


def weight_norm(v, g, *, axis=0, eps=0.0):
    v = wide(v)
    scale, g, _ = _weight_scale(v, g, axis, eps)
    return g * scale * v


def weight_norm_backward(dw, v, g, *, axis=0, eps=0.0):
    v, dw = wide(v), wide(dw)
    scale, wide_g, rest = _weight_scale(v, g, axis, eps)
    inner = (dw * v).sum(axis=rest, keepdims=True)
    dv = wide_g * scale * (dw - scale**2 * inner * v)
    dg = scale * inner
    return WeightNormGrads(dv, (dg.sum() if np.size(g) == 1 else dg).reshape(np.shape(g)))


def _weight_scale(v, g, axis, eps):
    kept = () if axis is None else (axis % v.ndim,)
    rest = tuple(i for i in range(v.ndim) if i not in kept)
    squares = np.square(v).sum(axis=rest, keepdims=True) + eps
    scale = np.where(squares > 0, 1 / np.sqrt(np.where(squares > 0, squares, 1)), 0)
    g = wide(g)
    if g.size > 1:
        g = g.reshape([n if i in kept else 1 for i, n in enumerate(v.shape)])
    return scale, g, rest


def normalize(x, *, ord=2, axis=-1, eps=1e-12):
    x = wide(x)
    axes = sorted_axes(x.ndim, axis)
    return x / _divisor(_norm(x, ord, axes), eps)


def normalize_backward(dy, x, *, ord=2, axis=-1, eps=1e-12):
    x, dy = wide(x), wide(dy)
    axes = sorted_axes(x.ndim, axis)
    size = _norm(x, ord, axes)
    divisor = _divisor(size, eps)
    inner = (dy * x / divisor).sum(axis=axes, keepdims=True)
    if ord == 1:
        slope = np.sign(x)
    elif ord == 2:
        slope = x / divisor
    else:  # the largest elements share
        largest = np.abs(x) == size
        slope = np.sign(x) * largest / largest.sum(axis=axes, keepdims=True)
    return (dy - np.where(size < eps, 0, slope * inner)) / divisor * (size + eps > 0)


# ---- windows


def window_sum(x, axis, before, after):
    """Sums over [i - before, i + after], or what of it there is."""
    x = np.moveaxis(x, axis, 0)
    total = x.copy()
    for step in range(1, min(before, len(x) - 1) + 1):
        total[step:] += x[:-step]
    for step in range(1, min(after, len(x) - 1) + 1):
        total[:-step] += x[step:]
    return np.moveaxis(total, 0, axis)


def _response(x, size, alpha, k, across, even_window, channel_axis):
    x = wide(x)
    channel = channel_axis % x.ndim
    axes = [a for a in range(1, x.ndim) if (a == channel) == (across == "channels")]
    longer, shorter = size // 2, (size - 1) // 2
    before, after = (longer, shorter) if even_window == "torch" else (shorter, longer)
    scale = Real(alpha) / Real(size) ** len(axes)
    sums = x * x
    for a in axes:
        sums = window_sum(sums, a, before, after)
    return x, k + scale * sums, scale, [(a, after, before) for a in axes]


def local_response_norm(
    x, size, *, alpha=1e-4, beta=0.75, k=1.0, across="channels", even_window="torch", channel_axis=1
):
    x, s, *_ = _response(x, size, alpha, k, across, even_window, channel_axis)
    return x * s**-beta


def local_response_norm_backward(dy, x, size, *, beta=0.75, **options):
    defaults = {"alpha": 1e-4, "k": 1.0, "across": "channels", "even_window": "torch"}
    x, s, scale, mirrored = _response(x, size, **(defaults | {"channel_axis": 1} | options))
    dy = wide(dy)
    back = dy * x * s ** (-beta - 1)
    for window in mirrored:
        back = window_sum(back, *window)
    return ResponseGrads(dy * s**-beta - 2 * beta * scale * x * back)


def _window_mean(x, channel, sizes, transposed=False):
    """Means over all channels and the part of the window inside; or their transpose."""
    spatial = [a for a in range(1, x.ndim) if a != channel]
    sizes = sizes if isinstance(sizes, (tuple, list)) else [sizes] * len(spatial)
    x = x.mean(channel, keepdims=True)
    for a, size in zip(spatial, sizes, strict=True):
        inside = window_sum(np.ones_like(x), a, size // 2, size // 2)
        if transposed:
            x = window_sum(x / inside, a, size // 2, size // 2)
        else:
            x = window_sum(x, a, size // 2, size // 2) / inside
    return x


def _divided(x, sigma, summation_window, suppression_window, channel_axis):
    x = wide(x)
    channel = channel_axis % x.ndim
    sigma = wide(np.asarray(sigma))
    if sigma.ndim:
        sigma = expand(sigma, (channel,), x.shape)
    v = x - _window_mean(x, channel, summation_window)
    s = sigma**2 + _window_mean(v * v, channel, suppression_window)
    with np.errstate(divide="ignore"):
        return v, np.where(s == 0, 0, 1 / np.sqrt(s)), sigma, channel


def local_divisive_norm(x, sigma, weight=None, bias=None, *, channel_axis=1, **windows):
    v, r, _, channel = _divided(x, sigma, **windows, channel_axis=channel_axis)
    y = v * r
    if weight is not None:
        y = y * expand(weight, (channel,), y.shape)
    if bias is not None:
        y = y + expand(bias, (channel,), y.shape)
    return y


def local_divisive_norm_backward(
    dy, x, sigma, weight=None, bias=None, *, channel_axis=1, summation_window, suppression_window
):
    v, r, wide_sigma, channel = _divided(
        x, sigma, summation_window, suppression_window, channel_axis
    )
    dy = wide(dy)
    g = dy if weight is None else dy * expand(weight, (channel,), dy.shape)
    q = -g * v * r**3 / 2
    dv = g * r + 2 * v * _window_mean(q, channel, suppression_window, transposed=True)
    dx = dv - _window_mean(dv, channel, summation_window, transposed=True)
    others = tuple(a for a in range(dy.ndim) if a != channel)
    dsigma = (2 * wide_sigma * q).sum(others if np.ndim(sigma) else None)
    dweight = None if weight is None else (dy * v * r).sum(others)
    dbias = None if bias is None else dy.sum(others)
    return DivisiveGrads(dx, dsigma, dweight, dbias)


# ---- reductions


def norm(x, *, ord=2, axis=None, keepdims=False):
    x = wide(x)
    size = _norm(x, ord, _reduced(x, axis))
    return size if keepdims else size.reshape(np.sum(x, axis=axis).shape)


def moments_over(x, *, axis=None, keepdims=False):
    x = wide(x)
    axes = _reduced(x, axis)
    count = np.ones_like(x).sum(axis=axes, keepdims=True)
    mean = x.sum(axis=axes, keepdims=True) / np.maximum(count, 1)
    m2 = np.square(x - mean).sum(axis=axes, keepdims=True)
    peak = np.abs(x - mean).max(axis=axes, keepdims=True, initial=0)
    shape = np.sum(x, axis=axis, keepdims=keepdims).shape
    return Moments(*(field.reshape(shape) for field in (count, mean, m2, peak)))


def _reduced(x, axis):
    return tuple(range(x.ndim)) if axis is None else sorted_axes(x.ndim, axis)


def _norm(x, ord, axes):
    size = np.abs(x)
    if ord == 2:
        return np.sqrt(np.square(x).sum(axis=axes, keepdims=True))
    return size.sum(axis=axes, keepdims=True) if ord == 1 else size.max(axis=axes, keepdims=True)


def _divisor(size, eps):
    divisor = np.maximum(size, eps)
    return np.where(divisor == 0, 1, divisor)


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


# Spectral normalization: the matrix is `axis` by the rest.


def matrix(weight, axis=0):
    weight = np.moveaxis(wide(weight), axis, 0)
    return weight.reshape(weight.shape[0], -1)


def spectral_norm(weight, u, v=None, *, n_power_iterations=1, axis=0, bound=None, u_first=False):
    """(weight, sigma, u, v, axis) as the API; u_first is the order of torch's parametrization."""
    w = matrix(weight, axis)
    u, v = (None if a is None else wide(a) for a in (u, v))
    for _ in range(n_power_iterations):
        if u_first:
            u = _unit(w @ v)
            v = _unit(w.T @ u)
        else:
            v = _unit(w.T @ u)
            u = _unit(w @ v)
    sigma = u @ w @ v
    divisor = sigma if bound is None else max(Real(1), sigma / Real(bound))
    return wide(weight) / divisor, sigma, u, v, axis


def spectral_norm_backward(dw, weight, sigma, u, v, *, axis=0, bound=None):
    """The gradient with respect to the raw weight, which is what is given here."""
    dw = wide(dw)
    if bound is not None and sigma <= bound:
        return dw
    scale = (1 if bound is None else Real(bound)) / sigma
    inner = (dw * wide(weight)).sum() / sigma
    shape = np.moveaxis(dw, axis, 0).shape
    rank_one = np.moveaxis(np.outer(wide(u), wide(v)).reshape(shape), 0, axis)
    return scale * (dw - inner * rank_one)


def _unit(x):
    return x / np.sqrt(np.square(x).sum())
