"""Advice for names that are not of a layout: a guess is right or a doubt, and globs match what they are to."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer_equiv.checkpoints.advice import Guesses, globs_of, guess_in_layout, guess_renames
from mixer_equiv.checkpoints.names import with_one_separator
from mixer_equiv.checkpoints.renaming import rename_parts
from mixer_equiv.layouts import LAYOUTS, Layout
from mixer_equiv.layouts.base import Shape
from tests.support.sizes import CONFIG, EQUAL

DEPTH = 3
# Layouts in which each block has arrays of its own, under names that have parts.
NAMED = [name for name, layout in LAYOUTS.items() if not layout.stacks and not layout.is_tied]
SIZES = {"all different": CONFIG, "all equal": EQUAL}


def shapes_in(layout: Layout, sizes: Mapping[str, int]) -> dict[str, Shape]:
    return {name: binding.shape(sizes) for name, binding in layout.parameters(DEPTH).items()}


def guess(layout: Layout, shapes: Mapping[str, Shape]) -> Guesses:
    """As for arrays of these shapes, of which those by the layout's names show the sizes."""
    return guess_in_layout(layout, DEPTH, shapes, layout.axis_sizes(DEPTH, shapes))


def words_of(layout: Layout) -> list[str]:
    """Parts of the layout's names that may be called otherwise: those before the last that number no block."""
    parts = {part for row in layout.rows for part in re.split(r"[./]", row.foreign)[:-1]}
    return sorted(part for part in parts if "{" not in part and not part.isdigit())


# Nothing but its place tells what such a word stands for.
WORDS = st.lists(st.sampled_from(["qq", "zzq", "jjz", "qjqz", "zj", "qqjj", "jqz", "zzzz"]), min_size=8, unique=True)


class Renamed(NamedTuple):
    """Names, some parts of which are called otherwise than in a layout, by what they are there; and their shapes."""

    layout: Layout
    true: dict[str, str]
    shapes: dict[str, Shape]

    def wrong(self, renames: Mapping[str, str]) -> list[str]:
        """Names that `renames` make others than they are; separators do not count."""
        read = rename_parts({name: name for name in self.true}, renames)
        good = {name: [with_one_separator(one) for one in (name, true)] for name, true in self.true.items()}
        return [name for new, name in read.items() if with_one_separator(new) not in good[name]]


@st.composite
def renamed_layouts(draw: st.DrawFn) -> Renamed:
    layout = LAYOUTS[draw(st.sampled_from(NAMED))]
    chosen = draw(st.sets(st.sampled_from(words_of(layout)), min_size=1, max_size=4))
    called = dict(zip(sorted(chosen), draw(WORDS), strict=False))
    shapes = shapes_in(layout, SIZES[draw(st.sampled_from(list(SIZES)))].axis_sizes)
    old, new = draw(st.sampled_from([("", ""), ("/", "."), (".", "/")]))
    true = {name.replace(old, new): own for name, own in rename_parts({name: name for name in shapes}, called).items()}
    return Renamed(layout, true, {name: shapes[own] for name, own in true.items()})


@given(renamed_layouts())
def test_what_is_guessed_without_a_doubt_is_right(renamed: Renamed) -> None:
    assert renamed.wrong(guess(renamed.layout, renamed.shapes).renames) == []


@given(renamed_layouts())
def test_what_is_right_is_among_the_doubts(renamed: Renamed) -> None:
    for old, news in guess(renamed.layout, renamed.shapes).doubts.items():
        assert any(renamed.wrong({old: new}) == [] for new in news), (old, news)


