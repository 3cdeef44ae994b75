"""Mistakes that people make, alone and two at a time: each is named where it is, and nothing innocent is."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch

from mixer_equiv import MixerConfig, verify
from mixer_equiv.equivalence.report import Report
from tests.support.structures.miswritten import HIDING, MISTAKES, RIGHT, MiswrittenMixer, hides
from tests.support.structures.miswritten_flax import IN_FLAX, MiswrittenFlaxMixer

CONFIG = MixerConfig(
    num_classes=5,
    num_blocks=2,
    patch_size=(3, 2),
    image_size=(9, 8),
    in_channels=3,
    hidden_dim=10,
    tokens_mlp_dim=7,
    channels_mlp_dim=13,
)


def verified(mistakes: tuple[str, ...], kind: Any = MiswrittenMixer) -> Report:
    torch.manual_seed(0)
    return verify(kind(CONFIG, mistakes), image=(CONFIG.in_channels, *CONFIG.image_hw), gradients=False)


def assert_named_alone(report: Report, name: str, model: str) -> None:
    verdict, cause, found, count, place = MISTAKES[name]
    assert [(c.name, c.found, c.count) for c in report.causes] == [(cause, found, count)]
    assert report.causes[0].evidence.startswith(f"in {model}: {place}")
    assert report.verdict == verdict


def assert_both_named(report: Report, pair: tuple[str, ...]) -> None:
    wanted = {MISTAKES[name][1:3] for name in pair if name in MISTAKES}
    assert {(cause.name, cause.found) for cause in report.causes} == wanted
    assert len(report.causes) == len(wanted)
    assert report.verdict != "equivalent"


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_where_it_is(name: str) -> None:
    assert_named_alone(verified((name,)), name, "MiswrittenMixer")


@pytest.mark.parametrize("name", IN_FLAX)
def test_a_mistake_in_flax_is_named_where_it_is(name: str) -> None:
    assert_named_alone(verified((name,), MiswrittenFlaxMixer), name, "MiswrittenFlaxMixer")


@pytest.mark.parametrize("mistakes", [(), RIGHT], ids=["none", *RIGHT])
def test_what_is_no_mistake_is_equivalent(mistakes: tuple[str, ...]) -> None:
    report = verified(mistakes)
    assert report.verdict == "equivalent"
    assert not report.causes


def test_without_a_mistake_the_mixer_in_flax_is_equivalent() -> None:
    assert verified((), MiswrittenFlaxMixer).verdict == "equivalent"


ALL_PAIRS = [pair for pair in itertools.combinations([*MISTAKES, *RIGHT], 2) if not hides(*pair)]
DRAWN = random.Random(23).sample(ALL_PAIRS, 30)
IN_EVERY_RUN = 6


@pytest.mark.parametrize(
    "pair",
    [pytest.param(pair, marks=[pytest.mark.soundness] * (i >= IN_EVERY_RUN)) for i, pair in enumerate(DRAWN)],
    ids=" and ".join,
)
def test_two_mistakes_are_both_named(pair: tuple[str, str]) -> None:
    assert_both_named(verified(pair), pair)


@pytest.mark.parametrize("pair", [("no final LayerNorm", "MLP head"), ("MLP head", "softmax")], ids=" and ".join)
def test_two_mistakes_at_the_end_are_both_named(pair: tuple[str, str]) -> None:
    assert_both_named(verified(pair), pair)


def test_a_mistake_that_hides_another_is_one_of_the_table() -> None:
    assert all(name in MISTAKES for group in HIDING for name in group)
    assert hides("first token", "flattened")
    assert not hides("first token", "softmax")
