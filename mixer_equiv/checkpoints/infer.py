"""What arrays by name are: which layout, behind which prefix, of which sizes and conventions."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import math
from collections.abc import Collection, Mapping
from typing import Any

from mixer_equiv.arrays.interop import flatten, is_array
from mixer_equiv.arrays.lazy import LazyArrays
from mixer_equiv.arrays.stacking import split_stacks
from mixer_equiv.checkpoints import names, validate
from mixer_equiv.checkpoints.metadata import Metadata
from mixer_equiv.config import AXES, PATCH_AXES, MixerConfig, Size, config_from_axes, fitting_image_sizes, patch_columns
from mixer_equiv.errors import ConfigError, LayoutError
from mixer_equiv.layouts import LAYOUTS, Conventions, Layout, LayoutMatch, detect, find_layout, get_layout


@dataclasses.dataclass(frozen=True)
class Statements:
    """What is said about arrays by whoever passes them on, and by the metadata of the file they are from.

    `prefix` says which set of weights is meant, `called` are names of files, folders and releases.
    """

    metadata: Metadata
    layout: str | Layout | None = None
    config: MixerConfig | None = None
    image_size: Size | None = None
    trained_with: Conventions | None = None
    prefix: str | None = None
    called: Collection[str] = ()


@dataclasses.dataclass(frozen=True)
class Found:
    """What `Checkpoint` says of the same names."""

    arrays: LazyArrays
    layout: Layout
    config: MixerConfig
    trained_with: Conventions | None
    config_is_stated: bool
    notes: tuple[str, ...]
    image_size_is_assumed: bool


def find(arrays: Mapping[str, Any], said: Statements, source: str) -> Found:
    """The work of `Checkpoint.from_arrays`; none of the arrays is read."""
    leaves = dict(flatten(arrays))
    chosen = names.below(leaves, said.prefix, source)
    shapes = {name: tuple(leaf.shape) for name, leaf in chosen.items() if is_array(leaf)}
    match = _detect(shapes, said.layout, source, said.metadata.layout)
    own, notes = names.strip_prefix(chosen, match.prefix, [name for name in leaves if name not in chosen])
    written = said.metadata.layout
    if said.layout is not None and written not in (None, match.layout.name):
        notes.append(f"it says of itself that its layout is {written}; it was read as {match.layout.name}, as told")
    tidied = _tidy(match, split_stacks(own, match.layout.depth_of_stack), notes)
    stated, trained_with = _conventions(said, match.layout, notes)
    computed = trained_with or match.layout.computes
    if stated is not None and said.config is None:
        stated, said, computed = _unless_outgrown(stated, said, computed, match, tidied, notes)
    config, assumed = _config(match, tidied, stated, said, computed, source, notes)
    return Found(tidied, match.layout, config, trained_with, stated is not None, tuple(notes), assumed)


def _detect(
    shapes: Mapping[str, tuple[int, ...]], layout: str | Layout | None, source: str, written: str | None
) -> LayoutMatch:
    """The layout found, or the given one if it is there, as `detect` tells.

    `written` is the layout's name in the file's metadata; it settles what names leave open.
    """
    known = list(LAYOUTS.values())
    own = find_layout(written)
    if layout is None and own is not None:
        with contextlib.suppress(LayoutError):
            return detect(shapes, [own], shapes)
    try:
        match = detect(shapes, known if layout is None else [get_layout(layout)], shapes)
        if layout is not None or written is None or own is not None or not match.absent:
            return match
        message = f"not all of its names are of {match.layout.name}, the nearest known layout"
    except LayoutError as error:
        message = str(error)
    if layout is None and written is not None and own is None:
        message += f"; it was written in the layout {written!r}: register that first (--layout FILE)"
    if layout is not None:
        with contextlib.suppress(LayoutError):
            likely = detect(shapes, known, shapes).layout.name
            message = f"the arrays are not of the layout {get_layout(layout).name}, but by their names of {likely}"
    raise LayoutError(f"{source}: {message}")


def _tidy(match: LayoutMatch, leaves: Mapping[str, Any], notes: list[str]) -> LazyArrays:
    """The arrays under the names and in the shapes of the layout's table, where it knows older ones."""
    if match.layout.tidy is None:
        return LazyArrays(leaves)
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items() if is_array(leaf)}
    changes = match.layout.tidy(match.layout, match.num_blocks, shapes)
    changed = [name for name, change in changes.items() if change != (name, shapes[name])]
    if changed:
        new, shape = changes[changed[0]]
        notes.append(
            f"{len(changed)} arrays are read under the current names and shapes, such as "
            f"{changed[0]} {shapes[changed[0]]} as {new} {shape}"
        )
    renamed = {changes[name][0] if name in changes else name: leaf for name, leaf in leaves.items()}
    return LazyArrays(renamed, dict(changes.values()))


