"""Counts that the documents repeat are those of the registries."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mixer_equiv.equivalence.faults.catalogue import CATALOGUE
from mixer_equiv.equivalence.faults.kill_matrix import planted_in_code
from mixer_equiv.equivalence.faults.planted_code import PLANTED
from mixer_equiv.equivalence.faults.planted_weights import PLANTED_WEIGHTS
from mixer_equiv.layouts import LAYOUTS

ROOT = Path(__file__).parents[2]


def count_faults() -> int:
    """The catalogued faults, without notices, which are no faults of the function."""
    return sum(fault.kind != "notice" for fault in CATALOGUE.values())


def count_planted() -> int:
    """The faults that the kill matrix plants, without notices, which no output shows."""
    in_code = [fault.fault for fault in planted_in_code().values()]
    planted = [*in_code, *(fault.fault for fault in PLANTED_WEIGHTS.values())]
    return sum(CATALOGUE[fault].kind != "notice" for fault in planted)


USUAL_CHECKS = "docs/explanation/usual-checks.md"

# By document: a pattern whose group is the number, and what it counts.
COUNTS: list[tuple[str, str, Callable[[], int]]] = [
    ("CHANGELOG.md", r"^- (\d+) layouts\b", lambda: len(LAYOUTS)),
    ("CHANGELOG.md", r"\b(\d+) catalogued faults of code", count_faults),
    *((path, r"\bOf (\d+) faults\b", count_planted) for path in ("README.md", USUAL_CHECKS)),
    ("docs/assets/figures/usual_checks.svg", r"\bof (\d+) planted faults\b", count_planted),
    *(
        (path, r"^\| `verify`, which also names the cause \| +\| (\d+) \|", count_planted)
        for path in ("README.md", USUAL_CHECKS)
    ),
]


def numbers_in(text: str, pattern: str) -> list[int]:
    return [int(number) for number in re.findall(pattern, text, re.MULTILINE)]


@pytest.mark.parametrize(("document", "pattern", "count"), COUNTS, ids=[f"{row[0]}: {row[1]}" for row in COUNTS])
def test_a_count_in_a_document_is_that_of_the_registry(document: str, pattern: str, count: Callable[[], int]) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert numbers_in(text, pattern) == [count()], f"{document} has another number than the registry at {pattern!r}"


def test_a_fault_more_would_be_missed_in_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    before = count_planted()
    monkeypatch.setitem(PLANTED, "one more", PLANTED["eps 1e-5"])
    assert count_planted() == before + 1
    monkeypatch.setitem(PLANTED, "a notice more", PLANTED["an option"])
    assert count_planted() == before + 1
