"""Layers with time steps: what they keep for backward through time; threads that share a layer."""

import gc
import threading
import weakref

import numpy as np
import pytest
from support import bits

import normcore as nc


class Input(np.ndarray):
    """An array that can be watched."""


def inputs(rng, number):
    return [rng.normal(size=(3, 6)).astype(np.float32).view(Input) for _ in range(number)]


def run(layer, xs, steps):
    """Call the layer and return how many of the inputs it keeps."""
    seen = []
    for x, step in zip(xs, steps, strict=True):
        seen.append(weakref.ref(x))
        layer(x, step=step)
    xs.clear()
    del x
    gc.collect()
    return sum(ref() is not None for ref in seen)


@pytest.mark.parametrize(
    ("training", "steps", "kept"),
    [
        (False, range(50), 1),
        (False, [0, 1, 2] * 5, 1),
        (True, [0, 1, 2] * 5, 3),
        (True, [2, 1, 0] * 5, 3),
        (True, [0] * 9, 1),
        (True, [0, 0, 1, 1, 2, 2], 3),
        (True, [0, 1, 2, 3, 4, 0, 1], 2),
        (True, range(7), 7),
    ],
)
def test_the_calls_of_a_sequence_are_kept(rng, training, steps, kept):
    layer = nc.BatchNorm(6, time_steps=3).train(training)
    assert run(layer, inputs(rng, len(list(steps))), list(steps)) == kept


def test_backward_reaches_the_current_sequence_alone(rng):
    layer = nc.BatchNorm(6, time_steps=3)
    xs = inputs(rng, 8)
    for step in (0, 1, 2, 3):
        layer(xs[step], step=step)
    for step in (0, 1):
        layer(xs[4 + step], step=step)
    for step in (0, 1):
        layer.backward(xs[0], step=step)
    for step in (2, 3):
        with pytest.raises(RuntimeError, match=f"before a forward call with step={step}"):
            layer.backward(xs[0], step=step)
    layer.eval()(xs[6], step=2)
    layer.backward(xs[0], step=2)
    with pytest.raises(RuntimeError, match="step=1"):
        layer.backward(xs[0], step=1)


SHARED = {
    "time steps": lambda: nc.BatchNorm(6, time_steps=8),
    "renorm": lambda: nc.BatchRenorm(6, time_steps=8),
    "layer": lambda: nc.LayerNorm(6),
    "residual": lambda: nc.RMSNorm(6),
    "gdn": lambda: nc.GDN(6),
    "local": lambda: nc.LocalResponseNorm(3),
}


@pytest.mark.parametrize("name", SHARED)
def test_threads_share_a_layer_in_evaluation(rng, name):
    layer = SHARED[name]()
    for value in (*layer.parameters.values(), *layer.buffers.values()):
        if value.dtype.kind == "f":
            value[...] = rng.uniform(0.5, 2, value.shape)
    layer.eval()
    x = rng.normal(size=(40, 6, 6)).astype(np.float32)  # large enough to let go of the lock

    def call(t):
        if layer.buffers:
            return bits(layer(x, step=t))
        return (
            [bits(part) for part in layer(x, x * t)] if name == "residual" and t else bits(layer(x))
        )

    want, wrong = [call(t) for t in range(8)], []

    def work(t):
        for _ in range(100):
            if call(t) != want[t]:
                wrong.append(t)

    threads = [threading.Thread(target=work, args=(t,)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    if layer.buffers:
        assert len(set(want)) == 8
