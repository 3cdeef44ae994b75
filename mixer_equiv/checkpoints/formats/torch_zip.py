"""torch's .pt: zip files, read without torch, and what torch wrote before 1.6, read by torch itself.

The zip file holds one pickle, which names storages, and the bytes of each storage in a member of its own. It may be a
part of another file. Start at `TORCH_ZIP`.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from mixer_equiv.arrays.interop import NotAnArray, as_mapping, require, to_torch
from mixer_equiv.checkpoints.formats.base import (
    ANY_DAMAGE,
    METADATA_KEY,
    ZIP_DAMAGE,
    Contents,
    FileFormat,
    Framework,
    StoredArray,
    read_member,
    refuse_damage,
    zip_names,
)
from mixer_equiv.checkpoints.formats.pickles.constructors import CONSTANTS, CONSTRUCTORS
from mixer_equiv.checkpoints.formats.pickles.file import is_legacy
from mixer_equiv.checkpoints.formats.pickles.machine import Global, PickleError, unpickle
from mixer_equiv.checkpoints.formats.pickles.tensors import (
    Repetitions,
    Storage,
    StorageKind,
    Tensor,
    array_of,
    storage_of,
)
from mixer_equiv.checkpoints.formats.pickles.tree import contents_of, kind_of
from mixer_equiv.checkpoints.formats.raw_arrays import Extent, File, member_start
from mixer_equiv.errors import CheckpointError, MissingDependencyError

_PICKLE = "data.pkl"


def _recognise(path: Path) -> bool:
    if not path.is_file():
        return False
    return any(_is_pickle(name) for name in zip_names(path)) or is_legacy(path)


def _is_pickle(name: str) -> bool:
    return name.rpartition("/")[2] == _PICKLE


def _read(path: Path) -> Contents:
    if not zip_names(path):
        return _legacy(path)
    file = File.at(path)
    archive = _Archive.of(Extent(file, 0, file.size))
    return contents_of(archive.root(), path, archive.any_array)


def read_tensor(extent: Extent) -> StoredArray | NotAnArray:
    """The tensor that `torch.save` was given alone. Raises `PickleError` where it was given anything else."""
    archive = _Archive.of(extent)
    root = archive.root()
    if isinstance(root, Tensor) and root.storage.data is None:
        return archive.array(root)
    raise PickleError("it holds something else than one tensor")


class _Member(NamedTuple):
    """A storage in the zip file, and where its bytes begin in the file."""

    info: zipfile.ZipInfo
    start: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Archive:
    """The zip file: its pickle, its storages by their keys, and the order of the bytes in all of them."""

    extent: Extent
    pickle: bytes
    storages: Mapping[str, _Member]
    order: Literal["<", ">"]
    named: dict[str, Storage] = dataclasses.field(default_factory=dict)
    repetitions: Repetitions = dataclasses.field(default_factory=Repetitions)

    @classmethod
    def of(cls, extent: Extent) -> _Archive:
        path = extent.file.path
        with extent.open() as stream, zipfile.ZipFile(stream) as archive:
            names = [name for name in archive.namelist() if _is_pickle(name)]
            if len(names) != 1:
                raise CheckpointError(f"{path} holds {len(names)} files {_PICKLE}, and torch writes one")
            folder = names[0].removesuffix(_PICKLE)
            pickled = read_member(path, archive, archive.getinfo(names[0]))
            order = _order(archive, f"{folder}byteorder")
            if order not in (b"little", b"big"):
                raise CheckpointError(f"{path} says that its bytes are in the order {order!r}")
            storages = {
                info.filename.removeprefix(f"{folder}data/"): _member(stream, info, extent)
                for info in archive.infolist()
                if info.filename.startswith(f"{folder}data/")
            }
        return cls(extent, pickled, storages, ">" if order == b"big" else "<")

    def root(self) -> Any:
        """The object that was saved, with a `Tensor` in the place of each tensor."""
        return unpickle(self.pickle, CONSTRUCTORS, CONSTANTS, self._storage)

    def _storage(self, identity: Any) -> Storage:
        """The storage of a persistent id; as for torch, what is said first of a key holds."""
        key, kind = storage_of(identity)
        if key not in self.named:
            if key not in self.storages:
                raise PickleError(f"the storage {key[:100]!r} is not in the file")
            if not isinstance(kind, StorageKind):
                name = kind.name if isinstance(kind, Global) else type(kind).__name__
                raise PickleError(f"it has a storage of the class {name[:100]}, which is not known")
            self.named[key] = Storage(key, kind, self.storages[key].info.file_size)
        return self.named[key]

    def any_array(self, tensor: Tensor) -> Any:
        """The array of a tensor, whose numbers may also be in the pickle itself."""
        return self.array(tensor) if tensor.storage.data is None else self.repetitions.array_in_pickle(tensor)

    def array(self, tensor: Tensor) -> StoredArray | NotAnArray:
        """The array that is read where and when `tensor` is used."""
        if (refused := self.repetitions.refuse(tensor)) is not None:
            return refused
        member, dtype = self.storages[tensor.storage.key], tensor.dtype.newbyteorder(self.order)
        is_stored = member.info.compress_type == zipfile.ZIP_STORED
        if is_stored and tensor.is_plain:
            return self.extent.file.array(tensor.shape, dtype, member.start + tensor.offset * dtype.itemsize)
        read = partial(_read_part, self.extent, member, tensor, dtype)
        return StoredArray(tensor.shape, dtype, read, self.extent.file.path, ZIP_DAMAGE)


def _order(archive: zipfile.ZipFile, name: str) -> bytes:
    """The order of bytes that the member `name` tells, and no more of it than shows what it is."""
    if name not in archive.namelist():
        return b"little"
    with archive.open(name) as member:
        return member.read(100)


def _member(stream: BinaryIO, info: zipfile.ZipInfo, extent: Extent) -> _Member:
    start = member_start(stream, info)
    if info.compress_type == zipfile.ZIP_STORED and start + info.file_size > extent.size:
        raise zipfile.BadZipFile(f"{info.filename!r} ends after its archive")
    return _Member(info, extent.begin + start)


def _read_part(extent: Extent, member: _Member, tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    """Read a tensor of any strides, as a new array."""
    offset, size = tensor.offset * dtype.itemsize, tensor.span * dtype.itemsize
    if member.info.compress_type == zipfile.ZIP_STORED:
        numbers = extent.file.bytes_at(member.start + offset, size).view(dtype)
    else:
        with extent.open() as stream, zipfile.ZipFile(stream) as archive:
            numbers = np.frombuffer(archive.read(member.info)[offset : offset + size], dtype)
    return array_of(tensor, numbers)


# Before torch 1.6


def _legacy(path: Path) -> Contents:
    """What torch reads with `weights_only`, by a torch that is new enough for this to be safe."""
    torch = require("torch", "torch", "a .pt file from before torch 1.6")
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < (2, 10):
        raise MissingDependencyError(
            f"a .pt file from before torch 1.6 needs torch 2.10 or newer, because older ones can be made to run code "
            f"(CVE-2025-32434, CVE-2026-24747); torch {torch.__version__} is installed"
        )
    loaded = _load(torch, path)
    tree = as_mapping(loaded)
    if tree is None:
        raise CheckpointError(f"{path} holds {kind_of(loaded)}; expected a state_dict")
    return Contents(tree, getattr(loaded, METADATA_KEY, None))


def _load(torch: Any, path: Path) -> Any:
    """Read the one object of a file, with torch and nothing of ours."""
    with refuse_damage(path, ANY_DAMAGE):
        try:
            with path.open("rb") as stream:  # from an open file torch reads it whatever its suffix
                return torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            # torch's own message advises to load it anyway.
            named = re.search(r"GLOBAL (\S+)", str(error))
            what = f"Python objects ({named[1]})" if named else "something else than weights, or is damaged"
            raise CheckpointError(
                f"{path} holds {what}, and is from before torch 1.6, so it is not loaded; load it where it came from "
                "and save it again with a newer torch"
            ) from error


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> None:
    # An attribute of an OrderedDict is pickled with it, `weights_only` loads it, and `load_state_dict` ignores it.
    torch = require("torch", "torch", "writing a .pt file")
    state = OrderedDict((name, to_torch(array)) for name, array in arrays.items())
    setattr(state, METADATA_KEY, metadata)
    try:
        with path.open("xb") as stream:
            torch.save(state, stream)
    except RuntimeError as error:  # torch raises it for a full disk, and for Ctrl-C, while it closes the archive
        cause = error.__context__
        if cause is not None and not isinstance(cause, RuntimeError):
            raise cause from None
        raise OSError(str(error).partition("\n")[0]) from error


# Among these is RuntimeError, which torch raises for anything that a tensor cannot do.
TORCH_ZIP = FileFormat("torch", (".pt", ".pth", ".bin"), _recognise, _read, _write, damage=ZIP_DAMAGE)
