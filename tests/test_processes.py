"""Batch statistics over processes: layers with comm=, against one process on the joined batch.

Threads stand for processes where only the arithmetic matters; the rest runs under MPI. Hunts for
means of means where counts differ, for processes without samples, and for silent hangs.
"""

import copy
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support import bits

import normcore as nc

LAYERS = {
    "batch": lambda **o: nc.BatchNorm(6, dtype=np.float64, **o),
    "batch, cumulative": lambda **o: nc.BatchNorm(6, momentum=None, dtype=np.float64, **o),
    "batch, no buffers": lambda **o: nc.BatchNorm(
        6, track_running_stats=False, dtype=np.float64, **o
    ),
    "renorm": lambda **o: nc.BatchRenorm(6, dtype=np.float64, **o),
    "batch-instance": lambda **o: nc.BatchInstanceNorm(6, dtype=np.float64, **o),
    "switchable": lambda **o: nc.SwitchableNorm(6, dtype=np.float64, **o),
    "mean-only": lambda **o: nc.MeanOnlyBatchNorm(6, dtype=np.float64, **o),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


class Threads:
    """A communicator over threads: sums in the order of the ranks, so always the same bits."""

    def __init__(self, size):
        self.values, self.barrier = [None] * size, threading.Barrier(size, timeout=60)

    def rank(self, index):
        comm = Threads.__new__(Threads)
        comm.__dict__.update(self.__dict__, index=index)
        return comm

    def allreduce(self, array):
        self.values[self.index] = array
        self.barrier.wait()
        total = np.sum(self.values, axis=0)
        self.barrier.wait()
        return total

    @classmethod
    def run(cls, size, work):
        """[work(rank, comm) for all ranks], at the same time; the first error is raised."""
        group, results, errors = cls(size), [None] * size, []

        def target(index):
            try:
                results[index] = work(index, group.rank(index))
            except BaseException as error:
                errors.append(error)
                group.barrier.abort()

        threads = [threading.Thread(target=target, args=(i,)) for i in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            causes = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
            raise (causes or errors)[0]
        return results


def fresh(rng, name, **options):
    layer = LAYERS[name](**options)
    for value in layer.parameters.values():
        value[...] = rng.uniform(0.5, 1.5, value.shape)
    return layer


def train(layer, batches):
    """y and dx of each batch, and the layer."""
    outputs = []
    for x, dy in batches:
        outputs.append((layer(x), layer.backward(dy)))
        if isinstance(layer, nc.BatchInstanceNorm):
            layer.project()
    return outputs, layer


@each_layer
@pytest.mark.parametrize("sizes", [(3, 5), (1, 1), (4, 0, 3), (1, 8, 0)], ids=str)
@pytest.mark.parametrize("axis", [1, -1])
def test_as_one_process_on_the_joined_batch(rng, name, sizes, axis):
    x, dy = rng.normal(5, 2, (2, 3, sum(sizes), 6, 4, 3))  # three steps
    if axis == -1:
        x, dy = (np.ascontiguousarray(np.moveaxis(a, 2, -1)) for a in (x, dy))
    start = fresh(rng, name, channel_axis=axis)
    want, whole = train(copy.deepcopy(start), zip(x, dy, strict=True))
    ends = np.cumsum((0, *sizes))

    def work(rank, comm):
        layer = LAYERS[name](channel_axis=axis, comm=comm)
        layer.load_state_dict(start.state_dict())
        part = slice(ends[rank], ends[rank + 1])
        return train(layer, zip(x[:, part], dy[:, part], strict=True))

    results = Threads.run(len(sizes), work)
    for step, (want_y, want_dx) in enumerate(want):
        y, dx = (np.concatenate([outputs[step][i] for outputs, _ in results]) for i in (0, 1))
        # Float64 with other orders of summation; renorm divides by a spread of its own.
        np.testing.assert_allclose(y, want_y, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(dx, want_dx, rtol=1e-10, atol=1e-10)
    layers = [layer for _, layer in results]
    for key, value in whole.buffers.items():
        np.testing.assert_allclose(layers[0].buffers[key], value, rtol=1e-12, atol=1e-12)
        assert len({bits(layer.buffers[key]) for layer in layers}) == 1  # the same everywhere
    for key, value in whole.grads.items():
        total = sum(layer.grads[key] for layer in layers)
        np.testing.assert_allclose(total, value, rtol=1e-10, atol=1e-10)


def test_large_mean(rng):
    # The mean of squares is 1e16 times the variance: as a sum of squares nothing would be left.
    parts = [rng.normal(1e6, 1e-2, (n, 6, 5)) for n in (3, 40, 2)]
    _, stats = nc.batch_norm(np.concatenate(parts), return_stats=True)

    def work(rank, comm):
        layer = nc.BatchNorm(6, momentum=1.0, dtype=np.float64, comm=comm)
        layer(parts[rank])
        return layer.buffers["running_var"]

    n = sum(p[:, 0].size for p in parts)
    for var in Threads.run(3, work):
        # Float64 means near 1e6 are off by 1e-10, and the parts' are 1e-3 or 1e-2 apart: 2e-12 of
        # a variance of 1e-4.
        np.testing.assert_allclose(var, stats.pooled[:, 1] * n / (n - 1), rtol=2e-8)


def test_masks_count_over_all(rng):
    x, dy = rng.normal(1, 2, (2, 7, 6, 9))
    mask = rng.random((7, 9)) < 0.5
    mask[0], mask[5:] = True, False  # the last process has samples, and none counts
    want = nc.batch_norm(x, mask=mask)
    want_dx = nc.batch_norm_backward(dy, x, np.ones(6), mask=mask).dx

    def work(rank, comm):
        part = (slice(0, 2), slice(2, 5), slice(5, 7))[rank]
        layer = nc.BatchNorm(6, comm=comm)
        return layer(x[part], mask=mask[part]), layer.backward(dy[part])

    y, dx = (np.concatenate(parts) for parts in zip(*Threads.run(3, work), strict=True))
    np.testing.assert_allclose(y, want, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in LAYERS if "no buffers" not in name])
def test_stored_statistics_need_no_others(rng, name):
    x, dy = rng.normal(0, 1, (2, 4, 6, 5))

    def work(rank, comm):
        layer = LAYERS[name](comm=comm)
        for other in (layer.eval(), layer.train().freeze()):
            if rank == 0:  # alone
                other(x), other.backward(dy)

    Threads.run(2, work)


def test_all_without_samples(rng):
    def work(rank, comm):
        layer = nc.BatchNorm(6, momentum=None, comm=comm)
        y = layer(np.empty((0, 6, 3), np.float32))
        assert y.shape == (0, 6, 3) and layer.backward(y).shape == y.shape
        return bits(layer.buffers["running_var"]), int(layer.buffers["num_batches_tracked"])

    assert Threads.run(2, work) == [(bits(np.ones(6, np.float32)), 0)] * 2


@each_layer
def test_samples_without_positions_count_for_nothing(rng, name):
    x, dy = rng.normal(5, 2, (2, 3, 6, 4))
    start = fresh(rng, name)

    def work(rank, comm):
        layer = LAYERS[name](comm=comm)
        layer.load_state_dict(start.state_dict())
        return train(layer, [(x, dy) if rank == 0 else (np.empty((5, 6, 0)),) * 2])

    [(want, alone)] = Threads.run(1, work)
    (got, full), (_, empty) = Threads.run(2, work)
    # Nothing but zeros is added, so the bits are the same.
    assert [bits(a) for a in got[0]] == [bits(a) for a in want[0]]
    for key, value in alone.buffers.items():
        assert bits(full.buffers[key]) == bits(empty.buffers[key]) == bits(value)
    for key, value in alone.grads.items():
        assert bits(full.grads[key]) == bits(value)
        assert not empty.grads[key].any()


def test_recomputed_statistics_are_of_all(rng):
    batches = [rng.normal(k, 1, (n, 6, 4)) for k, n in enumerate((3, 1, 6))]
    want = nc.BatchNorm(6, dtype=np.float64)
    want.recompute_statistics(batches)

    def work(rank, comm):
        layer = nc.BatchNorm(6, dtype=np.float64, comm=comm)
        layer.recompute_statistics((batches[:2], batches[2:], [])[rank])
        return layer.buffers

    for buffers in Threads.run(3, work):
        for key, value in want.buffers.items():
            np.testing.assert_allclose(buffers[key], value, rtol=1e-13)


def test_different_calls_are_told(rng):
    x = rng.normal(0, 1, (4, 6, 5))

    def work(rank, comm):
        first, second = nc.BatchNorm(6, comm=comm), nc.BatchRenorm(6, comm=comm)
        if rank == 0:
            first(x)
        second(x)

    with pytest.raises(RuntimeError, match=r"do not make the same call: this one is at Batch"):
        Threads.run(2, work)


def test_many_processes_make_the_same_call():
    class Many:  # sums one after the other, with its roundings
        def allreduce(self, array):
            return np.add.accumulate(np.tile(array, (1000, 1)))[-1]

    layer = nc.BatchNorm(6, comm=Many())
    for _ in range(200):
        layer(np.ones((4, 6), np.float32))


def test_errors(rng):
    with pytest.raises(TypeError, match=r"comm is 3, expected an object with allreduce"):
        nc.BatchNorm(3, comm=3)
    comm = Threads(1).rank(0)
    with pytest.raises(ValueError, match="ghost_batch_size and comm"):
        nc.BatchNorm(3, comm=comm, ghost_batch_size=2)
    with pytest.raises(ValueError, match="comm_timeout is 0"):
        nc.BatchNorm(3, comm=comm, comm_timeout=0)
    for layer in (nc.InstanceNorm, nc.LpBatchNorm, nc.TopKBatchNorm):
        with pytest.raises(TypeError, match="comm"):
            layer(3, comm=comm)
    layer = nc.BatchNorm(6, comm=comm)
    before = bits(layer.buffers["running_var"])
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(np.ones((1, 6)))
    assert bits(layer.buffers["running_var"]) == before
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(layer)


# ---- real processes

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")


def mpi(ranks, script, timeout=120):
    pytest.importorskip("mpi4py", reason="needs mpi4py and an MPI: pip install .[mpi]")
    if MPIEXEC is None:
        pytest.skip("needs mpiexec: pip install .[mpi]")
    code = f"import numpy as np, normcore as nc\nfrom mpi4py import MPI\n{script}"
    command = [MPIEXEC, "-n", str(ranks), sys.executable, "-m", "mpi4py", "-c", code]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


TRAIN = """
comm = MPI.COMM_WORLD
rng = np.random.default_rng({seed})
sizes = {sizes}
x, dy = rng.normal(5, 2, (2, 3, sum(sizes), 6, 4, 3))
ends = np.cumsum((0, *sizes))
part = slice(ends[comm.rank], ends[comm.rank + 1])
for make in (nc.BatchNorm, nc.BatchRenorm, nc.BatchInstanceNorm, nc.SwitchableNorm):
    one, many = make(6, dtype=np.float64), make(6, dtype=np.float64, comm=comm)
    for step in range(3):
        np.testing.assert_allclose(many(x[step, part]), one(x[step])[part], rtol=1e-11, atol=1e-11)
        want = one.backward(dy[step])[part]
        np.testing.assert_allclose(many.backward(dy[step, part]), want, rtol=1e-10, atol=1e-10)
    for key, value in many.buffers.items():
        np.testing.assert_allclose(value, one.buffers[key], rtol=1e-12, atol=1e-12)
        assert len(set(comm.allgather(value.tobytes()))) == 1, key
        print(make.__name__, key, value.tobytes().hex(), flush=True) if comm.rank == 0 else None
"""


@pytest.mark.parametrize("sizes", [(3, 5), (2, 0, 7), (1, 1, 1)], ids=str)
def test_mpi_ranks(rng, sizes):
    script = TRAIN.format(seed=int(rng.integers(2**31)), sizes=sizes)
    runs = [mpi(len(sizes), script) for _ in range(2)]
    for run in runs:
        assert run.returncode == 0, run.stderr
    assert runs[0].stdout == runs[1].stdout  # the same bits every time
    assert runs[0].stdout.count("\n") == 12


def test_mpi_a_process_that_skips_the_layer_is_named(rng):
    run = mpi(
        2,
        """
layer = nc.BatchNorm(6, comm=MPI.COMM_WORLD, comm_timeout=1.0)
if MPI.COMM_WORLD.rank == 0:
    layer(np.ones((4, 6, 5)))
else:
    import time; time.sleep(30)
""",
    )
    assert run.returncode != 0
    assert "TimeoutError: waited 1 s for the other processes in BatchNorm(6) forward" in run.stderr


def test_mpi_a_process_that_dies_ends_the_others(rng):
    run = mpi(
        3,
        """
layer = nc.BatchNorm(6, comm=MPI.COMM_WORLD, comm_timeout=30.0)
layer(np.ones((4, 6, 5)))
if MPI.COMM_WORLD.rank == 1:
    raise ValueError("out of data")
layer(np.ones((4, 6, 5)))
""",
    )
    assert run.returncode != 0 and "out of data" in run.stderr
