"""The search for parameters: what is sorted beforehand is found as if all were compared."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixer_equiv.equivalence.match.parameter_search import SortedFingerprints, is_near
from mixer_equiv.equivalence.record.array_fingerprint import TOLERANCE, Fingerprint

# Sums of squares that are equal, apart by about the tolerance, and none at all.
SQUARES = [0.0, 1.0, 1 + TOLERANCE / 2, 1 + TOLERANCE, 1 + 3 * TOLERANCE, 2.0, np.inf, np.nan]
TOTALS = [0.0, -0.5, 0.5, 0.5 + TOLERANCE, np.inf, np.nan]


def fingerprint(total: float, squares: float) -> Fingerprint:
    made = Fingerprint(np.ones(3))
    made.total, made.squares = total, squares
    return made


@given(
    drawn=st.lists(st.tuples(st.sampled_from(TOTALS), st.sampled_from(SQUARES)), min_size=6, max_size=6),
    total=st.sampled_from(TOTALS),
    squares=st.sampled_from(SQUARES).filter(lambda squares: squares != np.inf),  # which is the fingerprint of no value
)
def test_sorted_fingerprints_find_what_a_comparison_with_each_finds(
    drawn: list[tuple[float, float]], total: float, squares: float
) -> None:
    totals, of_squares = np.array(drawn).T.reshape(2, 2, 3)
    wanted = fingerprint(total, squares)
    with np.errstate(invalid="ignore"):
        found = list(SortedFingerprints(totals, of_squares).near(wanted))
        assert found == list(zip(*np.nonzero(is_near(totals, of_squares, wanted)), strict=True))
