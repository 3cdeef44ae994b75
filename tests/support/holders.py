"""Trees of arrays as people keep them: in memory, and in files that the frameworks' own functions write."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import torch
from flax import serialization
from safetensors.torch import save_file

from mixer_equiv import Checkpoint, load
from mixer_equiv.arrays.interop import flatten, to_numpy

# Writes a tree into a folder, and returns what is there.
Holder = Callable[[Any, Path], Any]


def _in_torch(tree: Any, folder: Path, **options: Any) -> Path:
    torch.save(tree, folder / "x.pt", **options)
    return folder / "x.pt"


def _in_legacy_torch(tree: Any, folder: Path) -> Path:
    return _in_torch(tree, folder, _use_new_zipfile_serialization=False)


def _in_pickle(tree: Any, folder: Path) -> Path:
    (folder / "x.pkl").write_bytes(pickle.dumps(tree))
    return folder / "x.pkl"


def _in_safetensors(tree: Any, folder: Path) -> Path:
    save_file({name: tensor.detach().contiguous() for name, tensor in tree.items()}, folder / "x.safetensors")
    return folder / "x.safetensors"


def in_npz(arrays: Mapping[str, Any], folder: Path) -> Path:
    np.savez(folder / "x.npz", **{name: to_numpy(name, array) for name, array in arrays.items()})
    return folder / "x.npz"


def _in_flat_npz(tree: Any, folder: Path) -> Path:
    return in_npz(dict(flatten(serialization.to_state_dict(tree))), folder)


def _in_keystr_npz(tree: Any, folder: Path) -> Path:
    return in_npz(
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}, folder
    )


def _in_msgpack(tree: Any, folder: Path) -> Path:
    (folder / "x.msgpack").write_bytes(serialization.to_bytes(tree))
    return folder / "x.msgpack"


def _in_orbax(tree: Any, folder: Path) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "x", tree)
    return folder / "x"


def _in_memory(tree: Any, folder: Path) -> Any:
    return tree


# By what they hold: names of torch, trees of torch, and trees of JAX.
OF_STATE_DICTS: dict[str, Holder] = {
    "memory": _in_memory,
    "torch": _in_torch,
    "torch before 1.6": _in_legacy_torch,
    "safetensors": _in_safetensors,
    "npz": in_npz,
}
OF_TORCH: dict[str, Holder] = {name: OF_STATE_DICTS[name] for name in ("memory", "torch")}
OF_JAX: dict[str, Holder] = {
    "memory": _in_memory,
    "npz": _in_flat_npz,
    "npz by keystr": _in_keystr_npz,
    "msgpack": _in_msgpack,
    "pickle": _in_pickle,
    "orbax": _in_orbax,
}


def read(held: Any, **options: Any) -> Checkpoint:
    """Read what a holder returned."""
    return load(held, **options) if isinstance(held, Path) else Checkpoint.from_arrays(held, **options)
