"""Every program timed alone, for regressions: `pytest benchmarks/ --device cpu`; `mixer-equiv bench` owns the ratios.

The calls are those that `mixer-equiv bench` times, and are proven right before they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mixer_equiv import MixerConfig
from mixer_equiv.bench.bench import clean
from mixer_equiv.bench.cells import MODES, Cell
from mixer_equiv.bench.contestants import PROGRAMS, Contestant
from mixer_equiv.bench.correctness import Prover, call_of
from mixer_equiv.bench.environment import pinned

ROUNDS = 10
BATCH = 8


@pytest.fixture(scope="session")
def prover() -> Prover:
    return Prover()


@pytest.fixture(scope="session", autouse=True)
def cores() -> Iterator[list[int]]:
    with pinned(None, ("torch", "jax")) as those:
        yield those


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_speed(benchmark: Any, prover: Prover, device: str, name: str, mode: str) -> None:
    """S/32 in float32, batches of 8; the median is what to compare."""
    contestant, cell = Contestant(name), Cell(MixerConfig.from_name("S/32"), batch=BATCH, device=device, mode=mode)
    if not contestant.program.runs_in(cell):
        pytest.skip(f"{name} does not run in {cell}")
    with clean([contestant]):
        call = call_of(contestant, cell, prover.seed)
        seen = prover.prove(contestant, cell, call)
        assert seen.refused is None, seen.refused
        benchmark.extra_info |= {"images": BATCH, "flops": cell.flops, "error": seen.error}
        benchmark.pedantic(call, rounds=ROUNDS, iterations=1, warmup_rounds=2)
