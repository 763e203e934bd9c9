"""normcore.jax: values and gradients are those of normcore, under jit, vmap and grad."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from jax_cases import CASES  # noqa: E402

import normcore as nc  # noqa: E402
import normcore.jax as nj  # noqa: E402

cases = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(params=[np.float32, np.float64], ids=lambda t: t.__name__)
def dtype(request):
    with jax.enable_x64(request.param == np.float64):
        yield request.param


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def on_jax(arrays):
    return {k: jnp.asarray(a) for k, a in arrays.items()}


def assert_close(actual, expected, rtol=1e-12):
    """As far as sums in another order go."""
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol, rtol * (1 + np.abs(e).max())),
        actual,
        expected,
    )


@cases
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_values_gradients_and_buffers_are_those_of_arrays(rng, case, dtype, jit):
    arrays, constants = case.make(rng, dtype)
    y_expected, moved, gradients = case.on_arrays(arrays, constants)
    f = jax.jit(case.f) if jit else case.f
    y, *buffers = r if isinstance(r := f(on_jax(arrays), on_jax(constants)), tuple) else (r,)
    np.testing.assert_array_equal(y, y_expected)
    moves = case.options.get("training", case.label == "moving")
    assert len(buffers) == (len(case.buffers) if moves else 0)
    for name, buffer in zip(case.buffers, buffers, strict=False):
        np.testing.assert_array_equal(buffer, moved[name])
    dy = rng.standard_normal(y.shape).astype(dtype)
    y, pull = jax.vjp(lambda a: case.y(a, on_jax(constants)), on_jax(arrays))
    np.testing.assert_array_equal(y, y_expected)
    (down,) = (jax.jit(pull) if jit else pull)(jnp.asarray(dy))
    expected = gradients(dy)
    x = "v" if "v" in arrays else "x"
    names = [x, *(k for k in arrays if k != x)]
    assert len(expected) == len(names)
    for name, g in zip(names, expected, strict=True):
        np.testing.assert_array_equal(down[name], g, err_msg=name)


@cases
@pytest.mark.parametrize("half", [jnp.float16, jnp.bfloat16], ids=lambda t: t.dtype.name)
def test_16_bits(rng, case, half):
    arrays, constants = case.make(rng, half.dtype)
    y_expected, _, gradients = case.on_arrays(arrays, constants)
    y, pull = jax.vjp(lambda a: case.y(a, on_jax(constants)), on_jax(arrays))
    assert y.dtype == half.dtype
    np.testing.assert_array_equal(np.asarray(y), y_expected)
    dy = rng.standard_normal(y.shape).astype(half.dtype)
    (down,) = pull(jnp.asarray(dy))
    assert all(g.dtype == half.dtype for g in down.values())
    x = "v" if "v" in arrays else "x"
    np.testing.assert_array_equal(np.asarray(down[x]), gradients(dy)[0])


def looped(f, arrays, constants, n):
    """f of each call of a batch, by an explicit loop."""
    one = lambda tree, i: {k: a[i] if a.shape[:1] == (n,) else a for k, a in tree.items()}  # noqa: E731
    results = [f(one(arrays, i), one(constants, i)) for i in range(n)]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *results)


N = 7  # no axis of a case is as long


@cases
@pytest.mark.parametrize("batched", ["x", "parameters", "all"])
def test_vmap_is_a_loop(rng, case, x64, batched):
    """Values, buffers and gradients of a batch of calls, of which x, all else, or both differ."""
    many, many_constants = map(on_jax, case.make(rng, np.float64, (N,)))
    x = "v" if "v" in many else "x"
    alone = {"x": lambda k: k != x, "parameters": lambda k: k == x, "all": lambda k: False}[batched]
    arrays = {k: a[0] if alone(k) else a for k, a in many.items()}
    constants = {k: a[0] if batched == "x" else a for k, a in many_constants.items()}
    if all(alone(k) for k in arrays) and (batched == "x" or not constants):
        pytest.skip("nothing differs")
    axes = jax.tree.map(lambda a: 0 if a.shape[:1] == (N,) else None, (arrays, constants))
    value = jax.jit(jax.vmap(case.f, axes))
    assert_close(value(arrays, constants), looped(case.f, arrays, constants, N))
    scale = jnp.cos(jnp.arange(np.prod(case.arrays[x])).reshape(case.arrays[x]))
    g = jax.grad(lambda a, c: (case.y(a, c) * scale).sum())
    assert_close(jax.jit(jax.vmap(g, axes))(arrays, constants), looped(g, arrays, constants, N))
    # Of a sum over the batch, as training has it.
    both = lambda a: (jax.vmap(case.y, axes)(a, constants) * scale).sum()  # noqa: E731
    expected = looped(g, arrays, constants, N)
    expected = {k: e if arrays[k].shape[:1] == (N,) else e.sum(0) for k, e in expected.items()}
    assert_close(jax.grad(both)(arrays), expected, 1e-10)


@cases
def test_vmap_within_vmap(rng, case, x64):
    arrays, constants = map(on_jax, case.make(rng, np.float64, (2, N)))
    ours = jax.vmap(jax.vmap(case.f))(arrays, constants)
    rows = [{k: a[i] for k, a in arrays.items()} for i in range(2)]
    others = [{k: a[i] for k, a in constants.items()} for i in range(2)]
    parts = [looped(case.f, *both, N) for both in zip(rows, others, strict=True)]
    assert_close(ours, jax.tree.map(lambda *a: jnp.stack(a), *parts))


@pytest.mark.parametrize("function", ["layer_norm", "batch_norm", "group_norm", "weight_norm"])
def test_a_batch_along_another_axis_than_the_first(rng, x64, function):
    case = next(c for c in CASES if c.function == function)
    arrays, constants = map(on_jax, case.make(rng, np.float64, (N,)))
    last = {k: jnp.moveaxis(a, 0, -1) for k, a in arrays.items()}
    ours = jax.vmap(case.y, (-1, 0), -1)(last, constants)
    assert_close(jnp.moveaxis(ours, -1, 0), looped(case.y, arrays, constants, N))


@pytest.mark.parametrize("case", [c for c in CASES if c.double], ids=str)
def test_derivatives_of_gradients(rng, case, x64):
    """Against differences of the gradients, which are the handlers' own."""
    arrays, constants = map(on_jax, case.make(rng, np.float64))
    towards = on_jax(case.make(rng, np.float64)[0])
    scale = jnp.asarray(rng.standard_normal(case.y(arrays, constants).shape))

    def slope(a):
        """Of a function of y that is not linear, so that dy changes too."""
        g = jax.grad(lambda a: (scale * jnp.sin(case.y(a, constants))).sum())(a)
        return sum((g[k] * towards[k]).sum() for k in g)

    step = 1e-6
    second = jax.jit(jax.grad(slope))(arrays)
    ahead, behind = (
        slope({k: a + sign * step * towards[k] for k, a in arrays.items()}) for sign in (1, -1)
    )
    along = sum((second[k] * towards[k]).sum() for k in second)
    # The error of the differences: their step squared, and rounding over their step.
    np.testing.assert_allclose(along, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-5)
    for k, g in second.items():
        i = tuple(rng.integers(0, n) for n in g.shape)
        high, low = (slope({**arrays, k: arrays[k].at[i].add(s * step)}) for s in (1, -1))
        np.testing.assert_allclose(g[i], (high - low) / (2 * step), rtol=1e-5, atol=1e-5)


