"""Names of arrays as files hold them: separators, prefixes, and the boxes that libraries put around arrays.

Knows no layout. `layouts.detect` finds the prefix behind which a layout's names stand, whatever it is ("module.",
"state_dict/module._orig_mod.", "ema/"), and knows the keys below which an optimizer keeps its moments.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from mixer_equiv.arrays.interop import is_array, stored_dtype
from mixer_equiv.errors import MAX_LISTED, ConversionError, LayoutError, summarize

# Between the parts of a name: "/" between nested dicts, as in Flax, and "." between modules of torch.
NESTING = "/"
SEPARATORS = (NESTING, ".")

# The only key of a dict around an array, which no module has for a name: `nnx.State` and partitioned parameters.
BOXES = ("value",)


class Stripped(NamedTuple):
    """Leaves by their names behind a prefix, and notes on names that were stripped or left out."""

    leaves: dict[str, Any]
    notes: list[str]


def unbox(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Take from names the keys of `BOXES` that are alone around an array."""
    inside = Counter(str(parent) for name in arrays for parent in PurePosixPath(name).parents)
    return {
        parent if key in BOXES and inside[parent] == 1 else name: array
        for name, array in arrays.items()
        for parent, _, key in [name.rpartition(NESTING)]
    }


def select_below(leaves: Mapping[str, Any], prefix: str | None, source: str) -> Mapping[str, Any]:
    """Select the leaves under `prefix`, with or without the separator at its end; all of them for None.

    Raises `LayoutError`, which calls the checkpoint `source`, if there are none.
    """
    if prefix is None:
        return leaves
    for whole in (prefix, *(prefix + separator for separator in SEPARATORS)):
        inside = {name: leaf for name, leaf in leaves.items() if name.startswith(whole)}
        if inside and (whole == "" or whole[-1] in SEPARATORS):
            return inside
    tops = sorted({name.partition(NESTING)[0] for name in leaves})
    raise LayoutError(f"{source}: no array lies under the prefix {prefix!r}; at the top are {', '.join(tops[:8])}")


def strip_prefix(leaves: Mapping[str, Any], prefix: str, beside: list[str]) -> Stripped:
    """Take a prefix from the names behind which it stands, and leave other leaves out.

    `beside` are names already left out. Leaves beside the prefix's nesting are left out too, and so are
    single numbers beside a dotted prefix, such as the count of averages beside "module.": no parameter is
    one. Raises `ConversionError` for a name that is there both with and without the prefix.
    """
    nesting = prefix[: prefix.rfind(NESTING) + 1]
    apart = {n for n, leaf in leaves.items() if not n.startswith(prefix) and getattr(leaf, "shape", ()) == ()}
    inside = [name for name in leaves if name.startswith(nesting) and name not in apart]
    own = {name.removeprefix(prefix): leaves[name] for name in inside}
    if len(own) < len(inside):
        twice = sorted(name for name in inside if not name.startswith(prefix) and prefix + name in leaves)
        raise ConversionError(
            f"these are here both with and without the prefix {prefix!r}: {', '.join(twice[:MAX_LISTED])}",
            unexpected_keys=twice,
        )
    notes = []
    if prefix:
        notes.append(f"the prefix {prefix!r} was stripped from every name")
    beside = beside + [name for name in leaves if name not in inside]
    if beside:
        notes.append(f"left out beside {prefix!r}: {summarize(beside)}")
    return Stripped(own, notes)


def leave_out_data(leaves: Mapping[str, Any], parameters: Collection[str]) -> Stripped:
    """Leave out what cannot be a weight: leaves that are no arrays, and single whole numbers such as counts of steps.

    Those that have the name of one of `parameters` stay, so that an error tells what stands in its place.
    """
    data = [name for name, leaf in leaves.items() if name not in parameters and not _may_be_weight(leaf)]
    notes = [f"left out, since no weights can be: {summarize(data)}"] if data else []
    return Stripped({name: leaf for name, leaf in leaves.items() if name not in data}, notes)


def _may_be_weight(leaf: Any) -> bool:
    if not is_array(leaf):
        return False
    is_single = math.prod(leaf.shape) == 1 and len(leaf.shape) < 2
    return not (is_single and stored_dtype("", leaf).kind in "bui")


def rename_prefixes(names: Collection[str], prefixes: Mapping[str, str]) -> dict[str, str]:
    """Give each of `names` a new one, with the longest of `prefixes` that it begins with replaced, once.

    Raises `ConversionError` for a prefix that no name has, and for two names that become one.
    """
    result = {}
    for name in names:
        old = max((old for old in prefixes if name.startswith(old)), key=len, default=None)
        result[name] = name if old is None else prefixes[old] + name.removeprefix(old)
    for old in prefixes:
        if not any(name.startswith(old) for name in names):
            raise ConversionError(f"rename_prefix {old!r}: no name begins so; they begin as {next(iter(names), '')}")
    twice = [name for name, count in Counter(result.values()).items() if count > 1]
    if twice:
        raise ConversionError(f"rename_prefix makes several names the same: {', '.join(twice[:MAX_LISTED])}")
    empty = [name for name, new in result.items() if "" in new.split(NESTING)]
    if empty:
        raise ConversionError(f"rename_prefix leaves an empty name of {', '.join(empty[:MAX_LISTED])}")
    below = names_below_another(result.values())
    if below:
        listed = ", ".join(below[:MAX_LISTED])
        raise ConversionError(f"rename_prefix puts arrays below another, where no nested file can have both: {listed}")
    return result


def names_below_another(names: Iterable[str]) -> list[str]:
    """Find names of which another is a parent, as "a/b" is of "a/b/c": no nested dict has both."""
    names = set(names)
    return sorted(name for name in names if any(parent in names for parent in _parents(name)))


def _parents(name: str) -> list[str]:
    parts = name.split(NESTING)
    return [NESTING.join(parts[:end]) for end in range(1, len(parts))]
