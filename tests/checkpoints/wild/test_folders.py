"""Folders of trainers: the file that was read is named, and no file is passed over that the tool itself reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from safetensors.numpy import save_file

from mixer_equiv import CheckpointError, convert, load
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from tests.support.files import changed
from tests.support.sizes import CONFIG

STATE = {name: array.astype(np.float32) for name, array in random_params(CONFIG, 0).items()}
TORCH = dict(convert(STATE, to="torch", config=CONFIG).arrays)
OTHER = {name: array + np.float32(1) for name, array in TORCH.items()}


def write(path: Path, arrays: Any = TORCH) -> None:
    """Write by `torch.save`, or in the format that the name tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(dict(arrays), path)
    elif ".npz" in path.name:
        with path.open("wb") as stream:
            np.savez(stream, **arrays)
    else:
        torch.save(as_tensors(arrays), path)


def as_tensors(arrays: Any) -> Any:
    if isinstance(arrays, dict):
        return {name: as_tensors(array) for name, array in arrays.items()}
    return torch.from_numpy(arrays.copy())


UNUSUAL = ("last.pth.tar", "checkpoint.npz-000005000", "weights", "model.pt.bak", "best.model")


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_file_of_an_unusual_name_is_a_candidate(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    for text in ("config.json", "README.md", "train.log", "events.out.tfevents.1", ".hidden", "optimizer.pt"):
        (tmp_path / text).write_bytes(b"a b c d e f g h")
    np.save(tmp_path / "mean.npy", np.zeros(3))
    found = load(tmp_path)
    assert changed(TORCH, found.arrays) == []
    assert f"{name} was read, of the folder {tmp_path.name}" in found.notes
    write(tmp_path / "ema.pth", OTHER)
    with pytest.raises(CheckpointError, match="holds 2 checkpoints") as caught:
        load(tmp_path)
    assert name in str(caught.value)
    assert "ema.pth" in str(caught.value)
    assert changed(OTHER, load(tmp_path / "ema.pth").arrays) == []


def test_steps_of_the_hub_s_trainer_are_named_beside_the_model(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors")
    for step in (500, 1000):
        write(tmp_path / f"checkpoint-{step}" / "model.safetensors", OTHER)
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    found = load(tmp_path)
    assert changed(TORCH, found.arrays) == []
    assert "model.safetensors was read" in "; ".join(found.notes)
    told = "the steps 500, 1000 stand beside it and were not read; step=1000 (--step 1000) reads one"
    assert told in found.notes
    assert changed(OTHER, load(tmp_path, step=500).arrays) == []


def test_the_step_that_orbax_s_manager_wrote_last_is_named(tmp_path: Path) -> None:
    with ocp.CheckpointManager(tmp_path / "x") as manager:
        for step in (2, 9, 10):
            manager.save(step, args=ocp.args.StandardSave(STATE))
    assert "10 was read, of the steps 2, 9, 10; step= (--step) says another" in load(tmp_path / "x").notes
    assert not any("steps" in note for note in load(tmp_path / "x", step=9).notes)


# Files of one rank


SETS = {
    "DeepSpeed": [f"mp_rank_0{i}_model_states.pt" for i in range(2)],
    "fairscale": [f"consolidated.0{i}.pth" for i in range(2)],
    "a script": [f"model_rank_{i}.pt" for i in range(2)],
    "a short script": [f"rank{i}.bin" for i in range(2)],
    "Megatron": [f"mp_rank_0{i}/model_optim_rng.pt" for i in range(2)],
}


@pytest.mark.parametrize("names", SETS.values(), ids=SETS)
def test_one_rank_s_part_is_refused_where_others_stand_beside_it(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write(tmp_path / name)
    for given in (*names, "."):
        if given == "." and "/" in names[0]:
            continue
        with pytest.raises(CheckpointError, match=r"is of rank \d of 2: one part of arrays .*; merge the parts"):
            load(tmp_path / given)


@pytest.mark.parametrize("names", SETS.values(), ids=SETS)
def test_rank_0_alone_is_read_with_a_note(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path / names[0])
    found = load(tmp_path / names[0])
    assert changed(TORCH, found.arrays) == []
    if "/" not in names[0]:
        told = f"{names[0]} is called as the part of rank 0, and no other rank's stands beside it"
        assert told in found.notes
        assert told in load(tmp_path).notes


def test_another_rank_alone_is_refused_and_a_rank_of_adapters_is_none(tmp_path: Path) -> None:
    write(tmp_path / "mp_rank_01_model_states.pt")
    with pytest.raises(CheckpointError, match="is of rank 1 of 2"):
        load(tmp_path)
    for rank in (8, 16):
        write(tmp_path / f"lora_rank_{rank}.pt")
    assert changed(TORCH, load(tmp_path / "lora_rank_8.pt").arrays) == []


def _deepspeed(folder: Path, states: Iterable[str]) -> None:
    (folder / "latest").write_text("global_step1000\n")
    (folder / "zero_to_fp32.py").write_text("import torch\n")
    for step in (500, 1000):
        for state in states:
            write(folder / f"global_step{step}" / state, {"module": TORCH if step == 1000 else OTHER})
        write(folder / f"global_step{step}" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", {"x": np.zeros(9)})


def test_of_deepspeed_s_steps_the_latest_is_read(tmp_path: Path) -> None:
    _deepspeed(tmp_path, ["mp_rank_00_model_states.pt"])
    found = load(tmp_path)
    assert changed(TORCH, found.arrays) == []
    assert "global_step1000 was read, which the file 'latest' names" in found.notes
    assert "the optimizer's float32 copies of the weights, in *_optim_states.pt, were not read" in found.notes
    assert changed(OTHER, load(tmp_path, step=500).arrays) == []


ZERO_3 = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(2)]


@pytest.mark.parametrize("given", [lambda root: root, lambda root: root / "global_step1000" / ZERO_3[1]])
def test_weights_that_deepspeed_spread_over_ranks_are_refused(tmp_path: Path, given: Callable[[Path], Path]) -> None:
    _deepspeed(tmp_path, ZERO_3)
    with pytest.raises(CheckpointError, match=r"ZeRO-3 .*python zero_to_fp32.py \. model.pt"):
        load(given(tmp_path))


def test_a_file_called_latest_that_names_nothing_is_no_step(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("../elsewhere")
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="is a directory"):
        load(tmp_path)


def test_the_only_file_of_a_folder_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.tar.gz").write_bytes(bytes.fromhex("1f8b0800"))
    with pytest.raises(CheckpointError, match=r"model\.tar\.gz is compressed by gzip; unpack it"):
        load(tmp_path)
