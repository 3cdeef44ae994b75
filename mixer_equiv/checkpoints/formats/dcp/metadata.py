"""The pickle `.metadata` of torch.distributed.checkpoint: shape, dtype and chunks of each tensor, and where these are.

The classes in it are known by their attributes, since their modules have moved between versions of torch. Opens no
other file. Start at `read_metadata`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixer_equiv.arrays.interop import NotAnArray
from mixer_equiv.arrays.lazy import Spec
from mixer_equiv.checkpoints.formats.base import refuse_damage
from mixer_equiv.checkpoints.formats.pickles.arrays import as_sizes
from mixer_equiv.checkpoints.formats.pickles.constructors import CONSTANTS, CONSTRUCTORS
from mixer_equiv.checkpoints.formats.pickles.machine import Global, PickleError, unpickle
from mixer_equiv.errors import CheckpointError


class Stored(NamedTuple):
    """The bytes of a file that hold a chunk, and the extension, such as compression, through which they went."""

    file: str
    begin: int
    length: int
    extension: str | None = None


class Chunk(NamedTuple):
    """A box of a tensor, and where it is stored; None if the pickle does not say."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    stored: Stored | None

    @property
    def box(self) -> tuple[slice, ...]:
        """The chunk's place in the tensor."""
        return tuple(slice(at, at + size) for at, size in zip(self.offsets, self.sizes, strict=True))


class Entry(NamedTuple):
    """A tensor: its shape and dtype, and the chunks that make it up, without empty ones."""

    spec: Spec
    chunks: Sequence[Chunk]


class Metadata(NamedTuple):
    """Tensors, and what is none, by their dotted names; and by these the keys under which nested dicts had them."""

    tensors: Mapping[str, Entry]
    others: Mapping[str, NotAnArray]
    keys: Mapping[Any, Any]


def read_metadata(path: Path) -> Metadata:
    """Read a pickle of torch's `Metadata`. Raises `CheckpointError`."""
    with refuse_damage(path):
        match _attributes(unpickle(path.read_bytes(), CONSTRUCTORS, CONSTANTS)):
            case {"state_dict_metadata": dict() as entries, "storage_data": dict() as storage, **rest}:
                keys = rest.get("planner_data")
                return _describe(entries, _stored_by_chunk(storage), keys if isinstance(keys, dict) else {})
        raise PickleError("it has no state_dict_metadata and storage_data, as torch.distributed.checkpoint writes them")


def merge(ranks: Sequence[Metadata]) -> Metadata:
    """Merge what ranks that saved apart say. A box that several of them have is read once."""
    tensors: dict[str, Entry] = {}
    for rank in ranks:
        for name, (spec, chunks) in rank.tensors.items():
            first, known = tensors.setdefault(name, Entry(spec, ()))
            if spec != first:
                raise CheckpointError(f"the ranks have {name} as {first} and as {spec}; give files of one checkpoint")
            boxes = {chunk[:2] for chunk in known}
            added = [chunk for chunk in chunks if chunk[:2] not in boxes]
            tensors[name] = Entry(spec, (*known, *added))
    others = {name: other for rank in ranks for name, other in rank.others.items()}
    return Metadata(tensors, others, {name: keys for rank in ranks for name, keys in rank.keys.items()})


def _attributes(value: Any) -> Mapping[Any, Any]:
    """The attributes of an object; none for what is no object."""
    state = getattr(value, "state", None)
    return state if isinstance(state, dict) else {}


def _stored_by_chunk(storage: Mapping[Any, Any]) -> dict[Any, Stored]:
    """Where chunks are stored, by name and offsets. Python objects have no offsets, and are left out."""
    found = {}
    for index, place in storage.items():
        match _attributes(index), _attributes(place):
            case (
                {"fqn": str() as name, "offset": tuple() as offsets},
                {"relative_path": str() as file, "offset": int() as begin, "length": int() as length, **rest},
            ):
                if begin < 0 or length < 0:
                    raise PickleError(f"a chunk has {length} bytes from byte {begin} on")
                extension = _extension(rest.get("transform_descriptors"))
                found[name, as_sizes(offsets)] = Stored(file, begin, length, extension)
    return found


def _extension(descriptors: Any) -> str | None:
    match descriptors:
        case None | [] | ():
            return None
        case [str() as name, *_]:
            return name
    return "an extension"


def _describe(entries: Mapping[Any, Any], stored: Mapping[Any, Stored], keys: Mapping[Any, Any]) -> Metadata:
    tensors: dict[str, Entry] = {}
    others: dict[str, NotAnArray] = {}
    for name, value in entries.items():
        entry = _entry(name, value, stored)
        if isinstance(entry, Entry):
            tensors[str(name)] = entry
        else:
            others[str(name)] = entry
    return Metadata(tensors, others, keys)


def _entry(name: Any, value: Any, stored: Mapping[Any, Stored]) -> Entry | NotAnArray:
    match _attributes(value):
        case {"properties": properties, "size": tuple() as shape, "chunks": list() as boxes}:
            dtype = _dtype(properties)
            chunks = [_chunk(name, box, stored) for box in boxes]
            for chunk in chunks:
                if chunk.stored and chunk.stored.extension:
                    return NotAnArray(f"a tensor that was saved through {chunk.stored.extension[:100]}")
            if isinstance(dtype, NotAnArray):
                return dtype
            return Entry(Spec(as_sizes(shape), dtype), [chunk for chunk in chunks if 0 not in chunk.sizes])
    return NotAnArray("a Python object")


def _chunk(name: Any, value: Any, stored: Mapping[Any, Stored]) -> Chunk:
    box = _attributes(value)
    offsets, sizes = as_sizes(box.get("offsets")), as_sizes(box.get("sizes"))
    if len(offsets) != len(sizes):
        raise PickleError(f"a chunk of the shape {sizes} is at {offsets}")
    return Chunk(offsets, sizes, stored.get((name, offsets)))


def _dtype(properties: Any) -> np.dtype | NotAnArray:
    match getattr(properties, "state", None):
        case (np.dtype() as dtype, *_):
            return dtype
        case (Global(name), *_):
            return NotAnArray(f"a tensor of {name}")
    raise PickleError("a tensor has no dtype")
