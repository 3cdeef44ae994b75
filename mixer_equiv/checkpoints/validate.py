"""Whether a checkpoint fills its layout exactly: every array used once, every parameter there."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from mixer_equiv.arrays.interop import DTYPES
from mixer_equiv.arrays.lazy import Spec
from mixer_equiv.config import AXES, MixerConfig
from mixer_equiv.errors import MAX_LISTED, ConversionError, InexpressibleError
from mixer_equiv.layouts import Binding, Layout

_Problems = dict[str, dict[str, str]]  # what is wrong, by kind and by name


class Expected(NamedTuple):
    """The Mixer whose parameters some arrays are to be: `is_stated` where its config was not inferred from them."""

    layout: Layout
    config: MixerConfig
    is_stated: bool


def check(
    specs: Mapping[str, Spec],
    expected: Expected,
    *,
    source: str,
    target: Layout | None,
    allow_missing: Collection[str],
) -> tuple[dict[str, Binding], list[str]]:
    """The parameters present, by canonical name, and notes on what was left out: see `Checkpoint.check`."""
    layout, depth = expected.layout, expected.config.num_blocks
    bindings = layout.bindings(depth)
    targets = target.bindings(depth) if target else {}
    allowed = _expand(allow_missing, bindings)
    own = layout.parameters(depth)
    strangers = {n: f"found {a.shape} {a.dtype}" for n, a in specs.items() if n not in own}
    mistyped = {n: _dtype_problem(a) for n, a in specs.items() if n in own and str(a.dtype) not in DTYPES}
    problems: _Problems = {"missing": {}, "unexpected": strangers, "mis-shaped": {}, "mis-typed": mistyped}
    present, notes = {}, []
    for canonical, binding in bindings.items():
        if binding.is_absent:
            present[canonical] = binding
            continue
        found = specs[binding.foreign].shape if binding.foreign in specs else None
        wanted = _expected_shape(expected, binding)
        if found == wanted and found is not None:
            present[canonical] = binding
        elif found != wanted:
            what = _explain(expected, binding, targets.get(canonical), found)
            if canonical in allowed:
                notes.append(f"left out: {binding.foreign}, {what}")
            else:
                kind = "missing" if found is None else "unexpected" if wanted is None else "mis-shaped"
                problems[kind][binding.foreign] = what
    if any(problems.values()):
        if expected.is_stated:
            source += ", with the config that was given or is in its metadata,"
        raise _error(source, layout, depth, problems, specs)
    head = [binding for binding in bindings.values() if binding.row.in_head]
    if any(binding.canonical not in present for binding in head):
        for binding in head:
            if present.pop(binding.canonical, None) and not binding.is_absent:
                notes.append(f"left out: {binding.foreign}, since the rest of the head is absent")
    return present, notes


def misfits(layout: Layout, config: MixerConfig, specs: Mapping[str, Spec]) -> int:
    """How many arrays and parameters a model of `config` would leave unfilled, unused or of another shape."""
    own = parameter_shapes(layout, config)
    return sum(name not in own for name in specs) + sum(
        name not in specs or specs[name].shape != shape for name, shape in own.items()
    )


def parameter_shapes(layout: Layout, config: MixerConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a model of `config`, by the layout's names."""
    bindings = layout.parameters(config.num_blocks).items()
    return {n: b.shape(config.axis_sizes) for n, b in bindings if config.num_classes or not b.row.in_head}


def _dtype_problem(array: Spec) -> str:
    return f"found {array.dtype}, expected one of {', '.join(DTYPES)}"


def _expected_shape(expected: Expected, binding: Binding) -> tuple[int, ...] | None:
    """The shape that the config gives a parameter; None for the head of a model stated to have none."""
    headless = expected.is_stated and not expected.config.num_classes
    return None if headless and binding.row.in_head else binding.shape(expected.config.axis_sizes)


def _explain(expected: Expected, binding: Binding, target: Binding | None, found: tuple[int, ...] | None) -> str:
    sizes = expected.config.axis_sizes
    parts = [] if found is None else [f"found {found}"]
    if _expected_shape(expected, binding) is None:
        parts.append("expected no head")
    else:
        wanted_for = ""
        if target is not None and not target.is_absent:
            wanted_for = f" for {target.foreign} {_shape_text(target, sizes)}"
        parts.append(f"expected {_shape_text(binding, sizes)}{wanted_for}")
    return ", ".join(parts)


def _shape_text(binding: Binding, sizes: Mapping[str, int]) -> str:
    if binding.row.in_head and not sizes["classes"]:
        return _tuple_text(binding.symbolic_shape({}))
    return str(binding.shape(sizes))