@given(st.data())
def test_no_guess_moves_an_array_to_another_block(data: st.DataObject) -> None:
    layout = LAYOUTS[data.draw(st.sampled_from(NAMED))]
    block = {
        name: found[1]
        for name, binding in layout.parameters(3 * DEPTH).items()
        if (found := re.match(r"MixerBlock_(\d+)/", binding.canonical))
    }
    parameters = layout.parameters(DEPTH)
    absent = data.draw(st.sets(st.sampled_from(sorted(block.keys() & parameters)), min_size=1, max_size=6))
    moved = data.draw(st.sets(st.sampled_from(sorted(block)), min_size=1, max_size=6))
    part = data.draw(st.sampled_from(["qq", "qq1", "qq_0", "ln2", None]))
    called = {name: name if part is None else re.sub(r"[^./]+(?=[./][^./]+$)", part, name) for name in moved}
    strange = {new: block[name] for name, new in called.items() if new not in parameters}
    guesses = guess_renames(list(strange), absent, list(parameters.keys() - absent), lambda *_: True)
    for old, news in [*((old, [new]) for old, new in guesses.renames.items()), *guesses.doubts.items()]:
        for new in news:
            for read, name in rename_parts({name: name for name in strange}, {old: new}).items():
                assert read == name or block[read] == strange[name]


def test_no_array_whose_name_has_no_number_is_of_a_block() -> None:
    shapes = shapes_in(LAYOUTS["linen"], CONFIG.axis_sizes)
    extra = {name.replace("MixerBlock_2/LayerNorm_0", "extra"): shape for name, shape in shapes.items()}
    assert guess(LAYOUTS["linen"], extra) == Guesses({}, {})


# Names that stand in for those of timm's LayerNorms and MLPs, and what is guessed: by numbers, by letters, or not.
CALLED: dict[str, tuple[str, dict[str, str], Guesses]] = {
    "the same numbers": ("timm", {"norm1": "ln1", "norm2": "ln2"}, Guesses({"ln1": "norm1", "ln2": "norm2"}, {})),
    "counted from 0": ("timm", {"norm1": "ln0", "norm2": "ln1"}, Guesses({"ln0": "norm1", "ln1": "norm2"}, {})),
    "counted from 1": (
        "linen",
        {"LayerNorm_0": "ln1", "LayerNorm_1": "ln2"},
        Guesses({"ln1": "LayerNorm_0", "ln2": "LayerNorm_1"}, {}),
    ),
    "other numbers": (
        "timm",
        {"norm1": "ln3", "norm2": "ln7"},
        Guesses({}, {"ln3": ["norm1", "norm2"], "ln7": ["norm1", "norm2"]}),
    ),
    "another number": ("linen", {"LayerNorm_0": "ln3"}, Guesses({}, {})),
    "no numbers": (
        "timm",
        {"norm1": "pre", "norm2": "post"},
        Guesses({}, {"post": ["norm1", "norm2"], "pre": ["norm1", "norm2"]}),
    ),
    "few letters": (
        "jeonsworld",
        {"pre_norm": "first", "post_norm": "second"},
        Guesses({}, {"first": ["post_norm", "pre_norm"], "second": ["post_norm", "pre_norm"]}),
    ),
    "letters": (
        "jeonsworld",
        {"pre_norm": "ln_pre", "post_norm": "ln_post"},
        Guesses({"ln_post": "post_norm", "ln_pre": "pre_norm"}, {}),
    ),
    "shapes of two MLPs": (
        "timm",
        {"mlp_tokens": "mlp1", "mlp_channels": "mlp2"},
        Guesses({"mlp1": "mlp_tokens", "mlp2": "mlp_channels"}, {}),
    ),
    "shapes against letters": (
        "timm",
        {"mlp_tokens": "channels", "mlp_channels": "tokens"},
        Guesses({"channels": "mlp_tokens", "tokens": "mlp_channels"}, {}),
    ),
    "the number in the model": (
        "linen",
        {"LayerNorm_0": "LayerNorm_1", "LayerNorm_1": "LayerNorm_2"},
        Guesses({}, {}),
    ),
}


