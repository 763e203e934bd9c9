"""A run in which the cells that were disturbed are measured again: `run --again JSON`.

A busy machine disturbs half of a long run. What was quiet need not be measured twice, as long as
machine, versions and sources are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import machine
from .cells import load_cases, select

Document = dict[str, Any]
SAME = ("cpu", "threads", "isa", "compiler", "commit", "versions")  # of the machine


def disturbed(old: Document, filters: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """The keys of what was disturbed and matches the filters, by mode."""
    import normcore

    here = machine.describe(normcore, old["machine"]["threads"])
    for name in SAME:
        before = old["machine"].get(name)
        if before != here[name]:
            raise SystemExit(f"that run has {name} {before}, here it is {here[name]}: measure anew")
    wanted = {case.key for case in select(load_cases(), *filters)}
    found: dict[str, list[str]] = {}
    for result in old["results"]:
        if result.get("disturbed") and result["key"].partition("|")[2] in wanted:
            found.setdefault(result["mode"], []).append(result["key"])
    if not found:
        raise SystemExit("no cell that matches the filters was disturbed in that run")
    return found


def replaced(old: Document, new: Document) -> Document:
    """The earlier run with what was quiet now in the place of what was disturbed then."""
    quiet = {r["key"]: r for r in new["results"] if "error" not in r and not r["disturbed"]}
    results = [quiet.get(result["key"], result) for result in old["results"]]
    return {**old, "results": results}
