"""Write files so that a reader sees the old ones or the new ones, whole, and nothing between.

Knows nothing of checkpoints. Start at `replacement` for one path and at `replacements` for several files together.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from mixer_equiv.errors import CheckpointError, MixerEquivError


@contextlib.contextmanager
def replacement(path: Path, *, force: bool = True, fsync: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`, which is renamed to `path` at the end, or removed if anything fails.

    The old file or directory gives way only once the new one is whole, with `fsync` only once the disk has
    it, and passes its permissions on. A symbolic link is followed. Raises `CheckpointError` for an existing
    path without `force`, for a path that the system does not let be written, and for a file that would
    replace a directory, a pipe or a device.
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
        move(temporary, path, force=force)
        if fsync:
            flush(path.parent, below=False)
    except BaseException as error:
        if os.path.lexists(old) and not os.path.lexists(path):
            os.replace(old, path)
        raise_if_unwritable(path, error)
        raise
    finally:
        remove(temporary)
        if os.path.lexists(path):
            remove(old)


@contextlib.contextmanager
def replacements(path: Path, old: list[Path], fsync: bool) -> Iterator[Path]:
    """Give a temporary directory, whose files at the end replace the `old` files beside `path`, the index last.

    The old files are put aside first, so that no reader ever finds an index with shards of another. The new
    files get the permissions of the last old one. If anything fails, every old file is put back.
    """
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
    new, aside = temporary / "new", temporary / "old"
    moves: list[tuple[Path, Path]] = []
    done = False
    try:
        for folder in (temporary, new, aside):
            folder.mkdir()
        yield new
        if fsync:
            flush(new)
        made = sorted(new.iterdir(), key=lambda file: file.suffix.lower() == ".json")
        for file in made if old and old[-1].exists() else ():
            file.chmod(stat.S_IMODE(old[-1].stat().st_mode))
        moves = [(file, aside / file.name) for file in old] + [(file, path.with_name(file.name)) for file in made]
        for source, target in moves:
            move(source, target, force=target.parent == aside)
        done = True
        if fsync:
            flush(path.parent, below=False)
    except BaseException as error:
        for source, target in reversed(moves):
            if not os.path.lexists(source) and os.path.lexists(target):
                os.replace(target, source)
            elif os.path.exists(target) and os.path.samefile(source, target):  # linked, but not yet unlinked
                target.unlink()
        raise_if_unwritable(path, error)
        raise
    finally:
        if done or not any(aside.glob("*")):  # old files that could not be put back have their only copy there
            remove(temporary)


def raise_if_unwritable(path: Path, error: BaseException) -> None:
    """Raise a `CheckpointError` for an error of the system.

    A `CheckpointError` is an OSError as well, and may come from reading the arrays that are written.
    """
    if isinstance(error, OSError) and not isinstance(error, MixerEquivError):
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error


def move(source: Path, target: Path, *, force: bool) -> None:
    """Rename a file or a directory; without `force`, only to a path where nothing stands.

    Raises `CheckpointError` if something has appeared there.
    """
    if force:
        os.replace(source, target)
        return
    try:
        if source.is_dir():
            os.rename(source, target)
        else:
            _rename_to_free_path(source, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise CheckpointError(f"{target} appeared meanwhile; pass force=True (--force) to replace it") from error
        raise


def _rename_to_free_path(source: Path, target: Path) -> None:
    """Rename a file without ever replacing one. On file systems without hard links, the check and the rename are two.

    `os.rename` replaces; `os.link` fails where something stands.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.EEXIST or os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.rename(source, target)
    else:
        source.unlink()


def flush(path: Path, *, below: bool = True) -> None:
    """Wait until the disk has a file, or a directory and, with `below`, everything in it."""
    for part in [*(path.rglob("*") if below else ()), path]:
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a directory if it exists and can be deleted."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def left_aside(folder: Path) -> str:
    """Say where a killed replacement left old files, as the end of an error's sentence; "" if there are none."""
    found = [str(aside) for aside in sorted(folder.glob(".*.tmp/old")) if any(aside.glob("*"))]
    return f"; old ones, which a replacement that was killed put aside, are in {' and '.join(found)}" * bool(found)
