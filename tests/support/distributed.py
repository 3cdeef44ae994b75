"""Folders of torch.distributed.checkpoint, written by torch in one process."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_saver import save

from mixer_equiv.arrays.interop import NotAnArray, flatten, to_numpy, to_torch
from mixer_equiv.checkpoints import formats
from tests.support.checkpoints import checkpoint

STATE = {name: array.astype(np.float32) for name, array in checkpoint("torch").arrays.items()}


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: to_torch(array.copy()) for name, array in arrays.items()}


def write_folder(folder: Path, state: Mapping[str, Any], **options: Any) -> Path:
    """Write `state` into `folder`; a `storage_writer` among the options must be of that folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        save(dict(state), **{"checkpoint_id": folder, **options}, no_dist=True)
    return folder


def read_folder(path: Path, **options: Any) -> dict[str, np.ndarray]:
    """Read all arrays to their end."""
    leaves = flatten(formats.read(path, **options).arrays)
    return {name: to_numpy(name, leaf) for name, leaf in leaves if not isinstance(leaf, NotAnArray)}


def change_metadata(path: Path, change: Callable[[Metadata], Any]) -> None:
    """Change a pickle of `Metadata`, by torch's own classes."""
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))
