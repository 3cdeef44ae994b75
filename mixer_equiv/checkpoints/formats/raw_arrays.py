"""Arrays whose bytes stand in a file as they do in memory: read in chunks with their CRC, or mapped.

Knows no file format. Start at `File.array`.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import struct
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mixer_equiv.arrays.chunks import CHUNK_BYTES
from mixer_equiv.checkpoints.formats.base import ZIP_DAMAGE, StoredArray
from mixer_equiv.errors import CheckpointError

try:
    from zlib_ng.zlib_ng import crc32  # over ten times as fast

    if crc32(b"123456789") != 0xCBF43926:  # the check value of this CRC in the catalogue of CRCs
        from zlib import crc32
except Exception:  # no wheel for this processor, or a broken one
    from zlib import crc32

__all__ = ["Checksum", "Extent", "File", "crc32", "member_start"]


@dataclasses.dataclass(frozen=True)
class Checksum:
    """The CRC-32 of a zip archive's member: `begun` up to the first byte of the array, `whole` at its end."""

    member: str
    begun: int
    whole: int


@dataclasses.dataclass(frozen=True, eq=False)
class File:
    """A file of which several arrays are parts. All must come from the file that stood at `path` at first."""

    path: Path
    identity: tuple[int, ...]

    @classmethod
    def at(cls, path: Path) -> File:
        """The file that stands at `path` now."""
        return cls(path, _identity(path.stat()))

    @property
    def size(self) -> int:
        """Its bytes, at first."""
        return self.identity[2]

    @cached_property
    def mapping(self) -> np.ndarray:
        """Its mapped bytes. Pages are read when they are used, and are private to this process once written to."""
        with self.open() as stream:
            return np.asarray(np.memmap(stream, np.uint8, "c"))

    def open(self) -> io.FileIO:
        """Open the file, unbuffered. Raises `CheckpointError` if inode, size or time show that it has changed."""
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
        place = _Place(self, shape, dtype, start, fortran_order, checksum)
        unverified = dataclasses.replace(place, checksum=None).read if checksum else None
        return StoredArray(shape, dtype, place.read, self.path, ZIP_DAMAGE, place.map, unverified)

    def bytes_at(self, start: int, count: int) -> np.ndarray:
        """A new array of the `count` bytes from byte `start` on."""
        return _Place(self, (count,), np.dtype(np.uint8), start, False, None).read()


class Extent(NamedTuple):
    """`size` bytes of a file, from byte `begin` on, that are a file of their own."""

    file: File
    begin: int
    size: int

    def open(self) -> BinaryIO:
        """Open these bytes as a file. Raises `CheckpointError` as `File.open` does."""
        return io.BufferedReader(_Window(self.file.open(), self.begin, self.size))


class _Window(io.RawIOBase):
    """A part of an open file, to be read as a file of its own: its first byte is the part's."""

    def __init__(self, stream: io.FileIO, begin: int, size: int) -> None:
        self._stream, self._begin, self._size, self._at = stream, begin, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if at < 0:  # zipfile learns by this error that a file is small
            raise OSError(errno.EINVAL, "Invalid argument")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        self._stream.seek(self._begin + self._at)
        count = self._stream.readinto(memoryview(buffer)[: max(self._size - self._at, 0)]) or 0
        self._at += count
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


@dataclasses.dataclass(frozen=True, eq=False)
class _Place:
    """The place of an array's bytes in a file, and their order and checksum."""

    file: File
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    fortran_order: bool
    checksum: Checksum | None

    def read(self) -> np.ndarray:
        """Read a new array. The CRC is computed chunk by chunk, while each is in the cache."""
        flat = np.empty(self._size, np.uint8)
        crc = self.checksum.begun if self.checksum else 0
        with self.file.open() as stream:
            stream.seek(self.start)
            for at in range(0, self._size, CHUNK_BYTES):
                chunk = flat.data[at : at + CHUNK_BYTES]
                _read_into(stream, chunk)
                crc = crc32(chunk, crc) if self.checksum else 0
        if self.checksum and crc != self.checksum.whole:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {self.checksum.member!r}")
        return self._reshape(flat)

    def map(self) -> np.ndarray:
        """The array as a part of the mapped file; it may not be aligned."""
        return self._reshape(self.file.mapping[self.start : self.start + self._size])

    @property
    def _size(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def _reshape(self, flat: np.ndarray) -> np.ndarray:
        return flat.view(self.dtype).reshape(self.shape, order="F" if self.fortran_order else "C")


def member_start(stream: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Seek to the first byte of a zip archive's member, and return its offset.

    Its local header, before it, may have a longer extra field than the directory tells. zipfile is not asked to
    read it, since it would read a small member whole, and with it check the CRC.
    """
    stream.seek(info.header_offset + 26)
    return stream.seek(info.header_offset + 30 + sum(struct.unpack("<HH", stream.read(4))))


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read_into(stream: io.FileIO, chunk: memoryview) -> None:
    while chunk:
        count = stream.readinto(chunk)
        if not count:
            raise EOFError(f"it ends {len(chunk)} bytes before an array does")
        chunk = chunk[count:]
