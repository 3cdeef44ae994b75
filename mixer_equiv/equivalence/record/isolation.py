"""`restoring_state`: undo what running a model changes in its objects, such as caches and counters.

It knows no framework: tensors inside the objects are put back where they stood, never copied.
"""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

_IMMUTABLE = (str, bytes, int, float, complex, bool, type, FunctionType, MethodType, ModuleType)
_EXTERNAL = ("torch", "jax", "jaxlib", "numpy", "builtins", "logging", "threading", "_thread")


@contextlib.contextmanager
def restoring_state(objects: Iterable[Any]) -> Iterator[None]:
    """On leaving, restore the attributes of these objects, and the plain containers, objects and arrays in them.

    Tensors are put back where they stood; values written into a tensor are for the caller to restore.
    """
    restorers: list[Callable[[], None]] = []
    visited: dict[int, Any] = {}
    for held in objects:
        _snapshot(vars(held), restorers, visited)
    try:
        yield
    finally:
        for restore in restorers:
            restore()


def _snapshot(held: Any, restorers: list[Callable[[], None]], visited: dict[int, Any]) -> None:
    waiting = [held]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _IMMUTABLE) or id(value) in visited:
            continue
        visited[id(value)] = value  # so that no id is used twice
        if isinstance(value, np.ndarray):
            if value.flags.writeable:
                restorers.append(_array_restorer(value, value.copy()))
        elif isinstance(value, dict | list | set | deque):
            restorers.append(_container_restorer(value, copy.copy(value)))
            waiting += value.values() if isinstance(value, Mapping) else value
        elif isinstance(value, tuple):
            waiting += value
        elif hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in _EXTERNAL:
            waiting.append(vars(value))


def _array_restorer(array: np.ndarray, before: np.ndarray) -> Callable[[], None]:
    def restore() -> None:
        array[...] = before

    return restore


def _container_restorer(container: Any, before: Any) -> Callable[[], None]:
    def restore() -> None:
        same = len(container) == len(before) and all(
            x is y for x, y in zip(_elements(container), _elements(before), strict=True)
        )
        if not same:
            container.clear()
            (container.update if isinstance(container, dict | set) else container.extend)(before)

    return restore


def _elements(container: Any) -> Iterator[Any]:
    """The elements of a container, or the keys and values of a mapping."""
    if isinstance(container, Mapping):
        for key, value in container.items():
            yield key
            yield value
    else:
        yield from container
