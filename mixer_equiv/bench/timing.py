"""The protocol of timing: rounds in which every call has a turn, in random order; paired ratios with intervals.

Knows no Mixer. Start reading at `time_in_rounds`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

MIN_ROUNDS = 10
RESAMPLES = 2000
LEVEL = 0.95

# A turn repeats its call until it lasts at least this long.
TURN_SECONDS = 0.02


class Quartiles(NamedTuple):
    """The lower quartile, the median and the upper quartile of a sample."""

    low: float
    median: float
    high: float


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A speed relative to the baseline's: the median over rounds, and its interval by the bootstrap."""

    median: float
    low: float
    high: float


def time_in_rounds(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    seed: int = 0,
    turn: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Measure the seconds of one call, (rounds,) for each of `calls`, which return only when all their work is done.

    In each round every call has one turn, in a newly drawn order, so that other load on the machine meets all alike.
    A turn is one call that is not timed, to bring its code, weights and threads back, and then as many timed calls as
    fill `turn` seconds, `TURN_SECONDS` by default. Raises `ValueError` for fewer than ten rounds.
    """
    if rounds < MIN_ROUNDS:
        raise ValueError(f"rounds is {rounds}; a median and its interval need at least {MIN_ROUNDS}")
    turn = TURN_SECONDS if turn is None else turn
    names, rng = list(calls), np.random.default_rng(seed)
    repeats = {name: max(1, round(turn / max(_seconds(calls[name], 1, clock), 1e-9))) for name in names}
    seconds = {name: np.empty(rounds) for name in names}
    for number in range(rounds):
        for i in rng.permutation(len(names)):
            name = names[i]
            calls[name]()
            seconds[name][number] = _seconds(calls[name], repeats[name], clock)
    return seconds


def _seconds(call: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def paired_ratio(seconds: np.ndarray, baseline: np.ndarray, seed: int = 0) -> Ratio:
    """Divide the baseline's time by this one's, round by round; give the median and its 95% bootstrap interval."""
    ratios = np.asarray(baseline) / np.asarray(seconds)
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    low, high = np.quantile(np.median(ratios[drawn], axis=1), tails)
    return Ratio(float(np.median(ratios)), float(low), float(high))


def quartiles(values: Sequence[float] | np.ndarray) -> Quartiles:
    """Compute the quartiles of a sample as NumPy does."""
    return Quartiles(*(float(value) for value in np.quantile(values, (0.25, 0.5, 0.75))))
