"""The driver of `make matrix` finds interpreters, says which are missing, and asks for the versions promised."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.matrix.__main__ import RUNS, main
from tests.matrix.environments import ROOT, TEST_TOOLS, Run, pinned_torch, requirements
from tests.matrix.interpreters import VERSIONS, MissingInterpreterError, find, version_of

OURS = sys.version_info[:2]


def fake(path: Path, answer: str) -> Path:
    """A program in the place of an interpreter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return path


def test_interpreters_are_found_on_path_and_in_pyenv_and_by_name(tmp_path: Path) -> None:
    idle = fake(tmp_path / "shims" / "python3.12", "exit 127")
    on_path = fake(tmp_path / "bin" / "python3.12", "echo cpython 3 12")
    in_pyenv = fake(tmp_path / "pyenv" / "versions" / "3.13.0" / "bin" / "python3.13", "echo cpython 3 13")
    named = fake(tmp_path / "elsewhere" / "python", "echo cpython 3 11")
    environment = {
        "PATH": f"{idle.parent}:{on_path.parent}",
        "PYENV_ROOT": str(tmp_path / "pyenv"),
        "MATRIX_PYTHONS": str(named),
    }
    assert find(environment) == {(3, 11): str(named), (3, 12): str(on_path), (3, 13): str(in_pyenv)}


def test_missing_interpreters_are_all_named(tmp_path: Path) -> None:
    fake(tmp_path / "python3.12", "echo cpython 3 12")
    with pytest.raises(MissingInterpreterError, match=r"^CPython 3\.11, 3\.13 with venv: not found") as caught:
        find({"PATH": str(tmp_path), "PYENV_ROOT": str(tmp_path)})
    assert "pyenv install 3.11 3.13" in str(caught.value)
    assert "MATRIX_PYTHONS='/path/to/python3.11'" in str(caught.value)


@pytest.mark.parametrize("answer", ["exit 1", "echo pypy 3 12", "echo cpython 3 9"])
def test_an_interpreter_that_is_named_and_does_not_serve_is_refused(tmp_path: Path, answer: str) -> None:
    named = fake(tmp_path / "python", answer)
    with pytest.raises(MissingInterpreterError, match=re.escape(str(named))):
        find({"PATH": "", "MATRIX_PYTHONS": str(named)})


def test_this_interpreter_has_its_version() -> None:
    assert version_of(sys.executable) == OURS
    assert version_of("/nowhere/python3") is None


def test_a_missing_interpreter_ends_the_command_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PATH", "PYENV_ROOT"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("MATRIX_PYTHONS", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["--only", "3.13"])
    assert caught.value.code == 2
    assert "CPython 3.13 with venv: not found" in capsys.readouterr().err


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_tests_of_a_run_exist(run: Run) -> None:
    assert [test for test in run.tests if not (ROOT / test).exists()] == []


def test_the_versions_are_those_that_the_package_claims() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    claimed = re.findall(r'"Programming Language :: Python :: (3)\.(\d+)"', text)
    assert [(int(major), int(minor)) for major, minor in claimed] == list(VERSIONS)
    assert f'requires-python = ">={VERSIONS[0][0]}.{VERSIONS[0][1]}"' in text


def test_every_dependency_has_a_lower_bound() -> None:
    lines = requirements(frameworks=True)
    assert len(lines) >= 10 + len(TEST_TOOLS)
    assert [line for line in lines if not re.match(r"[\w-]+>=\d[\w.]*(;|$)", line)] == []
    assert re.match(r"\d+\.\d+", pinned_torch())
