"""npy: one array. The one dict in an array of Python objects is read; numbers alone have no name, and are refused.

NumPy pickles an array of objects; that pickle is read by our own machine. `npz`, whose members are npy, reads them
by `read_header` and `read_objects`. Start at `NPY`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np

from mixer_equiv.checkpoints.formats.base import ANY_DAMAGE, Contents, FileFormat, Framework, refuse_damage
from mixer_equiv.checkpoints.formats.no_checkpoint import WITHOUT_NAMES
from mixer_equiv.checkpoints.formats.pickles.constructors import CONSTANTS, CONSTRUCTORS
from mixer_equiv.checkpoints.formats.pickles.machine import unpickle
from mixer_equiv.checkpoints.formats.pickles.tensors import Repetitions
from mixer_equiv.checkpoints.formats.pickles.tree import contents_of
from mixer_equiv.errors import CheckpointError

_MAGIC = b"\x93NUMPY"

# NumPy evaluates no longer one.
_MAX_HEADER = 2**16


class Header(NamedTuple):
    """The header of an npy file."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def read_header(path: Path, what: str, stream: Any) -> Header:
    """Read the header at the begin of `stream`, and leave the stream behind it. Raises `CheckpointError`."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    # NumPy evaluates the header as a Python literal, and warns of deprecated names of dtypes.
    stream = _Header(stream)
    with refuse_damage(path, ANY_DAMAGE):
        version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise CheckpointError(f"{what} is of npy format version {version}; 1.0 and 2.0 are read")
    with refuse_damage(path, ANY_DAMAGE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Header(*readers[version](stream))
        except MemoryError as error:  # which Python raises for a literal that is nested too deep
            raise ValueError("its header is nested too deep") from error


class _Header:
    """A stream of which no part is read that is longer than any header."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            raise ValueError(f"it declares a header of {size} bytes")
        return self._stream.read(size)


def read_objects(stream: IO[bytes]) -> Any:
    """The array of Python objects behind the header, as our own machine makes it. Raises `PickleError`."""
    return unpickle(stream.read(), CONSTRUCTORS, CONSTANTS)


def holds_objects(path: Path) -> bool:
    """Whether a file has an array of Python objects, such as one dict, and not of numbers."""
    if not _recognise(path):
        return False
    with path.open("rb") as stream:
        return read_header(path, str(path), stream).dtype.hasobject


def _recognise(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def _read(path: Path) -> Contents:
    with path.open("rb") as stream:
        header = read_header(path, str(path), stream)
        if header.dtype.hasobject:
            return contents_of(read_objects(stream), path, Repetitions().array_in_pickle)
        size = header.dtype.itemsize * math.prod(header.shape)
        stream.seek(stream.tell() + min(size, path.stat().st_size))
        if stream.read(len(_MAGIC)) == _MAGIC:
            raise CheckpointError(f"{path} holds arrays {WITHOUT_NAMES}")
    raise CheckpointError(
        f"{path} holds one array without a name, of {header.dtype} {header.shape}; a checkpoint has arrays by name: "
        "np.savez('weights.npz', **arrays)"
    )


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> NoReturn:
    raise CheckpointError(f"{path} cannot be written: npy is read and not written; give a name that ends with .npz")


NPY = FileFormat("npy", (), _recognise, _read, _write)
