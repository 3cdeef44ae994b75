"""`ModelState`: what stays in Python objects from one call of a model to the next, such as caches and counters.

A snapshot follows attributes, plain containers, NumPy arrays, and the functions of the user's code with their closures,
defaults and globals. It can be restored, and compared with what is there now. It knows no framework: tensors are put
back where they stood and never copied, so values written into a tensor are for the caller. Start at `ModelState`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import pickle
import random
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import CellType, CodeType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from mixer_equiv.shown_paths import is_installed

_IMMUTABLE = (str, bytes, int, float, complex, bool, type(None))
_EXTERNAL = ("torch", "jax", "jaxlib", "flax", "numpy", "builtins", "logging", "threading", "_thread")

# Dicts of a torch module whose entries are the module's attributes.
_ATTRIBUTES_OF = ("_parameters", "_buffers", "_modules")

# Attributes in which Flax keeps the state of an nnx module as an object; the first is of older versions.
_NOTED_BY_FLAX = ("_object__state", "_pytree__state")


class Change(NamedTuple):
    """What differs from the snapshot: the path of a value, the value then and now, and what writes another one there.

    A value that was not there, or is not there now, is `ABSENT`. `write` is None where nothing can be written.
    """

    path: str
    before: Any
    now: Any
    write: Callable[[Any], Any] | None


ABSENT = object()


class _Held(NamedTuple):
    """One object that can change: what puts it back, and what tells its changes."""

    restore: Callable[[], None]
    changes: Callable[[], Iterator[Change]]


class ModelState:
    """A snapshot of what is reachable from some objects, each under a name."""

    def __init__(self, objects: Iterable[tuple[str, Any]]) -> None:
        self._held: list[_Held] = []
        self._visited: dict[int, tuple[str, Any]] = {}  # the objects too, so that no id is used twice
        waiting: deque[tuple[str, Any]] = deque()
        for path, held in objects:  # themselves, of whatever class they are
            waiting += [(path, type(held)), (path, vars(held) if hasattr(held, "__dict__") else held)]
        while waiting:
            path, value = waiting.popleft()
            if not isinstance(value, _IMMUTABLE) and id(value) not in self._visited:
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
        return [change for held in self._held for change in held.changes()]

    def _visit(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Take a snapshot of one object, and give the objects that it holds."""
        if isinstance(value, np.ndarray):
            if value.flags.writeable and value.dtype != object:
                self._held.append(_array(path, value))
        elif isinstance(value, bytearray):
            self._held.append(_array(path, np.frombuffer(value, np.uint8)))
        elif isinstance(value, functools._lru_cache_wrapper):
            self._held.append(_cache(path, value))
            yield path, value.__wrapped__
        elif isinstance(value, dict | list | set | deque):
            self._held.append(_container(path, value))
            yield from _items(path, value)
        elif isinstance(value, tuple | Mapping):
            yield from _items(path, value)
        elif isinstance(value, GeneratorType):
            self._held.append(_generator(path, value))
        elif (random_state := _random_state(value)) is not None:
            self._held.append(_random_numbers(path, *random_state))
        elif isinstance(value, functools.partial):
            yield from ((path, part) for part in (value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, MethodType):
            yield from ((path, value.__func__), (path, value.__self__))
        elif isinstance(value, FunctionType):
            yield from self._visit_function(value)
        elif isinstance(value, type):
            yield from self._visit_class(value)
        elif hasattr(value, "__dict__") and not isinstance(value, ModuleType):
            yield path, type(value)
            if not _is_external(type(value)):
                yield path, vars(value)

    def _visit_function(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        """A function of the user's code: the variables around it, its defaults, and the globals that it names."""
        if not _is_users(function.__module__):
            return
        name = function.__qualname__.replace(".<locals>", "")
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if _has_value(cell):
                self._held.append(_cell(f"{variable} of {name}", cell))
                yield f"{variable} of {name}", cell.cell_contents
        if function.__defaults__:
            self._held.append(_defaults(f"a default of {name}", function))
        yield f"a default of {name}", function.__defaults__ or ()
        yield f"a default of {name}", function.__kwdefaults__ or {}
        yield f"{name}", vars(function)
        named = [key for key in _names_in(function.__code__) if key in function.__globals__]
        self._held.append(_entries(f"{function.__module__}.", function.__globals__, named))
        for key in named:
            yield f"{function.__module__}.{key}", function.__globals__[key]

    def _visit_class(self, kind: type) -> Iterator[tuple[str, Any]]:
        """A class of the user's code: its attributes, and its methods."""
        for base in kind.__mro__:
            if _is_users(base.__module__):
                own = {key: value for key, value in vars(base).items() if not key.startswith("__") or callable(value)}
                self._held.append(_class(base, own))
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


def _items(path: str, container: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(container, Mapping):
        for key, item in container.items():
            yield _path_of(path, key), item
    else:
        yield from ((f"{path}[{i}]", item) for i, item in enumerate(container))


def _path_of(path: str, key: Any) -> str:
    if key in _ATTRIBUTES_OF:
        return path
    joint = "." if path and not path.endswith(".") else ""
    return f"{path}{joint}{key}" if isinstance(key, str) and key.isidentifier() else f"{path}[{key!r}]"


def _array(path: str, array: np.ndarray) -> _Held:
    before = array.copy()

    def write(values: Any) -> None:
        array[...] = values

    def changes() -> Iterator[Change]:
        if not np.array_equal(array, before, equal_nan=array.dtype.kind in "fc"):
            yield Change(path, before, array.copy(), write)

    return _Held(lambda: write(before), changes)


def _generator(path: str, generator: GeneratorType[Any, Any, Any]) -> _Held:
    """A generator, which cannot be put back."""

    def place() -> str:
        frame = generator.gi_frame
        return "done" if frame is None else f"{frame.f_lasti} {frame.f_locals!r}"

    before = place()

    def changes() -> Iterator[Change]:
        if place() != before:
            yield Change(path, before, place(), None)

    return _Held(lambda: None, changes)


def _random_state(value: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]] | None:
    """What gets and sets the state of a generator of random numbers, of Python, NumPy or torch; None for all else."""
    if isinstance(value, random.Random):
        return value.getstate, value.setstate
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return (lambda: copy.deepcopy(bits.state)), functools.partial(setattr, bits, "state")
    if type(value).__module__.startswith(("numpy.random", "torch")) and hasattr(value, "get_state"):
        return value.get_state, value.set_state
    return None


def _random_numbers(path: str, get: Callable[[], Any], restore: Callable[[Any], Any]) -> _Held:
    """A generator of random numbers."""
    before = get()

    def changes() -> Iterator[Change]:
        if pickle.dumps(now := get()) != pickle.dumps(before):
            yield Change(path, before, now, None)

    return _Held(lambda: restore(before), changes)


def _defaults(path: str, function: FunctionType) -> _Held:
    """The defaults of a function's arguments."""
    before = function.__defaults__ or ()
    function.__defaults__ = tuple(copied_count(v) if isinstance(v, itertools.count) else v for v in before)

    def write(number: int, value: Any) -> None:
        now = list(function.__defaults__ or ())
        now[number] = value
        function.__defaults__ = tuple(now)

    def changes() -> Iterator[Change]:
        for number, (then, now) in enumerate(zip(before, function.__defaults__ or (), strict=False)):
            if not _is_same(then, now):
                yield Change(path, then, now, functools.partial(write, number))

    def restore() -> None:
        function.__defaults__ = before or None

    return _Held(restore, changes)


def _cache(path: str, cached: functools._lru_cache_wrapper[Any]) -> _Held:
    """What `functools.lru_cache` keeps, which cannot be put back, and is forgotten where calls added to it."""
    before = cached.cache_info()

    def restore() -> None:
        if cached.cache_info() != before:
            cached.cache_clear()

    def changes() -> Iterator[Change]:
        if cached.cache_info() != before:
            yield Change(f"the cache of {path}", before, cached.cache_info(), None)

    return _Held(restore, changes)


def _container(path: str, container: Any) -> _Held:
    before = container.copy() if type(container) in (dict, list, set) else copy.copy(container)
    if isinstance(container, dict | list) and container:
        _clone_counts(container, container.items() if isinstance(container, dict) else enumerate(container))

    def restore() -> None:
        now = list(_elements(container))
        then = list(_elements(before))
        if len(now) != len(then) or any(x is not y for x, y in zip(now, then, strict=True)):
            container.clear()
            (container.update if isinstance(container, dict | set) else container.extend)(before)

    if isinstance(container, dict):
        return _Held(restore, functools.partial(_changed_entries, path, container, before, container.__setitem__))

    def write(values: Any) -> None:
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(values)

    def changes() -> Iterator[Change]:
        if not isinstance(container, set) and len(container) == len(before):
            pairs = zip(before, container, strict=True)
            for i, (then, now) in enumerate(pairs):
                if not _is_same(then, now):
                    yield Change(f"{path}[{i}]", then, now, functools.partial(container.__setitem__, i))
        elif container != before:
            yield Change(path, before, copy.copy(container), write)

    return _Held(restore, changes)


def _changed_entries(
    path: str, held: Mapping[Any, Any], before: Mapping[Any, Any], write: Callable[[Any, Any], Any]
) -> Iterator[Change]:
    """What differs in entries that are written by key."""
    for key in {**before, **held}:
        then, now = before.get(key, ABSENT), held.get(key, ABSENT)
        if not _is_same(then, now) and not _is_bookkeeping(key, then, now):
            yield Change(_path_of(path, key), then, now, functools.partial(write, key))


def _is_bookkeeping(key: Any, *values: Any) -> bool:
    """Whether an entry is what Flax notes of an nnx module for its own use, anew in each transform."""
    return key in _NOTED_BY_FLAX and all(type(value).__module__.partition(".")[0] == "flax" for value in values)


def _entries(path: str, held: dict[str, Any], keys: Iterable[str]) -> _Held:
    """Some entries of a dict that has others as well."""
    before = {key: held[key] for key in keys}
    _clone_counts(held, before.items())

    def changes() -> Iterator[Change]:
        now = {key: held[key] for key in before if key in held}
        return _changed_entries(path, now, before, held.__setitem__)

    def restore() -> None:
        for key, value in before.items():
            if held.get(key, ABSENT) is not value:
                held[key] = value

    return _Held(restore, changes)


def _class(kind: type, before: Mapping[str, Any]) -> _Held:
    path = kind.__name__
    for key, value in before.items():
        if isinstance(value, itertools.count):
            setattr(kind, key, copied_count(value))

    def changes() -> Iterator[Change]:
        now = {key: vars(kind)[key] for key in before if key in vars(kind)}
        return _changed_entries(path, now, before, functools.partial(setattr, kind))

    def restore() -> None:
        for key, value in before.items():
            if vars(kind).get(key, ABSENT) is not value:
                setattr(kind, key, value)

    return _Held(restore, changes)


def _cell(path: str, cell: CellType) -> _Held:
    before = cell.cell_contents
    if isinstance(before, itertools.count):
        cell.cell_contents = copied_count(before)

    def write(value: Any) -> None:
        cell.cell_contents = value

    def changes() -> Iterator[Change]:
        if _has_value(cell) and not _is_same(before, cell.cell_contents):
            yield Change(path, before, cell.cell_contents, write)

    return _Held(lambda: write(before), changes)


def _clone_counts(holder: Any, items: Iterable[tuple[Any, Any]]) -> None:
    """Let a holder have other counts in the place of its own, since one that was counted on cannot be put back."""
    for key, value in list(items):
        if isinstance(value, itertools.count):
            holder[key] = copied_count(value)


def copied_count(count: itertools.count[Any], ahead: int = 0) -> itertools.count[Any]:
    """A count that goes on from where this one is, or from some steps ahead."""
    start, step = count_of(count)
    return itertools.count(start + ahead * step, step)


def count_of(count: itertools.count[Any]) -> tuple[Any, Any]:
    """The next number of a count, and its step."""
    numbers = re.findall(r"-?[\d.]+(?:e[-+]?\d+)?", repr(count))
    start, step = (*map(float if "." in repr(count) else int, numbers), 1)[:2]
    return start, step


def _has_value(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # an empty cell raises
    except ValueError:
        return False
    return True


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are one object, or equal ones of a kind that never changes."""
    if isinstance(one, itertools.count) and isinstance(other, itertools.count):
        return repr(one) == repr(other)
    return one is other or (isinstance(one, _IMMUTABLE) and type(one) is type(other) and one == other)


def _elements(container: Any) -> Iterator[Any]:
    """The elements of a container, or the keys and values of a mapping."""
    if isinstance(container, Mapping):
        for key, value in container.items():
            yield key
            yield value
    else:
        yield from container


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
