"""torch's .pt, read with `weights_only=True` by a torch new enough for that to hold."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixer_equiv.arrays import require, to_torch
from mixer_equiv.containers.container import METADATA_KEY, Container, Framework, zip_names
from mixer_equiv.errors import CheckpointError, MissingDependencyError


def _recognise(path: Path) -> bool:
    if not path.is_file():
        return False
    if any(name.endswith("data.pkl") for name in zip_names(path)):
        return True
    # Before zip files, torch.save began with this pickled long, its magic number.
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


def _read(path: Path) -> tuple[Mapping[str, Any], str | None]:
    torch = _safe_torch()
    try:
        # Given a path instead of a stream, torch would go by its suffix.
        with path.open("rb") as stream:
            loaded = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to load it anyway.
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"Python objects ({named[1]})" if named else "something else than weights, or is damaged"
        raise CheckpointError(
            f"{path} holds {what}, so it is not loaded; save model.state_dict() instead of the model"
        ) from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; expected a state_dict")
    return loaded, getattr(loaded, METADATA_KEY, None)


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> None:
    # An attribute of an OrderedDict is pickled with it, weights_only loads it, and nobody trips on it.
    torch = _safe_torch()
    state = OrderedDict((name, to_torch(array)) for name, array in arrays.items())
    setattr(state, METADATA_KEY, metadata)
    try:
        with path.open("xb") as stream:
            torch.save(state, stream)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(str(error).partition("\n")[0]) from error


TORCH = Container("torch", (".pt", ".pth", ".bin"), _recognise, _read, _write)
