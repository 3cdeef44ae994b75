"""Names of arrays as files hold them: separators, prefixes, and what libraries put into names and around arrays.

`ENTRIES` is the table of what can be undone name by name; `readings` undoes what only layouts and shapes show:
separators, stacks of blocks, and copies for several devices. Knows no layout. `layouts.detect` finds the prefix behind
which a layout's names stand, whatever it is ("module.", "state_dict/module._orig_mod.", "ema/"), and knows the keys
below which an optimizer keeps its moments.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mixer_equiv.arrays.interop import flatten, is_array
from mixer_equiv.errors import MAX_LISTED, ConversionError, LayoutError, summarize

# Between the parts of a name: "/" between nested dicts, as in Flax, and "." between modules of torch.
NESTING = "/"
SEPARATORS = (NESTING, ".")

# Parts of names that libraries add for a module around another, and who adds them.
WRAPPERS: Mapping[str, str] = {
    "_orig_mod": "torch.compile",
    "module": "DataParallel, DistributedDataParallel or AveragedModel",
    "_checkpoint_wrapped_module": "torch's activation checkpointing",
    "_fsdp_wrapped_module": "FSDP",
    "_fpw_module": "FSDP before torch 2.0",
    "_forward_module": "Lightning Fabric",
    "_module": "Opacus",
    "_mapping": "a pickled nnx.State",
}

# The last part of the name of an array that is alone in an object around it, and which objects these are.
BOXES: Mapping[str, str] = {
    "value": "nn.Partitioned or an nnx.Variable",
    "raw_value": "an nnx.Variable",
    "_raw_value": "a pickled nnx.Variable",
}

# How the class of a module of Flax begins that a transform made, and the transform.
TRANSFORMS: Mapping[str, str] = {
    "Checkpoint": "nn.remat",
    "Remat_scan": "nn.remat_scan",
    "Remat": "nn.remat",
    "Scan": "nn.scan",
    "Jit": "nn.jit",
    "Map_variables": "nn.map_variables",
}


class Stripped(NamedTuple):
    """Leaves by their names behind a prefix, and notes on names that were stripped or left out."""

    leaves: dict[str, Any]
    notes: list[str]


# Trees


def leaves_of(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Leaves of nested mappings by flat names, each taken out of the box that an object of Flax is around an array.

    Raises `ConversionError` for two leaves of one name.
    """
    leaves: dict[str, Any] = {}
    for name, leaf in flatten(tree):
        if name in leaves:
            raise ConversionError(f"two arrays have the name {name}, one of them by a key that holds {NESTING!r}")
        leaves[name] = _unboxed(leaf)
    return leaves


def as_tree(params: Any) -> Mapping[Any, Any]:
    """`params` as a mapping, also where it is a sequence of paths and leaves, as `nnx.to_flat_state` gives.

    Raises `ConversionError` for anything else.
    """
    if isinstance(params, Mapping):
        return params
    pairs = list(params) if isinstance(params, Sequence) and not isinstance(params, str | bytes) else []
    if pairs and all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], tuple) for pair in pairs):
        return dict(pairs)
    raise ConversionError(
        f"found a {type(params).__name__}; expected arrays by name, such as model.state_dict() or Flax params"
    )


def _unboxed(leaf: Any) -> Any:
    """The array in an object of Flax around it, such as `nn.Partitioned`."""
    if is_array(leaf):
        return leaf
    inside = leaf.unbox() if hasattr(leaf, "unbox") else getattr(leaf, "value", None)
    return inside if is_array(inside) else leaf


# The table


class Entry(NamedTuple):
    """One thing that a library does to names.

    `undo` gives a name without it; a name that does not have it stays as it is. `what` says what it is, for a note.
    An entry that is `alone` is undone only where no other array has a name below the one that results. Two names that
    become one are `numbered` if they are of modules of two classes, each of which Flax numbers from 0.
    """

    what: str
    undo: Callable[[str], str]
    alone: bool = False
    numbered: bool = False


def _without_part(part: str) -> Callable[[str], str]:
    pattern = re.compile(rf"(?:^|(?<=[./])){re.escape(part)}[./]|[./]{re.escape(part)}$")
    return lambda name: pattern.sub("", name) if part in name else name


def _without_end(part: str) -> Callable[[str], str]:
    pattern = re.compile(rf"(?<=[^./])(?:[./]{re.escape(part)})+$")
    return lambda name: pattern.sub("", name) if name.endswith(part) else name


