"""Damaged folders of torch.distributed.checkpoint are errors that say what to do, and nothing in them is called."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex

from mixer_equiv import CheckpointError, ConversionError, load, save
from tests.support.checkpoints import checkpoint
from tests.support.distributed import STATE, change_metadata, read_folder, tensors, write_folder
from tests.support.files import changed
from tests.support.hostile import Call, hostile_objects

NAME, SHAPE = "model.head.weight", tuple(STATE["head.weight"].shape)
Change = Callable[[Metadata], Any]


def _entry(metadata: Metadata) -> Any:
    return metadata.state_dict_metadata[NAME]


def _stored(metadata: Metadata) -> Any:
    return metadata.storage_data[MetadataIndex(NAME, torch.Size([0, 0]))]


def _resize(metadata: Metadata, name: str, shape: tuple[int, ...]) -> None:
    metadata.state_dict_metadata[name].size = torch.Size(shape)


def _rename(old: str, new: str) -> Change:
    def change(metadata: Metadata) -> None:
        for stored in metadata.storage_data.values():
            stored.relative_path = new if stored.relative_path == old else stored.relative_path

    return change


def _set(of: Callable[[Metadata], Any], **attributes: Any) -> Change:
    return lambda metadata: vars(of(metadata)).update(attributes)


def _chunks(*boxes: tuple[tuple[int, ...], tuple[int, ...]]) -> Change:
    """Other chunks, each stored where the first one was."""

    def change(metadata: Metadata) -> None:
        _entry(metadata).chunks = [ChunkStorageMetadata(torch.Size(at), torch.Size(sizes)) for at, sizes in boxes]
        for at, _ in boxes:
            metadata.storage_data[MetadataIndex(NAME, torch.Size(at))] = _stored(metadata)

    return change


def _forget(metadata: Metadata) -> None:
    del metadata.storage_data[MetadataIndex(NAME, torch.Size([0, 0]))]


ROWS, COLUMNS = SHAPE
OUTSIDE = r"names files outside its folder: .*; shards must stand beside it"
REMEDY = r"; get the whole folder again, or save the checkpoint again from all ranks"

DESCRIBED: dict[str, tuple[Change, str]] = {
    "no chunk": (_chunks(), rf"{NAME} .*: its chunks have 0 of its {ROWS * COLUMNS} numbers{REMEDY}"),
    "a missing chunk": (
        _chunks(((0, 0), (1, COLUMNS)), ((2, 0), (ROWS - 2, COLUMNS))),
        rf"{NAME} .*: its chunks have {(ROWS - 1) * COLUMNS} of its {ROWS * COLUMNS} numbers{REMEDY}",
    ),
    "chunks that overlap": (
        _chunks(((0, 0), (2, COLUMNS)), ((2, 0), (ROWS - 2, COLUMNS)), ((1, 0), (1, COLUMNS))),
        rf"{NAME} .*: its chunks at \(0, 0\) and \(1, 0\) overlap{REMEDY}",
    ),
    "a chunk outside": (
        _chunks(((1, 0), SHAPE)),
        rf"{NAME} .*: its chunk of {re.escape(str(SHAPE))} at \(1, 0\) is no part of it{REMEDY}",
    ),
    "a chunk of other axes": (
        _chunks(((0,), (ROWS,))),
        rf"its chunk of \({ROWS},\) at \(0,\) is no part of it{REMEDY}",
    ),
    "offsets of other axes": (_chunks(((0,), SHAPE)), r"a chunk of the shape .* is at \(0,\)"),
    "a chunk of no file": (_forget, rf"{NAME} .*: no file is named for its chunk of .* at \(0, 0\){REMEDY}"),
    "a chunk of few bytes": (_set(_stored, length=7), rf"its chunk of .* has \d+ bytes, and 7 are stored{REMEDY}"),
    "a negative length": (_set(_stored, length=-7), "a chunk has -7 bytes from byte"),
    "a place beyond the file": (
        _set(_stored, offset=10**12),
        r"\.metadata tells of chunks in the first 1000000\d+ bytes of __0_0\.distcp, which has \d+; it was cut or is "
        "of another checkpoint, so get the whole folder again",
    ),
    "one place for many chunks": (
        _chunks(*(((row, 0), (1, COLUMNS)) for row in range(ROWS))),
        r"tells of chunks in the first \d+ bytes of __0_0\.distcp",
    ),
    "a large tensor": (lambda m: _resize(m, NAME, (2**40, 2**40)), "which no memory can hold"),
    "a large chunk": (
        lambda m: (_resize(m, NAME, (2**40, 1)), _chunks(((0, 0), (2**40, 1)))(m)),
        rf"has {2**42} bytes, and \d+ are stored",
    ),
    "a negative size": (lambda m: setattr(_entry(m), "size", (-1, 3)), "an array has the shape"),
    "no dtype": (lambda m: setattr(_entry(m), "properties", None), "a tensor has no dtype"),
    "a file above": (_rename("__0_0.distcp", "../__0_0.distcp"), OUTSIDE),
    "a file anywhere": (_rename("__0_0.distcp", "/etc/passwd"), OUTSIDE),
    "a file below": (_rename("__0_0.distcp", "x/__0_0.distcp"), OUTSIDE),
    "no name of a file": (_rename("__0_0.distcp", ""), OUTSIDE),
    "a file that is not there": (_rename("__0_0.distcp", "__7_0.distcp"), "names shards that are missing: __7_0"),
    "objects alone": (
        lambda m: [m.state_dict_metadata.pop(f"model.{name}") for name in STATE],
        r"describes no tensor: epoch is a Python object; expected what torch\.distributed\.checkpoint\.save writes",
    ),
}


@pytest.mark.parametrize("kind", DESCRIBED)
def test_what_cannot_be_is_refused_on_opening(tmp_path: Path, kind: str) -> None:
    change, words = DESCRIBED[kind]
    write_folder(tmp_path, {"model": tensors(STATE), "epoch": 3})
    change_metadata(tmp_path / ".metadata", change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load(tmp_path, lazy=True)
    assert str(tmp_path / ".metadata") in str(caught.value)
    assert "\n" not in str(caught.value)


OTHERS: dict[str, tuple[Change, str]] = {
    "another dtype": (
        lambda m: setattr(_entry(m).properties, "dtype", torch.float16),
        rf"__0_0\.distcp has float32 .* for a chunk of {NAME}, and \.metadata says float16 .*; they are of different",
    ),
    "another shape": (
        lambda m: (_resize(m, NAME, (COLUMNS, ROWS)), _chunks(((0, 0), (COLUMNS, ROWS)))(m)),
        rf"has float32 \({ROWS}, {COLUMNS}\) for a chunk of {NAME}, and \.metadata says float32 \({COLUMNS}, {ROWS}\)",
    ),
    "another place": (
        lambda m: setattr(_stored(m), "offset", _stored(m).offset - 4),
        r"__0_0\.distcp cannot be read: it is damaged or not a checkpoint",
    ),
    "an object": (
        lambda m: vars(_stored(m)).update(vars(m.storage_data[MetadataIndex("epoch")])),
        r"it holds something else than one tensor",
    ),
}


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_chunk_that_is_another_is_refused_on_use(tmp_path: Path, kind: str, mmap: bool) -> None:
    change, words = OTHERS[kind]
    write_folder(tmp_path, {"model": tensors(STATE), "epoch": 3})
    change_metadata(tmp_path / ".metadata", change)
    with pytest.raises(CheckpointError, match=words):
        read_folder(tmp_path, mmap=mmap)


NO_ARRAYS: dict[str, tuple[Change, str]] = {
    "through an extension": (
        _set(_stored, transform_descriptors=["stream.zstd/1"]),
        r"found a tensor that was saved through stream\.zstd/1",
    ),
    "quantised": (lambda m: setattr(_entry(m).properties, "dtype", torch.qint8), r"found a tensor of torch\.qint8"),
}


@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_a_weight_that_no_array_can_hold_is_named(tmp_path: Path, kind: str) -> None:
    change, words = NO_ARRAYS[kind]
    write_folder(tmp_path, {"model": tensors(STATE)})
    change_metadata(tmp_path / ".metadata", change)
    with pytest.raises(ConversionError, match=f"head.weight: {words}; a parameter must be an array of numbers"):
        load(tmp_path)


def test_files_without_what_describes_them_are_refused_and_the_remedy_helps(tmp_path: Path) -> None:
    write_folder(tmp_path, tensors(STATE))
    (tmp_path / ".metadata").rename(tmp_path / "elsewhere")
    for path in (tmp_path, tmp_path / "__0_0.distcp"):
        with pytest.raises(
            CheckpointError, match=r"has files \.distcp and no \.metadata, which .*; copy it into .* too"
        ):
            load(path)
    shutil.copy(tmp_path / "elsewhere", tmp_path / ".metadata")
    assert changed(STATE, load(tmp_path).arrays) == []


@pytest.mark.parametrize("content", [b"", b"\x80\x04", pickle.dumps({"a": 1}), b"\x80\x02ctorch.float32\n."], ids=repr)
def test_a_damaged_description_is_refused(tmp_path: Path, content: bytes) -> None:
    write_folder(tmp_path, tensors(STATE))
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"\.metadata cannot be read: it is damaged or not a checkpoint"):
        load(tmp_path)


def test_a_description_that_is_none_of_torch_s_makes_no_folder_of_it(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    path = save(checkpoint(), tmp_path / "mixer.safetensors")
    assert changed(load(path).arrays, load(tmp_path).arrays) == []


KEYS: dict[str, Any] = {
    "none": None,
    "of others": {"x": ("x",)},
    "no text": dict.fromkeys([f"model.{name}" for name in STATE], (3.5,)),
    "the same": dict.fromkeys([f"model.{name}" for name in STATE], ("a",)),
    "empty": dict.fromkeys([f"model.{name}" for name in STATE], ()),
    "deep": {f"model.{name}": (*("a",) * 200, name) for name in STATE},
    "below another": {f"model.{name}": ("a",) * i for i, name in enumerate(STATE, 1)},
}


@pytest.mark.parametrize("kind", KEYS)
def test_names_stay_dotted_where_the_keys_are_not_told(tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path, {"model": tensors(STATE)})
    change_metadata(tmp_path / ".metadata", lambda metadata: setattr(metadata, "planner_data", KEYS[kind]))
    assert changed({f"model.{name}": array for name, array in STATE.items()}, read_folder(tmp_path)) == []
    assert changed(STATE, load(tmp_path).arrays) == []


# What is hostile


PLACES: dict[str, Callable[[Metadata, Any], Any]] = {
    "the keys": lambda m, evil: setattr(m, "planner_data", evil),
    "a key": lambda m, evil: m.planner_data.update({NAME: (evil,)}),
    "the version": lambda m, evil: setattr(m, "version", evil),
    "an entry": lambda m, evil: m.state_dict_metadata.update({NAME: evil}),
    "a size": lambda m, evil: setattr(_entry(m), "size", (evil, 3)),
    "a dtype": lambda m, evil: setattr(_entry(m), "properties", evil),
    "a chunk": lambda m, evil: setattr(_entry(m), "chunks", [evil]),
    "a place": lambda m, evil: setattr(_stored(m), "offset", evil),
    "an extension": lambda m, evil: setattr(_stored(m), "transform_descriptors", evil),
    "the file": lambda m, evil: setattr(_stored(m), "relative_path", evil),
    "all places": lambda m, evil: setattr(m, "storage_data", evil),
}


@pytest.mark.parametrize("place", PLACES)
def test_nothing_that_a_description_names_is_called(tmp_path: Path, place: str) -> None:
    mark, folder = tmp_path / "called", write_folder(tmp_path / "x", {"model": tensors(STATE)})
    whole = (folder / ".metadata").read_bytes()
    for hostile in hostile_objects(mark):
        metadata = pickle.loads(whole)
        PLACES[place](metadata, hostile)
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        with contextlib.suppress(CheckpointError):
            read_folder(folder)
        assert not mark.exists()


def test_nothing_that_a_chunk_names_is_called(tmp_path: Path) -> None:
    mark = tmp_path / "called"
    torch.save(Call(os.system, f"touch {mark}"), tmp_path / "evil.pt")
    content = (tmp_path / "evil.pt").read_bytes()
    folder = write_folder(tmp_path / "x", {"model": tensors(STATE), "epoch": 3})
    with (folder / "__0_0.distcp").open("ab") as stream:
        offset = stream.tell()
        stream.write(content)
    change_metadata(folder / ".metadata", _set(_stored, offset=offset, length=len(content)))
    with pytest.raises(CheckpointError, match=r"it holds something else than one tensor|\d+ are stored"):
        read_folder(folder)
    assert not mark.exists()
