"""msgpack as Flax writes it (`flax.serialization.to_bytes`), read without Flax, JAX or msgpack.

Bytes of arrays are stepped over, and read when they are used. Start at `_Walker`.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401  # so that NumPy knows bfloat16 by its name
import numpy as np

from mixer_equiv.arrays.chunks import as_contiguous
from mixer_equiv.arrays.interop import require, unflatten
from mixer_equiv.checkpoints.formats.base import METADATA_KEY, Contents, FileFormat, Framework, StoredArray
from mixer_equiv.checkpoints.formats.raw_arrays import File
from mixer_equiv.errors import CheckpointError

# Flax's codes of extension types, its mark of an array in chunks, and the bytes of its largest chunk.
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
MAX_CHUNK_SIZE = 2**30

_DEEPEST = 100
_LONGEST_KEY = 1000  # for a first key by which the format is recognised

_NUMBERS = (">f", ">d", ">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q")

# By the first byte of a value: its kind, and its value or length, or the `struct` format in which that follows.
_HEADS: dict[int, tuple[str, Any]] = {
    **{number % 256: ("value", number) for number in range(-32, 128)},
    **{0x80 + length: ("map", length) for length in range(16)},
    **{0x90 + length: ("list", length) for length in range(16)},
    **{0xA0 + length: ("text", length) for length in range(32)},
    **{0xC0: ("value", None), 0xC2: ("value", False), 0xC3: ("value", True)},
    **{0xC4 + i: ("bytes", form) for i, form in enumerate((">B", ">H", ">I"))},
    **{0xC7 + i: ("extension", form) for i, form in enumerate((">B", ">H", ">I"))},
    **{0xCA + i: ("value", form) for i, form in enumerate(_NUMBERS)},
    **{0xD4 + i: ("extension", 2**i) for i in range(5)},
    **{0xD9 + i: ("text", form) for i, form in enumerate((">B", ">H", ">I"))},
    **{0xDC + i: ("list", form) for i, form in enumerate((">H", ">I"))},
    **{0xDE + i: ("map", form) for i, form in enumerate((">H", ">I"))},
}


class _Walker:
    """Reads value after value, and steps over the bytes of arrays. Lists become dicts with the keys "0", "1", ..."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.file = File.at(path)
        self.stream = stream
        self.size = path.stat().st_size
        self.metadata: str | None = None

    def left(self) -> int:
        """Number of bytes up to the end of the file."""
        return self.size - self.stream.tell()

    def head(self) -> tuple[str, Any]:
        """Read the kind of the next value, and the value itself or its length."""
        first = self.unpack(">B")
        if first not in _HEADS:
            raise ValueError(f"no value begins with the byte {first:#x}")
        kind, value = _HEADS[first]
        return kind, self.unpack(value) if isinstance(value, str) else value

    def value(self, depth: int = 0) -> Any:
        """Read the next value, by the method that is called as its kind."""
        kind, value = self.head()
        if kind == "value":
            return value
        if depth > _DEEPEST:
            raise ValueError(f"values are nested more than {_DEEPEST} deep")
        if value > self.left():
            raise ValueError(f"a {kind} of length {value} is declared where the file has {self.left()} bytes left")
        return getattr(self, kind)(value, depth + 1)

    def unpack(self, form: str) -> Any:
        packed = self.stream.read(struct.calcsize(form))
        if len(packed) < struct.calcsize(form):
            raise EOFError("it ends within a value")
        return struct.unpack(form, packed)[0]

    def text(self, length: int, depth: int) -> str:
        return self.stream.read(length).decode()

    def bytes(self, length: int, depth: int) -> range:
        """Step over bytes, and return their range in the file."""
        start = self.stream.tell()
        self.stream.seek(start + length)
        return range(start, start + length)

    def list(self, length: int, depth: int) -> dict[str, Any]:
        return {str(i): self.value(depth) for i in range(length)}

    def map(self, length: int, depth: int) -> Any:
        node: dict[str, Any] = {}
        for _ in range(length):
            key = self.value(depth)
            if not isinstance(key, str | int):
                raise ValueError(f"a key is a {type(key).__name__}")
            if str(key) in node:
                raise ValueError(f"the key {key!r} is there twice")
            node[str(key)] = self.value(depth)
        return self.join(node) if _CHUNKED in node else node

    def extension(self, length: int, depth: int) -> Any:
        code, end = self.unpack(">b"), self.stream.tell() + length
        if code not in (_ARRAY, _COMPLEX, _SCALAR):
            raise ValueError(f"an extension of type {code}, which Flax does not write")
        parts = self.value(depth)
        if self.stream.tell() != end:
            raise ValueError(f"an extension of {length} bytes has another length")
        values = list(parts.values()) if isinstance(parts, dict) else []
        if code == _COMPLEX:
            if len(values) != 2 or not all(isinstance(value, int | float) for value in values):
                raise ValueError(f"a complex number is of {len(values)} parts; expected two numbers")
            return complex(*values)
        match values:
            case [dict(sides), str(name), range() as span]:
                return self.array(tuple(sides.values()), name, span)
        raise ValueError(f"an array is of {len(values)} parts; expected its shape, the name of its dtype and its bytes")

    def array(self, shape: tuple[Any, ...], name: str, span: range) -> StoredArray:
        dtype = _dtype_called(name)
        if not _is_shape(shape) or dtype.hasobject or math.prod(shape) * dtype.itemsize != len(span):
            raise ValueError(f"an array declares {shape} of {name} and holds {len(span)} bytes")
        return self.file.array(shape, dtype, span.start)

    def join(self, node: dict[str, Any]) -> StoredArray:
        """Join an array that Flax cut into chunks. Our metadata may stand beside the chunks."""
        self.metadata = node.get(METADATA_KEY, self.metadata)
        sides, parts = node.get("shape"), node.get("chunks")
        if not isinstance(sides, dict) or not isinstance(parts, dict):
            raise ValueError("an array in chunks lacks its shape or its chunks")
        shape = tuple(sides.values())
        chunks = [chunk for i in range(len(parts)) if isinstance(chunk := parts.get(str(i)), StoredArray)]
        if not _is_shape(shape) or len(chunks) < len(parts):
            raise ValueError(f"an array declares {shape}, and {len(chunks)} of its {len(parts)} chunks are arrays")
        held = sum(math.prod(chunk.shape) for chunk in chunks)
        if math.prod(shape) != held or len({chunk.dtype for chunk in chunks}) != 1:
            raise ValueError(f"an array declares {shape} and has {held} numbers in {len(chunks)} chunks")
        mapped = partial(_map, chunks[0], shape) if len(chunks) == 1 else None
        return StoredArray(shape, chunks[0].dtype, partial(_concatenate, chunks, shape), self.path, mapped=mapped)


