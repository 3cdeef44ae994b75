"""A file of any format: the one that its bytes tell, else the one that its suffix names. Start at `read_file`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mixer_equiv.checkpoints.formats.base import Contents, FileFormat, refuse_damage
from mixer_equiv.checkpoints.formats.msgpack import MSGPACK
from mixer_equiv.checkpoints.formats.no_checkpoint import refusal
from mixer_equiv.checkpoints.formats.npy import NPY
from mixer_equiv.checkpoints.formats.npz import NPZ
from mixer_equiv.checkpoints.formats.pickles.file import PICKLE_FILE
from mixer_equiv.checkpoints.formats.safetensors import SAFETENSORS
from mixer_equiv.checkpoints.formats.torch_zip import TORCH_ZIP
from mixer_equiv.errors import CheckpointError

FILE_FORMATS = (NPZ, SAFETENSORS, TORCH_ZIP, PICKLE_FILE, NPY, MSGPACK)


def recognised(path: Path, formats: Iterable[FileFormat]) -> FileFormat | None:
    """The first of `formats` that knows the contents of `path` for its own; None if none does."""
    formats = list(formats)
    damage = tuple({error for file_format in formats for error in file_format.damage})
    with refuse_damage(path, damage):
        return next((known for known in formats if known.recognise(path)), None)


def by_suffix(path: Path, formats: Iterable[FileFormat]) -> FileFormat | None:
    """The first of `formats` whose suffix `path` has; None if none is."""
    return next((known for known in formats if known.suffixes and path.name.lower().endswith(known.suffixes)), None)


def read_file(path: Path) -> Contents:
    """Read one file; arrays are read when they are used. Raises `CheckpointError`."""
    file_format = recognised(path, FILE_FORMATS)
    if file_format is None and (words := refusal(path)):
        raise CheckpointError(words)
    # A file of no known contents, such as one that was cut, gets the error of the format that it should be.
    file_format = file_format or by_suffix(path, FILE_FORMATS) or SAFETENSORS
    with refuse_damage(path, file_format.damage):
        return file_format.read(path)
