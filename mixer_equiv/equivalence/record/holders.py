"""`Held`: one object that calls may change, with what puts it back and what tells its changes.

Each kind of object has a function that holds it, in the table of `hold`; `state.py` finds the objects, and `calls.py`
writes into them. Nothing here knows a framework.
"""

from __future__ import annotations

import array
import contextlib
import copy
import ctypes
import functools
import pickle
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from types import CellType, FunctionType, GeneratorType, MemberDescriptorType
from typing import Any, NamedTuple

import numpy as np

from mixer_equiv.equivalence.record.iterators import UNKNOWN, copied_iterator, iterator_of, may_be_iterator, place_of

IMMUTABLE = (str, bytes, int, float, complex, bool, type(None))

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


class Held(NamedTuple):
    """One object that can change: what puts it back, and what tells its changes."""

    restore: Callable[[], None]
    changes: Callable[[], Iterator[Change]]


class Slots(MutableMapping[str, Any]):
    """The attributes of an object that are in `__slots__` of its classes; one that is not set is no key."""

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._descriptors = _slots_of(type(owner))

    def __getitem__(self, key: str) -> Any:
        try:
            return self._descriptors[key].__get__(self._owner)
        except AttributeError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, value: Any) -> None:
        self._descriptors[key].__set__(self._owner, value)  # of a frozen dataclass too

    def __delitem__(self, key: str) -> None:
        self._descriptors[key].__delete__(self._owner)

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._descriptors if key in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        return self.get(str(key), ABSENT) is not ABSENT


def _slots_of(kind: type) -> dict[str, Any]:
    """What gets and sets each slot of the objects of a class, by name."""
    return {
        key: descriptor
        for base in reversed(kind.__mro__)
        if "__slots__" in vars(base)
        for key, descriptor in vars(base).items()
        if isinstance(descriptor, MemberDescriptorType)
    }


