"""What a call changes in Python objects is told by its path, and put back."""

from __future__ import annotations

import array
import contextvars
import ctypes
import itertools
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx

from mixer_equiv.equivalence.record.calls import move_on
from mixer_equiv.equivalence.record.iterators import copied_count, count_of, iterator_of
from mixer_equiv.equivalence.record.state import ModelState, restoring_state

COUNT = 0


class Slotted:
    """An object whose attributes are in slots, one of them private and one not set."""

    __slots__ = ("__private", "calls", "numbers", "unset")
    unset: int

    def __init__(self) -> None:
        self.calls, self.__private, self.numbers = 0, [0], itertools.count(5)

    def count_privately(self) -> None:
        self.__private[0] += 1

    def __repr__(self) -> str:
        return repr((self.calls, self.__private, self.numbers, getattr(self, "unset", None)))


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_double * 2))


VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("VARIABLE")


class CountingDict(dict[str, int]):
    """A container that has an attribute."""

    calls = 0


class Counting:
    """An object that counts its calls in every way that Python has."""

    of_class = 0

    def __init__(self) -> None:
        self.calls = 0
        self.seen: list[int] = []
        self.held = {"calls": [0], "other": 1}
        self.array = np.zeros(2)
        self.numbers = itertools.count(5, 2)
        self.slotted, self.mapping = Slotted(), CountingDict()
        self.number, self.point, self.points = ctypes.c_int(3), Point(), (Point * 2)()
        self.cells, self.bytes = array.array("q", [0, 7]), bytearray(2)
        self.of_thread = threading.local()
        self.of_thread.calls = 0
        self.cycle, self.next_number = itertools.cycle("abc"), itertools.count(5).__next__
        self.append = self.seen.append
        inner = 0

        def count() -> None:
            nonlocal inner
            inner += 1

        self.count = count

    def attribute(self) -> None:
        self.calls += 1

    def element(self) -> None:
        self.held["calls"][0] += 1

    def growing(self) -> None:
        self.seen.append(1)

    def array_in_place(self) -> None:
        self.array += 1

    def iterator(self) -> None:
        next(self.numbers)

    def slot(self) -> None:
        self.slotted.calls += 1

    def private_slot(self) -> None:
        self.slotted.count_privately()

    def slot_with_iterator(self) -> None:
        next(self.slotted.numbers)

    def slot_set_first(self) -> None:
        self.slotted.unset = getattr(self.slotted, "unset", 0) + 1

    def attribute_of_container(self) -> None:
        self.mapping.calls += 1

    def number_of_ctypes(self) -> None:
        self.number.value += 1

    def field(self) -> None:
        self.point.x += 1

    def field_in_an_array(self) -> None:
        self.points[1].x += 1

    def element_of_a_field(self) -> None:
        self.point.y[1] += 1

    def array_of_python(self) -> None:
        self.cells[1] += 1

    def byte(self) -> None:
        self.bytes[0] += 1

    def local_to_a_thread(self) -> None:
        self.of_thread.calls += 1

    def variable_of_a_context(self) -> None:
        VARIABLE.set(VARIABLE.get() + 1)

    def next_of_iterator(self) -> None:
        self.next_number()

    def method_of_a_list(self) -> None:
        self.append(1)

    def class_attribute(self) -> None:
        Counting.of_class += 1

    def closure(self) -> None:
        self.count()

    def module_global(self) -> None:
        global COUNT
        COUNT += 1

    def default(self, calls: list[int] = []) -> None:  # noqa: B006  # the list is what counts
        calls.append(1)

    def default_count(self, calls: Any = itertools.count()) -> None:  # noqa: B008  # the iterator is what counts
        next(calls)


WAYS = {
    Counting.attribute: "model.calls",
    Counting.element: "model.held.calls[0]",
    Counting.growing: "model.seen",
    Counting.array_in_place: "model.array",
    Counting.iterator: "model.numbers",
    Counting.slot: "model.slotted.calls",
    Counting.private_slot: "model.slotted._Slotted__private[0]",
    Counting.slot_with_iterator: "model.slotted.numbers",
    Counting.slot_set_first: "model.slotted.unset",
    Counting.attribute_of_container: "model.mapping.calls",
    Counting.number_of_ctypes: "model.number.value",
    Counting.field: "model.point.x",
    Counting.field_in_an_array: "model.points[1].x",
    Counting.element_of_a_field: "model.point.y",
    Counting.array_of_python: "model.cells[1]",
    Counting.byte: "model.bytes[0]",
    Counting.local_to_a_thread: "model.of_thread.calls",
    Counting.variable_of_a_context: f"{__name__}.VARIABLE",
    Counting.next_of_iterator: "model.next_number",
    Counting.method_of_a_list: "model.seen",
    Counting.class_attribute: "Counting.of_class",
    Counting.closure: "inner of Counting.__init__.count",
    Counting.module_global: f"{__name__}.COUNT",
    Counting.default: "a default of Counting.default[0]",
    Counting.default_count: "a default of Counting.default_count[0]",
}


