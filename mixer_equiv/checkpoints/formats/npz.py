"""npz, the format of the published checkpoints: a zip archive of arrays in npy.

A member that is an array of Python objects is a pickle; the one dict in it is read as nested arrays. Start at `NPZ`.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.format import dtype_to_descr

from mixer_equiv.arrays.chunks import byte_chunks
from mixer_equiv.arrays.interop import is_array
from mixer_equiv.arrays.lazy import prefetch_arrays
from mixer_equiv.checkpoints.formats.base import (
    ANY_DAMAGE,
    ZIP_DAMAGE,
    Contents,
    FileFormat,
    Framework,
    StoredArray,
    read_member,
    refuse_damage,
    zip_names,
)
from mixer_equiv.checkpoints.formats.npy import Header, read_header, read_objects
from mixer_equiv.checkpoints.formats.pickles.tensors import Repetitions
from mixer_equiv.checkpoints.formats.pickles.tree import Tree, read_tree
from mixer_equiv.checkpoints.formats.raw_arrays import Checksum, File, crc32, member_start
from mixer_equiv.errors import CheckpointError

_SUFFIX = ".npy"

# Names that `np.savez` gives to arrays without any.
_POSITION = re.compile(r"arr_\d+")


def _recognise(path: Path) -> bool:
    return path.is_file() and any(name.endswith(_SUFFIX) for name in zip_names(path))


def _read(path: Path) -> Contents:
    file = File.at(path)
    arrays: dict[str, Any] = {}
    notes: list[str] = []
    repetitions = Repetitions()
    with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        for name, info in _members(path, archive).items():
            arrays[name] = _array(file, stream, archive, info)
            if arrays[name] is None:
                arrays[name], found = _objects(path, archive, info, repetitions)
                notes += found
        comment = archive.comment.decode("utf-8", "replace")
    _refuse_positions(path, arrays)
    return Contents(arrays, comment if comment.startswith("{") else None, tuple(dict.fromkeys(notes)))


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's members by the names of their arrays."""
    repeated = [name for name, count in Counter(archive.namelist()).items() if count > 1]
    if repeated:
        raise CheckpointError(f"{path} holds {', '.join(repeated)} more than once")
    others = [name for name in archive.namelist() if not name.endswith(_SUFFIX)]
    if others:
        raise CheckpointError(f"{path} holds {others[0]!r}, which is not an array")
    return {info.filename.removesuffix(_SUFFIX): info for info in archive.infolist()}


def _array(file: File, stream: BinaryIO, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> StoredArray | None:
    """The array of a member, whose header alone is read; None for one of Python objects."""
    with archive.open(info) as member:  # which checks the local header
        if info.compress_type != zipfile.ZIP_STORED:
            header = _header(file.path, info, member, info.file_size)
            read = partial(_inflate, file, info.filename)
            return StoredArray(header.shape, header.dtype, read, file.path) if header else None
    start = member_start(stream, info)
    header = _header(file.path, info, stream, start + info.file_size)
    if header is None:
        return None
    numbers = stream.tell()
    stream.seek(start)
    checksum = Checksum(info.filename, crc32(stream.read(numbers - start)), info.CRC)
    return file.array(header.shape, header.dtype, numbers, fortran_order=header.fortran_order, checksum=checksum)


def _header(path: Path, info: zipfile.ZipInfo, stream: Any, end: int) -> Header | None:
    """Read a header, and refuse sizes that the file does not have; None for an array of Python objects."""
    what = f"{info.filename.removesuffix(_SUFFIX)} in {path}"
    header = read_header(path, what, stream)
    if header.dtype.hasobject:
        return None
    declared, held = header.dtype.itemsize * math.prod(header.shape), end - stream.tell()
    if declared != held:
        raise CheckpointError(f"{what} declares {declared} bytes ({header.shape} of {header.dtype}) and holds {held}")
    return header


def _objects(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, repetitions: Repetitions) -> Tree:
    """The dict that an array of Python objects holds; a `NotAnArray` in place of anything else."""
    stream = io.BytesIO(read_member(path, archive, info))
    read_header(path, info.filename, stream)
    return read_tree(read_objects(stream), repetitions.array_in_pickle)


def _refuse_positions(path: Path, arrays: Mapping[str, Any]) -> None:
    """Refuse several arrays that all have their positions for names."""
    if len(arrays) < 2 or not all(_POSITION.fullmatch(name) and is_array(leaf) for name, leaf in arrays.items()):
        return
    raise CheckpointError(
        f"{path} holds {len(arrays)} arrays by position ({', '.join([*arrays][:2])}, ...), as np.savez(path, *leaves) "
        "writes them, and their names are lost; name them in the order in which they were saved: "
        f"np.savez('named.npz', **dict(zip(names, np.load({str(path)!r}).values(), strict=True))), where names is "
        "list(model.state_dict()) for torch, and for jax.tree.leaves(params) of the same model "
        "['/'.join(keys) for keys in sorted(flax.traverse_util.flatten_dict(params))]"
    )


def _inflate(file: File, name: str) -> np.ndarray:
    """Read a compressed member to its end, where zipfile checks the CRC."""
    with (
        file.open() as stream,
        refuse_damage(file.path, ANY_DAMAGE),
        zipfile.ZipFile(stream) as archive,
        archive.open(name) as member,
    ):
        return np.lib.format.read_array(member, allow_pickle=False)


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> None:
    """Write what `np.savez` writes, array by array.

    The metadata are the archive's comment: an extra array would break strict readers of the published layout.
    """
    with path.open("xb") as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, array in prefetch_arrays(arrays):
            header = {"descr": dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for chunk in byte_chunks(array):
                    member.write(chunk)
        archive.comment = metadata.encode()


NPZ = FileFormat("npz", (".npz",), _recognise, _read, _write, damage=ZIP_DAMAGE)
