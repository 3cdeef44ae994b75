"""Check that arrays fill a layout exactly: every array used once, every parameter present, in its shape.

All problems come in one error. Knows no file and reads no array. Start at `check`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from mixer_equiv.arrays.interop import DTYPES
from mixer_equiv.arrays.lazy import Spec
from mixer_equiv.checkpoints.advice import MAX_COMPARED, Guesses, globs_of, guess_in_layout
from mixer_equiv.checkpoints.other_forms import form_of
from mixer_equiv.checkpoints.renaming import rename_parts
from mixer_equiv.config import AXES, MixerConfig
from mixer_equiv.errors import MAX_LISTED, ConversionError, InexpressibleError
from mixer_equiv.layouts import LINEN, Binding, Layout
from mixer_equiv.layouts.base import Shape, fill
from mixer_equiv.layouts.families import Family, family_of


@dataclasses.dataclass(frozen=True)
class Expected:
    """The Mixer whose parameters some arrays are to be.

    `is_stated` tells a config that was not inferred from them, and `given` has the names in the file of its parameters.
    """

    layout: Layout
    config: MixerConfig
    is_stated: bool
    given: Collection[str]

    def shape(self, binding: Binding) -> Shape | None:
        """The shape of a parameter; None for the head of a model that is stated to have none."""
        headless = self.is_stated and not self.config.num_classes
        return None if headless and binding.row.in_head else binding.shape(self.config.axis_sizes)


class Filled(NamedTuple):
    """The parameters that are present, by canonical name, and notes on what was left out."""

    present: dict[str, Binding]
    notes: list[str]


@dataclasses.dataclass
class _Problems:
    """Names in the layout, each with what was found and expected, in words."""

    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    unexpected: dict[str, str] = dataclasses.field(default_factory=dict)
    mis_shaped: dict[str, str] = dataclasses.field(default_factory=dict)
    mis_typed: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def by_kind(self) -> dict[str, dict[str, str]]:
        """The problems by their kinds in words, in the order of a message."""
        return {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "mis-shaped": self.mis_shaped,
            "mis-typed": self.mis_typed,
        }

    def __bool__(self) -> bool:
        return any(self.by_kind.values())


def check(
    specs: Mapping[str, Spec],
    expected: Expected,
    *,
    source: str,
    target: Layout | None,
    allow_missing: Collection[str],
) -> Filled:
    """Do what `Checkpoint.check` says, for arrays of these `specs`."""
    layout, depth = expected.layout, expected.config.num_blocks
    bindings = layout.bindings(depth)
    targets = target.bindings(depth) if target else {}
    allowed = matching(allow_missing, bindings)
    problems = _strangers(specs, layout.parameters(depth))
    filled = Filled({}, [])
    for canonical, binding in bindings.items():
        found = specs[binding.foreign].shape if binding.foreign in specs else None
        wanted = expected.shape(binding)
        if binding.is_absent or (found == wanted and found is not None):
            filled.present[canonical] = binding
        elif found != wanted:
            words = _mismatch(expected, binding, targets.get(canonical), found)
            if canonical in allowed:
                filled.notes.append(f"left out: {binding.foreign}, {words}")
            elif found is None:
                problems.missing[binding.foreign] = words
            elif wanted is None:
                problems.unexpected[binding.foreign] = words
            else:
                problems.mis_shaped[binding.foreign] = words
    if problems:
        if expected.is_stated:
            source += ", with the config that was given or is in its metadata,"
        raise _error(source, layout, depth, problems, specs, expected.config.axis_sizes, expected.given)
    _leave_out_half_a_head(bindings, filled)
    return filled


def _strangers(specs: Mapping[str, Spec], own: Mapping[str, Binding]) -> _Problems:
    """Arrays that are no parameters of the layout, and those of a dtype that no parameter may have."""
    problems = _Problems()
    for name, spec in specs.items():
        if name not in own:
            problems.unexpected[name] = f"found {spec.shape} {spec.dtype}"
        elif str(spec.dtype) not in DTYPES:
            problems.mis_typed[name] = f"found {spec.dtype}, expected one of {', '.join(DTYPES)}"
    return problems


def _leave_out_half_a_head(bindings: Mapping[str, Binding], filled: Filled) -> None:
    """Without its kernel or its bias, a head is left out whole."""
    head = [binding for binding in bindings.values() if binding.row.in_head]
    if all(binding.canonical in filled.present for binding in head):
        return
    for binding in head:
        if filled.present.pop(binding.canonical, None) and not binding.is_absent:
            filled.notes.append(f"left out: {binding.foreign}, since the rest of the head is absent")


def check_writable(layout: Layout) -> None:
    """Raise `InexpressibleError` for a layout in which nothing is written."""
    if layout.read_only:
        raise InexpressibleError(
            f"nothing is written in the layout {layout.name}: {layout.read_only}", reasons=[layout.read_only]
        )


def count_misfits(layout: Layout, config: MixerConfig, specs: Mapping[str, Spec]) -> int:
    """Count arrays and parameters that a model of `config` would leave unused, unfilled or of another shape."""
    own = parameter_shapes(layout, config)
    unused = sum(name not in own for name in specs)
    return unused + sum(name not in specs or specs[name].shape != shape for name, shape in own.items())


def parameter_shapes(layout: Layout, config: MixerConfig) -> dict[str, Shape]:
    """The shape of every parameter of a model of `config`, by the layout's names."""
    bindings = layout.parameters(config.num_blocks).items()
    return {n: b.shape(config.axis_sizes) for n, b in bindings if config.num_classes or not b.row.in_head}


