"""What a file format is: how it is recognised, read and written."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import secrets
import shutil
import stat
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
class Container:
    """One file format.

    `read` gives the arrays by name, possibly nested, and our metadata if there are any. Arrays may
    be `LazyArray`s. `write` makes `path`, which does not exist yet: a file, or a directory where
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
class LazyArray:
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


@contextlib.contextmanager
def replacing(path: Path, *, force: bool = True, fsync: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end, and gone if anything fails.

    What stands at `path` gives way to the new only once that is whole, with `fsync` once the disk has it, and
    leaves it its permissions; a symbolic link is followed; without `force` nothing gives way. Raises `CheckpointError`
    then, where the system does not let it be written, and for a file where a directory or a device is.
    """
    path = Path(os.path.realpath(path))
    temporary, old = (path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.{end}") for end in ("tmp", "old"))
    try:
        yield temporary
        if path.exists() and not path.is_file() and not path.is_dir():
            raise CheckpointError(f"{path} is a pipe or a device, and is not replaced; give the name of a file")
        if path.is_dir() and not temporary.is_dir():
            raise CheckpointError(f"{path} is a directory, and what is written is a file; give the name of one")
        if path.exists():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        if fsync:
            flush(temporary)
        if force and path.is_dir():
            os.replace(path, old)
        put(temporary, path, force=force)
        if fsync:
            flush(path.parent, below=False)
    except BaseException as error:
        if os.path.lexists(old) and not os.path.lexists(path):
            os.replace(old, path)
        # What could not be read is an error of ours already, be it an OSError too.
        if isinstance(error, OSError) and not isinstance(error, MixerEquivError):
            raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error
        raise
    finally:
        remove(temporary)
        if os.path.lexists(path):
            remove(old)


def put(source: Path, target: Path, *, force: bool) -> None:
    """Rename a file or a directory; without `force`, only where there is nothing.

    Raises `CheckpointError` for what appeared there since that was looked at.
    """
    if force:
        os.replace(source, target)
        return
    try:
        if source.is_dir():
            os.rename(source, target)
        else:
            _linked(source, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise CheckpointError(f"{target} appeared meanwhile; pass force=True (--force) to replace it") from error
        raise


def _linked(source: Path, target: Path) -> None:
    """A rename that never replaces, on file systems that have links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.EEXIST or os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.rename(source, target)
    else:
        source.unlink()


def flush(path: Path, *, below: bool = True) -> None:
    """Wait until the disk has a file, or a directory and, unless not `below`, all that is in it."""
    for part in [*(path.rglob("*") if below else ()), path]:
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a directory, if it is there and can be deleted."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def zip_names(path: Path) -> list[str]:
    """Names in a zip archive, none for a file that is not one."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()
