"""Arrays of other libraries on a CUDA device: what comes back, where, and on which stream.

Hunts for results on another device or stream, for work that waits for the host, and for arrays of
two devices that are taken without a word.
"""

import numpy as np
import pytest

import normcore as nc

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def need_a_device():
    if not nc.cuda.is_available():
        pytest.skip("needs a CUDA device and a build with -DNORMCORE_CUDA=ON")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def problem(rng):
    """x, dy, weight, bias of a layer norm, and its results on the CPU."""
    x, dy = rng.normal(2, 1, (2, 40, 300)).astype(np.float32)
    weight, bias = rng.normal(size=(2, 300)).astype(np.float32)
    y = nc.layer_norm(x, weight, bias)
    return x, dy, weight, bias, y, nc.layer_norm_backward(dy, x, weight, bias)


def close(got, want):
    # Both are off the exact result by a few roundings of terms of up to 10, or of a sum of 40.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=3e-5)


def test_torch(torch, problem):
    x, dy, weight, bias = (torch.from_numpy(a).cuda() for a in problem[:4])
    y = nc.layer_norm(x, weight, bias)
    assert isinstance(y, torch.Tensor) and y.device == x.device and y.dtype == x.dtype
    close(y.cpu(), problem[4])
    for got, want in zip(nc.layer_norm_backward(dy, x, weight, bias), problem[5], strict=True):
        assert got.device == x.device
        close(got.cpu(), want)


def test_cupy(problem):
    cupy = pytest.importorskip("cupy")
    x, dy, weight, bias = (cupy.asarray(a) for a in problem[:4])
    y = nc.layer_norm(x, weight, bias)
    assert isinstance(y, cupy.ndarray)
    close(y.get(), problem[4])
    for got, want in zip(nc.layer_norm_backward(dy, x, weight, bias), problem[5], strict=True):
        assert isinstance(got, cupy.ndarray)
        close(got.get(), want)


def test_jax(problem):
    jax = pytest.importorskip("jax")
    try:
        device = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("this JAX has no GPU backend")
    x, dy, weight, bias = (jax.device_put(a, device) for a in problem[:4])
    y = nc.layer_norm(x, weight, bias)
    assert isinstance(y, jax.Array) and y.devices() == {device}
    close(np.asarray(y), problem[4])
    for got, want in zip(nc.layer_norm_backward(dy, x, weight, bias), problem[5], strict=True):
        assert got.devices() == {device}
        close(np.asarray(got), want)


def test_arrays_of_two_devices_are_refused(torch, problem):
    x, _, weight, bias = (torch.from_numpy(a) for a in problem[:4])
    with pytest.raises(ValueError, match="weight is on"):
        nc.layer_norm(x.cuda(), weight, bias.cuda())
    with pytest.raises(ValueError, match="bias is on"):
        nc.layer_norm(x, weight, bias.cuda())
    with pytest.raises(ValueError, match="out is on"):
        nc.layer_norm(x.cuda(), out=torch.empty_like(x))


def test_the_callers_stream(torch, problem):
    # x is written on a side stream behind a long copy: another stream would read too early.
    x, _, weight, bias = (torch.from_numpy(a).cuda() for a in problem[:4])
    delay = torch.ones(2**27, device="cuda")
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        late = torch.zeros_like(x)
        for _ in range(20):
            delay.add_(1)
        late.copy_(x)
        y = nc.layer_norm(late, weight, bias)
    side.synchronize()
    close(y.cpu(), problem[4])


def test_a_graph_takes_the_calls_so_nothing_waits_for_the_host(torch, problem):
    # Capturing fails at the first synchronisation.
    x, dy, weight, bias = (torch.from_numpy(a).cuda() for a in problem[:4])
    y, dx, channels = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    mean, var = torch.zeros(300, device="cuda"), torch.ones(300, device="cuda")

    def calls():
        nc.layer_norm(x, weight, bias, out=y)
        nc.layer_norm_backward(dy, x, weight, bias, out=dx)
        nc.batch_norm(
            x, weight, bias, running_mean=mean, running_var=var, training=True, out=channels
        )

    calls()  # outside first: modules are loaded at their first use
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()
    for out in (y, dx, channels):
        out.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    close(y.cpu(), problem[4])
    close(dx.cpu(), problem[5].dx)
    close(channels.cpu(), nc.batch_norm(*(problem[i] for i in (0, 2, 3)), training=True))


def test_results_are_memory_of_torch(torch, problem):
    x, dy, weight, bias = (torch.from_numpy(a).cuda() for a in problem[:4])
    y, stats = nc.layer_norm(x, weight, bias, return_stats=True)
    for made in (y, *stats[:3], *nc.layer_norm_backward(dy, x, weight, bias, stats=stats)):
        # Memory that came in by a capsule cannot be resized, and record_stream does nothing for it.
        assert type(made) is torch.Tensor and made.untyped_storage().resizable()


def test_record_stream_keeps_a_result_that_is_read_late(torch, problem):
    x, _, weight, bias = (torch.from_numpy(a).cuda() for a in problem[:4])
    delay, copied = torch.ones(2**27, device="cuda"), torch.empty_like(x)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(3):
        y = nc.layer_norm(x, weight, bias)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(10):
                delay.add_(1)
            copied.copy_(y)
        y.record_stream(side)
        del y
        nc.layer_norm(x * 0, weight, bias)  # would take the memory of y
        side.synchronize()
        close(copied.cpu(), problem[4])


def test_results_within_a_graph(torch, problem):
    x, dy, weight, bias = (torch.from_numpy(a).cuda() for a in problem[:4])
    nc.layer_norm_backward(dy, x, weight, bias)
    nc.layer_norm(x, weight, bias)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = nc.layer_norm(x, weight, bias)
        grads = nc.layer_norm_backward(dy, x, weight, bias)
    for _ in range(2):
        y.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        close(y.cpu(), problem[4])
        for got, want in zip(grads, problem[5], strict=True):
            close(got.cpu(), want)


def test_another_device_than_the_current_one(torch, problem):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    x, dy, weight, bias = (torch.from_numpy(a).cuda(1) for a in problem[:4])
    y = nc.layer_norm(x, weight, bias)
    assert y.device == x.device and torch.cuda.current_device() == 0
    close(y.cpu(), problem[4])
    kind = type("Derived", (torch.Tensor,), {})
    close(nc.layer_norm(x.as_subclass(kind), weight, bias).cpu(), problem[4])
    for got, want in zip(nc.layer_norm_backward(dy, x, weight, bias), problem[5], strict=True):
        close(got.cpu(), want)


def test_a_cupy_stream_may_end_before_its_results(problem):
    cupy = pytest.importorskip("cupy")
    x, _, weight, bias = (cupy.asarray(a) for a in problem[:4])
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        y = nc.layer_norm(x, weight, bias)
    stream.synchronize()
    del stream
    close(y.get(), problem[4])
    del y
    close(nc.layer_norm(x, weight, bias).get(), problem[4])


def test_jax_inputs_that_nobody_else_keeps(problem):
    jax = pytest.importorskip("jax")
    try:
        device = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("this JAX has no GPU backend")
    x, _, weight, bias = (jax.device_put(a, device) for a in problem[:4])
    double = jax.jit(lambda a: a * 2)
    for _ in range(20):
        y = nc.layer_norm(double(x), weight, bias)
        double(double(x))  # takes the memory of the input, were it free
        close(np.asarray(y), nc.layer_norm(problem[0] * 2, problem[2], problem[3]))
    nc.cuda.empty_cache()
    close(np.asarray(y), nc.layer_norm(problem[0] * 2, problem[2], problem[3]))