def without_sizes(
    source: str, layout: Layout, depth: int, arrays: Mapping[str, Spec], sizes: Mapping[str, int]
) -> ConversionError:
    """The error for arrays that do not even show every size: what is wrong with each, as far as that tells."""
    bindings = layout.parameters(depth)
    strangers = {n: f"found {a.shape} {a.dtype}" for n, a in arrays.items() if n not in bindings}
    problems: _Problems = {"missing": {}, "unexpected": strangers, "mis-shaped": {}}
    for name, binding in bindings.items():
        text = _tuple_text(binding.symbolic_shape(sizes))
        if name not in arrays:
            problems["missing"][name] = f"expected {text}"
        elif not binding.may_have(arrays[name].shape, sizes):
            problems["mis-shaped"][name] = f"found {arrays[name].shape}, expected {text}"
    if not any(problems.values()):
        unseen = ", ".join(axis for axis in AXES if axis not in sizes)
        return ConversionError(
            f"{source}: no array of the layout {layout.name} shows the size of {unseen}; give config="
        )
    return _error(source, layout, depth, problems, arrays)


def _tuple_text(shape: tuple[int | str, ...]) -> str:
    """A shape as Python writes it, with axis names unquoted."""
    return str(shape).replace("'", "")


def _error(source: str, layout: Layout, depth: int, problems: _Problems, specs: Mapping[str, Spec]) -> ConversionError:
    lines = [f"{source} cannot fill the layout {layout.name} of {depth} blocks:"]
    for kind, items in problems.items():
        shown = list(items.items())[:MAX_LISTED]
        lines += [f"  {kind}: {name}, {what}" for name, what in shown]
        if len(items) > len(shown):
            lines.append(f"  {kind}: and {len(items) - len(shown)} more")
    gaps = _without_blocks(layout, depth, specs)
    if gaps:
        lines.append(f"  no array is of {gaps}; blocks are numbered from 0 on, without a gap")
    heads = {name for name, binding in layout.parameters(depth).items() if binding.row.in_head}
    if any(heads & items.keys() for items in problems.values()):
        lines.append("  to leave the head out, pass allow_missing=['head/*'] (--allow-missing 'head/*')")
    keys = {
        "missing_keys": problems["missing"],
        "unexpected_keys": problems["unexpected"],
        "mismatched_keys": problems["mis-shaped"] | problems.get("mis-typed", {}),
    }
    reasons = _inexpressible(layout, depth, problems, specs)
    if reasons:
        lines += [f"  no official Mixer is this: {reason}" for reason in reasons]
        return InexpressibleError("\n".join(lines), reasons=reasons, **keys)
    return ConversionError("\n".join(lines), **keys)


def _without_blocks(layout: Layout, depth: int, specs: Mapping[str, Spec]) -> str:
    """The blocks of which nothing is here, "block 1" or "blocks 0, 1, 2", nothing where there are none."""
    here: dict[str, bool] = {}
    for name, binding in layout.parameters(depth).items():
        block = re.match(r"MixerBlock_(\d+)/", binding.canonical)
        if block and not binding.row.is_tied:
            here[block[1]] = here.get(block[1], False) or name in specs
    absent = [block for block, any_here in here.items() if not any_here]
    return f"block{'s'[: len(absent) > 1]} {', '.join(absent)}" if absent else ""


def _inexpressible(layout: Layout, depth: int, problems: _Problems, specs: Mapping[str, Spec]) -> list[str]:
    """Why no official Mixer computes what code with these parameters does, where the problems show that."""
    parameters = layout.parameters(depth)
    missing = {parameters[name].canonical for name in problems["missing"]}
    norms = [name for name in problems["mis-shaped"] if "orm" in parameters[name].canonical]
    heads = tuple(re.sub(r"[^./]*$", "", name) for name, binding in parameters.items() if binding.row.in_head)
    deeper = [name for name in problems["unexpected"] if name.startswith(heads) and len(specs[name].shape) == 2]
    reasons = []
    if {name for name in missing if not name.startswith("head/")} == _FINAL_NORM:
        reasons.append("without a final LayerNorm: no scale and bias make the official one hand its input on")
    if any(len(specs[name].shape) == 2 for name in norms):
        reasons.append("a LayerNorm over tokens and channels: the official ones are over channels alone")
    if len(deeper) > 1:
        reasons.append(f"a head of {len(deeper)} layers: the official one is a single Dense")
    return reasons


_FINAL_NORM = {"pre_head_layer_norm/scale", "pre_head_layer_norm/bias"}


def _expand(patterns: Collection[str], bindings: Mapping[str, Binding]) -> set[str]:
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
