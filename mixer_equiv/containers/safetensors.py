"""safetensors, one file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mixer_equiv.containers.container import METADATA_KEY, Container, Framework, LazyArray
from mixer_equiv.errors import CheckpointError

# The format's own names of dtypes.
_DTYPES = {
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,  # safetensors finds it only once ml_dtypes has registered it
    "F32": np.float32,
    "F64": np.float64,
    "BOOL": np.bool_,
    **{f"{sign}{bits}": f"{kind}{bits // 8}" for sign, kind in (("I", "i"), ("U", "u")) for bits in (8, 16, 32, 64)},
}

# safetensors reads no longer ones; other formats that chance to have a "{" there declare far more.
_LONGEST_HEADER = 100_000_000


def _recognise(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        length, brace = stream.read(8), stream.read(1)
    return brace == b"{" and int.from_bytes(length, "little") <= _LONGEST_HEADER


def read(path: Path) -> tuple[Mapping[str, Any], str | None]:
    """Arrays by name, read when used, and our metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as tensors:
        names = list(tensors.keys())
        slices = {name: tensors.get_slice(name) for name in names}
        metadata = (tensors.metadata() or {}).get(METADATA_KEY)
        arrays = {}
        for name, piece in slices.items():
            form = piece.get_dtype()
            if form not in _DTYPES:
                raise CheckpointError(f"{name} in {path} is of {form}; float16, bfloat16, float32 and float64 are read")
            arrays[name] = LazyArray(path, tuple(piece.get_shape()), np.dtype(_DTYPES[form]), partial(_one, path, name))
    return arrays, metadata


def _one(path: Path, name: str) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(path, framework="np") as tensors:
        return tensors.get_tensor(name)


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> None:
    """One file, readable by all whom other new files are."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    form = {"torch": "pt", "flax": "flax"}[framework]
    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    try:
        save_file(dict(arrays), path, metadata={"format": form, METADATA_KEY: metadata})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)  # save_file leaves files that only their owner can read


SAFETENSORS = Container("safetensors", (".safetensors",), _recognise, read, write)
