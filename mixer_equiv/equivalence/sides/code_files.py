"""`code_files`: the files with the code of a model and of the modules in it.

`collecting_models` tells of the models that a comparison makes itself, which nothing holds once it is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from mixer_equiv.shown_paths import is_installed
from mixer_equiv.versions import FRAMEWORKS

_COLLECTED: ContextVar[list[Any] | None] = ContextVar("collected", default=None)

# Packages whose code is told by their versions.
_BY_VERSION = (*FRAMEWORKS, __name__.partition(".")[0])


@contextlib.contextmanager
def collecting_models() -> Iterator[list[Any]]:
    """Collect the models that are made inside."""
    models: list[Any] = []
    token = _COLLECTED.set(models)
    try:
        yield models
    finally:
        _COLLECTED.reset(token)


def collect(model: Any) -> None:
    """Add a model that was made to those that are collected, if any are."""
    models = _COLLECTED.get()
    if models is not None:
        models.append(model)


def code_files(model: Any) -> list[Path]:
    """The files of the classes of a model and of its modules, base classes included, in their order.

    Installed packages and Python itself are left out. A linen module shows those modules alone that are its fields.
    """
    classes = dict.fromkeys(base for part in _parts(model) for base in type(part).__mro__)
    files = dict.fromkeys(map(_file_of, classes))
    return [file for file in files if file is not None and not is_installed(file)]


def _parts(model: Any) -> Iterator[Any]:
    """A model and the modules in it; nothing of another object."""
    if _is_a(model, "torch.nn"):
        yield from model.modules()
    elif _is_a(model, "flax.nnx"):
        parts = sys.modules["flax.nnx"].iter_modules(model)  # a module comes after those in it
        yield from (part for _, part in sorted(parts, key=lambda pair: len(pair[0])))
    elif _is_a(model, "flax.linen"):
        yield model
        for field in dataclasses.fields(model):
            yield from _parts_of_field(getattr(model, field.name, None) if field.name != "parent" else None)


def _parts_of_field(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    for item in value if isinstance(value, list | tuple) else [value]:
        yield from _parts(item)


def _is_a(value: Any, module: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, loaded.Module)


def _file_of(made: type) -> Path | None:
    if made.__module__.partition(".")[0] in _BY_VERSION:
        return None
    with contextlib.suppress(TypeError, OSError):  # such as classes of C, and of a session that is typed
        file = inspect.getsourcefile(made)
        return None if file is None else Path(file)
    return None
