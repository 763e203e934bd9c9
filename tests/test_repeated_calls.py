"""A call does not know what the thread has called before, although it remembers plans and checks.

What is remembered is by dtypes, sizes and strides. So calls that look alike and differ in what is
not remembered (addresses, elements, options) come one after the other here, and what a thread gives
that has called a lot is compared with what a fresh one gives, bit by bit.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from every_call import CASES
from support import arrange
from support import assert_same_bits as assert_same

import normcore as nc

SHAPES = {2: [(4, 6), (6, 4), (24, 6)], 3: [(4, 6, 5), (5, 6, 4)], 4: [(2, 6, 5, 3)]}
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def assert_same_bits(got, want):
    assert_same(got, want, "after other calls")


def fresh(f):
    """f() in a thread that has called nothing yet."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(f).result()


def copies(values):
    """Running buffers move."""
    return {k: v.copy() if k.startswith("running") else v for k, v in values.items()}


@each_case
def test_bits_are_those_of_a_first_call(case, rng):
    calls = []
    for shape in [s for ndim in SHAPES if ndim >= case.least for s in SHAPES[ndim]]:
        for dtype in (np.float32, np.float64):
            drawn = case.draw(rng, shape, dtype)
            for layout in ("contiguous", "channels_last", "sliced", "reversed"):
                if layout == "channels_last" and len(shape) < 3:
                    continue
                laid = {k: arrange(v, layout) if k in case.tensors else v for k, v in drawn.items()}
                calls.append((case.complete(laid, shape), shape))
    want = [fresh(lambda c=c: case.call(copies(c[0]), c[1])) for c in calls]
    order = np.concatenate([rng.permutation(len(calls)) for _ in range(3)])
    for i in order:
        values, shape = calls[i]
        for _ in range(2):
            assert_same_bits(case.call(copies(values), shape), want[i])


@each_case
def test_other_elements_of_the_same_arrays(case, rng):
    shape = SHAPES[max(case.least, 3)][0]
    values = case.make(rng, shape, np.float32)
    case.call(copies(values), shape)
    other = case.make(rng, shape, np.float32)
    assert_same_bits(
        case.call(copies(other), shape), fresh(lambda: case.call(copies(other), shape))
    )


@each_case
def test_what_was_right_once_is_checked_again(case, rng):
    """After two good calls each bad one is refused, with nothing written, and the next is good."""
    shape = SHAPES[max(case.least, 3)][0]
    values = case.make(rng, shape, np.float32)
    want = case.call(copies(values), shape)

    def good():
        assert_same_bits(case.call(copies(values), shape), want)

    def refused(error, match, **changed):
        good()
        given = copies(values)
        before = {k: v.copy() for k, v in given.items() if isinstance(v, np.ndarray)}
        with pytest.raises(error, match=match):
            getattr(nc, case.function)(**given, **{**case.settings(shape), **changed})
        assert all(given[k].tobytes() == v.tobytes() for k, v in before.items())
        good()

    if case.has_out:
        name = case.tensors[0]
        x = values[name]
        memory = np.zeros(x.size + 3, x.dtype)
        memory[3:] = x.ravel()
        values = {**values, name: memory[3:].reshape(x.shape)}
        refused(ValueError, "overlap", out=memory[:-3].reshape(x.shape))
        readonly = np.empty_like(x)
        readonly.flags.writeable = False
        refused(ValueError, "read-only|writ", out=readonly)
        # Over itself, and in memory of its own, what is asked for is given.
        if name in case.over:
            here = values[name].copy()
            given = {**copies(values), name: here}
            assert_same_bits(case.call(given, shape, out=here), want)
    if case.function.startswith(("layer", "rms", "batch_norm", "instance", "group")):
        refused(ValueError, "eps is", eps=-1.0)
        refused(ValueError, "eps is", eps=float("nan"))


def test_buffers_that_may_not_be_written(rng):
    x = rng.normal(size=(6, 5)).astype(np.float32)
    mean, var = np.zeros(5, np.float32), np.ones(5, np.float32)
    call = dict(running_mean=mean, running_var=var, training=True)
    for _ in range(3):
        nc.batch_norm(x, **call)
    moved = mean.copy(), var.copy()
    mean.flags.writeable = False
    with pytest.raises(ValueError, match="running_mean is read-only"):
        nc.batch_norm(x, **call)
    assert_same_bits((mean, var), moved)
    nc.batch_norm(x, running_mean=mean, running_var=var, training=False)
    mean.flags.writeable = True
    nc.batch_norm(x, **call)
    assert (mean != moved[0]).all()


