"""The sweep of the benchmark: what follows from made-up times, and a sweep of three cells."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

# Absent without the packages of the extra `bench`.
sweep = pytest.importorskip("normcore.bench.sweep")
lines = pytest.importorskip("normcore.bench.lines")
LINES = lines.LINES

WIDTHS = next(line for line in LINES if line.axis == "row width")
OFFSETS = next(line for line in LINES if line.axis == "offset")
ROWS = 100


def series(times, *rounds):
    """Sizes 1, 2, ...: the times of their rows, one thread's in each round, and rounds of two."""
    points = [sweep.Point(n, None, 1, ROWS * n, 4 * ROWS * n) for n in range(1, 1 + len(times))]
    one = [list(times)] * len(rounds)
    return sweep.Series(WIDTHS, points, {1: one, 2: [list(times) for times in rounds]})


def cliffs(times):
    return np.array(series(times, times).cliffs[1])


def test_what_grows_with_the_size_is_no_cliff():
    sizes = np.arange(1, 60)
    for constant in (0, 1, 100):  # per row
        ratios = cliffs(constant + sizes)
        assert (ratios <= 1).all()
        assert (ratios > 0.3).all()


def test_a_slow_size_is_one():
    times = 10.0 + np.arange(1, 60)
    times[30] *= 3
    ratios = cliffs(times)
    assert ratios.argmax() == 30 and ratios[30] == pytest.approx(3, rel=0.1)
    assert np.delete(ratios, 30).max() < 1.01


@pytest.mark.parametrize("step", [1, 2, 30, 57])
def test_a_step_up_is_one_where_it_begins(step):
    times = np.arange(1.0, 60)
    times[step:] *= 2
    ratios = cliffs(times)
    assert ratios.argmax() == step and ratios[step] == pytest.approx(2, rel=0.05)
    # Those just behind have more than half of their smaller neighbours before the step.
    assert (np.delete(ratios, range(step, min(59, step + sweep.REACH))) < 1.05).all()


def test_a_step_down_is_one_where_it_ends():
    times = 1000.0 + np.arange(1, 60)  # a larger row costs less as a whole
    times[40:] /= 2
    ratios = cliffs(times)
    assert ratios[39] == pytest.approx(2, rel=0.05)
    assert ratios[40:].max() <= 1


def test_offsets_are_neighbours_of_each_other():
    points = [sweep.Point(n, None, 1, ROWS, ROWS) for n in (0, 16, 4)]
    found = sweep.Series(OFFSETS, points, {1: [[1.0, 1.5, 2.0]]})
    assert found.cliffs[1] == pytest.approx([1 / 1.75, 1.5, 2 / 1.25])
    assert found.gains == []


def test_ratios_are_medians_over_rounds():
    found = series([2.0, 2.0, 2.0], [1.0, 1.0, 1.0], [1.0, 99.0, 1.0], [1.0, 1.0, 1.0])
    assert found.gains == [2.0, 2.0, 2.0]
    assert max(found.cliffs[2]) <= 1


def test_sizes_share_memory_at_the_offset():
    arena = sweep.Arena()
    for shape, offset, dtype in itertools.product([(3, 5), (7, 11)], (0, 16, 4), ("f32", "bf16")):
        view = arena.view("x", dtype, shape, offset)
        assert view.shape == shape and view.ctypes.data % lines.ALIGNMENT == offset
        assert np.isfinite(view.astype(np.float32)).all()


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.axis}-{line.name}-{line.label}")
def test_every_line_has_cells_of_one_size(line):
    assert line.axis in lines.AXES
    assert set(line.chosen(quick=True)) <= set(line.chosen(quick=False))
    for size in (line.sizes[0], line.sizes[-1]):
        case = line.case(size, "bf16", "backward")
        assert line.shifts or size in case.shape
        assert case.tensor_bytes <= lines.TENSOR_BYTES or line.axis == "N"


class Slow:
    """In place of the library: what is called is slow at one size, with one thread or any."""

    def __init__(self, monkeypatch, slow):
        self.slow = slow
        monkeypatch.setattr("normcore.bench.sweep.our_call", self.call_of)
        monkeypatch.setattr("normcore.bench.sweep.run_loop", lambda call, repeats: call())
        self.threads = 1

    def call_of(self, nc, work, out):
        width = work.case.shape[1]
        return lambda: work.x.size * (3.0 if width == self.slow else 1.0) / self.threads

    def set_num_threads(self, n):
        self.threads = n


def test_a_series_finds_the_slow_size(monkeypatch):
    library = Slow(monkeypatch, 129)
    found = sweep.measure_series(library, sweep.Arena(), WIDTHS, "f32", "forward", 2, True)
    assert found["sizes"] == WIDTHS.chosen(True)
    for ratios in found["cliff"].values():
        assert found["sizes"][int(np.argmax(ratios))] == 129
        assert max(ratios) == pytest.approx(3, rel=0.1)
    assert found["gain"] == pytest.approx([2] * len(found["sizes"]))


def test_a_sweep_is_saved_and_shown(tmp_path):
    saved, plot = tmp_path / "sweep.json", tmp_path / "sweep.svg"
    command = [sys.executable, "-m", "normcore", "bench"]
    line = ["--quick", "--axis", "offset", "--op", "rms_norm", "--dtype", "f32"]

    def run(*arguments):
        return subprocess.run(
            [*command, *map(str, arguments)], capture_output=True, text=True, encoding="utf-8"
        )

    swept = run("sweep", *line, "--json", saved)
    assert swept.returncode == 0, swept.stderr
    document = json.loads(saved.read_text(encoding="utf-8"))
    assert [s["pass"] for s in document["series"]] == ["forward", "backward"]
    for found in document["series"]:
        assert found["sizes"] == [0, 16, 4]
        for ratios in found["cliff"].values():
            assert f"{max(ratios):.2f} at " in swept.stdout
    pytest.importorskip("matplotlib")
    shown = run("show", saved, "--plot", plot)
    assert shown.stdout == swept.stdout, shown.stderr
    assert plot.stat().st_size > 0
    refused = run("sweep", "--axis", "N", "--op", "gdn")
    assert refused.returncode == 2 and "no line of the sweep matches" in refused.stderr
