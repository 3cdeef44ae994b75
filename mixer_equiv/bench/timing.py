"""The protocol of timing: rounds in which every program has a turn, in random order; paired ratios with intervals."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

LEAST_ROUNDS = 10
RESAMPLES = 2000
LEVEL = 0.95

# A turn lasts at least so many seconds, by as many calls as that takes.
TURN = 0.02


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as fast as the baseline: the median over rounds, and its interval by the bootstrap."""

    median: float
    low: float
    high: float


def in_rounds(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    seed: int = 0,
    turn: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Seconds of one call, (rounds,) for each of `calls`, which return only when all they do is done.

    In each round every one has a turn, in an order drawn anew, so that what else happens on the machine
    meets all alike. A turn is one call that is not timed, to bring its code, weights and threads back,
    and as many timed ones as fill `turn` seconds, `TURN` by default. Raises `ValueError` for fewer than ten rounds.
    """
    if rounds < LEAST_ROUNDS:
        raise ValueError(f"rounds is {rounds}; a median and its interval need at least {LEAST_ROUNDS}")
    turn = TURN if turn is None else turn
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
    """Of the baseline's time over this one's, round by round: their median, and where 95% of resampled medians lie."""
    ratios = np.asarray(baseline) / np.asarray(seconds)
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    low, high = np.quantile(np.median(ratios[drawn], axis=1), tails)
    return Ratio(float(np.median(ratios)), float(low), float(high))


def quartiles(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)
