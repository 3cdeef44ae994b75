"""Infer the layout, sizes and conventions of arrays by name, and the prefix behind which they stand.

Reads no array, and knows no file. Start at `infer`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import math
from collections.abc import Collection, Mapping
from typing import Any

from mixer_equiv.arrays.interop import NotAnArray, is_array, shapes_of
from mixer_equiv.arrays.lazy import LazyArrays
from mixer_equiv.arrays.stacking import split_stacks
from mixer_equiv.checkpoints import names, validate
from mixer_equiv.checkpoints.beside import Ignored, leave_out_data, leave_out_ignored
from mixer_equiv.checkpoints.metadata import Metadata
from mixer_equiv.checkpoints.other_forms import form_of, with_masks
from mixer_equiv.checkpoints.readings import ChosenReading, choose_reading
from mixer_equiv.checkpoints.renaming import rename_parts
from mixer_equiv.config import AXES, PATCH_AXES, MixerConfig, Size, config_from_axes, fitting_image_sizes, patch_columns
from mixer_equiv.errors import ConfigError, ConversionError, LayoutError, summarize
from mixer_equiv.layouts import LAYOUTS, Conventions, Layout, LayoutMatch, find_layout, get_layout
from mixer_equiv.layouts.detect import UnknownLayoutError


@dataclasses.dataclass(frozen=True)
class Statements:
    """Statements of the caller about arrays, and the metadata of their file.

    Messages call the arrays `source`. `prefix` tells which of several sets of weights is meant, `ignore` has globs of
    names that are left out, and `rename` what parts of names are called instead. `called` are names of files, folders
    and releases. `notes` are what the reader of the file noticed; errors repeat them. A field is None where the caller
    says nothing.
    """

    source: str
    metadata: Metadata
    layout: str | Layout | None = None
    config: MixerConfig | None = None
    image_size: Size | None = None
    trained_with: Conventions | None = None
    prefix: str | None = None
    ignore: Collection[str] = ()
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    called: Collection[str] = ()
    notes: Collection[str] = ()


@dataclasses.dataclass(frozen=True)
class Inferred:
    """The fields of `Checkpoint` of the same names."""

    arrays: LazyArrays
    layout: Layout
    config: MixerConfig
    trained_with: Conventions | None
    config_is_stated: bool
    notes: tuple[str, ...]
    image_size_is_assumed: bool
    assumed_from: str | None
    given: tuple[str, ...]


def infer(arrays: Mapping[str, Any], said: Statements) -> Inferred:
    """Find everything that a `Checkpoint` knows of its arrays. What is said outranks what they show."""
    _check_options(said)
    renamed = rename_parts(names.leaves_of(arrays), said.rename)
    ignored = leave_out_ignored(renamed, said.ignore)
    whole = with_masks(ignored.leaves)
    chosen = _choose(whole.leaves, said)
    match = chosen.match
    own, left_beside = names.strip_prefix(chosen.leaves, match.prefix, chosen.beside)
    behind_prefix = leave_out_ignored(own, said.ignore)
    own = behind_prefix.leaves
    notes = [f"{old} was read as {new or 'nothing'}, as told" for old, new in said.rename.items()]
    notes += [*whole.notes, *chosen.notes, *left_beside, *_notes_on_ignored(said, renamed, ignored, behind_prefix)]
    written = said.metadata.layout
    if said.layout is not None and written not in (None, match.layout.name):
        notes.append(f"it says of itself that its layout is {written}; it was read as {match.layout.name}, as told")
    elif written is not None and find_layout(written) is None:
        notes.append(f"it says of itself that its layout is {written!r}, which is not known; it is {match.layout.name}")
    weights, left_out = leave_out_data(own, match.layout.parameters(match.num_blocks))
    notes += left_out
    tidied = _tidy(match, split_stacks(weights, match.layout.depth_of_stack), notes)
    in_match = match.names
    given = tuple(given for name, given in chosen.given.items() if name in in_match)
    stated = _stated_config(said)
    trained_with = _trained_with(said, match.layout, notes)
    found = _resolve_config(stated, trained_with or match.layout.computes, _Arrays(match, tidied, given), said, notes)
    return Inferred(
        tidied,
        match.layout,
        found.config,
        trained_with,
        found.is_stated,
        tuple(notes),
        found.image_size_is_assumed,
        said.metadata.assumed_from if trained_with is not None and _is_written(said) else None,
        given,
    )


def _check_options(said: Statements) -> None:
    """Raise `ConfigError` for options of another type than they have."""
    texts = [*said.rename, *said.rename.values()] if isinstance(said.rename, Mapping) else [None]
    for option, value, is_right in (
        ("prefix", said.prefix, said.prefix is None or isinstance(said.prefix, str)),
        ("rename", said.rename, all(isinstance(text, str) for text in texts)),
        ("ignore", said.ignore, isinstance(said.ignore, Collection) and all(isinstance(g, str) for g in said.ignore)),
    ):
        if not is_right:
            expected = {"prefix": "a text", "rename": "a dict of texts", "ignore": "a list of globs"}[option]
            raise ConfigError(f"{option} is {value!r}; it must be {expected}")


def _notes_on_ignored(said: Statements, leaves: Mapping[str, Any], *ignored: Ignored) -> list[str]:
    """Note what was left out as told. Raises `ConversionError` for a glob that matches no name."""
    for glob in set(said.ignore).difference(*(one.globs for one in ignored)):
        shown = summarize(sorted(leaves))
        raise ConversionError(f"{said.source}: ignore {glob!r} (--ignore) matches no name; the names are {shown}")
    left_out = [name for one in ignored for name in one.names]
    return [f"left out, as told: {summarize(left_out)}"] if left_out else []


def _choose(leaves: Mapping[str, Any], said: Statements) -> ChosenReading:
    """Choose a reading in the layout that the caller names, else in the one that the metadata name, else in any."""
    if said.layout is not None:
        return _choose_in(leaves, get_layout(said.layout), said)
    written, known = said.metadata.layout, find_layout(said.metadata.layout)
    if known is not None:
        with contextlib.suppress(LayoutError):
            return choose_reading(leaves, [known], said.prefix)
    try:
        chosen = choose_reading(leaves, LAYOUTS.values(), said.prefix)
        if written is None or known is not None or not chosen.match.absent:
            return chosen
        problem = f"not all of its names are of {chosen.match.layout.name}, the nearest known layout"
    except LayoutError as error:
        problem = str(error)
        arrays = LazyArrays({name: leaf for name, leaf in leaves.items() if is_array(leaf)})
        if isinstance(error, UnknownLayoutError) and (form := form_of(arrays.specs)):
            problem = f"{form}; {problem}"
    if written is not None and known is None:
        problem += f"; it was written in the layout {written!r}: register that first (--layout FILE)"
    raise LayoutError("; ".join([f"{said.source}: {problem}", *_objects_in_words(leaves), *said.notes]))


def _objects_in_words(leaves: Mapping[str, Any]) -> list[str]:
    """What stands in the place of arrays, where there are none."""
    if any(map(is_array, leaves.values())):
        return []
    objects: dict[str, str] = {}
    for name, leaf in leaves.items():
        if isinstance(leaf, NotAnArray):
            objects.setdefault(leaf.what, name)
    return [f"{name} is {what}" for what, name in objects.items()]


def _choose_in(leaves: Mapping[str, Any], layout: Layout, said: Statements) -> ChosenReading:
    try:
        return choose_reading(leaves, [layout], said.prefix)
    except LayoutError as error:
        problem = str(error)
    with contextlib.suppress(LayoutError):
        likely = choose_reading(leaves, LAYOUTS.values(), said.prefix).match.layout.name
        problem = f"the arrays are not of the layout {layout.name}, but by their names of {likely}"
    raise LayoutError(f"{said.source}: {problem}")


def _tidy(match: LayoutMatch, leaves: Mapping[str, Any], notes: list[str]) -> LazyArrays:
    """Bring arrays of old files to the names and shapes of the layout's table, if the layout knows how."""
    if match.layout.tidy is None:
        return LazyArrays(leaves)
    shapes = shapes_of(leaves)
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


