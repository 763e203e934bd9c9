"""The program that type checkers read (`python3 dev.py typing`) also runs."""

import runpy
from pathlib import Path

import pytest


def test_the_right_calls_run():
    pytest.importorskip("typing_extensions")
    runpy.run_path(str(Path(__file__).parent / "typing" / "right_calls.py"), run_name="__main__")
