"""Mixers that count their calls, and are wrong from a certain one on.

Each `make` starts to count anew, also where the count is kept outside of the model.
"""

from __future__ import annotations

import array
import collections
import contextvars
import ctypes
import dataclasses
import functools
import itertools
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.soundness.cases import DIFFERENT, Case
from tests.soundness.plain_torch import HIDDEN, LOGITS, NORM, STREAM, Function, after

Count = Callable[[], int]
GLOBAL = {"calls": 0}
_WHY = "Later calls scale by 1.001."


# --- Holders of a count that no module shows: each makes a function that says the number of the call. ---


def in_closure() -> Count:
    calls = 0

    def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    return count


def in_default_argument() -> Count:
    def count(calls: list[int] = [0]) -> int:  # noqa: B006, shared between calls on purpose
        calls[0] += 1
        return calls[0]

    return count


def in_generator() -> Count:
    def numbers() -> Iterator[int]:
        number = 0
        while True:
            number += 1
            yield number

    return numbers().__next__


def in_itertools() -> Count:
    return itertools.count(1).__next__


def in_global() -> Count:
    GLOBAL["calls"] = 0

    def count() -> int:
        GLOBAL["calls"] += 1
        return GLOBAL["calls"]

    return count


def in_numpy() -> Count:
    calls = np.zeros((), dtype=np.int64)

    def count() -> int:
        np.add(calls, 1, out=calls)
        return int(calls)

    return count


def in_function_attribute() -> Count:
    def count() -> int:
        count.calls = getattr(count, "calls", 0) + 1
        return count.calls

    return count


def in_plain_tensor() -> Count:
    calls = torch.zeros(())
    return lambda: int(calls.add_(1))


def in_array() -> Count:
    calls = array.array("q", [0])

    def count() -> int:
        calls[0] += 1
        return calls[0]

    return count


def in_ctypes() -> Count:
    calls = ctypes.c_int(0)

    def count() -> int:
        calls.value += 1
        return calls.value

    return count


def in_thread() -> Count:
    local = threading.local()
    local.calls = 0

    def count() -> int:
        local.calls += 1
        return local.calls

    return count


def in_context() -> Count:
    calls = contextvars.ContextVar("calls", default=0)

    def count() -> int:
        calls.set(calls.get() + 1)
        return calls.get()

    return count


def in_bytes() -> Count:
    calls = bytearray()

    def count() -> int:
        calls.append(0)
        return len(calls)

    return count


def in_cycle(first: int) -> Count:
    """Counts to `first`, and begins anew."""
    return itertools.cycle(range(1, first + 1)).__next__


def in_method_of_list() -> Count:
    calls: list[int] = []
    append, length = calls.append, calls.__len__

    def count() -> int:
        append(0)
        return length()

    return count


def used_up(calls: int) -> Count:
    """Counts by popping from a list, and stays at the last number."""
    left = list(range(calls, 0, -1))
    return lambda: left.pop() if len(left) > 1 else left[0]


def from_call(first: int, count: Count, fault: Function) -> Function:
    return lambda x: fault(x) if count() >= first else x


# --- Modules that count ---


class Counting(nn.Module):
    """Scales from the call `first` on. Subclasses say where the count is held."""

    def __init__(self, first: int, scale: float = 1.001) -> None:
        super().__init__()
        self.first, self.scale = first, scale
        self.calls: Any = 0

    def count(self) -> int:
        self.calls += 1
        return self.calls

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale if self.count() >= self.first else x


class InList(Counting):
    def __init__(self, first: int) -> None:
        super().__init__(first)
        self.calls = []

    def count(self) -> int:
        self.calls.append(None)
        return len(self.calls)


class InDict(Counting):
    def __init__(self, first: int) -> None:
        super().__init__(first)
        self.calls = collections.defaultdict(int)

    def count(self) -> int:
        self.calls["forward"] += 1
        return self.calls["forward"]


class InDeque(Counting):
    def __init__(self, first: int) -> None:
        super().__init__(first)
        self.calls = collections.deque(range(1, 99))

    def count(self) -> int:
        return self.calls.popleft()


class InNamespace(Counting):
    def __init__(self, first: int) -> None:
        super().__init__(first)
        self.calls = types.SimpleNamespace(forward=0)

    def count(self) -> int:
        self.calls.forward += 1
        return self.calls.forward


@dataclasses.dataclass(slots=True)
class Slotted:
    forward: int = 0


class InSlot(Counting):
    def __init__(self, first: int) -> None:
        super().__init__(first)
        self.calls = Slotted()

    def count(self) -> int:
        self.calls.forward += 1
        return self.calls.forward


class OwnSlot(Counting):
    """The module itself has a slot."""

    __slots__ = ("slot_calls",)

    def __init__(self, first: int) -> None:
        super().__init__(first)
        object.__setattr__(self, "slot_calls", 0)

    def count(self) -> int:
        object.__setattr__(self, "slot_calls", self.slot_calls + 1)
        return self.slot_calls


class ListWithAttribute(list[int]):
    calls = 0


class InListsAttribute(Counting):
    def __init__(self, first: int) -> None:
        super().__init__(first)
        self.calls = ListWithAttribute()

    def count(self) -> int:
        self.calls.calls += 1
        return self.calls.calls


