"""The examples run as a user would run them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_digits(tmp_path):
    for package in ("matplotlib", "sklearn", "tqdm"):
        pytest.importorskip(package)
    command = [sys.executable, EXAMPLES / "digits.py", "--quick", "--output-dir", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr

    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "digits.md").read_text(encoding="utf-8")
    assert report in run.stdout
    header, rule, *rows = [line for line in report.splitlines() if line.startswith("|")]
    assert header == "| normalization | batch size 2 | batch size 8 | batch size 64 |"
    assert rule == "| --- | ---: | ---: | ---: |"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    norms = [name for name, *_ in cells]
    assert norms == ["none", "batch", "layer", "rms", "instance", "group"]
    for name, *accuracies in cells:
        percent = [float(text.removesuffix(" %")) for text in accuracies]
        assert len(percent) == 3, name
        assert all(0 <= value <= 100 for value in percent), (name, percent)
        # Ten classes: even one epoch of 256 images learns far more than chance; but batch norm over
        # two values a channel may not learn at all, which is what the example shows.
        learned = percent[1:] if name == "batch" else percent
        assert all(25 < value for value in learned), (name, percent)