def _conventions(said: Statements, layout: Layout, notes: list[str]) -> tuple[MixerConfig | None, Conventions | None]:
    """The config, and what the weights were trained with, as far as somebody says so.

    A config that is given states both; else the metadata speak, else the name, else the layout.
    """
    if said.config is not None:
        return said.config, Conventions(said.config.activation, said.config.layer_norm_eps, layout.computes.padding)
    stated, trained_with = said.metadata.config, said.metadata.trained_with
    if said.trained_with is not None:
        trained_with = said.trained_with
        stated = stated and stated.replace(
            activation=trained_with.activation, layer_norm_eps=trained_with.layer_norm_eps
        )
    elif not said.metadata.states_trained_with:
        trained_with = _by_name(said.called, layout, notes)
    return stated, trained_with


def _by_name(called: Collection[str], layout: Layout, notes: list[str]) -> Conventions | None:
    """What weights of this name were trained with, if the layout knows, else what its weights are."""
    for name in called:
        for glob, conventions in layout.provenance.items():
            if fnmatch.fnmatchcase(name, glob):
                notes.append(
                    f"by its name, {name}, it was trained with {conventions.activation} and LayerNorm eps "
                    f"{conventions.layer_norm_eps:g}"
                )
                return conventions
    return layout.trained_with


def _unless_outgrown(
    stated: MixerConfig,
    said: Statements,
    computed: Conventions,
    match: LayoutMatch,
    arrays: LazyArrays,
    notes: list[str],
) -> tuple[MixerConfig | None, Statements, Conventions]:
    """The metadata's config, or None where the sizes that the arrays show fit more of them.

    Whoever puts a new head on in torch, and saves again, keeps the metadata of what was loaded.
    Their conventions still hold then, and image size and patch where they fit. Where arrays are
    missing, it is the metadata that tell so.
    """
    if not validate.parameter_shapes(match.layout, stated).keys() <= arrays.keys():
        return stated, said, computed
    sizes = match.layout.axis_sizes(match.num_blocks, {name: spec.shape for name, spec in arrays.specs.items()})
    old = stated.axis_sizes
    if patch_columns(sizes) == math.prod(old[axis] for axis in PATCH_AXES):
        sizes.update({axis: old[axis] for axis in PATCH_AXES})
    told = dataclasses.replace(said, metadata=Metadata({}, said.metadata.source))
    try:
        if said.image_size is None and not said.metadata.image_size_is_assumed:
            fits = stated.image_hw in fitting_image_sizes(sizes["tokens"], (sizes["ph"], sizes["pw"]))
            told = dataclasses.replace(told, image_size=stated.image_hw if fits else None)
        seen = config_from_axes(sizes, match.num_blocks, image_size=told.image_size)
    except (ConfigError, KeyError):
        return stated, said, computed
    if validate.misfits(match.layout, seen, arrays.specs) >= validate.misfits(match.layout, stated, arrays.specs):
        return stated, said, computed
    was, now = ({"num_blocks": config.num_blocks, **config.axis_sizes} for config in (stated, seen))
    changed = [f"{name} {was[name]}, now {now[name]}" for name in was if was[name] != now[name]]
    notes.append(f"the sizes in the file's metadata are not those of its arrays, which are taken: {'; '.join(changed)}")
    return None, told, Conventions(stated.activation, stated.layer_norm_eps)


def _config(
    match: LayoutMatch,
    arrays: LazyArrays,
    stated: MixerConfig | None,
    said: Statements,
    computed: Conventions,
    source: str,
    notes: list[str],
) -> tuple[MixerConfig, bool]:
    """The config stated or read off the shapes, and whether its image size had to be assumed."""
    sizes = match.layout.axis_sizes(match.num_blocks, {name: spec.shape for name, spec in arrays.specs.items()})
    columns = None if sizes.keys() >= set(PATCH_AXES) else patch_columns(sizes)
    shown = {*sizes, *(PATCH_AXES if columns else ())}
    if stated is None and not shown >= set(AXES) - {"classes"}:
        raise validate.without_sizes(source, match.layout, match.num_blocks, arrays.specs, sizes)
    written = said.metadata.image_size_is_assumed
    assumed = said.config is None and said.image_size is None and (stated is None if written is None else written)
    try:
        if stated is None:
            config = config_from_axes(
                sizes,
                match.num_blocks,
                image_size=said.image_size,
                activation=computed.activation,
                layer_norm_eps=computed.layer_norm_eps,
            )
        else:
            config = stated if said.image_size is None else stated.resized(said.image_size)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    grid, image, patch = ("x".join(map(str, pair)) for pair in (config.grid_hw, config.image_hw, config.patch_hw))
    if stated is None and columns:
        notes.append(f"the stem's {columns} columns are taken as patches of {patch} with {config.in_channels} channels")
    if assumed:
        notes.append(f"{config.num_tokens} tokens are taken as {grid}, an image of {image}")
    return config, assumed
