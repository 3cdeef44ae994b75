"""Other numbers for constants of activations are found among those of a run."""

from __future__ import annotations

import math

import pytest

from mixer_equiv.equivalence.match.rounded_activations import rounded_activations

ROOT, CUBIC = math.sqrt(2 / math.pi), 0.044715


@pytest.mark.parametrize(
    ("scalars", "words"),
    [
        ((0.5, 1.0, 0.79788456, CUBIC), "gelu_tanh with 0.79788456 for sqrt(2 / pi)"),
        ((-2 * 0.79788456, CUBIC), "gelu_tanh with 0.79788456 for sqrt(2 / pi)"),
        ((ROOT, 0.0447), "gelu_tanh with 0.0447 for 0.044715"),
        ((ROOT, ROOT * 0.0447), "gelu_tanh with 0.0447 for 0.044715"),
        ((0.8, 0.0447), "gelu_tanh with 0.8 for sqrt(2 / pi) and 0.0447 for 0.044715"),
        ((0.8, 0.8 * 0.0447), "gelu_tanh with 0.8 for sqrt(2 / pi) and 0.0447 for 0.044715"),
        ((0.7071,), "gelu with 0.7071 for 1 / sqrt(2)"),
        ((1.4142,), f"gelu with {1 / 1.4142:.12g} for 1 / sqrt(2)"),
        ((1.7,), "quick_gelu with 1.7 for 1.702"),
    ],
)
def test_a_rounded_constant_is_found_as_it_is_and_in_what_is_made_of_it(scalars: tuple[float, ...], words: str) -> None:
    assert words in map(str, rounded_activations(scalars))


@pytest.mark.parametrize(
    "scalars",
    [
        (ROOT, CUBIC, math.sqrt(0.5), 1.702),
        (2 * ROOT, ROOT * CUBIC, math.sqrt(2)),
        (0.0, 0.5, 1.0, 3.0, 1e-6, math.inf, math.nan),
        (0.79, 0.04, 0.7, 1.5),
    ],
)
def test_constants_as_they_are_and_other_numbers_are_no_rounded_ones(scalars: tuple[float, ...]) -> None:
    assert rounded_activations(scalars) == []


def test_those_with_the_fewest_other_constants_come_first() -> None:
    counts = [len(activation.numbers) for activation in rounded_activations((0.8, 0.0447))]
    assert counts == sorted(counts)
    assert counts[0] == 1
