"""Tensors made of chunks: whether the chunks make one up, whether files hold them, and the array itself.

Start at `arrays_of`.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mixer_equiv.arrays.interop import NotAnArray
from mixer_equiv.checkpoints.formats.base import ZIP_DAMAGE, StoredArray, refuse_damage
from mixer_equiv.checkpoints.formats.dcp.metadata import Chunk, Entry, Stored
from mixer_equiv.checkpoints.formats.raw_arrays import Extent, File
from mixer_equiv.checkpoints.formats.shard_sets import check_shards
from mixer_equiv.checkpoints.formats.torch_zip import read_tensor
from mixer_equiv.errors import CheckpointError, summarize


def arrays_of(path: Path, tensors: Mapping[str, Entry]) -> dict[str, StoredArray]:
    """Arrays of the tensors that `path` describes, whose chunks are in files beside it. Reads no chunk.

    Raises `CheckpointError` for chunks that do not make up their tensor, and for a file that is missing or too short.
    """
    problems = {name: next(_problems(entry), None) for name, entry in tensors.items()}
    told = [f"{name} {tensors[name].spec.shape}: {problem}" for name, problem in problems.items() if problem]
    if told:
        raise CheckpointError(
            f"{path} describes tensors that their chunks do not make up: {summarize(told, separator='; ')}; get the "
            "whole folder again, or save the checkpoint again from all ranks"
        )
    files = _files(path, (chunk.stored for entry in tensors.values() for chunk in entry.chunks if chunk.stored))
    return {name: _Assembly(name, entry, files, path).array() for name, entry in tensors.items()}


# Checks


def _problems(entry: Entry) -> Iterator[str]:
    shape, itemsize = entry.spec.shape, entry.spec.dtype.itemsize
    for chunk in entry.chunks:
        where, nbytes = f"chunk of {chunk.sizes} at {chunk.offsets}", math.prod(chunk.sizes) * itemsize
        if len(chunk.sizes) != len(shape) or any(part.stop > size for part, size in zip(chunk.box, shape, strict=True)):
            yield f"its {where} is no part of it"
        elif chunk.stored is None:
            yield f"no file is named for its {where}"
        elif chunk.stored.length < nbytes:
            yield f"its {where} has {nbytes} bytes, and {chunk.stored.length} are stored"
    yield from _overlaps(entry.chunks)
    held = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
    if held != entry.spec.size:
        yield f"its chunks have {held} of its {entry.spec.size} numbers"


def _overlaps(chunks: Sequence[Chunk]) -> Iterator[str]:
    begins = np.array([chunk.offsets for chunk in chunks])
    ends = begins + np.array([chunk.sizes for chunk in chunks])
    for i, chunk in enumerate(chunks[:-1]):
        later = slice(i + 1, None)
        meeting = ((begins[later] < ends[i]) & (begins[i] < ends[later])).all(1)
        if meeting.any():
            yield f"its chunks at {chunk.offsets} and {chunks[i + 1 + int(meeting.argmax())].offsets} overlap"


def _files(path: Path, stored: Iterable[Stored]) -> dict[str, File]:
    """The files that hold chunks, by their names. That no byte is in two chunks bounds what is read of a file."""
    by_file = defaultdict(list)
    for place in stored:
        by_file[place.file].append(place)
    files = {name: File.at(path.with_name(name)) for name in check_shards(path, set(by_file))}
    for name, file in files.items():
        end = max(place.begin + place.length for place in by_file[name])
        needed = max(end, sum(place.length for place in by_file[name]))
        if needed > file.size:
            raise CheckpointError(
                f"{path} tells of chunks in the first {needed} bytes of {name}, which has {file.size}; it was cut or "
                "is of another checkpoint, so get the whole folder again"
            )
    return files


# Arrays


@dataclasses.dataclass(frozen=True, eq=False)
class _Assembly:
    """A tensor, to be put together of chunks in `files`; `path` describes it."""

    name: str
    entry: Entry
    files: Mapping[str, File]
    path: Path

    def array(self) -> StoredArray:
        (shape, dtype), is_one = (self.entry.spec.shape, self.entry.spec.dtype), len(self.entry.chunks) == 1
        return StoredArray(shape, dtype, self._make, self.path, ZIP_DAMAGE, self._map if is_one else None)

    def _make(self) -> np.ndarray:
        spec, chunks = self.entry
        if len(chunks) == 1:
            return np.asarray(self._leaf(chunks[0]), spec.dtype)
        array = np.empty(spec.shape, spec.dtype)
        for chunk in chunks:
            array[chunk.box] = self._leaf(chunk)
        return array

    def _map(self) -> np.ndarray:
        """The only chunk as a part of the mapped file, or read where its numbers are in another order."""
        leaf = self._leaf(self.entry.chunks[0])
        return np.asarray(leaf) if leaf.mapped is None else leaf.mapped()

    def _leaf(self, chunk: Chunk) -> StoredArray:
        """The chunk's own array. Raises `CheckpointError` where it is not of the shape and dtype that are told."""
        assert chunk.stored is not None  # `arrays_of` has checked it
        file, dtype = self.files[chunk.stored.file], self.entry.spec.dtype
        with refuse_damage(file.path, ZIP_DAMAGE):
            leaf = read_tensor(Extent(file, chunk.stored.begin, chunk.stored.length))
        if isinstance(leaf, StoredArray) and (leaf.shape, leaf.dtype.newbyteorder("=")) == (chunk.sizes, dtype):
            return leaf
        found = leaf.what if isinstance(leaf, NotAnArray) else f"{leaf.dtype} {leaf.shape}"
        raise CheckpointError(
            f"{file.path} has {found} for a chunk of {self.name}, and {self.path.name} says {dtype} {chunk.sizes}; "
            "they are of different checkpoints, so get the whole folder again"
        )
