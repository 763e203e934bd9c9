"""Threads: the same bits for any number of them, in any number of callers, and after a fork.

Hunts for work split by thread count (which changes the order of sums), for scratch memory shared
between calls, for a child process that waits for the parent's OpenMP threads, and for settings that
are not obeyed. Whether more threads are faster is a benchmark's business.
"""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from every_call import CASES
from support import VARIANTS, Variant, assert_same_bits, bfloat16, bits, make_problem

import normcore as nc

BATCH = Variant("batch_norm", {"training": True}, buffers=True)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
# Large enough to be worth several threads, odd enough that no split comes out even.
SHAPES = [(5, 39, 61, 31), (1, 3, 100003), (7001, 33), (2, 261, 1031)]


def everything(problem):
    """All arrays that a user gets from one forward and one backward call."""
    buffers = {k: v.copy() for k, v in problem.options.items() if k.startswith("running")}
    y, stats = problem.forward(return_stats=True, **buffers)
    return (y, stats[0], *buffers.values(), *problem.backward())


@each_variant
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_any_number_of_threads_gives_the_same_bits(rng, threads, variant, shape, layout):
    if not variant.takes(shape):
        shape = (31, 33, 257)
    dtype = bfloat16 if layout == "sliced" else np.float32
    problem = make_problem(rng, variant, dtype, shape, layout)
    threads(1)
    want = everything(problem)
    for count in (2, 3, 7):
        threads(count)
        assert_same_bits(everything(problem), want, f"{count} threads")


@each_variant
def test_any_number_of_threads_gives_the_same_bits_in_every_isa(rng, threads, variant, isa):
    problem = make_problem(rng, variant, np.float16, (3, 27, 2053))
    threads(1)
    want = everything(problem)
    threads(5)
    assert_same_bits(everything(problem), want, "5 threads")


@each_variant
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_concurrent_callers(rng, threads, variant, layout):
    threads(2)
    shared = make_problem(rng, variant, np.float32, (4, 12, 37, 41), layout)
    own = [make_problem(rng, variant, np.float32, (3, 6, 20 + i, 30), layout) for i in range(6)]
    problems = [shared] * 6 + own
    want = [everything(p) for p in problems]
    with ThreadPoolExecutor(12) as pool:
        for _ in range(4):
            for got, expected in zip(pool.map(everything, problems), want, strict=True):
                assert_same_bits(got, expected, "concurrent call")


def test_number_of_threads_is_set_and_read(threads):
    for count in (1, 2, 5):
        threads(count)
        assert nc.get_num_threads() == count


def test_concurrent_callers_may_change_the_number_of_threads(rng, threads):
    problem = make_problem(rng, BATCH, np.float32, (4, 12, 67, 41))
    want = everything(problem)

    def call(count):
        nc.set_num_threads(count)
        return everything(problem)

    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(call, [1, 2, 3, 4] * 6):
            assert_same_bits(got, want, "while others set the number of threads")


@contextmanager
def flipping_isa():
    """Another thread sets one instruction set after the other."""
    previous, interval = nc.get_isa(), sys.getswitchinterval()
    stop = threading.Event()

    def flip():
        while not stop.is_set():
            for name in nc.available_isas():
                nc.set_isa(name)

    thread = threading.Thread(target=flip)
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
        nc.set_isa(previous)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_a_call_keeps_the_instruction_set_that_it_began_with(rng, threads, case, count):
    # Of a size at which blocks of all instruction sets have rests, and that is worth two threads.
    shape = (9, 17, 31, 31)
    values = case.make(rng, shape, np.float32)

    def call():
        fresh = {k: v.copy() if k.startswith("running") else v for k, v in values.items()}
        return tuple(bits(result) for result in case.call(fresh, shape))

    threads(count)
    previous, expected = nc.get_isa(), []
    for name in nc.available_isas():
        nc.set_isa(name)
        expected.append(call())
    nc.set_isa(previous)
    with flipping_isa():
        for _ in range(10):
            known = call() in expected
            assert known, "a result that no instruction set gives"


@pytest.mark.parametrize("count", [0, -1])
def test_number_of_threads_must_be_positive(threads, count):
    before = nc.get_num_threads()
    with pytest.raises(ValueError, match=str(count)):
        threads(count)
    assert nc.get_num_threads() == before


@pytest.mark.parametrize("count", [1.5, "2", None])
def test_number_of_threads_must_be_an_integer(threads, count):
    with pytest.raises(TypeError):
        threads(count)


def run_python(code, timeout=120, **environment):
    """A fresh interpreter; one that hangs fails the test instead of the run."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.parametrize("count", [1, 3])
def test_omp_num_threads_is_respected(count):
    code = "import normcore as nc; print(nc.get_num_threads())"
    result = run_python(code, OMP_NUM_THREADS=str(count))
    assert result.stdout.strip() == str(count), result.stderr


FORK = """
import hashlib, os, select, sys
import numpy as np
import normcore as nc

nc.set_num_threads(4)
x = np.random.default_rng(1).normal(size=(16, 32, 61, 67)).astype(np.float32)

def digest():
    y = nc.batch_norm(x, training=True)
    grads = nc.group_norm_backward(x, y, 4)
    return hashlib.sha256(y.tobytes() + grads.dx.tobytes()).hexdigest().encode()

before = digest()  # a parallel region: the parent now has OpenMP threads, a child will not
children = []
for _ in range(2):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, digest())
        os._exit(0)
    children.append((pid, read))
for pid, read in children:
    ready, _, _ = select.select([read], [], [], 60)
    if not ready:
        os.kill(pid, 9)
        sys.exit("the child hangs")
    assert os.read(read, 1000) == before, "the child has other bits"
    os.waitpid(pid, 0)
assert digest() == before, "the parent has other bits after the fork"
"""

MULTIPROCESSING = """
import multiprocessing
import numpy as np
import normcore as nc

nc.set_num_threads(4)
x = np.random.default_rng(1).normal(size=(16, 32, 61, 67)).astype(np.float32)

def call(_):
    return nc.layer_norm(x).tobytes()

if __name__ == "__main__":
    want = call(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.map_async(call, range(4)).get(timeout=60)
    assert all(r == want for r in results)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("code", [FORK, MULTIPROCESSING], ids=["fork", "multiprocessing"])
def test_fork_after_a_parallel_region(code):
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_results_do_not_depend_on_omp_num_threads():
    code = """
import hashlib, numpy as np, normcore as nc
x = np.random.default_rng(1).normal(size=(9, 33, 61, 67)).astype(np.float32)
grads = nc.layer_norm_backward(x[::-1], x, x[0, 0, 0], axis=-1)
print(hashlib.sha256(b"".join(g.tobytes() for g in grads if g is not None)).hexdigest())
"""
    one, four = (run_python(code, OMP_NUM_THREADS=n) for n in ("1", "4"))
    assert one.returncode == 0, one.stderr
    assert one.stdout == four.stdout


def test_serial_and_parallel_calls_have_the_same_bits(rng, threads):
    # Below the cut-off a call is serial; the same rows inside a large array are done in parallel.
    x = rng.normal(size=(9001, 129)).astype(np.float32)
    threads(3)
    assert bits(nc.layer_norm(x)[:5]) == bits(nc.layer_norm(x[:5]))
