"""Folders of several steps of one training: any step is read by its number, and errors say which there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from flax.training import checkpoints
from safetensors.numpy import save_file

from mixer_equiv import CheckpointError, load
from mixer_equiv.arrays.interop import unflatten
from tests.support.command_line import run
from tests.support.files import changed
from tests.support.sizes import CONFIG, in_float32

CANONICAL = in_float32(CONFIG, 0)
STEPS = (2, 9, 10)  # of which 9 is the last by name


@cache
def at_step(step: int) -> dict[str, np.ndarray]:
    return {name: array + np.float32(step) for name, array in CANONICAL.items()}


def _of_flax(folder: Path) -> None:
    for step in STEPS:
        checkpoints.save_checkpoint(str(folder), unflatten(at_step(step)), step, keep=len(STEPS))


def _in_msgpack(folder: Path) -> None:
    for step in STEPS:
        (folder / f"checkpoint_{step}").write_bytes(serialization.to_bytes(unflatten(at_step(step))))


def _of_orbax(folder: Path) -> None:
    with ocp.CheckpointManager(folder) as manager:
        for step in STEPS:
            manager.save(step, args=ocp.args.StandardSave(unflatten(at_step(step))))


def _in_folders(folder: Path) -> None:
    for step in STEPS:
        (folder / f"checkpoint-{step}").mkdir()
        save_file(at_step(step), folder / f"checkpoint-{step}" / "model.safetensors")
        (folder / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"other")


def _in_files(folder: Path) -> None:
    for step in STEPS:
        np.savez(folder / f"mixer_epoch{step}.npz", **at_step(step))


# How a folder is made, and whether its last step is read where none is given.
FOLDERS: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "flax.training": (_of_flax, True),
    "Flax": (_in_msgpack, True),
    "CheckpointManager": (_of_orbax, True),
    "folders": (_in_folders, False),
    "files": (_in_files, False),
}


@pytest.fixture(scope="module", params=FOLDERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(kind)
    FOLDERS[kind][0](path)
    return path


def test_any_step_is_read(folder: Path) -> None:
    for step in STEPS:
        assert changed(at_step(step), load(folder, step=step).arrays) == []


def test_any_step_is_read_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    run("convert", folder, tmp_path / "y.npz", "--step", 9, "--to", "linen")
    assert changed(at_step(9), load(tmp_path / "y.npz").arrays) == []


def test_a_step_that_is_not_there_is_refused_with_those_that_are(folder: Path) -> None:
    words = "holds nothing of step 3; the steps there are 2, 9, 10"
    with pytest.raises(CheckpointError, match=words):
        load(folder, step=3)
    assert words in run("inspect", folder, "--step", 3, status=2).stderr


def test_without_a_step_the_last_is_read_or_the_error_says_what_to_type(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    options = []
    if not FOLDERS[kind][1]:
        message = run("convert", folder, tmp_path / "y.npz", status=2).stderr
        options = shlex.split(re.search(r"\((--step \d+)\)", message)[1])
    run("convert", folder, tmp_path / "y.npz", *options, "--to", "linen")
    assert changed(at_step(10), load(tmp_path / "y.npz").arrays) == []


def test_a_step_of_a_file_or_of_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds nothing of step 3; the steps there are none"):
        load(tmp_path, step=3)
    np.savez(tmp_path / "x.npz", **CANONICAL)
    with pytest.raises(CheckpointError, match=r"x\.npz is no folder of steps, so step=3 \(--step\) says nothing of it"):
        load(tmp_path / "x.npz", step=3)


def test_two_of_one_step_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("a_3.npz", "b_3.npz"):
        np.savez(tmp_path / name, **CANONICAL)
    with pytest.raises(CheckpointError, match=r"holds several of step 3: a_3\.npz, b_3\.npz; give the path of one"):
        load(tmp_path, step=3)
