"""Internal. File formats: a reader and a writer of named arrays each, found by contents or by suffix.

A checkpoint is a file, a directory of Orbax or of torch.distributed.checkpoint, or files with an index and the folder
that holds them. Pickles are read by a machine of our own. Knows no layout. Start at `read`, and at `base.FileFormat`
for a new format.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixer_equiv.checkpoints.formats import folders, ranks, shard_sets
from mixer_equiv.checkpoints.formats.base import Contents, FileFormat, StoredArray, refuse_damage
from mixer_equiv.checkpoints.formats.dcp.folder import DCP
from mixer_equiv.checkpoints.formats.no_checkpoint import address_refusal, refusal
from mixer_equiv.checkpoints.formats.orbax import ORBAX, is_item
from mixer_equiv.checkpoints.formats.shard_sets import part_of
from mixer_equiv.checkpoints.formats.sharded import SHARDED, parse_size, sharded_path, write_sharded
from mixer_equiv.checkpoints.formats.single import FILE_FORMATS, by_suffix, recognised
from mixer_equiv.checkpoints.formats.steps import path_of_step, step_to_type, steps_in
from mixer_equiv.errors import CheckpointError, summarize

# A part of a folder of DCP may look like a file of another format.
FORMATS = (DCP, *FILE_FORMATS, ORBAX, SHARDED)
SUFFIXES = tuple(suffix for file_format in FORMATS for suffix in file_format.suffixes)

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "Contents",
    "FileFormat",
    "StoredArray",
    "format_by_suffix",
    "is_replaceable",
    "parse_size",
    "part_of",
    "path_of_step",
    "read",
    "sharded_path",
    "write_sharded",
]


def read(path: Path, *, mmap: bool = False, verify: bool = True) -> Contents:
    """Read the contents of `path`. Its bytes tell the format; the suffix counts only where they do not.

    With `mmap`, arrays are parts of the mapped file where they can be; without `verify`, CRCs are not checked.
    Raises `CheckpointError` for a file that is missing, truncated, junk or of no known format,
    and `MissingDependencyError` for .orbax without Orbax, and without torch for .pt from before torch 1.6.
    """
    if not os.path.exists(path):  # False, too, for a name that is too long
        raise CheckpointError(address_refusal(path) or f"{path} does not exist")
    if not path.is_file() and not path.is_dir():
        raise CheckpointError(
            f"{path} is a pipe or a device; a checkpoint is a file, whose parts are read in any order"
        )
    file_format = recognised(path, FORMATS) or _by_suffix(path)
    with refuse_damage(path, file_format.damage):
        contents = shard_sets.read_set_of(path) if file_format in FILE_FORMATS else None
        contents = contents or file_format.read(path)
        contents = contents._replace(notes=(*contents.notes, *ranks.notes_on(path)))
        if mmap or not verify:
            return contents._replace(arrays=_map_stored(contents.arrays, _mapped if mmap else _unverified))
        return contents


def _map_stored(tree: Mapping[str, Any], change: Callable[[StoredArray], Any]) -> dict[str, Any]:
    """Apply `change` to the stored arrays of a tree; all other leaves stay as they are."""
    result = dict(tree)
    for key, value in tree.items():
        if isinstance(value, Mapping):
            result[key] = _map_stored(value, change)
        elif isinstance(value, StoredArray):
            result[key] = change(value)
    return result


def _mapped(leaf: StoredArray) -> np.ndarray | StoredArray:
    return leaf if leaf.mapped is None else leaf.mapped()


def _unverified(leaf: StoredArray) -> StoredArray:
    return leaf if leaf.unverified is None else dataclasses.replace(leaf, make=leaf.unverified)


def format_by_suffix(path: Path) -> FileFormat:
    """The format that `path`'s suffix names. Raises `CheckpointError` for an unknown suffix."""
    if (file_format := by_suffix(path, FORMATS)) is not None:
        return file_format
    raise CheckpointError(f"{path} has the suffix {path.suffix!r}; a checkpoint is one of {', '.join(SUFFIXES)}")


def is_replaceable(path: Path, file_format: FileFormat) -> bool:
    """Whether a checkpoint of `file_format` may replace `path`: a file, or for Orbax a tree that Orbax saved."""
    return is_item(path) if file_format.is_directory else path.is_file()


def _by_suffix(path: Path) -> FileFormat:
    if path.is_dir():
        steps = {entry: step for entry, step in steps_in(path).items() if recognised(entry, FORMATS)}
        if typed := step_to_type(path, steps):
            shown = summarize([str(step) for step in sorted(steps.values())], shown=12)
            raise CheckpointError(f"{path} is a directory of the steps {shown}; say which with {typed}")
        files = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
        if len(files) == 1 and (words := refusal(files[0])):
            raise CheckpointError(words)
        raise CheckpointError(
            f"{path} is a directory; a checkpoint is a file ({', '.join(SUFFIXES)}), a directory of Orbax or of "
            "torch.distributed.checkpoint, or a folder with one of them, and this one holds "
            f"{folders.contents_in_words(path)}"
        )
    if words := refusal(path):
        raise CheckpointError(words)
    try:
        return format_by_suffix(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}, and its contents are none of them either") from None
