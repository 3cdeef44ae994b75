"""`assert_equivalent` and `compare`, for the tests of users."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixer_equiv import (
    ConversionError,
    assert_equivalent,
    compare,
)
from tests.support.sizes import IMAGE, SMALL
from tests.support.structures import (
    PortMixer,
    TutorialMixer,
    timm_mixer,
)


def test_assert_equivalent_returns_the_report_or_fails_with_it() -> None:
    assert assert_equivalent(PortMixer(SMALL), image=IMAGE, gradients=False).equivalent
    model = timm_mixer(SMALL)
    with pytest.raises(AssertionError, match=r"not equivalent\n") as caught:
        assert_equivalent(model, image=IMAGE, gradients=False)
    assert "activation" in str(caught.value)
    assert "4 of 4 MLPs" in str(caught.value)
    assert_equivalent(model, image=IMAGE, gradients=False, under=["activation"])
    with pytest.raises(AssertionError, match=r"not equivalent under activation\n"):
        assert_equivalent(TutorialMixer(SMALL), image=IMAGE, gradients=False, under=["activation"])


finite = st.floats(-1e3, 1e3, allow_nan=False)


@given(pairs=st.lists(st.tuples(finite, finite), min_size=1, max_size=20), atol=st.floats(0, 1), rtol=st.floats(0, 1))
def test_compare_agrees_with_numpy_and_its_least_tolerances_pass(
    pairs: list[tuple[float, float]], atol: float, rtol: float
) -> None:
    x, y = (np.array(side) for side in zip(*pairs, strict=True))
    comparison = compare(x, y, rtol=rtol, atol=atol)
    assert bool(comparison) == bool(np.all(np.abs(x - y) <= atol + rtol * np.abs(y)))
    assert compare(x, y, rtol=rtol, atol=comparison.min_atol * (1 + 1e-12) + 1e-300)
    if np.isfinite(comparison.min_rtol):
        assert compare(x, y, rtol=comparison.min_rtol * (1 + 1e-12), atol=atol)


def test_compare_takes_arrays_by_name_and_says_where_the_worst_is() -> None:
    ours = {"a": torch.zeros(2, 3), "b": {"c": torch.ones(4)}}
    theirs = {"a": np.zeros((2, 3)), "b/c": np.array([1, 1, 1.5, 1])}
    comparison = compare(ours, theirs, rtol=1e-3)
    assert not comparison
    assert comparison.worst == "b/c[2]"
    assert "1 of 10 elements are not within rtol 0.001, atol 0: max |difference| 5.0e-01" in str(comparison)
    assert "rtol 3.3e-01 with this atol, or atol 5.0e-01 with this rtol" in str(comparison)
    assert not compare([np.nan], [np.nan], rtol=1, atol=1)
    assert compare([np.inf], [np.inf])
    with pytest.raises(ConversionError, match=r"b/c is only in one of the two"):
        compare({"a": ours["a"]}, theirs)
    with pytest.raises(ConversionError, match=r"array is \(2,\) in one|is \(2,\) in one and \(3,\) in the other"):
        compare(np.zeros(2), np.zeros(3))
