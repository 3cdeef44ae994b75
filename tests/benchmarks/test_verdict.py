"""The benchmark of a cold verify runs the package of the checkout that it names, and accepts no wrong answer."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import result_files, verdict

CASE = verdict.Case("import json", "equivalent_under", "model.py:Name", {"depth": 4}, (3, 8, 8))

# A package that notes each call, and gives this answer.
PACKAGE = """
import pathlib, types
def verify(source, kwargs, image):
    assert (source, kwargs, image) == ("model.py:Name", {{"depth": 4}}, (3, 8, 8))
    with open(pathlib.Path(__file__).with_name("calls"), "a") as calls:
        calls.write("called\\n")
    return types.SimpleNamespace(verdict="{answer}")
"""
COMMAND = """
import sys
from mixer_equiv import verify
assert sys.argv[1:] == ["verify", "model.py:Name", "--kwargs", '{"depth": 4}', "--image", "3x8x8"], sys.argv
sys.exit(verify("model.py:Name", {"depth": 4}, (3, 8, 8)).verdict != "equivalent")
"""


def make_checkout(folder: Path, answer: str = "equivalent_under") -> Path:
    package = folder / "mixer_equiv"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE.format(answer=answer))
    (package / "__main__.py").write_text(COMMAND)
    return folder


def count_calls(checkout: Path) -> int:
    return len((checkout / "mixer_equiv" / "calls").read_text().splitlines())


def machine() -> Mapping[str, Any]:
    result: Mapping[str, Any] = result_files.read("cold_start")["machine"]
    return result


def test_each_checkout_is_run_with_its_own_package(tmp_path: Path) -> None:
    checkouts = {which: make_checkout(tmp_path / which) for which in ("this", "beside")}
    rows = verdict.measure({"a model": CASE}, 2, checkouts)
    # Two calls, each in two rounds and once before.
    assert [count_calls(checkout) for checkout in checkouts.values()] == [6, 6]
    assert [(row["call"], "times_as_fast" in row) for row in rows] == [("command", True), ("Python", True)]
    text = verdict.page({"rows": rows, "rounds": 2, "machine": machine(), "beside": "1234567"})
    assert text.count("| a model |") == 2
    assert "| 1234567 | times as fast |" in text


def test_without_another_checkout_there_is_no_ratio(tmp_path: Path) -> None:
    rows = verdict.measure({"a model": CASE}, 2, {"this": make_checkout(tmp_path)})
    assert "times_as_fast" not in rows[0]
    assert "as fast" not in verdict.page({"rows": rows, "rounds": 2, "machine": machine()})


def test_a_wrong_verdict_is_not_timed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        verdict.measure({"a model": CASE}, 2, {"this": make_checkout(tmp_path, "equivalent")})


def test_what_needs_timm_is_left_out_aloud_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "timm:mixer_b16_224" in verdict.choose_cases(large=True)
    assert verdict.choose_cases(large=False) == verdict.CASES
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert verdict.choose_cases(large=True).keys() == {*verdict.CASES, "the digits checkpoint"}
    assert "timm is not installed" in capsys.readouterr().err
