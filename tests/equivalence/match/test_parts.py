"""Arrays that a trace has in parts, and kernels that hold their bias as a row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mixer_equiv.equivalence.match.bias_rows import bias_rows, sizes_with_ones
from mixer_equiv.equivalence.match.parts import PartFinder
from mixer_equiv.equivalence.record.trace import Trace, Value

WHOLE = np.random.default_rng(0).standard_normal((3, 4, 5))

Cut = Callable[[np.ndarray], list[np.ndarray]]

CUTS: dict[str, Cut] = {
    "rows": lambda x: list(x),
    "columns": lambda x: [x[..., i] for i in range(x.shape[-1])],
    "every other column": lambda x: [x[..., ::2], x[..., 1::2]],
    "columns, transposed": lambda x: [x[..., :2].T, x[..., 2:].T],
    "rows of columns": lambda x: [part for half in (x[..., :2], x[..., 2:]) for part in half],
    "rows that overlap": lambda x: [x[:2], x[1:]],
}


def trace_of(arrays: list[np.ndarray]) -> Trace:
    values = [Value(number, np.ascontiguousarray(array), "made") for number, array in enumerate(arrays)]
    return Trace(values, 0, {}, {}, (), ())


@pytest.mark.parametrize("cut", CUTS)
def test_an_array_is_found_in_parts_of_any_shape(cut: str) -> None:
    others = [np.zeros((2, 5)), np.ones(7), np.random.default_rng(1).standard_normal((4, 5))]
    parts = [part * (1 + 1e-15) for part in CUTS[cut](WHOLE)]
    found = PartFinder(trace_of([*others, *parts])).find(WHOLE)
    assert found is not None
    assert found.inputs == tuple(range(len(others), len(others) + len(parts)))
    assert found.number == len(others)


@pytest.mark.parametrize("cut", CUTS)
def test_with_a_part_missing_or_changed_it_is_not_found(cut: str) -> None:
    parts = CUTS[cut](WHOLE)
    if cut != "rows that overlap":
        assert PartFinder(trace_of(parts[1:])).find(WHOLE) is None
        assert PartFinder(trace_of(parts[:-1])).find(WHOLE) is None
    changed = parts[-1].copy()
    changed.flat[-1] += 1e-9
    assert PartFinder(trace_of([*parts[:-1], changed])).find(WHOLE) is None


def test_a_larger_array_is_no_part() -> None:
    assert PartFinder(trace_of([np.stack([WHOLE, WHOLE + 1])])).find(WHOLE) is None


def test_zeros_are_no_value_of_the_trace() -> None:
    trace = trace_of([np.zeros((2, 3)), np.ones((2, 3))])
    assert [value.number for value in trace.by_size[6]] == [1]


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_bias_is_found_in_either_row_and_orientation(is_transposed: bool, is_first: bool) -> None:
    rng = np.random.default_rng(0)
    kernel, bias = rng.standard_normal((4, 3)), rng.standard_normal(3)
    joined = np.concatenate([bias[None], kernel] if is_first else [kernel, bias[None]])
    operand = Value(5, joined.T.copy() if is_transposed else joined, "parameter", (), False, frozenset("w"), "w")
    found = [
        (k.inputs, k.name, sorted(k.leaves))
        for k, b in bias_rows(operand, 4)
        if np.array_equal(k.array, kernel) and np.array_equal(b.array, bias)
    ]
    assert found == [((5,), None, ["w"])]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_column_of_ones_is_noticed_on_either_side(axis: int, is_first: bool) -> None:
    ones = np.ones_like(WHOLE.take([0], axis))
    joined = np.concatenate([ones, WHOLE] if is_first else [WHOLE, ones], axis)
    assert sizes_with_ones(trace_of([WHOLE, joined])) == {joined.size}
