"""The whole benchmark: check every entry of every cell, then time it in rounds, beside the peak of matrix products.

Knows no table, file or terminal; `export` turns a `BenchResult` into plain data. Start reading at `measure_cells`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from mixer_equiv.bench.calls import Call, make_call
from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import Entry
from mixer_equiv.bench.correctness import Checker, Correctness
from mixer_equiv.bench.environment import Machine, framework_settings, pin_cores
from mixer_equiv.bench.timing import MIN_ROUNDS, Quartiles, Ratio, paired_ratio, quartiles, time_in_rounds
from mixer_equiv.equivalence.record.precision import no_tf32
from mixer_equiv.errors import ConfigError, MixerEquivError

BASELINE_AGAIN = "A/A"
GEMM = "GEMM"

# The most seconds of one matrix product, and the smallest side at which a product is timed, to learn whether one of
# twice the side would take longer.
LONGEST_GEMM, SMALLEST_GEMM = 1.0, 256

# More rounds would take days, and larger matrices gigabytes each.
MOST_ROUNDS, MOST_GEMM = 100_000, 16_384


@dataclasses.dataclass(frozen=True)
class Timing:
    """The quartiles of the milliseconds of one call.

    `share_of_peak` is `gflops` over the rate of the best matrix product in the same cell.
    """

    ms: Quartiles
    gflops: float
    share_of_peak: float


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One line of a cell's table: an entry, the baseline once more, or a matrix product."""

    cell: Cell
    name: str


@dataclasses.dataclass(frozen=True)
class Refusal(Measurement):
    """An entry that was not timed. `correctness` is None where it could not even be run."""

    ours: bool
    reason: str
    correctness: Correctness | None


@dataclasses.dataclass(frozen=True)
class ProductTiming(Measurement):
    """A product of two square matrices of side `size`."""

    timing: Timing
    size: int


@dataclasses.dataclass(frozen=True)
class MixerTiming(Measurement):
    """A Mixer that was timed: by itself, the baseline once more. `ratio` is None where the baseline was refused."""

    timing: Timing
    ratio: Ratio | None

    @property
    def images_per_second(self) -> float:
        return 1e3 * self.cell.batch / self.timing.ms.median


@dataclasses.dataclass(frozen=True)
class EntryTiming(MixerTiming):
    """An entry that was timed.

    `memory` is the most bytes that a call takes beyond weights and inputs, None where the system cannot tell.
    `compile_seconds` is the time by which the first call was longer than the others. `kernels` names the kernels of
    ours by which it ran on this processor (`mixer_equiv.models.torch.fast_mlp`), None where there is no choice.
    """

    ours: bool
    correctness: Correctness
    memory: int | None
    compile_seconds: float
    kernels: str | None


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """The measurements of all cells, the machine they were made on, and how."""

    measurements: tuple[Measurement, ...]
    baseline: str
    rounds: int
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    left_out: tuple[Cell, ...] = ()

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        return tuple(each for each in self.measurements if isinstance(each, Refusal))


class _Protocol(NamedTuple):
    """The arguments that are the same for all cells of a run."""

    baseline: str
    rounds: int
    seed: int
    gemm: int


