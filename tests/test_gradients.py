"""Gradients judged by others than our own formulas: torch's autograd and finite differences.

Both the library and the oracle are held against them, in float64, so that an error in a formula
that the two share (they were written from the same page) cannot hide.
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
each_variant = pytest.mark.parametrize("variant", VARIANTS + EXTRA, ids=str)
STORED = ("running_mean", "running_var", "running_std", "running_scale")
ADAPTIVE = (
    "batch_renorm",
    "batch_instance_norm",
    "switchable_norm",
    "mean_only_batch_norm",
    "lp_batch_norm",
    "topk_batch_norm",
)
each_module = pytest.mark.parametrize("module", [nc, reference], ids=["normcore", "oracle"])


def per_channel(value):
    """A vector over the channels, to broadcast with NCHW."""
    return value.reshape(1, -1, 1, 1)


def torch_moments(torch, x, axes):
    return x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)


def torch_adaptive(torch, problem, x, params, eps=1e-5):
    """The formulas of the papers in torch; statistics that are constants there are detached."""
    options = problem.options
    running = {
        k: per_channel(torch.from_numpy(v.copy())) for k, v in options.items() if k in STORED
    }
    training = options["training"]
    mean, var = torch_moments(torch, x, (0, 2, 3))
    instance_mean, instance_var = torch_moments(torch, x, (2, 3))
    if problem.method in ("lp_batch_norm", "topk_batch_norm"):
        if not training:
            mean, scale = running["running_mean"], running["running_scale"]
        else:
            size, m = (x - mean).abs().transpose(0, 1).flatten(1), x.numel() // x.shape[1]
            p = options.get("p", 1.0)
            if problem.method == "topk_batch_norm":
                c = (1 + np.sqrt(np.pi * np.log(4))) / (2 * np.sqrt(2 * np.log(m)))
                scale = c * size.topk(min(options.get("k", 10), m)).values.mean(1) + eps
            elif p == 1:
                scale = np.sqrt(np.pi / 2) * size.mean(1) + eps
            else:
                scale = size.amax(1) + eps if p == np.inf else ((size**p).mean(1) + eps) ** (1 / p)
            scale = per_channel(scale)
        xhat = (x - mean) / scale
    elif problem.method == "batch_renorm":
        std = torch.sqrt(var + eps)
        mu, sigma = running["running_mean"], running["running_std"]
        r = (std / sigma).clamp(1 / 3, 3).detach()
        d = ((mean - mu) / sigma).clamp(-5, 5).detach()
        xhat = (x - mean) / std * r + d if training else (x - mu) / sigma
    else:
        if not training:
            mean, var = running["running_mean"], running.get("running_var")
        if problem.method == "mean_only_batch_norm":
            return x - mean + per_channel(params["bias"])
        if problem.method == "batch_instance_norm":
            rho = per_channel(params["rho"])
            xhat = rho * (x - mean) / torch.sqrt(var + eps)
            xhat = xhat + (1 - rho) * (x - instance_mean) / torch.sqrt(instance_var + eps)
        elif problem.method == "switchable_norm":
            means, variances = zip(
                (instance_mean, instance_var),
                torch_moments(torch, x, (1, 2, 3)),
                (mean, var),
                strict=True,
            )
            w, v = (torch.softmax(params[k], 0) for k in ("mean_logits", "var_logits"))
            mixed = sum(w[k] * means[k] for k in range(3))
            xhat = (x - mixed) / torch.sqrt(sum(v[k] * variances[k] for k in range(3)) + eps)
        else:
            pytest.fail(f"add {problem.method} to torch_adaptive in tests/test_gradients.py")
    return xhat * per_channel(params["weight"]) + per_channel(params["bias"])


def torch_forward(torch, problem, x, params):
    """The same call in torch; any axes are permuted to the end and back."""
    F, options = torch.nn.functional, problem.options
    weight, bias = params.get("weight"), params.get("bias")
    if problem.method in ADAPTIVE:
        return torch_adaptive(torch, problem, x, params)
    running = [options.get(k) for k in ("running_mean", "running_var")]
    running = [None if r is None else torch.from_numpy(r.copy()) for r in running]
    if problem.method == "batch_norm":
        training = options["training"] or running[0] is None
        return F.batch_norm(x, *running, weight, bias, training=training, eps=1e-5)
    if problem.method == "instance_norm":
        own = options.get("use_input_stats", True)
        return F.instance_norm(x, *running, weight, bias, use_input_stats=own, eps=1e-5)
    if problem.method == "group_norm":
        return F.group_norm(x, options["num_groups"], weight, bias, eps=1e-5)
    if problem.method not in ("layer_norm", "rms_norm"):
        pytest.fail(f"add {problem.method} to torch_forward in tests/test_gradients.py")
    axes = reference.sorted_axes(x.ndim, options["axis"])
    kept = [i for i in range(x.ndim) if i not in axes]
    order = [*kept, *axes]
    last = [x.shape[a] for a in axes]
    if problem.method == "layer_norm":
        y = F.layer_norm(x.permute(order), last, weight, bias, eps=1e-5)
    else:
        y = F.rms_norm(x.permute(order), last, weight + options.get("weight_offset", 0.0), eps=1e-6)
    return y.permute([int(i) for i in np.argsort(order)])


@each_variant
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
        direction = rng.normal(size=array.shape)
        step = 1e-5
        start = array.copy()
        ends = []
        for sign in (1, -1):
            array[...] = start + sign * step * direction
            ends.append(float((reference.wide(problem.forward(module)) * problem.dy).sum()))
        array[...] = start
        slope = (ends[0] - ends[1]) / (2 * step)
        got = float((getattr(grads, name) * direction).sum())
        # Truncation step^2 and cancellation 1e-16/step are both near 1e-10 of the terms added up.
        assert got == pytest.approx(slope, rel=1e-6, abs=1e-6), name


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
