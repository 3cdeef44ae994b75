"""The driver of `make mutation` leaves out what cannot matter, and nothing else, and counts what it is told."""

from __future__ import annotations

import signal

import pytest

from tests.mutation.__main__ import AT_LEAST, table
from tests.mutation.forks import Fork, Order
from tests.mutation.mutants import MODULES, ROOT, Mutant, changed_lines, equivalent, meaning

SOURCE = '''
from __future__ import annotations

from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    import torch


@overload
def double(x: int) -> int: ...
def double(x: int | float = 1, *, y: int | None = None) -> float:
    """Twice `x`."""
    size: int | None = 2
    return x * size
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("int | float", "int & float"),
        ("int | None = None", "int - None = None"),
        ("size: int | None", "size: int + None"),
        ('"""Twice `x`."""', "'Once'"),
        ("-> float", "-> bool"),
        ("@overload\n", ""),
        ("import torch", "import jax"),
    ],
)
def test_what_only_readers_see_is_no_change(old: str, new: str) -> None:
    assert old in SOURCE
    assert meaning(SOURCE.replace(old, new)) == meaning(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"), [("= 1", "= 2"), ("= None)", "= 0)"), ("= 2", "= 3"), ("x * size", "x + size"), ("return", "del")]
)
def test_what_runs_is_a_change(old: str, new: str) -> None:
    assert old in SOURCE
    assert meaning(SOURCE.replace(old, new)) != meaning(SOURCE)


@pytest.mark.parametrize("old", ["*, y", "double(x"])
def test_what_is_no_python_is_no_mutant(old: str) -> None:
    assert meaning(SOURCE.replace(old, old.replace("*", ">>").replace("(", "(("))) is None


def test_a_mutant_is_known_by_its_lines_wherever_they_stand() -> None:
    changed = SOURCE.replace("x * size", "x + size")
    name = changed_lines("m.py", SOURCE, changed)
    assert name == "m.py\n     size: int | None = 2\n-    return x * size\n+    return x + size"
    assert changed_lines("m.py", "\n\n" + SOURCE, "\n\n" + changed) == name
    assert equivalent(f"[[mutant]]\nreason = 'so'\nlines = '''\n{name}\n'''") == {name: "so"}


def test_every_module_and_every_one_of_its_tests_is_there() -> None:
    assert all((ROOT / module).exists() for module in MODULES)
    assert all((ROOT / "tests" / name).exists() for tests in MODULES.values() for name in tests)


def test_recorded_equivalents_are_of_code_that_is_there() -> None:
    for name, reason in equivalent().items():
        module, *lines = name.splitlines()
        source = (ROOT / module).read_text().splitlines()
        assert reason
        assert all(line[1:] in source for line in lines if not line.startswith("+")), name


def test_the_table_counts_equivalents_apart() -> None:
    mutants = [Mutant("a.py", "", str(i)) for i in range(4)] + [Mutant("b.py", "", "5")]
    results = {"0": "killed", "1": "survived", "2": "survived", "3": "timed out", "5": "killed"}
    text, share = table(mutants, results, {"1": "reason", "0": "a killed one is not equivalent"})
    assert [line.split() for line in text.splitlines()] == [
        ["module", "mutants", "killed", "timed", "out", "survived", "equivalent"],
        ["a.py", "4", "1", "1", "1", "1"],
        ["b.py", "1", "1", "0", "0", "0"],
        ["all", "5", "2", "1", "1", "1"],
    ]
    assert share == 0.75 < AT_LEAST


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0, "survived"),
        (1 << 8, "killed"),
        (70 << 8, "killed"),
        (signal.SIGXCPU, "timed out"),
        (signal.SIGSEGV, "killed"),
    ],
)
def test_only_tests_that_all_pass_let_a_mutant_live(status: int, outcome: str) -> None:
    assert Fork.outcome(status) == outcome


def test_tests_that_noticed_most_come_first_then_quick_ones_and_slow_ones_not_at_all() -> None:
    class Item:
        def __init__(self, nodeid: str) -> None:
            self.nodeid = nodeid

    order = Order(1.0, {"slow": 1.1, "a": 0.9, "b": 0.1, "c": 0.8})
    order.kills.update(["c"])
    items = [Item(name) for name in ("slow", "a", "b", "c", "new")]
    order.pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == ["c", "new", "b", "a"]
    assert order.total == pytest.approx(1.8)