def test_derivatives_of_gradients_of_zeros(x64):
    x = jnp.asarray([1.0, 0.0, 2.0])
    ours = lambda x: nj.normalize(x)  # noqa: E731
    formula = lambda x: x / jnp.sqrt((x * x).sum())  # noqa: E731
    twice = [jax.jacrev(jax.jacrev(f))(x) for f in (ours, formula)]
    assert_close(*twice, 1e-12)
    zeros = jnp.zeros(3)
    second = jax.jacrev(jax.jacrev(lambda x: nj.normalize(x, eps=1.0)))(zeros)
    assert not second.any()


def test_third_derivatives(rng, x64):
    x = jnp.asarray(rng.standard_normal(5))
    ours = lambda x: nj.rms_norm(x, eps=0.1)  # noqa: E731
    formula = lambda x: x / jnp.sqrt((x * x).mean() + 0.1)  # noqa: E731
    thrice = [jax.jacrev(jax.jacrev(jax.jacrev(f)))(x) for f in (ours, formula)]
    assert_close(*thrice, 1e-10)


@pytest.mark.parametrize("case", [c for c in CASES if not c.double], ids=str)
def test_what_has_no_second_derivative_says_so(rng, case):
    arrays, constants = map(on_jax, case.make(rng))
    g = jax.grad(lambda a: jnp.square(case.y(a, constants)).sum())
    with pytest.raises(NotImplementedError, match=f"^{case.function} has no derivatives of its"):
        jax.grad(lambda a: g(a)["x"].sum())(arrays)


