"""What torch makes of the names of a Mixer, by its own wrappers and in its own files, is read as the weights it had.

Arrays are compared to the last bit, with the canonical ones too, and the notes say what was undone.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from mixer_equiv import Checkpoint, convert, load
from mixer_equiv.arrays.interop import flatten
from mixer_equiv.layouts import Conventions
from tests.support.checkpoints import in_layout
from tests.support.command_line import run
from tests.support.files import changed
from tests.support.holders import OF_STATE_DICTS, OF_TORCH, read
from tests.support.sizes import CONFIG, in_float32
from tests.support.structures import STRUCTURES

LAYOUTS = ("torch", "timm")
CANONICAL = [in_float32(CONFIG, seed) for seed in (0, 1)]


@cache
def truth(layout: str, seed: int = 0) -> Checkpoint:
    return in_layout(CANONICAL[seed], layout)


def mixer(layout: str, seed: int = 0) -> Any:
    model = STRUCTURES[layout](CONFIG)
    model.load_state_dict(truth(layout, seed))
    return model


def assert_read(held: Any, note: str | None, **options: Any) -> None:
    """The weights are those of `mixer`, and some note begins so; without one, nothing was undone."""
    found = read(held, trained_with=Conventions(), **options)
    assert changed(truth(found.layout.name).arrays, found.arrays) == []
    undone = [one for one in found.notes if "undone" in one or "stripped" in one]
    assert (undone == []) if note is None else any(re.match(note, one) for one in undone), found.notes


# Wrappers

Wrap = Callable[[Any], nn.Module]


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")  # without the import of other compilers, which warns


def each_block(wrap: Wrap) -> Wrap:
    def wrap_blocks(model: Any) -> nn.Module:
        for i in range(len(model.blocks)):
            model.blocks[i] = wrap(model.blocks[i])
        return model

    return wrap_blocks


def fsdp(model: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(
        model, sharding_strategy=ShardingStrategy.NO_SHARD, device_id=torch.device("cpu"), use_orig_params=True
    )


def _of_part(part: str, of: str) -> str:
    return rf"'{part}', of {of}, was undone in 144 names, such as \S*blocks\.0\.{part}\.\S+$"


# How a model is wrapped, and what the notes then say of its state_dict, and of its parameters by name.
WRAPPED: dict[str, tuple[Wrap, str | None, str | None]] = {
    "compiled": (compiled, "the prefix '_orig_mod.' was", "the prefix '_orig_mod.' was"),
    "compiled blocks": (
        each_block(compiled),
        _of_part("_orig_mod", "torch.compile"),
        "'_orig_mod', of torch.compile, ",
    ),
    "checkpointed blocks": (
        each_block(checkpoint_wrapper),
        None,
        _of_part("_checkpoint_wrapped_module", "torch's activation checkpointing"),
    ),
    "DataParallel": (DataParallel, "the prefix 'module.' was", "the prefix 'module.' was"),
    "DataParallel of blocks": (
        each_block(DataParallel),
        _of_part("module", "DataParallel, DistributedDataParallel or AveragedModel"),
        _of_part("module", "DataParallel, DistributedDataParallel or AveragedModel"),
    ),
    "DistributedDataParallel": (DistributedDataParallel, "the prefix 'module.' was", "the prefix 'module.' was"),
    "FSDP": (fsdp, None, "the prefix '_fsdp_wrapped_module.' was"),
    "FSDP of blocks": (each_block(fsdp), None, _of_part("_fsdp_wrapped_module", "FSDP")),
    "averaged": (AveragedModel, "the prefix 'module.' was", "the prefix 'module.' was"),
    "averaged DistributedDataParallel": (
        lambda model: AveragedModel(DistributedDataParallel(model)),
        "the prefix 'module.module.' was",
        "the prefix 'module.module.' was",
    ),
    "all around each other": (
        lambda model: DistributedDataParallel(compiled(each_block(checkpoint_wrapper)(model))),
        "the prefix 'module._orig_mod.' was",
        r"'_checkpoint_wrapped_module', of torch's activation checkpointing, was undone in 144 names",
    ),
}


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of this process alone."""
    rendezvous = tmp_path_factory.mktemp("group") / "init"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@cache
def names_and_tensors(wrapping: str, layout: str, by: str) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*NO_SHARD", UserWarning)  # of one process
        return dict(getattr(WRAPPED[wrapping][0](mixer(layout)), by)())


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(("holder", "layout"), list(zip(OF_STATE_DICTS, itertools.cycle(LAYOUTS))))
@pytest.mark.parametrize("wrapping", WRAPPED)
def test_a_wrapper_is_undone_in_every_format(tmp_path: Path, layout: str, wrapping: str, holder: str) -> None:
    for by, note in zip(("state_dict", "named_parameters"), WRAPPED[wrapping][1:], strict=True):
        assert_read(OF_STATE_DICTS[holder](names_and_tensors(wrapping, layout, by), tmp_path), note)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("wrapping", WRAPPED)
