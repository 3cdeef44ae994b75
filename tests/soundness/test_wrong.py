"""Mixers that are another function than the official one, written to be taken for it: each is found out."""

from __future__ import annotations

from collections import Counter

import pytest

from mixer_equiv.equivalence.faults.catalogue import CATALOGUE
from tests.soundness import wrong_flax, wrong_torch
from tests.soundness.cases import Answer, Case, judge, parametrize

CASES = (*wrong_torch.CASES, *wrong_flax.CASES)


@parametrize(CASES, one_in=38)
def test_no_wrong_mixer_is_taken_for_the_official_one(case: Case) -> None:
    assert judge(case).complaints == ()


def test_every_case_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []


RIGHT = Case("right", object, ("different",), "It is not.", causes=("activation",), words=("stream", "batch"))


@pytest.mark.parametrize(
    ("answer", "complaints"),
    [
        (Answer(RIGHT, "different", ("activation",), "the stream differs"), ()),
        (Answer(RIGHT, "equivalent", (), "the stream"), ("equivalent, not different",)),
        (Answer(RIGHT, "different", ("pooling",), "in the batch"), ("blames pooling",)),
        (Answer(RIGHT, "different", (), "nothing"), ("does not say 'stream' or 'batch'",)),
    ],
    ids=["as written", "another verdict", "an innocent cause", "no word of it"],
)
def test_an_answer_that_is_not_as_written_is_complained_of(answer: Answer, complaints: tuple[str, ...]) -> None:
    assert answer.complaints == complaints


def test_a_right_model_among_the_wrong_ones_would_be_noticed() -> None:
    from tests.soundness.plain_torch import Mixer

    answer = judge(Case("official", Mixer, ("different",), "It is the official one, planted here."))
    assert answer.is_falsely_equivalent
    assert answer.complaints == ("equivalent, not different",)


def test_causes_are_called_as_in_the_catalogue() -> None:
    assert {name for case in CASES for name in case.causes} <= {*CATALOGUE, "float32"}