# Words


def _mismatch(expected: Expected, binding: Binding, target: Binding | None, found: Shape | None) -> str:
    """Say which shape was found and which was expected, also by the target's name of the parameter."""
    sizes = expected.config.axis_sizes
    parts = [] if found is None else [f"found {found}"]
    if expected.shape(binding) is None:
        parts.append("expected no head")
    else:
        of_target = f" for {target.foreign} {_shape_text(target, sizes)}" if target and not target.is_absent else ""
        parts.append(f"expected {_shape_text(binding, sizes)}{of_target}")
    return ", ".join(parts)


def _shape_text(binding: Binding, sizes: Mapping[str, int]) -> str:
    if binding.row.in_head and not sizes["classes"]:
        return _symbolic_text(binding.symbolic_shape({}))
    return str(binding.shape(sizes))


def _symbolic_text(shape: tuple[int | str, ...]) -> str:
    """A shape as Python writes it, with axis names unquoted."""
    return str(shape).replace("'", "")


def unknown_sizes_error(
    source: str, layout: Layout, depth: int, specs: Mapping[str, Spec], sizes: Mapping[str, int], given: Collection[str]
) -> ConversionError:
    """Make the error for arrays that do not show the size of every axis: all that is wrong, as far as `sizes` tell."""
    bindings = layout.parameters(depth)
    problems = _strangers({name: spec for name, spec in specs.items() if name not in bindings}, bindings)
    for name, binding in bindings.items():
        text = _symbolic_text(binding.symbolic_shape(sizes))
        if name not in specs:
            problems.missing[name] = f"expected {text}"
        elif not binding.may_have(specs[name].shape, sizes):
            problems.mis_shaped[name] = f"found {specs[name].shape}, expected {text}"
    if problems:
        return _error(source, layout, depth, problems, specs, sizes, given)
    unseen = ", ".join(axis for axis in AXES if axis not in sizes)
    return ConversionError(f"{source}: no array of the layout {layout.name} shows the size of {unseen}; give config=")