class Fields(Slots):
    """The numbers that an object of ctypes holds, by the names of its fields, or as its value."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._names = [field[0] for kind in type(owner).__mro__ for field in vars(kind).get("_fields_", ())] or [
            "value"
        ]

    def __getitem__(self, key: str) -> Any:
        try:
            value = getattr(self._owner, key)
        except ValueError:  # of a pointer to nothing
            raise KeyError(key) from None
        if not isinstance(value, IMMUTABLE):
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self._owner, key, value)

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._names if key in self)

    def parts(self) -> Iterator[tuple[str, Any]]:
        """What it holds besides numbers, such as other objects of ctypes in its memory."""
        return (
            (key, getattr(self._owner, key)) for key in self._names if key not in self and hasattr(self._owner, key)
        )


def attributes_of(value: Any) -> dict[str, Any]:
    """The attributes of an object, in its `__dict__` and in slots."""
    return {**(vars(value) if hasattr(value, "__dict__") else {}), **Slots(value)}


def hold(path: str, value: Any) -> Held | None:
    """Hold an object by its kind; None for one that does not change but in what it holds."""
    if type(value) in (Slots, Fields):
        return hold_slots(path, value)
    for kinds, holds in _BY_KIND:
        if isinstance(value, kinds):
            return holds(path, value)
    if iterator_of(value) is value:
        return hold_iterator(path, value)
    if (random_state := _random_state(value)) is not None:
        return hold_random_numbers(path, *random_state)
    return None


def hold_array(path: str, array: np.ndarray) -> Held | None:
    if not array.flags.writeable or array.dtype == object:
        return None
    before = array.copy()

    def write(values: Any) -> None:
        array[...] = values

    def changes() -> Iterator[Change]:
        if not np.array_equal(array, before, equal_nan=array.dtype.kind in "fc"):
            yield Change(path, before, array.copy(), write)

    return Held(lambda: write(before), changes)


def hold_buffer(path: str, held: Any) -> Held:
    """A bytearray or an array of Python, which may become longer."""
    before = held[:]
    make = functools.partial(array.array, held.typecode) if isinstance(held, array.array) else bytes

    def write_all(values: Any) -> None:
        held[:] = make(values)

    def write(number: int, value: Any) -> None:
        with contextlib.suppress(OverflowError, ValueError):  # a number that there is no room for
            held[number] = value

    def changes() -> Iterator[Change]:
        if len(held) != len(before):
            yield Change(path, list(before), list(held), write_all)
            return
        for number, (then, now) in enumerate(zip(before, held, strict=True)):
            if not _is_same(then, now):
                yield Change(f"{path}[{number}]", then, now, functools.partial(write, number))

    def restore() -> None:
        if held != before:
            held[:] = before

    return Held(restore, changes)


def hold_memory(path: str, view: memoryview) -> Held | None:
    """Memory that another object has."""
    return hold_array(path, np.frombuffer(view, np.uint8)) if view.c_contiguous else None


def hold_items_of_ctypes(path: str, items: ctypes.Array[Any]) -> Held | None:
    """The numbers of an array of ctypes; what else is in one is held on its own."""
    if not issubclass(items._type_, ctypes._SimpleCData):
        return None
    try:
        return hold_array(path, np.ctypeslib.as_array(items))
    except (TypeError, ValueError, NotImplementedError):  # of pointers
        return None


def hold_iterator(path: str, iterator: Any) -> Held:
    """An iterator or generator, which cannot be put back. It counts as used where it does not tell its place."""
    before = place_of(iterator)

    def changes() -> Iterator[Change]:
        if (now := place_of(iterator)) != before or now == UNKNOWN:
            yield Change(path, before, now, None)

    return Held(lambda: None, changes)


def hold_variable(path: str, variable: ContextVar[Any]) -> Held:
    """A variable of a context. One that was not set cannot be put back, and is lost with a copied context."""
    before = variable.get(ABSENT)

    def restore() -> None:
        if before is not ABSENT and variable.get(ABSENT) is not before:
            variable.set(before)

    def changes() -> Iterator[Change]:
        if not _is_same(before, now := variable.get(ABSENT)):
            yield Change(path, before, now, variable.set)

    return Held(restore, changes)


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


def hold_random_numbers(path: str, get: Callable[[], Any], restore: Callable[[Any], Any]) -> Held:
    """A generator of random numbers."""
    before = get()

    def changes() -> Iterator[Change]:
        if pickle.dumps(now := get()) != pickle.dumps(before):
            yield Change(path, before, now, None)

    return Held(lambda: restore(before), changes)


def hold_slots(path: str, held: Slots) -> Held:
    before = dict(held)
    _clone_iterators(held, before.items())

    def restore() -> None:
        for key in held.keys() - before.keys():
            del held[key]
        for key, value in before.items():
            if held.get(key, ABSENT) is not value:
                held[key] = value

    return Held(restore, functools.partial(_changed_entries, path, held, before, held.__setitem__))


def hold_defaults(path: str, function: FunctionType) -> Held:
    """The defaults of a function's arguments."""
    before = function.__defaults__ or ()
    function.__defaults__ = tuple(map(copied_iterator, before))

    def write(number: int, value: Any) -> None:
        now = list(function.__defaults__ or ())
        now[number] = value
        function.__defaults__ = tuple(now)

    def changes() -> Iterator[Change]:
        for number, (then, now) in enumerate(zip(before, function.__defaults__ or (), strict=False)):
            if not _is_same(then, now):
                yield Change(f"{path}[{number}]", then, now, functools.partial(write, number))

    def restore() -> None:
        function.__defaults__ = before or None

    return Held(restore, changes)


def hold_cache(path: str, cached: functools._lru_cache_wrapper[Any]) -> Held:
    """What `functools.lru_cache` keeps, which cannot be put back, and is forgotten where calls added to it."""
    before = cached.cache_info()

    def restore() -> None:
        if cached.cache_info() != before:
            cached.cache_clear()

    def changes() -> Iterator[Change]:
        if cached.cache_info() != before:
            yield Change(f"the cache of {path}", before, cached.cache_info(), None)

    return Held(restore, changes)


def hold_container(path: str, container: Any) -> Held:
    before = container.copy() if type(container) in _COPIED_FAST else copy.copy(container)
    if container and isinstance(container, (dict, list)):
        _clone_iterators(container, container.items() if isinstance(container, dict) else enumerate(container))

    def restore() -> None:
        now = list(_elements(container))
        then = list(_elements(before))
        if len(now) != len(then) or any(x is not y for x, y in zip(now, then, strict=True)):
            container.clear()
            (container.update if isinstance(container, dict | set) else container.extend)(before)

    if isinstance(container, dict):
        return Held(restore, functools.partial(_changed_entries, path, container, before, container.__setitem__))

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

    return Held(restore, changes)


