"""Causes: what two models do otherwise at one step, without a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mixer_equiv.equivalence.deviation import Choice, Deviation
from mixer_equiv.equivalence.judge.causes import deviation_causes
from tests.support.sizes import SMALL

STEP = "MixerBlock_1/channel_mixing/activate"
NONE = Deviation(STEP, "skip", "activate", Choice.ACTIVATION, Choice.NONE)
GELU = Deviation(STEP, "variant", "activation", "gelu_tanh", "gelu")
INSERTED = Deviation(STEP, "insert", "activation", None, "relu")


def foreign(name: str, *deviations: Deviation) -> Any:
    """A side of somebody else's model with these deviations."""
    return SimpleNamespace(name=name, config=SMALL, is_foreign=True, deviations=deviations)


@pytest.mark.parametrize(
    ("own", "others", "named"),
    [
        ([NONE], [GELU], [("one", "activation", "none")]),  # nothing is left to be another GELU
        ([NONE], [INSERTED], [("one", "activation", "none"), ("other", "extra_activation", "relu")]),
        ([GELU], [INSERTED], [("one", "activation", "gelu"), ("other", "extra_activation", "relu")]),
        ([GELU], [GELU], []),
    ],
)
def test_an_operation_that_is_missing_hides_its_variants_and_nothing_else(
    own: list[Deviation], others: list[Deviation], named: list[tuple[str, str, str]]
) -> None:
    causes = deviation_causes(foreign("one", *own), foreign("other", *others))
    assert [(cause.evidence.split(":")[0].removeprefix("in "), cause.name, cause.found) for cause in causes] == named