class InBuffer(Counting):
    """Persistent, as the count of batches in batch norm."""

    persistent = True

    def __init__(self, first: int) -> None:
        super().__init__(first)
        del self.calls
        self.register_buffer("calls", torch.tensor(0), persistent=self.persistent)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.where(self.calls >= self.first, x * self.scale, x)


class InHiddenBuffer(InBuffer):
    persistent = False


def in_class(first: int) -> nn.Module:
    def count(self: Counting) -> int:
        type(self).total += 1
        return type(self).total

    return type("InClass", (Counting,), {"total": 0, "count": count})(first)


# Name, what makes the count, the first wrong call, the module behind which.
_UNSEEN: tuple[tuple[str, Callable[[], Count], int, str], ...] = (
    ("a closure", in_closure, 2, LOGITS),
    ("a closure", in_closure, 6, HIDDEN),
    ("a default argument", in_default_argument, 3, STREAM),
    ("a generator", in_generator, 2, NORM),
    ("a generator", in_generator, 4, LOGITS),
    ("itertools.count", in_itertools, 4, STREAM),
    ("a global", in_global, 3, LOGITS),
    ("a NumPy array", in_numpy, 3, LOGITS),
    ("a function's attribute", in_function_attribute, 2, HIDDEN),
    ("a plain tensor", in_plain_tensor, 4, LOGITS),
    ("itertools.count", in_itertools, 51, LOGITS),
    ("an array of Python", in_array, 51, LOGITS),
    ("bytes that are appended", in_bytes, 51, NORM),
    ("a number of ctypes", in_ctypes, 51, STREAM),
    ("a thread", in_thread, 51, LOGITS),
    ("a context", in_context, 51, LOGITS),
    ("a method of a list", in_method_of_list, 51, HIDDEN),
    ("a list that is used up", functools.partial(used_up, 6), 6, STREAM),
)
_SEEN: tuple[tuple[str, Callable[[int], nn.Module], int, str], ...] = (
    ("an attribute", Counting, 2, LOGITS),
    ("an attribute", Counting, 3, STREAM),
    ("an attribute", Counting, 4, HIDDEN),
    ("an attribute", Counting, 6, NORM),
    ("a list", InList, 3, LOGITS),
    ("a list", InList, 6, STREAM),
    ("a dict", InDict, 4, STREAM),
    ("a deque", InDeque, 6, LOGITS),
    ("a namespace", InNamespace, 3, HIDDEN),
    ("a slot", InSlot, 3, LOGITS),
    ("a slot", InSlot, 51, STREAM),
    ("a slot of the module", OwnSlot, 51, LOGITS),
    ("an attribute of a list", InListsAttribute, 51, LOGITS),
    ("a buffer", InBuffer, 2, STREAM),
    ("a buffer", InBuffer, 6, LOGITS),
    ("a buffer in no state_dict", InHiddenBuffer, 3, LOGITS),
    ("the class", in_class, 3, NORM),
)


def every(count: int) -> Callable[[Tensor], Tensor]:
    """A function that scales what passes at every call of so many, counted by a default argument."""

    def scale(x: Tensor, calls: itertools.count[int] = itertools.count(1)) -> Tensor:  # noqa: B008
        return x * (1 if next(calls) % count else 1.001)

    return scale


class AtRandom(nn.Module):
    """Scales what passes at one call in ten, by a generator of NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.001 if self.numbers.random() < 0.1 else 1)


def _unseen(make: Callable[[], Count], first: int, path: str) -> nn.Module:
    return after(path, from_call(first, make(), lambda x: x * 1.001))


def _seen(make: Callable[[int], nn.Module], first: int, path: str) -> nn.Module:
    return after(path, make(first))


CASES = (
    *(
        Case(f"memory: {name}, call {first}", functools.partial(_unseen, make, first, path), DIFFERENT, _WHY)
        for name, make, first, path in _UNSEEN
    ),
    *(
        Case(
            f"memory: {name}, call {first}",
            functools.partial(_seen, make, first, path),
            DIFFERENT,
            _WHY,
            words=("total",) if make is in_class else ("calls",),
        )
        for name, make, first, path in _SEEN
    ),
    *(
        Case(
            f"memory: {name}, call {first}",
            functools.partial(_unseen, make, first, LOGITS),
            (*DIFFERENT, "equivalent"),
            "Few numbers of calls show it, and what is changed can be named.",
            words=words,
        )
        for name, make, first, words in (("a cycle", functools.partial(in_cycle, 51), 51, ("count of from_call",)),)
    ),
    Case(
        "memory: a default argument that counts", lambda: after(LOGITS, every(500)), DIFFERENT, _WHY, words=("default",)
    ),
    Case(
        "memory: random numbers of its own",
        lambda: after(LOGITS, AtRandom()),
        DIFFERENT,
        "Calls draw from a generator that the model holds.",
        words=("numbers",),
    ),
    Case(
        "memory: an attribute, call 1000",
        lambda: after(LOGITS, Counting(1000)),
        (*DIFFERENT, "equivalent"),
        "A call that nobody makes tells nothing, but the attribute is written and can be named.",
        words=("calls",),
    ),
)
