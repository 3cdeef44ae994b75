"""safetensors, one file. For several with an index see `sharded`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mixer_equiv.arrays.chunks import CHUNK_BYTES, byte_chunks, group_by_size, map_in_threads
from mixer_equiv.arrays.interop import NotAnArray
from mixer_equiv.arrays.lazy import as_lazy
from mixer_equiv.checkpoints.formats.base import DAMAGE, METADATA_KEY, Contents, FileFormat, Framework
from mixer_equiv.checkpoints.formats.raw_arrays import File

# The format's own names of dtypes. The library sorts arrays by dtype, the last of these first.
_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "F64": np.float64,
    "I64": np.int64,
    "U64": np.uint64,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_RANKS = {name: -place for place, name in enumerate(_DTYPES)}

# Dtypes that are read, and never written.
_READ = {
    **_DTYPES,
    "C64": np.complex64,
    **{
        name: getattr(ml_dtypes, dtype)
        for name, dtype in {
            "F8_E4M3": "float8_e4m3fn",
            "F8_E5M2": "float8_e5m2",
            "F8_E4M3FNUZ": "float8_e4m3fnuz",
            "F8_E5M2FNUZ": "float8_e5m2fnuz",
            "F8_E8M0": "float8_e8m0fnu",
        }.items()
        if hasattr(ml_dtypes, dtype)  # old ones lack some
    },
}

# How the library's metadata name a framework.
_FORMATS = {"torch": "pt", "flax": "flax"}

# The library reads no longer headers. A file of another format that happens to have a "{" there declares a longer one.
_LONGEST_HEADER = 100_000_000


def _recognise(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        length, brace = stream.read(8), stream.read(1)
    return brace == b"{" and int.from_bytes(length, "little") <= _LONGEST_HEADER


def read(path: Path) -> Contents:
    """Read the header; arrays are read when they are used."""
    file = File.at(path)
    arrays: dict[str, Any] = {}
    with safe_open(path, framework="np") as tensors:  # which checks the header, offsets included
        names = list(tensors.keys())
        metadata = (tensors.metadata() or {}).get(METADATA_KEY)
    with file.open() as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    for name in names:
        form, shape, (start, _) = (header[name][key] for key in ("dtype", "shape", "data_offsets"))
        if form in _READ:
            arrays[name] = file.array(tuple(shape), np.dtype(_READ[form]), 8 + length + start)
        else:
            arrays[name] = NotAnArray(f"numbers of {form}")
    return Contents(arrays, metadata)


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> None:
    """Write what `safetensors.numpy.save_file` writes, and in its order: by dtype, then by name.

    The place of each array is known before any is computed, so that several are computed and written at a time.
    """
    lazy = as_lazy(arrays)
    found = lazy.specs
    names = sorted(found, key=lambda name: (_RANKS[_NAMES[found[name].dtype]], name))
    header: dict[str, Any] = {"__metadata__": {"format": _FORMATS[framework], METADATA_KEY: metadata}}
    end = 0
    for name in names:
        spec, start = found[name], end
        end += spec.nbytes
        header[name] = {"dtype": _NAMES[spec.dtype], "shape": spec.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)

    def put(together: list[str]) -> None:
        with path.open("r+b") as stream:
            stream.seek(8 + len(text) + header[together[0]]["data_offsets"][0])
            for name in together:
                for piece in byte_chunks(lazy.strided(name)):
                    stream.write(piece)

    map_in_threads(group_by_size({name: found[name].nbytes for name in names}, CHUNK_BYTES), put)


# The library raises its own error for a header that cannot be parsed, or whose offsets do not fit.
SAFETENSORS_DAMAGE = (*DAMAGE, SafetensorError)

SAFETENSORS = FileFormat("safetensors", (".safetensors",), _recognise, read, write, damage=SAFETENSORS_DAMAGE)
