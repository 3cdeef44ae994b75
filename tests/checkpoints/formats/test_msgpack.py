"""Flax's msgpack: Flax reads what we write, we read what it writes, and what is damaged is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack as msgpack_library
import numpy as np
import pytest
from flax import serialization

from mixer_equiv import CheckpointError
from mixer_equiv.arrays.interop import flatten, unflatten
from mixer_equiv.checkpoints import formats
from mixer_equiv.checkpoints.formats import msgpack
from mixer_equiv.testing.strategies import DTYPES
from tests.support.files import arbitrary_bits, changed
from tests.support.trees import flat, params, read, train_state, write


@pytest.mark.parametrize("dtype", DTYPES)
def test_flax_restores_just_the_tree_that_was_written(tmp_path: Path, dtype: str) -> None:
    arrays = arbitrary_bits(dtype)
    tree = serialization.msgpack_restore(write(tmp_path / "mixer.msgpack", arrays).read_bytes())
    assert list(dict(flatten(tree))) == list(arrays)
    assert changed(arrays, dict(flatten(tree))) == []
    target = unflatten({name: np.zeros_like(array) for name, array in arrays.items()})
    restored = serialization.from_bytes(target, (tmp_path / "mixer.msgpack").read_bytes())
    assert changed(arrays, dict(flatten(restored))) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_flax_wrote_is_read(tmp_path: Path, dtype: str) -> None:
    arrays = arbitrary_bits(dtype)
    (tmp_path / "mixer.msgpack").write_bytes(serialization.to_bytes(unflatten(arrays)))
    assert changed(arrays, read(tmp_path / "mixer.msgpack")) == []
    assert formats.read(tmp_path / "mixer.msgpack").metadata is None


def test_a_train_state_that_flax_wrote_is_read(tmp_path: Path) -> None:
    state = train_state(params())
    (tmp_path / "state.msgpack").write_bytes(serialization.to_bytes(state))
    assert changed(flat(serialization.to_state_dict(state)), read(tmp_path / "state.msgpack")) == []


def test_every_kind_of_value_that_flax_writes_is_read(tmp_path: Path) -> None:
    numbers = [0, 127, 128, 2**16, 2**32, 2**63, -1, -32, -33, -129, -(2**15) - 1, -(2**31) - 1, 1.5]
    others = [None, True, False, "é" * 40, "x" * 300, "y" * 70000, 1 + 2j]
    tree = {
        "numbers": numbers,
        "others": others,
        "scalar": np.float64(-0.0),
        "many": dict.fromkeys(map(str, range(99)), 1),
    }
    (tmp_path / "x").write_bytes(serialization.msgpack_serialize(tree | {"steps": {0: np.int32(7)}, "none": {}}))
    found = dict(formats.read(tmp_path / "x").arrays)
    assert (found["numbers"], found["others"]) == tuple(
        {str(i): value for i, value in enumerate(values)} for values in (numbers, others)
    )
    assert np.asarray(found["scalar"]).tobytes() == np.float64(-0.0).tobytes()
    assert (len(found["many"]), int(np.asarray(found["steps"]["0"])), found["none"]) == (99, 7, {})


@pytest.mark.parametrize("limit", [8, 60, 64, 1000])
def test_chunks_are_joined_and_cut_as_flax_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", limit)
    monkeypatch.setattr(msgpack, "MAX_CHUNK_SIZE", limit)
    arrays = {name: array[..., :1] if array.ndim == 4 else array for name, array in arbitrary_bits("bfloat16").items()}
    arrays["scale"] = np.array(-0.0)
    (tmp_path / "theirs.msgpack").write_bytes(serialization.msgpack_serialize(unflatten(arrays)))
    assert changed(arrays, read(tmp_path / "theirs.msgpack")) == []
    ours = write(tmp_path / "ours.msgpack", arrays)
    assert changed(arrays, dict(flatten(serialization.msgpack_restore(ours.read_bytes())))) == []
    assert changed(arrays, read(ours)) == []


def _extension(shape: Any, dtype: str, data: bytes, code: int = 1) -> bytes:
    payload = msgpack_library.packb((shape, dtype, data))
    return b"\x81\xa1x" + msgpack_library.packb(msgpack_library.ExtType(code, payload))


NESTED = b"\x81\xa1x" * 5000 + b"\x01"
BAD_MSGPACK: dict[str, tuple[bytes, str]] = {
    "more numbers declared": (_extension((4,), "float32", b"12345678"), r"declares \(4,\) of float32 and holds 8"),
    "fewer numbers declared": (_extension((1,), "float32", b"12345678"), r"declares \(1,\) of float32 and holds 8"),
    "huge array": (_extension((2**40, 2**40), "float32", b"1234"), "declares"),
    "negative sides": (_extension((-1, -2), "float32", b"12345678"), "declares"),
    "sides that are text": (_extension(("2",), "float32", b"12345678"), "declares"),
    "objects": (_extension((1,), "object", b"12345678"), "declares"),
    "no dtype": (_extension((1,), "nonsense", b"12345678"), "nonsense"),
    "unknown extension": (_extension((1,), "float32", b"1234", 7), "extension of type 7"),
    "extension of less": (b"\x81\xa1x\xd5\x02\x90\x00", "an extension of 2 bytes has another length"),
    "extension of more": (b"\x81\xa1x\xd4\x02\x92\x01\x01", "an extension of 1 bytes has another length"),
    "complex number of one part": (b"\x81\xa1x\xd6\x02\x93\x01\x01\x01", "not a checkpoint"),
    "key twice": (b"\x82\xa1x\x01\xa1x\x02", "the key 'x' is there twice"),
    "number and text for a key": (b"\x83\xa1x\x01\x07\x01\xa17\x02", "the key '7' is there twice"),
    "key that is none": (b"\x82\xa1x\x01\xc0\x02", "a key is a NoneType"),
    "byte without a meaning": (b"\x81\xa1x\xc1", "no value begins with the byte 0xc1"),
    "trailing bytes": (b"\x81\xa1x\x01\x01", "goes on for 1 bytes after the end"),
    "nested without end": (NESTED, "nested more than 100 deep"),
    "text beyond the end": (b"\x81\xa1x\xdb\xff\xff\xff\xff12", "a text of length 4294967295 is declared where"),
    "map beyond the end": (b"\x81\xa1x\xdf\xff\xff\xff\xff", "a map of length 4294967295 is declared where"),
    "list beyond the end": (b"\x81\xa1x\xdd\xff\xff\xff\xff", "a list of length"),
    "extension beyond the end": (b"\x81\xa1x\xc9\xff\xff\xff\xff\x01", "an? extension of length"),
    "text that is no UTF-8": (b"\x81\xa1x\xa1\xff", "UnicodeDecodeError"),
    "chunks without a shape": (serialization.msgpack_serialize({"x": {"__msgpack_chunked_array__": True}}), "shape"),
    "chunks that do not fill the shape": (
        serialization.msgpack_serialize(
            {"x": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {"0": np.ones(2)}}}
        ),
        r"declares \(3,\) and has 2 numbers in 1 chunks",
    ),
    "a list": (b"\x91\x01", "holds a list; expected a map of arrays by name"),
    "a number": (b"\x01", "holds a value; expected a map of arrays by name"),
    "an array": (serialization.msgpack_serialize(np.ones(3)), "holds an? extension; expected a map of arrays by name"),
}


@pytest.mark.parametrize("fault", BAD_MSGPACK)
def test_damaged_msgpack_is_refused_in_words(tmp_path: Path, fault: str) -> None:
    content, fragment = BAD_MSGPACK[fault]
    (tmp_path / "bad.msgpack").write_bytes(content)
    with pytest.raises(CheckpointError, match=fragment) as caught:
        read(tmp_path / "bad.msgpack")
    assert "bad.msgpack" in str(caught.value)


@pytest.mark.parametrize("writer", ["flax", "ours"])
def test_truncated_msgpack_is_refused_wherever_it_ends(tmp_path: Path, writer: str) -> None:
    path = write(tmp_path / "x.msgpack", arbitrary_bits("float16"))
    whole = path.read_bytes() if writer == "ours" else serialization.to_bytes(train_state(params()))
    ends = {*range(10), *np.linspace(10, len(whole) - 1, 40, dtype=int).tolist()}
    for end in sorted(ends):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            formats.read(path)
