"""What a layout's table says: names with their numbers filled in, shapes, sizes, stacks, constraints, and its text."""

import dataclasses
import json
import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer_equiv import LAYOUTS, ConfigError, Conventions, LayoutError
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.layouts import LINEN, Binding, Layout, Row
from mixer_equiv.layouts.base import NEUTRAL, axis_groups, fill, table
from mixer_equiv.layouts.custom import layout_from_dict, layout_from_file
from mixer_equiv.layouts.timm import TIMM

SIZES = DEFAULT_CONFIG.axis_sizes


def timm_with(*lines: str, **fields: Any) -> Layout:
    """timm's table, with some rows' names and patterns replaced."""
    changed = {row.canonical: row for row in table("\n".join(lines))}
    assert changed.keys() <= {row.canonical for row in TIMM.rows}
    rows = tuple(changed.get(row.canonical, row) for row in TIMM.rows)
    return dataclasses.replace(TIMM, name="ours", rows=rows, **fields)


def binding(axes: str) -> Binding:
    return Binding("stem/kernel", "a", Row("stem/kernel", "a", f"ph pw channels hidden -> {axes}"))


# Names


@pytest.mark.parametrize(
    ("name", "filled"),
    [
        ("a.{i}.b", "a.3.b"),
        ("{2i}.{2i+1}", "6.7"),
        ("{i+12}", "15"),
        ("{L}.{L+3}.{4L}.{3L+2}", "5.8.20.17"),
        ("{10i+10}", "40"),
        ("{0i+2}", "2"),
        ("{i}{L}", "35"),
        ("{j}.{}", "{j}.{}"),
    ],
)
def test_placeholders_are_the_block_and_the_depth_times_a_factor_plus_an_offset(name: str, filled: str) -> None:
    assert fill(name, 3, 5) == filled


def test_a_row_knows_where_it_stands() -> None:
    rows = {row.canonical: row for row in LINEN.rows}
    assert [name for name, row in rows.items() if row.in_head] == ["head/kernel", "head/bias"]
    assert [name for name, row in rows.items() if row.in_block] == [n for n in rows if n.startswith("MixerBlock_")]
    assert not any(row.is_tied or row.is_absent for row in rows.values())
    assert Row("MixerBlock_31/LayerNorm_0/bias", "a", "hidden").general == "MixerBlock_{i}/LayerNorm_0/bias"
    assert Row("head/MixerBlock_3/bias", "a", "hidden").general == "head/MixerBlock_3/bias"
    assert rows["head/bias"].general == "head/bias"


@pytest.mark.parametrize(
    ("canonical", "foreign", "tied"),
    [
        ("MixerBlock_{i}/LayerNorm_0/bias", "norm.bias", True),
        ("MixerBlock_{i}/LayerNorm_0/bias", "of{L}.bias", True),
        ("MixerBlock_{i}/LayerNorm_0/bias", "{i}.bias", False),
        ("MixerBlock_{i}/LayerNorm_0/bias", "of{L}.{2i+1}.bias", False),
        ("MixerBlock_{i}/LayerNorm_0/bias", "-", False),
        ("stem/bias", "stem.bias", False),
    ],
)
def test_what_has_no_block_number_in_its_name_is_in_all_blocks_the_same(
    canonical: str, foreign: str, tied: bool
) -> None:
    assert Row(canonical, foreign, "hidden").is_tied is tied


def test_a_layout_is_tied_if_all_that_its_blocks_have_is() -> None:
    def tied(keep: str) -> Layout:
        rows = (
            dataclasses.replace(
                row, foreign=row.foreign if keep and keep in row.foreign else row.foreign.replace(".{i}", "")
            )
            for row in TIMM.rows
        )
        return dataclasses.replace(TIMM, rows=tuple(rows))

    assert tied("").is_tied
    assert not tied("norm2.bias").is_tied
    without = tuple(dataclasses.replace(r, foreign="-") if "{i}" in r.foreign else r for r in tied("norm2.bias").rows)
    assert dataclasses.replace(TIMM, rows=without).is_tied


