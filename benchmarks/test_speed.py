"""Every program timed alone, for regressions: `pytest benchmarks/ --device cpu`; `mixer-equiv bench` owns the ratios.

The calls are those that `mixer-equiv bench` times, and are proven right before they are.
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
    with pin_cores(None, ("torch", "jax")) as those:
        yield those


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONTESTANTS)
def test_speed(benchmark: Any, checker: Checker, device: str, name: str, mode: str) -> None:
    """S/32 in float32, batches of 8; the median is what to compare."""
    entry, cell = Entry(name), Cell(MixerConfig.from_name("S/32"), batch=BATCH, device=device, mode=mode)
    if not entry.contestant.runs_in(cell):
        pytest.skip(f"{name} does not run in {cell}")
    with fresh_compiler_for([entry]):
        call = make_call(entry, cell, checker.seed)
        seen = checker.check(entry, cell, call)
        assert seen.refused is None, seen.refused
        benchmark.extra_info |= {"images": BATCH, "flops": cell.flops, "error": seen.error}
        benchmark.pedantic(call, rounds=ROUNDS, iterations=1, warmup_rounds=2)
