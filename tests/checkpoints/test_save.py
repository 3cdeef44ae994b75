"""`save`: what cannot be written, what is replaced, and what stays where a write fails."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixer_equiv import CheckpointError, ConversionError
from mixer_equiv.arrays.lazy import Deferred, LazyArrays
from mixer_equiv.checkpoints import formats
from mixer_equiv.checkpoints.formats import SUFFIXES
from mixer_equiv.checkpoints.io import load, save
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from tests.support.checkpoints import CONFIG, JUNK, checkpoint, files_of, old_checkpoint
from tests.support.files import changed, files_no_larger_than, snapshot

UNWRITABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "unknown suffix": (lambda folder: folder / "mixer.ckpt", r"suffix '\.ckpt'; a checkpoint is one of \.npz"),
    "no suffix": (lambda folder: folder / "mixer", r"suffix ''; a checkpoint is one of \.npz"),
    "missing directory": (lambda folder: folder / "missing" / "mixer.npz", "there is no directory"),
    "below a file": (lambda folder: folder / "file" / "mixer.npz", "there is no directory"),
    "existing file": (lambda folder: folder / "old.npz", r"exists; pass force=True \(--force\)"),
    "directory": (lambda folder: folder / "folder.npz", "is a directory; give the name of a file"),
    # Where not even root can write.
    **{f"/proc{s}": (lambda folder, s=s: Path(f"/proc/mixer{s}"), "cannot be written") for s in SUFFIXES},  # type: ignore[misc]
}


@pytest.mark.parametrize("target", UNWRITABLE)
def test_what_cannot_be_written_is_said_and_nothing_is_touched(tmp_path: Path, target: str) -> None:
    (tmp_path / "old.npz").write_bytes(JUNK)
    (tmp_path / "file").write_bytes(JUNK)
    (tmp_path / "folder.npz").mkdir()
    build, fragment = UNWRITABLE[target]
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=fragment):
        save(checkpoint(), build(tmp_path))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("force", [True, False])
def test_a_single_file_is_not_put_beside_an_index_of_its_name(tmp_path: Path, force: bool) -> None:
    save(checkpoint(), tmp_path / "a.safetensors", max_shard_size="10KB")
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=r"a\.safetensors\.index\.json is a sharded checkpoint of this name"):
        save(checkpoint(seed=1), tmp_path / "a.safetensors", force=force)
    assert snapshot(tmp_path) == before


def test_force_removes_no_file_that_an_index_names_but_that_is_not_its_shard(tmp_path: Path) -> None:
    save(checkpoint(seed=1), tmp_path / "mine.safetensors")
    before = snapshot(tmp_path)
    index = {"weight_map": dict.fromkeys(checkpoint().arrays, "mine.safetensors")}
    (tmp_path / "a.safetensors.index.json").write_text(json.dumps(index))
    save(checkpoint(), tmp_path / "a.safetensors", max_shard_size="10KB", force=True)
    assert snapshot(tmp_path).items() >= before.items()
    assert changed(checkpoint().arrays, load(tmp_path / "a.safetensors.index.json").arrays) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_force_replaces_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mixer{suffix}"
    save(checkpoint(seed=1), path)
    save(checkpoint(seed=2), path, force=True)
    assert changed(checkpoint(seed=2).arrays, load(path).arrays) == []
    assert sorted(os.listdir(tmp_path)) == files_of(path)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(OSError(28, "No space left on device"), CheckpointError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if not suffix.endswith(".index.json")])
def test_a_write_that_fails_midway_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, raised: BaseException, expected: type
) -> None:
    def fail(path: Path, *arguments: Any) -> None:
        path.write_bytes(JUNK)
        raise raised

    path = old_checkpoint(tmp_path, suffix)
    before = snapshot(tmp_path)
    failing = [dataclasses.replace(file_format, write=fail) for file_format in formats.FORMATS]
    monkeypatch.setattr(formats, "FORMATS", failing)
    with pytest.raises(expected):
        save(checkpoint(), path, force=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_an_error_of_ours_and_keeps_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = old_checkpoint(tmp_path, suffix)
    before = snapshot(tmp_path)
    try:
        with files_no_larger_than(20_000), pytest.raises(CheckpointError, match="cannot be written"):
            save(checkpoint(), path, force=True)
    finally:
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_appears_while_it_is_written_is_not_replaced_without_force(tmp_path: Path, suffix: str) -> None:
    given, path = checkpoint(), tmp_path / f"mixer{suffix}"
    is_directory = formats.format_by_suffix(path).is_directory
    precious = path / "file" if is_directory else tmp_path / "mixer-00001-of-00001.safetensors"
    precious = path if not is_directory and not suffix.endswith(".json") else precious

    def appear() -> np.ndarray:
        precious.parent.mkdir(exist_ok=True)
        precious.write_text("precious")
        return given.arrays["head/bias"]

    late = Deferred(given.specs["head/bias"].shape, given.specs["head/bias"].dtype, appear)
    lazy = dataclasses.replace(given, arrays=LazyArrays({**given.arrays, "head/bias": late}))
    with pytest.raises(CheckpointError, match="appeared meanwhile; pass force=True"):
        save(lazy, path)
    assert precious.read_text() == "precious"
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [precious]


def _refused(*paths: Path) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("linked", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".orbax"])
def test_what_replaces_a_file_has_its_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, linked: bool
) -> None:
    if not linked:
        monkeypatch.setattr(os, "link", _refused)
    path = tmp_path / f"mixer{suffix}"
    save(checkpoint(seed=1), path)
    usual = {file.name: file.stat().st_mode for file in tmp_path.iterdir()}
    for file in tmp_path.iterdir():
        file.chmod(0o640)
    save(checkpoint(seed=2), path, force=True)
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == dict.fromkeys(usual, 0o640)
    assert all(mode & 0o777 != 0o640 for mode in usual.values())
    assert changed(checkpoint(seed=2).arrays, load(path).arrays) == []


def test_saving_to_a_link_writes_the_file_it_points_to(tmp_path: Path) -> None:
    params = {name: array.astype(np.float32) for name, array in random_params(CONFIG, 0).items()}
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "a.npz", tmp_path / "link.npz"
    real.write_bytes(b"old")
    link.symlink_to(real)
    save(params, link, force=True)
    assert link.is_symlink()
    assert len(load(real)) == 150


def test_what_is_no_whole_mixer_is_not_saved(tmp_path: Path) -> None:
    params = random_params(CONFIG, 0)
    del params["stem/bias"]
    with pytest.raises(ConversionError, match="missing: stem/bias"):
        save(params, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [243, 200])
def test_a_name_as_long_as_the_system_takes(tmp_path: Path, length: int) -> None:
    path = tmp_path / f"{'a' * length}.safetensors"
    assert save(checkpoint(), path) == path
    assert changed(checkpoint().arrays, load(path).arrays) == []


def test_a_name_longer_than_the_system_takes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written: File name too long"):
        save(checkpoint(), tmp_path / f"{'a' * 244}.safetensors")
