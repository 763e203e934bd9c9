"""Statistics of an array larger than memory: Dask's blocks, whose moments merge exactly.

The array is a file of float32 values, of which Dask reads a block at a time; each block gives its
`Moments`, and those of all blocks merge by their counts, whatever the blocks' sizes. The statistics
then go where those of training would: into the buffers of a `BatchNorm` layer.
"""

import argparse
import tempfile
from pathlib import Path

import dask
import dask.array
import numpy as np

import normcore as nc

MEAN, SPREAD = 1000.0, 1.0  # in float32 the squares of such values hold no digit of the variance


def write_samples(path: Path, samples: int, channels: int, seed: int) -> np.ndarray:
    """Write samples whose mean moves from the first to the last; return the first channel."""
    rng = np.random.default_rng(seed)
    first = []
    with path.open("wb") as file:
        for start in range(0, samples, 65536):
            shape = (min(65536, samples - start), channels)
            part = rng.normal(MEAN + start / samples, SPREAD, shape).astype(np.float32)
            first.append(part[:, 0].astype(np.float64))
            part.tofile(file)
    return np.concatenate(first)


def open_samples(path: Path, samples: int, channels: int, block: int) -> dask.array.Array:
    """The file as a Dask array in blocks of samples, the last of which may be short."""

    def read(start: int, count: int) -> np.ndarray:
        values = np.fromfile(path, np.float32, count * channels, offset=4 * channels * start)
        return values.reshape(count, channels)

    blocks = [
        dask.array.from_delayed(dask.delayed(read)(start, count), (count, channels), np.float32)
        for start in range(0, samples, block)
        if (count := min(block, samples - start))
    ]
    return dask.array.concatenate(blocks)


def moments_of(array: dask.array.Array) -> nc.Moments:
    """The moments over the samples: a task a block, and merges of eight at a time."""
    parts = [dask.delayed(nc.moments)(b, axis=0) for b in array.to_delayed().ravel()]
    while len(parts) > 1:
        parts = [dask.delayed(nc.Moments.merge)(parts[i : i + 8]) for i in range(0, len(parts), 8)]
    (result,) = dask.compute(*parts, scheduler="threads")
    return result


def peak_mib() -> float:
    """The most memory that this process has had, as Linux says it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main(argv: list[str] | None = None) -> nc.BatchNorm:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=4096, help="size of the file")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--block", type=int, default=50_000, help="samples in a block")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    samples = args.mib * 2**20 // 4 // args.channels
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.f32"
        exact = write_samples(path, samples, args.channels, args.seed)
        array = open_samples(path, samples, args.channels, args.block)
        found = moments_of(array)
    print(f"{args.mib} MiB in {array.npartitions} blocks; memory at most {peak_mib():.0f} MiB")
    print(f"mean     {found.mean[0]:.13g}, in float64 {exact.mean():.13g}")
    print(f"variance {found.var()[0]:.13g}, in float64 {exact.var():.13g}")
    layer = nc.BatchNorm(args.channels)
    layer.buffers["running_mean"][...] = found.mean
    layer.buffers["running_var"][...] = found.var(correction=1)
    return layer.eval()


if __name__ == "__main__":
    main()
