"""npz: the published checkpoints. Object arrays, which are pickles, are refused."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mixer_equiv.containers.container import Container, Framework, LazyArray, zip_names
from mixer_equiv.errors import CheckpointError


def _recognise(path: Path) -> bool:
    return path.is_file() and any(name.endswith(".npy") for name in zip_names(path))


def _read(path: Path) -> tuple[Mapping[str, Any], str | None]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        repeated = [name for name, count in Counter(archive.namelist()).items() if count > 1]
        if repeated:
            raise CheckpointError(f"{path} holds {', '.join(repeated)} more than once")
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                raise CheckpointError(f"{path} holds {info.filename!r}, which is not an array")
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                shape, dtype = _header(f"{name} in {path}", member, info.file_size)
            arrays[name] = LazyArray(path, shape, dtype, partial(_member, path, info.filename))
        comment = archive.comment.decode("utf-8", "replace")
    return arrays, comment if comment.startswith("{") else None


def _member(path: Path, name: str) -> np.ndarray:
    """One array, read to its end, where zipfile checks the CRC."""
    with zipfile.ZipFile(path) as archive, archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _header(what: str, member: Any, size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype; pickles, and sizes that the file does not have, are refused before anything is allocated."""
    version = np.lib.format.read_magic(member)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise CheckpointError(f"{what} is of npy format version {version}; 1.0 and 2.0 are read")
    shape, _, dtype = readers[version](member)
    if dtype.hasobject:
        raise CheckpointError(f"{what} is an array of Python objects (a pickle), which is never loaded")
    declared = dtype.itemsize
    for side in shape:
        declared *= side
    if declared != size - member.tell():
        raise CheckpointError(f"{what} declares {declared} bytes ({shape} of {dtype}) and holds {size - member.tell()}")
    return shape, dtype


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> None:
    with path.open("xb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
    # An extra array would break strict readers of the published layout; a zip comment breaks none.
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = metadata.encode()


NPZ = Container("npz", (".npz",), _recognise, _read, _write)