@pytest.mark.parametrize("case", CALLED)
def test_numbers_letters_and_shapes_decide_or_leave_a_doubt(case: str) -> None:
    name, called, expected = CALLED[case]
    layout = LAYOUTS[name]
    shapes = {
        new: shape
        for own, shape in shapes_in(layout, CONFIG.axis_sizes).items()
        for new in rename_parts({own: own}, {old: new for old, new in called.items() if old in re.split(r"[./]", own)})
    }
    found = guess(layout, shapes)
    assert (found.renames, {old: sorted(news) for old, news in found.doubts.items()}) == expected


def test_of_two_arrays_that_could_be_one_parameter_neither_is_chosen() -> None:
    strangers = ["classifier.weight", "head_dist.weight"]
    found = guess_renames(strangers, ["head.weight"], [], lambda *_: True)
    assert found == Guesses({}, {"classifier": ["head"], "head_dist": ["head"]})
    assert [line.rpartition("(")[2] for line in found.in_words()] == [
        "--rename head_dist=head)",
        "--rename classifier=head)",
    ]


def test_no_guess_renames_what_is_in_its_place() -> None:
    assert guess_renames(["head.weight"], ["pre.head.weight"], ["head.bias"], lambda *_: True) == Guesses({}, {})


def test_shapes_decide_which_array_it_is() -> None:
    strangers = ["classifier.weight", "head_dist.weight"]
    found = guess_renames(strangers, ["head.weight"], [], lambda stranger, _: stranger.startswith("classifier"))
    assert found == Guesses({"classifier": "head"}, {})


def test_more_names_than_any_model_has_are_not_compared() -> None:
    found = guess_renames([f"a{i}.w" for i in range(10_000)], [f"b{i}.w" for i in range(10_000)], [], lambda *_: True)
    assert found == Guesses({}, {})


# Globs

PARTS = st.text("ab1[]*?!-_ ", min_size=1, max_size=4)
NAMES = st.lists(st.tuples(PARTS, st.sampled_from(["3", "12", "b"]), PARTS), min_size=1, max_size=8).map(
    lambda parts: ["/".join(name) for name in parts]
)


@given(NAMES, NAMES, st.sampled_from("./"))
def test_globs_match_all_strangers_and_no_parameter(strangers: list[str], own: list[str], separator: str) -> None:
    strangers, own = ([name.replace("/", separator) for name in names] for names in (strangers, own))
    strangers = [name for name in strangers if with_one_separator(name) not in map(with_one_separator, own)]
    globs = globs_of(strangers, own)
    assert [name for name in strangers if not any(fnmatch.fnmatchcase(name, glob) for glob in globs)] == []
    spelled = [*own, *(name.replace(separator, {".": "/", "/": "."}[separator]) for name in own)]
    assert [name for name in spelled for glob in globs if fnmatch.fnmatchcase(name, glob)] == []
    assert len(globs) <= len(strangers)


GLOBS: dict[str, tuple[list[str], list[str]]] = {
    "a part beside": (["text.a.weight", "text.b.3.bias"], ["text.*"]),
    "in each block": ([f"blocks.{i}.gate.{end}" for i in range(12) for end in ("w", "b")], ["blocks.*.gate.*"]),
    "one array": (["logit_scale"], ["logit_scale"]),
    "two of each block": (
        [f"blocks.{i}.gamma_{j}" for i in range(3) for j in (1, 2)],
        ["blocks.*.gamma_1", "blocks.*.gamma_2"],
    ),
    "of a module that is one": (["head.fc.weight"], ["head.fc.*"]),
    "of a layer that is one": (["head.scale"], ["head.scale"]),
}


@pytest.mark.parametrize("case", GLOBS)
def test_globs_are_as_wide_as_they_can_be(case: str) -> None:
    strangers, expected = GLOBS[case]
    assert globs_of(strangers, list(LAYOUTS["timm"].parameters(12))) == expected


def test_no_glob_matches_a_parameter_that_the_file_spells_otherwise() -> None:
    assert globs_of(["MixerBlock_0.gate.w"], list(LAYOUTS["linen"].parameters(12))) == ["MixerBlock_0.gate.*"]
