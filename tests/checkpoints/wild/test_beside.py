"""What stands beside the weights in one dict: objects, counts and settings are left out, with a note."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from mixer_equiv import Checkpoint, ConversionError, convert, load
from tests.support.checkpoints import CONFIG, checkpoint
from tests.support.command_line import run
from tests.support.files import changed

STATE = dict(checkpoint("torch").arrays)
DATA: dict[str, Any] = {"epoch": 3, "lr": 0.1, "name": "mixer", "best": None, "betas": [0.9, 0.999]}
COUNTS = {"num_batches_tracked": np.array(7), "steps": np.array([7]), "done": np.array(True)}


def _tensors() -> dict[str, Any]:
    return {name: torch.from_numpy(array.copy()) for name, array in STATE.items()}


def _in_torch(folder: Path) -> Checkpoint:
    counts = {name: torch.from_numpy(array.copy()) for name, array in COUNTS.items()}
    state = {**_tensors(), **DATA, **counts, "args": argparse.Namespace(lr=0.1), "out": folder}
    torch.save(state, folder / "x.pt")
    return load(folder / "x.pt")


def _in_npz(folder: Path) -> Checkpoint:
    np.savez(folder / "x.npz", **STATE, **COUNTS)
    return load(folder / "x.npz")


HOLDERS: dict[str, Callable[[Path], Checkpoint]] = {
    "torch": _in_torch,
    "npz": _in_npz,
    "memory": lambda folder: Checkpoint.from_arrays({**STATE, **DATA, **COUNTS}),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_cannot_be_a_weight_is_left_out_with_a_note(tmp_path: Path, holder: str) -> None:
    found = HOLDERS[holder](tmp_path)
    assert changed(STATE, found.arrays) == []
    (note,) = [note for note in found.notes if note.startswith("left out, since no weights can be: ")]
    assert "num_batches_tracked" in note or "and" in note
    convert(found, to="linen")


@pytest.mark.parametrize("array", [np.array(0.5), np.ones(1, np.float32), np.ones(3), np.ones((1, 1), int)], ids=repr)
def test_what_can_be_a_weight_is_unexpected(array: np.ndarray) -> None:
    with pytest.raises(ConversionError) as caught:
        convert({**STATE, "alpha": array}, to="linen")
    assert caught.value.unexpected_keys == ("alpha",)


def test_an_object_in_the_place_of_a_weight_is_named(tmp_path: Path) -> None:
    torch.save({**_tensors(), "head.bias": argparse.Namespace(a=1)}, tmp_path / "x.pt")
    with pytest.raises(
        ConversionError, match=r"head\.bias: found an object of argparse\.Namespace; a parameter must be"
    ):
        load(tmp_path / "x.pt")


# Numbers of training and of images: the names, shapes and dtype of a kind, and the note on it.
CHANNELS = CONFIG.in_channels
VECTORS = ((CHANNELS,), (1, CHANNELS, 1, 1), (CHANNELS, 1, 1))
SINGLES = ((), (1,))
KINDS: list[tuple[tuple[str, ...], tuple[tuple[int, ...], ...], type, str]] = [
    (
        ("mean", "std", "pixel_mean", "normalize.std", "image_mean"),
        VECTORS,
        np.float32,
        "left out: {}, by which code scales its images; scale them in the same way before the model",
    ),
    (("num_batches_tracked", "steps", "n_averaged"), SINGLES, np.int64, "left out, since no weights can be: {}"),
    (
        ("best_acc1", "val_loss", "epoch", "lr", "top5"),
        SINGLES,
        np.float32,
        "left out, as numbers that tell of training: {}",
    ),
]
NUMBERS: dict[str, tuple[str, np.ndarray, str]] = {
    f"{name} {shape}": (name, np.ones(shape, dtype), note)
    for names, shapes, dtype, note in KINDS
    for name, shape in itertools.product(names, shapes)
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_of_training_and_of_images_are_left_out_with_a_note(case: str) -> None:
    name, array, note = NUMBERS[case]
    found = Checkpoint.from_arrays({**STATE, name: array})
    found.check()
    assert changed(STATE, found.arrays) == []
    assert note.format(name) in found.notes


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_they_are_left_out_of_files_and_the_command_line_says_so(tmp_path: Path, suffix: str) -> None:
    arrays = {**STATE, **{name: array for name, array, _ in NUMBERS.values()}}
    if suffix == ".npz":
        np.savez(tmp_path / "x.npz", **arrays)
    else:
        torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, tmp_path / "x.pt")
    shown = " ".join(run("convert", tmp_path / f"x{suffix}", tmp_path / "y.npz", "--to", "torch").output.split())
    for words in ("by which code scales its images", "since no weights can be", "as numbers that tell of training"):
        assert words in shown
    assert changed(STATE, load(tmp_path / "y.npz").arrays) == []


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mean", (20,)), ("std", (3, 2)), ("running_mean", (3,)), ("best_acc1", (2,)), ("accent", ()), ("gain", (1,))],
)
def test_what_is_called_so_in_another_shape_or_nearly_so_is_unexpected(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConversionError) as caught:
        convert({**STATE, name: np.ones(shape, np.float32)}, to="linen")
    assert caught.value.unexpected_keys == (name,)


NO_NUMBERS: dict[str, Callable[[], Any]] = {
    "text": lambda: np.array("mixer"),
    "bytes": lambda: np.array([b"a", b"b"]),
    "objects": lambda: np.array([None, 1], object),
    "fields": lambda: np.zeros(2, "f4,i4"),
    "key": lambda: jax.random.key(0),
    "keys": lambda: jax.random.split(jax.random.key(0), 2),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_arrays_of_no_numbers_are_left_out_unless_a_parameter_has_their_name(kind: str) -> None:
    found = Checkpoint.from_arrays({**STATE, "beside": NO_NUMBERS[kind]()})
    assert "left out, since no weights can be: beside" in found.notes
    assert changed(STATE, found.arrays) == []
    with pytest.raises(ConversionError, match=r"head\.bias: "):
        Checkpoint.from_arrays({**STATE, "head.bias": NO_NUMBERS[kind]()})


@pytest.mark.parametrize("kind", ["text", "bytes", "objects", "fields"])
def test_arrays_of_no_numbers_in_a_file_are_left_out(tmp_path: Path, kind: str) -> None:
    np.savez(tmp_path / "x.npz", **STATE, beside=NO_NUMBERS[kind]())
    found = load(tmp_path / "x.npz")
    assert "left out, since no weights can be: beside" in found.notes
    assert changed(STATE, found.arrays) == []


def test_a_masked_array_is_refused_whose_mask_would_be_lost() -> None:
    masked = np.ma.array(STATE["head.bias"], mask=False)
    with pytest.raises(ConversionError, match=r"head\.bias: found a masked array, .* fill it: array\.filled\(0\)"):
        convert({**STATE, "head.bias": masked}, to="linen")
    convert({**STATE, "head.bias": masked.filled(0)}, to="linen")
