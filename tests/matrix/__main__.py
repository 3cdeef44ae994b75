"""`python -m tests.matrix`: test the wheel on every supported Python, and on the oldest supported dependencies.

Each run has an environment of its own and sees the installed wheel, never the source tree. A missing interpreter is an
error: nothing is skipped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.matrix.environments import ROOT, InstallationError, Run, clean_environment, make, pinned_torch
from tests.matrix.interpreters import VERSIONS, MissingInterpreterError, find
from tests.support.wheel import build_wheel

BASE = (
    "tests/matrix/test_base_install.py",
    "tests/test_config.py",
    "tests/layouts/test_layouts.py",
    "tests/layouts/test_tables.py",
    "tests/checkpoints/test_relabel.py",
    "tests/equivalence/test_policy.py",
    "tests/testing/test_strategies.py",
)
FRAMEWORKS = (
    "tests/matrix/test_base_install.py",
    "tests/checkpoints/formats",
    "tests/models/test_models.py",
    "tests/models/test_nnx.py",
    "tests/equivalence/test_verify.py",
)
OLDEST = VERSIONS[0]
RUNS = (
    *(Run(version, BASE) for version in VERSIONS),
    Run(OLDEST, BASE, lowest=True),
    Run(OLDEST, FRAMEWORKS, lowest=True, frameworks=True),
)


def tested(run: Run, interpreter: str, wheel: Path, source: Path, torch: str) -> bool:
    """Whether the tests of `run` pass in a new environment; prints what happens and how long it takes."""
    print(f"\n== {run.name}: {interpreter}", flush=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            python = make(run, interpreter, wheel, Path(folder), torch)
        except InstallationError as error:
            print(f"FAILED to install: {error}")
            return False
        installed = time.perf_counter()
        passed = subprocess.run(_pytest(python, run), cwd=source, env=clean_environment(), check=False).returncode == 0
    end = time.perf_counter()
    print(
        f"{'passed' if passed else 'FAILED'}: installed in {installed - start:.0f} s, tested in {end - installed:.0f} s"
    )
    return passed


def _pytest(python: Path, run: Run) -> list[str]:
    options = ["-q", "-p", "no:cacheprovider", "-n", "auto", "--maxprocesses=4"]
    if run.lowest:  # old packages call what newer ones have deprecated since
        options += ["-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning"]
    return [str(python), "-m", "pytest", *options, *run.tests]


def _tests_alone(folder: Path) -> None:
    """Copy the tests, and the benchmarks that they use, to where the package is not beside them."""
    for name in ("tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--torch", default=pinned_torch(), metavar="VERSION", help="default: as in constraints.txt")
    parser.add_argument("--only", default="", metavar="TEXT", help="runs whose name has this, such as 3.13 or lowest")
    options = parser.parse_args(arguments)
    chosen = [run for run in RUNS if options.only in run.name]
    if not chosen:
        parser.error(f"no run has {options.only!r} in its name: {'; '.join(run.name for run in RUNS)}")
    try:
        interpreters = find(os.environ, sorted({run.python for run in chosen}))
    except MissingInterpreterError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as folder:
        built, source = Path(folder) / "built", Path(folder) / "tests"
        built.mkdir()
        source.mkdir()
        wheel = build_wheel(built)
        _tests_alone(source)
        results = {run.name: tested(run, interpreters[run.python], wheel, source, options.torch) for run in chosen}
    print()
    for name, passed in results.items():
        print(f"{'passed' if passed else 'FAILED'}  {name}")
    failed = list(results.values()).count(False)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
