"""The tables and pictures of the documentation are those of the runs that the repository keeps."""

import json
import re
import shutil
from pathlib import Path

import pytest

# Absent without the packages of the extra `bench`.
for package in ("matplotlib", "ml_dtypes", "rich"):
    pytest.importorskip(package)
tables = pytest.importorskip("normcore.bench.tables")
picture = pytest.importorskip("normcore.bench.picture")
cells = pytest.importorskip("normcore.bench.cells")

ROOT = Path(__file__).parents[1]
RUNS = sorted((ROOT / "bench/results").glob("*.json"))


@pytest.fixture
def copy(tmp_path):
    """The pages, pictures and runs, to be spoilt."""
    for folder in ("docs", "bench/results"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def test_they_are_up_to_date():
    assert tables.write(ROOT, check=True) == [], "python3 dev.py bench tables"


def test_every_run_is_shown_and_is_small():
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES)
    assert RUNS
    for run in RUNS:
        assert f"<!-- speed: bench/results/{run.name} overview -->" in text
        assert f"<!-- speed: bench/results/{run.name} cells -->" in text
        assert run.stat().st_size < 400_000
        machine = json.loads(run.read_text(encoding="utf-8"))["machine"]
        assert machine["name"] and machine["commit"] != "?"


def test_a_run_has_every_cell():
    wanted = {c.key for c in cells.load_cases() if c.dtype in tables.DTYPES}
    for run in RUNS:
        results = json.loads(run.read_text(encoding="utf-8"))["results"]
        assert {r["key"].partition("|")[2] for r in results if "error" not in r} == wanted


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.stem)
def test_what_drifts_is_found_and_mended(copy, run):
    # One number of a page by hand; the picture of other numbers; then the run itself.
    page, drawing = copy / "docs/speed.md", copy / tables.picture_of(run)
    right = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"(\| layer_norm \| 4096x768 \| )\S+", r"\g<1>0.01", right), "utf-8")
    assert tables.write(copy, check=True) == ["docs/speed.md"]
    assert tables.write(copy) == ["docs/speed.md"]
    assert page.read_text(encoding="utf-8") == right

    drawing.unlink()
    assert tables.write(copy) == [f"docs/{drawing.name}"]
    assert tables.write(copy, check=True) == []

    file = copy / "bench/results" / run.name
    document = json.loads(file.read_text(encoding="utf-8"))
    for result in document["results"]:
        if (result["op"], result["shape"]) == ("layer_norm", "4096x768"):
            result["roofline"] = 77.77
    file.write_text(json.dumps(document), encoding="utf-8")
    assert tables.write(copy) == [*tables.PAGES, f"docs/{drawing.name}"]
    for name in ("docs/speed.md", "docs/benchmarks.md"):
        assert "77.77 / 77.77" in (copy / name).read_text(encoding="utf-8")
    assert tables.write(copy, check=True) == []


@pytest.mark.parametrize(
    ("comment", "message"),
    [
        ("bench/results/none.json cells", "none.json"),
        ("{run} poem", "expected one of means, overview, cells"),
        ("{run}", "is not of the form"),
    ],
)
def test_a_comment_that_is_wrong_is_an_error(copy, comment, message):
    page = copy / "README.md"
    comment = comment.format(run=RUNS[0].relative_to(ROOT))
    text = f"<!-- speed: {comment} -->\n<!-- end of speed -->\n"
    page.write_text(page.read_text(encoding="utf-8") + text, encoding="utf-8")
    with pytest.raises(SystemExit, match=message):
        tables.write(copy, check=True)


def test_a_drawing_depends_on_the_run_alone():
    document = json.loads(RUNS[0].read_text(encoding="utf-8"))
    assert picture._draw(document) == picture._draw(document)
