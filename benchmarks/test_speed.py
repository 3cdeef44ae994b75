"""The time of every contestant by itself, to notice regressions: `pytest benchmarks/ --device cpu`.

The calls are those that `mixer-equiv bench` times, and are checked before. For ratios, use `mixer-equiv bench`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mixer_equiv import MixerConfig
from mixer_equiv.bench.calls import make_call
from mixer_equiv.bench.cells import MODES, Cell
from mixer_equiv.bench.contestants import CONTESTANTS, Entry
from mixer_equiv.bench.correctness import Checker
from mixer_equiv.bench.environment import pin_cores
from mixer_equiv.bench.measurement import fresh_compiler_for

ROUNDS = 10
BATCH = 8


@pytest.fixture(scope="session")
def checker() -> Checker:
    return Checker()


@pytest.fixture(scope="session", autouse=True)
def cores() -> Iterator[list[int]]:
    with pin_cores(None, ("torch", "jax")) as pinned:
        yield pinned


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONTESTANTS)
def test_speed(benchmark: Any, checker: Checker, device: str, name: str, mode: str) -> None:
    """Time S/32 in float32 with batches of 8; the medians are to be compared."""
    entry, cell = Entry(name), Cell(MixerConfig.from_name("S/32"), batch=BATCH, device=device, mode=mode)
    if not entry.contestant.runs_in(cell):
        pytest.skip(f"{name} does not run in {cell}")
    with fresh_compiler_for([entry]):
        call = make_call(entry, cell, checker.seed)
        correctness = checker.check(entry, cell, call)
        assert correctness.refused is None, correctness.refused
        benchmark.extra_info |= {"images": BATCH, "flops": cell.flops, "error": correctness.error}
        benchmark.pedantic(call, rounds=ROUNDS, iterations=1, warmup_rounds=2)
