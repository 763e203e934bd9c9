"""Gradients judged by others than our own formulas: torch's autograd and finite differences.

Both the library and the oracle are held against them, in float64, so that an error in a formula
that the two share (they were written from the same page) cannot hide. Finite differences look at
every method; torch at those for which it has a function, or whose x_hat is written out here.
"""

import numpy as np
import pytest
import reference
from support import VARIANTS, Variant, make_problem

import normcore as nc

EXTRA = [
    Variant("layer_norm", {"axis": (1, 3)}),
    Variant("rms_norm", {"axis": (-1, -2), "weight_offset": 1.0}),
    Variant("batch_norm", {"training": False}),
    Variant("group_norm", {"num_groups": 1}),
    Variant("group_norm", {"num_groups": 6}),
]
STORED = ("running_mean", "running_var", "running_std", "running_scale")
each_module = pytest.mark.parametrize("module", [nc, reference], ids=["normcore", "oracle"])


def per_channel(value):
    """A vector over the channels, to broadcast with NCHW."""
    return value.reshape(1, -1, 1, 1)


def torch_moments(torch, x, axes):
    return x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)


# ---- x_hat of the papers, with eps 1e-5; what is a constant to their gradients is detached


def batch_statistics(torch, x, options):
    if options["training"]:
        return torch_moments(torch, x, (0, 2, 3))
    return options["running_mean"], options.get("running_var")


def batch_renorm(torch, x, params, options):
    mu, sigma = options["running_mean"], options["running_std"]
    if not options["training"]:
        return (x - mu) / sigma
    mean, var = batch_statistics(torch, x, options)
    std = torch.sqrt(var + 1e-5)
    r = (std / sigma).clamp(1 / 3, 3).detach()
    d = ((mean - mu) / sigma).clamp(-5, 5).detach()
    return (x - mean) / std * r + d


def batch_instance_norm(torch, x, params, options):
    mean, var = batch_statistics(torch, x, options)
    instance_mean, instance_var = torch_moments(torch, x, (2, 3))
    rho = per_channel(params["rho"])
    of_batch = (x - mean) / torch.sqrt(var + 1e-5)
    return rho * of_batch + (1 - rho) * (x - instance_mean) / torch.sqrt(instance_var + 1e-5)


def switchable_norm(torch, x, params, options):
    pools = [torch_moments(torch, x, axes) for axes in ((2, 3), (1, 2, 3))]
    means, variances = zip(*pools, batch_statistics(torch, x, options), strict=True)
    w, v = (torch.softmax(params[k], 0) for k in ("mean_logits", "var_logits"))
    mixed = sum(w[k] * means[k] for k in range(3))
    return (x - mixed) / torch.sqrt(sum(v[k] * variances[k] for k in range(3)) + 1e-5)


def mean_only_batch_norm(torch, x, params, options):
    return x - batch_statistics(torch, x, options)[0]


def divided_by(scale_of):
    """Of methods that divide by a scale of the distances from the mean, one row a channel."""

    def x_hat(torch, x, params, options):
        if not options["training"]:
            return (x - options["running_mean"]) / options["running_scale"]
        centred = x - x.mean((0, 2, 3), keepdim=True)
        scale = scale_of(torch, centred.abs().transpose(0, 1).flatten(1), options)
        return centred / per_channel(scale)

    return x_hat


@divided_by
def lp_batch_norm(torch, sizes, options):
    p = options.get("p", 1.0)
    if p == 1:
        return np.sqrt(np.pi / 2) * sizes.mean(1) + 1e-5
    return sizes.amax(1) + 1e-5 if p == np.inf else ((sizes**p).mean(1) + 1e-5) ** (1 / p)


@divided_by
def topk_batch_norm(torch, sizes, options):
    m = sizes.shape[1]
    c = (1 + np.sqrt(np.pi * np.log(4))) / (2 * np.sqrt(2 * np.log(m)))
    return c * sizes.topk(min(options.get("k", 10), m)).values.mean(1) + 1e-5


X_HAT = {
    "batch_renorm": batch_renorm,
    "batch_instance_norm": batch_instance_norm,
    "switchable_norm": switchable_norm,
    "mean_only_batch_norm": mean_only_batch_norm,
    "lp_batch_norm": lp_batch_norm,
    "topk_batch_norm": topk_batch_norm,
}
TORCH_HAS = ("layer_norm", "rms_norm", "batch_norm", "instance_norm", "group_norm")
IN_TORCH = [v for v in VARIANTS + EXTRA if v.method in X_HAT or v.method in TORCH_HAS]