def _without_transform(transform: str) -> Callable[[str], str]:
    # Of a class that has a number, such as CheckpointMixerBlock_0, also within the names of other transforms.
    starts = tuple(TRANSFORMS)

    def undo_part(part: str) -> str:
        kept = ""
        while part.startswith(starts):
            begin = max((start for start in starts if part.startswith(start)), key=len)
            kept, part = kept + (begin if begin != transform else ""), part[len(begin) :]
        return kept + part

    def undo(name: str) -> str:
        if transform not in name:
            return name
        parts = re.split(r"([./])", name)
        return "".join(undo_part(part) if _NUMBERED_CLASS.fullmatch(part) else part for part in parts)

    return undo


# A module of Flax without a name of its own; longer ones nobody writes.
_NUMBERED_CLASS = re.compile(r"(?=.{1,200}$)[A-Z]\w*[A-Za-z]\w*_\d+")


_KEY = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\d+"""
_PATH = re.compile(rf"\.?\w*(?:\[(?:{_KEY})\]|\.\w+)*")
_TUPLE = re.compile(rf"\((?:{_KEY})(?:, (?:{_KEY}))*,?\)")
_PATH_PART = re.compile(rf"\[({_KEY})\]|(\w+)")


def _of_path(name: str) -> str:
    """ "['stem']['kernel']", which `jax.tree_util.keystr` gives, as "stem/kernel", also behind other parts."""
    bracket = re.search(r"""\[['"]""", name)
    begin = _begin_of(_PATH, name, bracket.start() if bracket else -1)
    if begin is None:
        return name
    parts = [(match[1] or match[2]).strip("'\"") for match in _PATH_PART.finditer(name, begin)]
    return name[:begin] + NESTING.join(parts)


def _of_tuple(name: str) -> str:
    """ "('stem', 'kernel')", the text of a tuple, as "stem/kernel", also behind other parts."""
    begin = _begin_of(_TUPLE, name, name.find("("))
    if begin is None:
        return name
    return name[:begin] + NESTING.join(part.strip("'\"") for part in re.findall(_KEY, name[begin:]))


def path_of(name: str) -> str:
    """A name with "/" between the parts of a path that it is the text of; else the name itself."""
    return _of_tuple(_of_path(name))


def _begin_of(pattern: re.Pattern[str], name: str, last: int) -> int | None:
    """Where the first part begins, at `last` or before, from which on the name is of a pattern."""
    begins = [0, *(match.end() for match in re.finditer(r"[./]", name[: max(last, 0)]))] if last >= 0 else []
    return next((begin for begin in begins[:MAX_PARTS] if pattern.fullmatch(name, begin)), None)


# Texts of paths stand behind fewer parts.
MAX_PARTS = 20


ENTRIES: Mapping[str, Entry] = {
    "keystr": Entry("\"['...']\", of jax.tree_util.keystr", _of_path),
    "tuple": Entry("'(...)', of tuples as text", _of_tuple),
    **{part: Entry(f"{part!r}, of {what}", _without_end(part), alone=True) for part, what in BOXES.items()},
    **{part: Entry(f"{part!r}, of {what}", _without_part(part)) for part, what in WRAPPERS.items()},
    **{
        part: Entry(f"{part!r}, of {what}", _without_transform(part), numbered=True)
        for part, what in TRANSFORMS.items()
    },
}

# Some part of each entry, to tell at once that a name has none.
_ANY = re.compile("|".join([r"\['", r'\["', r"\(", *BOXES, *WRAPPERS, *TRANSFORMS]))


class Undone(NamedTuple):
    """The name as it is read by the name that was given, notes on what was undone, and what could not be, in words.

    `clashes` are of names that would become one, and `lost_orders`, by the pair of names, of modules whose order is not
    known.
    """

    names: dict[str, str]
    notes: list[str]
    clashes: list[str]
    lost_orders: dict[tuple[str, str], str]


# Entries within one another are undone so many deep, in names of so many characters.
MAX_PASSES = 8
LONGEST_NAME = 2000

_ADVICE = "say which is which with rename= (--rename OLD=NEW), or leave one out with ignore= (--ignore GLOB)"
_ORDER = "either may be the first; give each its place with rename= (--rename OLD=NEW)"


def entries_of(names: Collection[str]) -> frozenset[str]:
    """The `ENTRIES` that change any of these names."""
    return frozenset(what for what, entry in ENTRIES.items() if any(entry.undo(name) != name for name in names))


def undo_entries(names: Collection[str], but: Collection[str] = ()) -> Undone:
    """Undo all `ENTRIES` in the names of arrays, again until none has any of them, or `MAX_PASSES` times.

    Those in `but` are left as they are, and so is one that would give two arrays one name.
    """
    current = {name: name for name in names if len(name) <= LONGEST_NAME}
    notes: dict[str, str] = {}
    left = set(but)
    clashes: list[str] = []
    lost_orders: dict[tuple[str, str], str] = {}
    for _ in range(MAX_PASSES):
        before = current
        if not any(map(_ANY.search, current.values())):
            break
        for what, entry in ENTRIES.items():
            if what in left:
                continue
            changed = {given: entry.undo(name) for given, name in current.items()}
            if entry.alone:
                changed = _only_alone(current, changed)
            differing = [given for given, name in changed.items() if name != current[given]]
            if differing and (clash := _clash(changed)) is not None:
                left.add(what)
                both = " and ".join(clash)
                if entry.numbered:
                    words = f"{both} are of two classes, each of which Flax numbers from 0, so that {_ORDER}"
                    lost_orders[clash] = words
                else:
                    clashes.append(f"{both} are both {changed[clash[0]]} without {entry.what}; {_ADVICE}")
            elif differing:
                count = f"{len(differing)} name{'s'[: len(differing) > 1]}"
                notes.setdefault(what, f"{entry.what}, was undone in {count}, such as {differing[0]}")
                current = changed
        if current is before:
            break
    return Undone(current, list(notes.values()), clashes, lost_orders)


def _only_alone(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """The names after an entry, but those before where another array has a name below the new one."""
    changed = {after[given] for given, name in before.items() if after[given] != name}
    below = Counter(parent for name in before.values() for parent in parents_of(name) if parent in changed)
    return {given: after[given] if below[after[given]] == 1 else name for given, name in before.items()}


def _clash(names: Mapping[str, str]) -> tuple[str, str] | None:
    first: dict[str, str] = {}
    for given, name in names.items():
        if (other := first.setdefault(name, given)) != given:
            return other, given
    return None


# Prefixes


def with_one_separator(name: str) -> str:
    """A name with "/" for every separator."""
    return name.replace(".", NESTING)


def select_below(leaves: Mapping[str, Any], prefix: str | None) -> Mapping[str, Any]:
    """Select the leaves under `prefix`, with or without the separator at its end; all of them for None.

    Raises `LayoutError` if there are none.
    """
    if prefix is None:
        return leaves
    for spell in (str, with_one_separator):
        for whole in (prefix, *(prefix + separator for separator in SEPARATORS)):
            inside = {name: leaf for name, leaf in leaves.items() if spell(name).startswith(spell(whole))}
            if inside and (whole == "" or whole[-1] in SEPARATORS):
                return inside
    if (meant := _prefix_with(with_one_separator(prefix).strip(NESTING), leaves)) is not None:
        return {name: leaf for name, leaf in leaves.items() if with_one_separator(name).startswith(meant)}
    tops = sorted({name.partition(NESTING)[0] for name in leaves})
    raise LayoutError(f"no array lies under the prefix {prefix!r}; at the top are {', '.join(tops[:8])}")


def _prefix_with(told: str, names: Iterable[str]) -> str | None:
    """The only prefix that ends in the parts `told`, or has it for a word of its last part: "state_dict_ema"."""
    whole, words = set(), set()
    for name in names:
        parts = with_one_separator(name).split(NESTING)[:-1]
        for end in range(1, len(parts) + 1):
            prefix = NESTING.join(parts[:end])
            if f"/{prefix}".endswith(f"/{told}"):
                whole.add(f"{prefix}/")
            elif told in re.split(r"[_\-]", parts[end - 1]):
                words.add(f"{prefix}/")
    for found in (whole, words):
        outermost = [one for one in found if not any(one != other and one.startswith(other) for other in found)]
        if outermost:
            return outermost[0] if len(outermost) == 1 else None
    return None


def strip_prefix(leaves: Mapping[str, Any], prefix: str, beside: list[str]) -> Stripped:
    """Take a prefix from the names behind which it stands, and leave other leaves out.

    `beside` are names already left out. Leaves beside the prefix's nesting are left out too, and so are
    single numbers beside a dotted prefix, such as the count of averages beside "module.": no parameter is
    one. Names of others beside a dotted prefix lose the nesting. Raises `ConversionError` for a name that is there both
    with and without the prefix.
    """
    nesting = prefix[: prefix.rfind(NESTING) + 1]
    apart = {n for n, leaf in leaves.items() if not n.startswith(prefix) and getattr(leaf, "shape", ()) == ()}
    inside = [name for name in leaves if name.startswith(nesting) and name not in apart]
    stripped = {name: name.removeprefix(prefix if name.startswith(prefix) else nesting) for name in inside}
    own = {stripped[name]: leaves[name] for name in inside}
    if len(own) < len(inside):
        twice = sorted(n for n in inside if not n.startswith(prefix) and prefix + n.removeprefix(nesting) in leaves)
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


def parents_of(name: str, separators: str = "./") -> list[str]:
    return [name[: match.start()] for match in re.finditer(f"[{separators}]", name)]
