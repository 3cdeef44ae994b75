"""npz and npy that hold Python objects, or arrays without names: one dict is read, and nothing in it is called."""

from __future__ import annotations

import argparse
import dataclasses
import io
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_equiv import CheckpointError, ConversionError, LayoutError, convert, load, save
from mixer_equiv.arrays.interop import NotAnArray, flatten, to_numpy, unflatten
from mixer_equiv.checkpoints import formats
from mixer_equiv.checkpoints.formats import base
from mixer_equiv.checkpoints.formats.npy import NPY
from tests.support.checkpoints import checkpoint, in_layout
from tests.support.command_line import run
from tests.support.files import arbitrary_bits, changed
from tests.support.hostile import hostile_objects
from tests.support.scripts import BLOCKED, printed

STATE = {name: array.astype(np.float32) for name, array in checkpoint("linen").arrays.items()}
PARAMS = unflatten(STATE)


def _npy(path: Path, tree: Any) -> Path:
    np.save(path.with_suffix(".npy"), tree, allow_pickle=True)
    return path.with_suffix(".npy")


def _npz(path: Path, tree: Any) -> Path:
    np.savez(path.with_suffix(".npz"), tree)
    return path.with_suffix(".npz")


def _compressed(path: Path, tree: Any) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), params=tree)
    return path.with_suffix(".npz")


def _one_row(path: Path, tree: Any) -> Path:
    row = np.empty(1, object)
    row[0] = tree
    np.savez(path.with_suffix(".npz"), params=row, step=np.array(7))
    return path.with_suffix(".npz")


# Writers of one Python object, and the prefix that its arrays get.
WRITERS: dict[str, tuple[Callable[[Path, Any], Path], str]] = {
    "npy": (_npy, ""),
    "npz": (_npz, "arr_0/"),
    "npz by name": (_compressed, "params/"),
    "npz of one row": (_one_row, "params/"),
}

TREES: dict[str, Callable[[Mapping[str, np.ndarray]], Any]] = {
    "nested": unflatten,
    "flat": dict,
    "JAX": lambda arrays: {"params": jax.tree.map(jnp.asarray, unflatten(arrays))},
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_mixer_in_one_object_is_loaded_and_converted(tmp_path: Path, writer: str, tree: str) -> None:
    write, prefix = WRITERS[writer]
    found = load(write(tmp_path / "x", TREES[tree](STATE)))
    assert changed(STATE, found.arrays) == []
    whole = f"{prefix}params/" if tree == "JAX" else prefix
    assert not whole or f"the prefix {whole!r} was stripped from every name" in found.notes
    expected = {name: array.astype(np.float32) for name, array in checkpoint("torch").arrays.items()}
    assert changed(expected, convert(found, to="torch").arrays) == []
    assert changed(STATE, load(save(found, tmp_path / "mixer.npz")).arrays) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("writer", WRITERS)
def test_arrays_of_any_bits_are_read_bit_for_bit(tmp_path: Path, writer: str, dtype: str) -> None:
    arrays = dict(in_layout(arbitrary_bits(dtype), "linen", None).arrays)
    write, prefix = WRITERS[writer]
    leaves = flatten(formats.read(write(tmp_path / "x", unflatten(arrays))).arrays)
    found = {name.removeprefix(prefix): to_numpy(name, leaf) for name, leaf in leaves}
    found.pop("step", None)
    assert changed(arrays, found) == []


def test_objects_beside_the_weights_are_left_out_with_a_note(tmp_path: Path) -> None:
    beside = {"args": argparse.Namespace(lr=0.1), "epoch": 3}
    np.savez(tmp_path / "x.npz", params=PARAMS, beside=beside, names=np.array(["a", None], object))
    found = load(tmp_path / "x.npz")
    assert changed(STATE, found.arrays) == []
    assert "objects that are no arrays were passed over: argparse.Namespace" in found.notes
    assert any("left out beside 'params/': " in note for note in found.notes)


def test_an_array_of_objects_in_the_place_of_a_weight_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **STATE | {"head/bias": np.array([None, "x"], object)})
    with pytest.raises(
        ConversionError, match="head/bias: found an array of Python objects; a parameter must be an array"
    ):
        load(tmp_path / "x.npz")