def _error(
    source: str,
    layout: Layout,
    depth: int,
    problems: _Problems,
    specs: Mapping[str, Spec],
    sizes: Mapping[str, int],
    given: Collection[str],
) -> ConversionError:
    lines = [f"{source} cannot fill the layout {layout.name} of {depth} blocks:"]
    for kind, items in problems.by_kind.items():
        listed = list(items.items())[:MAX_LISTED]
        lines += [f"  {kind}: {name}, {words}" for name, words in listed]
        if len(items) > len(listed):
            lines.append(f"  {kind}: and {len(items) - len(listed)} more")
    absent = _absent_blocks(layout, depth, specs)
    if absent:
        blocks = f"block{'s'[: len(absent) > 1]} {', '.join(absent)}"
        lines.append(f"  no array is of {blocks}; blocks are numbered from 0 on, without a gap")
    heads = {name for name, binding in layout.parameters(depth).items() if binding.row.in_head}
    if any(heads & items.keys() for items in problems.by_kind.values()):
        lines.append("  to leave the head out, pass allow_missing=['head/*'] (--allow-missing 'head/*')")
    keys = {
        "missing_keys": problems.missing,
        "unexpected_keys": problems.unexpected,
        "mismatched_keys": problems.mis_shaped | problems.mis_typed,
    }
    strangers = {name: specs[name] for items in problems.by_kind.values() for name in items if name in specs}
    tops = {_top(name) for name in layout.parameters(depth)}
    form = form_of({name: spec for name, spec in strangers.items() if _top(name) in tops})
    family = _family(layout, depth, problems, specs)
    reasons = _extras(problems)
    if form:
        lines.append(f"  {form}")
    elif family is not None:
        reasons.append(f"names of it are those of {family.words}")
    elif not reasons:
        guesses = guess_in_layout(layout, depth, {name: spec.shape for name, spec in specs.items()}, sizes)
        lines += _advice(layout, depth, problems, guesses, given)
        reasons = [] if guesses.renames else _reasons_inexpressible(layout, depth, problems, specs)
    if reasons:
        lines += [f"  no official Mixer is this: {reason}" for reason in reasons]
        return InexpressibleError("\n".join(lines), reasons=reasons, **keys)
    return ConversionError("\n".join(lines), **keys)


def _advice(layout: Layout, depth: int, problems: _Problems, guesses: Guesses, given: Collection[str]) -> list[str]:
    """Lines that say what to type: names that are probably renamed, and arrays to leave out."""
    lines = [f"  {line}" for line in guesses.in_words()]
    own = layout.parameters(depth)
    strangers = {name: name for name in problems.unexpected if name not in own}
    left = [name for new, name in rename_parts(strangers, guesses.renames).items() if new == name]
    if not left or len(left) > MAX_COMPARED or guesses.doubts:
        return lines
    starts = _starts_of_blocks(layout, depth)
    for names, words in (
        ([name for name in left if not name.startswith(starts)], "to leave out what is no part of the Mixer"),
        ([name for name in left if name.startswith(starts)], "only if the code of its blocks does not use these"),
    ):
        if names:
            globs = globs_of(names, [*own, *given])
            typed = " ".join(f"--ignore '{glob}'" for glob in globs)
            lines.append(f"  {words}, pass ignore={globs} ({typed})")
    if any(_SECOND_HEAD.search(name) for name in left):
        lines.append(
            "  a model that was distilled gives the mean of both its heads; without one it is another function"
        )
    return lines


_SECOND_HEAD = re.compile(r"(^|[./])head_dist([./]|$)")


def _starts_of_blocks(layout: Layout, depth: int) -> tuple[str, ...]:
    """How the names of all that is in a block begin."""
    matches = [re.match(r"[^{]*\{\d*i[^}]*\}[^./]*[./]", row.foreign) for row in layout.rows if row.in_block]
    return tuple({fill(match[0], i, depth) for match in matches if match for i in range(depth)})


# Parameters that change what a Mixer computes, by their names, and what they are.
_EXTRAS = {
    re.compile(r"(^|[./])(ls_?\d*[./](gamma|scale|weight)|gamma_\d|layer_?scale\w*)([./]|$)"): (
        "LayerScale, which no official block has; multiplied into the layer before it (kernel * gamma, bias * gamma) "
        "and left out, it is one"
    ),
    re.compile(r"(^|[./])(cls_token|class_token|dist_token)([./]|$)"): "a class token, which no official Mixer has",
    re.compile(r"(^|[./])(pos_?embed\w*|position_embedding\w*)([./]|$)"): (
        "a position embedding, which no official Mixer has; of zeros, it is left out with ignore= (--ignore)"
    ),
}


