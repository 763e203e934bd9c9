"""normcore.torch: values and gradients are those of normcore, in torch's autograd."""

import doctest
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_cases import CASES, on_arrays  # noqa: E402

import normcore as nc  # noqa: E402
import normcore.torch as nt  # noqa: E402

# torch's own rules of forward mode are scripted, of which it warns.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
cases = pytest.mark.parametrize("case", CASES, ids=str)


def tensors_of(values):
    return [a for a in values if isinstance(a, torch.Tensor)]


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_gradients_and_buffers_are_those_of_arrays(rng, case, dtype):
    tensors, options = case.make(rng, dtype, requires_grad=True)
    y_expected, gradients, moved = on_arrays(case, tensors, options)
    y = case.f(*tensors, **options)
    np.testing.assert_array_equal(y.detach().numpy(), y_expected)
    for name in case.buffers:
        np.testing.assert_array_equal(options[name].numpy(), moved[name])
    dy = torch.from_numpy(rng.standard_normal(y.shape)).to(dtype)
    y.backward(dy)
    expected = [g for g in gradients(dy) if isinstance(g, np.ndarray)]
    for tensor, g in zip(tensors_of(tensors), expected, strict=False):
        np.testing.assert_array_equal(tensor.grad.numpy(), g)


@cases
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits(rng, case, dtype):
    tensors, options = case.make(rng, dtype, requires_grad=True)
    as_double = lambda t: t.detach().double() if isinstance(t, torch.Tensor) else t  # noqa: E731
    exact = case.f(*map(as_double, tensors), **{k: as_double(v) for k, v in options.items()})
    y = case.f(*tensors, **options)
    assert y.dtype == dtype
    # One rounding, of values that are known to float32.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), exact, rtol=eps, atol=eps)
    y.backward(torch.ones_like(y))
    assert all(t.grad.dtype == dtype for t in tensors_of(tensors))


@cases
def test_gradcheck(rng, case):
    tensors, options = case.make(rng, requires_grad=True)
    if "training" in options and case.buffers:
        options = {**options, "momentum": 0.0}  # calls alike
    if case.label == "training" and case.function == "batch_renorm":
        options |= {"r_max": 1.0, "d_max": 0.0}  # which are constants of the gradient
    assert torch.autograd.gradcheck(lambda *t: case.f(*t, **options), tensors, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if c.double], ids=str)
def test_double_backward_and_forward_mode(rng, case):
    tensors, options = case.make(rng, requires_grad=True)
    if "training" in options and case.buffers:
        options = {**options, "momentum": 0.0}
    f = lambda *t: case.f(*t, **options)  # noqa: E731
    assert torch.autograd.gradgradcheck(f, tensors, atol=1e-5, rtol=1e-3)
    assert torch.autograd.gradcheck(
        f, tensors, check_forward_ad=True, check_backward_ad=False, atol=1e-6
    )


def test_double_backward_of_zeros(rng):
    x = torch.from_numpy(rng.standard_normal((3, 4)) * (rng.random((3, 4)) < 0.5))
    x[0, 0], x[:, 1] = 0, 1
    x.requires_grad_()
    for f in (nt.normalize, nt.rms_norm, lambda x: nt.weight_norm(x, torch.ones(3, dtype=x.dtype))):
        assert torch.autograd.gradgradcheck(f, (x,))
    rows = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    for f in (lambda x: nt.normalize(x, eps=1.0), lambda x: nt.weight_norm(x, 1.0)):
        (g,) = torch.autograd.grad(f(rows).sum(), rows, create_graph=True)
        (second,) = torch.autograd.grad(g.sum(), rows)
        assert not second.any()


