"""Arguments of torch's calls: the same leaves as torch's own functions give, in containers of every kind."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from mixer_equiv.equivalence.record.torch.arguments import leaves_of, map_leaves


class Pair(NamedTuple):
    one: Any
    other: Any


A, B = torch.arange(3.0), torch.nn.Parameter(torch.ones(2))
NESTS = {
    "nothing": (),
    "a tensor alone": A,
    "plain containers": ((A, [B, 3, 2.5, None, True], "x"), {"dim": torch.float16, "of": (A,)}),
    "a named tuple": ([Pair(A, [B])], {"k": Pair(1, torch.float32)}),
    "a result of torch": (torch.max(torch.ones(2, 3), dim=1), {"k": [A]}),
    "other containers": (OrderedDict(a=A, b=(B,)), deque([A, 1]), defaultdict(list, k=[B])),
    "a slice and an ellipsis": ((slice(None, 2), ..., A),),
    "a size and an object": (torch.Size([2, 3]), object, A),
}


def same(one: Any, other: Any) -> bool:
    """Whether two nests have the same types all through and hold the same objects."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list | deque):
        return len(one) == len(other) and all(map(same, one, other))
    return one is other or (not isinstance(one, torch.Tensor) and one == other)


@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS)
def test_leaves_are_those_that_torch_finds(nest: Any) -> None:
    assert same(leaves_of(nest), tree_leaves(nest))


@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS)
def test_leaves_are_changed_as_torch_changes_them_in_new_containers(nest: Any) -> None:
    replaced = {id(A): torch.zeros(1), id(B): torch.zeros(2)}

    def change(leaf: Any) -> Any:
        return torch.float64 if isinstance(leaf, torch.dtype) else replaced.get(id(leaf), leaf)

    kinds = torch.Tensor, torch.dtype
    assert same(map_leaves(kinds, change, nest), tree_map_only(kinds, change, nest))


def test_containers_are_not_shared() -> None:
    given = [[A], {"k": [B]}]
    changed = map_leaves((torch.Tensor,), lambda leaf: leaf, given)
    changed[0].append(1)
    changed[1]["k"].append(1)
    assert given == [[A], {"k": [B]}]
