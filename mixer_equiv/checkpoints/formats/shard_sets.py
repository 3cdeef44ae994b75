"""Checkpoints in several files, with an index or by numbers in their names.

Start at `read_by_index` for an index, and at `read_set_of` for a file. `folders` finds the set in a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mixer_equiv import atomic
from mixer_equiv.checkpoints.formats.base import METADATA_KEY, Contents
from mixer_equiv.checkpoints.formats.ranks import refuse_ranks
from mixer_equiv.checkpoints.formats.single import read_file
from mixer_equiv.errors import CheckpointError, summarize

INDEX_SUFFIX = ".index.json"

# "model-00001-of-00002.safetensors": part 1 of 2.
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{1,9})-of-(?P<count>\d{1,9})(?P<suffix>\.\w+)")

# An index is no longer; that of a model of 10^5 arrays has 10 MB.
_LONGEST_INDEX = 100_000_000

_AGAIN = "the index is of other files, so get all of them again"


class Index(NamedTuple):
    """The shard of each array, and our metadata."""

    weight_map: dict[str, str]
    metadata: str | None


class Part(NamedTuple):
    """A file's place in a set, by its name: the `number`th of `total` files of one stem."""

    stem: str
    number: int
    total: int

    def is_of_set(self, other: Part) -> bool:
        return (self.stem, self.total) == (other.stem, other.total)


def part_of(path: Path) -> Part | None:
    """The place in a set that the name of `path` tells; None for a file that is the only one."""
    match = _PART.fullmatch(path.name)
    if match is None or int(match["count"]) < 2:
        return None
    return Part(match["stem"], int(match["number"]), int(match["count"]))


def is_index(path: Path) -> bool:
    """Whether a file is an index, by its name or by how it begins."""
    if is_named_as_index(path):
        return path.is_file()
    with path.open("rb") as stream:
        return stream.read(1) == b"{" and b'"weight_map"' in stream.read(2**20)


def is_named_as_index(path: Path) -> bool:
    """Whether a path has the name of an index."""
    return path.name.lower().endswith(INDEX_SUFFIX)


def read_index(path: Path) -> Index:
    """Read an index. Raises `CheckpointError`."""
    expected = 'expected {"metadata": {...}, "weight_map": {"name": "shard.safetensors", ...}}'
    if path.stat().st_size > _LONGEST_INDEX:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes; no index has more than {_LONGEST_INDEX}")
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); {expected}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{path} has no weight_map of names to files; {expected}")
    if not weight_map:
        raise CheckpointError(f"{path} has an empty weight_map, so it names no arrays; {expected}")
    metadata = index.get("metadata")
    ours = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    return Index(weight_map, ours if isinstance(ours, str) else None)


def read_set_of(path: Path) -> Contents | None:
    """Read all files of the set that the file `path` is one of; None for a file that is a whole checkpoint."""
    refuse_ranks(path)
    index, part = _index_that_names(path), part_of(path)
    if index is not None:
        note = f"{path.name} is one of the files of {index.name}, all of which were read"
        contents = read_by_index(index)
    elif part is not None:
        note = f"{path.name} is part {part.number} of {part.total}, all of which were read"
        contents = read_parts(all_parts(path, part))
    else:
        return None
    return contents._replace(notes=(*contents.notes, note))


def _index_that_names(path: Path) -> Path | None:
    """The index beside a file that names it among others."""
    for index in sorted(path.parent.glob(f"*{INDEX_SUFFIX}")):
        shards = shards_named_by(index)
        if path.name in shards and len(shards) > 1:
            return index
    return None


# By an index


def shards_named_by(index: Path) -> set[str]:
    """The files that an index names; none for one that is damaged, of which whoever asks for it is told."""
    try:
        return set(read_index(index).weight_map.values()) if index.is_file() else set()
    except (CheckpointError, OSError):
        return set()


def read_by_index(path: Path) -> Contents:
    """Read all files that an index names. Raises `CheckpointError`."""
    weight_map, metadata = read_index(path)
    names = check_shards(path, set(weight_map.values()))
    read = {shard: _read_shard(path, shard) for shard in names}
    shards = {shard: contents.arrays for shard, contents in read.items()}
    absent = [f"{name} in {shard}" for name, shard in weight_map.items() if name not in shards[shard]]
    if absent:
        raise CheckpointError(f"{path} names arrays that their shards do not hold: {summarize(absent)}; {_AGAIN}")
    extra = [f"{name} in {shard}" for shard in shards for name in shards[shard] if weight_map.get(name) != shard]
    if extra:
        raise CheckpointError(f"{path} does not name arrays that its shards hold: {summarize(extra)}; {_AGAIN}")
    return Contents({name: shards[shard][name] for name, shard in weight_map.items()}, metadata, _notes(read.values()))


def _read_shard(index: Path, shard: str) -> Contents:
    try:
        return read_file(index.parent / shard)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; it is a shard of {index}") from error


def check_shards(index: Path, shards: set[str]) -> list[str]:
    """Check that all are files beside the index, and sort their names."""
    outside = sorted(shard for shard in shards if not _is_file_name(shard))
    if outside:
        raise CheckpointError(
            f"{index} names files outside its folder: {summarize(outside)}; shards must stand beside it"
        )
    missing = sorted(shard for shard in shards if not (index.parent / shard).is_file())
    if missing:
        aside = atomic.left_aside(index.parent)
        raise CheckpointError(f"{index} names shards that are missing: {', '.join(missing)}; put them beside it{aside}")
    return sorted(shards)


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and not re.search(r"[/\\\0]", name)


# By numbers in names


def all_parts(path: Path, part: Part) -> list[Path]:
    """All files of a set, in order. Raises `CheckpointError` if some are missing."""
    beside = {file: other for file in path.parent.iterdir() if (other := part_of(file)) and file.suffix == path.suffix}
    found = {other.number: file for file, other in beside.items() if other.is_of_set(part)}
    if len(found) < part.total:
        missing = [str(number) for number in range(1, min(part.total, 1000) + 1) if number not in found][:4]
        which = f"part{'s'[: len(missing) > 1]} {', '.join(missing)}" if missing else "another part"
        raise CheckpointError(
            f"{path} is part {part.number} of {part.total}, and neither an index nor {which} stands beside it; put all "
            f"parts into one folder{atomic.left_aside(path.parent)}"
        )
    return [found[number] for number in sorted(found)]


def read_parts(paths: Sequence[Path]) -> Contents:
    """Read all files of a set together. Raises `CheckpointError` for a name that two of them hold."""
    read = {path: read_file(path) for path in paths}
    holders: dict[str, Path] = {}
    for path, contents in read.items():
        for name in contents.arrays:
            if (other := holders.setdefault(name, path)) != path:
                raise CheckpointError(f"{path} and {other.name} both hold {name}, so they are no parts of one set")
    arrays = {name: array for contents in read.values() for name, array in contents.arrays.items()}
    metadata = next((contents.metadata for contents in read.values() if contents.metadata), None)
    return Contents(arrays, metadata, _notes(read.values()))


def _notes(read: Iterable[Contents]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for contents in read for note in contents.notes))