def torch_forward(torch, problem, x, params):
    """The same call in torch; any axes are permuted to the end and back."""
    F, options = torch.nn.functional, problem.options
    weight, bias = params.get("weight"), params.get("bias")
    stored = {k: torch.from_numpy(v.copy()) for k, v in options.items() if k in STORED}
    if problem.method in X_HAT:
        wide = {k: per_channel(v) for k, v in stored.items()}
        y = X_HAT[problem.method](torch, x, params, options | wide)
        y = y if weight is None else y * per_channel(weight)
        return y + per_channel(bias)
    running = [stored.get(k) for k in ("running_mean", "running_var")]
    if problem.method == "batch_norm":
        training = options["training"] or running[0] is None
        return F.batch_norm(x, *running, weight, bias, training=training, eps=1e-5)
    if problem.method == "instance_norm":
        own = options.get("use_input_stats", True)
        return F.instance_norm(x, *running, weight, bias, use_input_stats=own, eps=1e-5)
    if problem.method == "group_norm":
        return F.group_norm(x, options["num_groups"], weight, bias, eps=1e-5)
    axes = reference.sorted_axes(x.ndim, options["axis"])
    kept = [i for i in range(x.ndim) if i not in axes]
    order = [*kept, *axes]
    last = [x.shape[a] for a in axes]
    if problem.method == "layer_norm":
        y = F.layer_norm(x.permute(order), last, weight, bias, eps=1e-5)
    else:
        y = F.rms_norm(x.permute(order), last, weight + options.get("weight_offset", 0.0), eps=1e-6)
    return y.permute([int(i) for i in np.argsort(order)])


@pytest.mark.parametrize("variant", IN_TORCH, ids=str)
@each_module
@pytest.mark.parametrize("shape", [(3, 6, 4, 5), (2, 6, 9, 1)], ids=str)
def test_against_torch(rng, variant, module, shape):
    torch = pytest.importorskip("torch")
    problem = make_problem(rng, variant, np.float64, shape)
    x = torch.tensor(problem.x, requires_grad=True)
    params = {k: torch.tensor(p, requires_grad=True) for k, p in problem.params.items()}
    y = torch_forward(torch, problem, x, params)
    y.backward(torch.from_numpy(problem.dy))

    ours = np.asarray(problem.forward(module), np.float64)
    np.testing.assert_allclose(ours, y.detach(), rtol=1e-10, atol=1e-11)
    gradients = problem.backward(module)
    for name, leaf in {"x": x, **params}.items():
        got = np.asarray(getattr(gradients, "d" + name), np.float64)
        np.testing.assert_allclose(got, leaf.grad, rtol=1e-10, atol=1e-11, err_msg=name)


# What is a constant to the gradient and yet moves with x is left out: batch renorm's r and d.
SMOOTH = [v for v in VARIANTS + EXTRA if not (v.traits.corrects and v.computed)]


@pytest.mark.parametrize("variant", SMOOTH, ids=str)
@each_module
def test_against_finite_differences(rng, variant, module):
    # Pools of six or more: two close values would make the function too steep for the step.
    problem = make_problem(rng, variant, np.float64, (3, 6, 2, 9))
    grads = problem.backward(module)
    arrays = {"dx": problem.x} | {"d" + name: p for name, p in problem.params.items()}
    for name, array in arrays.items():
        direction, slope = smooth_direction(rng, problem, module, array)
        got = float((getattr(grads, name) * direction).sum())
        # Truncation step^2 and cancellation 1e-16/step are both near 1e-10 of the terms added up.
        assert got == pytest.approx(slope, rel=1e-6, abs=1e-6), name


def smooth_direction(rng, problem, module, array):
    """A direction to move the array in, and how the result does; |x| and the largest have kinks."""
    start = array.copy()

    def slope(direction, step):
        ends = []
        for sign in (1, -1):
            array[...] = start + sign * step * direction
            ends.append(float((reference.wide(problem.forward(module)) * problem.dy).sum()))
        array[...] = start
        return (ends[0] - ends[1]) / (2 * step)

    for _ in range(10):
        direction = rng.normal(size=array.shape)
        # A kink within the longer step lies elsewhere within the shorter one.
        far, near = slope(direction, 1e-5), slope(direction, 1e-6)
        if near == pytest.approx(far, rel=2e-7, abs=2e-7):
            return direction, far
    pytest.fail(f"no smooth direction: {far} and {near}")


@each_module
@pytest.mark.parametrize("method", ["layer_norm", "rms_norm"])
def test_residual_and_dh_against_torch(rng, module, method):
    torch = pytest.importorskip("torch")
    problem = make_problem(rng, Variant(method, {"axis": -1}), np.float64)
    residual, dh = (rng.normal(size=problem.x.shape) for _ in range(2))
    x, other = (torch.tensor(a, requires_grad=True) for a in (problem.x, residual))
    params = {k: torch.tensor(p) for k, p in problem.params.items()}
    h = x + other
    y = torch_forward(torch, problem, h, params)
    (y * torch.from_numpy(problem.dy) + h * torch.from_numpy(dh)).sum().backward()

    our_y, our_h = problem.forward(module, residual=residual)
    np.testing.assert_allclose(np.asarray(our_y, np.float64), y.detach(), rtol=1e-10, atol=1e-11)
    problem.x = our_h
    dx = np.asarray(problem.backward(module, dh=dh).dx, np.float64)
    for leaf in (x, other):  # one gradient for both summands
        np.testing.assert_allclose(dx, leaf.grad, rtol=1e-10, atol=1e-11)
