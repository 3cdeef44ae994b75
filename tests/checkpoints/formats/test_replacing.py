"""Replacing files and directories: an old checkpoint stays, or is back, where a write fails."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixer_equiv import CheckpointError, atomic
from mixer_equiv.checkpoints import formats
from tests.support.files import snapshot
from tests.support.trees import TREE, write


def test_a_file_does_not_take_the_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "kept" / "below").mkdir(parents=True)
    with (
        pytest.raises(CheckpointError, match="kept is a directory, and what is written is a file"),
        atomic.replacement(tmp_path / "kept") as temporary,
    ):
        temporary.write_text("text")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "kept", tmp_path / "kept" / "below"]


def test_a_pipe_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(CheckpointError, match=r"x\.npz is a pipe or a device; a checkpoint is a file"):
        formats.read(tmp_path / "x.npz")
    with (
        pytest.raises(CheckpointError, match=r"x\.npz is a pipe or a device, and is not replaced"),
        atomic.replacement(tmp_path / "x.npz") as temporary,
    ):
        temporary.write_text("text")
    assert (tmp_path / "x.npz").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["key", "disk"])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_directory_is_back_if_its_replacement_fails_between_the_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, raised: BaseException
) -> None:
    write(tmp_path / "x.orbax", TREE)
    before, seen, replace = snapshot(tmp_path), [], os.replace

    def replacing_once(source: Path, target: Path) -> None:
        seen.append(target)
        if len(seen) == failing + 1:
            raise raised
        replace(source, target)

    monkeypatch.setattr(os, "replace", replacing_once)
    with (
        pytest.raises(KeyboardInterrupt if isinstance(raised, KeyboardInterrupt) else CheckpointError),
        atomic.replacement(tmp_path / "x.orbax") as temporary,
    ):
        temporary.mkdir()
    assert len(seen) > failing
    assert snapshot(tmp_path) == before


def test_an_old_directory_is_kept_where_it_cannot_be_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.orbax", TREE)
    before, replace = list(snapshot(tmp_path / "x.orbax").values()), os.replace

    def replacing_old(source: Path, target: Path) -> None:
        if target.name == "x.orbax":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", replacing_old)
    with pytest.raises(KeyboardInterrupt), atomic.replacement(tmp_path / "x.orbax") as temporary:
        temporary.mkdir()
    (kept,) = tmp_path.iterdir()
    assert list(snapshot(kept).values()) == before


@pytest.mark.parametrize("raised", [KeyboardInterrupt, OSError(28, "No space left on device")], ids=["key", "disk"])
def test_what_interrupts_torch_while_it_writes_is_what_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Any
) -> None:
    class Failing(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > 20_000:
                raise raised
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda path, mode: Failing(path, mode))
    with pytest.raises(KeyboardInterrupt if raised is KeyboardInterrupt else OSError) as caught:
        write(tmp_path / "x.pt", {str(i): np.ones(1000) for i in range(20)})
    assert isinstance(raised, type) or caught.value is raised
