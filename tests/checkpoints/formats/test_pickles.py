"""Pickles are read as torch and Python read them, and nothing that they name is imported or called."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import pickle
import pickletools
import random
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from flax.core import freeze

from mixer_equiv import Checkpoint, CheckpointError, MixerEquivError, load
from mixer_equiv.arrays.interop import NotAnArray, to_numpy
from mixer_equiv.arrays.lazy import Deferred
from mixer_equiv.checkpoints import formats
from mixer_equiv.checkpoints.formats import base, torch_zip
from mixer_equiv.checkpoints.formats.pickles import machine as pickle_machine
from mixer_equiv.checkpoints.formats.pickles import tree
from mixer_equiv.checkpoints.formats.pickles.arrays import as_sizes
from mixer_equiv.checkpoints.formats.pickles.constructors import CONSTANTS, CONSTRUCTORS
from mixer_equiv.checkpoints.formats.pickles.machine import Budget, Global, PickleError, Placeholder, unpickle
from mixer_equiv.checkpoints.formats.pickles.tensors import TENSORS, Repetitions, Storage, StorageKind, Tensor
from mixer_equiv.checkpoints.formats.pickles.tree import read_tree
from mixer_equiv.models.nnx import MlpMixer
from tests.support.checkpoints import checkpoint
from tests.support.files import changed
from tests.support.hostile import hostile_objects
from tests.support.scripts import BLOCKED, printed

# Comparison with what torch reads


def difference(theirs: Any, ours: Any, path: str = "") -> str | None:
    """Where what we read is not what torch read, and how; None if it is the same.

    Objects that are no data (devices, sizes of classes of their own) are left out, and so is the class of a sequence.
    """
    if isinstance(theirs, torch.Tensor):
        return _difference_of_arrays(theirs, ours, path)
    if isinstance(theirs, np.ndarray | np.generic):
        same = hasattr(ours, "dtype") and np.asarray(ours).dtype == theirs.dtype and np.array_equal(ours, theirs)
        return None if same else f"{path}: {ours}"
    if isinstance(theirs, dict):
        if not isinstance(ours, dict) or len(theirs) != len(ours):
            return f"{path}: {theirs.keys()} and {ours}"
        pairs = zip(theirs.items(), ours.items(), strict=True)
        found = (
            difference(a, b, f"{path}/{key}") if _same_key(key, other) else f"{path}/{key}"
            for (key, a), (other, b) in pairs
        )
        return next(filter(None, found), None)
    if isinstance(theirs, list | tuple):
        if not isinstance(ours, list) or len(theirs) != len(ours):
            return f"{path}: {theirs} and {ours}"
        found = (difference(a, b, f"{path}/{i}") for i, (a, b) in enumerate(zip(theirs, ours, strict=True)))
        return next(filter(None, found), None)
    if isinstance(theirs, int | float | str | bytes | None):
        same = type(theirs) is type(ours) and (theirs == ours or theirs != theirs)
        return None if same else f"{path}: {theirs!r} and {ours!r}"
    return None


def _same_key(theirs: Any, ours: Any) -> bool:
    return bool(theirs == ours) if isinstance(theirs, int | float | str | bytes | None) else True


def _difference_of_arrays(theirs: torch.Tensor, ours: Any, path: str) -> str | None:
    if theirs.is_sparse or theirs.is_quantized or theirs.device.type == "meta":
        return None if isinstance(ours, NotAnArray) else f"{path}: {ours}"
    if not hasattr(ours, "shape"):
        return f"{path}: {ours}"
    array = to_numpy(path, ours)
    plain = theirs.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    if (tuple(theirs.shape), str(theirs.dtype)) != (array.shape, f"torch.{array.dtype}"):
        return f"{path}: {theirs.dtype} {theirs.shape} and {array.dtype} {array.shape}"
    if theirs.numel() and plain.reshape(-1).view(torch.uint8).numpy().tobytes() != array.tobytes():
        return f"{path}: other numbers"
    return None


# Checkpoints of every kind

DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
]
VIEWS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda t: t,
    lambda t: t.T,
    lambda t: t[1:, ::2],
    lambda t: t[2],
    lambda t: t[:, 3],
    lambda t: t[1, 1],
    lambda t: t[:0],
    lambda t: t[:1].expand(3, 6),
    lambda t: t.reshape(2, 3, 4).permute(2, 0, 1)[1:],
    lambda t: t.as_strided((3, 3), (1, 2), 4),
    lambda t: torch.nn.Parameter(t, requires_grad=False),
    lambda t: t.unfold(1, 3, 1),
]


def draw_checkpoint(rng: random.Random) -> dict[str, Any]:
    """A training checkpoint: tensors of some dtypes as views of one or several storages, nested among other data."""
    bases = [torch.arange(24).reshape(4, 6).to(rng.choice(DTYPES)) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.3:
        conjugate = torch.view_as_complex(torch.arange(48.0).reshape(4, 6, 2)).conj()
        bases.append(rng.choice([conjugate, conjugate.imag]))  # the second is a negative view

    def tensor() -> torch.Tensor:
        base = rng.choice(bases)
        try:
            return rng.choice(VIEWS)(base)
        except RuntimeError:  # some dtypes have no such views
            return base

    def node(depth: int) -> Any:
        kind = rng.random()
        if depth < 4 and kind < 0.3:
            made = rng.choice([dict, collections.OrderedDict])()
            made.update({rng.choice([f"k{i}", i]): node(depth + 1) for i in range(rng.randint(0, 4))})
            return made
        if depth < 4 and kind < 0.4:
            return rng.choice([list, tuple])([node(depth + 1) for _ in range(rng.randint(0, 5))])
        if kind < 0.8:
            return tensor()
        return rng.choice(
            [None, True, False, 0, -1, 300, 70_000, 2**40, -(2**70), 0.5, float("inf"), "", "ü\n", b"\xff"]
        )

    return {f"name{i}.weight": node(0) for i in range(rng.randint(1, 6))}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_two_hundred_checkpoints_are_what_torch_reads(tmp_path: Path, protocol: int) -> None:
    rng, path = random.Random(protocol), tmp_path / "x.pt"
    for _ in range(50):
        torch.save(draw_checkpoint(rng), path, pickle_protocol=protocol)
        theirs = torch.load(path, weights_only=False)
        contents = formats.read(path)
        assert difference(theirs, contents.arrays) is None
        assert contents.notes == ()


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.fuzz)])
def test_a_changed_pickle_gives_what_torch_gives_or_an_error(tmp_path: Path, count: int) -> None:
    path, rng = tmp_path / "x.pt", random.Random(count)
    members, name = _members({**draw_checkpoint(random.Random(5)), "f": torch.ones(2), "n": {"x": [1, torch.eye(2)]}})
    outcomes: collections.Counter[str] = collections.Counter()
    for _ in range(count):
        _write(path, {**members, name: _changed(members[name], rng)})
        try:
            theirs = torch.load(path, weights_only=True)
        except Exception:  # torch raises exceptions of any kind
            theirs = None
        try:
            ours = formats.read(path).arrays
        except CheckpointError:
            ours = None
        if isinstance(theirs, dict):
            assert difference(theirs, ours) is None
            outcomes["the same"] += 1
        outcomes["refused"] += ours is None
    assert min(outcomes["refused"], outcomes["the same"]) > count / 50


def _members(state: Mapping[str, Any]) -> tuple[dict[str, bytes], str]:
    """The members of a .pt by name, and the name of the pickle."""
    stream = io.BytesIO()
    torch.save(state, stream)
    with zipfile.ZipFile(stream) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return members, next(name for name in members if name.endswith("data.pkl"))


def _write(path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _changed(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    at, kind = rng.randrange(len(changed)), rng.random()
    if kind < 0.6:
        changed[at] = rng.randrange(256)
    elif kind < 0.75:
        del changed[at : at + rng.randint(1, 4)]
    elif kind < 0.9:
        changed[at:at] = rng.randbytes(rng.randint(1, 4))
    else:
        begin = rng.randrange(len(changed))
        changed[at:at] = changed[begin : begin + rng.randint(1, 30)]
    return bytes(changed)


# The other byte order, other zip files


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_views_of_one_storage_of_the_other_byte_order_are_read_alike_each_time(
    tmp_path: Path, compression: int
) -> None:
    base, path = torch.randn(30, 7, dtype=torch.float32), tmp_path / "x.pt"
    state = {f"v{i}": base[i : i + 3].T if i % 2 else base[i] for i in range(28)}
    members, _ = _members(state)
    folder = next(iter(members)).partition("/")[0]
    members[f"{folder}/byteorder"] = b"big"
    members[f"{folder}/data/0"] = np.frombuffer(members[f"{folder}/data/0"], "<f4").astype(">f4").tobytes()
    _write(path, members, compression)
    arrays = formats.read(path).arrays
    for _ in range(2):
        assert difference(state, arrays) is None
    assert difference(state, formats.read(path, mmap=True).arrays) is None


def test_a_file_of_no_stated_byte_order_is_of_this_one(tmp_path: Path) -> None:
    members, _ = _members({"x": torch.arange(3.0)})
    _write(tmp_path / "x.pt", {name: content for name, content in members.items() if "byteorder" not in name})
    assert difference({"x": torch.arange(3.0)}, formats.read(tmp_path / "x.pt").arrays) is None


# Objects


class Trainer:
    """An object that holds arrays, as a pickle has it."""

    def __init__(self) -> None:
        self.weights, self.epoch, self.me, self.again = {"a": torch.ones(2)}, 3, self, [self]


def test_objects_beside_weights_are_passed_over_and_named(tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "n": np.arange(3.0), "s": np.float32(3), "rng": np.random.get_state()}
    objects = {"args": argparse.Namespace(lr=0.1), "out": tmp_path, "at": datetime.date(2020, 1, 1)}
    found = formats.read(_saved(tmp_path, {**state, **objects, "d": collections.defaultdict(list, {"x": 1})}))
    assert difference({**state, "d": {"x": 1}}, {k: v for k, v in found.arrays.items() if k not in objects}) is None
    assert all(isinstance(found.arrays[name], NotAnArray) for name in objects)
    (note,) = found.notes
    assert note == ("objects that are no arrays were passed over: argparse.Namespace, datetime.date, pathlib.PosixPath")


def _saved(folder: Path, state: Any) -> Path:
    torch.save(state, folder / "x.pt")
    return folder / "x.pt"


def test_a_model_that_was_saved_whole_is_its_state_dict(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Sequential(torch.nn.PReLU()))
    model.register_buffer("transient", torch.ones(1), persistent=False)
    found = formats.read(_saved(tmp_path, model))
    assert difference(dict(model.state_dict()), found.arrays) is None
    assert found.notes == ("read as the arrays in them: torch.nn.modules.container.Sequential",)


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(4, 2))])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_model_of_torchscript_is_its_state_dict(tmp_path: Path, make: Callable[[Any], Any]) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).eval()
    torch.jit.save(make(model), tmp_path / "x.pt")
    assert difference(dict(model.state_dict()), formats.read(tmp_path / "x.pt").arrays) is None


def test_modules_that_hold_themselves_are_refused(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3))
    model._modules["me"] = model
    with pytest.raises(CheckpointError, match="its modules are nested more than 100 deep"):
        formats.read(_saved(tmp_path, model))


def test_an_object_that_holds_arrays_is_the_dict_of_its_attributes(tmp_path: Path) -> None:
    found = formats.read(_saved(tmp_path, {"trainer": Trainer()}))
    trainer = found.arrays["trainer"]
    assert difference({"a": torch.ones(2)}, trainer["weights"]) is None
    assert trainer["epoch"] == 3
    assert any("Trainer" in note for note in found.notes)


NO_ARRAYS = {
    "meta": (lambda: torch.ones(2, device="meta"), "a torch tensor on the meta device, which has no numbers"),
    "sparse": (lambda: torch.eye(2).to_sparse(), "a sparse torch tensor"),
    "objects": (lambda: np.array([None, "x"]), "an array of Python objects"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2)]), "a nested torch tensor"),
    "repeated": (lambda: torch.ones(1).expand(2**30), r"a tensor of \(1073741824,\) that repeats 1 numbers"),
    "fields": (lambda: np.zeros(2, "f4,i4"), "an array of Python objects"),
}


@pytest.mark.parametrize("kind", NO_ARRAYS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_no_array_can_hold_is_said_where_it_is_used(tmp_path: Path, kind: str) -> None:
    make, words = NO_ARRAYS[kind]
    found = formats.read(_saved(tmp_path, {"x": make(), "y": torch.ones(1)})).arrays["x"]
    with pytest.raises(MixerEquivError, match=f"x: found {words}; a parameter must be an array of numbers"):
        to_numpy("x", found)


# Pickles of NumPy and JAX

TREES: dict[str, Callable[[], Any]] = {
    "NumPy": lambda: {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(3, ">f4"), "c": np.asfortranarray(np.eye(3)[:2])},
    "bfloat16": lambda: {"a": np.arange(6).astype(ml_dtypes.bfloat16), "s": np.float64(2)},
    "JAX": lambda: {"params": {"a": jnp.arange(3.0), "b": jnp.ones(2, jnp.bfloat16)}},
    "Flax": lambda: freeze({"params": {"a": np.ones(2)}}),
    "flattened": lambda: {("params", "a"): np.ones(2), ("params", "b"): np.zeros(0)},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", TREES)
def test_pickled_arrays_are_read(tmp_path: Path, kind: str, protocol: int) -> None:
    tree, path = TREES[kind](), tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(tree, protocol))
    plain = {key: dict(value) if isinstance(value, Mapping) else value for key, value in dict(tree).items()}
    ours = formats.read(path).arrays
    as_arrays = {key: {k: np.asarray(v) for k, v in value.items()} if isinstance(value, dict) else value
                 for key, value in plain.items()}  # fmt: skip
    assert difference(as_arrays, ours) is None


# What is hostile


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_that_a_pickle_names_is_called(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "called"
    for hostile in hostile_objects(mark):
        state, path = {"w": np.ones(2), "x": hostile}, tmp_path / "x"
        if zipped:
            members, name = _members({})
            _write(path, {**members, name: pickle.dumps(state, 2)})
        else:
            path.write_bytes(pickle.dumps(state))
        found = formats.read(path).arrays
        assert isinstance(found["x"], NotAnArray)
        np.testing.assert_array_equal(found["w"], np.ones(2))
        assert not mark.exists()


def test_no_name_is_imported(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02cantigravity\nfly\n)R.")
    with pytest.raises(CheckpointError, match=r"holds an object of antigravity\.fly; expected a state_dict"):
        formats.read(tmp_path / "x.pkl")


def _nested(count: int) -> bytes:
    """A pickle of a list of two references to a list of two references, and so on."""
    body = b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(count))
    return b"\x80\x02]q\x00" + body + b"}U\x01xh" + bytes([count]) + b"s."


BOMBS = {
    "shared lists": (_nested(60), "each counted as often as it stands in others"),
    "objects": (b"\x80\x02" + b"}" * (pickle_machine.MAX_OBJECTS + 1) + b".", "makes more than 500000 objects"),
    "a memo": (b"\x80\x02K\x01" + b"\x94" * (pickle_machine.MAX_OBJECTS + 1) + b".", "makes more than 500000 objects"),
    "a key of tuples": (b"\x80\x02})" + b"\x86" * 0 + b"\x85" * 70 + b"K\x01s.", "is a tuple that holds others"),
    "keys of one hash": (b"\x80\x02}\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"K\x01s.", "more than 60 bits"),
    "a long count": (b"\x80\x02\x8e" + (2**62).to_bytes(8, "little") + b"x.", "expected 4611686018427387904 bytes"),
    "a large number in the memo": (b"\x80\x02}r\xff\xff\xff\xff.", None),
    "nothing": (b"\x80\x02.", "an object is missing on its stack"),
    "no mark": (b"\x80\x02K\x01t.", "a mark is missing on its stack"),
    "what was not made": (b"\x80\x02h\x05.", "uses object 5, which it has not made"),
    "no end": (b"\x80\x02}", "exhausted before seeing STOP"),
    "an extension": (b"\x80\x02\x82\x01.", "the operation EXT1"),
    "a number of 5000 digits": (b"\x80\x02I" + b"9" * 5000 + b"\n.", "Exceeds the limit"),
}


def test_what_would_take_for_ever_takes_less_than_200_mb(tmp_path: Path) -> None:
    for i, (data, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{i}.pkl").write_bytes(data)
    script = (
        BLOCKED
        + """
