"""`bench`: every contestant of every cell proven, then timed in rounds, beside the peak of matrix products."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import Contestant
from mixer_equiv.bench.correctness import Proof, Prover, call_of
from mixer_equiv.bench.environment import Machine, pinned, settings
from mixer_equiv.bench.timing import LEAST_ROUNDS, Ratio, in_rounds, paired_ratio, quartiles
from mixer_equiv.equivalence.record.precision import no_tf32
from mixer_equiv.errors import ConfigError, MixerEquivError

AGAIN = "A/A"
GEMM = "GEMM"

# Seconds of a matrix product at most, and the side from which on it is tried whether larger ones would be longer.
LONGEST, SMALLEST_GEMM = 1.0, 256

# More rounds would take days, and larger matrices gigabytes each.
MOST_ROUNDS, MOST_GEMM = 100_000, 16_384


@dataclasses.dataclass(frozen=True)
class Row:
    """What came out for one contestant of a cell, of the `baseline` timed a second time, or of a matrix product.

    `ms` are quartiles of the milliseconds of one call, `share` the part of the best matrix product's rate in
    the same cell, `memory` bytes at the height of a call beyond weights and inputs, `compiling` the seconds
    by which the first call was longer than the others. `kernels` are those of ours that it ran by on this processor
    (`mixer_equiv.models.torch.inference`), where that is a choice; for a product, `size` is the side of its matrices.
    Where `refused` says why, nothing was timed.
    """

    cell: Cell
    name: str
    ours: bool
    refused: str | None = None
    proof: Proof | None = None
    ms: tuple[float, float, float] | None = None
    images_per_second: float | None = None
    gflops: float | None = None
    share: float | None = None
    ratio: Ratio | None = None
    memory: int | None = None
    compiling: float | None = None
    kernels: str | None = None
    size: int | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """The rows of all cells, and what they were measured on and how."""

    rows: tuple[Row, ...]
    baseline: str
    rounds: int
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    left_out: tuple[Cell, ...] = ()

    @property
    def refused(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.refused)


def bench(
    cells: Iterable[Cell],
    contestants: Sequence[Contestant],
    *,
    baseline: str | None = None,
    rounds: int = LEAST_ROUNDS,
    threads: int | None = None,
    seed: int = 0,
    gemm: int = 2048,
    seconds: float | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Result:
    """Time every contestant in every cell that it runs in.

    Ratios are to `baseline`, a contestant as it is printed, the first by default, which is also timed
    twice (the row "A/A"): how far that ratio is from 1 is the noise. `threads` of the cores are used, by both
    frameworks; JAX has as many as when it was first used. `gemm` is the side of the square matrices,
    less where one product of them would take over a second, as in bfloat16 on a processor that does not multiply in it.
    A cell is begun as long as there is time for one as long as the longest before, of `seconds` in all, else left out.
    Raises `ConfigError` for a baseline that is not timed, a contestant that runs in none of the cells, rounds,
    threads, matrices or a seed that are too few or too many, or a device that is not there.
    """
    cells, contestants = list(dict.fromkeys(cells)), list(dict.fromkeys(contestants))
    names = [str(contestant) for contestant in contestants]
    baseline = names[0] if baseline is None and names else baseline
    if baseline not in names:
        raise ConfigError(f"the baseline is {baseline!r}; it must be one that is timed: {', '.join(names)}")
    for each in contestants:
        if not any(each.program.runs_in(cell) for cell in cells):
            raise ConfigError(f"{each} runs in none of these: {'; '.join(map(str, cells)) or 'no cells'}")
    if rounds < LEAST_ROUNDS:
        raise ConfigError(f"rounds is {rounds}; a median and its interval need at least {LEAST_ROUNDS}")
    for name, value, least in (("threads", threads, 1), ("gemm", gemm, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    for name, value, most in (("rounds", rounds, MOST_ROUNDS), ("gemm", gemm, MOST_GEMM)):
        if value > most:
            raise ConfigError(f"{name} is {value}; it may be at most {most}")
    prover = Prover(seed)
    rows: list[Row] = []
    left_out: list[Cell] = []
    frameworks = {contestant.program.framework for contestant in contestants}
    with pinned(threads, frameworks) as cores, Machine() as machine:
        if any(contestant.program.compiled for contestant in contestants):
            from mixer_equiv.bench import in_torch

            in_torch.start_compiler()
        begun, longest = time.monotonic(), 0.0
        for cell in cells:
            start = time.monotonic()
            if seconds is not None and start + longest > begun + seconds:
                left_out.append(cell)
                continue
            with clean(contestants):
                present = [each for each in contestants if each.program.runs_in(cell)]
                rows += _rows(cell, present, baseline, rounds, seed, gemm, prover, on_step)
            longest = max(longest, time.monotonic() - start)
        with _as_timed(frameworks):
            used = settings(cores, frameworks)
    return Result(tuple(rows), baseline, rounds, machine.described(), used, tuple(left_out))


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A contestant ready to be timed, or why it is not: refused by its proof, or by the `error` that it raised."""

    contestant: Contestant
    call: Any = None
    first: float = 0.0
    proof: Proof | None = None
    error: str | None = None

    @property
    def refused(self) -> str | None:
        return self.error or (self.proof.refused if self.proof else None)


