"""Layouts of users: read from a dict or a TOML or JSON file, and checked row by row.

`Layout.to_toml` in `base` writes the same format.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mixer_equiv.errors import ConfigError, LayoutError
from mixer_equiv.layouts.base import ABSENT, ADVICE, NEUTRAL, Conventions, Layout, Row, axis_groups, fill
from mixer_equiv.layouts.official import LINEN

CANONICAL = {row.canonical: row for row in LINEN.rows}

_NAME = re.compile(r"[\w.-]+")
_PLACEHOLDER = re.compile(r"\{[^}]*\}?|\}")


def layout_from_file(path: Path, bases: Mapping[str, Layout]) -> Layout:
    """The layout in a .toml or .json file; `layout_from_dict` describes the fields.

    Raises `LayoutError`, naming the file, and the row where one is wrong.
    """
    parse: Callable[[str], Any] | None = {".toml": tomllib.loads, ".json": json.loads}.get(path.suffix.lower())
    if parse is None:
        raise LayoutError(f"{path} has the suffix {path.suffix!r}; a layout is described in a .toml or a .json file")
    try:
        fields = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LayoutError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise LayoutError(f"{path} is not {path.suffix[1:].upper()}: {error}") from error
    except RecursionError as error:
        raise LayoutError(f"{path} is nested too deeply for a layout") from error
    try:
        return layout_from_dict(fields, bases)
    except LayoutError as error:
        raise LayoutError(f"{path}: {error}") from None


def layout_from_dict(fields: Any, bases: Mapping[str, Layout]) -> Layout:
    """The layout with these fields of `Layout`.

    `rows` are lines of text: a canonical name, the layout's name, an einops pattern; or lists of these
    three, for names with white space. `base`, the name of another layout, gives fields and rows that
    are missing, and the pattern of a row that has names only.
    """
    if not isinstance(fields, Mapping):
        raise LayoutError(f"a layout is described by a table of fields; found {type(fields).__name__}")
    known = ["base", *(field.name for field in dataclasses.fields(Layout) if field.name not in _NOT_IN_FILES)]
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise LayoutError(f"a layout has no field {', '.join(map(repr, unknown))}; its fields are {', '.join(known)}")
    base = next((layout for name, layout in bases.items() if name == fields.get("base")), None)
    if base is None and "base" in fields:
        raise LayoutError(f"base is {fields['base']!r}; it must be one of {', '.join(bases)}")
    values = {name: value for name, value in fields.items() if name != "base"}
    for name in ("computes", "trained_with"):
        if name in values:
            values[name] = _conventions(name, values[name])
    values["rows"] = _rows(fields.get("rows", ""), base)
    values["aliases"] = fields.get("aliases", ())
    if isinstance(values["aliases"], list):
        values["aliases"] = tuple(values["aliases"])
    if "name" not in fields:
        raise LayoutError("the layout lacks a name: give one, such as name = 'ours'")
    if base is not None:
        changed = {
            "summary": f"{base.name}, as changed by its user",
            "advice": {},
        }  # advice names arguments of its code
        return check_layout(dataclasses.replace(base, **{**changed, **values}))
    missing = [name for name in ("framework", "computes", "rows") if name not in fields]
    if missing:
        raise LayoutError(f"the layout lacks {', '.join(missing)}; give them, or a base that has them")
    return check_layout(Layout(**{"summary": values["name"], "trained_with": None, "advice": {}, **values}))


_NOT_IN_FILES = ("provenance", "tidy", "read_only")


def check_layout(layout: Layout) -> Layout:
    """`layout`, with its rows in canonical order. Raises `LayoutError` that lists all problems of its fields and rows."""
    problems = list(_field_problems(layout))
    problems += _row_problems(layout.rows, layout.num_blocks if _is_depth(layout.num_blocks) else None)
    if not problems and layout.is_tied and layout.num_blocks is None:
        problems = ["no name has {i}, so all blocks are tied and names do not show how many: give num_blocks"]
    elif not problems and not layout.is_tied and layout.num_blocks is not None:
        problems = [f"num_blocks is {layout.num_blocks}, but names with {{i}} show the depth: leave it out"]
    if problems:
        raise LayoutError(
            "\n".join([f"the layout {layout.name!r} is wrong:", *(f"  {problem}" for problem in problems)])
        )
    order = list(CANONICAL)
    rows = tuple(sorted(layout.rows, key=lambda row: (order.index(row.general), _block_of(row))))
    return layout if rows == layout.rows else dataclasses.replace(layout, rows=rows)


def _block_of(row: Row) -> int:
    """The only block of a row; -1 for a row of all blocks or none, which comes first, so that later rows overrule it."""
    own = re.match(r"MixerBlock_(\d+)/", row.canonical)
    return int(own[1]) if own else -1


def _field_problems(layout: Layout) -> Iterator[str]:
    if not isinstance(layout.name, str) or not _NAME.fullmatch(layout.name):
        yield f"name is {layout.name!r}; it must be of letters, digits, '_', '-' and '.'"
    if layout.framework not in ("flax", "torch"):
        yield f"framework is {layout.framework!r}; it must be 'flax' or 'torch'"
    depth = layout.num_blocks
    if depth is not None and not _is_depth(depth):
        yield f"num_blocks is {depth!r}; it must be a whole number from 1 to {MAX_BLOCKS}"
    if not isinstance(layout.summary, str):
        yield f"summary is {layout.summary!r}; it must be a string"
    aliases = layout.aliases if isinstance(layout.aliases, tuple) else (None,)
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in aliases):
        yield f"aliases is {layout.aliases!r}; it must be a list of names like the layout's own"
    if not isinstance(layout.advice, Mapping) or not set(layout.advice) <= set(ADVICE):
        yield f"advice is {layout.advice!r}; it must have sentences for {' and '.join(ADVICE)}"
    elif not all(_is_template(sentence) for sentence in layout.advice.values()):
        yield f"advice is {dict(layout.advice)!r}; it may have in braces {', '.join(_ADVICE_FIELDS)}"


# No Mixer is near it, and tables are checked for each block.
MAX_BLOCKS = 10_000


def _is_depth(value: Any) -> bool:
    """Whether a value of a user's table can be a number of blocks."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_BLOCKS


