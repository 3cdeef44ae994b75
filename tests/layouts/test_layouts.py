import contextlib
import dataclasses
from typing import Any

import pytest

from mixer_equiv import LAYOUTS, LayoutError, MixerConfig
from mixer_equiv.config import config_from_axes
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.layouts import LINEN, Layout, Row, detect, get_layout
from mixer_equiv.layouts.base import axis_groups
from mixer_equiv.layouts.detect import OPTIMIZER_STATE
from tests.support.kernels import STEM_COLUMNS

CONFIG = DEFAULT_CONFIG


def shapes_in(layout: Any, config: MixerConfig = CONFIG, prefix: str = "", **bindings: Any) -> Any:
    return {
        prefix + b.foreign: b.shape(config.axis_sizes) for b in layout.bindings(config.num_blocks, **bindings).values()
    }


def flat_sequential(**changes: Any) -> Any:
    """A layout whose numbers are offsets of the block, as in a flat nn.Sequential."""
    names = {"stem": "1", "MixerBlock_{i}/": "{i+2}.", "pre_head_layer_norm": "{L+2}", "head": "{L+4}"}
    rows = []
    for row in LINEN.rows:
        foreign = row.foreign
        for ours, theirs in names.items():
            foreign = foreign.replace(ours, theirs)
        rows.append(Row(row.canonical, foreign.replace("/", "."), row.pattern))
    return dataclasses.replace(LINEN, name="flat", rows=tuple(rows), framework="torch", **changes)


def sizes_seen_in(layout: Any) -> Any:
    """The sizes of CONFIG's axes, those of a patch together where the layout's stem is of columns."""
    sizes = dict(CONFIG.axis_sizes)
    if layout.name in STEM_COLUMNS:
        sizes["ph pw channels"] = sizes.pop("ph") * sizes.pop("pw") * sizes.pop("channels")
    return sizes


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_table_names_every_canonical_parameter_once_with_the_canonical_axes(layout: Any) -> None:
    assert [row.canonical for row in layout.rows] == [row.canonical for row in LINEN.rows]
    assert len({row.foreign for row in layout.rows}) == len(layout.rows)
    for row, canonical in zip(layout.rows, LINEN.rows, strict=True):
        assert row.canonical_axes == canonical.canonical_axes
        assert sorted(axis for axes in axis_groups(row.foreign_axes) for axis in axes) == sorted(canonical.axes)


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), flat_sequential()], ids=[*LAYOUTS, "flat"])
@pytest.mark.parametrize("prefix", ["", "module.", "params/", "opt/target/", "state_dict/module._orig_mod."])
@pytest.mark.parametrize("head", [True, False])
def test_a_layout_is_found_behind_any_prefix(layout: Any, prefix: str, head: Any) -> None:
    shapes = shapes_in(layout, prefix=prefix, head=head)
    match = detect(shapes, [*LAYOUTS.values(), flat_sequential()], shapes)
    assert (match.layout.rows, match.prefix, match.num_blocks) == (layout.rows, prefix, 12)
    assert match.absent == 0


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), flat_sequential()], ids=[*LAYOUTS, "flat"])
def test_axis_sizes_are_read_off_the_shapes_of_every_layout(layout: Any) -> None:
    sizes = layout.axis_sizes(12, shapes_in(layout))
    assert sizes == sizes_seen_in(layout)
    assert config_from_axes(sizes, 12, image_size=CONFIG.image_size) == CONFIG


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_one_wrong_shape_does_not_change_the_sizes_the_others_agree_on(layout: Any) -> None:
    shapes = shapes_in(layout)
    name = layout.bindings(12)["MixerBlock_3/token_mixing/Dense_0/kernel"].foreign
    assert layout.axis_sizes(12, {**shapes, name: (99, 98)}) == sizes_seen_in(layout)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_gap_and_a_stray_block_do_not_change_the_depth(layout: Any) -> None:
    shapes = shapes_in(layout)
    fifth = {b.foreign for name, b in layout.bindings(12).items() if name.startswith("MixerBlock_5/")}
    assert len(fifth) == 12
    gap = {name: shape for name, shape in shapes.items() if name not in fifth}
    match = detect(gap, LAYOUTS.values(), gap)
    assert (match.num_blocks, match.absent) == (12, 12)
    stray = {**shapes, layout.bindings(10**3)["MixerBlock_999/LayerNorm_0/scale"].foreign: (20,)}
    assert detect(stray, LAYOUTS.values(), stray).num_blocks == 12


def test_blocks_come_in_numeric_order() -> None:
    names = list(LINEN.bindings(12))
    assert names.index("MixerBlock_2/LayerNorm_0/scale") < names.index("MixerBlock_10/LayerNorm_0/scale")
    assert len(names) == 150


