"""The contract of a file format: `FileFormat`, `StoredArray`, and errors for damaged files.

Knows no single format and no layout. Start at `FileFormat`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mixer_equiv.arrays.lazy import Deferred
from mixer_equiv.errors import CheckpointError, MixerEquivError

Framework = Literal["flax", "torch"]

# The key of our metadata, which are text, in a file's own.
METADATA_KEY = "mixer_equiv"

Damage = tuple[type[Exception], ...]

# Exceptions by which a reader tells that bytes are damaged: a value that cannot be, or a read that fails or ends early.
# Any other exception is a bug of this package, and must not be taken for damage.
DAMAGE: Damage = (ValueError, OSError, EOFError)

# Further ones that `zipfile` raises: RuntimeError for members that are encrypted or compressed in some unknown way,
# OverflowError for offsets beyond all files.
ZIP_DAMAGE: Damage = (
    *DAMAGE,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    RuntimeError,
    OverflowError,
)

# For a call into a library alone, where that raises exceptions of every kind for damaged bytes.
ANY_DAMAGE: Damage = (Exception,)


class Contents(NamedTuple):
    """Arrays of a file by name, possibly nested, our metadata as text, None if it has none, and what was noticed.

    `computed` are settings of the modules that a file holds whole, such as {"activation": "gelu", "layer_norm_eps":
    1e-5}; a setting is left out where they have none, or do not agree.
    """

    arrays: Mapping[str, Any]
    metadata: str | None
    notes: tuple[str, ...] = ()
    computed: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class FileFormat:
    """One file format.

    `recognise` tells by the contents, not by the suffix, whether a path is of this format. `read` gives the
    contents, whose arrays may be `StoredArray`s; it raises `CheckpointError` in words of its own, or one of
    `damage`. `write` makes `path`, which does not exist yet: a file, or a directory where `is_directory` says
    so. A format of `several_files` replaces files at `path` itself, since no single rename can put all of them
    into place.
    """

    name: str
    suffixes: tuple[str, ...]
    recognise: Callable[[Path], bool]
    read: Callable[[Path], Contents]
    write: Callable[[Path, Mapping[str, np.ndarray], str, Framework], Any]
    is_directory: bool = False
    several_files: bool = False
    damage: Damage = DAMAGE


@dataclasses.dataclass(frozen=True, eq=False)
class StoredArray(Deferred):
    """An array in the file at `path`: shape and dtype are known, and its numbers are read each time it is used.

    `make` gives an array of just this shape and dtype, and raises one of `damage` where it cannot; for users that is a
    `CheckpointError`. `mapped`, where the file can be mapped, gives the array as a part of the mapping.
    `unverified`, where reading checks a CRC, reads without the check.
    """

    path: Path
    damage: Damage = DAMAGE
    mapped: Callable[[], np.ndarray] | None = None
    unverified: Callable[[], np.ndarray] | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with refuse_damage(self.path, self.damage):
            return super().__array__(dtype, copy)


# What the system may lack, whatever is in the file.
_OF_THE_SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@contextlib.contextmanager
def refuse_damage(path: Path, damage: Damage = DAMAGE) -> Iterator[None]:
    """Turn an exception that tells of damage into a `CheckpointError` of one sentence that names `path`.

    Where the system has no file descriptors left, the sentence says so. Errors of this package, a lack of memory, and
    exceptions that are none of `damage` pass as they are.
    """
    try:
        yield
    except (MixerEquivError, MemoryError):
        raise
    except damage as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
            raise CheckpointError(f"{path} cannot be read now: {error.strerror}") from error
        raise CheckpointError(
            f"{path} cannot be read: it is damaged or not a checkpoint ({_first_sentence(error)})"
        ) from error


def _first_sentence(error: Exception) -> str:
    sentence = " ".join(str(error).split()).partition(". ")[0]
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__


# Compressed pickles, which are read whole, may be as large as this, or this many times their size in the file.
MAX_INFLATED, MAX_RATIO = 2**28, 100


def read_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Read a whole member of a zip archive at `path`. Raises `CheckpointError` for one that is inflated too far."""
    if info.file_size > max(MAX_INFLATED, MAX_RATIO * info.compress_size):
        raise CheckpointError(
            f"{path} holds {info.filename!r} of {info.file_size} bytes compressed to {info.compress_size}; no weights "
            "can be compressed so far"
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others are not inflated in parts
        raise CheckpointError(f"{path} holds {info.filename!r} compressed in a way that no writer of weights uses")
    with archive.open(info) as member:
        return member.read(info.file_size)  # and not what there is, which may be more than the directory tells


def zip_names(path: Path) -> list[str]:
    """Names in a zip archive; none for a file that is no archive."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()
