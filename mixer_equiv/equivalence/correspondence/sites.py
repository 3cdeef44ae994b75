"""`Sites`: the steps of a model at which something was settled, and which earlier one a step repeats.

A model of many blocks does in each what it did in the one before. Names may say nothing, so that a step is taken for
the repetition of the earlier step of its kind before which most steps in a row were of the same kinds too.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from mixer_equiv.equivalence.record.graph import Node, Ref

# Steps in a row that are compared.
_LONGEST = 40


def kind_of(node: Node) -> Hashable:
    """What a node has in common with those of other blocks: its operation, shapes and settings."""
    return node.operation, node.shapes, _plain(node.arguments), _plain(tuple(sorted(node.keywords.items())))


def loose_kind_of(node: Node) -> Hashable:
    """What a node has in common with those of other blocks that are of other sizes."""
    return node.operation, tuple(map(len, node.shapes))


def _plain(value: object) -> Hashable:
    if isinstance(value, Ref):
        return Ref
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return tuple((key, _plain(item)) for key, item in value.items())
    return value if isinstance(value, Hashable) else repr(value)


def repeated(kinds: Sequence[Hashable], kind: Hashable) -> int | None:
    """The place of the earlier step that one of this `kind`, which comes after `kinds`, repeats; None if none does."""
    best, longest = None, -1
    for place in range(len(kinds) - 1, -1, -1):
        if kinds[place] == kind:
            length = _common(kinds, place)
            if length > longest:
                best, longest = place, length
    return best


def _common(kinds: Sequence[Hashable], place: int) -> int:
    """How many steps in a row before `place` are as those at the end."""
    length = 0
    while length < min(_LONGEST, place) and kinds[place - 1 - length] == kinds[-1 - length]:
        length += 1
    return length
