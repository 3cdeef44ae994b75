"""Names and leading axes that libraries add: any composition over any layout is undone exactly, or refused."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer_equiv import Checkpoint, ConversionError, LayoutError
from mixer_equiv.arrays.interop import unflatten
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.layouts import LAYOUTS, LINEN, get_layout
from tests.support.checkpoints import CONFIG
from tests.support.files import changed

Arrays = dict[str, np.ndarray]
NATURAL = ("torch-linear-conv1d-conv1d", "torch-linear_channels_first-shared_conv-linear")


@cache
def truth(layout: str) -> Mapping[str, np.ndarray]:
    return relabel(random_params(CONFIG, 0), LINEN, get_layout(layout), CONFIG)


def parts_of(name: str) -> list[str]:
    """Parts of a name, each with the separator behind it."""
    return re.findall(r"[^./]+[./]?", name)


# What libraries do. Each takes arrays by name, and a random generator for what is free.


def wrapped(part: str) -> Callable[[Arrays, Any], Arrays]:
    def wrap(arrays: Arrays, rng: Any) -> Arrays:
        depth = int(rng.integers(0, 5))
        separator = "." if any("." in name for name in arrays) else "/"
        result = {}
        for name, array in arrays.items():
            parts = parts_of(name)
            at = min(depth, len(parts) - 1)
            result["".join([*parts[:at], part, separator, *parts[at:]])] = array
        return result

    return wrap


def boxed(key: str) -> Callable[[Arrays, Any], Arrays]:
    def box(arrays: Arrays, rng: Any) -> Arrays:
        separator = "." if any("." in name for name in arrays) else "/"
        return {f"{name}{separator}{key}": array for name, array in arrays.items()}

    return box


def transformed(transform: str) -> Callable[[Arrays, Any], Arrays]:
    """The names of classes of Flax, which have numbers, begin with the transform."""

    def change(arrays: Arrays, rng: Any) -> Arrays:
        chosen = ["MixerBlock", "LayerNorm", "Dense"][int(rng.integers(0, 3))]
        pattern = re.compile(rf"(?:^|(?<=[./]))(?=(?:[A-Z][a-z_]+)*{chosen}_\d+(?:[./]|$))")
        return {pattern.sub(transform, name): array for name, array in arrays.items()}

    return change


def replicated(arrays: Arrays, rng: Any) -> Arrays:
    devices = int(rng.choice([1, 2, 8]))
    return {name: np.stack([array] * devices) for name, array in arrays.items()}


def separated(old: str, new: str) -> Callable[[Arrays, Any], Arrays]:
    return lambda arrays, rng: {name.replace(old, new): array for name, array in arrays.items()}


def as_keystr(arrays: Arrays, rng: Any) -> Arrays:
    return {"".join(f"['{part}']" for part in name.split("/")): array for name, array in arrays.items()}


def as_tuple(arrays: Arrays, rng: Any) -> Arrays:
    return {str(tuple(re.split(r"[./]", name))): array for name, array in arrays.items()}


def nested(arrays: Arrays, rng: Any) -> Any:
    return unflatten(arrays)


def with_tuples(arrays: Arrays, rng: Any) -> Any:
    return {tuple(re.split(r"[./]", name)): array for name, array in arrays.items()}


def stacked(layout: str) -> Callable[[Arrays, Any], Arrays]:
    """The blocks' parameters, which are under their numbers in `layout`, in one array each."""

    def stack(arrays: Arrays, rng: Any) -> Arrays:
        place = ["ScanMixerBlock_0", "blocks", "encoder/layers"][int(rng.integers(0, 3))]
        bindings = get_layout(layout).bindings(CONFIG.num_blocks)
        parts: dict[str, list[np.ndarray]] = {}
        result = {}
        for name, array in arrays.items():
            (canonical,) = [b.canonical for b in bindings.values() if b.foreign == name]
            if not canonical.startswith("MixerBlock_"):
                result[name] = array
                continue
            row = bindings[canonical].row.foreign
            start, rest = re.fullmatch(r"(.*?[^./]*\{\d*i[^}]*\}[^./]*[./])(.*)", row).groups()
            separator = start[-1]
            before = start[: start.rfind(separator, 0, -1) + 1]
            parts.setdefault(before + place.replace("/", separator) + separator + rest, []).append(array)
        return {**result, **{name: np.stack(arrays) for name, arrays in parts.items()}}

    return stack


WRAPPERS = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_module")
# In the order in which they can follow one another: the last ones leave no names to put anything into.
ENTRIES: dict[str, Any] = {
    "stacked": stacked,
    "replicated": replicated,
    **{name: transformed(name) for name in ("Checkpoint", "Remat", "Jit", "Scan")},
    **{part: wrapped(part) for part in WRAPPERS},
    **{key: boxed(key) for key in ("value", "raw_value")},
    "/ for .": separated(".", "/"),
    ". for /": separated("/", "."),
    "keystr": as_keystr,
    "text of tuples": as_tuple,
    "nested": nested,
    "tuples": with_tuples,
}
ORDER = list(ENTRIES)
ALONE = ("keystr", "text of tuples", "nested", "tuples")


@st.composite
def compositions(draw: st.DrawFn) -> tuple[str, list[str], int]:
    layout = draw(st.sampled_from([*LAYOUTS, *NATURAL]))
    entries = draw(st.lists(st.sampled_from(ORDER), min_size=1, max_size=3, unique=True))
    last = [entry for entry in entries if entry in ALONE][:1]
    chosen = sorted([entry for entry in entries if entry not in ALONE] + last, key=ORDER.index)
    return layout, chosen, draw(st.integers(0, 2**32 - 1))


