import dataclasses

import pytest

from mixer_equiv import LAYOUTS, LayoutError
from mixer_equiv.config import config_from_axes
from mixer_equiv.equivalence.subject import DEFAULT_CONFIG
from mixer_equiv.layouts import LINEN, Layout, Row, detect, get_layout
from mixer_equiv.layouts.layout import axis_groups

CONFIG = DEFAULT_CONFIG


def shapes_in(layout, config=CONFIG, prefix="", **bindings):
    return {
        prefix + b.foreign: b.shape(config.axis_sizes) for b in layout.bindings(config.num_blocks, **bindings).values()
    }


def flat_sequential(**changes):
    """A layout whose numbers are offsets of the block, as in a flat nn.Sequential."""
    names = {"stem": "1", "MixerBlock_{i}/": "{i+2}.", "pre_head_layer_norm": "{L+2}", "head": "{L+4}"}
    rows = []
    for row in LINEN.rows:
        foreign = row.foreign
        for ours, theirs in names.items():
            foreign = foreign.replace(ours, theirs)
        rows.append(Row(row.canonical, foreign.replace("/", "."), row.pattern))
    return dataclasses.replace(LINEN, name="flat", rows=tuple(rows), framework="torch", **changes)


def sizes_seen_in(layout):
    """The sizes of CONFIG's axes, those of a patch together where the layout's stem is of columns."""
    if layout.name != "lucidrains":
        return CONFIG.axis_sizes
    patch = ("ph", "pw", "channels")
    return {axis: size for axis, size in CONFIG.axis_sizes.items() if axis not in patch} | {"ph pw channels": 18}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_table_names_every_canonical_parameter_once_with_the_canonical_axes(layout):
    assert [row.canonical for row in layout.rows] == [row.canonical for row in LINEN.rows]
    assert len({row.foreign for row in layout.rows}) == len(layout.rows)
    for row, canonical in zip(layout.rows, LINEN.rows, strict=True):
        assert row.canonical_axes == canonical.canonical_axes
        assert sorted(axis for axes in axis_groups(row.foreign_axes) for axis in axes) == sorted(canonical.axes)


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), flat_sequential()], ids=[*LAYOUTS, "flat"])
@pytest.mark.parametrize("prefix", ["", "module.", "params/", "opt/target/", "state_dict/module._orig_mod."])
@pytest.mark.parametrize("head", [True, False])
def test_a_layout_is_found_behind_any_prefix(layout, prefix, head):
    shapes = shapes_in(layout, prefix=prefix, head=head)
    match = detect(shapes, [*LAYOUTS.values(), flat_sequential()], shapes)
    assert (match.layout.rows, match.prefix, match.num_blocks) == (layout.rows, prefix, 12)
    assert match.absent == 0


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), flat_sequential()], ids=[*LAYOUTS, "flat"])
def test_axis_sizes_are_read_off_the_shapes_of_every_layout(layout):
    sizes = layout.axis_sizes(12, shapes_in(layout))
    assert sizes == sizes_seen_in(layout)
    assert config_from_axes(sizes, 12, image_size=CONFIG.image_size) == CONFIG


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_one_wrong_shape_does_not_change_the_sizes_the_others_agree_on(layout):
    shapes = shapes_in(layout)
    name = layout.bindings(12)["MixerBlock_3/token_mixing/Dense_0/kernel"].foreign
    assert layout.axis_sizes(12, {**shapes, name: (99, 98)}) == sizes_seen_in(layout)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_gap_and_a_stray_block_do_not_change_the_depth(layout):
    shapes = shapes_in(layout)
    fifth = {b.foreign for name, b in layout.bindings(12).items() if name.startswith("MixerBlock_5/")}
    assert len(fifth) == 12
    gap = {name: shape for name, shape in shapes.items() if name not in fifth}
    match = detect(gap, LAYOUTS.values(), gap)
    assert (match.num_blocks, match.absent) == (12, 12)
    stray = {**shapes, layout.bindings(10**3)["MixerBlock_999/LayerNorm_0/scale"].foreign: (20,)}
    assert detect(stray, LAYOUTS.values(), stray).num_blocks == 12


def test_blocks_come_in_numeric_order():
    names = list(LINEN.bindings(12))
    assert names.index("MixerBlock_2/LayerNorm_0/scale") < names.index("MixerBlock_10/LayerNorm_0/scale")
    assert len(names) == 150


def test_names_of_no_layout_are_refused_with_the_known_ones():
    with pytest.raises(LayoutError, match=r"found conv1\.weight, fc\.bias\..* timm: stem\.proj\.weight;"):
        detect(["fc.bias", "conv1.weight"], LAYOUTS.values(), {})
    with pytest.raises(LayoutError, match="found no arrays"):
        detect([], LAYOUTS.values(), {})


def test_a_few_names_of_a_layout_are_not_that_layout_but_the_nearest():
    names = ["blocks.0.norm1.weight", "blocks.0.norm1.bias", "blocks.0.attn.qkv.weight"]
    with pytest.raises(LayoutError, match="nearest is timm, of whose 1-block names 2 are here and 14 are not"):
        detect(names, LAYOUTS.values(), {})


def test_two_sets_of_weights_are_refused_by_prefix():
    shapes = {**shapes_in(LAYOUTS["timm"], prefix="model/"), **shapes_in(LAYOUTS["timm"], prefix="ema/")}
    with pytest.raises(LayoutError, match="under 'model/' and 'ema/'"):
        detect(shapes, LAYOUTS.values(), shapes)


def transposed_twin(layout: Layout) -> Layout:
    """The same names, square kernels read the other way."""
    swap = "tokens tokens_mlp"
    rows = tuple(dataclasses.replace(row, pattern=swap) if row.canonical_axes == swap else row for row in layout.rows)
    return dataclasses.replace(layout, name="twin", rows=rows)


def test_two_layouts_of_the_same_names_are_told_apart_by_shape_or_refused():
    timm = LAYOUTS["timm"]
    twin = transposed_twin(timm)
    for layouts in ([timm, twin], [twin, timm]):
        for layout in layouts:
            shapes = shapes_in(layout)
            assert detect(shapes, layouts, shapes).layout is layout
    square = CONFIG.replace(tokens_mlp_dim=CONFIG.num_tokens)
    shapes = shapes_in(timm, square)
    with pytest.raises(LayoutError, match="fit the layouts timm and twin, which read them differently"):
        detect(shapes, [timm, twin], shapes)
    assert detect(shapes, [twin], shapes).layout is twin


def test_two_names_for_the_same_table_are_not_ambiguous():
    timm = LAYOUTS["timm"]
    alias = dataclasses.replace(timm, name="alias")
    shapes = shapes_in(timm)
    assert detect(shapes, [timm, alias], shapes).layout is timm


def test_an_unknown_layout_name_is_refused_with_the_known_ones():
    with pytest.raises(LayoutError, match="no layout is called 'tim'; the layouts are linen, torch, timm, jankrepl"):
        get_layout("tim")
    assert get_layout("timm") is get_layout(get_layout("timm"))
    assert get_layout("flax") is LINEN
    names = [name for layout in LAYOUTS.values() for name in (layout.name, *layout.aliases)]
    assert len(set(names)) == len(names)
