"""Steps and places in words."""

from __future__ import annotations

import pytest

from mixer_equiv.equivalence.deviation import Deviation, Kind
from mixer_equiv.equivalence.judge.wording import blocks_in_words, places_in_words, steps_in_words
from mixer_equiv.equivalence.place import Place


@pytest.mark.parametrize(
    ("numbers", "of", "words"),
    [
        ([1], 4, "block 1 of 4"),
        ([3, 1], 4, "blocks 1 and 3 of 4"),
        ([2, 3], 12, "blocks 2 and 3 of 12"),
        ([2, 3, 4, 5], 12, "blocks 2 to 5 of 12"),
        ([0, 2, 3, 4, 7], 12, "blocks 0, 2 to 4 and 7 of 12"),
        (range(12), 12, "all 12 blocks"),
        ([0, 1], 2, "both blocks"),
        ([0], 1, "block 0 of 1"),
    ],
)
def test_blocks_are_numbered_as_the_stages_are(numbers: list[int], of: int, words: str) -> None:
    assert blocks_in_words(numbers, of) == words


def deviations(*steps: str, kind: Kind = "variant") -> list[Deviation]:
    return [Deviation(step, kind, "layer_norm_eps", 1e-6, 1e-5) for step in steps]


def test_one_step_has_its_own_name_and_several_are_put_together() -> None:
    first, second, last = "MixerBlock_1/LayerNorm_0", "MixerBlock_3/LayerNorm_0", "pre_head_layer_norm"
    assert steps_in_words(deviations(first), 4) == first
    assert steps_in_words(deviations(first, second, last), 4) == f"LayerNorm_0 in blocks 1 and 3 of 4, and {last}"
    both = "LayerNorm_0 and LayerNorm_1 in blocks 1 and 3 of 4"
    assert steps_in_words(deviations(*(f"MixerBlock_{i}/LayerNorm_{j}" for i in (1, 3) for j in (0, 1))), 4) == both
    inserted = deviations(first, second, kind="insert")
    assert steps_in_words(inserted, 4) == "before LayerNorm_0 in blocks 1 and 3 of 4"
    assert steps_in_words(deviations("head", kind="insert"), 4) == "head"


def placed(*places: Place) -> tuple[str, ...]:
    return places_in_words(Deviation("head", "unknown", "linear", None, None, place=place) for place in places)


def test_places_are_one_text_a_line_with_its_modules() -> None:
    blocks = [Place("mymixer.py", 41, "", f"blocks.{i}") for i in range(12)]
    assert placed(*blocks[1:3]) == ("in blocks.1 and blocks.2 (mymixer.py:41)",)
    assert placed(*blocks[:3]) == ("in blocks.0, blocks.1 and blocks.2 (mymixer.py:41)",)
    assert placed(*blocks) == ("in blocks.0, blocks.1 and 10 more (mymixer.py:41)",)
    assert placed(Place("mymixer.py", 7, "", ""), blocks[0]) == ("at mymixer.py:7", "in blocks.0 (mymixer.py:41)")
    assert placed(Place("", 0, "", "mlp.2")) == ("in mlp.2",)


def test_many_lines_are_counted() -> None:
    lines = [Place("mymixer.py", number, "", "") for number in range(1, 6)]
    assert placed(*lines) == ("at mymixer.py:1", "at mymixer.py:2", "at mymixer.py:3", "and 2 more lines")
