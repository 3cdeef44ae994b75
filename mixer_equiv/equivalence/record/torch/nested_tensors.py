"""Tensors inside other objects: parameters that torch does not list, and the tensors in a model's result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def find_unlisted_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Find parameters, by path, in plain lists and dicts of a module, which torch does not list."""
    known = {id(parameter) for parameter in module.parameters()}
    found: dict[str, Tensor] = {}
    for prefix, submodule in module.named_modules():
        for key, value in vars(submodule).items():
            if not key.startswith("_"):
                for name, parameter in _parameters_in(value, f"{prefix}.{key}" if prefix else key):
                    if id(parameter) not in known:
                        known.add(id(parameter))
                        found[name] = parameter
    return found


def _parameters_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.requires_grad and value.is_leaf:
            yield name, value
    elif isinstance(value, nn.Module):
        yield from ((f"{name}.{inner}", parameter) for inner, parameter in value.named_parameters())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _parameters_in(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _parameters_in(item, f"{name}.{i}")


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
    elif hasattr(result, "__dict__"):
        for key, item in vars(result).items():
            yield from result_tensors(item, f"{path}.{key}")
