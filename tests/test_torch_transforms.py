"""normcore.torch under torch's transforms: func.grad, vmap, compile, export, meta tensors, AMP."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_cases import CASES  # noqa: E402

import normcore.torch as nt  # noqa: E402
from normcore.torch._operators import OPS  # noqa: E402

# torch warns of its own parts.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning")
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


def frozen(options):
    """Options of a call that moves nothing."""
    moved = {"running_mean", "running_var", "running_std", "running_scale"}
    if options.get("training"):
        options = {k: v for k, v in options.items() if k not in moved}
    return options


def only_tensors(case, tensors):
    """A function of the tensors alone, and these."""
    at = [i for i, t in enumerate(tensors) if isinstance(t, torch.Tensor)]

    def f(*values, options):
        arguments = list(tensors)
        for i, v in zip(at, values, strict=True):
            arguments[i] = v
        return case.f(*arguments, **options)

    return f, [tensors[i] for i in at]


@cases
def test_func_grad_is_autograd(rng, case):
    tensors, options = case.make(rng, requires_grad=True)
    f, values = only_tensors(case, tensors)
    dy = torch.from_numpy(rng.standard_normal(case.x))

    def loss(*values):
        copies = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        return (f(*values, options=copies) * dy).sum()

    expected = torch.autograd.grad(loss(*values), values)
    plain = [v.detach() for v in values]
    assert all(map(torch.equal, torch.func.grad(loss, tuple(range(len(values))))(*plain), expected))
    value, pull = torch.func.vjp(loss, *plain)
    assert torch.equal(value, loss(*plain))
    assert all(map(torch.equal, pull(torch.ones_like(value)), expected))


@cases
@pytest.mark.parametrize("batched", ["x", "all"])
def test_vmap_is_a_loop(rng, case, batched):
    if case.function == "batch_renorm" and case.label == "training":
        return  # its buffers must be given, and move
    n = 3
    _, options = case.make(rng)
    options = frozen(options)
    many = [case.make(rng)[0] for _ in range(n)]
    f, first = only_tensors(case, many[0])
    rows = [only_tensors(case, t)[1] for t in many]
    dy = torch.from_numpy(rng.standard_normal((n, *case.x)))

    def loss(dy, *values):
        return (f(*values, options=options) * dy).sum()

    if batched == "all":
        stacked = [
            torch.stack(parts, dim=min(1, parts[0].dim())) for parts in zip(*rows, strict=True)
        ]
        dims = tuple(min(1, v.dim()) for v in first)
    else:
        stacked = [torch.stack([r[0] for r in rows]), *first[1:]]
        dims = (0, *[None] * (len(first) - 1))
        rows = [[r[0], *first[1:]] for r in rows]
    y = torch.vmap(lambda *v: f(*v, options=options), dims)(*stacked)
    expected = torch.stack([f(*r, options=options) for r in rows])
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    places = tuple(range(1, 1 + len(first)))
    gradients = torch.vmap(torch.func.grad(loss, places), (0, *dims))(dy, *stacked)
    for i, g in enumerate(gradients):
        one = [torch.func.grad(loss, places)(d, *r)[i] for d, r in zip(dy, rows, strict=True)]
        torch.testing.assert_close(g, torch.stack(one), rtol=1e-11, atol=1e-11)


def test_vmap_of_what_moves_buffers_says_so():
    x, mean, var = torch.randn(2, 3, 4, 5), torch.zeros(4), torch.ones(4)
    with pytest.raises(RuntimeError, match=r"^batch_norm: running statistics are moved in place"):
        torch.vmap(lambda x: nt.batch_norm(x, running_mean=mean, running_var=var, training=True))(x)


def test_vmap_moves_the_buffers_of_each_call(rng):
    x = torch.from_numpy(rng.standard_normal((2, 3, 4, 5)))
    means, variances = torch.zeros(4, 2, dtype=x.dtype), torch.ones(2, 4, dtype=x.dtype)

    def f(x, mean, var):
        return nt.batch_norm(x, running_mean=mean, running_var=var, training=True)

    expected = [(torch.zeros(4, dtype=x.dtype), torch.ones(4, dtype=x.dtype)) for _ in range(2)]
    rows = [f(one, *buffers) for one, buffers in zip(x, expected, strict=True)]
    y = torch.vmap(f, (0, 1, 0))(x, means, variances)
    torch.testing.assert_close(y, torch.stack(rows), rtol=1e-12, atol=1e-12)
    for i, (mean, var) in enumerate(expected):
        assert torch.equal(means[:, i], mean) and torch.equal(variances[i], var)


@pytest.mark.parametrize("axis", [2, -3, 2**32 + 1])
def test_axes_within_vmap_are_those_of_a_call(axis):
    x = torch.randn(3, 2, 4)
    with pytest.raises(ValueError, match=rf"^axis is {axis}, expected -2 to 1 for x with 2 axes"):
        torch.vmap(lambda x: nt.layer_norm(x, axis=axis))(x)
    with pytest.raises(ValueError, match=rf"^channel_axis is {axis}, expected -2 to 1"):
        torch.vmap(lambda x: nt.batch_norm(x, channel_axis=axis, training=True))(x)


def test_vmap_without_samples():
    x, dy = torch.randn(3, 0, 4, 5), torch.randn(3, 0, 4, 5)
    g = torch.vmap(torch.func.grad(lambda x, dy: (nt.instance_norm(x) * dy).sum()))(x, dy)
    assert g.shape == x.shape


def test_nested_forward_modes(rng):
    x = torch.from_numpy(rng.standard_normal((2, 5)))
    v = torch.from_numpy(rng.standard_normal((2, 5)))

    def twice(f):
        return torch.func.jvp(lambda x: torch.func.jvp(f, (x,), (v,))[1], (x,), (v,))[1]

    def formula(x):
        d = x - x.mean(-1, keepdim=True)
        return d * torch.rsqrt(d.square().mean(-1, keepdim=True) + 1e-5)

    torch.testing.assert_close(twice(nt.layer_norm), twice(formula), rtol=1e-9, atol=1e-9)
    sums = lambda x: nt.layer_norm(x, residual=v)[0]  # noqa: E731
    torch.testing.assert_close(twice(sums), twice(lambda x: formula(x + v)), rtol=1e-9, atol=1e-9)
    with pytest.raises(NotImplementedError, match=r"^lp_batch_norm has no derivatives in nested"):
        twice(lambda x: nt.lp_batch_norm(x, training=True))
    with pytest.raises(NotImplementedError, match=r"^spectral_norm has no derivatives in nested"):
        twice(lambda x: nt.spectral_norm(x, v[:, 0]).weight)
    mean, var = torch.zeros(5), torch.ones(5)
    moves = lambda x: nt.batch_norm(x, running_mean=mean, running_var=var, training=True)  # noqa: E731
    with pytest.raises(NotImplementedError, match=r"^batch_norm has no derivatives in nested"):
        twice(moves)
    assert not mean.any()


def test_tangents_that_are_missing():
    x, w, mean = torch.randn(3, 4), torch.ones(4), torch.zeros(4)
    (y, h), (dy, dh) = torch.func.jvp(lambda w: nt.layer_norm(x, w, residual=x), (w,), (w,))
    torch.testing.assert_close(dy, y)
    assert not dh.any() and torch.equal(h, 2 * x)
    still = lambda m: nt.batch_norm(x, running_mean=m, running_var=w)  # noqa: E731
    assert not torch.func.jvp(still, (mean,), (w,))[1].any()


def test_vmap_is_one_call_where_it_can_be(rng):
    x = torch.from_numpy(rng.standard_normal((7, 2, 4, 6)))
    w, mask = torch.ones(4, dtype=x.dtype), torch.from_numpy(rng.random((2, 6)) < 0.7)
    calls = {
        "layer_norm": lambda x: nt.layer_norm(x),
        "group_norm": lambda x: nt.group_norm(x, 2, w, w),
        "batch_norm": lambda x: nt.batch_norm(x, w, w, training=True),
        "mean_only_batch_norm": lambda x: nt.mean_only_batch_norm(x, w, mask=mask, training=True),
        "gdn": lambda x: nt.gdn(x, w, torch.eye(4, dtype=x.dtype)),
    }

    def calls_of(name, f, *arguments):
        with torch.profiler.profile() as profile:
            f(*arguments)
        return sum(e.count for e in profile.key_averages() if name in e.key)

    for name, f in calls.items():
        assert calls_of(name, torch.vmap(f), x) == 2, name  # the batched call, and what it does
    # Gradients for each sample: forward, backward, and what the weight multiplies.
    loss = lambda v, x: (nt.layer_norm(x, v, v) ** 2).sum()  # noqa: E731
    each = torch.vmap(torch.func.grad(loss), (None, 0))
    assert calls_of("layer_norm", each, torch.ones(6, dtype=x.dtype), x) <= 6


@cases
def test_opcheck(rng, case):
    """torch's own checks of the schemas and of results without values."""
    tensors, options = case.make(rng)
    seen = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            if function.namespace == "normcore":
                copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
                seen.append((function, copies))
            return function(*arguments, **(keywords or {}))

    with Record():
        live = [t.clone().requires_grad_() if isinstance(t, torch.Tensor) else t for t in tensors]
        case.f(*live, **options).sum().backward()
        with torch.no_grad():
            case.f(*tensors, **options)
    assert len(seen) == 3
    for function, arguments in seen:
        torch.library.opcheck(function, arguments)