def test_parameters_are_those_the_code_has_each_once_and_first() -> None:
    layout = timm_with(
        "stem/bias - hidden",
        "MixerBlock_{i}/LayerNorm_0/bias blocks.{i}.norm.bias hidden",
        "MixerBlock_{i}/LayerNorm_1/bias blocks.{i}.norm.bias hidden",
    )
    bound, parameters = layout.bindings(3), layout.parameters(3)
    assert len(bound) == 6 + 3 * 12
    assert [b.canonical for b in bound.values() if b.is_absent] == ["stem/bias"]
    assert len(parameters) == len(bound) - 1 - 3
    assert parameters["blocks.2.norm.bias"].canonical == "MixerBlock_2/LayerNorm_0/bias"
    assert list(parameters)[:2] == ["stem.proj.weight", "blocks.0.norm1.weight"]
    assert all(name == b.foreign for name, b in parameters.items())
    assert [name for name in bound if name not in layout.bindings(3, head=False)] == ["head/kernel", "head/bias"]


# Axes and sizes


@pytest.mark.parametrize(
    ("axes", "groups"),
    [
        ("hidden (ph pw) 1", (("hidden",), ("ph", "pw"), ())),
        ("(a b c)d", (("a", "b", "c"), ("d",))),
        ("1 1", ((), ())),
        ("()", ((),)),
        ("", ()),
    ],
)
def test_each_dimension_has_its_axes(axes: str, groups: tuple[tuple[str, ...], ...]) -> None:
    assert axis_groups(axes) == groups


@pytest.mark.parametrize("axes", ["hidden (ph pw channels) 1", "hidden (channels ph pw) 1"])
def test_a_shape_is_the_product_of_the_axes_of_each_dimension(axes: str) -> None:
    kernel = binding(axes)
    assert kernel.shape(SIZES) == (20, 18, 1) == kernel.symbolic_shape(SIZES)
    said = axis_groups(axes)[1]
    assert kernel.symbolic_shape({}) == ("hidden", " ".join(said), 1)
    assert kernel.symbolic_shape({"hidden": 20, "ph": 2, "pw": 3}) == (20, " ".join(said), 1)
    assert kernel.symbolic_shape({"ph pw channels": 18}) == ("hidden", 18, 1)


def test_a_shape_may_be_a_parameter_s_as_far_as_sizes_are_known() -> None:
    kernel = binding("hidden (ph pw channels) 1")
    assert kernel.may_have((20, 18, 1), SIZES)
    assert not any(kernel.may_have(shape, SIZES) for shape in [(20, 18), (19, 18, 1), (20, 17, 1), (20, 18, 2)])
    assert not kernel.may_have((20, 18, 1, 1), SIZES)
    assert kernel.may_have((20, 99, 1), {"hidden": 20, "ph": 2})
    assert not kernel.may_have((21, 99, 1), {"hidden": 20, "ph": 2})
    assert not kernel.may_have((20, 99), {"hidden": 20})


