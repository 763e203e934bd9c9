"""A sample's bits depend on neither the batch it comes in nor where the batch axis lies in memory.

Hunts for orders of summation that change with the number of samples or with the place of their
axis among the strides, and for what one sample's values do to another's: work that is shared by
neighbours in memory and done again, in another way, for the sake of one of them.
"""

import itertools

import numpy as np
import pytest
from support import DTYPES, bfloat16, bits, channel_methods, stat_dtype

import normcore as nc


class Parameters:
    """Parameters of one shape of sample, the same for every batch of them."""

    def __init__(self, rng, sample, dtype):
        channels = sample[0]
        self.sample = sample
        self.stats = stat_dtype(dtype)
        self.w = rng.normal(1, 0.5, channels).astype(dtype)
        self.b = rng.normal(0, 1, channels).astype(dtype)
        self.rho = rng.uniform(0, 1, channels).astype(dtype)
        self.three = rng.normal(0, 1, 3).astype(dtype)
        self.mean = rng.normal(0, 1, channels).astype(self.stats)
        self.var = rng.uniform(0.5, 2, channels).astype(self.stats)
        self.positive = rng.uniform(0.5, 2, channels).astype(dtype)
        self.mixing = rng.uniform(0, 0.3, (channels, channels)).astype(dtype)
        self.elements = rng.normal(1, 0.5, sample).astype(dtype)

    def over(self, axes):
        """Element weights for normalized axes, which count from that of the samples."""
        return self.elements[tuple(slice(None) if i + 1 in axes else 0 for i in range(3))]


def rows(method, axis, **options):
    names = ("weight", "bias") if method == "layer_norm" else ("weight",)

    def call(x, dy, p):
        params = {} if method == "normalize" else dict.fromkeys(names, p.over(axis))
        y = getattr(nc, method)(x, **params, axis=axis, **options)
        grads = getattr(nc, method + "_backward")(dy, x, **params, axis=axis, **options)
        return y, grads if method == "normalize" else grads.dx

    return call


def channels(method, arguments, **options):
    def call(x, dy, p):
        given = arguments(p)
        forward_only = {"bias"} if method in ("gdn", "divisive_norm") else set()
        y = getattr(nc, method)(x, **given, **options)
        back = {k: v for k, v in given.items() if k not in forward_only}
        return y, getattr(nc, method + "_backward")(dy, x, **back, **options)[0]

    return call


def affine(p):
    return {"weight": p.w, "bias": p.b}


def given(p):
    return affine(p) | {"running_mean": p.mean, "running_var": p.var}


def alone(signature):
    """A call whose statistics are not those of the batch: of the sample, or the buffers."""

    def arguments(p):
        values = {"weight": p.w, "bias": p.b, "channels": p.rho, "three": p.three, "mean": p.mean}
        named = {name: values[name] for name in signature["affine"]}
        named |= {name: values[of] for name, of in signature["own"]}
        if signature["over_the_batch"]:
            named |= {name: values.get(of, p.var) for name, of in signature["buffers"]}
        return named

    groups = {"num_groups": 3} if signature["has_groups"] else {}
    return channels(signature["function"], arguments, **groups)


def reduction(method, axis, **options):
    def call(x, dy, p):
        result = getattr(nc, method)(x, axis=axis, **options)
        return tuple(result)[1:] if method == "moments" else (result,)

    return call


AXES = ((1,), (3,), (1, 3), (2, 3), (1, 2, 3))
CALLS = {f"{m} {a}": rows(m, a) for m in ("layer_norm", "rms_norm", "normalize") for a in AXES}
CALLS |= {f"normalize {o} {a}": rows("normalize", a, ord=o) for o in (1, np.inf) for a in AXES[::2]}
CALLS |= {f"norm {o} {a}": reduction("norm", a, ord=o) for o in (1, 2, np.inf) for a in AXES}
CALLS |= {f"moments {a}": reduction("moments", a) for a in AXES}
CALLS |= {name: alone(signature) for name, signature in channel_methods().items()}
CALLS |= {
    "instance_norm given": channels("instance_norm", given, use_input_stats=False),
    "group_norm 1": channels("group_norm", affine, num_groups=1),
    "group_norm 6": channels("group_norm", affine, num_groups=6),
    "gdn": channels("gdn", lambda p: {"beta": p.positive, "gamma": p.mixing}),
    "gdn inverse": channels("gdn", lambda p: {"beta": p.positive, "gamma": p.mixing}, inverse=True),
    "divisive_norm": channels(
        "divisive_norm", lambda p: {"weights": p.mixing, "sigma": p.positive}
    ),
    "local_divisive_norm": channels(
        "local_divisive_norm",
        lambda p: {"sigma": p.positive} | affine(p),
        summation_window=3,
        suppression_window=5,
    ),
}
CALLS |= {
    f"local_response_norm {size} {across}": channels(
        "local_response_norm", lambda p: {}, size=size, across=across, alpha=0.1
    )
    for size in (2, 3, 11)
    for across in ("channels", "space")
}
ORDERS = list(itertools.permutations(range(4)))
calls = pytest.mark.parametrize("name", CALLS)


def in_memory(values, order):
    """The values with their axes in memory in this order, outermost first."""
    return np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))


def numbers(rng, shape, dtype):
    return rng.normal(0.3, 1.5, shape).astype(dtype)


def assert_same(got, want, what):
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert bits(a) == bits(b), f"{what}: result {i} has other bits"