def test_settings_that_arrays_do_not_tell(rng):
    """The same arrays, of equal sizes all, along other axes and in other groups."""
    x = rng.normal(size=(4, 4, 4)).astype(np.float32)
    w, b = rng.normal(size=(2, 4)).astype(np.float32)
    calls = [
        lambda: nc.layer_norm(x, w, b, axis=0),
        lambda: nc.layer_norm(x, w, b, axis=1),
        lambda: nc.layer_norm(x, w, b, axis=2),
        lambda: nc.layer_norm(x, axis=(0, 1)),
        lambda: nc.layer_norm(x, axis=(1, 2)),
        lambda: nc.layer_norm(x, axis=(2, 0)),
        lambda: nc.rms_norm(x, w, axis=0),
        lambda: nc.rms_norm(x, w, axis=-1),
        lambda: nc.rms_norm(x, w, axis=-1, weight_offset=1.0),
        lambda: nc.group_norm(x, 1, w, b),
        lambda: nc.group_norm(x, 2, w, b),
        lambda: nc.group_norm(x, 4, w, b),
        lambda: nc.instance_norm(x, w, b),
        lambda: nc.batch_norm(x, weight=w, bias=b, training=True),
        lambda: nc.batch_norm(x, weight=w, bias=b, training=True, channel_axis=2),
        lambda: nc.batch_norm(x, weight=w, bias=b, training=True, eps=0.5),
        lambda: nc.normalize(x, axis=1),
        lambda: nc.normalize(x, axis=1, ord=1),
        lambda: nc.normalize(x, axis=2),
        lambda: nc.weight_norm(x, w),
        lambda: nc.weight_norm(x, w, axis=1),
        lambda: nc.layer_norm_backward(x, x, w, b, axis=1),
        lambda: nc.layer_norm_backward(x, x, w, b, axis=2),
        lambda: nc.batch_norm_backward(x, x, weight=w, training=True),
        lambda: nc.batch_norm_backward(x, x, weight=w, training=True, channel_axis=2),
    ]

    def flat(result):
        return [np.asarray(a) for a in (result if isinstance(result, tuple) else (result,))]

    want = [flat(fresh(call)) for call in calls]
    for i in np.concatenate([rng.permutation(len(calls)) for _ in range(6)]):
        assert_same_bits(flat(calls[i]()), want[i])


def test_calls_within_calls(rng):
    """What an exchange calls, while the call waits for it, needs plans too."""
    shapes = [(4, 5), (5, 4), (3, 5, 2), (2, 3, 4), (4, 4), (6, 5), (7, 5), (8, 5), (9, 5), (10, 5)]
    arrays = [rng.normal(size=s).astype(np.float32) for s in shapes]
    want = [fresh(lambda x=x: nc.layer_norm(x)) for x in arrays]
    x = rng.normal(size=(4, 5)).astype(np.float32)
    alone = fresh(lambda: nc.batch_norm(x, training=True))

    class Nested:
        def __init__(self, depth):
            self.depth = depth

        def allreduce(self, values):
            depth, self.depth = self.depth, 0  # a call asks more than once
            if depth > 0:
                inner = nc.BatchNorm(5, affine=False, comm=Nested(depth - 1))
                assert_same_bits((inner(x),), (alone,))
            for array, expected in zip(arrays, want, strict=True):
                assert_same_bits((nc.layer_norm(array),), (expected,))
            return values

    for depth in (0, 1, 9, 20):  # of more calls, one within the other, than plans are kept
        for _ in range(3):
            layer = nc.BatchNorm(5, affine=False, comm=Nested(depth))
            assert_same_bits((layer(x),), (alone,))


def test_many_threads_and_shapes(rng):
    arrays = [rng.normal(size=(1 + i % 5, 3 + i)).astype(np.float32) for i in range(40)]
    want = [nc.layer_norm(x) for x in arrays]

    def work(seed):
        for i in np.random.default_rng(seed).permutation(400) % len(arrays):
            assert_same_bits((nc.layer_norm(arrays[i]),), (want[i],))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, rng.integers(2**32, size=8)))