def seen(rows: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    return dataclasses.replace(TIMM, rows=table(rows)).axis_sizes(1, shapes)


STEM = "stem/kernel a ph pw channels hidden -> {}\nstem/bias b channels\nhead/bias c ph\nhead/kernel d pw"


@pytest.mark.parametrize(
    ("shapes", "factors"),
    [
        ({"a": (20, 18), "b": (3,), "c": (2,)}, {"channels": 3, "ph": 2, "pw": 3}),
        ({"a": (20, 18), "b": (3,)}, {"channels": 3}),
        ({"a": (20, 18), "b": (4,), "c": (2,)}, {"channels": 4, "ph": 2}),
        ({"a": (20, 18), "b": (0,), "c": (2,)}, {"channels": 0, "ph": 2}),
        ({"a": (20, 0), "b": (3,), "c": (2,)}, {"channels": 3, "ph": 2, "pw": 0}),
        ({"a": (20, 18), "b": (3,), "c": (2,), "d": (5,)}, {"channels": 3, "ph": 2, "pw": 5}),
        ({"a": (20, 18)}, {}),
    ],
)
@pytest.mark.parametrize("order", ["hidden (ph pw channels)", "hidden (channels pw ph)"])
def test_the_one_unknown_of_joined_axes_is_what_remains(
    order: str, shapes: dict[str, tuple[int, ...]], factors: dict[str, int]
) -> None:
    sizes = seen(STEM.format(order), shapes)
    assert sizes == {"hidden": 20, "ph pw channels": shapes["a"][1], **factors}


def test_a_size_is_what_most_arrays_of_its_number_of_axes_have() -> None:
    rows = "stem/bias a hidden\nhead/bias b hidden\nhead/kernel c hidden 1\npre_head_layer_norm/bias d hidden"
    shapes = {"a": (5,), "b": (6,), "c": (6, 1), "d": (5, 5), "e": (5,)}
    assert seen(rows, shapes) == {"hidden": 6}
    assert seen(rows, {**shapes, "d": (5,), "c": (6, 1, 1)}) == {"hidden": 5}
    assert seen(rows, {}) == {}


# Stacks


@pytest.mark.parametrize(
    ("name", "array", "depth"),
    [
        ("kernels[{i}]", "kernels", 1),
        ("kernels[{i}]", "module.kernels", 1),
        ("kernels[{i}]", "params/kernels", 1),
        ("kernels[{i}]", "ema/params.kernels", 1),
        ("kernels[{i}]", "thekernels", 0),
        ("kernels[{i}]", "kernels2", 0),
        ("kernels[{i}]", "kernels[3]", 0),
        ("blocks.{i}.affine[0][1]", "blocks.31.affine", 2),
        ("blocks.{2i+1}.affine[0][1]", "blocks.7.affine", 2),
        ("blocks.{i}.of{L}.affine[0]", "x/blocks.0.of12.affine", 1),
        ("blocks.{i}.affine[0]", "blocks.x.affine", 0),
        ("blocks.{i}.affine[0]", "blocks.affine", 0),
        ("blocks.{i}.affine[0]", "blocks-3-affine", 0),
        ("blocks.{i}.affine[0].bias", "blocks.3.affine", 0),
        ("blocks.{i}.affine", "blocks.3.affine", 0),
    ],
)
def test_stacked_arrays_are_known_by_name_behind_any_prefix(name: str, array: str, depth: int) -> None:
    layout = timm_with(f"MixerBlock_{{i}}/LayerNorm_0/bias {name} hidden")
    assert layout.depth_of_stack(array) == depth
    assert bool(layout.stacks) is ("]" in name and not name.endswith("bias"))


# Constraints


def test_a_layout_says_what_weights_must_be_like() -> None:
    layout = timm_with(
        "stem/bias - hidden",
        "MixerBlock_{i}/LayerNorm_0/scale - hidden",
        "MixerBlock_{i}/LayerNorm_0/bias norm.bias hidden",
        "MixerBlock_{i}/LayerNorm_1/bias norm.bias hidden",
        "MixerBlock_{i}/channel_mixing/Dense_1/bias b.{i} hidden",
        "pre_head_layer_norm/scale same hidden",
        "pre_head_layer_norm/bias same hidden",
        "head/kernel same hidden",
    )
    assert [constraint.kind for constraint in layout.constraints] == [
        "absent_parameters",
        "absent_parameters",
        "shared_parameters",
        "shared_parameters",
        "tied_blocks",
    ]
    assert tuple(map(str, layout.constraints)) == (
        "stem/bias all zeros",
        "MixerBlock_{i}/LayerNorm_0/scale all ones",
        "MixerBlock_{i}/LayerNorm_1/bias equal to MixerBlock_{i}/LayerNorm_0/bias",
        "pre_head_layer_norm/bias, head/kernel equal to pre_head_layer_norm/scale",
        "MixerBlock_{i}/LayerNorm_0/bias the same in all blocks",
    )
    assert all(layout.constraints == () for layout in LAYOUTS.values())
    assert NEUTRAL == {"bias": 0, "scale": 1}


# Conventions, and the table as text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"padding": "full"}, "padding is 'full'; it must be 'same' or 'valid'"),
        ({"activation": "mish"}, "activation is 'mish'"),
        ({"layer_norm_eps": 1}, "layer_norm_eps is 1"),
    ],
)
def test_conventions_of_no_code_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Conventions(**fields)


def test_conventions_are_those_of_the_official_code_but_for_padding() -> None:
    assert dataclasses.astuple(Conventions()) == ("gelu_tanh", 1e-6, "valid")
    assert dataclasses.astuple(LINEN.computes) == ("gelu_tanh", 1e-6, "same")


FROZEN = [Conventions(), LINEN.rows[0], LINEN.bindings(1)["stem/bias"], LINEN]


@pytest.mark.parametrize("value", FROZEN, ids=lambda value: type(value).__name__)
def test_tables_cannot_be_changed(value: object) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, "x")


