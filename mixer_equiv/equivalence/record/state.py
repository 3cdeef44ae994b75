"""`ModelState`: what stays in Python objects from one call of a model to the next, such as caches and counters.

A snapshot follows attributes, also in slots and of threads, containers, arrays, numbers of ctypes, iterators, variables
of contexts, and the functions of the user's code with their closures, defaults and globals. It can be restored, and
compared with what is there now; `holders.py` does so for each object. It knows no framework: tensors are put back where
they stood and never copied, so values written into a tensor are for the caller. Start at `ModelState`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, MethodWrapperType, ModuleType
from typing import Any

from mixer_equiv.equivalence.record.holders import (
    IMMUTABLE,
    Change,
    Fields,
    Held,
    Slots,
    has_value,
    hold,
    hold_cell,
    hold_class,
    hold_defaults,
    hold_entries,
    path_of,
)
from mixer_equiv.shown_paths import is_installed

_EXTERNAL = ("torch", "jax", "jaxlib", "flax", "numpy", "builtins", "logging", "threading", "_thread")


_CONTAINERS = (dict, list, set, deque, tuple, Mapping, ctypes.Array)
_OF_CTYPES = (ctypes._SimpleCData, ctypes.Structure, ctypes.Union)

# Classes, not those made of them, whose objects have no attributes. They are most of what is visited.
_WITHOUT_ATTRIBUTES = frozenset({dict, list, set, tuple, deque, OrderedDict, defaultdict, Slots, Fields})


class ModelState:
    """A snapshot of what is reachable from some objects, each under a name."""

    def __init__(self, objects: Iterable[tuple[str, Any]]) -> None:
        self._held: list[Held] = []
        self._visited: dict[int, tuple[str, Any]] = {}  # the objects too, so that no id is used twice
        waiting: deque[tuple[str, Any]] = deque()
        for path, held in objects:  # themselves, of whatever class they are
            parts = _attributes(path, held) if hasattr(held, "__dict__") else [(path, held)]
            waiting += [(path, type(held)), *parts]
        while waiting:
            path, value = waiting.popleft()
            if not isinstance(value, IMMUTABLE) and id(value) not in self._visited:
                self._visited[id(value)] = path, value
                waiting.extend(self._visit(path, value))

    def restore(self) -> None:
        """Put back what was there when the snapshot was taken."""
        for held in self._held:
            held.restore()

    def objects(self) -> Iterator[tuple[str, Any]]:
        """All objects that were reached, by the paths on which they were reached first."""
        yield from self._visited.values()

    def changes(self) -> list[Change]:
        """All that differs from the snapshot."""
        found: dict[str, Change] = {}  # an iterator is told by its holder first, which can be written into
        for held in self._held:
            for change in held.changes():
                found.setdefault(change.path, change)
        return list(found.values())

    def _visit(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Take a snapshot of one object, and give the objects that it holds."""
        if (held := hold(path, value)) is not None:
            self._held.append(held)
        if isinstance(value, FunctionType):
            yield from self._visit_function(value)
        elif isinstance(value, type):
            yield from self._visit_class(value)
        elif not isinstance(value, ModuleType):
            yield from _parts(path, value)
            if type(value) in _WITHOUT_ATTRIBUTES:
                return
            if not _is_external(type(value)) or isinstance(value, threading.local):
                yield path, type(value)
                yield from _attributes(path, value)

    def _visit_function(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        """A function of the user's code: the variables around it, its defaults, and the globals that it names."""
        if not _is_users(function.__module__):
            return
        name = function.__qualname__.replace(".<locals>", "")
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if has_value(cell):
                self._held.append(hold_cell(f"{variable} of {name}", cell))
                yield f"{variable} of {name}", cell.cell_contents
        if function.__defaults__:
            self._held.append(hold_defaults(f"a default of {name}", function))
        yield f"a default of {name}", function.__defaults__ or ()
        yield f"a default of {name}", function.__kwdefaults__ or {}
        yield f"{name}", vars(function)
        named = [key for key in _names_in(function.__code__) if key in function.__globals__]
        self._held.append(hold_entries(f"{function.__module__}.", function.__globals__, named))
        for key in named:
            yield f"{function.__module__}.{key}", function.__globals__[key]

    def _visit_class(self, kind: type) -> Iterator[tuple[str, Any]]:
        """A class of the user's code: its attributes, and its methods."""
        for base in kind.__mro__:
            if _is_users(base.__module__):
                own = {key: value for key, value in vars(base).items() if not key.startswith("__") or callable(value)}
                self._held.append(hold_class(base, own))
                for key, value in own.items():
                    function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                    yield f"{base.__name__}.{key}", getattr(function, "__wrapped__", function)


@contextlib.contextmanager
def restoring_state(objects: Iterable[tuple[str, Any]]) -> Iterator[ModelState]:
    """On leaving, put back all that is reachable from these objects, each under a name."""
    state = ModelState(objects)
    try:
        yield state
    finally:
        state.restore()


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds that is no attribute of it."""
    if isinstance(value, _CONTAINERS):
        yield from _items(path, value)
    elif isinstance(value, _OF_CTYPES):
        fields = Fields(value)
        yield path, fields
        yield from ((path_of(path, key), part) for key, part in fields.parts())
    elif isinstance(value, functools._lru_cache_wrapper):
        yield path, value.__wrapped__
    elif isinstance(value, functools.partial):
        yield from ((path, part) for part in (value.func, *value.args, *value.keywords.values()))
    elif isinstance(value, MethodType):
        yield from ((path, value.__func__), (path, value.__self__))
    elif isinstance(value, (MethodWrapperType, BuiltinMethodType)):  # such as `append` of a list
        yield path, value.__self__
    elif isinstance(value, ContextVar):
        yield path, value.get(None)
    elif isinstance(value, weakref.ref):
        yield path, value()


def _attributes(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What holds the attributes of an object, in slots too."""
    if hasattr(value, "__dict__"):
        yield path, vars(value)
    if slots := Slots(value):
        yield path, slots


def _items(path: str, container: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(container, Mapping):
        for key, item in container.items():
            yield path_of(path, key), item
    else:
        yield from ((f"{path}[{i}]", item) for i, item in enumerate(container))


def _names_in(code: CodeType) -> list[str]:
    """The names that a function's code looks up, also in the functions that it defines."""
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names += _names_in(constant)
    return list(dict.fromkeys(names))


def _is_external(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _EXTERNAL


@functools.cache
def _is_users(module: str | None) -> bool:
    """Whether code of a module is the user's: of no installed package, and not of this one."""
    top = "" if module is None else module.partition(".")[0]
    if not top or top in _EXTERNAL or top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return False
    file = getattr(sys.modules.get(str(module)), "__file__", None)
    return file is None or not is_installed(Path(file))
