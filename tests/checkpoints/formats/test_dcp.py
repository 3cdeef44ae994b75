"""Folders of torch.distributed.checkpoint are read as torch wrote them, from one process or several, and without it."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from mixer_equiv import CheckpointError, convert, load, save
from mixer_equiv.arrays.interop import to_numpy
from mixer_equiv.checkpoints.formats.dcp.folder import DCP
from tests.support.checkpoints import checkpoint, in_layout
from tests.support.command_line import run
from tests.support.distributed import STATE, change_metadata, read_folder, tensors, write_folder
from tests.support.files import arbitrary_bits, changed
from tests.support.scripts import BLOCKED, printed, python

# What torch writes

NESTINGS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "": lambda state: state,
    "model/": lambda state: {"model": state, "epoch": 3, "name": "mixer", "none": None},
    "app/ema/": lambda state: {"app": {"ema": state, "steps": [1, 2]}},
}
WRITERS: dict[str, Callable[[Path], Any]] = {
    "one file": lambda folder: FileSystemWriter(folder),
    "three files": lambda folder: FileSystemWriter(folder, thread_count=3),
    "a file for each tensor": lambda folder: FileSystemWriter(folder, single_file_per_rank=False),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("prefix", NESTINGS)
def test_arrays_of_any_bits_are_read_bit_for_bit(tmp_path: Path, prefix: str, dtype: str) -> None:
    arrays = in_layout(arbitrary_bits(dtype), "torch", None).arrays
    write_folder(tmp_path, NESTINGS[prefix](tensors(arrays)))
    expected = {f"{prefix}{name}": array for name, array in arrays.items()}
    assert changed(expected, read_folder(tmp_path)) == []
    assert changed(expected, read_folder(tmp_path, mmap=True)) == []


@pytest.mark.parametrize("writer", WRITERS)
def test_files_of_any_number_are_read(tmp_path: Path, writer: str) -> None:
    write_folder(tmp_path, {"model": tensors(STATE), "epoch": 3}, storage_writer=WRITERS[writer](tmp_path))
    assert changed({f"model/{name}": array for name, array in STATE.items()}, read_folder(tmp_path)) == []


@pytest.mark.parametrize("prefix", NESTINGS)
def test_a_mixer_is_loaded_and_converted(tmp_path: Path, prefix: str) -> None:
    found = load(write_folder(tmp_path / "step-100", NESTINGS[prefix](tensors(STATE))))
    assert changed(STATE, found.arrays) == []
    expected = {name: array.astype(np.float32) for name, array in checkpoint("linen").arrays.items()}
    assert changed(expected, convert(found, to="linen").arrays) == []
    path = save(found, tmp_path / "mixer.safetensors")
    assert changed(STATE, load(path).arrays) == []


def test_names_that_are_not_nested_stay_dotted(tmp_path: Path) -> None:
    planner = DefaultSavePlanner(flatten_state_dict=False)
    write_folder(tmp_path, {f"model.{name}": tensor for name, tensor in tensors(STATE).items()}, planner=planner)
    assert changed({f"model.{name}": array for name, array in STATE.items()}, read_folder(tmp_path)) == []
    assert changed(STATE, load(tmp_path).arrays) == []


def test_tensors_of_any_form_are_read(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "strided": base[1:, ::2].T,
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(base[0]),
        "counts": torch.arange(5),
        "eighth": base.to(torch.float8_e4m3fn),
    }
    expected = {name: to_numpy(name, tensor.contiguous()) for name, tensor in tensors.items() if name != "eighth"}
    for options in ({}, {"mmap": True}):
        found = read_folder(write_folder(tmp_path, tensors), **options)
        assert found.pop("eighth").tobytes() == tensors["eighth"].view(torch.uint8).numpy().tobytes()
        assert changed(expected, found) == []


def test_an_optimizer_beside_the_model_is_left_out(tmp_path: Path) -> None:
    model = torch.nn.ParameterDict({name.replace(".", "_"): t for name, t in tensors(STATE).items()})
    optimizer = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.values()).backward()
    optimizer.step()
    moments = dict(zip(STATE, optimizer.state_dict()["state"].values(), strict=True))
    state = {"model": tensors(STATE), "optim": {"state": moments, "param_groups": [{"lr": 0.1}]}, "epoch": 3}
    found = load(write_folder(tmp_path, state))
    assert changed(STATE, found.arrays) == []
    assert any("left out beside 'model/': " in note for note in found.notes)


def test_the_folder_of_the_hub_s_format_is_read(tmp_path: Path) -> None:
    names = list(STATE)
    for mapping in (None, {name: 1 + (name in names[5:]) for name in names}):
        folder = tmp_path / str(mapping is None)
        writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=mapping)
        write_folder(folder, tensors(STATE), storage_writer=writer)
        assert changed(STATE, load(folder).arrays) == []


# Names of classes in older versions of torch.
RENAMED = {
    b"torch.distributed.checkpoint.metadata\nTensorProperties": b"torch.distributed._shard.sharded_tensor.metadata\nX",
    b"torch.distributed.checkpoint.": b"torch.distributed._shard.checkpoint.",
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_descriptions_of_other_versions_are_read(tmp_path: Path, protocol: int) -> None:
    write_folder(tmp_path, {"model": tensors(STATE), "epoch": 3})
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    for newer in ("storage_meta", "version"):
        delattr(metadata, newer)
    content = pickle.dumps(metadata, protocol)
    for new, old in RENAMED.items() if protocol < 4 else ():
        assert new in content
        content = content.replace(new, old)
    (tmp_path / ".metadata").write_bytes(content)
    assert changed({f"model/{name}": array for name, array in STATE.items()}, read_folder(tmp_path)) == []
    assert changed(STATE, load(tmp_path / ".metadata").arrays) == []


# Several ranks

RANKS = """
import sys, warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.multiprocessing import spawn