def _is_shape(sides: tuple[Any, ...]) -> bool:
    return all(isinstance(side, int) and side >= 0 for side in sides)


def _dtype_called(name: str) -> np.dtype:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that NumPy once had, where a byte is damaged
            return np.dtype(name)
    except (TypeError, ValueError, SyntaxError) as error:
        raise ValueError(f"an array is of {name!r}, which is no dtype") from error


def _map(chunk: StoredArray, shape: tuple[int, ...]) -> np.ndarray:
    return (chunk.mapped or chunk.make)().reshape(shape)


def _concatenate(chunks: list[StoredArray], shape: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([chunk.make() for chunk in chunks]).reshape(shape)


def _recognise(path: Path) -> bool:
    """Whether a file begins with a map whose first key is text, as no zip, pickle, JSON or safetensors does."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        walker = _Walker(path, stream)
        try:
            (kind, length), (key_kind, key_length) = walker.head(), walker.head()
            if (kind, key_kind) != ("map", "text") or not length or key_length > _LONGEST_KEY:
                return False
            return walker.text(key_length, 0).isprintable()
        except (ValueError, EOFError):
            return False


def _read(path: Path) -> Contents:
    with path.open("rb") as stream:
        walker = _Walker(path, stream)
        kind, _ = walker.head()
        if kind != "map":
            raise CheckpointError(f"{path} holds a {kind}; expected a map of arrays by name")
        stream.seek(0)
        tree = walker.value()
        if walker.left():
            raise CheckpointError(f"{path} goes on for {walker.left()} bytes after the end of its tree")
    return Contents(tree, walker.metadata)


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> None:
    """Write what `msgpack_restore` reads as just these arrays, nested.

    A leaf for metadata would break `from_bytes`, and Flax refuses bytes after the end. But of an array
    in chunks it reads the shape and the chunks alone. So the first array is written in chunks, or in a
    single one, with the metadata beside them.
    """
    msgpack = require("msgpack", "flax", "writing a .msgpack file")
    packer, extension = msgpack.Packer(), partial(msgpack.ExtType, _ARRAY)
    notes = {name: {METADATA_KEY: metadata} for name in list(arrays)[:1]}
    tree = unflatten({name: partial(_leaf, arrays, name, notes.get(name, {})) for name in arrays})
    with path.open("xb") as stream:
        for piece in _packed(packer, extension, tree):
            stream.write(piece)


def _leaf(arrays: Mapping[str, np.ndarray], name: str, notes: dict[str, str]) -> Any:
    """An array as Flax packs it: whole, or as a dict of chunks."""
    array = as_contiguous(arrays[name])
    if array.nbytes <= MAX_CHUNK_SIZE and not notes:
        return array
    flat, step = array.reshape(-1), max(1, MAX_CHUNK_SIZE // array.itemsize)
    chunks = {str(i): flat[start : start + step] for i, start in enumerate(range(0, max(1, flat.size), step))}
    shape = {str(i): array.shape[i] for i in range(array.ndim)}
    return {_CHUNKED: True, "shape": shape, "chunks": chunks} | notes


def _packed(packer: Any, extension: Any, node: Any) -> Iterator[bytes]:
    """The bytes of a tree, piece by piece; its leaves are called for when their turn comes."""
    if callable(node):
        node = node()
    if isinstance(node, np.ndarray):
        content = packer.pack((node.shape, node.dtype.name, node.tobytes()))
        yield packer.pack(extension(content))  # before msgpack 1.2, pack_ext_type returned nothing
    elif isinstance(node, dict):
        yield packer.pack_map_header(len(node))
        for key, value in node.items():
            yield packer.pack(key)
            yield from _packed(packer, extension, value)
    else:
        yield packer.pack(node)


MSGPACK = FileFormat("msgpack", (".msgpack",), _recognise, _read, _write)
