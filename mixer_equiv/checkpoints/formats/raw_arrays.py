"""Arrays whose numbers stand in a file as they do in memory: read in pieces with their CRC, or mapped."""

from __future__ import annotations

import dataclasses
import io
import os
import zipfile
from functools import cached_property
from pathlib import Path

import numpy as np

from mixer_equiv.arrays.chunks import CHUNK_BYTES
from mixer_equiv.checkpoints.formats.base import ZIP_DAMAGE, StoredArray
from mixer_equiv.errors import CheckpointError

try:
    from zlib_ng.zlib_ng import crc32  # over ten times as fast

    if crc32(b"123456789") != 0xCBF43926:  # the check value that the catalogue of CRCs has for this one
        from zlib import crc32
except Exception:  # it has no wheels for some processors, and a broken one is as none
    from zlib import crc32

__all__ = ["Checksum", "File", "crc32"]


@dataclasses.dataclass(frozen=True)
class Checksum:
    """The CRC-32 of a zip archive's member: `begun` over what comes before the numbers, `whole` at the end of them."""

    member: str
    begun: int
    whole: int


@dataclasses.dataclass(frozen=True, eq=False)
class File:
    """A file of which several arrays are parts, all of which must be of the file that stood there at first."""

    path: Path
    identity: tuple[int, ...]

    @classmethod
    def at(cls, path: Path) -> File:
        """The file that stands at `path` now."""
        return cls(path, _identity(path.stat()))

    @cached_property
    def mapping(self) -> np.ndarray:
        """Its bytes, mapped: pages are read when they are used, and private to this process once written to."""
        with self.opened() as stream:
            return np.asarray(np.memmap(stream, np.uint8, "c"))

    def opened(self) -> io.FileIO:
        """The file, unbuffered. Raises `CheckpointError` if it was replaced or written to, by its inode, size, time."""
        stream = io.FileIO(self.path)
        if _identity(os.fstat(stream.fileno())) != self.identity:
            stream.close()
            raise CheckpointError(f"{self.path} was replaced or written to since it was opened; open it again")
        return stream

    def array(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype,
        start: int,
        *,
        fortran_order: bool = False,
        checksum: Checksum | None = None,
    ) -> StoredArray:
        """The array whose numbers begin at byte `start`."""
        stored = _Stored(self, shape, dtype, start, fortran_order, checksum)
        unverified = dataclasses.replace(stored, checksum=None).read if checksum else None
        return StoredArray(shape, dtype, stored.read, self.path, ZIP_DAMAGE, stored.mapped, unverified)


@dataclasses.dataclass(frozen=True, eq=False)
class _Stored:
    file: File
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    fortran_order: bool
    checksum: Checksum | None

    def read(self) -> np.ndarray:
        """The array, new; the CRC is computed piece by piece, while they are in the cache."""
        flat = np.empty(self._size, np.uint8)
        crc = self.checksum.begun if self.checksum else 0
        with self.file.opened() as stream:
            stream.seek(self.start)
            for at in range(0, self._size, CHUNK_BYTES):
                piece = flat.data[at : at + CHUNK_BYTES]
                _read_into(stream, piece)
                crc = crc32(piece, crc) if self.checksum else 0
        if self.checksum and crc != self.checksum.whole:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {self.checksum.member!r}")
        return self._formed(flat)

    def mapped(self) -> np.ndarray:
        """The array as a part of the mapped file, perhaps not aligned."""
        return self._formed(self.file.mapping[self.start : self.start + self._size])

    @property
    def _size(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def _formed(self, flat: np.ndarray) -> np.ndarray:
        return flat.view(self.dtype).reshape(self.shape, order="F" if self.fortran_order else "C")


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read_into(stream: io.FileIO, piece: memoryview) -> None:
    while piece:
        count = stream.readinto(piece)
        if not count:
            raise EOFError(f"it ends {len(piece)} bytes before an array does")
        piece = piece[count:]
