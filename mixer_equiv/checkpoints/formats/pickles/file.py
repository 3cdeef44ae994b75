"""Pickled dicts of arrays (.pkl, .pickle), of NumPy, JAX or torch. Read, and never written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from mixer_equiv.checkpoints.formats.base import Contents, FileFormat, Framework
from mixer_equiv.checkpoints.formats.pickles.constructors import CONSTANTS, CONSTRUCTORS, JoblibError
from mixer_equiv.checkpoints.formats.pickles.machine import unpickle
from mixer_equiv.checkpoints.formats.pickles.tensors import Repetitions
from mixer_equiv.checkpoints.formats.pickles.tree import contents_of
from mixer_equiv.errors import CheckpointError

# Before it wrote zip files, torch.save began with this pickled integer, its magic number.
_LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")


def is_legacy(path: Path) -> bool:
    """Whether torch wrote this file before its version 1.6."""
    with path.open("rb") as stream:
        return stream.read(14).endswith(_LEGACY_MAGIC)


def _recognise(path: Path) -> bool:
    """Whether it begins as a pickle of protocol 2 or newer does, and ends as all do."""
    if not path.is_file() or is_legacy(path):
        return False
    with path.open("rb") as stream:
        begin = stream.read(2)
        stream.seek(max(path.stat().st_size - 1, 0))
        return len(begin) == 2 and begin[0] == 0x80 and 2 <= begin[1] <= 5 and stream.read(1) == b"."


def _read(path: Path) -> Contents:
    try:
        root = unpickle(path.read_bytes(), CONSTRUCTORS, CONSTANTS)
    except JoblibError as error:
        raise CheckpointError(f"{path} {error}") from error
    return contents_of(root, path, Repetitions().array_in_pickle)


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> NoReturn:
    raise CheckpointError(f"{path} cannot be written: pickles are read and not written")


PICKLE_FILE = FileFormat("pickle", (), _recognise, _read, _write)
