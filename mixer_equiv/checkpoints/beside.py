"""Leaves that stand beside the weights in one dict, and are none: they are left out, with a note."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from mixer_equiv.arrays.interop import is_array, stored_dtype
from mixer_equiv.checkpoints.names import Stripped
from mixer_equiv.errors import summarize


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
