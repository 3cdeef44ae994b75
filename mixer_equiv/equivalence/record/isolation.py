"""What code leaves behind in the objects it runs on, such as caches and counters, taken back."""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

_PLAIN = (str, bytes, int, float, complex, bool, type, FunctionType, MethodType, ModuleType)
_HELD_ELSEWHERE = ("torch", "jax", "jaxlib", "numpy", "builtins", "logging", "threading", "_thread")


@contextlib.contextmanager
def restoring_state(objects: Iterable[Any]) -> Iterator[None]:
    """On leaving, attributes of these objects, and what plain containers and objects in them hold, are as they were.

    Tensors are put back where they stood; what is written into one is for its owner to see to.
    """
    copies: list[Callable[[], None]] = []
    alive: dict[int, Any] = {}
    for held in objects:
        _keep(vars(held), copies, alive)
    try:
        yield
    finally:
        for put_back in copies:
            put_back()


def _keep(held: Any, copies: list[Callable[[], None]], alive: dict[int, Any]) -> None:
    waiting = [held]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _PLAIN) or id(value) in alive:
            continue
        alive[id(value)] = value  # so that no id is used twice
        if isinstance(value, np.ndarray):
            if value.flags.writeable:
                copies.append(_writing(value, value.copy()))
        elif isinstance(value, dict | list | set | deque):
            copies.append(_filling(value, copy.copy(value)))
            waiting += value.values() if isinstance(value, Mapping) else value
        elif isinstance(value, tuple):
            waiting += value
        elif hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in _HELD_ELSEWHERE:
            waiting.append(vars(value))


def _writing(array: np.ndarray, before: np.ndarray) -> Callable[[], None]:
    def put_back() -> None:
        array[...] = before

    return put_back


def _filling(container: Any, before: Any) -> Callable[[], None]:
    def put_back() -> None:
        same = len(container) == len(before) and all(
            x is y for x, y in zip(_parts(container), _parts(before), strict=True)
        )
        if not same:
            container.clear()
            (container.update if isinstance(container, dict | set) else container.extend)(before)

    return put_back


def _parts(container: Any) -> Iterator[Any]:
    if isinstance(container, Mapping):
        for key, value in container.items():
            yield key
            yield value
    else:
        yield from container
