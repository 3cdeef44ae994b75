"""torch's .pt, read with `weights_only=True` by a torch that is new enough for this to be safe."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import as_mapping, is_array, require, stored_dtype, to_numpy, to_torch
from mixer_equiv.checkpoints.formats.base import (
    ANY_DAMAGE,
    METADATA_KEY,
    ZIP_DAMAGE,
    Contents,
    FileFormat,
    Framework,
    StoredArray,
    refuse_damage,
    zip_names,
)
from mixer_equiv.checkpoints.formats.raw_arrays import File
from mixer_equiv.errors import CheckpointError, ConversionError, MissingDependencyError


def _recognise(path: Path) -> bool:
    if not path.is_file():
        return False
    if any(name.endswith("data.pkl") for name in zip_names(path)):
        return True
    # Before it wrote zip files, torch.save began with this pickled integer, its magic number.
    with path.open("rb") as stream:
        return stream.read(14).endswith(bytes.fromhex("6cfc9c46f9206aa85019"))


def _safe_torch() -> Any:
    torch = require("torch", "torch", "a .pt file")
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < (2, 10):
        raise MissingDependencyError(
            f"a .pt file needs torch 2.10 or newer, because older ones can be made to run code "
            f"(CVE-2025-32434, CVE-2026-24747); torch {torch.__version__} is installed"
        )
    return torch


def _read(path: Path) -> Contents:
    torch, file = _safe_torch(), File.at(path)
    mapped = bool(zip_names(path)) and path.suffix != ".safetensors"
    loaded = _load(torch, path, mapped)
    tree = as_mapping(loaded)
    if tree is None:
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; expected a state_dict")
    arrays = _stored_tree(file if mapped else None, path, tree)
    return Contents(arrays, getattr(loaded, METADATA_KEY, None))


def _load(torch: Any, path: Path, mapped: bool) -> Any:
    """Read the one object of a file, with torch and nothing of ours."""
    with refuse_damage(path, ANY_DAMAGE):
        try:
            if mapped:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            # A legacy file cannot be mapped. From an open file torch reads it whatever its suffix.
            with path.open("rb") as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            # torch's own message advises to load it anyway.
            named = re.search(r"GLOBAL (\S+)", str(error))
            what = f"Python objects ({named[1]})" if named else "something else than weights, or is damaged"
            raise CheckpointError(
                f"{path} holds {what}, so it is not loaded; save model.state_dict() alone, not the model, and no "
                "other objects beside it"
            ) from error


def _stored_tree(file: File | None, path: Path, tree: Mapping[Any, Any]) -> dict[Any, Any]:
    """The tree with tensors as arrays that are copied at each use, so that no user holds a part of the mapped file."""
    nodes = {key: as_mapping(leaf) for key, leaf in tree.items()}
    return {
        key: _stored_leaf(file, path, str(key), tree[key]) if node is None else _stored_tree(file, path, node)
        for key, node in nodes.items()
    }


def _stored_leaf(file: File | None, path: Path, name: str, leaf: Any) -> Any:
    """A leaf as an array of the file. One that has no counterpart in NumPy stays as it is; it may not be needed."""
    with contextlib.suppress(ConversionError):
        if is_array(leaf):
            read, share = partial(_copy, file, name, leaf), partial(to_numpy, name, leaf)
            return StoredArray(tuple(leaf.shape), stored_dtype(name, leaf), read, path, ZIP_DAMAGE, share)
    return leaf


def _copy(file: File | None, name: str, tensor: Any) -> np.ndarray:
    if file is None:
        return to_numpy(name, tensor).copy()
    file.open().close()  # checks the file: touching a mapping beyond the end of one that was cut kills the process
    copied = to_numpy(name, tensor).copy()
    _release_pages(tensor.untyped_storage())
    return copied


def _release_pages(storage: Any) -> None:
    """Let the system take back pages of the mapped file that were read, so that they do not count as memory in use.

    They are read again at the next use. Pages that may hold parts of other tensors stay. Does nothing on systems
    without `madvise`.
    """
    page = mmap.PAGESIZE
    start, end = -(-storage.data_ptr() // page) * page, (storage.data_ptr() + storage.nbytes()) // page * page
    with contextlib.suppress(OSError, AttributeError, TypeError):  # Windows opens no library without a name
        if end > start:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> None:
    # An attribute of an OrderedDict is pickled with it, `weights_only` loads it, and `load_state_dict` ignores it.
    torch = _safe_torch()
    state = OrderedDict((name, to_torch(array)) for name, array in arrays.items())
    setattr(state, METADATA_KEY, metadata)
    try:
        with path.open("xb") as stream:
            torch.save(state, stream)
    except RuntimeError as error:  # torch raises it for a full disk, and for Ctrl-C, while it closes the archive
        cause = error.__context__
        if cause is not None and not isinstance(cause, RuntimeError):
            raise cause from None
        raise OSError(str(error).partition("\n")[0]) from error


# Among these is RuntimeError, which torch raises for anything that a tensor cannot do.
TORCH_ZIP = FileFormat("torch", (".pt", ".pth", ".bin"), _recognise, _read, _write, damage=ZIP_DAMAGE)
