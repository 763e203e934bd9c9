"""Fixtures of the whole suite: the random generator, the ISA, the thread count.

Every run draws new random numbers, so that the suite keeps searching; the seed stands in the header
and beside every failure, and NORMCORE_TEST_SEED=<seed> repeats the run. Tests that need much memory
(marker `large`) run where it is free, or when asked for with `-m large`.
"""

import os
import zlib

import hypothesis
import numpy as np
import pytest
from cuda_support import pytest_runtest_protocol as pytest_runtest_protocol
from support import DTYPES, every_isa

import normcore as nc

SEED = int(os.environ.get("NORMCORE_TEST_SEED") or np.random.SeedSequence().entropy % 2**32)
os.environ["NORMCORE_TEST_SEED"] = str(SEED)  # for the workers of pytest-xdist

LARGE_TEST_GIB = 16

# No deadline: machines that run tests are slow and shared, and a time is not a result.
hypothesis.settings.register_profile("normcore", deadline=None, max_examples=60, print_blob=True)
hypothesis.settings.load_profile("normcore")


def pytest_report_header(config):
    return f"normcore {nc.__version__}, ISAs {every_isa()}, NORMCORE_TEST_SEED={SEED}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        report.sections.append(("seed", f"repeat with NORMCORE_TEST_SEED={SEED}"))
    return report


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("large"):  # one after the other, in one process
            item.add_marker(pytest.mark.xdist_group("large"))
    if "large" in config.getoption("markexpr") or available_gib() >= LARGE_TEST_GIB:
        return
    reason = f"needs {LARGE_TEST_GIB} GiB of free memory; ask for it with -m large"
    for item in items:
        if item.get_closest_marker("large"):
            item.add_marker(pytest.mark.skip(reason=reason))


def available_gib():
    """Memory that can be had without swapping; 0 where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            sizes = dict(line.split(":", 1) for line in lines)
        return int(sizes["MemAvailable"].split()[0]) / 2**20
    except (OSError, KeyError):
        return 0.0


@pytest.fixture
def rng(request):
    """A generator of its own for each test: results do not depend on which tests run before."""
    return np.random.default_rng([SEED, zlib.crc32(request.node.nodeid.encode())])


@pytest.fixture(params=DTYPES.values(), ids=DTYPES.keys())
def dtype(request):
    return request.param


@pytest.fixture(params=every_isa())
def isa(request):
    """Runs the test once with each instruction set that this machine has."""
    previous = nc.get_isa()
    nc.set_isa(request.param)
    yield request.param
    nc.set_isa(previous)


@pytest.fixture
def threads():
    """`threads(n)` sets the number of threads; the number before the test comes back after it."""
    previous = nc.get_num_threads()
    yield nc.set_num_threads
    nc.set_num_threads(previous)