@pytest.mark.parametrize("case", [c for c in CASES if not c.double], ids=str)
def test_what_has_no_second_derivative_says_so(rng, case):
    tensors, options = case.make(rng, requires_grad=True)
    y = case.f(*tensors, **options)
    (g,) = torch.autograd.grad(y.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(NotImplementedError, match=rf"^{case.function} has no double backward"):
        torch.autograd.grad(g.sum(), tensors[0])
    x, *rest = (t.detach() if isinstance(t, torch.Tensor) else t for t in tensors)
    with pytest.raises(NotImplementedError, match=f"^{case.function} has no derivative in forward"):
        torch.func.jvp(lambda x: case.f(x, *rest, **options), (x,), (torch.ones_like(x),))


@pytest.mark.parametrize("function", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("grad", [True, False])
def test_residual(rng, function, grad):
    f = getattr(nt, function)
    shapes = ((4, 6), (4, 6), 6, (4, 6), (4, 6))
    x, r, w, dy, dh = (torch.from_numpy(rng.standard_normal(s)) for s in shapes)
    x, r, w = (t.requires_grad_(grad) for t in (x, r, w))
    y, h = f(x, w, residual=r)
    torch.testing.assert_close(h, x + r)
    torch.testing.assert_close(y, f(h.detach(), w), rtol=0, atol=0)
    if not grad:
        return
    (y * dy + h * dh).sum().backward()
    again = [t.detach().requires_grad_() for t in (x, r, w)]
    h = again[0] + again[1]
    (f(h, again[2]) * dy + h * dh).sum().backward()
    for t, a in zip((x, r, w), again, strict=True):
        torch.testing.assert_close(t.grad, a.grad, rtol=1e-12, atol=1e-12)
    inputs = [t.detach().requires_grad_() for t in (x, r, w)]
    g = lambda x, r, w: f(x, w, residual=r)  # noqa: E731
    assert torch.autograd.gradcheck(g, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(g, inputs)
    y, h = g(*inputs)
    h.sum().backward()  # of the sum alone
    torch.testing.assert_close(inputs[0].grad, torch.ones_like(x))


def test_gdn_exponents_learn(rng):
    x, beta, gamma = (
        torch.from_numpy(rng.uniform(0.1, 1, s)).requires_grad_() for s in ((2, 3, 4), 3, (3, 3))
    )
    alpha = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    epsilon = torch.tensor([0.6], dtype=torch.float64, requires_grad=True)
    f = lambda *t: nt.gdn(*t[:3], alpha=t[3], epsilon=t[4])  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, beta, gamma, alpha, epsilon))


def test_spectral_norm(rng):
    w = torch.from_numpy(rng.standard_normal((4, 3, 2))).requires_grad_()
    u = torch.from_numpy(rng.standard_normal(4))
    result = nt.spectral_norm(w, u, n_power_iterations=3)
    expected = nc.spectral_norm(w.detach().numpy(), u.numpy(), n_power_iterations=3)
    np.testing.assert_array_equal(result.weight.detach().numpy(), expected.weight)
    assert float(result.sigma) == expected.sigma
    np.testing.assert_array_equal(result.u.numpy(), expected.u)
    dw = torch.from_numpy(rng.standard_normal(w.shape))
    result.weight.backward(dw)
    np.testing.assert_array_equal(w.grad.numpy(), nc.spectral_norm_backward(dw.numpy(), expected))
    fixed = lambda w: nt.spectral_norm(w, result.u, result.v, n_power_iterations=0).weight  # noqa: E731
    assert torch.autograd.gradcheck(fixed, (w,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(fixed, (w,))


def test_what_has_no_gradient(rng):
    x = torch.from_numpy(rng.standard_normal((4, 3)))
    assert float(nt.norm(x)) == float(nc.norm(x.numpy()))
    assert float(nt.moments(x).mean) == float(nc.moments(x.numpy()).mean)
    assert float(nt.power_method(x).sigma) == nc.power_method(x.numpy()).sigma
    x.requires_grad_()
    for f in (nt.norm, nt.moments, nt.power_method):
        with pytest.raises(ValueError, match=f"^{f.__name__} has no gradient"):
            f(x)
        with torch.no_grad():
            f(x)


def test_errors_are_ours():
    x = torch.ones(2, 3, 4)
    for call, kind, text in (
        (lambda: nt.layer_norm(x, torch.ones(3)), ValueError, r"^weight has shape \(3,\)"),
        (lambda: nt.layer_norm(x, axis=3), ValueError, "^axis is 3"),
        (lambda: nt.layer_norm(x.int()), TypeError, "^x has another dtype"),
        (lambda: nt.layer_norm(x, axis=2**32 + 1), ValueError, "^axis is 2147483647"),
        (lambda: nt.layer_norm(x, eps=None), TypeError, "^eps is of type NoneType"),
        (lambda: nt.group_norm(x, 3.0), TypeError, "^num_groups is of type float"),
        (lambda: nt.layer_norm(x, [1.0] * 4), TypeError, "^weight is of type list"),
        (lambda: nt.layer_norm(x, eps=-1.0), ValueError, "^eps is -1"),
        (lambda: nt.group_norm(x, 2), ValueError, "^num_groups is 2"),
        (lambda: nt.batch_norm(x[:1, :, :1], training=True), ValueError, "more than 1 value"),
        (lambda: nt.batch_norm(x, mask=torch.ones(5)), ValueError, r"^mask has shape \(5,\)"),
        (lambda: nt.local_response_norm(x, 3, across="time"), ValueError, "^across is 'time'"),
    ):
        for grad in (False, True):
            x.requires_grad_(grad and x.is_floating_point())
            with pytest.raises(kind, match=text):
                call()


def test_integers_of_numpy():
    x = torch.randn(2, 3, 4)
    assert torch.equal(nt.layer_norm(x, axis=np.int64(-2)), nt.layer_norm(x, axis=-2))
    assert torch.equal(nt.group_norm(x, np.int64(3), channel_axis=np.int64(1)), nt.group_norm(x, 3))


def test_parameters_that_are_frozen_get_no_gradient(rng):
    x = torch.randn(4, 6, requires_grad=True)
    w, b = torch.ones(6), torch.zeros(6, requires_grad=True)
    nt.layer_norm(x, w, b).sum().backward()
    assert w.grad is None and b.grad is not None and x.grad is not None


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "broadcast"])
@pytest.mark.parametrize("function", ["layer_norm", "batch_norm", "group_norm", "gdn"])
def test_results_have_torchs_strides(rng, layout, function):
    x = torch.from_numpy(rng.standard_normal((2, 4, 3, 5)))
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        x = x.transpose(2, 3)
    if layout == "broadcast":
        x = x[:1, :1].expand(2, 4, 3, 5)
    c = torch.ones(4, dtype=x.dtype)
    by_torch = torch.nn.functional
    calls = {
        "layer_norm": (nt.layer_norm, lambda x: by_torch.layer_norm(x, x.shape[-1:])),
        "batch_norm": (
            lambda x: nt.batch_norm(x, training=True),
            lambda x: by_torch.batch_norm(x, None, None, training=True),
        ),
        "group_norm": (lambda x: nt.group_norm(x, 2), lambda x: by_torch.group_norm(x, 2)),
        "gdn": (lambda x: nt.gdn(x, c, torch.eye(4, dtype=x.dtype)), lambda x: None),
    }
    ours, theirs = (f(x) for f in calls[function])
    if theirs is None:
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        theirs = torch.empty_like(
            x, memory_format=torch.channels_last if last else torch.contiguous_format
        )
    else:
        torch.testing.assert_close(ours, theirs)
    if layout != "broadcast":
        assert ours.stride() == theirs.stride()


def test_large_mean_and_threads_and_empty(rng):
    x = torch.from_numpy(rng.standard_normal((512, 1024)).astype(np.float32)) + 1e4
    y = nt.layer_norm(x)
    exact = torch.nn.functional.layer_norm(x.double(), (1024,))
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=1e-5)
    n = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(nt.layer_norm(x), y)
    finally:
        torch.set_num_threads(n)
    assert nt.layer_norm(x[:0]).shape == (0, 1024)


def test_a_tensor_that_requires_grad_is_told_of_this_module():
    x = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(BufferError, match=r"normcore\.torch"):
        nc.layer_norm(x)
    with torch.no_grad():
        assert nc.layer_norm(x).shape == (2, 3)


def test_names_and_arguments_are_those_of_arrays():
    """Every function of normcore that is no gradient, without what torch has no use for."""
    left_out = {"out", "return_stats"}
    for name, function in inspect.getmembers(nc, inspect.isfunction):
        if name.startswith("_") or name.endswith("_backward") or name in nc.config.__all__:
            continue
        ours = inspect.signature(getattr(nt, name)).parameters
        theirs = {
            k: p for k, p in inspect.signature(function).parameters.items() if k not in left_out
        }
        assert list(ours) == list(theirs), name
        for k, p in theirs.items():
            assert (ours[k].kind, ours[k].default) == (p.kind, p.default), (name, k)


@pytest.mark.parametrize("page", ["docs/torch.md"])
def test_examples_of_the_docs(page):
    text = (Path(__file__).parents[1] / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert blocks
    for block in blocks:
        exec(block, {})
    assert doctest.testmod(nt).failed == 0
