"""Python benchmark of normcore against a copy of memory and against other libraries.

Run `python -m bench.python --help` from the repository root. How speed is judged: only
by ratios of interleaved timings (see `measure.py`), never by a time itself. `roofline` is our time
over the time of copying the op's minimum traffic, `speedup` a peer's time over ours.
"""
