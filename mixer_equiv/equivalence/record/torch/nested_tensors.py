"""Tensors inside other objects: parameters that torch does not list, and the tensors in a model's result."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from mixer_equiv.equivalence.record.holders import attributes_of
from mixer_equiv.equivalence.record.state import ModelState

# An index or key in a path, which is a part of a name elsewhere.
_INDEX = re.compile(r"\['?([^\]']*)'?\]")


def find_unlisted_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Find parameters, by path, in plain lists and dicts of a module, which torch does not list."""
    known = {id(parameter) for parameter in module.parameters()}
    found = {}
    for name, tensor in _unlisted_tensors(module).items():
        if id(tensor) not in known and tensor.requires_grad and tensor.is_leaf:
            known.add(id(tensor))
            found[name] = tensor
    return found


def find_constant_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Find the tensors, by path, that a module holds and does not train: buffers, and plain tensors in attributes."""
    held = {**dict(module.named_buffers()), **_unlisted_tensors(module)}
    return {name: tensor for name, tensor in held.items() if not tensor.requires_grad and not tensor.is_meta}


def _unlisted_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors, by path, in plain attributes, lists and dicts of all modules, and in what their code refers to."""
    found: dict[str, Tensor] = {}
    for prefix, submodule in module.named_modules():
        for key, value in vars(submodule).items():
            if not key.startswith("_"):
                found.update(_tensors_in(value, f"{prefix}.{key}" if prefix else key))
    held = {id(tensor) for tensor in (*module.parameters(), *module.buffers(), *found.values())}
    for path, value in ModelState(module.named_modules()).objects():
        if isinstance(value, Tensor) and id(value) not in held:
            found.setdefault(_INDEX.sub(r".\1", path), value)
    return found


def _tensors_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        yield from ((f"{name}.{inner}", parameter) for inner, parameter in value.named_parameters())
        yield from ((f"{name}.{inner}", buffer) for inner, buffer in value.named_buffers())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors_in(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _tensors_in(item, f"{name}.{i}")
    elif dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace):
        yield from _tensors_in(attributes_of(value), name)


def result_tensors(result: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a model's result by their paths: alone, in tuples, dicts, dataclasses and other plain objects."""
    if isinstance(result, Tensor):
        yield path, result
    elif isinstance(result, Mapping):
        for key, item in result.items():
            yield from result_tensors(item, f"{path}[{key!r}]")
    elif isinstance(result, list | tuple):
        names = getattr(result, "_fields", None)
        for i, item in enumerate(result):
            yield from result_tensors(item, f"{path}.{names[i]}" if names else f"{path}[{i}]")
    else:
        for key, item in attributes_of(result).items():
            yield from result_tensors(item, f"{path}.{key}")
