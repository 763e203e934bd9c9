"""Runs as JSON files, which people compare and the repository keeps.

One result stands on one line, with four significant digits: a file stays small, and a difference of
two of them can be read. No ratio is good to more digits than that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Document = dict[str, Any]
DIGITS = 4
# What a file holds, by the key that only it has.
KINDS = {"benchmarks": "native", "results": "python", "series": "sweep"}


def load(path: Path) -> tuple[str, Document]:
    """A saved run, and what it is of: one of `KINDS`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: {error}") from None
    for key, kind in KINDS.items():
        if isinstance(document, dict) and key in document:
            return kind, document
    expected = ", ".join(f"a {kind} run ({key!r})" for key, kind in KINDS.items())
    raise SystemExit(f"{path}: none of {expected}")


def load_run(path: Path) -> Document:
    """A saved run of this benchmark."""
    kind, document = load(path)
    if kind != "python":
        raise SystemExit(f"{path} is a {kind} run, expected one of `python -m normcore bench run`")
    return document


def rounded(value: Any) -> Any:
    """The value as a file keeps it."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return value


def save(document: Document, path: Path) -> None:
    """Write a run."""
    path.write_text(dumps(document), encoding="utf-8")


def dumps(document: Document) -> str:
    """A run as text: an entry of each list that it has stands on its own line."""
    fields = []
    for name, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n" + ",\n".join(f"  {json.dumps(rounded(entry))}" for entry in value) + "\n ]"
        else:
            text = json.dumps(rounded(value))
        fields.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(fields) + "\n}\n"