def test_names_of_no_layout_are_refused_with_the_known_ones() -> None:
    with pytest.raises(LayoutError, match=r"found conv1\.weight, fc\.bias\..* timm: stem\.proj\.weight;"):
        detect(["fc.bias", "conv1.weight"], LAYOUTS.values(), {})
    with pytest.raises(LayoutError, match="found no arrays"):
        detect([], LAYOUTS.values(), {})


def test_a_few_names_of_a_layout_are_not_that_layout_but_the_nearest() -> None:
    names = ["blocks.0.norm1.weight", "blocks.0.norm1.bias", "blocks.0.attn.qkv.weight"]
    with pytest.raises(LayoutError, match="nearest is timm, of whose 1-block names 2 are here and 14 are not"):
        detect(names, LAYOUTS.values(), {})


def test_two_sets_of_weights_are_refused_by_prefix() -> None:
    shapes = {**shapes_in(LAYOUTS["timm"], prefix="model/"), **shapes_in(LAYOUTS["timm"], prefix="ema/")}
    with pytest.raises(LayoutError, match="under 'model/' and 'ema/'"):
        detect(shapes, LAYOUTS.values(), shapes)


def transposed_twin(layout: Layout) -> Layout:
    """The same names, square kernels read the other way."""
    swap = "tokens tokens_mlp"
    rows = tuple(dataclasses.replace(row, pattern=swap) if row.canonical_axes == swap else row for row in layout.rows)
    return dataclasses.replace(layout, name="twin", rows=rows)


def test_two_layouts_of_the_same_names_are_told_apart_by_shape_or_refused() -> None:
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


def test_two_names_for_the_same_table_are_not_ambiguous() -> None:
    timm = LAYOUTS["timm"]
    alias = dataclasses.replace(timm, name="alias")
    shapes = shapes_in(timm)
    assert detect(shapes, [timm, alias], shapes).layout is timm


def test_an_unknown_layout_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LayoutError, match="no layout is called 'tim'; the layouts are linen, torch, timm, jankrepl"):
        get_layout("tim")
    assert get_layout("timm") is get_layout(get_layout("timm"))
    assert get_layout("flax") is LINEN
    names = [name for layout in LAYOUTS.values() for name in (layout.name, *layout.aliases)]
    assert len(set(names)) == len(names)


# Depth


def names_of(layout: Any, blocks: Any, prefix: str = "") -> Any:
    """Names of all parameters of some blocks, and of those outside as in a model of 12."""
    return {
        prefix + b.foreign: ()
        for name, b in layout.bindings(12).items()
        if not b.row.in_block or int(name.split("/")[0].removeprefix("MixerBlock_")) in blocks
    }


@pytest.mark.parametrize(
    ("blocks", "depth", "absent"),
    [
        (range(12), 12, 0),
        (range(1), 1, 0),
        (range(3), 3, 0),
        ([0, 1, 2, 3, 5], 6, 12),
        ([0, 1, 9], 2, 0),
        ([0, 1, 2, 11], 3, 0),
        ([1, 2, 3], 4, 12),
        ([0, 2], 3, 12),
        ([0, 3], 1, 0),
    ],
)
def test_the_depth_is_what_explains_most_names_up_to_the_first_gap_or_the_highest_block(
    blocks: Any, depth: Any, absent: Any
) -> None:
    names = names_of(LINEN, blocks)
    match = detect(names, [LINEN], names)
    assert (match.num_blocks, match.absent) == (depth, absent)
    assert match.found == 6 + 12 * len(set(blocks) & set(range(depth)))


@pytest.mark.parametrize("numbers", ["{i}", "{i+7}", "{2i}", "{3i+1}", "of{L}.{i}", "{i}.of{L}", "{i}.again{i}"])
def test_blocks_are_counted_as_their_names_say(numbers: Any) -> None:
    rows = (dataclasses.replace(row, foreign=row.foreign.replace("{i}", numbers)) for row in LAYOUTS["timm"].rows)
    layout = dataclasses.replace(LAYOUTS["timm"], name="ours", rows=tuple(rows))
    for depth in (1, 2, 12):
        names = {f"x.{b.foreign}" for b in layout.bindings(depth).values()}
        match = detect(names, [layout], {})
        assert (match.num_blocks, match.prefix, match.found, match.absent) == (depth, "x.", 6 + 12 * depth, 0)


def test_numbers_between_those_of_blocks_are_no_blocks() -> None:
    rows = (dataclasses.replace(row, foreign=row.foreign.replace("{i}", "{3i+1}")) for row in LAYOUTS["timm"].rows)
    layout = dataclasses.replace(LAYOUTS["timm"], rows=tuple(rows))
    with pytest.raises(LayoutError, match="no known layout"):
        detect({f"blocks.{n}.norm1.{end}" for n in (0, 2, 3, 5) for end in ("weight", "bias")}, [layout], {})


