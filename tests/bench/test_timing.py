"""Timing: rounds are interleaved, and ratios are what the clock says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixer_equiv.bench.timing import paired_ratio, quartiles, time_in_rounds


class Clock:
    """A clock that only calls move on."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, list[str]()

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, seconds: float) -> Any:
        def call() -> None:
            self.log.append(name)
            self.now += seconds

        return call


def test_a_round_has_a_turn_of_everyone_in_an_order_of_its_own() -> None:
    time = Clock()
    calls = {name: time.takes(name, 1.0) for name in "abc"}
    time_in_rounds(calls, 30, turn=1.0, clock=time)
    turns = time.log[3::2]  # the first three calls tell how long one takes; of the others every first warms up
    assert turns == time.log[4::2]
    rounds = [tuple(turns[i : i + 3]) for i in range(0, 90, 3)]
    assert {tuple(sorted(each)) for each in rounds} == {("a", "b", "c")}
    assert len(set(rounds)) == 6


def test_seconds_are_those_of_one_call_however_many_fill_a_turn() -> None:
    time = Clock()
    seconds = time_in_rounds({"slow": time.takes("slow", 3.0), "fast": time.takes("fast", 0.25)}, 10, 0, 1.0, time)
    assert np.array_equal(seconds["slow"], np.full(10, 3.0))
    assert np.array_equal(seconds["fast"], np.full(10, 0.25))
    assert time.log.count("slow") == 1 + 2 * 10
    assert time.log.count("fast") == 1 + 5 * 10


def test_fewer_than_ten_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds is 9"):
        time_in_rounds({}, 9)


def test_a_ratio_is_the_median_of_pairs_and_not_of_sides() -> None:
    baseline = np.array([1.0, 10.0, 100.0] * 4)  # a machine that is busier and busier
    ratio = paired_ratio(baseline / 2, baseline)
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 2.0, 2.0)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        ratio = paired_ratio(rng.lognormal(0, 0.1, 15), np.full(15, 1.2))
        held += ratio.low < 1.2 < ratio.high
    assert 0.90 < held / 300 < 0.99


def test_quartiles_are_numpys() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
