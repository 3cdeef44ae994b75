"""npz, the format of the published checkpoints. Arrays of Python objects, which are pickles, are refused."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import dtype_to_descr

from mixer_equiv.arrays.chunks import byte_chunks
from mixer_equiv.arrays.lazy import prefetch_arrays
from mixer_equiv.checkpoints.formats.base import (
    ANY_DAMAGE,
    ZIP_DAMAGE,
    Contents,
    FileFormat,
    Framework,
    StoredArray,
    refuse_damage,
    zip_names,
)
from mixer_equiv.checkpoints.formats.raw_arrays import Checksum, File, crc32, member_start
from mixer_equiv.errors import CheckpointError


def _recognise(path: Path) -> bool:
    return path.is_file() and any(name.endswith(".npy") for name in zip_names(path))


def _read(path: Path) -> Contents:
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
                    header = _header(path, name, member, info.file_size)
                    read = partial(_inflate, file, info.filename)
                    arrays[name] = StoredArray(header.shape, header.dtype, read, path)
                    continue
            start = member_start(stream, info)
            header = _header(path, name, stream, start + info.file_size)
            numbers = stream.tell()
            stream.seek(start)
            checksum = Checksum(info.filename, crc32(stream.read(numbers - start)), info.CRC)
            arrays[name] = file.array(
                header.shape, header.dtype, numbers, fortran_order=header.fortran_order, checksum=checksum
            )
        comment = archive.comment.decode("utf-8", "replace")
    return Contents(arrays, comment if comment.startswith("{") else None)


def _inflate(file: File, name: str) -> np.ndarray:
    """Read a compressed member to its end, where zipfile checks the CRC."""
    with (
        file.open() as stream,
        refuse_damage(file.path, ANY_DAMAGE),
        zipfile.ZipFile(stream) as archive,
        archive.open(name) as member,
    ):
        return np.lib.format.read_array(member, allow_pickle=False)


class _Header(NamedTuple):
    """The header of an npy file."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def _header(path: Path, name: str, member: Any, end: int) -> _Header:
    """Read a header; refuse pickles, and sizes that the file does not have, before anything is allocated."""
    what = f"{name} in {path}"
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    # NumPy evaluates the header as a Python literal, and warns of deprecated names of dtypes.
    with refuse_damage(path, ANY_DAMAGE):
        version = np.lib.format.read_magic(member)
    if version not in readers:
        raise CheckpointError(f"{what} is of npy format version {version}; 1.0 and 2.0 are read")
    with refuse_damage(path, ANY_DAMAGE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = _Header(*readers[version](member))
    if header.dtype.hasobject:
        raise CheckpointError(f"{what} is an array of Python objects (a pickle), which is never loaded")
    declared, held = header.dtype.itemsize * math.prod(header.shape), end - member.tell()
    if declared != held:
        raise CheckpointError(f"{what} declares {declared} bytes ({header.shape} of {header.dtype}) and holds {held}")
    return header


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