def test_opcheck_of_the_others(rng):
    x = torch.from_numpy(rng.standard_normal((4, 6)))
    u = torch.from_numpy(rng.standard_normal(4))
    w, b = x[0].clone(), x[1].clone()
    y, h, pooled = OPS.layer_norm.sum_saved(x, w, b, [-1], 1e-5, x.clone())
    torch.library.opcheck(OPS.layer_norm.sum_saved, (x, w, b, [-1], 1e-5, x.clone()))
    torch.library.opcheck(OPS.layer_norm.sum, (x, w, b, [-1], 1e-5, x.clone()))
    backward = (y, h, w, b, [-1], 1e-5, x.clone(), pooled, 3)
    torch.library.opcheck(OPS.layer_norm_backward.default, backward)
    torch.library.opcheck(OPS.rms_norm.sum, (x, w, [-1], 1e-5, 1.0, x.clone()))
    torch.library.opcheck(OPS.spectral_norm.default, (x, u, None, 2, 0, 1e-12, None, False))
    result = OPS.spectral_norm.default(x, u, None, 2, 0, 1e-12, None, False)
    torch.library.opcheck(OPS.spectral_norm_backward.default, (x.clone(), *result, 0, None))


@cases
def test_compile_whole(rng, case):
    tensors, options = case.make(rng, torch.float32)
    f, values = only_tensors(case, tensors)
    eager = [v.clone().requires_grad_() for v in values]
    traced = [v.clone().requires_grad_() for v in values]
    before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    compiled = torch.compile(
        lambda *v: f(*v, options=options).square(), fullgraph=True, backend="aot_eager"
    )
    y, expected = compiled(*traced), f(*eager, options=before).square()
    assert torch.equal(y, expected)
    y.sum().backward()
    expected.sum().backward()
    for a, b in zip(traced, eager, strict=True):
        assert torch.equal(a.grad, b.grad)
    for name in case.buffers:
        assert torch.equal(options[name], before[name])
    torch._dynamo.reset()


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x):
        x = nt.batch_norm(
            x, self.weight, running_mean=self.mean, running_var=self.var, training=self.training
        )
        x = nt.gdn(x, torch.ones(8), torch.eye(8))
        return nt.layer_norm(x, axis=(1, 2))


