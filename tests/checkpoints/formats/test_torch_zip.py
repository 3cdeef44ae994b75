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
    arrays = {name: to_numpy(name, leaf) for name, leaf in found["state_dict"].items()}
    path.write_bytes(b"")
    assert changed({name: to_numpy(name, tensor) for name, tensor in _tensors().items()}, arrays) == []


def test_a_mapped_file_that_has_been_cut_is_an_error(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(100_000)}, tmp_path / "x.pt")
    arrays = formats.read(tmp_path / "x.pt").arrays
    os.truncate(tmp_path / "x.pt", 100)
    with pytest.raises(CheckpointError, match=r"x\.pt was replaced or written to since it was opened"):
        np.asarray(arrays["x"])