@pytest.fixture(autouse=True)
def _variable() -> None:
    VARIABLE.set(0)


@pytest.mark.parametrize(("way", "path"), WAYS.items(), ids=[way.__name__ for way in WAYS])
def test_what_a_call_changes_is_named_and_put_back(way: Callable[[Counting], None], path: str) -> None:
    model = Counting()
    before = _contents(model)
    with restoring_state([("model", model)]) as state:
        assert state.changes() == []
        way(model)
        assert [change.path for change in state.changes()] == [path]
        assert _contents(model) != before
    assert _contents(model) == before


def _contents(model: Counting) -> str:
    closure = model.count.__closure__[0].cell_contents
    defaults = Counting.default.__defaults__, Counting.default_count.__defaults__
    held = model.calls, model.seen, model.held, model.array.tolist(), model.numbers, closure
    slots = model.slotted, model.mapping.calls
    numbers = model.number, model.point.x, list(model.point.y), model.points[1].x, model.cells, model.bytes
    others = model.of_thread.calls, VARIABLE.get(), getattr(model.next_number, "__self__", None)
    return repr((*held, *slots, *numbers, *others, Counting.of_class, COUNT, defaults))


@pytest.mark.parametrize("way", [way for way in WAYS if way is not Counting.default], ids=lambda way: way.__name__)
def test_what_counts_calls_is_moved_on_as_by_more_of_them(way: Callable[[Counting], None]) -> None:
    moved: list[str] = []
    counted: list[str] = []
    for calls, into in ((1, moved), (101, counted)):
        model = Counting()
        with restoring_state([("model", model)]):
            way(model)
            state = ModelState([("model", model)])
            for _ in range(calls):
                way(model)
            if calls == 1:
                move_on(state.changes(), 100)
            into.append(_contents(model))
    assert moved == counted


def test_a_count_goes_on_from_where_its_copy_was() -> None:
    count = itertools.count(3, 4)
    next(count)
    assert count_of(count) == (7, 4)
    assert next(copied_count(count, ahead=2)) == 15
    assert next(count) == 7


ITERATORS: dict[str, Callable[[], Any]] = {
    "list": lambda: iter([1, 2, 3]),
    "range": lambda: iter(range(3)),
    "cycle": lambda: itertools.cycle([1, 2, 3]),
    "chain": lambda: itertools.chain([1], [2, 3]),
    "zip": lambda: zip([1, 2, 3], itertools.count(), strict=False),
    "map": lambda: map(str, [1, 2, 3]),
    "next of a cycle": lambda: itertools.cycle([1, 2, 3]).__next__,
}


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="iterators of itertools do not tell their places")
@pytest.mark.parametrize("make", ITERATORS.values(), ids=ITERATORS)
def test_an_iterator_is_told_and_put_back(make: Callable[[], Any]) -> None:
    held = [make()]
    following = getattr(held[0], "__self__", held[0])
    with restoring_state([("held", held)]) as state:
        assert state.changes() == []
        next(iterator_of(held[0]))
        assert [change.path for change in state.changes()] == ["held[0]"]
    assert iterator_of(held[0]) is following
    assert next(following) == next(iterator_of(make()))


def test_a_generator_is_told_and_cannot_be_put_back() -> None:
    def numbers() -> Any:
        yield from range(9)

    held = [numbers()]
    state = ModelState([("held", held)])
    next(held[0])
    assert [(change.path, change.write) for change in state.changes()] == [("held[0]", None)]


@pytest.mark.parametrize(
    ("numbers", "draw"),
    [
        (random.Random(0), lambda numbers: numbers.random()),
        (np.random.default_rng(0), lambda numbers: numbers.random()),
        (np.random.RandomState(0), lambda numbers: numbers.random_sample()),
        (torch.Generator(), lambda numbers: torch.rand(1, generator=numbers).item()),
    ],
)
def test_random_numbers_that_are_drawn_are_told_and_drawn_again(numbers: Any, draw: Callable[[Any], float]) -> None:
    with restoring_state([("held", [numbers])]) as state:
        first = draw(numbers)
        assert [(change.path, change.write) for change in state.changes()] == [("held[0]", None)]
        assert draw(numbers) != first
    assert draw(numbers) == first


def test_values_that_are_equal_and_another_object_are_no_change() -> None:
    held = {"number": 1000, "text": "x" * 50}
    state = ModelState([("held", held)])
    held["number"], held["text"] = int("1000"), "".join(["x"] * 50)
    assert state.changes() == []


class Layered(nnx.Module):
    def __init__(self) -> None:
        self.layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))


def test_what_flax_notes_of_a_module_is_no_change() -> None:
    module = Layered()
    state = ModelState([("", module)])
    nnx.jit(lambda held, x: held.layer(x))(module, np.ones((1, 2)))
    assert state.changes() == []


def test_what_others_keep_under_a_name_of_flax_is_a_change() -> None:
    held = {"_pytree__state": 0}
    state = ModelState([("held", held)])
    held["_pytree__state"] = 1
    assert [change.path for change in state.changes()] == ["held._pytree__state"]
