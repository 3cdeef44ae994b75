"""npz: the published checkpoints. Object arrays, which are pickles, are refused."""

from __future__ import annotations

import struct
import zipfile
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.format import dtype_to_descr

from mixer_equiv.arrays.chunks import byte_chunks
from mixer_equiv.arrays.lazy import prefetch_arrays
from mixer_equiv.checkpoints.formats.base import FileFormat, Framework, StoredArray, zip_names
from mixer_equiv.checkpoints.formats.raw_arrays import Checksum, File, crc32
from mixer_equiv.errors import CheckpointError


def _recognise(path: Path) -> bool:
    return path.is_file() and any(name.endswith(".npy") for name in zip_names(path))


def _read(path: Path) -> tuple[Mapping[str, Any], str | None]:
    arrays = {}
    file = File.at(path)
    with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        repeated = [name for name, count in Counter(archive.namelist()).items() if count > 1]
        if repeated:
            raise CheckpointError(f"{path} holds {', '.join(repeated)} more than once")
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                raise CheckpointError(f"{path} holds {info.filename!r}, which is not an array")
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:  # which checks the local header
                if info.compress_type != zipfile.ZIP_STORED:
                    shape, _, dtype = _header(f"{name} in {path}", member, info.file_size)
                    arrays[name] = StoredArray(path, shape, dtype, partial(_member, file, info.filename))
                    continue
            start = _start(stream, info)
            shape, fortran_order, dtype = _header(f"{name} in {path}", stream, start + info.file_size)
            numbers = stream.tell()
            stream.seek(start)
            checksum = Checksum(info.filename, crc32(stream.read(numbers - start)), info.CRC)
            arrays[name] = file.array(shape, dtype, numbers, fortran_order=fortran_order, checksum=checksum)
        comment = archive.comment.decode("utf-8", "replace")
    return arrays, comment if comment.startswith("{") else None


def _start(stream: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Go to where a member's bytes begin: after its local header, whose extra field may be longer than the directory's.

    zipfile would read a small member at once, and with it check the CRC.
    """
    stream.seek(info.header_offset + 26)
    return stream.seek(info.header_offset + 30 + sum(struct.unpack("<HH", stream.read(4))))


def _member(file: File, name: str) -> np.ndarray:
    """One array, inflated to its end, where zipfile checks the CRC."""
    with file.opened() as stream, zipfile.ZipFile(stream) as archive, archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _header(what: str, member: Any, end: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order, dtype; pickles, and sizes that the file does not have, are refused before anything is allocated."""
    version = np.lib.format.read_magic(member)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise CheckpointError(f"{what} is of npy format version {version}; 1.0 and 2.0 are read")
    shape, fortran_order, dtype = readers[version](member)
    if dtype.hasobject:
        raise CheckpointError(f"{what} is an array of Python objects (a pickle), which is never loaded")
    declared = dtype.itemsize
    for side in shape:
        declared *= side
    if declared != end - member.tell():
        raise CheckpointError(f"{what} declares {declared} bytes ({shape} of {dtype}) and holds {end - member.tell()}")
    return shape, fortran_order, dtype


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> None:
    """What `np.savez` writes, array by array.

    An extra array would break strict readers of the published layout; a zip comment breaks none.
    """
    with path.open("xb") as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, array in prefetch_arrays(arrays):
            header = {"descr": dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for piece in byte_chunks(array):
                    member.write(piece)
        archive.comment = metadata.encode()


NPZ = FileFormat("npz", (".npz",), _recognise, _read, _write)
