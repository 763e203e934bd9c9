"""Arrays of other libraries by __dlpack__: read where they lie, answered in kind.

Hunts for copies that lose an in-place update (buffers, out), results in the wrong library, dtypes
or memory orders that do not survive the trip, and exporters that know only the older protocol.
"""

import sys

import ml_dtypes
import numpy as np
import pytest
from support import VARIANTS, Variant, bits, make_problem

import normcore as nc

BATCH = Variant("batch_norm", {"training": True}, buffers=True)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def jax():
    return pytest.importorskip("jax")


def as_torch(torch, array):
    """The same numbers, strides and dtype as a tensor of its own."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(torch, tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def converted(problem, convert):
    """The problem with all of its arrays put through `convert`, and fresh copies to begin with."""
    x, dy = (convert(a.copy("K")) for a in (problem.x, problem.dy))
    params = {k: convert(v.copy()) for k, v in problem.params.items()}
    options = {
        k: convert(v.copy()) if isinstance(v, np.ndarray) else v for k, v in problem.options.items()
    }
    return x, dy, params, options


@each_variant
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_torch_in_torch_out(rng, torch, variant, layout, dtype):
    problem = make_problem(rng, variant, dtype, layout=layout)
    x, dy, params, options = converted(problem, lambda a: as_torch(torch, a))
    y, stats = getattr(nc, problem.method)(x, **params, **options, return_stats=True)
    assert isinstance(y, torch.Tensor) and y.dtype == x.dtype and y.stride() == x.stride()
    assert bits(from_torch(torch, y)) == bits(problem.forward())

    for key, value in problem.options.items():  # backward of the forward's own buffers
        if key.startswith("running"):
            options[key] = as_torch(torch, value.copy())
    needs_stats = problem.method == "batch_renorm" and options["training"]
    for extra in ({"stats": stats}, {})[: 1 if needs_stats else 2]:
        grads = getattr(nc, problem.method + "_backward")(dy, x, **params, **options, **extra)
        for got, want in zip(grads, problem.backward(), strict=True):
            assert isinstance(got, torch.Tensor)
            assert bits(from_torch(torch, got)) == bits(want)


def test_torch_buffers_and_out_are_written_in_place(rng, torch):
    problem = make_problem(rng, BATCH)
    x, _, params, options = converted(problem, torch.from_numpy)
    kept = {k: v for k, v in options.items() if k.startswith("running")}
    out = torch.full_like(x, float("nan"))
    result = nc.batch_norm(x, **params, **options, out=out)
    assert result is out
    expected = {k: problem.options[k].copy() for k in kept}
    want = problem.forward(**expected)
    assert bits(out.numpy()) == bits(want)
    for name, value in kept.items():
        assert bits(value.numpy()) == bits(expected[name])
    assert nc.batch_norm(x, **params, **options, out=x) is x


def test_torch_channels_last_and_strided(torch, rng):
    plain = torch.from_numpy(rng.normal(size=(2, 6, 5, 7)).astype(np.float32))
    want = nc.group_norm(plain.numpy(), 3)
    last = plain.contiguous(memory_format=torch.channels_last)
    y = nc.group_norm(last, 3)
    assert y.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(y.numpy(), want, atol=2e-6)
    wide = torch.full((2, 6, 5, 14), float("nan"))
    wide[..., ::2] = plain
    assert bits(nc.group_norm(wide[..., ::2], 3).numpy()) == bits(want)
    expanded = torch.ones(1).expand(2, 6, 5, 7)
    dx = nc.group_norm_backward(expanded, plain, 3).dx
    assert isinstance(dx, torch.Tensor) and float(dx.abs().max()) < 1e-5


def test_torch_tensor_that_requires_grad_raises_as_its_exporter(torch):
    x = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(Exception) as exporter:
        x.__dlpack__()
    with pytest.raises(type(exporter.value), match="grad"):
        nc.layer_norm(x)
    assert isinstance(nc.layer_norm(x.detach()), torch.Tensor)


def test_parameters_of_another_library_than_x(torch, rng):
    x = rng.normal(size=(4, 5)).astype(np.float32)
    weight = rng.normal(size=5).astype(np.float32)
    want = nc.layer_norm(x, weight)
    mixed = nc.layer_norm(torch.from_numpy(x), weight)
    assert isinstance(mixed, torch.Tensor) and bits(mixed.numpy()) == bits(want)
    mixed = nc.layer_norm(x, torch.from_numpy(weight))
    assert isinstance(mixed, np.ndarray) and bits(mixed) == bits(want)


def test_integer_tensors_are_type_errors(torch):
    with pytest.raises(TypeError, match="x"):
        nc.layer_norm(torch.ones(2, 3, dtype=torch.int64))


@each_variant
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_jax_in_jax_out(rng, jax, variant, dtype):
    problem = make_problem(rng, variant, np.dtype(dtype))
    x, dy, params, options = converted(problem, jax.numpy.asarray)
    if variant.buffers:  # jax arrays cannot be updated in place: NumPy keeps the buffers
        options |= {k: v.copy() for k, v in problem.options.items() if k.startswith("running")}
    y, stats = getattr(nc, problem.method)(x, **params, **options, return_stats=True)
    assert isinstance(y, jax.Array) and y.dtype == x.dtype
    assert bits(np.asarray(y)) == bits(problem.forward())
    options |= {k: v for k, v in problem.options.items() if k.startswith("running")}
    grads = getattr(nc, problem.method + "_backward")(dy, x, **params, **options, stats=stats)
    for got, want in zip(grads, problem.backward(), strict=True):
        assert isinstance(got, jax.Array)
        assert bits(np.asarray(got)) == bits(want)


class Exporter:
    """An array of an unknown library: nothing but the protocol."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OldExporter(Exporter):
    """As before DLPack 1.0: no max_version, no copy, no dl_device."""

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()


