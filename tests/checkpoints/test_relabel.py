"""Weights under another table's names: what is filled in, left out, refused, and how much of that is said."""

import dataclasses
import re

import numpy as np
import pytest

from mixer_equiv import Checkpoint, InexpressibleError, convert
from mixer_equiv.checkpoints.convention_warnings import describe_conventions
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.errors import MAX_LISTED
from mixer_equiv.layouts import LINEN, Conventions, Layout
from mixer_equiv.layouts.timm import TIMM

pytestmark = pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")

CONFIG = DEFAULT_CONFIG
PARAMS = random_params(CONFIG, 0)
NORM = "MixerBlock_{i}/LayerNorm_0/bias"


def without(*absent: str) -> Layout:
    """timm's table with some parameters that the code does not have."""
    rows = tuple(dataclasses.replace(row, foreign="-") if row.canonical in absent else row for row in TIMM.rows)
    return dataclasses.replace(TIMM, name="ours", rows=rows)


def back(layout: Layout, arrays: dict[str, np.ndarray], **options: object) -> dict[str, np.ndarray]:
    return relabel(arrays, layout, LINEN, CONFIG, **options)


def held_by(layout: Layout) -> dict[str, np.ndarray]:
    """Random weights, those that the layout has, under its names."""
    whole = relabel(PARAMS, LINEN, TIMM, CONFIG)
    return {name: whole[name] for name in layout.parameters(CONFIG.num_blocks)}


@pytest.mark.parametrize(
    ("absent", "beside"),
    [
        ("stem/bias", "stem.proj.weight"),
        ("head/bias", "head.weight"),
        ("pre_head_layer_norm/scale", "norm.bias"),
        ("MixerBlock_1/token_mixing/Dense_1/bias", "blocks.1.mlp_tokens.fc2.weight"),
    ],
)
def test_what_is_filled_in_has_the_dtype_of_its_own_module_alone(absent: str, beside: str) -> None:
    layout = without(re.sub(r"_1/", "_{i}/", absent, count=1) if absent.startswith("Mixer") else absent)
    arrays = {n: a.astype(np.float16 if n == beside else np.float32) for n, a in held_by(layout).items()}
    filled = back(layout, arrays)
    assert filled[absent].dtype == np.float16
    assert {str(filled[name].dtype) for name in filled if name != absent} == {"float16", "float32"}
    assert np.array_equal(filled[absent], np.full(PARAMS[absent].shape, float(absent.endswith("scale"))))
    assert np.array_equal(filled["stem/kernel"], PARAMS["stem/kernel"].astype(filled["stem/kernel"].dtype))


def test_a_module_that_has_nothing_is_filled_in_with_the_dtype_of_the_first_array() -> None:
    layout = without("pre_head_layer_norm/scale", "pre_head_layer_norm/bias")
    arrays = {name: array.astype(np.float16) for name, array in held_by(layout).items()}
    assert {str(array.dtype) for array in back(layout, arrays).values()} == {"float16"}


def test_nothing_is_filled_in_beside_what_is_left_out() -> None:
    layout = without("head/bias")
    arrays = held_by(layout)
    assert "head/bias" in back(layout, arrays)
    del arrays["head.weight"]
    assert back(layout, arrays).keys() == PARAMS.keys() - {"head/kernel", "head/bias"}
    only = {"stem/kernel", "head/bias", "head/kernel"}
    assert back(layout, held_by(layout), only=only).keys() == only


def test_that_parameters_are_left_out_is_said_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        relabel(PARAMS, LINEN, TIMM, CONFIG, ["stem/bias"])
    assert relabel(PARAMS, source=LINEN, target=TIMM, config=CONFIG, only=["stem/bias"]).keys() == {"stem.proj.bias"}


def test_what_is_given_is_the_callers_own() -> None:
    params = {name: array.copy() for name, array in PARAMS.items()}
    for target in (LINEN, TIMM):
        for array in relabel(params, LINEN, target, CONFIG).values():
            assert array.flags.c_contiguous
            array += 1
    assert all(np.array_equal(params[name], PARAMS[name]) for name in PARAMS)


@pytest.mark.parametrize(
    ("absent", "more"), [([NORM], 0), ([NORM, "stem/bias"], 1), ([NORM, NORM.replace("0/b", "1/b")], 12)]
)
def test_the_first_reasons_are_shown_and_the_others_counted(absent: list[str], more: int) -> None:
    assert MAX_LISTED == CONFIG.num_blocks == 12
    with pytest.raises(InexpressibleError, match="no weights of the layout ours are the same function:") as caught:
        relabel(PARAMS, LINEN, without(*absent), CONFIG)
    assert len(caught.value.reasons) == 12 + more
    lines = str(caught.value).splitlines()[1:]
    assert lines[:12] == [f"  {reason}" for reason in caught.value.reasons[:12]]
    assert lines[12:] == ([f"  and {more} more"] if more else [])
    assert "it has no MixerBlock_3/LayerNorm_0/bias, which is not all zeros" in caught.value.reasons


def test_a_head_that_the_target_has_no_place_for_is_left_out_on_request_alone() -> None:
    rows = tuple(row for row in TIMM.rows if not row.in_head)
    target = dataclasses.replace(TIMM, name="ours", rows=rows)
    with pytest.raises(InexpressibleError) as caught:
        convert(PARAMS, to=target, config=CONFIG)
    assert str(caught.value).splitlines()[1:] == [
        "  it has no head/kernel",
        "  it has no head/bias",
        "leave the head out with drop_head, --drop-head or allow_missing=['head/*']",
    ]
    with pytest.raises(InexpressibleError):
        convert(PARAMS, to=target, config=CONFIG, allow_missing=["head/k*"])
    converted = convert(PARAMS, to=target, config=CONFIG, allow_missing=["head/*"])
    assert converted.config == CONFIG.replace(num_classes=0)
    assert converted.arrays.keys() == {row.foreign for row in rows if not row.in_block} | {
        name for name in TIMM.parameters(12) if name.startswith("blocks.")
    }
    assert "left out: head/bias, which ours does not have" in converted.notes
    by_own_names = convert(relabel(PARAMS, LINEN, TIMM, CONFIG), to=target, config=CONFIG, allow_missing=["head.*"])
    assert by_own_names.arrays.keys() == converted.arrays.keys()


@pytest.mark.parametrize("target", [LINEN, TIMM])
def test_a_checkpoint_stays_one_and_arrays_become_what_the_framework_takes(target: Layout) -> None:
    checkpoint = Checkpoint.from_arrays(PARAMS, config=CONFIG)
    assert type(convert(checkpoint, to=target)) is Checkpoint
    assert type(convert(PARAMS, to=target, config=CONFIG)) is (dict if target is LINEN else Checkpoint)


def test_conventions_are_said_in_words() -> None:
    assert describe_conventions(Conventions("gelu", 1e-5)) == "erf GELU, LayerNorm eps 1e-05"
    assert describe_conventions(Conventions("silu", 0.5)) == "silu, LayerNorm eps 0.5"