def measure_cells(
    cells: Iterable[Cell],
    entries: Sequence[Entry],
    *,
    baseline: str | None = None,
    rounds: int = MIN_ROUNDS,
    threads: int | None = None,
    seed: int = 0,
    gemm: int = 2048,
    seconds: float | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> BenchResult:
    """Time every entry in every cell that it runs in.

    Ratios are to `baseline`, the printed name of an entry, by default the first. It is timed twice in each cell: how
    far the ratio of the second measurement, "A/A", is from 1 is the noise. Both frameworks use `threads` cores; JAX
    keeps as many as it had when it was first used. `gemm` is the side of the square matrices. They are smaller where
    one product would take over a second, as in bfloat16 on a processor that does not multiply in it.
    `seconds` is the time for all cells: a cell is begun if there is time for the longest of those before it, else it
    is left out.
    Raises `ConfigError` for a baseline that is not timed, an entry that runs in none of the cells, rounds, threads,
    matrices or a seed outside their limits, or a missing device.
    """
    cells, entries = list(dict.fromkeys(cells)), list(dict.fromkeys(entries))
    names = [str(entry) for entry in entries]
    baseline = names[0] if baseline is None and names else baseline
    if baseline is None or baseline not in names:
        raise ConfigError(f"the baseline is {baseline!r}; it must be one that is timed: {', '.join(names)}")
    protocol = _Protocol(baseline, rounds, seed, gemm)
    _check_arguments(cells, entries, protocol, threads)
    checker = Checker(seed)
    measurements: list[Measurement] = []
    left_out: list[Cell] = []
    frameworks = {entry.contestant.framework for entry in entries}
    with pin_cores(threads, frameworks) as cores, Machine() as machine:
        if any(entry.contestant.compiled for entry in entries):
            from mixer_equiv.bench import torch_calls

            torch_calls.warm_up_compiler()
        begun, longest = time.monotonic(), 0.0
        for cell in cells:
            start = time.monotonic()
            if seconds is not None and start + longest > begun + seconds:
                left_out.append(cell)
                continue
            with fresh_compiler_for(entries):
                present = [entry for entry in entries if entry.contestant.runs_in(cell)]
                measurements += _measure_cell(cell, present, protocol, checker, on_step)
            longest = max(longest, time.monotonic() - start)
        with _timed_precision(frameworks):
            settings = framework_settings(cores, frameworks)
    return BenchResult(tuple(measurements), baseline, rounds, machine.describe(), settings, tuple(left_out))


def _check_arguments(cells: Sequence[Cell], entries: Sequence[Entry], protocol: _Protocol, threads: int | None) -> None:
    for entry in entries:
        if not any(entry.contestant.runs_in(cell) for cell in cells):
            raise ConfigError(f"{entry} runs in none of these: {'; '.join(map(str, cells)) or 'no cells'}")
    rounds, gemm = protocol.rounds, protocol.gemm
    if rounds < MIN_ROUNDS:
        raise ConfigError(f"rounds is {rounds}; a median and its interval need at least {MIN_ROUNDS}")
    for name, value, least in (("threads", threads, 1), ("gemm", gemm, 1), ("seed", protocol.seed, 0)):
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    for name, value, most in (("rounds", rounds, MOST_ROUNDS), ("gemm", gemm, MOST_GEMM)):
        if value > most:
            raise ConfigError(f"{name} is {value}; it may be at most {most}")


class _Ready(NamedTuple):
    """An entry whose call was checked and may be timed; `first` is the time of its first call in seconds."""

    entry: Entry
    call: Call
    first: float
    correctness: Correctness


def _measure_cell(
    cell: Cell, entries: Sequence[Entry], protocol: _Protocol, checker: Checker, on_step: Callable[[str], None]
) -> list[Measurement]:
    prepared: dict[str, _Ready | Refusal] = {}
    for entry in entries:
        on_step(f"{entry}: {cell}")
        prepared[str(entry)] = _prepare(entry, cell, checker, protocol.seed)
    on_step(f"timing: {cell}")
    ready = {name: each for name, each in prepared.items() if isinstance(each, _Ready)}
    if not ready:
        return [each for each in prepared.values() if isinstance(each, Refusal)]
    calls: dict[str, Callable[[], object]] = {name: each.call for name, each in ready.items()}
    if protocol.baseline in calls:
        calls[BASELINE_AGAIN] = calls[protocol.baseline]
    products = _matrix_products(cell, entries, protocol.gemm)
    products_by_name = {name: product.call for name, product in products.items()}
    clock = _Clock(
        cell, protocol, time_in_rounds({**calls, **products_by_name}, protocol.rounds, protocol.seed), products
    )
    measurements: list[Measurement] = [
        clock.entry_timing(each) if isinstance(each, _Ready) else each for each in prepared.values()
    ]
    if BASELINE_AGAIN in calls:
        measurements.append(clock.baseline_again())
    return [*measurements, *map(clock.product_timing, products)]


def _prepare(entry: Entry, cell: Cell, checker: Checker, seed: int) -> _Ready | Refusal:
    name, ours = str(entry), entry.contestant.ours
    try:
        call = make_call(entry, cell, seed)
        start = time.perf_counter()
        call()
        first = time.perf_counter() - start
        correctness = checker.check(entry, cell, call)
    except MixerEquivError:  # a device or a package is missing, which is no fault of this entry
        raise
    except Exception as error:
        message = next(iter(str(error).strip().splitlines()), "")
        return Refusal(cell, name, ours, f"it cannot be run: {type(error).__name__}: {message}", None)
    if correctness.refused is not None:
        return Refusal(cell, name, ours, correctness.refused, correctness)
    return _Ready(entry, call, first, correctness)


class _Product(NamedTuple):
    """A product of two square matrices of side `size`, as something to call."""

    call: Callable[[], None]
    size: int

    @property
    def flops(self) -> int:
        return 2 * self.size**3


def _matrix_products(cell: Cell, entries: Sequence[Entry], size: int) -> dict[str, _Product]:
    """Make a matrix product for each framework, and one with packed weights where an entry has them."""
    frameworks = {entry.contestant.framework for entry in entries}
    products = {}
    if "jax" in frameworks:
        from mixer_equiv.bench import jax_calls

        products[f"{GEMM} jax"] = _affordable_product(jax_calls.matrix_product, cell, size)
    if "torch" in frameworks:
        from mixer_equiv.bench import torch_calls

        products[f"{GEMM} torch"] = _affordable_product(torch_calls.matrix_product, cell, size)
        if any(entry.contestant.execution == "packed" for entry in entries):
            products[f"{GEMM} packed"] = _affordable_product(torch_calls.packed_matrix_product, cell, size)
    return products


def _affordable_product(make: Callable[[Cell, int], Callable[[], None]], cell: Cell, most: int) -> _Product:
    """Make the product of the largest matrices, of side `most`, a half, a quarter, ..., within `LONGEST_GEMM`."""
    size = most
    while size > SMALLEST_GEMM:
        size = -(-size // 2)
    while True:
        call = make(cell, size)
        call()  # compiles it, in JAX
        start = time.perf_counter()
        call()
        if size >= most or 8 * (time.perf_counter() - start) > LONGEST_GEMM:
            return _Product(call, size)
        size = min(most, 2 * size)


@dataclasses.dataclass(frozen=True)
class _Clock:
    """The seconds of every call of a cell, by name and round, as measurements."""

    cell: Cell
    protocol: _Protocol
    seconds: Mapping[str, np.ndarray]
    products: Mapping[str, _Product]

    def entry_timing(self, ready: _Ready) -> EntryTiming:
        name = str(ready.entry)
        return EntryTiming(
            self.cell,
            name,
            self._timing(name, self.cell.flops),
            self._ratio(name),
            ours=ready.entry.contestant.ours,
            correctness=ready.correctness,
            memory=ready.call.memory(),
            compile_seconds=max(0.0, ready.first - float(np.median(self.seconds[name]))),
            kernels=ready.call.kernels(),
        )

    def baseline_again(self) -> MixerTiming:
        name = BASELINE_AGAIN
        timing = self._timing(name, self.cell.flops)
        return MixerTiming(self.cell, name, timing, self._ratio(name))

    def product_timing(self, name: str) -> ProductTiming:
        product = self.products[name]
        return ProductTiming(self.cell, name, self._timing(name, product.flops), product.size)

    @cached_property
    def _peak(self) -> float:
        """The rate of the fastest product, in operations a second."""
        return max(float(product.flops / np.median(self.seconds[name])) for name, product in self.products.items())

    def _timing(self, name: str, flops: int) -> Timing:
        low, median, high = quartiles(self.seconds[name])
        ms = Quartiles(1e3 * low, 1e3 * median, 1e3 * high)
        return Timing(ms, flops / median / 1e9, float(flops / median / self._peak))

    def _ratio(self, name: str) -> Ratio | None:
        baseline = self.seconds.get(self.protocol.baseline)
        return None if baseline is None else paired_ratio(self.seconds[name], baseline)


@contextlib.contextmanager
def _timed_precision(frameworks: Iterable[str]) -> Iterator[None]:
    """Set the precision that frameworks have while they are timed in any dtype but float64."""
    with contextlib.ExitStack() as stack:
        for framework in frameworks:
            if framework == "torch":
                stack.enter_context(no_tf32())
            else:
                from mixer_equiv.bench import jax_calls

                stack.enter_context(jax_calls.precision())
        yield


@contextlib.contextmanager
def fresh_compiler_for(entries: Sequence[Entry]) -> Iterator[None]:
    """Reuse nothing that was compiled for another cell, where an entry is compiled."""
    if any(entry.contestant.compiled for entry in entries):
        from mixer_equiv.bench.torch_calls import fresh_compiler

        with fresh_compiler():
            yield
    else:
        yield