@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor(dynamic):
    torch.manual_seed(0)
    model = Network()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for n in (3, 5):
        x = torch.randn(n, 8, 6, requires_grad=True)
        mean = model.mean.clone()
        y = compiled(x)
        (g,) = torch.autograd.grad(y.square().sum(), x)
        moved = model.mean.clone()
        with torch.no_grad():
            model.mean.copy_(mean)
        y_eager = model(x)
        (g_eager,) = torch.autograd.grad(y_eager.square().sum(), x)
        torch.testing.assert_close(y, y_eager)
        torch.testing.assert_close(g, g_eager)
        assert torch.equal(moved, model.mean)
    torch._dynamo.reset()


class Call(torch.nn.Module):
    """A case as a module: its parameters, running buffers and mask are those of the module."""

    def __init__(self, case, tensors, options):
        super().__init__()
        self.case, self.others, self.options = case, {}, {}
        for i, t in enumerate(tensors[1:], 1):
            if isinstance(t, torch.Tensor):
                setattr(self, f"p{i}", torch.nn.Parameter(t.detach().clone()))
            else:
                self.others[i] = t
        for name, value in options.items():
            if isinstance(value, torch.Tensor):
                self.register_buffer(name, value.clone())
            else:
                self.options[name] = value
        self.count, self.names = len(tensors), [n for n, _ in self.named_buffers()]

    def forward(self, x):
        rest = [
            self.others[i] if i in self.others else getattr(self, f"p{i}")
            for i in range(1, self.count)
        ]
        options = {**self.options, **{name: getattr(self, name) for name in self.names}}
        return self.case.f(x, *rest, **options)