import pathlib, resource
from mixer_equiv.checkpoints import formats
from mixer_equiv.errors import CheckpointError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in pathlib.Path(sys.argv[1]).iterdir():
    try:
        formats.read(path)
    except CheckpointError:
        pass
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))
"""
    )
    assert printed(script, tmp_path) < 200


@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_that_would_take_for_ever_is_refused(kind: str) -> None:
    data, words = BOMBS[kind]
    if words is None:
        assert unpickle(data, CONSTRUCTORS, CONSTANTS) == {}
        return
    with pytest.raises(PickleError, match=words):
        read_tree(unpickle(data, CONSTRUCTORS, CONSTANTS), lambda tensor: tensor)


def _unicode(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _calls(name: bytes, arguments: bytes, count: int) -> bytes:
    """A pickle of a list of what `count` calls with the same arguments give."""
    return b"\x80\x04](c" + name + b"\nq\x01" + arguments + b"q\x02R" + b"h\x01h\x02R" * (count - 1) + b"e."


def _bytes(data: bytes) -> bytes:
    return b"B" + len(data).to_bytes(4, "little") + data


def _storage() -> bytes:
    stream = io.BytesIO()
    torch.save(torch.zeros(2**18).untyped_storage(), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


# What is called, and arguments of a megabyte.
COPIES: dict[str, tuple[bytes, Callable[[], bytes]]] = {
    "text": (b"_codecs\nencode", lambda: _unicode("a" * 2**20) + _unicode("latin1") + b"\x86"),
    "bytes": (b"builtins\nbytearray", lambda: _bytes(bytes(2**20)) + b"\x85"),
    "storages": (b"torch.storage\n_load_from_bytes", lambda: _bytes(_storage()) + b"\x85"),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_small_pickle_that_copies_bytes_again_and_again_is_refused(kind: str) -> None:
    name, arguments = COPIES[kind]
    assert len(unpickle(_calls(name, arguments(), 60), CONSTRUCTORS, CONSTANTS)) == 60
    with pytest.raises(PickleError, match="copies the same bytes again and again"):
        unpickle(_calls(name, arguments(), 100), CONSTRUCTORS, CONSTANTS)


def test_a_shape_of_shared_lists_is_shown_in_few_words() -> None:
    nested: list[Any] = []
    for _ in range(60):
        nested = [nested, nested]
    with pytest.raises(PickleError, match="an array has the shape") as caught:
        as_sizes((nested,))
    assert len(str(caught.value)) < 2000


def test_every_operation_of_pickle_is_read_or_refused_by_name() -> None:
    """Python itself writes all but those of extensions, of buffers outside, and of objects by names of protocol 0."""
    unread = []
    for opcode in pickletools.opcodes:
        machine = pickle_machine._Machine({}, {}, None, Budget())
        try:
            machine.step(opcode.name, None)
        except PickleError as error:
            if "has the operation" in str(error):
                unread.append(opcode.name)
        except (TypeError, AttributeError):  # no argument
            pass
    assert set(unread) == {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "STOP"}


def test_a_storage_that_is_missing_short_or_strange_is_refused(tmp_path: Path) -> None:
    members, _ = _members({"x": torch.ones(4)})
    data = next(name for name in members if "/data/" in name and not name.endswith("pkl"))
    path = tmp_path / "x.pt"
    cases = {
        "is not in the file": {name: content for name, content in members.items() if name != data},
        "ends 16 bytes into a storage of 12": {**members, data: members[data][:12]},
        "in the order b'middle'": {**members, data.replace("data/0", "byteorder"): b"middle"},
        "holds 2 files data.pkl": {**members, "other/data.pkl": b"x"},
    }
    for words, content in cases.items():
        _write(path, content)
        with pytest.raises(CheckpointError, match=words):
            formats.read(path)


def test_a_pickle_that_is_inflated_too_far_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_INFLATED", 2**20)
    members, name = _members({"x": torch.ones(4)})
    _write(tmp_path / "x.pt", {**members, name: bytes(2**21)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"data\.pkl' of 2097152 bytes compressed to \d+; no weights can be"):
        formats.read(tmp_path / "x.pt")


@pytest.mark.parametrize("told", [{"conj": True}, {"neg": True}])
def test_bits_that_no_tensor_of_a_dtype_has_are_refused(told: Any) -> None:
    storage = Storage("0", StorageKind(np.dtype(bool)), 2, bytes(2))
    with pytest.raises(PickleError, match=f"a tensor of bool is {next(iter(told))}"):
        TENSORS["torch._utils._rebuild_tensor_v2"](Budget(), (storage, 0, (2,), (1,), False, {}, told))


@pytest.mark.parametrize("placements", [5, None, (), "", [5]])
def test_a_distributed_tensor_of_no_placements_is_no_array(placements: Any) -> None:
    part = Tensor(Storage("0", StorageKind(np.dtype("f4")), 4, bytes(4)), np.dtype("f4"), 0, (1,), (1,))
    spec = Placeholder("DTensorSpec")
    spec.state = {"placements": placements}
    state = (1, {"_local_tensor": part, "_spec": spec})
    arguments = (Global("f"), Global("torch.distributed.tensor.DTensor"), (0, 0, (1,)), state)
    found = TENSORS["torch._tensor._rebuild_from_type_v2"](Budget(), arguments)
    assert isinstance(found, NotAnArray)


def _pickled(folder: Path, state: Any) -> Path:
    (folder / "x.pkl").write_bytes(pickle.dumps(state))
    return folder / "x.pkl"


@pytest.mark.parametrize("save", [_saved, _pickled])
def test_tensors_that_repeat_numbers_share_one_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Path, Any], Path]
) -> None:
    monkeypatch.setattr(Repetitions.__init__, "__defaults__", (2500,))
    state = {f"x{i}": torch.full((1,), float(i)).expand(1000) for i in range(4)}
    found = formats.read(save(tmp_path, {**state, "y": torch.ones(2)})).arrays
    assert [isinstance(leaf, NotAnArray) for leaf in found.values()] == [False, False, True, True, False]
    for name in ("x0", "x1", "y"):
        np.testing.assert_array_equal(np.asarray(found[name]), {**state, "y": torch.ones(2)}[name])


def test_a_pickled_tensor_that_repeats_numbers_is_made_when_it_is_read(tmp_path: Path) -> None:
    found = formats.read(_pickled(tmp_path, {"x": torch.zeros(1).expand(2**20)})).arrays["x"]
    assert isinstance(found, Deferred)
    assert found.shape == (2**20,)


@pytest.mark.parametrize("save", [_saved, _pickled])
def test_a_long_list_of_numbers_beside_weights_is_read(tmp_path: Path, save: Callable[[Path, Any], Path]) -> None:
    losses = [0.1] * (tree.MAX_SHOWN + 1)
    found = formats.read(save(tmp_path, {"x": torch.ones(2), "losses": losses})).arrays
    assert found["losses"] == losses


def test_numbers_that_are_shown_too_often_are_refused() -> None:
    numbers = [1.5] * 1000
    with pytest.raises(PickleError, match="each counted as often as it stands in others"):
        read_tree([numbers] * (tree.MAX_PLAIN // 1000 + 1), lambda tensor: tensor)


ROOTS: dict[str, Callable[[Any], Any]] = {
    "a tuple": lambda state: (12, state, {}),
    "a list": lambda state: [state, {"step": 3}],
    "params and state": lambda state: (state, None),
}


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("save", [_saved, _pickled])
def test_a_root_that_is_a_list_has_its_positions_for_names(
    tmp_path: Path, save: Callable[[Path, Any], Path], root: str
) -> None:
    state = dict(checkpoint("timm"))
    assert changed(checkpoint("timm").arrays, load(save(tmp_path, ROOTS[root](state))).arrays) == []


def test_a_list_of_arrays_is_refused_and_the_remedy_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = checkpoint("timm").arrays
    path = _pickled(tmp_path, list(given.values()))
    with pytest.raises(CheckpointError, match=rf"holds a list of {len(given)} arrays without names") as caught:
        load(path)
    monkeypatch.chdir(tmp_path)
    typed = re.search(r"np\.savez\(.*strict=True\)\)\)", str(caught.value).replace("\n", " "))
    assert typed is not None
    exec(typed[0].rstrip(","), {"np": np, "names": list(given), "arrays": list(given.values())})
    assert changed(given, load("named.npz").arrays) == []


def test_a_state_of_nnx_is_loaded_alone_and_split(tmp_path: Path) -> None:
    model = MlpMixer(checkpoint().config, rngs=nnx.Rngs(0))
    expected = Checkpoint.from_arrays(nnx.state(model)).arrays
    beside_a_graph = ("graph", nnx.state(model))  # as nnx.split gives it, whose graph old Flax cannot pickle
    for state in (nnx.state(model), beside_a_graph, nnx.to_pure_dict(nnx.state(model))):
        assert changed(expected, load(_pickled(tmp_path, state)).arrays) == []


def test_what_holds_no_arrays_by_name_is_refused(tmp_path: Path) -> None:
    cases = {"a list": [1], "an array without a name": torch.ones(2), "a str": "x"}
    for words, value in cases.items():
        with pytest.raises(CheckpointError, match=f"holds {words}; expected a state_dict"):
            formats.read(_saved(tmp_path, value))


def test_torch_is_not_asked_for_a_zip_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _saved(tmp_path, {"x": torch.ones(2)})
    monkeypatch.setattr(torch_zip, "require", pytest.fail)
    np.testing.assert_array_equal(np.asarray(formats.read(path).arrays["x"]), np.ones(2))
