"""Make a virtual environment for one run of the matrix: the wheel, its dependencies, and pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.matrix.interpreters import Version

ROOT = Path(__file__).parent.parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
FRAMEWORKS = "torch", "jax", "flax"
TEST_TOOLS = "pytest", "pytest-xdist", "hypothesis"  # of the extra "test"; the rest of it serves the whole suite


@dataclass(frozen=True)
class Run:
    """One environment and the tests that run in it."""

    python: Version
    tests: tuple[str, ...]
    lowest: bool = (
        False  # every dependency at the lower bound in pyproject.toml, else at the version in constraints.txt
    )
    frameworks: bool = False

    @property
    def name(self) -> str:
        versions = "lowest versions" if self.lowest else "pinned versions"
        return (
            f"Python {self.python[0]}.{self.python[1]}, {versions}, {'torch and flax' if self.frameworks else 'base'}"
        )


class InstallationError(Exception):
    """The message is the output of the command that failed."""


def make(run: Run, interpreter: str, wheel: Path, folder: Path, torch: str) -> Path:
    """Return the interpreter of a new environment in `folder`. Runs with frameworks get this version of torch."""
    _command([interpreter, "-m", "venv", str(folder)])
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if run.lowest:
        versions = folder / "lowest.txt"
        versions.write_text(_lowest(requirements(frameworks=run.frameworks), run.python))
        _command([*pip, "-r", str(versions)])
    else:
        versions = CONSTRAINTS
        _command([*pip, "-c", str(versions), *requirements(frameworks=run.frameworks)])
    if run.frameworks:
        _command([*pip, "-c", str(versions), f"torch=={torch}"])
    _command([*pip, "--no-deps", str(wheel)])
    _command([str(python), "-m", "pip", "check"])
    present = f"import importlib.util as u; print(*[name for name in {FRAMEWORKS} if u.find_spec(name)])"
    expected = FRAMEWORKS if run.frameworks else ()
    if tuple(_command([str(python), "-c", present]).split()) != expected:
        raise InstallationError(f"{run.name}: expected the frameworks {expected}, and these alone")
    return python


def requirements(*, frameworks: bool) -> list[str]:
    """Return the dependencies in pyproject.toml with pytest and its tools. torch is installed apart from the others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tools = [line for line in extras["test"] if re.split(r"[^\w-]", line)[0] in TEST_TOOLS]
    return [*project["dependencies"], *tools, *(extras["flax"] if frameworks else ())]


def pinned_torch() -> str:
    """Return the version of torch in constraints.txt."""
    (version,) = re.findall(r"^torch==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    return str(version)


def clean_environment() -> dict[str, str]:
    """Return the environment variables without those that would let Python import the source tree."""
    return {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }


def _lowest(lines: Sequence[str], python: Version) -> str:
    """Return exact versions: the lowest that fit for `lines`, the newest that fit for everything they depend on."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--resolution", "lowest-direct"]
    return _command([*command, "--python-version", f"{python[0]}.{python[1]}", "-"], given="\n".join(lines))


def _command(words: Sequence[str], given: str | None = None) -> str:
    done = subprocess.run(
        words, input=given, capture_output=True, text=True, env=clean_environment(), cwd=ROOT.parent, check=False
    )
    if done.returncode:
        raise InstallationError(f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout
