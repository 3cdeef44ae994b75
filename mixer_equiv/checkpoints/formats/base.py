"""What a file format is: how it is recognised, read and written."""

from __future__ import annotations

import contextlib
import dataclasses
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mixer_equiv.errors import CheckpointError, MixerEquivError

Framework = Literal["flax", "torch"]

# Where a file's metadata holds ours, as JSON.
METADATA_KEY = "mixer_equiv"


@dataclasses.dataclass(frozen=True)
class FileFormat:
    """One file format.

    `read` gives the arrays by name, possibly nested, and our metadata if there are any. Arrays may
    be `StoredArray`s. `write` makes `path`, which does not exist yet: a file, or a directory where
    `is_directory` says so. A format of `several_files` sees to what stands at `path` itself, since
    no one rename puts all of them into place.
    """

    name: str
    suffixes: tuple[str, ...]
    recognise: Callable[[Path], bool]
    read: Callable[[Path], tuple[Mapping[str, Any], str | None]]
    write: Callable[[Path, Mapping[str, np.ndarray], str, Framework], Any]
    is_directory: bool = False
    several_files: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class StoredArray:
    """An array in a file: shape and dtype are known, and the numbers are read when NumPy asks for them.

    `read` gives an array of just this shape and dtype. What it raises becomes a `CheckpointError`.
    `mapped`, where the file can be mapped, gives the same as a part of the mapping, and `unverified`,
    where reading checks a CRC, without the check.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    mapped: Callable[[], np.ndarray] | None = None
    unverified: Callable[[], np.ndarray] | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with reading(self.path):
            return np.asarray(self.read(), dtype)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What parsers raise on damaged input, which is almost anything, becomes a `CheckpointError`."""
    try:
        yield
    except MixerEquivError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read: it is damaged or not a checkpoint ({_first_sentence(error)})"
        ) from error


def _first_sentence(error: Exception) -> str:
    sentence = " ".join(str(error).split()).partition(". ")[0]
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__


def zip_names(path: Path) -> list[str]:
    """Names in a zip archive, none for a file that is not one."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()