@pytest.mark.parametrize("function", ["layer_norm", "rms_norm"])
def test_residual(rng, x64, function):
    f = getattr(nj, function)
    x, r, dy, dh = (jnp.asarray(rng.standard_normal((4, 6))) for _ in range(4))
    w = jnp.asarray(rng.standard_normal(6))
    y, h = f(x, w, residual=r)
    np.testing.assert_array_equal(h, x + r)
    np.testing.assert_array_equal(y, f(h, w))
    ours = lambda x, r, w: f(x, w, residual=r)  # noqa: E731
    apart = lambda x, r, w: (f(x + r, w), x + r)  # noqa: E731
    downs = [jax.vjp(g, x, r, w)[1]((dy, dh)) for g in (ours, apart)]
    assert_close(*downs)
    many = jnp.stack([x, r, dy])
    batches = [jax.vmap(g, (0, None, None))(many, r, w) for g in (ours, apart)]
    assert_close(*batches)
    seconds = [
        jax.grad(lambda x, g=g: jnp.square(jax.vjp(g, x, r, w)[1]((dy, dh))[0]).sum())(x)
        for g in (ours, apart)
    ]
    assert_close(*seconds, 1e-10)


@pytest.mark.parametrize("bound", [None, 2.0])
def test_spectral_norm(rng, dtype, bound):
    w = rng.standard_normal((4, 3, 2)).astype(dtype)
    u = rng.standard_normal(4).astype(dtype)
    expected = nc.spectral_norm(w, u, n_power_iterations=3, bound=bound)
    result = nj.spectral_norm(w, u, n_power_iterations=3, bound=bound)
    for name in ("weight", "u", "v"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
    assert float(result.sigma) == np.asarray(expected.sigma, dtype)
    dw = rng.standard_normal(w.shape).astype(dtype)
    f = lambda w: nj.spectral_norm(w, u, n_power_iterations=3, bound=bound).weight  # noqa: E731
    _, pull = jax.vjp(f, jnp.asarray(w))
    # normcore's sigma is a number of Python, not rounded to float32.
    (down,) = pull(jnp.asarray(dw))
    eps = np.finfo(dtype).eps
    assert_close(down, nc.spectral_norm_backward(dw, expected, bound=bound), 4 * eps)
    many = jnp.stack([w, 2 * w])
    assert_close(jax.vmap(f)(many), jnp.stack([f(many[0]), f(many[1])]), 8 * eps)


def test_second_derivative_of_spectral_norm(rng, x64):
    w = jnp.asarray(rng.standard_normal((4, 3)))
    start = nj.spectral_norm(w, rng.standard_normal(4), n_power_iterations=30)

    def ours(w):
        return nj.spectral_norm(w, start.u, start.v, n_power_iterations=0).weight

    formula = lambda w: w / (start.u @ w @ start.v)  # noqa: E731
    hessians = [jax.jacrev(jax.jacrev(f))(w) for f in (ours, formula)]
    assert_close(*hessians, 1e-10)


def test_new_buffers_and_old_ones(rng):
    """The old ones stay, also where jit may write over its arguments."""
    x = jnp.asarray(rng.standard_normal((8, 3)), jnp.float32)
    mean, var = jnp.zeros(3), jnp.ones(3)

    @jax.jit
    def step(mean, var):
        y, new_mean, new_var = nj.batch_norm(
            x, running_mean=mean, running_var=var, training=True, momentum=0.5
        )
        return y, new_mean, new_var, mean, var

    _, new_mean, new_var, old_mean, old_var = step(mean, var)
    assert not mean.any() and not old_mean.any() and (var == 1).all() and (old_var == 1).all()
    np.testing.assert_allclose(new_mean, x.mean(0) / 2, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(new_var, (1 + x.var(0, ddof=1)) / 2, rtol=1e-6)
    same = jax.jit(lambda m: nj.mean_only_batch_norm(x, running_mean=m, training=True)[1])
    donated = jax.jit(same, donate_argnums=0)
    np.testing.assert_array_equal(donated(jnp.zeros(3)), same(jnp.zeros(3)))
    scanned, _ = jax.lax.scan(lambda m, _: (same(m), None), jnp.zeros(3), length=4)
    by_hand = jnp.zeros(3)
    for _ in range(4):
        by_hand = same(by_hand)
    np.testing.assert_array_equal(scanned, by_hand)


def test_what_has_no_gradient(rng):
    x = jnp.asarray(rng.standard_normal((4, 3)), jnp.float32)
    a = np.asarray(x)
    assert float(nj.norm(x)) == float(nc.norm(a))
    assert float(nj.moments(x).mean) == float(nc.moments(a).mean)
    assert float(nj.power_method(x).sigma) == float(nc.power_method(a).sigma)
    for f in (nj.norm, nj.moments, nj.power_method):
        with pytest.raises(TypeError, match=f"^{f.__name__} cannot be traced"):
            jax.jit(f)(x)


X = np.ones((2, 3, 4), np.float32)
ERRORS = [
    (lambda x: nj.layer_norm(x, np.ones(3, np.float32)), None, r"weight has shape \(3,\)"),
    (lambda x: nj.layer_norm(x, axis=3), ValueError, "^axis is 3, expected -3 to 2 for x with 3"),
    (lambda x: nj.layer_norm(x, axis=()), None, r"axis is \(\)"),
    (lambda x: nj.layer_norm(x, axis=1.5), TypeError, "^axis is 1.5"),
    (lambda x: nj.layer_norm(x.astype(int)), TypeError, "^x has dtype int32, expected float16"),
    (lambda x: nj.layer_norm(None), TypeError, "^x is None"),
    (lambda x: nj.layer_norm(x, eps=-1.0), None, "eps is -1"),
    (lambda x: nj.group_norm(x, 2), None, "num_groups is 2"),
    (lambda x: nj.group_norm(x, -1), None, "num_groups is -1"),
    (lambda x: nj.batch_norm(x[:1, :, :1], training=True), None, "more than 1 value"),
    (lambda x: nj.batch_norm(x, channel_axis=3), ValueError, "^channel_axis is 3"),
    (lambda x: nj.batch_norm(x, channel_axis=0), None, "channel_axis is 0"),
    (lambda x: nj.batch_norm(x, mask=np.ones(5)), ValueError, r"^mask has shape \(5,\)"),
    (lambda x: nj.local_response_norm(x, 3, across="time"), ValueError, "^across is 'time'"),
    (lambda x: nj.spectral_norm(x, None), None, "u is None|u has|u "),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_errors_are_ours(call, kind, text, jit):
    """At once where it is cheap to see, else by the call's own error."""
    x = jnp.asarray(X)
    run = lambda x: jax.tree.leaves(call(x))  # noqa: E731
    with pytest.raises(kind or jax.errors.JaxRuntimeError, match=text) as error:
        jax.block_until_ready((jax.jit(run) if jit else run)(x))
    if kind is None:
        assert str(error.value).startswith("INVALID_ARGUMENT: ")


def test_wrong_shapes_under_vmap_are_refused():
    x = jnp.ones((5, 2, 3, 4))
    for f, text in (
        (lambda x: nj.layer_norm(x, axis=3), "axis is 3"),
        (lambda x: nj.batch_norm(x, jnp.ones(5)), r"weight has shape \(25,\)"),
        (lambda x: nj.batch_norm(x, jnp.ones(())), "weight has shape"),
        (lambda x: nj.gdn(x, jnp.ones(2), jnp.ones((3, 3))), r"beta has shape \(2,\)"),
    ):
        with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match=text):
            jax.block_until_ready(jax.vmap(f)(x))


def test_empty_arrays():
    for shape in ((0, 4, 5), (2, 4, 0)):
        x = jnp.zeros(shape)
        w = jnp.ones(shape[-1:])
        y, pull = jax.vjp(nj.layer_norm, x, w)
        dx, dw = pull(y)
        assert y.shape == dx.shape == shape
        np.testing.assert_array_equal(dw, jnp.zeros_like(w))
        mean = jnp.full(4, 0.5)
        y, new_mean, _ = nj.batch_norm(x, running_mean=mean, running_var=jnp.ones(4), training=True)
        assert y.shape == shape
        np.testing.assert_array_equal(new_mean, mean)
        assert jax.vmap(nj.layer_norm)(x[None]).shape == (1, *shape)
        assert jax.vmap(nj.instance_norm)(x[None]).shape == (1, *shape)


def test_parameters_of_another_dtype_and_numbers(rng):
    x = rng.standard_normal((3, 4)).astype(np.float16)
    w = rng.standard_normal(4).astype(np.float32)
    y, pull = jax.vjp(nj.rms_norm, jnp.asarray(x), jnp.asarray(w))
    assert y.dtype == jnp.float16 and pull(y)[1].dtype == jnp.float32
    np.testing.assert_array_equal(y, nc.rms_norm(x, w))
    np.testing.assert_array_equal(
        nj.divisive_norm(x, np.ones((4, 4), np.float32), 0.5, gain=2.0),
        nc.divisive_norm(x, np.ones((4, 4), np.float32), 0.5, gain=2.0),
    )


def test_rows_of_one_call_each_are_no_loop(rng):
    """vmap over single rows with common parameters: one call each of forward and backward."""
    x = jnp.asarray(rng.standard_normal((64, 8)), jnp.float32)
    w, b = jnp.ones(8), jnp.zeros(8)
    f = lambda w, b: jnp.square(jax.vmap(nj.layer_norm, (0, None, None))(x, w, b)).sum()  # noqa: E731
    text = jax.jit(jax.grad(f, (0, 1))).lower(w, b).as_text()
    assert "stablehlo.while" not in text
    whole = lambda w, b: jnp.square(nj.layer_norm(x, w, b)).sum()  # noqa: E731
    assert_close(jax.grad(f, (0, 1))(w, b), jax.grad(whole, (0, 1))(w, b), 1e-5)


def test_without_jax_the_import_says_what_to_install():
    code = "import sys; sys.modules['jax'] = None; import normcore.jax"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install normcore[jax]" in done.stderr


def test_names_and_arguments_are_those_of_arrays():
    """Every function of normcore that is no gradient, without what JAX has no use for."""
    for name, function in inspect.getmembers(nc, inspect.isfunction):
        if name.startswith("_") or name.endswith("_backward") or name in nc.config.__all__:
            continue
        ours = inspect.signature(getattr(nj, name)).parameters
        theirs = inspect.signature(function).parameters
        assert list(ours) == [k for k in theirs if k not in ("out", "return_stats")], name
        for k, p in ours.items():
            assert (p.kind, p.default) == (theirs[k].kind, theirs[k].default), (name, k)


@pytest.mark.parametrize("name, value", [("k", 2.9), ("training", "no"), ("momentum", "much")])
def test_options_of_another_kind_are_refused(name, value):
    options = {"k": 2, "training": True, name: value}
    with pytest.raises(TypeError, match=f"^{name} is {value!r}, expected"):
        nj.topk_batch_norm(jnp.ones((4, 3)), **options)
    with pytest.raises(TypeError, match=r"^eps is .*expected a number"):
        jax.jit(lambda eps: nj.layer_norm(jnp.ones((2, 3)), eps=eps))(1e-3)


@cases
def test_vmap_of_nothing(rng, case, dtype):
    arrays, constants = case.make(rng, dtype)
    none = {k: jnp.zeros((0, *a.shape), a.dtype) for k, a in on_jax(arrays).items()}
    constants = on_jax(constants)
    one = jax.eval_shape(lambda a: case.f(a, constants), on_jax(arrays))
    got = jax.vmap(lambda a: case.f(a, constants))(none)
    shapes = lambda tree: [a.shape for a in jax.tree.leaves(tree)]  # noqa: E731
    assert shapes(got) == [(0, *s) for s in shapes(one)]


SHARED = """
import jax, jax.numpy as jnp, numpy as np
import normcore.jax as nj
from jax.sharding import Mesh, PartitionSpec as P

x = jax.random.normal(jax.random.key(0), (4, 3, 5))
mesh = Mesh(np.array(jax.devices()), ("d",))
three, logits = jnp.array([0.5, 1.0, 1.5]), jnp.array([0.1, -0.3, 0.7])
calls = {
    "layer_norm": lambda w, x: nj.layer_norm(x, jnp.ones(5), axis=-1) * w[:, None],
    "layer_norm, weight": lambda w, x: nj.layer_norm(x.swapaxes(1, 2), w, three),
    "batch_norm": lambda w, x: nj.batch_norm(x, w, three, training=True),
    "switchable_norm": lambda w, x: nj.switchable_norm(x, w, logits, three, training=True),
    "gdn": lambda w, x: nj.gdn(x, w, jnp.eye(3)),
    "weight_norm": lambda w, x: nj.weight_norm(x.swapaxes(0, 1), w, axis=0),
}
halves = x[:2], x[2:]
for name, f in calls.items():
    gradients = jax.grad(lambda w, x: (f(w, x) ** 3).sum(), (0, 1))
    shared = jax.shard_map(gradients, mesh=mesh, in_specs=(P(), P("d")), out_specs=(P(), P("d")))
    dw, dx = jax.jit(shared)(three, x)
    each = [gradients(three, half) for half in halves]
    wanted = sum(g[0] for g in each), jnp.concatenate([g[1] for g in each])
    for got, want in zip((dw, dx), wanted):  # float32, the cube compiled in another order
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5, err_msg=name)

# A result that differs from device to device is none of all, and stays what it is in a loop.
try:
    jax.shard_map(lambda x: nj.layer_norm(x), mesh=mesh, in_specs=P("d"), out_specs=P())(x)
except ValueError:
    pass
else:
    raise AssertionError("one device's part was taken for all")
loop = lambda x: jax.lax.scan(lambda c, _: (nj.layer_norm(c), None), x, None, 2)[0]
y = jax.shard_map(loop, mesh=mesh, in_specs=P("d"), out_specs=P("d"))(x)
np.testing.assert_array_equal(y, loop(x))
"""


def test_gradients_over_the_devices_of_a_mesh():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", SHARED], env=environment, check=True)


DOCS = (Path(__file__).parents[1] / "docs/jax.md").read_text()
PLAIN, FLAX, KERAS = re.findall(r"^```python\n(.*?)^```", DOCS, re.M | re.S)
CHECK = """
import numpy as np
import normcore as nc

x = np.random.default_rng(0).normal(2, 3, (8, 6, 6, 5)).astype(np.float32)
one, zero, logits = np.ones(5, np.float32), np.zeros(5, np.float32), np.full(3, {logit}, np.float32)
arrays = logits, logits, one, zero
want = nc.switchable_norm(
    x, *arrays, running_mean=zero.copy(), running_var=one.copy(), channel_axis=-1
)
np.testing.assert_array_equal(layer(x, training=False), want)
mean, var = zero.copy(), one.copy()
want = nc.switchable_norm(
    x, *arrays, running_mean=mean, running_var=var, training=True, channel_axis=-1
)
np.testing.assert_array_equal(layer(x, training=True), want)
np.testing.assert_array_equal(layer.mean[...], mean)
np.testing.assert_array_equal(layer.var[...], var)
"""
KERAS_CHECK = """
model = keras.Sequential(
    [layer, keras.layers.Flatten(), keras.layers.Dense(1), keras.layers.Rescaling(0.1)]
)
model.compile("sgd", "mse")
losses = model.fit(x, x.mean((1, 2, 3)), epochs=3, verbose=0).history["loss"]
assert losses[2] < losses[0], losses
assert np.abs(np.asarray(layer.mean.value) - mean).max() > 0.1  # the compiled steps moved it
"""


@pytest.mark.parametrize(
    "block, library, check",
    [
        (PLAIN, "jax", ""),
        (FLAX, "flax", "layer = SwitchableNorm(5)" + CHECK.format(logit=0)),
        (KERAS, "keras", "layer = SwitchableNorm()" + CHECK.format(logit=1) + KERAS_CHECK),
    ],
    ids=["jax", "flax", "keras"],
)
def test_examples_of_the_docs(block, library, check):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    # In a process of its own: Keras takes its backend when it is imported.
    subprocess.run([sys.executable, "-c", block + check], check=True)
