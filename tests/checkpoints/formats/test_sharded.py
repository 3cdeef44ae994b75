"""Sharded safetensors and their index: sizes, folders, damage, and replacing old shards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mixer_equiv import CheckpointError, atomic
from mixer_equiv.checkpoints import formats
from mixer_equiv.checkpoints.formats.sharded import parse_size, write_sharded
from tests.support.files import changed, files_no_larger_than, snapshot
from tests.support.trees import METADATA, read


def _arrays() -> dict[str, np.ndarray]:
    """Of 40, 400, 80, 48 and 8 bytes."""
    rng = np.random.default_rng(3)
    return {f"x{i}": rng.normal(size=size) for i, size in enumerate((5, 50, 10, 6, 1))}


def _shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _sharded(path: Path, size: int = 100, *, force: bool = False, arrays: Any = None) -> Path:
    return write_sharded(path, _arrays() if arrays is None else arrays, METADATA, "torch", size, force=force)


SHARDS = {1: ["x0"], 2: ["x1"], 3: ["x2"], 4: ["x3", "x4"]}
FILES = {f"model-{i:05d}-of-00004.safetensors": names for i, names in SHARDS.items()}
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("name", ["model.safetensors", INDEX])
def test_shards_are_filled_in_order_up_to_their_size(tmp_path: Path, name: str) -> None:
    assert _sharded(tmp_path / name) == tmp_path / INDEX
    assert _shards(tmp_path) == sorted([*FILES, INDEX])
    for file, names in FILES.items():
        assert changed({name: _arrays()[name] for name in names}, load_file(tmp_path / file)) == []
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 72 * 8, "mixer_equiv": METADATA}
    assert index["weight_map"] == {name: file for file, names in FILES.items() for name in names}
    assert changed(_arrays(), read(tmp_path / INDEX)) == []


def test_what_fits_in_one_file_is_one_unless_an_index_is_asked_for(tmp_path: Path) -> None:
    assert _sharded(tmp_path / "model.safetensors", 1000) == tmp_path / "model.safetensors"
    assert _shards(tmp_path) == ["model.safetensors"]
    assert changed(_arrays(), load_file(tmp_path / "model.safetensors")) == []
    assert _sharded(tmp_path / INDEX, 1000, force=True) == tmp_path / INDEX
    assert _shards(tmp_path) == ["model-00001-of-00001.safetensors", INDEX]


def _hub_folder(folder: Path, *, sharded: bool) -> None:
    """As it is downloaded, by the safetensors library alone."""
    files = FILES if sharded else {"model.safetensors": list(_arrays())}
    for file, names in files.items():
        save_file({name: _arrays()[name] for name in names}, folder / file, metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    if sharded:
        weight_map = {name: file for file, names in files.items() for name in names}
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 576}, "weight_map": weight_map}))


@pytest.mark.parametrize("sharded", [True, False])
def test_a_downloaded_folder_is_read(tmp_path: Path, sharded: bool) -> None:
    _hub_folder(tmp_path, sharded=sharded)
    assert changed(_arrays(), read(tmp_path)) == []
    assert formats.read(tmp_path).metadata is None


def test_an_index_of_any_name_is_read(tmp_path: Path) -> None:
    _hub_folder(tmp_path, sharded=True)
    assert changed(_arrays(), read((tmp_path / INDEX).rename(tmp_path / "renamed.txt"))) == []


def _edit(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"] |= changes
        index["weight_map"] = {name: shard for name, shard in index["weight_map"].items() if shard is not None}
        (folder / INDEX).write_text(json.dumps(index))

    return edit


def _remove(*shards: int) -> Callable[[Path], Any]:
    return lambda folder: [(folder / list(FILES)[i - 1]).unlink() for i in shards]


def _index(content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / INDEX).write_text(content)


FIRST, SECOND = list(FILES)[:2]
BAD_SHARDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard is missing": (_remove(2), f"names shards that are missing: {SECOND}; put them beside it"),
    "two are missing": (_remove(1, 2), f"missing: {FIRST}, {SECOND}; put"),
    "an array is missing": (_edit(y=FIRST), f"names arrays that their shards do not hold: y in {FIRST}; the index is"),
    "many are missing": (
        _edit(**{f"y{i}": FIRST for i in range(9)}),
        f"do not hold: {', '.join(f'y{i} in {FIRST}' for i in range(4))} and 5 more; ",
    ),
    "an array is elsewhere": (_edit(x0=SECOND), f"do not hold: x0 in {SECOND}; "),
    "an array is not named": (_edit(x3=None), "does not name arrays that its shards hold: x3 in model-00004-of-00004"),
    "shards are above": (_edit(x0=f"../{FIRST}"), rf"names files outside its folder: \.\./{FIRST}; shards must"),
    "shards are below": (_edit(x0=f"sub/{FIRST}", x1="sub\\y"), r"outside its folder: sub/.*, sub\\y; "),
    "shards are anywhere": (_edit(x0="/etc/passwd", x1=".."), r"outside its folder: \.\., /etc/passwd; "),
    "shards are pickles": (_edit(x0="pytorch_model.bin"), "shards that are missing: pytorch_model.bin; "),
    "the index is text": (_index("hello"), r"is not JSON \(.*\); expected"),
    "the index is empty": (_index(""), r"is not JSON \(.*\); expected"),
    "the index is a list": (_index("[1]"), "has no weight_map of names to files; expected"),
    "the map is empty": (_index('{"weight_map": {}}'), "has an empty weight_map, so it names no arrays; expected"),
    "the index has no map": (_index('{"metadata": {}}'), "has no weight_map of names to files; expected"),
    "the map is a list": (_index('{"weight_map": ["x"]}'), "has no weight_map of names to files; expected"),
    "the map has numbers": (_index('{"weight_map": {"x": 3}}'), "has no weight_map of names to files; expected"),
    "a shard is junk": (lambda folder: (folder / SECOND).write_bytes(b"junk"), "SafetensorError"),
    "a shard is cut": (lambda folder: os.truncate(folder / SECOND, 300), "SafetensorError"),
}


@pytest.mark.parametrize("fault", BAD_SHARDS)
def test_shards_that_do_not_fit_their_index_are_refused_in_words(tmp_path: Path, fault: str) -> None:
    plant, fragment = BAD_SHARDS[fault]
    _hub_folder(tmp_path, sharded=True)
    plant(tmp_path)
    with pytest.raises(CheckpointError, match=fragment) as caught:
        formats.read(tmp_path / INDEX)
    assert INDEX in str(caught.value)
    assert "\n" not in str(caught.value)


FOLDERS: dict[str, tuple[list[str], str]] = {
    "two indices": (["a.safetensors.index.json", "b.safetensors.index.json"], r"holds 2 checkpoints \(a\..*, b\..*\)"),
    "an index and a file": (
        ["a.safetensors", "a.safetensors.index.json"],
        r"holds 2 checkpoints \(a\.safetensors, a\.safetensors\.index\.json\)",
    ),
    "shards alone": (
        ["a-00001-of-00002.safetensors"],
        r"a-00001-of-00002\.safetensors is part 1 of 2, and neither an index nor part 2 stands beside it;",
    ),
    "two files": (["a.safetensors", "b.safetensors"], r"holds 2 checkpoints \(a\.safetensors, b\.safetensors\); give"),
    "neither": (["model.safetensors.md"], "a folder with one of them, and this one holds model.safetensors.md"),
    "nothing": (
        [],
        "is a directory; a checkpoint is a file .*, a directory of Orbax or .*, or a folder .* holds nothing",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_of_not_just_one_checkpoint_are_refused_in_words(tmp_path: Path, kind: str) -> None:
    names, fragment = FOLDERS[kind]
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=fragment):
        formats.read(tmp_path)


EXISTING = ["model.safetensors", INDEX, "model-00001-of-00004.safetensors", "model-00001-of-00009.safetensors"]


@pytest.mark.parametrize("existing", EXISTING)
@pytest.mark.parametrize("target", ["model.safetensors", INDEX])
def test_existing_files_of_the_checkpoint_are_kept(tmp_path: Path, target: str, existing: str) -> None:
    (tmp_path / existing).write_bytes(b"old")
    with pytest.raises(CheckpointError, match=rf"{existing} exists; pass force=True \(--force\)"):
        _sharded(tmp_path / target)
    assert snapshot(tmp_path) == {str(tmp_path / existing): b"old"}


@pytest.mark.parametrize("size", [1000, 200, 100])
@pytest.mark.parametrize("target", ["model.safetensors", INDEX])
def test_force_leaves_no_file_of_the_old_checkpoint(tmp_path: Path, target: str, size: int) -> None:
    for old in (50, 1000):
        _sharded(tmp_path / target, old, force=True, arrays=_arrays() | {"y": np.ones(9)})
        (tmp_path / "other-00001-of-00002.safetensors").write_bytes(b"kept")
        path = _sharded(tmp_path / target, size, force=True)
        assert changed(_arrays(), read(path)) == []
        index = json.loads(path.read_text())["weight_map"].values() if path.name == INDEX else []
        assert _shards(tmp_path) == sorted({*index, path.name, "other-00001-of-00002.safetensors"})


def test_force_removes_nothing_that_an_index_names_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "other.safetensors").write_bytes(b"kept")
    (tmp_path / "x" / INDEX).write_text(json.dumps({"weight_map": {"x": "../other.safetensors", "y": ".."}}))
    _sharded(tmp_path / "x" / INDEX, force=True)
    assert (tmp_path / "other.safetensors").read_bytes() == b"kept"


def test_a_folder_in_the_way_is_kept_even_with_force(tmp_path: Path) -> None:
    (tmp_path / FIRST).mkdir()
    with pytest.raises(CheckpointError, match=f"{FIRST} is a directory where a file has to go"):
        _sharded(tmp_path / INDEX, force=True)
    assert _shards(tmp_path) == [FIRST]


# Eight files of the old checkpoint are put aside, and five new ones are moved in.
MOVES = 13


@pytest.mark.parametrize("raised", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "key"])
@pytest.mark.parametrize("failing", range(MOVES))
def test_a_failure_at_any_move_keeps_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, raised: BaseException
) -> None:
    _sharded(tmp_path / INDEX, 8, arrays={f"x{i}": np.ones(1) for i in range(7)})
    before, moved, put = snapshot(tmp_path), [], atomic.move

    def failing_put(source: Path, target: Path, *, force: bool) -> None:
        moved.append(target)
        if len(moved) == failing + 1:
            raise raised
        put(source, target, force=force)

    monkeypatch.setattr(atomic, "move", failing_put)
    with pytest.raises(CheckpointError if isinstance(raised, OSError) else KeyboardInterrupt):
        _sharded(tmp_path / INDEX, force=True)
    assert snapshot(tmp_path) == before
    moved.clear()
    monkeypatch.setattr(atomic, "move", lambda *paths, force: (moved.append(paths[1]), put(*paths, force=force)))
    _sharded(tmp_path / INDEX, force=True)
    assert (len(moved), moved[-1]) == (MOVES, tmp_path / INDEX)


def test_what_was_put_aside_is_kept_and_named_where_it_cannot_be_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sharded(tmp_path / INDEX, 8, arrays={f"x{i}": np.ones(1) for i in range(7)})
    old, replace = {path.name: path.read_bytes() for path in tmp_path.iterdir()}, os.replace

    def failing(source: Path, target: Path) -> None:
        if source.parent.name == "old" or target.name == INDEX:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        _sharded(tmp_path / INDEX, force=True)
    (aside,) = tmp_path.glob(".*.tmp/old")
    kept = {path.name: path.read_bytes() for path in [*aside.iterdir(), *tmp_path.iterdir()] if path.is_file()}
    assert kept == old
    with pytest.raises(CheckpointError, match=f"put aside, are in {aside}"):
        formats.read(tmp_path)


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    arrays = {"x": np.ones(3), "y": np.ones(100_000)}
    with files_no_larger_than(20_000), pytest.raises(CheckpointError, match=r"model.*cannot be written"):
        _sharded(tmp_path / INDEX, arrays=arrays)
    assert _shards(tmp_path) == []


def test_where_no_file_can_be_made_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written: No such file"):
        _sharded(tmp_path / "missing" / INDEX)
    with pytest.raises(CheckpointError, match=r"x\.npz cannot be sharded; give a name that ends with \.safetensors"):
        _sharded(tmp_path / "x.npz")


SIZES = {"5GB": 5 * 10**9, "100MB": 10**8, "2GiB": 2**31, "1.5 kB".replace("k", "K"): 1500, "17": 17, "3B": 3}


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_decimal_unless_they_say_otherwise(size: str) -> None:
    assert parse_size(size) == SIZES[size]
    assert parse_size(SIZES[size]) == SIZES[size]


@pytest.mark.parametrize("size", ["", "GB", "5 apples", "-5GB", "0", "0.1B", "5gb", "5Gb", "1e9", "5GB 3MB", 0, -1])
def test_what_is_no_size_is_refused_in_words(size: Any) -> None:
    with pytest.raises(CheckpointError, match="expected bytes, or a size such as 5GB, 100MB or 2GiB"):
        parse_size(size)
