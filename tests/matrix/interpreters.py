"""Find the CPython interpreters on which the wheel is tested."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

Version = tuple[int, int]

VERSIONS: tuple[Version, ...] = ((3, 11), (3, 12), (3, 13))

# Debian splits ensurepip off; without it no virtual environment can be made.
_QUESTION = "import ensurepip, sys; print(sys.implementation.name, *sys.version_info[:2])"


class MissingInterpreterError(Exception):
    """The message lists every interpreter that is missing, and ways to supply it."""


def find(environment: Mapping[str, str], versions: Iterable[Version] = VERSIONS) -> dict[Version, str]:
    """Return an interpreter for each version: from MATRIX_PYTHONS, else from PATH, else from pyenv.

    Raises `MissingInterpreterError` if one is missing, or if MATRIX_PYTHONS names anything else.
    """
    wanted = list(versions)
    named = {path: version_of(path) for path in environment.get("MATRIX_PYTHONS", "").split()}
    useless = [path for path, version in named.items() if version not in wanted]
    if useless:
        raise MissingInterpreterError(f"MATRIX_PYTHONS names no CPython {_listed(wanted)} with venv: {useless}")
    found = {version: path for path, version in named.items() if version is not None}
    for version in wanted:
        path = found.get(version) or next(_installed(version, environment), None)
        if path is not None:
            found[version] = path
    missing = [version for version in wanted if version not in found]
    if missing:
        raise MissingInterpreterError(
            f"CPython {_listed(missing)} with venv: not found on PATH or in {_pyenv(environment)}. Install it, for "
            f"instance with `pyenv install {' '.join(map(_dotted, missing))}`, or name it by its path: "
            f"make matrix MATRIX_PYTHONS='/path/to/python{_dotted(missing[0])}'"
        )
    return {version: found[version] for version in wanted}


def version_of(path: str) -> Version | None:
    """Return the version of a CPython that runs and has venv; None for anything else, such as an idle pyenv shim."""
    try:
        done = subprocess.run([path, "-c", _QUESTION], capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return None
    match done.stdout.split():
        case ["cpython", major, minor] if done.returncode == 0:
            return int(major), int(minor)
    return None


def _installed(version: Version, environment: Mapping[str, str]) -> Iterator[str]:
    folders = [Path(folder) for folder in environment.get("PATH", "").split(os.pathsep) if folder]
    folders += sorted(_pyenv(environment).glob(f"{_dotted(version)}.*/bin"))
    for folder in folders:
        path = folder / f"python{_dotted(version)}"
        if path.exists() and version_of(str(path)) == version:
            yield str(path)


def _pyenv(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _listed(versions: Iterable[Version]) -> str:
    return ", ".join(map(_dotted, versions))
