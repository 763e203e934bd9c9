"""Scratch memory of a call: an eighth of the tensor at most, but for docs/limits.md.

Hunts for tables with an entry per element: of cells of one element, of parameters that nobody gave,
of gradients on their way to the caller. Peak memory is that of a process of its own, in which
nothing else happens.
"""

import subprocess
import sys

import pytest

RUN = """
import numpy as np, normcore as nc
shape, order, call = {shape}, {order}, {call!r}
rng = np.random.default_rng(0)
x = np.ones([shape[i] for i in order], np.float32)
x.reshape(-1)[::3] = 2
x = x.transpose(np.argsort(order))
out, c = np.zeros_like(x), shape[1]
out[...] = 1
w, e = np.ones(c, np.float32), np.ones(shape[1:], np.float32)

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) * 1024

tiny = np.ones((4, 8, 3, 3), np.float32)
nc.layer_norm(tiny), nc.batch_norm(tiny, training=True)
before = peak()
result = eval(call)
grads = result if isinstance(result, tuple) else ()
results = sum(a.nbytes for a in grads if a is not None and a is not out)
print((peak() - before - results) / x.nbytes)
"""
PLANES, LAST, INSIDE = (0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0)
IMAGE, FEW, ROW = (8, 64, 128, 128), (4, 2_000_000), (1, 16_000_000)
EVERY = "axis=tuple(range(1, x.ndim)), out=out"
CASES = [
    (IMAGE, order, call)
    for order in (PLANES, LAST, INSIDE)
    for call in (
        "nc.layer_norm(x, axis=1, out=out)",
        "nc.batch_norm(x, w, w, training=True, out=out)",
        "nc.batch_norm_backward(x, x, w, w, training=True, out=out)",
        "nc.group_norm(x, 2, w, w, out=out)",
        "nc.group_norm_backward(x, x, 2, w, w, out=out)",
        "nc.instance_norm_backward(x, x, w, w, out=out)",
        "nc.batch_instance_norm_backward(x, x, w, w, w, training=True, out=out)",
        "nc.local_response_norm_backward(x, x, 5, out=out)",
    )
]
CASES += [
    (shape, (0, 1), call)
    for shape in (FEW, ROW)
    for call in (
        f"nc.layer_norm(x, {EVERY})",
        f"nc.layer_norm(x, e, e, {EVERY})",
        f"nc.layer_norm_backward(x, x, {EVERY})",
        f"nc.layer_norm_backward(x, x, e, e, {EVERY})",
        f"nc.rms_norm(x, e, {EVERY})",
        "nc.normalize(x, out=out)",
        "nc.group_norm(x, 1, w, w, out=out)",
        "nc.group_norm(x, 8, out=out)",
        "nc.group_norm_backward(x, x, 1, w, w, out=out)",
        "nc.group_norm_backward(x, x, 8, w, w, out=out)",
    )
]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")
@pytest.mark.parametrize(("shape", "order", "call"), CASES, ids=str)
def test_scratch_is_an_eighth_of_the_tensor(shape, order, call):
    code = RUN.format(shape=shape, order=order, call=call)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    # And what a process has once: two threads' stacks and first chunks of scratch, some pages.
    assert float(run.stdout) <= 0.125 + 2**22 / 2**25