def test_an_array_that_holds_itself_is_cut_where_it_does(tmp_path: Path) -> None:
    array = np.empty((), object)
    array[()] = {"a": np.ones(2), "me": array}
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    found = formats.read(tmp_path / "x.npy").arrays
    np.testing.assert_array_equal(found["a"], np.ones(2))
    assert found["me"] == NotAnArray("a reference to what holds it")


WITHOUT_FRAMEWORKS = (
    BLOCKED
    + """
from mixer_equiv import load

print(json.dumps([{n: a.tobytes().hex() for n, a in load(path).arrays.items()} for path in sys.argv[1:]]))
"""
)


def test_no_framework_is_needed(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"x{i}", PARAMS) for i, (write, _) in enumerate(WRITERS.values())]
    for found in printed(WITHOUT_FRAMEWORKS, *paths):
        assert found == {name: array.tobytes().hex() for name, array in STATE.items()}


# npy of other things


NO_DICTS: dict[str, tuple[Any, str]] = {
    "numbers": (
        np.ones((2, 3), np.float32),
        r"holds one array without a name, of float32 \(2, 3\); a checkpoint has arrays by name: "
        r"np\.savez\('weights\.npz', \*\*arrays\)",
    ),
    "a list": ([1, None], "holds an array of Python objects; expected a state_dict"),
    "two dicts": ([PARAMS, PARAMS], "holds an array of Python objects; expected a state_dict"),
    "an object": (argparse.Namespace(a=1), "holds an array of Python objects; expected a state_dict"),
}


@pytest.mark.parametrize("kind", NO_DICTS)
def test_an_npy_of_anything_but_a_dict_is_refused(tmp_path: Path, kind: str) -> None:
    value, words = NO_DICTS[kind]
    path = _npy(tmp_path / "x", np.asarray(value))
    for name in ("x.npy", "x.npz", "x"):
        path = path.rename(tmp_path / name)
        with pytest.raises(CheckpointError, match=rf"{name} {words}") as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_the_remedy_for_an_array_without_a_name_gives_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(_npy(tmp_path / "x", np.ones(3)))
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).partition("arrays by name: ")[2], {"np": np, "arrays": STATE})
    assert changed(STATE, load("weights.npz").arrays) == []


def test_npy_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is read and not written; give a name that ends with \.npz"):
        NPY.write(tmp_path / "x.npy", {}, "", "flax")
    with pytest.raises(CheckpointError, match=r"has the suffix '\.npy'"):
        save(checkpoint(), tmp_path / "x.npy")


# Damage, and what is hostile