def _extras(problems: _Problems) -> list[str]:
    return [words for pattern, words in _EXTRAS.items() if any(map(pattern.search, problems.unexpected))]


def _family(layout: Layout, depth: int, problems: _Problems, specs: Mapping[str, Spec]) -> Family | None:
    """The other family that arrays are of, where blocks lack something; models beside these do not count."""
    parameters = layout.parameters(depth)
    lacking = [*problems.missing, *problems.mis_shaped]
    if not any(parameters[name].canonical.startswith("MixerBlock_") for name in lacking):
        return None
    tops = {_top(name) for name in parameters}
    return family_of({name: spec.shape for name, spec in specs.items() if _top(name) in tops})


def _top(name: str) -> str:
    return re.split(r"[./]", name)[0]


def _absent_blocks(layout: Layout, depth: int, specs: Mapping[str, Spec]) -> list[str]:
    """Numbers of the blocks of which no array is here."""
    present: dict[str, bool] = {}
    for name, binding in layout.parameters(depth).items():
        block = re.match(r"MixerBlock_(\d+)/", binding.canonical)
        if block and not binding.row.is_tied:
            present[block[1]] = present.get(block[1], False) or name in specs
    return [block for block, is_present in present.items() if not is_present]


def _reasons_inexpressible(layout: Layout, depth: int, problems: _Problems, specs: Mapping[str, Spec]) -> list[str]:
    """Say why no official Mixer computes what code with these parameters does, where the problems show that."""
    parameters = layout.parameters(depth)
    missing = {parameters[name].canonical for name in problems.missing}
    norms = [name for name in problems.mis_shaped if _is_of_layer_norm(parameters[name])]
    heads = tuple(re.sub(r"[^./]*$", "", name) for name, binding in parameters.items() if binding.row.in_head)
    deeper = [name for name in problems.unexpected if name.startswith(heads) and len(specs[name].shape) == 2]
    reasons = []
    if {name for name in missing if not name.startswith("head/")} == _FINAL_NORM:
        reasons.append("without a final LayerNorm: no scale and bias make the official one hand its input on")
    if any(len(specs[name].shape) == 2 for name in norms):
        reasons.append("a LayerNorm over tokens and channels: the official ones are over channels alone")
    if len(deeper) > 1:
        reasons.append(f"a head of {len(deeper)} layers: the official one is a single Dense")
    return reasons


_FINAL_NORM = {"pre_head_layer_norm/scale", "pre_head_layer_norm/bias"}

# Only LayerNorms have a scale.
_LAYER_NORMS = {row.canonical.removesuffix("/scale") for row in LINEN.rows if row.canonical.endswith("/scale")}


def _is_of_layer_norm(binding: Binding) -> bool:
    return binding.row.general.rpartition("/")[0] in _LAYER_NORMS


def matching(patterns: Collection[str], bindings: Mapping[str, Binding]) -> set[str]:
    """Canonical names that any of the globs matches, by canonical or by own name."""
    if isinstance(patterns, str):
        raise ConversionError(f"allow_missing is the string {patterns!r}; it must be a list of globs: [{patterns!r}]")
    allowed: set[str] = set()
    for pattern in patterns:
        matched = {
            canonical
            for canonical, binding in bindings.items()
            if fnmatch.fnmatchcase(canonical, pattern) or fnmatch.fnmatchcase(binding.foreign, pattern)
        }
        if not matched:
            names = list(bindings)
            raise ConversionError(
                f"allow_missing {pattern!r} matches no parameter; they are called {names[0]}, ..., {names[-1]}"
            )
        allowed |= matched
    return allowed
