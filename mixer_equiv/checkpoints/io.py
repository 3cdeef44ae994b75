"""`load` and `save`: checkpoints in files of every format.

Knows no single format: `formats` finds the one of a path. Start at `load`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mixer_equiv.arrays.lazy import as_lazy
from mixer_equiv.atomic import replacement
from mixer_equiv.checkpoints import formats, metadata, origin
from mixer_equiv.checkpoints.checkpoint import Checkpoint, as_checkpoint
from mixer_equiv.checkpoints.renaming import rename_prefixes
from mixer_equiv.checkpoints.validate import check_writable
from mixer_equiv.config import MixerConfig, Size
from mixer_equiv.errors import CheckpointError
from mixer_equiv.layouts import Conventions, Layout


def load(
    path: str | os.PathLike[str],
    *,
    layout: str | Layout | None = None,
    config: MixerConfig | None = None,
    image_size: Size | None = None,
    trained_with: Conventions | None = None,
    prefix: str | None = None,
    ignore: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
    step: int | None = None,
    lazy: bool = False,
    mmap: bool = False,
    verify: bool = True,
) -> Checkpoint:
    """Read a checkpoint: npz, safetensors (also sharded), .pt, a pickle, msgpack, a folder of Orbax or of torch's DCP.

    The layout is detected unless given. `image_size`, in pixels, is what shapes cannot tell;
    without it the squarest grid is assumed and noted. `trained_with` are the conventions that the
    weights need, where nothing in the file, its modules or its name says them. `prefix`, such as "ema", tells
    which of several sets of weights in one file is meant. `ignore` has globs of names that are left
    out, such as "text.*", and `rename` parts of names with what they are called instead, such as
    {"classifier": "head"}. `step` chooses one of several steps in a folder, of which else the last is read.
    With `lazy` an array is read whenever it is
    used, and `specs`, `config` and all else without reading any. Without `verify`, the CRCs of an npz
    are not checked.

    With `mmap` the arrays are parts of the mapped file. Pages are read when they are used, and are private
    memory once they are written to: the file stays as it is, and must not be changed meanwhile. CRCs
    are not checked. Arrays that cannot be mapped (compressed npz, Orbax, big-endian numbers) are read.

    Raises `CheckpointError` for a file that cannot be read, `LayoutError` for arrays of no known
    layout, and `ConfigError` for an image size of another number of tokens.
    """
    path = Path(path) if step is None else formats.path_of_step(Path(path), step)
    contents = formats.read(path, mmap=mmap, verify=verify)
    fields = metadata.from_json(contents.metadata, str(path))
    called, computed = origin.names_of(path), origin.conventions_of(contents.computed or {})
    notes = contents.notes
    if trained_with is None and config is None and not metadata.Metadata(fields, str(path)).states_trained_with:
        trained_with, notes = computed.conventions, (*notes, *computed.notes)
        notes = notes if trained_with else (*notes, *called.notes)
    return Checkpoint.from_arrays(
        contents.arrays,
        layout=layout,
        config=config,
        image_size=image_size,
        trained_with=trained_with,
        prefix=prefix,
        ignore=ignore,
        rename=rename,
        lazy=lazy,
        source=str(path),
        metadata=fields,
        called=called.names,
        notes=notes,
    )


def save(
    checkpoint: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    max_shard_size: int | str | None = None,
    rename_prefix: Mapping[str, str] | None = None,
    fsync: bool = False,
) -> Path:
    """Write a checkpoint, in the format that the suffix names, with its layout and config as metadata.

    A mapping that is no `Checkpoint` is made one by `Checkpoint.from_arrays`, and must fill its
    layout; arrays beside a nested prefix in it are not written. The file is written beside the
    target and renamed, so that the target is never half written. An existing target is kept unless
    `force`, and passes its permissions on; a symbolic link is followed. safetensors of more than
    `max_shard_size` bytes ("5GB") are split into shards with an index, as Hugging Face does; so are those
    whose path is an index. `rename_prefix` changes how names begin on their way into the file:
    {"": "backbone."} puts a prefix before all of them, {"head.": "fc."} renames one module. With `fsync`
    the disk has the file before the target gives way to it.

    npz, safetensors and shards are written array by array, and msgpack too, with a few copies of one. Of a
    lazy checkpoint no more than three arrays are then in memory, and the arrays from which these are cast.
    .pt and Orbax need all arrays at once.

    Returns the path by which to read it. Raises `CheckpointError` if it cannot be written.
    """
    given, path = Path(path), Path(os.path.realpath(path))
    file_format = check_target(path, force=force, max_shard_size=max_shard_size)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = as_checkpoint(checkpoint)
        checkpoint.check()
    check_writable(checkpoint.layout)
    arrays = as_lazy(checkpoint.whole).rename(rename_prefixes(checkpoint.whole, rename_prefix or {}))
    written = arrays, _metadata_of(checkpoint), checkpoint.layout.framework
    if file_format.several_files or max_shard_size is not None:
        limit = formats.parse_size(max_shard_size)
        path = formats.write_sharded(path, *written, limit, force=force, fsync=fsync)
    else:
        with replacement(path, force=force, fsync=fsync) as temporary:
            file_format.write(temporary, *written)
    return path if given.is_symlink() else given.with_name(path.name)


def path_to_read(checkpoint: Checkpoint, path: Path, max_shard_size: int | str | None = None) -> Path:
    """The path that `save` would return: that of the index if there would be shards."""
    if not formats.format_by_suffix(path).several_files and max_shard_size is None:
        return path
    return path.with_name(formats.sharded_path(path, checkpoint.whole, formats.parse_size(max_shard_size)).name)


def check_target(path: Path, *, force: bool, max_shard_size: int | str | None = None) -> formats.FileFormat:
    """The format in which `save` writes `path`. Raises `CheckpointError` for whatever would make it fail."""
    file_format = formats.format_by_suffix(path)
    if max_shard_size is not None:
        formats.parse_size(max_shard_size)
        if not path.name.lower().endswith((".safetensors", ".safetensors.index.json")):
            raise CheckpointError(f"{path} cannot be sharded; only safetensors are")
    if (part := formats.part_of(path)) is not None:
        raise CheckpointError(
            f"{path} has the name of part {part.number} of {part.total}, as which it would be read; give another name"
        )
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error
    if path.is_dir() and not file_format.is_directory:
        raise CheckpointError(f"{path} is a directory; give the name of a file")
    if path.exists() and not force:
        raise CheckpointError(f"{path} exists; pass force=True (--force) to replace it")
    if path.exists() and not formats.is_replaceable(path, file_format):
        raise CheckpointError(f"{path} exists and is no {file_format.name} checkpoint, so it is not replaced")
    index = path.with_name(f"{path.name}.index.json")
    if max_shard_size is None and os.path.exists(index):  # which no name is too long for
        raise CheckpointError(f"{index} is a sharded checkpoint of this name; choose another, or remove it first")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path} cannot be written: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise CheckpointError(f"{path} cannot be written: no permission to write in {path.parent}")
    return file_format


def _metadata_of(checkpoint: Checkpoint) -> str:
    return metadata.to_json(
        checkpoint.layout.name,
        checkpoint.config,
        checkpoint.trained_with,
        image_size_is_assumed=checkpoint.image_size_is_assumed,
        assumed_from=checkpoint.assumed_from,
    )
