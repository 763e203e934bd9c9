"""Benchmark of normcore against a copy of memory and against other libraries.

Started by `python -m normcore bench`; nothing else of the package imports it. How speed is judged:
only by ratios of interleaved timings (see `measure.py`), never by a time itself. `roofline` is our
time over the time of copying the op's minimum traffic, `speedup` a peer's time over ours.
"""

from importlib.util import find_spec


def require(*modules: str) -> None:
    """End the program unless these modules of the extra `bench` are installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"the benchmark needs {' and '.join(missing)}: pip install 'normcore[bench]'"
        )
