"""The verdict where no Mixer was found: evidence in the values, another family, or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from mixer_equiv import verify
from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.judge.stops import verdict_where_nothing_was_found
from mixer_equiv.equivalence.mixer.result import NothingFound
from mixer_equiv.equivalence.report import Cause
from tests.support.odd import CONFIG, IMAGE
from tests.support.structures.in_parts import PARTS

STOPPED: dict[str, Any] = {
    "deviations": (),
    "known": ("stem", "MixerBlock_0/LayerNorm_0"),
    "knows_layer_norm": True,
    "depth": 2,
    "constraints": (),
    "notices": (),
    "output": "",
    "batch": 2,
    "draws": False,
    "decisions": (),
    "weight_decisions": (),
    "constants": (),
    "exits": (),
    "reasons": ("it stopped",),
    "residual": None,
    "missing": "MixerBlock_0/token_mixing/Dense_0",
    "is_blind": False,
}
ERF = Deviation("MixerBlock_0/token_mixing/activate", "variant", "activation", "gelu_tanh", "gelu")

RULE: dict[str, tuple[dict[str, Any], str]] = {
    "a stop alone": ({}, "nothing_compared"),
    "no output": ({"is_blind": True, "is_of_other_family": True}, "nothing_compared"),
    "names of another family": ({"is_of_other_family": True}, "inexpressible"),
    "no LayerNorm": ({"knows_layer_norm": False}, "inexpressible"),
    "a step seen to be another": ({"deviations": (ERF,)}, "different"),
    "all blocks": ({"missing": "head"}, "different"),
    "another output": ({"missing": "output"}, "different"),
    "followed to the end": ({"missing": None, "knows_layer_norm": False}, "different"),
    "outputs that are no function of an image": ({"is_refused": True}, "different"),
}


@pytest.mark.parametrize("kind", RULE)
def test_a_stop_is_different_on_evidence_alone(kind: str) -> None:
    changes, verdict = RULE[kind]
    assert verdict_where_nothing_was_found(NothingFound(**{**STOPPED, **changes}), ()) == verdict


def test_a_cause_that_no_official_weights_have_is_inexpressible() -> None:
    cause = Cause("position_embedding", "code", "nothing", "a parameter", "1", "")
    assert verdict_where_nothing_was_found(NothingFound(**STOPPED), (cause,)) == "inexpressible"


def test_a_refused_search_is_evidence() -> None:
    assert NothingFound(**STOPPED).refused("two runs differ").is_refused


def test_what_could_not_be_followed_is_told_with_its_parameters_and_no_cause() -> None:
    report = verify(PARTS["channels by chunk, bias first"](CONFIG, "one chunk without bias"), image=IMAGE)
    assert (report.verdict, report.causes, report.first_divergence) == ("nothing_compared", (), None)
    assert report.reasons[0].startswith("it is a Mixer up to MixerBlock_0/channel_mixing")
    assert report.reasons[1].startswith("what could not be followed: mm, add, gelu, add_")
    assert report.reasons[1].endswith("with norms.2.bias, norms.2.weight")