def tied(**changes: Any) -> Any:
    rows = (
        dataclasses.replace(row, foreign=row.foreign.replace("blocks.{i}", "block")) for row in LAYOUTS["timm"].rows
    )
    return dataclasses.replace(LAYOUTS["timm"], name="tied", rows=tuple(rows), **changes)


def test_tied_blocks_have_the_depth_that_their_layout_gives() -> None:
    names = set(tied().parameters(1))
    for depth in (1, 5):
        assert detect(names, [tied(num_blocks=depth)], {}).num_blocks == depth
    assert detect({f"a/{name}" for name in names}, [tied(num_blocks=5)], {}).prefix == "a/"


def test_a_tied_layout_without_a_depth_is_found_as_one_block() -> None:
    assert detect(set(tied().parameters(1)), [tied()], {}).num_blocks == 1


def test_constraints_do_not_depend_on_the_order_of_rows() -> None:
    rows = [
        dataclasses.replace(row, foreign="one.weight" if row.canonical.endswith("scale") else "one.bias")
        if "LayerNorm" in row.canonical
        else row
        for row in tied().rows
    ]
    layouts = (dataclasses.replace(LINEN, name="x", rows=tuple(order)) for order in (rows, rows[::-1]))
    held, back = ({c.parameters for c in layout.constraints if c.kind == "tied_blocks"} for layout in layouts)
    assert len(held) == len(back)
    assert sum("LayerNorm" in name for (name,) in held) == 2


def test_only_the_sign_for_it_says_that_a_parameter_is_absent() -> None:
    row = LINEN.rows[0]
    assert dataclasses.replace(row, foreign="-").is_absent
    assert not any(dataclasses.replace(row, foreign=name).is_absent for name in ("(a)", "--", "", "a"))


# Half of the parameters of one block, of which as many are found as are absent.
HALF = {name for name in LINEN.parameters(1) if "mixing" in name or name.startswith("stem")} - {"stem/bias"}


def test_weights_of_which_half_is_absent_are_found_all_the_same() -> None:
    half = set(sorted(HALF)[:8])
    found = detect(half, [LINEN], {})
    assert (found.num_blocks, found.found, found.absent, found.score) == (1, 8, 8, 0)
    moments = {f"opt_state/mu/{name}" for name in LINEN.parameters(1)}
    assert detect(half | moments, [LINEN], {}).prefix == ""
    with pytest.raises(LayoutError, match="only an optimizer's moments are here, under 'opt_state/mu/'"):
        detect({f"opt_state/mu/{name}" for name in half}, [LINEN], {})


def test_a_layout_with_a_tied_norm_is_found_at_a_depth_of_one() -> None:
    rows = tuple(
        dataclasses.replace(row, foreign="norm.weight") if row.canonical == "MixerBlock_{i}/LayerNorm_0/scale" else row
        for row in LAYOUTS["torch"].rows
    )
    layout = dataclasses.replace(LAYOUTS["torch"], name="one tied", rows=rows)
    for depth in (1, 2, 12):
        assert detect(set(layout.parameters(depth)), [layout], {}).num_blocks == depth


def test_stacks_are_found_by_their_parts_where_shapes_are_known() -> None:
    rows = (
        dataclasses.replace(row, foreign=f"{row.foreign.replace('MixerBlock_{i}', 'blocks')}[{{i}}]")
        if row.in_block
        else row
        for row in LINEN.rows
    )
    layout = dataclasses.replace(LINEN, name="scanned", rows=tuple(rows))
    shapes = {}
    for b in layout.bindings(12).values():
        name, stack, _ = b.foreign.partition("[")
        shapes[f"params/{name}"] = ((12,) if stack else ()) + b.shape(CONFIG.axis_sizes)
    match = detect(shapes, [*LAYOUTS.values(), layout], shapes)
    assert (match.layout, match.num_blocks, match.absent, match.prefix) == (layout, 12, 0, "params/")
    swap = "tokens tokens_mlp"
    rows = (
        dataclasses.replace(r, pattern=f"{swap} -> tokens_mlp tokens") if r.pattern == swap else r for r in layout.rows
    )
    twin = dataclasses.replace(layout, name="twin", rows=tuple(rows))
    for order in (1, -1):
        assert detect(shapes, [layout, twin][::order], shapes).layout is layout


# Several sets


