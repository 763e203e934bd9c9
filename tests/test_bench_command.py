"""`python -m normcore bench`: what it wants installed, what it refuses, a run of a small cell."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

for module in ("ml_dtypes", "rich"):
    pytest.importorskip(module)
ROOT = Path(__file__).parents[1]


def bench(*arguments, first=""):
    """Run the command as a user does, after the statements `first`."""
    code = f"{first}\nimport runpy; runpy.run_module('normcore', run_name='__main__')"
    command = [sys.executable, "-c", code, "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def test_the_package_does_not_load_it():
    code = "import sys, normcore; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    assert not [m for m in loaded if m.startswith(("normcore.bench", "rich", "matplotlib"))]


@pytest.mark.parametrize("module", ["ml_dtypes", "rich", "matplotlib"])
def test_a_missing_package_is_named_with_the_extra(module, tmp_path):
    extra = re.search(r"^bench = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert f'"{module}>=' in extra[1]
    hide = (
        "import importlib.util as u; find = u.find_spec;"
        f"u.find_spec = lambda name, *a: None if name == {module!r} else find(name, *a)"
    )
    run = bench("--plot", tmp_path / "a.svg", "--op", "layer_norm", "--threads", 1, first=hide)
    assert run.returncode == 1
    assert run.stderr == f"the benchmark needs {module}: pip install 'normcore[bench]'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "no_such_norm"], "no cell of shapes.json matches"),
        (["--peers", "torch,tensorflow"], "--peers is tensorflow, expected some of torch"),
        (["--threads", "0"], "--threads is 0, expected 1 to the number of CPUs"),
        (["--fail-above", "1.1"], "--fail-above needs --compare"),
        (["--json", "{folder}/none/run.json"], "/none for run.json"),
        (["sweep", "--plot", "{folder}/none/a.svg"], "/none for a.svg"),
        (["show", "{folder}/none.json"], "none.json"),
        (["show", "{folder}/native.json"], "is a native run, expected one of"),
        (["show", "{folder}/broken.json"], "broken.json: "),
        (
            ["compare", "{folder}/native.json", "{folder}/other.json"],
            "other.json: none of a",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message, tmp_path):
    files = {"native": '{"benchmarks": []}', "broken": "{", "other": '{"a": 1}'}
    for name, text in files.items():
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    run = bench(*(a.format(folder=tmp_path) for a in arguments))
    assert run.returncode != 0
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_a_run_is_saved_shown_and_drawn(tmp_path):
    saved, plot = tmp_path / "run.json", tmp_path / "run.svg"
    cell = ("--quick", "--op", "layer_norm", "--shape", "1x768", "--dtype", "f32")
    run = bench(*cell, "--peers", "numpy", "--json", saved)
    assert run.returncode == 0, run.stderr
    document = json.loads(saved.read_text(encoding="utf-8"))
    assert [r["pass"] for r in document["results"]] == ["forward", "backward"]
    for result in document["results"]:
        assert result["roofline"] > 0 and result["speedup"]["numpy"] > 0
        assert f"{result['roofline']:.2f}" in run.stdout
    assert document["machine"]["versions"]["normcore"]

    options = ("--plot", plot) if find_spec("matplotlib") else ()
    shown = bench("show", saved, *options)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == run.stdout
    assert not options or plot.read_text(encoding="utf-8").startswith("<?xml")
    table = bench("show", saved, "--markdown").stdout.replace("~", "")  # of a busy machine
    forward, backward = (f"{r['roofline']:.2f}" for r in document["results"])
    assert f"| layer_norm | 1x768 | f32 | {forward} / {backward} |" in table

    # A run of a busy machine, too, is compared here.
    document["results"] = [{**r, "disturbed": [], "speedup": {}} for r in document["results"]]
    slower = [{**r, "roofline": 2 * r["roofline"]} for r in document["results"]]
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(document), encoding="utf-8")
    new.write_text(json.dumps({**document, "results": slower}), encoding="utf-8")
    for file, status in ((old, 0), (new, 1)):
        compared = bench("compare", old, file, "--fail-above", 1.5)
        assert compared.returncode == status, compared.stdout + compared.stderr


def test_what_was_disturbed_is_measured_again(tmp_path):
    saved = tmp_path / "run.json"
    cell = ("--quick", "--op", "layer_norm", "--shape", "1x768", "--dtype", "f32")
    first = bench(*cell, "--peers", "none", "--threads", 1, "--json", saved)
    assert first.returncode == 0, first.stderr
    document = json.loads(saved.read_text(encoding="utf-8"))

    # As if forward had been quiet, and backward not: its key tells what is measured.
    forward, backward = document["results"]
    forward.update(roofline=123.0, disturbed=[])
    backward.update(roofline=456.0, disturbed=["normcore"])
    saved.write_text(json.dumps(document), encoding="utf-8")
    again = bench("--quick", "--again", saved, "--json", saved)
    assert again.returncode == 0, again.stderr
    results = json.loads(saved.read_text(encoding="utf-8"))["results"]
    assert [r["pass"] for r in results] == ["forward", "backward"]
    assert results[0] == forward
    assert results[1] == backward or (results[1]["roofline"] < 456 and not results[1]["disturbed"])

    refusals = {
        "measure anew": {**document, "machine": {**document["machine"], "cpu": "Z80"}},
        "was disturbed in that run": {**document, "results": [forward]},
    }
    for message, spoilt in refusals.items():
        saved.write_text(json.dumps(spoilt), encoding="utf-8")
        refused = bench("--again", saved)
        assert refused.returncode == 1 and message in refused.stderr
    refused = bench("--again", saved, "--threads", 1)
    assert refused.returncode == 2 and "goes without" in refused.stderr


def test_compiled_formulas_run(tmp_path):
    # A compiler that fails is a note in a table, and a cell that nobody is compared in.
    if find_spec("torch") is None:
        pytest.skip("needs torch")
    cell = ("--quick", "--op", "batch_renorm", "--shape", "16x128x32x32", "--dtype", "f32")
    run = bench(*cell, "--peers", "compile", "--mode", "kernel", "--json", tmp_path / "run.json")
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "run.json").read_text())["results"]
    assert results and all("compile" in result["speedup"] for result in results), run.stdout