def applied(layout: str, entries: list[str], seed: int) -> Any:
    rng = np.random.default_rng(seed)
    arrays: Any = dict(truth(layout))
    for entry in entries:
        change = ENTRIES[entry](layout) if entry == "stacked" else ENTRIES[entry]
        arrays = change(arrays, rng)
    return arrays


@given(compositions())
def test_any_composition_over_any_layout_is_undone_exactly(case: tuple[str, list[str], int]) -> None:
    layout, entries, seed = case
    tree = applied(layout, entries, seed)
    told = layout if layout in NATURAL else None
    found = Checkpoint.from_arrays(tree, layout=told, config=CONFIG)
    assert found.layout.name == {"nnx": "linen"}.get(layout, layout)
    assert changed(truth(layout), found.arrays) == []
    found.check()


# Ambiguity


@given(st.sets(st.integers(0, CONFIG.num_blocks - 1)), st.sampled_from(["Checkpoint", "Jit"]))
def test_blocks_of_two_classes_are_refused_unless_only_one_order_is_possible(chosen: set[int], transform: str) -> None:
    """Flax counts the modules of each class by themselves, so that their order in the model is lost."""
    numbers = {False: itertools.count(), True: itertools.count()}
    renamed = {
        f"MixerBlock_{i}": f"{transform if i in chosen else ''}MixerBlock_{next(numbers[i in chosen])}"
        for i in range(CONFIG.num_blocks)
    }
    arrays = {"/".join(renamed.get(part, part) for part in name.split("/")): a for name, a in truth("linen").items()}
    orders = len(list(itertools.combinations(range(CONFIG.num_blocks), len(chosen))))
    if orders == 1:
        assert changed(truth("linen"), Checkpoint.from_arrays(arrays, config=CONFIG).arrays) == []
        return
    with pytest.raises(
        LayoutError, match=rf"{transform}MixerBlock_0/\S+ and MixerBlock_0|MixerBlock_0/\S+ and {transform}"
    ):
        Checkpoint.from_arrays(arrays, config=CONFIG)
    back = {new: old for old, new in renamed.items() if new != old}
    assert changed(truth("linen"), Checkpoint.from_arrays(arrays, config=CONFIG, rename=back).arrays) == []


@pytest.mark.parametrize("entries", [["_orig_mod"], ["/ for ."], ["replicated"], ["value", "/ for ."]])
def test_a_layout_s_own_parts_are_no_wrappers(entries: list[str]) -> None:
    rows = tuple(
        dataclasses.replace(row, foreign=row.foreign.replace("mlp_tokens", "module.tok"))
        for row in LAYOUTS["timm"].rows
    )
    own = dataclasses.replace(LAYOUTS["timm"], name="own", aliases=(), rows=rows, provenance={})
    arrays: Any = {name.replace("mlp_tokens", "module.tok"): array for name, array in truth("timm").items()}
    expected = dict(arrays)
    for entry in entries:
        arrays = ENTRIES[entry](arrays, np.random.default_rng(3))
    assert changed(expected, Checkpoint.from_arrays(arrays, layout=own, config=CONFIG).arrays) == []


def stack_of(arrays: Mapping[str, np.ndarray], place: str, blocks: Iterable[int]) -> Arrays:
    rests = [name.partition("/")[2] for name in arrays if name.startswith("MixerBlock_0/")]
    return {f"{place}/{rest}": np.stack([arrays[f"MixerBlock_{i}/{rest}"] for i in blocks]) for rest in rests}


def without_blocks(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {name: array for name, array in arrays.items() if not name.startswith("MixerBlock_")}


def test_two_stacks_follow_one_another() -> None:
    arrays = truth("linen")
    halves = [stack_of(arrays, f"ScanMixerBlock_{i}", range(7 * i, 7 + 5 * i)) for i in range(2)]
    found = Checkpoint.from_arrays({**without_blocks(arrays), **halves[0], **halves[1]}, config=CONFIG)
    assert changed(arrays, found.arrays) == []


def test_a_stack_beside_a_block_of_the_same_name_is_refused() -> None:
    arrays = truth("linen")
    plain = {name: array for name, array in arrays.items() if name.startswith("MixerBlock_1/")}
    with pytest.raises(LayoutError, match=r"would be MixerBlock_1/\S+, which is another array here"):
        Checkpoint.from_arrays({**without_blocks(arrays), **stack_of(arrays, "blocks", range(12)), **plain})


def test_stacks_with_a_gap_between_their_numbers_are_refused() -> None:
    arrays = truth("linen")
    stacks = [stack_of(arrays, f"stage_{i}/blocks", range(4)) for i in (0, 1, 3)]
    with pytest.raises(LayoutError, match="no known layout"):
        Checkpoint.from_arrays({**without_blocks(arrays), **stacks[0], **stacks[1], **stacks[2]})


def test_copies_that_differ_are_refused_when_they_are_read() -> None:
    arrays = {name: np.stack([array, array]) for name, array in truth("timm").items()}
    arrays["head.bias"][1, 0] += 1
    found = Checkpoint.from_arrays(arrays, lazy=True)
    with pytest.raises(
        ConversionError, match=r"head\.bias has 2 arrays along its first axis, .* number 1 is not equal"
    ):
        found.arrays["head.bias"]
    assert found.arrays["head.weight"].tobytes() == truth("timm")["head.weight"].tobytes()
