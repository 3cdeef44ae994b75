"""Read a pickle without importing, or calling, anything that it names.

A pickle is a program for a small machine. This one knows what a table of constructors says of a few names; of any
other name, and of whatever a pickle calls under it, it makes a `Placeholder`. Knows neither torch nor NumPy. Start at
`unpickle`.
"""

from __future__ import annotations

import dataclasses
import io
import pickletools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

# More than checkpoints of thousands of arrays need, and little enough for 2 s and 200 MB.
MAX_OPERATIONS = 2_000_000
MAX_OBJECTS = 500_000

# Bytes that calls may copy: each is in the pickle, and in few calls; a small pickle may copy this many at least.
MAX_COPIES, MIN_COPIED = 4, 2**26

# Whole numbers from here on can be chosen so that all have one hash, which makes a dict of them slow.
_MAX_KEY = 2**61 - 1


class PickleError(ValueError):
    """A pickle that breaks off, or does what no pickle of weights does."""


@dataclasses.dataclass(frozen=True)
class Global:
    """What a pickle names, such as "torch.float32"; it is not looked up."""

    name: str


class Placeholder:
    """Stands for an object of a kind that is not known: `name` is what made it, `state` what was in it, or None."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None

    def build(self, state: Any) -> None:
        self.state = state


class AttributeDict(dict[Any, Any]):
    """A dict that may have attributes, as an `OrderedDict` may; None for one that has none."""

    __slots__ = ("attributes",)

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.attributes: dict[Any, Any] | None = None

    def build(self, state: Any) -> None:
        if isinstance(state, dict):
            self.attributes = {} if self.attributes is None else self.attributes
            self.attributes.update(state)


@dataclasses.dataclass
class Budget:
    """What a pickle may still do. Raises `PickleError` once it is spent."""

    operations: int = MAX_OPERATIONS
    objects: int = MAX_OBJECTS
    copied: int = MIN_COPIED

    @classmethod
    def of(cls, size: int) -> Budget:
        """The budget of a pickle of `size` bytes."""
        return cls(copied=MIN_COPIED + MAX_COPIES * size)

    def spend(self, *, operations: int = 0, objects: int = 0, copied: int = 0) -> None:
        self.operations -= operations
        self.objects -= objects
        self.copied -= copied
        if self.copied < 0:
            raise PickleError("it copies the same bytes again and again, which no pickle of weights does")
        if self.operations < 0 or self.objects < 0:
            raise PickleError(
                f"it makes more than {MAX_OBJECTS} objects, or takes more than {MAX_OPERATIONS} steps; weights of a "
                "Mixer need some ten thousand"
            )


# Makes an object of the arguments of a pickle's call. Raises `PickleError` for arguments that its kind cannot have.
Constructor = Callable[[Budget, tuple[Any, ...]], Any]


def unpickle(
    data: bytes | BinaryIO,
    constructors: Mapping[str, Constructor],
    constants: Mapping[str, Any],
    persistent: Callable[[Any], Any] | None = None,
    budget: Budget | None = None,
) -> Any:
    """The object of a pickle of any protocol; of a stream, which is read to its end, not further.

    A name in `constants` is its value; a call of a name in `constructors` gives what that makes of the arguments.
    `persistent` gives the object of a persistent id. Raises `PickleError` for a pickle that is damaged or of more than
    `MAX_OBJECTS` objects.
    """
    budget = budget or Budget.of(len(data) if isinstance(data, bytes) else 0)
    machine = _Machine(constructors, constants, persistent, budget)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of odd escapes in text of protocol 0
        for name, argument in _operations(io.BytesIO(data) if isinstance(data, bytes) else data):
            if name == "STOP":
                return machine.pop()
            machine.step(name, argument)
    raise PickleError("it breaks off")


def _operations(stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    operations = pickletools.genops(stream)
    while True:
        try:
            opcode, argument, _ = next(operations)
        except StopIteration:
            return
        except ValueError as error:  # which genops raises for all that it cannot read
            raise PickleError(str(error)) from error
        yield opcode.name, argument


_MARK = object()

# Operations that push their argument.
_PUSHED = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE"),
        *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    }
)
_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: Mapping[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": AttributeDict, "EMPTY_SET": set}
_TUPLES: Mapping[str, int] = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = frozenset({"PROTO", "FRAME", "READONLY_BUFFER"})


class _Machine:
    def __init__(
        self,
        constructors: Mapping[str, Constructor],
        constants: Mapping[str, Any],
        persistent: Callable[[Any], Any] | None,
        budget: Budget,
    ) -> None:
        self.constructors, self.constants, self.persistent = constructors, constants, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.budget = budget

    def step(self, name: str, argument: Any) -> None:
        self.budget.spend(operations=1)
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.budget.spend(objects=1)
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            self.stack.append(tuple(reversed([self.pop() for _ in range(count)])))
        elif name not in _NOTHING:
            operation = getattr(self, f"_{name.lower()}", None)
            if operation is None:
                raise PickleError(f"it has the operation {name}, which weights have no use for")
            operation(argument)

    def pop(self) -> Any:
        value = self._top()
        del self.stack[-1]
        return value

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise PickleError("an object is missing on its stack")
        return self.stack[-1]

    def _marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        at = len(self.stack) - 1
        while at >= 0 and self.stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise PickleError("a mark is missing on its stack")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    # The stack and the memo

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        if not self.stack:
            raise PickleError("an object is missing on its stack")
        del self.stack[-1]  # an object or a mark

    def _pop_mark(self, _: Any) -> None:
        self._marked()

    def _dup(self, _: Any) -> None:
        self.stack.append(self._top())

    def _memoize(self, _: Any) -> None:
        self._put(len(self.memo))

    def _put(self, number: Any) -> None:
        self.budget.spend(objects=1)
        self.memo[number] = self._top()

    _binput = _long_binput = _put

    def _get(self, number: Any) -> None:
        if number not in self.memo:
            raise PickleError(f"it uses object {number}, which it has not made")
        self.stack.append(self.memo[number])

    _binget = _long_binget = _get

    # Containers

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._marked()))

    def _list(self, _: Any) -> None:
        self.stack.append(self._marked())

    def _dict(self, _: Any) -> None:
        values = self._marked()
        made = AttributeDict()
        self.stack.append(made)
        self._set(made, values)

    def _frozenset(self, _: Any) -> None:
        self.stack.append(frozenset(map(as_key, self._marked())))

    def _append(self, _: Any) -> None:
        self._extend([self.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._marked())

    def _additems(self, _: Any) -> None:
        self._extend(self._marked())

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, set):
            target.update(map(as_key, values))
        elif not isinstance(target, Placeholder):
            raise PickleError(f"items are added to a {type(target).__name__}")

    def _setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set(self._top(), [key, value])

    def _setitems(self, _: Any) -> None:
        values = self._marked()
        self._set(self._top(), values)

    def _set(self, target: Any, values: Sequence[Any]) -> None:
        if len(values) % 2:
            raise PickleError("a key has no value")
        if isinstance(target, dict):
            target.update(zip(map(as_key, values[::2]), values[1::2], strict=True))
        elif not isinstance(target, Placeholder):
            raise PickleError(f"keys are set in a {type(target).__name__}")

    # Names and calls

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("a name is no text")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        self.budget.spend(objects=1)
        full = f"{module}.{name}"
        self.stack.append(self.constants.get(full, Global(full)))

    def _reduce(self, _: Any) -> None:
        arguments, called = self.pop(), self.pop()
        self._call(called, arguments)

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        named, arguments, called = self.pop(), self.pop(), self.pop()
        self._call(called, arguments if not named else None)

    def _obj(self, _: Any) -> None:
        called, *arguments = self._marked() or [None]
        self._call(called, tuple(arguments))

    def _inst(self, argument: str) -> None:
        arguments = self._marked()
        self._global(argument)
        self._call(self.pop(), tuple(arguments))

    def _call(self, called: Any, arguments: Any) -> None:
        self.budget.spend(objects=1)
        name = called.name if isinstance(called, Global | Placeholder) else type(called).__name__
        known = self.constructors.get(name) if isinstance(called, Global) else None
        if known is not None and isinstance(arguments, tuple):
            self.stack.append(known(self.budget, arguments))
        else:
            self.stack.append(Placeholder(name))

    def _build(self, _: Any) -> None:
        state, target = self.pop(), self._top()
        self.budget.spend(operations=len(state) if isinstance(state, dict) else 1)
        if hasattr(target, "build"):
            target.build(state)

    def _persid(self, argument: str) -> None:
        self.stack.append(argument)
        self._binpersid(None)

    def _binpersid(self, _: Any) -> None:
        if self.persistent is None:
            raise PickleError("it refers to objects outside of it, and is no torch file")
        self.budget.spend(objects=1)
        self.stack.append(self.persistent(self.pop()))


def as_key(key: Any) -> Any:
    """`key`, if a dict may have it. Raises `PickleError` for those whose hash takes long, or that have none."""
    parts = key if isinstance(key, tuple) and len(key) <= 100 else (key,)
    for part in parts:
        if isinstance(part, tuple | list | dict | set | frozenset | bytearray):
            raise PickleError(f"the key of a dict, or a member of a set, is a {type(part).__name__} that holds others")
        if isinstance(part, int) and abs(part) >= _MAX_KEY:
            raise PickleError("the key of a dict, or a member of a set, is a number of more than 60 bits")
    return key
