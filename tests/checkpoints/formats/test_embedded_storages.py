"""Tensors of torch that the standard library's pickle wrote, or NumPy's, with their storages in the pickle itself."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixer_equiv import CheckpointError, load
from mixer_equiv.arrays.interop import to_numpy
from mixer_equiv.checkpoints import formats
from mixer_equiv.checkpoints.formats.pickles.constructors import CONSTANTS, CONSTRUCTORS
from mixer_equiv.checkpoints.formats.pickles.machine import Budget, PickleError, unpickle
from tests.support.checkpoints import checkpoint
from tests.support.files import changed


def _pickle(state: Any, stream: Any) -> None:
    pickle.dump(state, stream)


def _npy(state: Any, stream: Any) -> None:
    np.save(stream, state, allow_pickle=True)


WRITERS: dict[str, Callable[[Any, Any], None]] = {"pickle": _pickle, "npy": _npy}


@pytest.mark.parametrize("writer", WRITERS)
def test_tensors_that_pickle_itself_wrote_are_read(tmp_path: Path, writer: str) -> None:
    torch.manual_seed(2)
    base = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    state = {
        "plain": torch.randn(3, 5),
        "half": torch.randn(7).to(torch.bfloat16),
        "turned": base.t(),
        "part": base[1:, ::2],
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "none": torch.empty(0, 3),
        "counts": torch.arange(3),
    }
    with (tmp_path / "x").open("wb") as stream:
        WRITERS[writer](state, stream)
    found = formats.read(tmp_path / "x").arrays
    assert changed({n: to_numpy(n, t) for n, t in state.items()}, {n: to_numpy(n, a) for n, a in found.items()}) == []


def test_a_mixer_whose_state_dict_was_pickled_is_loaded(tmp_path: Path) -> None:
    given = checkpoint("timm")
    with (tmp_path / "x.pkl").open("wb") as stream:
        pickle.dump(dict(given), stream)
    assert changed(given.arrays, load(tmp_path / "x.pkl").arrays) == []


class _Named:
    """Pickled as a call of torch's loader of storages."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (self.data,)


def _storage() -> bytes:
    stream = io.BytesIO()
    torch.save(torch.ones(64).storage(), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    "damage",
    [
        *(lambda data, cut=cut: data[:-cut] for cut in (1, 9, 256, 300)),
        lambda data: data + b"x",
        lambda data: data.replace(b"FloatStorage", b"OtherStorage"),
        lambda data: data.replace(bytes.fromhex("6cfc9c46"), bytes.fromhex("6cfc9c47")),
        lambda data: b"",
    ],
)
def test_a_storage_in_a_pickle_that_is_damaged_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": _Named(damage(_storage()))}))
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        formats.read(tmp_path / "x.pkl")


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_many_small_storages_share_one_budget() -> None:
    many = pickle.dumps([_Named(_storage()) for _ in range(100)])
    unpickle(many, CONSTRUCTORS, CONSTANTS, budget=Budget(objects=5000))
    with pytest.raises(PickleError, match="it makes more than"):
        unpickle(many, CONSTRUCTORS, CONSTANTS, budget=Budget(objects=500))
