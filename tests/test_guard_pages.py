"""Nothing beyond the arrays of a call is read or written, in whatever layout they come.

Every function runs on arrays that lie directly before and directly behind forbidden pages, so that
one element too many ends the process (the name of the test stands in the traceback); what lies
between the elements must stay. Results are the bits of the same call on ordinary memory.
"""

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from every_call import CASES
from support import DTYPES, LAYOUTS, arrange, assert_same_bits, every_isa

import normcore as nc

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="calls mmap by libc")
if sys.platform.startswith("linux"):
    from guarded import Pages

# No length is a multiple of a vector's; rows of less than one vector and of several, and more
# columns than a strip of kernels has.
SHAPES = {2: [(5, 33)], 3: [(3, 7, 67)], 4: [(3, 6, 5, 7), (2, 9, 3, 5)]}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def laid_out(case, values, layout):
    """Tensors in the layout, vectors that run backwards where tensors are reversed or sliced."""
    out = dict(values)
    for name, value in values.items():
        if name in case.tensors:
            out[name] = arrange(value, layout)
        elif isinstance(value, np.ndarray) and value.ndim == 1 and layout in ("reversed", "sliced"):
            out[name] = np.repeat(value[::-1], 1 + (layout == "sliced"))[
                :: -1 - (layout == "sliced")
            ]
    return out


def copies(values):
    """Fresh arrays of the same strides: running buffers move."""
    return {k: v.copy() if k.startswith("running") else v for k, v in values.items()}


def guard(pages, values, at_end):
    """All arrays of a call, those within tuples too."""
    if isinstance(values, np.ndarray):
        return pages.put(values, at_end)
    if isinstance(values, dict):
        return {k: guard(pages, v, at_end) for k, v in values.items()}
    if isinstance(values, tuple):
        return type(values)(*(guard(pages, v, at_end) for v in values))
    return values


def check(case, values, shape, what):
    """The call on guarded memory, to an `out` of its own and over each array that it may be."""
    want = case.call(copies(values), shape)
    for at_end in (True, False):
        for over in [None, *case.over]:
            with Pages() as pages:
                inside = guard(pages, values, at_end)
                out = None
                if over:
                    out = inside[over]
                elif case.has_out:
                    like = values[case.tensors[0]]
                    out = pages.put(np.full_like(like, np.nan, subok=False), at_end)
                got = [np.array(r) for r in case.call(inside, shape, out)]
                where = f"{case} {what}, out over {over}, at the {'end' if at_end else 'start'}"
                assert_same_bits(got, want, where)
                del inside, out
                assert pages.untouched(), f"{where}: memory beside the elements has changed"


@each_layout
@each_case
def test_no_access_beyond_the_arrays(rng, case, layout):
    previous = nc.get_isa()
    try:
        for isa in every_isa():
            nc.set_isa(isa)
            for ndim, shapes in SHAPES.items():
                if ndim < case.least or (case.options.get("axis") == (0, 1) and ndim == 2):
                    continue
                for shape in shapes:
                    for name, dtype in DTYPES.items():
                        values = laid_out(case, case.make(rng, shape, dtype), layout)
                        check(case, values, shape, f"{isa} {name} {shape}")
    finally:
        nc.set_isa(previous)


RESPONSE = [c for c in CASES if c.function.startswith("local_response_norm")]


# A band is of some 500 rows of the 64 lanes below: channels of less than one, and of several with a
# last one of few rows or none beside what the window reaches.
@pytest.mark.parametrize("channels", [480, 509, 725, 985, 1013, 1521])
@pytest.mark.parametrize("size", [2, 5, 15, 31, 101, 400])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_bands_of_local_response_norm(rng, channels, size, backward):
    function = "local_response_norm_backward" if backward else "local_response_norm"
    (case,) = (c for c in RESPONSE if c.function == function and c.options["size"] == 5)
    case = type(case)(case.function, case.names, {"size": size, "alpha": 1.0})
    shape = (1, channels, 8, 8)
    for dtype in (np.float32, np.float16):
        values = case.make(rng, shape, dtype)
        if size == 5:  # some of it in double
            values["x"][0, -1] *= 1e4 if dtype == np.float16 else 1e25
        check(case, values, shape, str(np.dtype(dtype)))


# The same along a long axis of space, with lanes beside it.
@pytest.mark.parametrize("length", [509, 1013, 1521])
@pytest.mark.parametrize("size", [5, 31])
def test_bands_along_space(rng, length, size):
    (case,) = (c for c in RESPONSE if "backward" in c.function and "across" in c.options)
    case = type(case)(case.function, case.names, case.options | {"size": size})
    shape = (1, 65, length)
    values = case.make(rng, shape, np.float32)
    for layout in ("contiguous", "channels_last"):
        check(case, laid_out(case, values, layout), shape, layout)


def test_a_stray_access_would_be_seen():
    """The guards hold: a process that reads beyond one of these arrays is killed."""
    code = """
import sys; sys.path.insert(0, {path!r})
import ctypes, numpy as np
from guarded import Pages
with Pages() as pages:
    for at_end, beyond in ((True, 8), (False, -1)):
        x = pages.put(np.zeros(2, np.float32), at_end)
        assert pages.untouched()
        if len(sys.argv) > 1 and at_end == (sys.argv[1] == "end"):
            ctypes.string_at(x.ctypes.data + beyond, 1)
"""
    code = code.format(path=str(Path(__file__).parent))
    run = [sys.executable, "-c", code]
    assert subprocess.run(run).returncode == 0
    assert subprocess.run([*run, "end"]).returncode != 0
    assert subprocess.run([*run, "start"]).returncode != 0


def test_what_is_written_beside_the_elements_would_be_seen():
    with Pages() as pages:
        x = pages.put(np.zeros((4, 4), np.float32)[:, ::2], at_end=True)
        assert pages.untouched()
        ctypes.memset(x.ctypes.data + x.itemsize, 0, 1)  # between the first two elements
        assert not pages.untouched()
