"""Mixers within other models and trainers' dicts: what errors tell to type leads to the weights, and to all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mixer_equiv import Checkpoint, ConversionError, InexpressibleError, LayoutError
from tests.support.checkpoints import CONFIG, checkpoint
from tests.support.files import changed

STATE = dict(checkpoint("timm").arrays)
OTHER = dict(checkpoint("timm", seed=1).arrays)


def under(prefix: str, arrays: Mapping[str, Any] = STATE) -> dict[str, Any]:
    return {prefix + name: array for name, array in arrays.items()}


def told(arrays: Mapping[str, Any]) -> str:
    with pytest.raises((ConversionError, LayoutError)) as caught:
        Checkpoint.from_arrays(arrays, config=CONFIG).check()
    return str(caught.value)


def typed(message: str) -> dict[str, Any]:
    """The arguments that a message tells to pass."""
    found = re.findall(r"pass (ignore=\[.*?\]|rename=\{.*?\})", message)
    return {name: eval(value) for name, _, value in (text.partition("=") for text in found)}


EXTRA = np.ones(7, np.float32)
STRANGERS: dict[str, Any] = {
    "a loss in the dict of a trainer": {"state_dict": {**under("model."), "criterion.weight": EXTRA}},
    "a head beside": {**under("net.model."), "net.aux.weight": EXTRA},
    "numbers first": {**STATE, "3.proj.weight": EXTRA},
    "other separators": {**{n.replace(".", "/"): a for n, a in STATE.items()}, "stem/extra": EXTRA},
    "the same prefix": {**under("model."), "model.model.extra.weight": EXTRA},
    "below the head": {**STATE, "head.aux.weight": EXTRA},
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_what_is_told_to_be_ignored_leaves_every_weight(kind: str) -> None:
    options = typed(told(STRANGERS[kind]))
    assert list(options) == ["ignore"]
    assert changed(STATE, Checkpoint.from_arrays(STRANGERS[kind], config=CONFIG, **options).arrays) == []


def test_a_new_head_beside_the_backbone_of_a_trainer_is_renamed_as_told() -> None:
    backbone = {name: array for name, array in STATE.items() if not name.startswith("head.")}
    head = {f"model.fc.{end}": STATE[f"head.{end}"] for end in ("weight", "bias")}
    tree = {"state_dict": {**under("model.backbone.", backbone), **head}}
    options = typed(told(tree))
    assert options == {"rename": {"model.fc": "head"}}
    assert changed(STATE, Checkpoint.from_arrays(tree, config=CONFIG, **options).arrays) == []


def in_blocks(name: str) -> dict[str, Any]:
    return {f"blocks.{i}.{name}": np.ones(20, np.float32) for i in range(12)}


@pytest.mark.parametrize("name", ["ls1.gamma", "gamma_1", "layer_scale_1"])
def test_layer_scale_is_no_official_mixer_and_not_said_to_be_left_out(name: str) -> None:
    with pytest.raises(InexpressibleError, match="no official Mixer is this: LayerScale") as caught:
        Checkpoint.from_arrays({**STATE, **in_blocks(name)}).check()
    assert "--ignore" not in str(caught.value)


def test_layer_scale_that_is_multiplied_as_told_is_the_same_function() -> None:
    from mixer_equiv import verify

    scale = np.random.default_rng(1).normal(size=20)
    folded = dict(STATE)
    for i in range(12):
        folded[f"blocks.{i}.mlp_channels.fc2.weight"] = scale[:, None] * STATE[f"blocks.{i}.mlp_channels.fc2.weight"]
        folded[f"blocks.{i}.mlp_channels.fc2.bias"] = scale * STATE[f"blocks.{i}.mlp_channels.fc2.bias"]
    assert verify(Checkpoint.from_arrays(folded, config=CONFIG)).verdict == "equivalent"


def test_other_arrays_in_blocks_are_said_to_be_part_of_them() -> None:
    message = told({**STATE, **in_blocks("rezero")})
    assert "only if the code of its blocks does not use these, pass ignore=['blocks.*.rezero']" in message


def test_a_second_head_is_said_to_count() -> None:
    dist = {f"head_dist.{end}": STATE[f"head.{end}"] for end in ("weight", "bias")}
    message = told({**STATE, **dist})
    assert "pass ignore=['head_dist.*']" in message
    assert "gives the mean of both its heads" in message


@pytest.mark.parametrize("name", ["cls_token", "pos_embed"])
def test_tokens_and_position_embeddings_are_of_no_official_mixer(name: str) -> None:
    with pytest.raises(InexpressibleError, match="which no official Mixer has"):
        Checkpoint.from_arrays({**STATE, name: np.ones((1, 1, 20), np.float32)}).check()


SETS: dict[str, tuple[dict[str, Any], str]] = {
    "a word of the key": ({"state_dict": STATE, "state_dict_ema": OTHER}, "ema"),
    "another word": ({"params": STATE, "ema_params": OTHER}, "ema"),
    "a part further in": ({"a": STATE, "state": {"b": {"online_model": OTHER}}}, "online_model"),
    "several parts": ({"a": STATE, "state": {"visual": {"trunk": OTHER}}}, "visual.trunk"),
    "dots": ({**under("student.backbone."), **under("teacher.backbone.", OTHER)}, "teacher"),
}


@pytest.mark.parametrize("kind", SETS)
def test_a_prefix_may_be_told_by_the_only_part_or_word_that_it_fits(kind: str) -> None:
    tree, prefix = SETS[kind]
    assert "say which with prefix=" in told(tree)
    assert changed(OTHER, Checkpoint.from_arrays(tree, prefix=prefix, config=CONFIG).arrays) == []


def test_the_set_without_a_prefix_is_told_by_an_empty_one_and_the_other_ignored_as_told() -> None:
    tree = {**OTHER, **under("ema.")}
    assert "ignore=['ema.*']" in told(tree)
    with pytest.raises(ConversionError) as caught:
        Checkpoint.from_arrays(tree, prefix="", config=CONFIG).check()
    options = typed(str(caught.value))
    assert options == {"ignore": ["ema.*"]}
    assert changed(OTHER, Checkpoint.from_arrays(tree, config=CONFIG, **options).arrays) == []


@pytest.mark.parametrize("prefix", ["em", "ema"])
def test_a_prefix_that_fits_none_or_two_is_refused(prefix: str) -> None:
    with pytest.raises(LayoutError, match=f"no array lies under the prefix '{prefix}'; at the top are a_ema, b_ema"):
        Checkpoint.from_arrays({"a_ema": STATE, "b_ema": OTHER}, prefix=prefix)


@pytest.mark.parametrize("option", [{"rename": [("a", "b")]}, {"rename": {1: "x"}}, {"ignore": [1]}, {"prefix": 3}])
def test_options_of_another_type_are_refused(option: Any) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} is .*; it must be a "):
        Checkpoint.from_arrays(STATE, **option)
