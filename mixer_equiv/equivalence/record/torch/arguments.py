"""`leaves_of` and `map_leaves`: the arguments and results of torch's calls, nested in tuples, lists and dicts.

They give what the functions of `torch.utils._pytree` give. Nearly all calls have plain containers, and a recorded pass
makes thousands of calls, of which those functions would take half the time.
"""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

# What is most often in an argument and holds nothing else.
_LEAVES = frozenset({Tensor, torch.nn.Parameter, torch.dtype, torch.device, NoneType, bool, int, float, str})


def leaves_of(value: Any) -> list[Any]:
    """All that `value` holds, in order; containers that were registered with torch are looked into as well."""
    kind = type(value)
    if kind in _LEAVES:
        return [value]
    if kind is tuple or kind is list:
        return [leaf for item in value for leaf in leaves_of(item)]
    if kind is dict:
        return [leaf for item in value.values() for leaf in leaves_of(item)]
    return tree_leaves(value)


def map_leaves(kinds: tuple[type, ...], change: Callable[[Any], Any], value: Any) -> Any:
    """`value` with `change` of each leaf that is one of `kinds`, in new containers."""
    kind = type(value)
    if kind in _LEAVES:
        return change(value) if isinstance(value, kinds) else value
    if kind is tuple or kind is list:
        return kind([map_leaves(kinds, change, item) for item in value])
    if kind is dict:
        return {key: map_leaves(kinds, change, item) for key, item in value.items()}
    return tree_map_only(kinds, change, value)