@pytest.mark.parametrize("place", ["{}/", "0.{}.", "opt/{}/0/", "{}.module."])
def test_moments_of_optimizers_are_no_weights(place: Any) -> None:
    timm = LAYOUTS["timm"]
    weights = shapes_in(timm, prefix="model/")
    for word in sorted(OPTIMIZER_STATE):
        prefix = place.format(word)
        moments = shapes_in(timm, prefix=prefix)
        assert detect({**moments, **weights}, [timm], {}).prefix == "model/"
        with pytest.raises(LayoutError, match=f"only an optimizer's moments are here, under '{prefix}', and"):
            detect(moments, [timm], {})
        assert detect({**moments, **weights}, [timm], {}, told_prefix="model").prefix == "model/"
        assert detect(moments, [timm], {}, told_prefix=prefix).prefix == prefix
    alike = shapes_in(timm, prefix=place.format("mut"))
    assert detect(alike, [timm], {}).prefix == place.format("mut")


def test_a_few_names_below_moments_are_of_no_layout() -> None:
    few = {f"mu/blocks.0.norm1.{end}": (20,) for end in ("weight", "bias")}
    with pytest.raises(LayoutError, match="only the state of an optimizer is here"):
        detect(few, LAYOUTS.values(), few)


@pytest.mark.parametrize(
    ("prefix", "blocks", "is_a_set"),
    [("b/", range(12), True), ("b/", range(7), True), ("b/", range(1), True), ("b/", [], False)],
)
def test_a_second_set_counts_however_deep_it_is(prefix: str, blocks: Any, is_a_set: Any) -> None:
    names = {**names_of(LINEN, range(12), "a/"), **names_of(LINEN, blocks, prefix)}
    if is_a_set:
        with pytest.raises(LayoutError, match=r"under 'a/' and 'b/'; say which with prefix= \(--prefix\)"):
            detect(names, [LINEN], {})
    else:
        assert detect(names, [LINEN], {}).prefix == "a/"


@pytest.mark.parametrize(("lost", "is_a_set"), [(7, True), (8, False)])
def test_just_half_of_its_own_parameters_is_no_second_set(lost: int, is_a_set: Any) -> None:
    """Of 18 names of one block, two of which are of a head and do not count against it."""
    names = {**names_of(LINEN, range(12), "a/"), **names_of(LINEN, range(1), "b/")}
    for name in [
        "head/kernel",
        "head/bias",
        *(f"MixerBlock_0/token_mixing/Dense_{i}/{e}" for i in (0, 1) for e in ENDS),
    ]:
        del names[f"b/{name}"]
    for name in [name for name in names if name.startswith("b/MixerBlock_0/channel_mixing")][: lost - 4]:
        del names[name]
    with pytest.raises(LayoutError, match="two sets") if is_a_set else contextlib.nullcontext():
        assert detect(names, [LINEN], {}).prefix == "a/"


ENDS = ("kernel", "bias")


@pytest.mark.parametrize("count", [3, 4])
def test_all_sets_are_listed(count: int) -> None:
    names = {name: () for i in range(count) for name in names_of(LINEN, range(2 + i), f"set_{i}/")}
    with pytest.raises(LayoutError, match=f"{count} sets of Mixer weights are here, under .* and 'set_") as caught:
        detect(names, [LINEN], {})
    assert all(f"'set_{i}/'" in str(caught.value) for i in range(count))


# What is said of names of no layout


@pytest.mark.parametrize(
    ("count", "shown"),
    [(1, "found a0."), (4, "found a0, a1, a2, a3."), (5, "found a0, a1, a2, a3 and 1 more."), (7, "a3 and 3 more.")],
)
def test_four_of_the_names_are_shown_and_the_others_counted(count: Any, shown: Any) -> None:
    with pytest.raises(LayoutError, match=f"of no known layout: .*{shown} If they are of a Mixer, write") as caught:
        detect([f"a{i}" for i in range(count)][::-1], LAYOUTS.values(), {})
    assert "nearest" not in str(caught.value)


def test_the_nearest_layout_is_the_one_with_most_names() -> None:
    names = {"blocks.0.norm1.weight", "MixerBlock_0/LayerNorm_0/scale", "MixerBlock_0/LayerNorm_0/bias"}
    for order in (1, -1):
        said = (
            r"linen, of whose 1-block names 2 are here and 14 are not, such as stem/kernel, stem/bias and 12 more; not "
        )
        with pytest.raises(LayoutError, match=rf"The nearest is {said}of it are blocks\.0\.norm1\.weight\."):
            detect(names, [LINEN, LAYOUTS["timm"]][::order], {})


@pytest.mark.parametrize(
    ("blocks", "said"),
    [([6, 7, 8], "9-block names 42 are here and 72 are not"), ([11], "1-block names 0 are here and 18 are not")],
)
def test_a_depth_of_over_four_times_the_blocks_is_not_tried(blocks: Any, said: Any) -> None:
    names = names_of(LINEN, blocks)
    with pytest.raises(LayoutError, match=f"The nearest is linen, of whose {said}"):
        detect(names, [LINEN], {})