@cases
@pytest.mark.parametrize("strict", [False, True], ids=["lenient", "strict"])
def test_an_exported_graph_can_be_trained(rng, case, strict):
    tensors, options = case.make(rng)
    module, x = Call(case, tensors, options), tensors[0]
    program = torch.export.export(module, (x,), strict=strict)
    graph, modules = program.module(), []
    graph.load_state_dict(module.state_dict())  # which shares the parameters otherwise
    for m in (graph, Call(case, tensors, options)):
        m.zero_grad()
        live = x.clone().requires_grad_()
        y = m(live)
        (y**3).sum().backward()
        grads = {name: p.grad.clone() for name, p in m.named_parameters()}
        modules.append((y, live.grad, grads, {k: b.clone() for k, b in m.named_buffers()}))
    torch.testing.assert_close(*modules, rtol=0, atol=0)


LOADED = """
import sys, torch, normcore.torch
program = torch.export.load(sys.argv[1])
x = torch.ones(2, 3, 4, requires_grad=True)
program.module()(x).pow(3).sum().backward()
assert x.grad is not None and all(p.grad is not None for p in program.module().parameters())
"""


def test_an_exported_graph_is_trained_elsewhere(tmp_path):
    program = torch.export.export(nt.SwitchableNorm(3), (torch.randn(2, 3, 4),))
    torch.export.save(program, tmp_path / "program.pt2")
    subprocess.run([sys.executable, "-c", LOADED, tmp_path / "program.pt2"], check=True)


def test_export():
    model = Network().eval()
    x = torch.randn(3, 8, 6)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}})
    names = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert any(n.startswith("normcore.batch_norm") for n in names)
    other = torch.randn(5, 8, 6)
    assert torch.equal(program.module()(other), model(other))


@cases
def test_meta_tensors(rng, case):
    tensors, options = case.make(rng, torch.float32)
    y = case.f(*tensors, **options)

    def meta(a):
        return a.to("meta") if isinstance(a, torch.Tensor) else a

    there = case.f(*map(meta, tensors), **{k: meta(v) for k, v in options.items()})
    assert there.device.type == "meta"
    assert (there.shape, there.dtype, there.stride()) == (y.shape, y.dtype, y.stride())


def test_devices_do_not_mix():
    with pytest.raises(ValueError, match=r"on cpu, meta, expected one device"):
        nt.layer_norm(torch.randn(4, 6), torch.ones(6, device="meta"))
    with pytest.raises(ValueError, match=r"^axis is 7"):
        nt.layer_norm(torch.randn(4, 6, device="meta", requires_grad=True), axis=7)


def test_checkpoint_and_autocast():
    x = torch.randn(4, 8, requires_grad=True)
    w = torch.randn(8, requires_grad=True)
    f = lambda x, w: nt.layer_norm(torch.relu(x), w)  # noqa: E731
    expected = torch.autograd.grad(f(x, w).square().sum(), (x, w))
    got = torch.autograd.grad(checkpoint(f, x, w, use_reentrant=False).square().sum(), (x, w))
    assert all(map(torch.equal, got, expected))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = nt.layer_norm(torch.nn.functional.linear(x, torch.eye(8)), w)
        assert y.dtype == torch.bfloat16
    (g,) = torch.autograd.grad(y.float().sum(), w)
    assert g.dtype == torch.float32


def test_grad_of_grad(rng):
    x = torch.from_numpy(rng.standard_normal((3, 5)))
    w = torch.from_numpy(rng.standard_normal(5))
    ours = torch.func.hessian(lambda x: nt.layer_norm(x, w).pow(3).sum())
    theirs = torch.func.hessian(lambda x: torch.nn.functional.layer_norm(x, (5,), w).pow(3).sum())
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
    x.requires_grad_()
    y = nt.layer_norm(x, w).pow(3).sum()
    for _ in range(2):
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        y = g.square().sum()
    (third,) = torch.autograd.grad(y, x)
    z = torch.nn.functional.layer_norm(x, (5,), w)
    mean = x.mean(-1, keepdim=True)
    z = (x - mean) * torch.rsqrt((x - mean).square().mean(-1, keepdim=True) + 1e-5) * w
    y = z.pow(3).sum()
    for _ in range(2):
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        y = g.square().sum()
    torch.testing.assert_close(third, torch.autograd.grad(y, x)[0], rtol=1e-7, atol=1e-7)
