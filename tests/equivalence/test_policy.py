"""Distances and the policy that rates them, held to numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mixer_equiv.config import CONVENTIONS
from mixer_equiv.equivalence.policy import NEGLIGIBLE, Policy, gradient_residuals, residual

HUGE = np.finfo(np.float64).max


def test_the_thresholds_are_the_measured_ones() -> None:
    assert dataclasses.asdict(Policy()) == {
        "residual": 1e-12,
        "gradients": 1e-12,
        "sgd": 1e-12,
        "adamw": 1e-9,
        "scaling": 1e-6,
        "lost": 1e-2,
        "variation": 1e-4,
        "float32_ratio": 4.0,
        "float32_error": 8.0,
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        Policy().residual = 1.0  # type: ignore[misc]
    assert (NEGLIGIBLE, CONVENTIONS) == (1e-3, ("activation", "layer_norm_eps"))


@pytest.mark.parametrize(
    ("float64", "float32", "rating"),
    [
        (0.0, 0.0, "same"),
        (1e-12, 1e-7, "same"),  # on the threshold
        (1e-12, 0.0, "same"),
        (1.1e-12, 1e-7, "apart"),  # a ratio of 1.1e-5
        (1e-9, 1e-3, "rounding"),  # a ratio of 1e-6
        (1e-10, 1e-3, "rounding"),
        (1.1e-9, 1e-3, "apart"),
        (1e-6, 1.0, "rounding"),
        (1e-6, 1e9, "rounding"),
        (1.1e-6, 1e9, "undecidable"),
        (1e-5, 1.0, "undecidable"),  # over a millionth, but float32 has lost its digits
        (1e-5, 100.0, "undecidable"),  # float32 residuals over 1 do not excuse more
        (0.9e-2, 1.0, "undecidable"),
        (1e-2, 1.0, "apart"),  # float64 is not far better off
        (1e-5, 1e-2, "apart"),  # float32 still has digits
        (1e-5, 1.01e-2, "undecidable"),
        (0.5, 0.5, "apart"),
        (math.inf, 1.0, "apart"),
        (math.inf, math.inf, "apart"),
        (1e-5, math.inf, "undecidable"),
        (math.nan, 1.0, "apart"),
    ],
)
def test_two_precisions_tell_rounding_from_a_difference(float64: float, float32: float, rating: str) -> None:
    assert Policy().rate(float64, float32) == rating


def test_thresholds_are_the_policy_s_own() -> None:
    assert Policy(residual=1e-6).rate(1e-6, 0.0) == "same"
    assert Policy(scaling=1e-2).rate(1e-5, 1e-3) == "rounding"
    assert Policy(lost=0.5).rate(1e-3, 0.4) == "apart"
    assert Policy(lost=0.1).rate(0.05, 0.2) == "apart"
    assert Policy(lost=0.3).rate(0.1, 0.4) == "undecidable"


def test_a_residual_is_a_distance_over_the_size_of_what_was_expected() -> None:
    expected = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert residual(expected + np.array([[0.0, 0.6], [-0.8, 0.0]]), expected) == pytest.approx(0.2, rel=1e-15)
    assert residual(expected, expected) == 0.0
    assert residual(2 * expected, expected) == 1.0
    assert residual(expected, 2 * expected) == 0.5
    assert residual(2 * expected, expected, reference=np.array([50.0])) == 0.1
    assert residual(2 * expected, expected, reference=50.0) == 0.1


def test_a_residual_is_computed_in_float64() -> None:
    exact = np.array([1.0, 2.0])
    rounded = (exact * (1 + 1e-10)).astype(np.float32)
    assert residual(rounded, exact) == 0.0
    assert residual(exact * (1 + 1e-10), exact.astype(np.float32)) == pytest.approx(1e-10, rel=1e-5)
    assert residual(np.array([250], np.uint8), np.array([255], np.uint8)) == pytest.approx(5 / 255)


def test_nothing_expected_is_met_by_nothing_alone() -> None:
    zeros = np.zeros(3)
    assert residual(zeros, zeros) == 0.0
    assert residual(np.array([0.0, 1e-150, 0.0]), zeros) == math.inf
    assert residual(np.zeros(0), np.zeros(0)) == 0.0


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1, 2])
def test_what_is_not_finite_is_infinitely_far(broken: float, side: int) -> None:
    arrays = [np.array([1.0, 2.0]) for _ in range(3)]
    arrays[side][1] = broken
    assert residual(*arrays) == math.inf


def test_both_not_finite_in_one_place_is_no_agreement() -> None:
    for broken in (math.nan, math.inf):
        both = np.array([1.0, broken])
        assert residual(both, both) == math.inf


def test_what_overflows_is_infinitely_far_without_a_warning() -> None:
    assert residual(np.array([-HUGE]), np.array([HUGE])) == math.inf
    assert residual(np.array([1.0]), np.array([HUGE, HUGE])[:1], np.array([HUGE, HUGE])) == math.inf


def test_gradients_are_measured_by_themselves_or_by_a_thousandth_of_all() -> None:
    expected = {"large": np.array([[3.0, 4.0]]), "small": np.array([1e-9, 0.0]), "medium": np.array([12.0])}
    whole = 13.0
    actual = {"large": np.array([[3.0, 4.5]]), "small": np.array([1e-9, 2.6e-6]), "medium": np.array([12.0])}
    found = gradient_residuals(actual, expected)
    assert list(found) == ["large", "small", "medium"]
    assert found["large"] == pytest.approx(0.1, rel=1e-12)
    assert found["small"] == pytest.approx(2.6e-6 / (1e-3 * whole), rel=1e-9)
    assert found["medium"] == 0.0


def test_gradients_that_are_not_finite_are_infinitely_far() -> None:
    expected = {"a": np.array([1.0]), "b": np.array([2.0])}
    assert gradient_residuals({"a": np.array([math.nan]), "b": np.array([2.0])}, expected) == {"a": math.inf, "b": 0.0}
    zeros = {"a": np.zeros(2)}
    assert gradient_residuals(zeros, zeros) == {"a": 0.0}
