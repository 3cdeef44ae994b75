"""File formats: what is written is read bit for bit, and the content tells the format."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from flax import serialization

from mixer_equiv.arrays.interop import flatten
from mixer_equiv.checkpoints import formats
from mixer_equiv.checkpoints.formats import SUFFIXES, format_by_suffix
from mixer_equiv.testing.strategies import DTYPES
from tests.support.files import arbitrary_bits, changed
from tests.support.trees import METADATA, TREE, flat, params, read, write


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("framework", ["flax", "torch"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_is_bit_exact(tmp_path: Path, suffix: str, framework: str, dtype: str) -> None:
    arrays = arbitrary_bits(dtype)
    if framework == "torch":
        arrays = {name.replace("/", "."): array for name, array in arrays.items()}
    path = write(tmp_path / f"mixer{suffix}", arrays, framework)
    assert changed(arrays, read(path)) == []
    assert formats.read(path).metadata == METADATA


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shapes_and_dtypes_are_known_before_the_numbers(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"mixer{suffix}", TREE)
    leaves = dict(flatten(formats.read(path).arrays))
    assert all(isinstance(leaf, formats.StoredArray) for leaf in leaves.values())
    for name, array in flat(TREE).items():
        assert (leaves[name].shape, leaves[name].dtype) == (array.shape, array.dtype)
        assert changed({name: array}, {name: np.asarray(leaves[name])}) == []


@pytest.mark.parametrize("suffix", [".msgpack", ".orbax", ".safetensors.index.json", ".pt"])
def test_content_tells_the_format_whatever_the_name(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"mixer{suffix}", TREE).rename(tmp_path / "renamed.ckpt")
    assert changed(flat(TREE), read(path)) == []


def _recognised(path: Path) -> list[str]:
    return [file_format.name for file_format in formats.FORMATS if file_format.recognise(path)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_format_takes_the_files_of_another(tmp_path: Path, suffix: str) -> None:
    assert _recognised(write(tmp_path / f"mixer{suffix}", TREE)) == [format_by_suffix(Path(suffix)).name]


@pytest.mark.parametrize("length", [0xA384, 0x7B81A3, 0xA183])
def test_a_safetensors_header_that_begins_like_msgpack_is_none(tmp_path: Path, length: int) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(length).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", length) + header + b"1234")
    assert _recognised(tmp_path / "x") == ["safetensors"]


def test_msgpack_with_a_brace_where_safetensors_has_one_is_read(tmp_path: Path) -> None:
    data = serialization.msgpack_serialize({"epochs": 123, "params": params()})
    assert data[8:9] == b"{"
    (tmp_path / "x").write_bytes(data)
    assert _recognised(tmp_path / "x") == ["msgpack"]


NO_MSGPACK = [
    b"",
    b"\x80",
    b"\x81",
    b"\x81\xa1\x00\x00",
    b"\x81\x01\x02",
    b"\x89HDF\r\n\x1a\n",
    b"{}",
    b"\x80\x02}q\x00",
]


@pytest.mark.parametrize(
    "content", [*NO_MSGPACK, b"\xde\xff\xff\xdb\xff\xff\xff\xff", "Þ text".encode("latin-1")], ids=repr
)
def test_files_that_begin_otherwise_are_of_no_format(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert _recognised(tmp_path / "x") == []