IN_FILES = ("name", "summary", "framework", "computes", "trained_with", "advice", "rows", "aliases", "num_blocks")


def tied_layout() -> Layout:
    rows = tuple(dataclasses.replace(row, foreign=row.foreign.replace(".{i}", "")) for row in TIMM.rows)
    return dataclasses.replace(TIMM, name="tied", rows=rows, num_blocks=12, aliases=("one-block", "1"))


TEXTS = [*LAYOUTS.values(), tied_layout(), timm_with("stem/bias - hidden", summary='a "quoted" \\ summary')]


@pytest.mark.parametrize("layout", TEXTS, ids=lambda layout: layout.name)
def test_a_table_s_text_is_the_table(layout: Layout) -> None:
    fields = tomllib.loads(layout.to_toml())
    assert len(fields["rows"]) == len(layout.rows)
    again = layout_from_dict(fields, {})
    assert all(getattr(again, name) == getattr(layout, name) for name in IN_FILES)
    assert layout_from_dict(json.loads(json.dumps(fields)), {}) == again


def test_a_table_s_text_has_no_field_that_says_nothing_and_its_columns_stand_below_each_other() -> None:
    text = dataclasses.replace(TIMM, advice={}).to_toml()
    assert list(tomllib.loads(text)) == ["name", "summary", "framework", "rows", "computes"]
    lines = text.splitlines()
    rows = [line.strip(' ",') for line in lines[lines.index("rows = [") + 1 : lines.index("]")]]
    assert len({row.index(own.foreign, 1 + len(own.canonical)) for row, own in zip(rows, TIMM.rows, strict=True)}) == 1
    assert len({len(row) - len(own.pattern) for row, own in zip(rows, TIMM.rows, strict=True)}) == 1
    longest = max(TIMM.rows, key=lambda row: len(row.canonical))
    assert f"{longest.canonical}  blocks" in "\n".join(rows)


# Every character but half surrogate pairs; in names also without the braces of block numbers and the slash of nesting.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ANY_NAME = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}/"), min_size=1)
ODD_NAME = st.text("\"'\\ \t\r\n\0\x1c\x7f\x85\xa0\u2028\ufeff#-[]\U0001f600", min_size=1)


@given(name=ANY_NAME | ODD_NAME, summary=ANY_TEXT | ODD_NAME)
def test_a_table_s_file_holds_names_of_any_characters(
    tmp_path_factory: pytest.TempPathFactory, name: str, summary: str
) -> None:
    bias = dataclasses.replace(TIMM.rows[1], foreign=name)
    layout = dataclasses.replace(TIMM, name="ours", rows=(TIMM.rows[0], bias, *TIMM.rows[2:]), summary=summary)
    path = tmp_path_factory.getbasetemp() / "named.toml"
    path.write_text(layout.to_toml(), encoding="utf-8")
    again = layout_from_file(path, {})
    assert (again.rows, again.summary) == (layout.rows, layout.summary)


@pytest.mark.parametrize(
    ("name", "summary", "message"),
    [
        ("{x}.bias", "", "row stem/bias: '{x}.bias' cannot be written, since a layout's names have braces only"),
        ("a\ud83d", "", "the layout 'timm' cannot be written: it has '\\ud83d', half of a surrogate pair"),
        ("a", "\udc00", "half of a surrogate pair"),
    ],
)
def test_a_table_that_no_file_can_hold_is_refused(name: str, summary: str, message: str) -> None:
    rows = (dataclasses.replace(TIMM.rows[1], foreign=name), *TIMM.rows[:1], *TIMM.rows[2:])
    with pytest.raises(LayoutError, match=re.escape(message)):
        dataclasses.replace(TIMM, rows=rows, summary=summary).to_toml()


@given(block=st.integers(0, 99), depth=st.integers(1, 99), factor=st.integers(1, 9), offset=st.integers(1, 99))
def test_names_of_two_blocks_are_never_one(block: int, depth: int, factor: int, offset: int) -> None:
    name = f"{{{factor}i+{offset}}}"
    assert fill(name, block, depth) == str(factor * block + offset)
    assert fill(name, block, depth) != fill(name, block + 1, depth)


def test_a_layout_is_shown_by_its_name() -> None:
    assert repr(TIMM) == "<Layout timm: timm's MlpMixer, pytorch-image-models>"