_ADVICE_FIELDS = {
    "activation": "",
    "layer_norm_eps": 1.0,
    "padding": "",
    "torch_activation": "",
    "torch_activation_layer": "",
}


def _is_template(sentence: Any) -> bool:
    try:
        return isinstance(sentence, str) and bool(sentence.format_map(_ADVICE_FIELDS))
    except (KeyError, ValueError, IndexError, AttributeError, TypeError):
        return False


def _row_problems(rows: tuple[Row, ...], num_blocks: int | None) -> Iterator[str]:
    seen: dict[str, Row] = {}
    for row in rows:
        if not row.foreign:
            yield (
                f"row {row.canonical!r} has one column; it must have a canonical name, the layout's name, and a "
                "pattern such as 'hidden classes -> classes hidden'"
            )
        said = f"row {row.canonical}"
        for problem in _problems_of(row):
            yield f"{said}: {problem}"
        if row.canonical in seen:
            yield f"{said}: it is there twice"
        seen[row.canonical] = row
    headless = not any(name.startswith("head/") for name in seen)  # features alone are a model, too
    for canonical in CANONICAL:
        if headless and canonical.startswith("head/"):
            continue
        every = [canonical.replace("{i}", str(i)) for i in range(num_blocks or 0)]
        if canonical not in seen and not (every and seen.keys() >= set(every)):
            yield f"row {canonical}: it is missing; a bias or scale that the code does not have is called '{ABSENT}'"
    named = tuple(row for row in rows if row.foreign)
    yield from sharing_problems(named)
    names = {fill(row.foreign, 0, 12) for row in named if not row.is_absent}
    for row in named:
        above = next((str(p) for p in PurePosixPath(fill(row.foreign, 0, 12)).parents if str(p) in names), None)
        if above is not None:
            yield f"row {row.canonical}: {row.foreign} lies below {above}, which is an array and can hold none"


