"""Reading and writing one array at a time, also of large files and without any framework."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save_file

from mixer_equiv.checkpoints import formats
from mixer_equiv.checkpoints.formats import format_by_suffix, sharded
from tests.support.scripts import BLOCKED, printed
from tests.support.trees import METADATA, TREE, flat, read, write

LARGE = 2**30


def _large_msgpack(path: Path) -> None:
    size = struct.pack(">I", LARGE)
    shape = b"\x93\x91\xce" + size + b"\xa4int8"
    head = b"\x82\xa1x\xc9" + struct.pack(">I", len(shape) + 5 + LARGE) + b"\x01" + shape + b"\xc6" + size
    with path.open("wb") as stream:
        stream.write(head)
        stream.seek(LARGE, os.SEEK_CUR)
        stream.write(b"\xa1y" + serialization.msgpack_serialize({"y": np.ones(3)})[3:])


def _large_shards(path: Path) -> None:
    header = json.dumps({"x": {"dtype": "I8", "shape": [LARGE], "data_offsets": [0, LARGE]}}).encode()
    with (path.parent / "x-00001-of-00002.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + LARGE)
    save_file({"y": np.ones(3)}, path.parent / "x-00002-of-00002.safetensors")
    shards = {"x": "x-00001-of-00002.safetensors", "y": "x-00002-of-00002.safetensors"}
    path.write_text(json.dumps({"weight_map": shards}))


LARGE_FILES: dict[str, Callable[[Path], None]] = {
    "x.msgpack": _large_msgpack,
    "x.safetensors.index.json": _large_shards,
}


@pytest.mark.parametrize("name", LARGE_FILES)
def test_large_arrays_are_not_read_before_they_are_used(tmp_path: Path, name: str) -> None:
    LARGE_FILES[name](tmp_path / name)
    tracemalloc.start()
    arrays = formats.read(tmp_path / name).arrays
    np.testing.assert_array_equal(np.asarray(arrays["y"]), np.ones(3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (arrays["x"].shape, arrays["x"].dtype) == ((LARGE,), np.int8)
    assert peak < 2**20


def test_arrays_are_asked_for_one_at_a_time_when_they_are_written(tmp_path: Path) -> None:
    class Counting(Mapping[str, np.ndarray]):
        """Arrays that are made when asked for, and how often each was."""

        def __init__(self) -> None:
            self.names = [f"block/{i}" for i in range(20)]
            self.asked = Counter[str]()

        def __getitem__(self, name: str) -> np.ndarray:
            self.asked[name] += 1
            return np.full(2**17, self.names.index(name), np.float64)

        def __iter__(self) -> Any:
            return iter(self.names)

        def __len__(self) -> int:
            return len(self.names)

    arrays = Counting()
    tracemalloc.start()
    format_by_suffix(Path("x.msgpack")).write(tmp_path / "x.msgpack", arrays, METADATA, "flax")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20
    assert len(read(tmp_path / "x.msgpack")) == 20
    assert set(arrays.asked.values()) == {1}


READ_BLOCKED = (
    BLOCKED.replace('"flax")', '"flax", "msgpack", "orbax")')
    + """
from pathlib import Path
import numpy as np
from mixer_equiv import MissingDependencyError
from mixer_equiv.checkpoints import formats
from mixer_equiv.arrays.interop import flatten

found = {}
for path in map(Path, sys.argv[1:]):
    try:
        leaves = dict(flatten(formats.read(path).arrays))
        found[path.name] = {name: np.asarray(leaf).tobytes().hex() for name, leaf in leaves.items()}
    except MissingDependencyError as error:
        found[path.name] = str(error)
print(json.dumps(found))
"""
)


def test_msgpack_and_shards_are_read_without_any_framework(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, TREE) for name in ("x.msgpack", f"x{sharded.SUFFIX}", "x.orbax")]
    found = printed(READ_BLOCKED, *paths)
    expected = {name: array.tobytes().hex() for name, array in flat(TREE).items()}
    assert found[paths[0].name] == found[paths[1].name] == expected
    assert "an Orbax checkpoint needs orbax.checkpoint" in found["x.orbax"]
    assert "pip install 'mixer_equiv[flax]'" in found["x.orbax"]