def check_slices(call, x, dy, p, order, parts):
    x, dy = in_memory(x, order), in_memory(dy, order)
    whole = call(x, dy, p)
    for part in parts:
        want = [r[part] for r in whole]
        what = f"axes in memory {order}, samples {part}"
        assert_same(call(x[part], dy[part], p), want, what + ", a view")
        few = in_memory(x[part], order), in_memory(dy[part], order)
        assert_same(call(*few, p), want, what + ", a batch of its own")
        # Where the batch axis lies is no matter, only the order of the others.
        others = [a for a in order if a != 0]
        for place in (0, 1, 3):
            moved = [*others[:place], 0, *others[place:]]
            few = in_memory(x[part], moved), in_memory(dy[part], moved)
            assert_same(call(*few, p), want, what + f", batch axis moved to {place}")


@calls
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_any_order_of_axes(rng, name, dtype):
    sample = (6, 5, 9)
    p = Parameters(rng, sample, dtype)
    x, dy = numbers(rng, (20, *sample), dtype), numbers(rng, (20, *sample), dtype)
    for order in ORDERS:
        check_slices(CALLS[name], x, dy, p, order, (slice(0, 1), slice(2, 19), slice(18, 20)))


@calls
@pytest.mark.parametrize("batch", [2, 3, 17, 64, 131])
def test_any_number_of_samples(rng, name, batch):
    sample = (6, 3, 13)
    p = Parameters(rng, sample, np.float32)
    x, dy = (numbers(rng, (batch, *sample), np.float32) for _ in range(2))
    for order in rng.permutation(ORDERS)[:8]:
        check_slices(CALLS[name], x, dy, p, tuple(order), (slice(batch - 1, batch),))


@calls
@pytest.mark.parametrize("sample", [(3, 17, 31), (96, 11, 13), (6, 71, 70)], ids=str)
def test_longer_than_a_chunk(rng, name, sample):
    if sample[0] % 6 and name in ("group_norm 6",):
        sample = (6, *sample[1:])
    p = Parameters(rng, sample, np.float32)
    x, dy = (numbers(rng, (5, *sample), np.float32) for _ in range(2))
    for order in rng.permutation(ORDERS)[:5]:
        check_slices(CALLS[name], x, dy, p, tuple(order), (slice(1, 2), slice(1, 4)))


@calls
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("bad", [1e25, 1e-30, 3e38, np.inf, np.nan])
def test_what_one_sample_holds_is_nothing_to_the_others(rng, name, dtype, bad):
    sample = (6, 5, 9)
    p = Parameters(rng, sample, dtype)
    x, dy = numbers(rng, (9, *sample), dtype), numbers(rng, (9, *sample), dtype)
    others = np.arange(9) != 4
    for order in ORDERS:
        a, b = in_memory(x, order), in_memory(dy, order)
        want = [r[others] for r in CALLS[name](a, b, p)]
        for at in ((2, 3, 4), slice(None)):
            spoilt = a.copy(order="K")
            with np.errstate(over="ignore"):
                spoilt[4][at] = np.asarray(bad).astype(dtype)
            got = [r[others] for r in CALLS[name](spoilt, b, p)]
            assert_same(got, want, f"axes in memory {order}, {bad} at {at}")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
@pytest.mark.parametrize("width", [3, 100, 1000, 4097, 70001])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_rows(rng, order, width, dtype):
    x, dy = (numbers(rng, (37, width), dtype) for _ in range(2))
    w = numbers(rng, width, dtype)
    tall, dtall = in_memory(x, order), in_memory(dy, order)
    for method in ("layer_norm", "rms_norm"):
        f, b = getattr(nc, method), getattr(nc, method + "_backward")
        y, dx = f(x, w), b(dy, x, w)[0]
        assert_same((f(tall, w), b(dtall, tall, w)[0]), (y, dx), method)
        for part in (slice(0, 1), slice(3, 36)):
            got = f(tall[part], w), b(dtall[part], tall[part], w)[0]
            assert_same(got, (y[part], dx[part]), f"{method} {part}")
    for ord in (1, 2, np.inf):
        assert_same(
            (nc.norm(tall, ord=ord, axis=1),), (nc.norm(x, ord=ord, axis=1),), f"norm {ord}"
        )
        got, want = nc.normalize(tall, ord=ord), nc.normalize(x, ord=ord)
        assert_same((got,), (want,), f"normalize {ord}")
    got, want = nc.moments(tall, axis=1), nc.moments(x, axis=1)
    assert_same(tuple(got)[1:], tuple(want)[1:], "moments")


@pytest.mark.parametrize(("dtype", "columns"), [(np.float32, 2111), (bfloat16, 4203)])
@pytest.mark.parametrize("method", ["batch_norm", "weight_norm"])
def test_a_tall_column_does_not_know_how_many_there_are(rng, method, dtype, columns):
    """Many are taken tile by tile, few in two sweeps over all of them."""
    x, dy = (numbers(rng, (1031, columns), dtype) for _ in range(2))
    weight = numbers(rng, columns, dtype)

    def results(some):
        v, dv, w = (np.ascontiguousarray(a[..., some]) for a in (x, dy, weight))
        if method == "weight_norm":
            backward = nc.weight_norm_backward(dv, v, w, axis=1)
            return nc.weight_norm(v, w, axis=1), *backward
        y, stats = nc.batch_norm(v, w, training=True, return_stats=True)
        backward = nc.batch_norm_backward(dv, v, w, training=True)
        return y, stats.mean, stats.rstd, backward.dx, backward.dweight

    whole = results(slice(None))
    for some in (slice(0, 5), slice(100, 300), slice(columns - 70, columns)):
        assert_same([r[..., some] for r in whole], results(some), f"{some}")