def test_what_is_wrapped_is_converted_as_it_is(wrapping: str) -> None:
    params = convert(names_and_tensors(wrapping, "torch", "named_parameters"), to="linen")
    assert changed(CANONICAL[0], dict(flatten(params))) == []


def test_the_count_of_averages_is_left_out_with_a_note() -> None:
    notes = Checkpoint.from_arrays(AveragedModel(mixer("timm")).state_dict()).notes
    assert "left out beside 'module.': n_averaged" in notes


@pytest.mark.usefixtures("group")
def test_a_distributed_tensor_of_which_this_process_has_all_is_read(tmp_path: Path) -> None:
    model = fully_shard(mixer("torch"), mesh=init_device_mesh("cpu", (1,)))
    assert_read(model.state_dict(), None)
    torch.save(model.state_dict(), tmp_path / "x.pt")
    assert_read(tmp_path / "x.pt", None)
    assert_read({name: tensor.full_tensor() for name, tensor in model.state_dict().items()}, None)
    assert_read(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), None)


def test_tensors_that_were_pickled_without_torch_s_own_function_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(mixer("torch").state_dict()))
    assert_read(tmp_path / "x.pkl", None)


# Trainers


def around(model: nn.Module) -> dict[str, Any]:
    """What a trainer keeps beside the weights of a model."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    optimizer.step()
    return {
        "epoch": 3,
        "arch": "mixer",
        "best_acc1": torch.tensor(71.25),
        "loss": torch.tensor([0.5]),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1).state_dict(),
        "scaler": {"scale": 65536.0, "growth_tracker": 0},
        "args": argparse.Namespace(lr=0.1, data=Path("data")),
        "rng": {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()},
    }


def _state_dict_of(model: nn.Module, prefix: str = "") -> Mapping[str, Tensor]:
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


def _lightning(model: nn.Module) -> dict[str, Any]:
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return {
        **around(model),
        "state_dict": {**state, "train_acc.correct": torch.tensor(9)},
        "callbacks": {"EarlyStopping": {"best_score": torch.tensor(0.25)}},
        "pytorch-lightning_version": "2.4.0",
    }


def _under(key: str) -> Callable[[nn.Module], dict[str, Any]]:
    return lambda model: {**around(model), key: model.state_dict()}


# What trainers make of a model, and what is stripped from the names in it.
TRAINERS: dict[str, tuple[Callable[[nn.Module], dict[str, Any]], str]] = {
    **{key: (_under(key), f"{key}/") for key in ("state_dict", "model", "model_state_dict", "ema", "net", "module")},
    "DataParallel": (lambda model: _under("state_dict")(DataParallel(model)), "state_dict/module."),
    "Lightning": (_lightning, "state_dict/model."),
    "nested twice": (lambda model: {"checkpoint": _under("model")(model)}, "checkpoint/model/"),
}


@pytest.mark.parametrize(("holder", "layout"), list(zip(OF_TORCH, itertools.cycle(LAYOUTS))))
@pytest.mark.parametrize("trainer", TRAINERS)
def test_weights_are_found_in_what_a_trainer_keeps(tmp_path: Path, layout: str, trainer: str, holder: str) -> None:
    make, prefix = TRAINERS[trainer]
    assert_read(OF_TORCH[holder](make(mixer(layout)), tmp_path), f"the prefix {prefix!r} was stripped from every name")


@pytest.mark.parametrize("holder", OF_TORCH)
def test_numbers_beside_the_weights_are_left_out_and_an_optimizer_is_left_out_as_told(
    tmp_path: Path, holder: str
) -> None:
    model = mixer("timm")
    held = OF_TORCH[holder]({**model.state_dict(), **around(model)}, tmp_path)
    found = read(held, ignore=["optimizer/*", "rng/*"])
    assert changed(truth("timm").arrays, found.arrays) == []
    assert "left out, as numbers that tell of training: best_acc1, loss" in found.notes


@pytest.mark.parametrize("seed", [0, 1])
def test_of_a_model_and_its_average_one_is_chosen_by_the_option_that_the_error_says(tmp_path: Path, seed: int) -> None:
    model = mixer("timm")
    torch.save(
        {**around(model), "state_dict": model.state_dict(), "state_dict_ema": mixer("timm", 1).state_dict()},
        tmp_path / "x.pt",
    )
    message = " ".join(run("convert", tmp_path / "x.pt", tmp_path / "y.npz", status=2).stderr.split())
    sets, option = re.search(r"are here, under (.*?); say which with prefix= \((--\w+)\)", message).groups()
    prefix = re.findall(r"'([^']*)'", sets)[seed]
    run("convert", tmp_path / "x.pt", tmp_path / "y.npz", option, prefix)
    assert changed(CANONICAL[seed], load(tmp_path / "y.npz").arrays) == []