@pytest.mark.parametrize("exporter", [Exporter, OldExporter])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=str)
def test_objects_with_only_dlpack(rng, exporter, dtype):
    x = rng.normal(size=(3, 4, 10)).astype(dtype)[..., ::2]
    weight = rng.normal(size=5).astype(dtype)
    y = nc.layer_norm(exporter(x), exporter(weight))
    assert bits(y if isinstance(y, np.ndarray) else np.from_dlpack(y)) == bits(
        nc.layer_norm(x, weight)
    )


def test_an_exporter_keeps_its_memory_alive_only_while_needed():
    x = np.ones((3, 5), np.float32)
    before = sys.getrefcount(x)
    for _ in range(10):
        nc.layer_norm(Exporter(x))
    assert sys.getrefcount(x) == before


@pytest.mark.parametrize("name", ["x", "weight", "out", "running_mean"])
def test_no_reference_is_leaked(name):
    arrays = {
        "x": np.ones((3, 5), np.float32),
        "weight": np.ones(5, np.float32),
        "out": np.ones((3, 5), np.float32),
        "running_mean": np.ones(5, np.float32),
        "running_var": np.ones(5, np.float32),
    }
    array = arrays[name]
    before = sys.getrefcount(array)
    for _ in range(10):
        nc.batch_norm(**arrays, training=True)
        nc.batch_norm_backward(arrays["x"], arrays["x"], arrays["weight"])
    assert sys.getrefcount(array) == before


def test_ml_dtypes_bfloat16_needs_no_conversion(rng):
    x = rng.normal(size=(3, 40)).astype(ml_dtypes.bfloat16)
    y = nc.rms_norm(x)
    assert isinstance(y, np.ndarray) and y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y[:, ::-1], nc.rms_norm(x[:, ::-1]))


class Subclass(np.ndarray):
    pass


def test_ndarray_subclass_is_an_ndarray(rng):
    x = rng.normal(size=(3, 5))
    np.testing.assert_array_equal(nc.layer_norm(x.view(Subclass)), nc.layer_norm(x))


def test_immutable_arrays_are_no_place_for_results():
    jnp = pytest.importorskip("jax.numpy")
    x, one = np.ones((4, 3, 5), np.float32), jnp.ones(3)
    for call, name in (
        (lambda: nc.layer_norm(x, out=jnp.ones(x.shape)), "out"),
        (lambda: nc.layer_norm_backward(x, x, out=jnp.ones(x.shape)), "out"),
        (lambda: nc.gdn(jnp.ones(x.shape), one, jnp.ones((3, 3)), out=jnp.ones(x.shape)), "out"),
        (
            lambda: nc.batch_norm(x, running_mean=one, running_var=np.ones(3), training=True),
            "running_mean",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{name} is an array of jax, whose arrays are immut"):
            call()
    # In evaluation they are only read.
    y = nc.batch_norm(x, running_mean=one, running_var=jnp.ones(3))
    np.testing.assert_array_equal(y, 0)