def work(rank, folder):
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    state = torch.load(f"{folder}/whole.pt")
    ways = [Shard(0), Replicate(), Shard(1)]
    shards = {
        name: distribute_tensor(tensor, mesh, [ways[min(i % 3, tensor.ndim)]])
        for i, (name, tensor) in enumerate(state.items())
    }
    dcp.save({"model": shards, "epoch": 3}, checkpoint_id=f"{folder}/together")
    dcp.save({"model": shards, "epoch": 3}, checkpoint_id=f"{folder}/apart", use_collectives=False)
    writer = dcp.HuggingFaceStorageWriter(f"{folder}/hub", save_distributed=True)
    dcp.save(shards, storage_writer=writer)
    writer = dcp.HuggingFaceStorageWriter(f"{folder}/consolidated", save_distributed=True, enable_consolidation=True)
    dcp.save(shards, storage_writer=writer)
    dist.destroy_process_group()


if __name__ == "__main__":
    spawn(work, sys.argv[1:], nprocs=2)
"""

# One row is on one rank, and the other has none.
SHARDED = {**{f"model.{name}": array for name, array in STATE.items()}, "row": np.arange(5, dtype=np.float32)[None]}
SHARDED["bfloat16"] = SHARDED["row"].T.astype(to_numpy("", torch.ones(1, dtype=torch.bfloat16)).dtype)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that two processes wrote, each of them its shards."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(tensors(SHARDED), folder / "whole.pt")
    (folder / "ranks.py").write_text(RANKS)
    finished = python(
        "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')", folder / "ranks.py", folder
    )
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.mark.parametrize("saved", ["together", "apart"])
def test_shards_of_two_ranks_are_put_together(ranks: Path, saved: str) -> None:
    expected = {f"model/{name}": array for name, array in SHARDED.items()}
    assert changed(expected, read_folder(ranks / saved)) == []
    assert changed(expected, read_folder(ranks / saved, mmap=True)) == []


@pytest.mark.parametrize("saved", ["together", "apart"])
def test_the_folder_without_a_rank_is_refused(ranks: Path, tmp_path: Path, saved: str) -> None:
    folder = tmp_path / saved
    shutil.copytree(ranks / saved, folder)
    for file in folder.glob("__1*"):
        file.unlink()
    words = {
        "together": r"\.metadata names shards that are missing: __1_0\.distcp; put them beside it",
        "apart": r"__0\.metadata describes tensors that their chunks do not make up: .*numbers.*; get the whole folder",
    }
    with pytest.raises(CheckpointError, match=words[saved]):
        load(folder)


def test_ranks_of_different_models_are_refused(ranks: Path, tmp_path: Path) -> None:
    shutil.copytree(ranks / "apart", tmp_path, dirs_exist_ok=True)
    change_metadata(
        tmp_path / "__1.metadata", lambda m: setattr(m.state_dict_metadata["model.row"], "size", torch.Size([2, 5]))
    )
    with pytest.raises(
        CheckpointError, match=r"the ranks have model\.row as .*1, 5.* and as .*2, 5.*of one checkpoint"
    ):
        load(tmp_path)


def test_one_rank_s_file_of_the_hub_s_format_is_refused_and_the_remedy_puts_all_together(
    ranks: Path, tmp_path: Path
) -> None:
    for path in (ranks / "hub", *(ranks / "hub").iterdir()):
        with pytest.raises(CheckpointError, match=r"shard-0000\d-.* has one rank's part of arrays") as caught:
            load(path)
    command = str(caught.value).partition("put the parts of all ranks together: ")[2]
    script = f"import torch; {command.replace('whole.pt', str(tmp_path / 'whole.pt'))}"
    finished = python(script)
    assert finished.returncode == 0, finished.stderr
    assert changed(SHARDED, read_folder(tmp_path / "whole.pt")) == []
    assert changed(SHARDED, read_folder(ranks / "consolidated")) == []


# What is read, and when


def test_no_tensor_is_read_before_it_is_used(tmp_path: Path) -> None:
    (file,) = write_folder(tmp_path, {"model": tensors(STATE)}).glob("*.distcp")
    file.write_bytes(bytes(file.stat().st_size))
    found = load(tmp_path, lazy=True)
    assert {name: spec.shape for name, spec in found.specs.items()} == {name: a.shape for name, a in STATE.items()}
    assert found.config.num_blocks == checkpoint("torch").config.num_blocks
    with pytest.raises(CheckpointError, match=rf"{file.name} cannot be read: it is damaged or not a checkpoint"):
        convert(found, to="linen").arrays["head/bias"]


def test_a_file_that_was_replaced_meanwhile_is_refused(tmp_path: Path) -> None:
    (file,) = write_folder(tmp_path, tensors(STATE)).glob("*.distcp")
    found = load(tmp_path, lazy=True)
    os.utime(file, (1, 1))
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp was replaced or written to since it was opened"):
        found.arrays["head.bias"]


@pytest.mark.parametrize("given", [".metadata", "__0_0.distcp", "__0_2.distcp", "metadata"])
def test_any_file_stands_for_its_folder(tmp_path: Path, given: str) -> None:
    write_folder(tmp_path, tensors(STATE), storage_writer=FileSystemWriter(tmp_path, thread_count=3))
    if given == "metadata":
        (tmp_path / ".metadata").rename(tmp_path / given)
    found = load(tmp_path / given)
    assert changed(STATE, found.arrays) == []
    assert f"{given} is one of the files of its folder, all of which were read" in found.notes
    assert "all of which were read" in " ".join(run("inspect", tmp_path / given).output.split())


WITHOUT_TORCH = (
    BLOCKED
    + """
from mixer_equiv import load

print(json.dumps({name: array.tobytes().hex() for name, array in load(sys.argv[1]).arrays.items()}))
"""
)


def test_torch_is_not_needed(tmp_path: Path) -> None:
    found = printed(WITHOUT_TORCH, write_folder(tmp_path, {"model": tensors(STATE)}))
    assert found == {name: array.tobytes().hex() for name, array in STATE.items()}


def test_nothing_is_written_in_this_format(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="are read and not written"):
        DCP.write(tmp_path / "x", {}, "", "torch")
    write_folder(tmp_path / "x", tensors(STATE))
    with pytest.raises(CheckpointError, match="has the suffix ''"):
        save(checkpoint(), tmp_path / "x", force=True)