PLACES: dict[str, Callable[[Any], Any]] = {
    "in the dict": lambda hostile: {"w": np.ones(2), "x": hostile},
    "deeper": lambda hostile: {"w": np.ones(2), "a": {"b": [hostile]}},
    "alone": lambda hostile: hostile,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_that_a_pickle_names_is_called(tmp_path: Path, writer: str, place: str) -> None:
    mark, (write, prefix) = tmp_path / "called", WRITERS[writer]
    for hostile in hostile_objects(mark):
        path = write(tmp_path / "x", PLACES[place](hostile))
        if (writer, place) == ("npy", "alone"):
            with pytest.raises(CheckpointError, match="holds an array of Python objects; expected a state_dict"):
                formats.read(path)
        else:
            found = dict(flatten(formats.read(path).arrays))
            assert place == "alone" or np.array_equal(found[f"{prefix}w"], np.ones(2))
        assert not mark.exists()


def _member(content: bytes, compression: int = zipfile.ZIP_STORED) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("params.npy", content)

    return write


def _object_header() -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
    return stream.getvalue()


def _header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


HEADER = _object_header()
DEEP = "{'descr': '<f4', 'fortran_order': False, 'shape': " + "-" * 9000 + "1}\n"
DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "npz without its pickle": (_member(HEADER), "PickleError"),
    "npz with half a pickle": (_member(HEADER + b"\x80\x04}"), "PickleError"),
    "npz with junk": (_member(HEADER + b"junk"), "PickleError"),
    "npz with an extension": (_member(HEADER + b"\x80\x02\x82\x01."), "the operation EXT1"),
    "npz of zeros": (
        _member(HEADER + bytes(base.MAX_INFLATED), zipfile.ZIP_DEFLATED),
        r"holds 'params\.npy' of 268435\d+ bytes compressed to \d+; no weights can be compressed so far",
    ),
    "npy nested too deep": (lambda path: path.write_bytes(_header(DEEP)), "its header is nested too deep"),
    "npz nested too deep": (_member(_header(DEEP)), "its header is nested too deep"),
    "npz of a long header": (
        _member(b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little"), zipfile.ZIP_DEFLATED),
        "it declares a header of 2147483648 bytes",
    ),
    "npz by bzip2": (_member(HEADER + b"\x80\x02}.", zipfile.ZIP_BZIP2), "in a way that no writer of weights uses"),
    "npy without its pickle": (lambda path: path.write_bytes(HEADER), "PickleError"),
    "npy with half a pickle": (lambda path: path.write_bytes(HEADER + b"\x80\x04}"), "PickleError"),
    "npy with half a header": (lambda path: path.write_bytes(HEADER[:20]), "ValueError"),
    "npy of a future version": (
        lambda path: path.write_bytes(b"\x93NUMPY\x09\x00" + HEADER[8:]),
        r"npy format version \(9, 0\)",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_objects_are_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    write, words = DAMAGED[kind]
    write(tmp_path / f"x.{kind[:3]}")
    with pytest.raises(CheckpointError, match=words) as caught:
        load(tmp_path / f"x.{kind[:3]}")
    assert str(tmp_path / f"x.{kind[:3]}") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_byte_of_a_pickle_in_an_npz_is_noticed(tmp_path: Path) -> None:
    path = _npz(tmp_path / "x", PARAMS)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"Bad CRC-32|PickleError"):
        load(path)


# Arrays without names


@dataclasses.dataclass
class Model:
    """A model of torch, as far as the remedy asks for one."""

    state: Mapping[str, np.ndarray]

    def state_dict(self) -> Mapping[str, np.ndarray]:
        return self.state


IN_TORCH = {name: array.astype(np.float32) for name, array in checkpoint("torch").arrays.items()}

# What was saved without names: the leaves, what they are, and how the remedy finds the names again.
LEAVES: dict[str, tuple[Any, Mapping[str, np.ndarray], str]] = {
    "torch": (IN_TORCH.values(), IN_TORCH, r"list\(model\.state_dict\(\)\)"),
    "JAX": (jax.tree.leaves(PARAMS), STATE, r"\['/'\.join\(keys\).*\]$"),
}


@pytest.mark.parametrize("kind", LEAVES)
def test_arrays_by_position_are_refused_and_the_remedy_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    leaves, expected, names = LEAVES[kind]
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", *leaves)
    with pytest.raises(CheckpointError, match=r"holds \d+ arrays by position \(arr_0, arr_1, \.\.\.\)") as caught:
        load("x.npz")
    typed = [re.search(pattern, str(caught.value)) for pattern in (names, r"np\.savez\('named.*strict=True\)\)\)")]
    found, command = (match[0] for match in typed if match)
    known = {"np": np, "flax": flax, "model": Model(IN_TORCH), "params": PARAMS}
    exec(f"names = {found}; {command}", known)
    assert changed(expected, load("named.npz").arrays) == []


def test_the_command_says_that_names_are_lost(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", *STATE.values())
    assert "their names are lost" in " ".join(run("inspect", tmp_path / "x.npz", status=2).stderr.split())


@pytest.mark.parametrize("names", [["arr_0"], ["arr_0", "b"], ["arr_0", "arr_x"]])
def test_other_names_are_of_no_known_layout(tmp_path: Path, names: list[str]) -> None:
    np.savez(tmp_path / "x.npz", **dict.fromkeys(names, np.ones(3)))
    with pytest.raises(LayoutError, match="no known layout"):
        load(tmp_path / "x.npz")


def test_objects_by_position_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", PARAMS, {"step": 3})
    assert changed(STATE, load(tmp_path / "x.npz").arrays) == []