def _rows(
    cell: Cell,
    contestants: Sequence[Contestant],
    baseline: str,
    rounds: int,
    seed: int,
    gemm: int,
    prover: Prover,
    on_step: Callable[[str], None],
) -> Iterator[Row]:
    entries = {}
    for contestant in contestants:
        on_step(f"{contestant}: {cell}")
        entries[str(contestant)] = _prepared(contestant, cell, prover, seed)
    on_step(f"timing: {cell}")
    sound = {name: entry for name, entry in entries.items() if not entry.refused}
    calls = {name: entry.call for name, entry in sound.items()}
    if baseline in calls:
        calls[AGAIN] = calls[baseline]
    products = _products(cell, contestants, gemm) if calls else {}
    seconds = (
        in_rounds({**calls, **{name: call for name, (call, _) in products.items()}}, rounds, seed) if calls else {}
    )
    rates = {name: 2 * size**3 / np.median(seconds[name]) for name, (_, size) in products.items()}
    for name, entry in entries.items():
        ours = entry.contestant.program.ours
        if name in sound:
            compiling = max(0.0, entry.first - float(np.median(seconds[name])))
            call, proof = entry.call, entry.proof
            row = Row(cell, name, ours, proof=proof, memory=call.memory(), compiling=compiling, kernels=call.kernels())
            yield _timed(row, cell.flops, cell.batch, seconds, baseline, rates)
        else:
            yield Row(cell, name, ours, entry.refused, entry.proof)
    if AGAIN in calls:
        yield _timed(Row(cell, AGAIN, False), cell.flops, cell.batch, seconds, baseline, rates)
    for name, (_, size) in products.items():
        yield _timed(Row(cell, name, False, size=size), 2 * size**3, None, seconds, None, rates)


def _prepared(contestant: Contestant, cell: Cell, prover: Prover, seed: int) -> _Entry:
    try:
        call = call_of(contestant, cell, seed)
        start = time.perf_counter()
        call()
        first = time.perf_counter() - start
        return _Entry(contestant, call, first, prover.prove(contestant, cell, call))
    except MixerEquivError:  # a device or a package that is not there, which is no matter of one program
        raise
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), "")
        return _Entry(contestant, error=f"it cannot be run: {type(error).__name__}: {said}")


def _products(cell: Cell, contestants: Sequence[Contestant], size: int) -> dict[str, tuple[Callable[[], None], int]]:
    """A matrix product for each framework, one by packed weights where a contestant has them; the sides of each."""
    frameworks = {contestant.program.framework for contestant in contestants}
    products = {}
    if "jax" in frameworks:
        from mixer_equiv.bench import in_jax

        products[f"{GEMM} jax"] = _affordable(in_jax.gemm, cell, size)
    if "torch" in frameworks:
        from mixer_equiv.bench import in_torch

        products[f"{GEMM} torch"] = _affordable(in_torch.gemm, cell, size)
        if any(contestant.program.way == "packed" for contestant in contestants):
            products[f"{GEMM} packed"] = _affordable(in_torch.packed_gemm, cell, size)
    return products


def _affordable(
    product: Callable[[Cell, int], Callable[[], None]], cell: Cell, most: int
) -> tuple[Callable[[], None], int]:
    """The product of the largest matrices, of `most` or a half, a quarter, ..., that takes no longer than `LONGEST`."""
    size = most
    while size > SMALLEST_GEMM:
        size = -(-size // 2)
    while True:
        call = product(cell, size)
        call()  # compiled, where that is how it runs
        start = time.perf_counter()
        call()
        if size >= most or 8 * (time.perf_counter() - start) > LONGEST:
            return call, size
        size = min(most, 2 * size)


def _timed(
    row: Row,
    flops: int,
    images: int | None,
    seconds: Mapping[str, np.ndarray],
    baseline: str | None,
    rates: Mapping[str, float],
) -> Row:
    own = seconds[row.name]
    low, median, high = quartiles(own)
    return dataclasses.replace(
        row,
        ms=(1e3 * low, 1e3 * median, 1e3 * high),
        images_per_second=images / median if images else None,
        gflops=flops / median / 1e9,
        share=flops / median / max(rates.values()),
        ratio=paired_ratio(own, seconds[baseline]) if baseline in seconds and baseline else None,
    )


@contextlib.contextmanager
def _as_timed(frameworks: Iterable[str]) -> Iterator[None]:
    """The precision of the frameworks as it is while something is timed, in any dtype but float64."""
    with contextlib.ExitStack() as stack:
        for framework in frameworks:
            if framework == "torch":
                stack.enter_context(no_tf32())
            else:
                from mixer_equiv.bench import in_jax

                stack.enter_context(in_jax.precision())
        yield


@contextlib.contextmanager
def clean(contestants: Sequence[Contestant]) -> Iterator[None]:
    """Whatever was compiled for another cell is not used again."""
    if any(contestant.program.compiled for contestant in contestants):
        from mixer_equiv.bench.in_torch import compiled_anew

        with compiled_anew():
            yield
    else:
        yield
