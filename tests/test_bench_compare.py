"""`python -m normcore compare` on made-up runs: what is worse, what the exit status says."""

import json
import subprocess
import sys

import pytest

for module in ("ml_dtypes", "rich"):
    pytest.importorskip(module)


@pytest.fixture
def compare(tmp_path):
    """Compare two runs; return the exit status, what was printed, and the factor of each cell."""

    def run(old, new, *options):
        files = [tmp_path / "old.json", tmp_path / "new.json"]
        for file, document in zip(files, (old, new), strict=True):
            file.write_text(json.dumps(document), encoding="utf-8")
        command = [sys.executable, "-m", "normcore", "compare", *files, *options]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        text = done.stdout + done.stderr
        rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
        return done.returncode, text, {row[0].strip(): float(row[-1]) for row in rows}

    return run


def native(**cells):
    """A run of Google Benchmark: name to (nanoseconds, roofline or None)."""
    entries = []
    for name, (time, roofline) in cells.items():
        ratio = {} if roofline is None else {"roofline": roofline}
        entries.append({"run_name": name, "real_time": time, "time_unit": "ns", **ratio})
    return {"context": {}, "benchmarks": entries}


def python(**rooflines):
    """A run of the Python benchmark without peers."""
    results = [
        {"key": key, "roofline": roofline, "speedup": {}, "disturbed": False}
        for key, roofline in rooflines.items()
    ]
    return {"results": results}


def test_rooflines_count_where_there_are_any_and_times_do_not(compare):
    old = native(a=(100, 2.0), b=(100, 2.0), gone=(1, 1.0))
    new = native(a=(900, 2.0), b=(100, 3.0), fresh=(1, 1.0))
    status, text, factors = compare(old, new)
    assert status == 0, text
    assert factors == {"b": 1.5, "a": 1.0}
    assert list(factors) == ["b", "a"]  # worst first
    assert "1.225 over 2 cells" in text  # sqrt(1.5)


def test_without_a_roofline_it_is_the_time_over_the_copies_of_the_same_run(compare):
    # The machine is twice as slow; `b` has become slower by another half.
    old = native(**{"a": (100, None), "b": (100, None), "copy/1MiB/plain/real_time": (10, None)})
    new = native(**{"a": (200, None), "b": (300, None), "copy/1MiB/plain/real_time": (20, None)})
    assert compare(old, new)[2] == {"a": 1.0, "b": 1.5}
    for run in (old, new):
        run["benchmarks"].pop()
    assert "nothing to compare" in compare(old, new)[1]


def test_repetitions_count_by_their_median_and_errors_not_at_all(compare):
    def repeated(*rooflines):
        run = native(a=(1, rooflines[0]))
        run["benchmarks"] += [{**run["benchmarks"][0], "roofline": r} for r in rooflines[1:]]
        return run

    old, new = repeated(1.0, 1.0, 1.0), repeated(9.0, 2.0, 1.5)
    new["benchmarks"].append({**new["benchmarks"][0], "run_type": "aggregate", "roofline": 4.0})
    new["benchmarks"].append({"run_name": "a", "error_occurred": True, "real_time": 0})
    assert compare(old, new)[2] == {"a": 2.0}


def test_a_peer_is_a_witness_and_no_cell(compare):
    def with_peer(roofline, speedup):
        run = native(**{"a/manual_time": (1, roofline), "a/onednn/manual_time": (1, 9.0)})
        run["benchmarks"][1]["speedup"] = speedup
        return run

    # The roofline alone slipped: the copy was disturbed, not the cell.
    assert compare(with_peer(1.0, 2.0), with_peer(3.0, 2.2))[2] == {"a": 1.0}
    _, text, factors = compare(with_peer(1.0, 2.0), with_peer(3.0, 1.0))
    assert factors == {"a": 2.0}
    assert "speedup over oneDNN" in text


@pytest.mark.parametrize("kind", ["native", "python"])
def test_exit_status_and_filter(compare, kind):
    def run(a, b):
        return native(a=(1, a), b=(1, b)) if kind == "native" else python(a=a, b=b)

    old, new = run(1.0, 1.0), run(1.3, 1.1)
    assert compare(old, new)[0] == 0
    assert compare(old, new, "--fail-above", "1.4")[0] == 0
    status, text, factors = compare(old, new, "--fail-above", "1.2")
    assert status == 1 and factors == {"a": 1.3, "b": 1.1}
    assert "1.30 is above 1.2" in text
    status, _, factors = compare(old, new, "--fail-above", "1.2", "--filter", "^b")
    assert status == 0 and factors == {"b": 1.1}


def test_runs_of_unlike_benchmarks_are_refused(compare):
    status, text, _ = compare(native(a=(1, 1.0)), python(a=1.0))
    assert status == 1 and "is a native run and" in text
    status, text, _ = compare({"other": 1}, python(a=1.0))
    assert status == 1 and "none of a native run" in text