def _problems_of(row: Row) -> Iterator[str]:
    official = CANONICAL.get(row.general)
    if official is None:
        near = difflib.get_close_matches(row.canonical, CANONICAL, 1, 0)  # which finds one, however far
        yield f"no canonical parameter is called so; the nearest is {near[0]}"
        return
    if row.canonical_axes != official.canonical_axes:
        yield f"its axes before the arrow are {row.canonical_axes!r}; they must be {official.canonical_axes!r}"
        return
    names = [axis for axes in axis_groups(row.foreign_axes) for axis in axes]
    if row.pattern.count("->") > 1 or sorted(names) != sorted(official.canonical_axes.split()):
        yield (
            f"its axes {row.pattern.partition('->')[2].strip() or row.pattern!r} are not those of {official.canonical_axes!r} in some order, "
            "grouped by parentheses, with 1 where an axis of size 1 is added"
        )
    allowed = {"{L}", *(["{i}"] if row.in_block else [])}
    for found in _PLACEHOLDER.findall(row.foreign):
        if re.sub(r"\+\d+|(?<={)[1-9]\d*", "", found) not in allowed:
            known = " and ".join(sorted(allowed))
            yield f"{found} in its name; it may have {known}, either with a factor and an offset: {{2L+1}}"
    if row.is_absent and row.canonical.rpartition("/")[2] not in NEUTRAL:
        yield "a kernel cannot be absent: no values of it change nothing"


def sharing_problems(rows: Sequence[Row]) -> Iterator[str]:
    """Problems of rows with equal names: they must share the whole array, in every block."""
    holders: dict[str, Row] = {}
    for row, i in itertools.product(rows, range(12)):
        held = row.is_absent or holders.setdefault(fill(row.foreign, i, 12), row)
        if held is not True and held.foreign != row.foreign:
            yield f"row {row.canonical}: {row.foreign} is in some block what {held.canonical} is in another"
            holders = {name: row for name, other in holders.items() if other is not held}
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.foreign, row)
        if not row.is_absent and (row.foreign_axes, row.in_block) != (other.foreign_axes, other.in_block):
            differ = f"with other axes ({row.foreign_axes} and {other.foreign_axes})"
            if row.foreign_axes == other.foreign_axes:
                differ = "which is not in the blocks; only parameters in them, or only outside, can be in common"
            yield f"row {row.canonical}: {row.foreign} is also {other.canonical}, {differ}"


def _conventions(field: str, values: Any) -> Conventions:
    if not isinstance(values, Mapping):
        expected = "a table, such as {activation = 'gelu', layer_norm_eps = 1e-5}"
        raise LayoutError(f"{field} is {values!r}; it must be {expected}")
    try:
        return Conventions(**values)
    except (TypeError, ConfigError) as error:
        raise LayoutError(f"{field} is {dict(values)}, which are not conventions: {error}") from error


def _rows(lines: Any, base: Layout | None) -> tuple[Row, ...]:
    """Rows from lines of text, and the base's rows that they do not replace."""
    if isinstance(lines, str):
        lines = lines.strip().splitlines()
    if not isinstance(lines, list) or not all(isinstance(line, str) or _is_columns(line) for line in lines):
        raise LayoutError(f"rows is {lines!r}; it must be lines of text, or a list of lines or of lists of three texts")
    inherited = {row.canonical: row for row in base.rows} if base else {}
    lines = [line for line in lines if not isinstance(line, str) or (line.strip() and line.strip()[0] != "#")]
    given = [_row(line, {**CANONICAL, **inherited}) for line in lines]
    named = {row.canonical for row in given}
    return (*(row for row in inherited.values() if row.canonical not in named), *given)


def _is_columns(line: Any) -> bool:
    return isinstance(line, list) and len(line) == 3 and all(isinstance(column, str) for column in line)


def _row(line: str | list[str], known: Mapping[str, Row]) -> Row:
    if not isinstance(line, str):
        return Row(*line)
    canonical, *rest = line.split(maxsplit=2)
    pattern = rest[1] if len(rest) > 1 else known[canonical].pattern if canonical in known else ""
    return Row(canonical, rest[0] if rest else "", pattern)