# Conventions


def _is_written(said: Statements) -> bool:
    """Whether the conventions of training are those that the metadata state."""
    return said.config is None and said.trained_with is None and said.metadata.states_trained_with


def _trained_with(said: Statements, layout: Layout, notes: list[str]) -> Conventions | None:
    """The conventions of training, by the caller, else by the metadata, the names of files and releases, the layout."""
    if said.config is not None:
        return Conventions(said.config.activation, said.config.layer_norm_eps, layout.computes.padding)
    written = said.metadata.trained_with  # checked even where it is overruled
    if said.trained_with is not None:
        return said.trained_with
    if _is_written(said):
        return written
    return _trained_with_by_name(said.called, layout, notes)


def _trained_with_by_name(called: Collection[str], layout: Layout, notes: list[str]) -> Conventions | None:
    for name in called:
        for glob, conventions in layout.provenance.items():
            if fnmatch.fnmatchcase(name, glob):
                notes.append(
                    f"by its name, {name}, it was trained with {conventions.activation} and LayerNorm eps "
                    f"{conventions.layer_norm_eps:g}"
                )
                return conventions
    return layout.trained_with


# Config


@dataclasses.dataclass(frozen=True)
class _Arrays:
    """The arrays of a layout, and the sizes that they show."""

    match: LayoutMatch
    arrays: LazyArrays
    given: tuple[str, ...]

    @property
    def layout(self) -> Layout:
        return self.match.layout

    @property
    def depth(self) -> int:
        return self.match.num_blocks

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes by axis, where the arrays show them."""
        return self.layout.axis_sizes(self.depth, {name: spec.shape for name, spec in self.arrays.specs.items()})


@dataclasses.dataclass(frozen=True)
class _FoundConfig:
    config: MixerConfig
    is_stated: bool
    image_size_is_assumed: bool


def _stated_config(said: Statements) -> MixerConfig | None:
    """The config that is given, else that of the metadata, with the conventions that the caller names."""
    if said.config is not None:
        return said.config
    written = said.metadata.config
    if written is None or said.trained_with is None:
        return written
    return written.replace(activation=said.trained_with.activation, layer_norm_eps=said.trained_with.layer_norm_eps)


def _resolve_config(
    stated: MixerConfig | None, computed: Conventions, arrays: _Arrays, said: Statements, notes: list[str]
) -> _FoundConfig:
    """Take the stated config, unless it is of the metadata and the arrays have outgrown it; else read it off them."""
    try:
        if stated is None:
            found = _config_of_shapes(computed, arrays, said, notes)
        else:
            outgrown = None if said.config is not None else _outgrown(stated, arrays, said, notes)
            found = outgrown or _as_stated(stated, said)
    except ConfigError as error:
        raise ConfigError(f"{said.source}: {error}") from None
    if found.image_size_is_assumed:
        grid, image = ("x".join(map(str, pair)) for pair in (found.config.grid_hw, found.config.image_hw))
        notes.append(f"{found.config.num_tokens} tokens are taken as {grid}, an image of {image}")
    return found


def _as_stated(stated: MixerConfig, said: Statements) -> _FoundConfig:
    if said.image_size is not None:
        return _FoundConfig(stated.resized(said.image_size), True, False)
    return _FoundConfig(stated, True, said.config is None and bool(said.metadata.image_size_is_assumed))


def _config_of_shapes(computed: Conventions, arrays: _Arrays, said: Statements, notes: list[str]) -> _FoundConfig:
    """Read the config off the shapes. A stem of columns is split into the likeliest patch."""
    sizes = arrays.sizes
    shown = {*sizes, *(PATCH_AXES if patch_columns(sizes) else ())}
    if not shown >= set(AXES) - {"classes"}:
        raise validate.unknown_sizes_error(
            said.source, arrays.layout, arrays.depth, arrays.arrays.specs, sizes, arrays.given
        )
    config = config_from_axes(
        sizes,
        arrays.depth,
        image_size=said.image_size,
        activation=computed.activation,
        layer_norm_eps=computed.layer_norm_eps,
    )
    notes += _notes_on_patch(sizes, config)
    written = said.metadata.image_size_is_assumed
    return _FoundConfig(config, False, said.image_size is None and written is not False)


def _outgrown(stated: MixerConfig, arrays: _Arrays, said: Statements, notes: list[str]) -> _FoundConfig | None:
    """The config that the arrays show, if more of them fit it than fit the metadata's; else None.

    Whoever puts a new head on in torch, and saves again, keeps the metadata of what was loaded. Its conventions still
    hold then, and so do image size and patch where they fit. Where arrays are missing, the metadata tell so, and stand.
    """
    if not validate.parameter_shapes(arrays.layout, stated).keys() <= arrays.arrays.keys():
        return None
    sizes, old = arrays.sizes, stated.axis_sizes
    if patch_columns(sizes) == math.prod(old[axis] for axis in PATCH_AXES):
        sizes.update({axis: old[axis] for axis in PATCH_AXES})
    image_size = said.image_size
    try:
        if image_size is None and not said.metadata.image_size_is_assumed:
            fits = stated.image_hw in fitting_image_sizes(sizes["tokens"], (sizes["ph"], sizes["pw"]))
            image_size = stated.image_hw if fits else None
        config = config_from_axes(
            sizes,
            arrays.depth,
            image_size=image_size,
            activation=stated.activation,
            layer_norm_eps=stated.layer_norm_eps,
        )
    except (ConfigError, KeyError):
        return None
    specs = arrays.arrays.specs
    if validate.count_misfits(arrays.layout, config, specs) >= validate.count_misfits(arrays.layout, stated, specs):
        return None
    was, now = ({"num_blocks": one.num_blocks, **one.axis_sizes} for one in (stated, config))
    changed = [f"{name} {was[name]}, now {now[name]}" for name in was if was[name] != now[name]]
    notes.append(f"the sizes in the file's metadata are not those of its arrays, which are taken: {'; '.join(changed)}")
    notes += _notes_on_patch(sizes, config)
    return _FoundConfig(config, False, image_size is None)


def _notes_on_patch(sizes: Mapping[str, int], config: MixerConfig) -> list[str]:
    """Say how a stem was split of which the arrays show the columns alone."""
    if sizes.keys() >= set(PATCH_AXES):
        return []
    columns, patch = patch_columns(sizes), "x".join(map(str, config.patch_hw))
    return [f"the stem's {columns} columns are taken as patches of {patch} with {config.in_channels} channels"]
