"""When the benchmark says that other processes held a contender up."""

import math
import os
import subprocess
import sys
import time

import pytest

from normcore.bench.measure import PREEMPTED, WAITED, Contender, waited_for_cpu


def contender(**events):
    """Five timings of a second each."""
    return Contender("ours", lambda: None, seconds=[1.0] * 5, calls=5, **events)


def test_waiting_for_a_cpu_is_what_disturbs():
    assert not contender(waited=0.9 * 5 * WAITED).disturbed
    assert contender(waited=1.1 * 5 * WAITED).disturbed
    # Tasks of the system that run for microseconds preempt as often as a process that stays.
    assert not contender(waited=0.0, preempted=10_000).disturbed
    assert not contender(waited=5.0, crowded=True).disturbed, "its own threads wait for each other"


def test_preemptions_count_where_nothing_tells_how_long_they_took():
    assert not contender(waited=math.nan, preempted=int(0.9 * 5 * PREEMPTED)).disturbed
    assert contender(waited=math.nan, preempted=int(1.1 * 5 * PREEMPTED)).disturbed


def test_timings_far_from_the_best_disturb():
    spread = contender()
    spread.seconds = [1.0, 2.0, 2.0, 2.0, 1.0]
    assert spread.disturbed


def test_a_process_that_shares_its_cpu_has_waited():
    if not hasattr(os, "sched_setaffinity") or math.isnan(waited_for_cpu()):
        pytest.skip("this system does not tell how long threads wait")
    cpus = os.sched_getaffinity(0)
    rival = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        one = {min(cpus)}
        os.sched_setaffinity(rival.pid, one)
        os.sched_setaffinity(0, one)
        before, end = waited_for_cpu(), time.monotonic() + 10
        while waited_for_cpu() - before < 0.001 and time.monotonic() < end:
            pass
        assert waited_for_cpu() - before >= 0.001
    finally:
        os.sched_setaffinity(0, cpus)
        rival.kill()
        rival.wait()