# Containers whose `copy` is that of `copy.copy`.
_COPIED_FAST = (dict, list, set, OrderedDict, deque)

_BY_KIND: tuple[tuple[Any, Callable[[str, Any], Held | None]], ...] = (
    ((dict, list, set, deque), hold_container),  # first, since they are most
    (np.ndarray, hold_array),
    ((bytearray, array.array), hold_buffer),
    (memoryview, hold_memory),
    (ctypes.Array, hold_items_of_ctypes),
    (functools._lru_cache_wrapper, hold_cache),
    (GeneratorType, hold_iterator),
    (ContextVar, hold_variable),
)


def _changed_entries(
    path: str, held: Mapping[Any, Any], before: Mapping[Any, Any], write: Callable[[Any, Any], Any]
) -> Iterator[Change]:
    """What differs in entries that are written by key."""
    for key in {**before, **held}:
        then, now = before.get(key, ABSENT), held.get(key, ABSENT)
        if not _is_same(then, now) and not _is_bookkeeping(key, then, now):
            yield Change(path_of(path, key), then, now, functools.partial(write, key))


def _is_bookkeeping(key: Any, *values: Any) -> bool:
    """Whether an entry is what Flax notes of an nnx module for its own use, anew in each transform."""
    return key in _NOTED_BY_FLAX and all(type(value).__module__.partition(".")[0] == "flax" for value in values)


def hold_entries(path: str, held: dict[str, Any], keys: Iterable[str]) -> Held:
    """Some entries of a dict that has others as well."""
    before = {key: held[key] for key in keys}
    _clone_iterators(held, before.items())

    def changes() -> Iterator[Change]:
        now = {key: held[key] for key in before if key in held}
        return _changed_entries(path, now, before, held.__setitem__)

    def restore() -> None:
        for key, value in before.items():
            if held.get(key, ABSENT) is not value:
                held[key] = value

    return Held(restore, changes)


def hold_class(kind: type, before: Mapping[str, Any]) -> Held:
    path = kind.__name__
    for key, value in before.items():
        if (copied := copied_iterator(value)) is not value:
            setattr(kind, key, copied)

    def changes() -> Iterator[Change]:
        now = {key: vars(kind)[key] for key in before if key in vars(kind)}
        return _changed_entries(path, now, before, functools.partial(setattr, kind))

    def restore() -> None:
        for key, value in before.items():
            if vars(kind).get(key, ABSENT) is not value:
                setattr(kind, key, value)

    return Held(restore, changes)


def hold_cell(path: str, cell: CellType) -> Held:
    before = cell.cell_contents
    if (copied := copied_iterator(before)) is not before:
        cell.cell_contents = copied

    def write(value: Any) -> None:
        cell.cell_contents = value

    def changes() -> Iterator[Change]:
        if has_value(cell) and not _is_same(before, cell.cell_contents):
            yield Change(path, before, cell.cell_contents, write)

    return Held(lambda: write(before), changes)


def _clone_iterators(holder: Any, items: Iterable[tuple[Any, Any]]) -> None:
    """Let a holder have copies in the place of its iterators, since one that was used cannot be put back."""
    for key, value in [(key, value) for key, value in items if may_be_iterator(value)]:
        if (copied := copied_iterator(value)) is not value:
            holder[key] = copied


def has_value(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # an empty cell raises
    except ValueError:
        return False
    return True


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are one object, equal ones of a kind that never changes, or iterators at one place."""
    if one is other:
        return True
    if isinstance(one, IMMUTABLE):
        return type(one) is type(other) and bool(one == other)
    iterators = iterator_of(one), iterator_of(other)
    return None not in iterators and UNKNOWN != place_of(iterators[0]) == place_of(iterators[1])


def _elements(container: Any) -> Iterator[Any]:
    """The elements of a container, or the keys and values of a mapping."""
    if isinstance(container, Mapping):
        for key, value in container.items():
            yield key
            yield value
    else:
        yield from container


def path_of(path: str, key: Any) -> str:
    if key in _ATTRIBUTES_OF:
        return path
    joint = "." if path and not path.endswith(".") else ""
    return f"{path}{joint}{key}" if isinstance(key, str) and key.isidentifier() else f"{path}[{key!r}]"
