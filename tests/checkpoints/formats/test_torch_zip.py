"""PyTorch's zip files: tensors of any form, mapped files, tensors that NumPy cannot hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixer_equiv import CheckpointError
from mixer_equiv.arrays.interop import to_numpy
from mixer_equiv.checkpoints import formats
from tests.support.files import changed


def _tensors() -> dict[str, Any]:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    shared = torch.full((3,), -0.0)
    return {
        "strided": base[1:, ::2].T,
        "tied": shared,
        "tied too": shared,
        "bfloat16": base.bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(base[0]),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
def test_tensors_of_any_form_are_read(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"x{suffix}"
    torch.save({"state_dict": _tensors(), "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    found = dict(formats.read(path).arrays)
    assert found.pop("epoch") == 3
    arrays = {name: np.asarray(leaf) for name, leaf in found["state_dict"].items()}
    path.write_bytes(b"")
    assert changed({name: to_numpy(name, tensor) for name, tensor in _tensors().items()}, arrays) == []


@pytest.mark.parametrize(("name", "mapped"), [("x.pt", True), ("x.ckpt", True), ("x.safetensors", False)])
def test_a_zip_file_is_mapped_where_torch_goes_by_no_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mapped: bool
) -> None:
    calls, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: calls.append(options) or load(*args, **options))
    torch.save({"x": torch.ones(3)}, tmp_path / name)
    np.testing.assert_array_equal(np.asarray(formats.read(tmp_path / name).arrays["x"]), np.ones(3))
    assert [(call["weights_only"], call.get("mmap", False)) for call in calls] == [(True, mapped)]


def test_tensors_that_numpy_cannot_hold_are_left_as_they_are(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2), "y": torch.ones(3).to(torch.float8_e4m3fn)}, tmp_path / "x.pt")
    arrays = formats.read(tmp_path / "x.pt").arrays
    assert isinstance(arrays["y"], torch.Tensor)
    np.testing.assert_array_equal(np.asarray(arrays["x"]), np.ones(2))


def test_a_mapped_file_that_has_been_cut_is_an_error(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(100_000)}, tmp_path / "x.pt")
    arrays = formats.read(tmp_path / "x.pt").arrays
    os.truncate(tmp_path / "x.pt", 100)
    with pytest.raises(CheckpointError, match=r"x\.pt was replaced or written to since it was opened"):
        np.asarray(arrays["x"])
