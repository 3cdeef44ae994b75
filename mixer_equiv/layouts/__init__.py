"""Layouts: the names and shapes that each implementation gives the parameters of a Mixer, as one table each.

`LAYOUTS` has them by name. Start with `base`, then any table, such as `timm`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixer_equiv.errors import LayoutError, did_you_mean
from mixer_equiv.layouts.base import (
    ABSENT,
    ADVICE,
    CONSTRAINTS,
    NEUTRAL,
    OFFICIAL_CONVENTIONS,
    Binding,
    Constraint,
    ConstraintKind,
    Conventions,
    Layout,
    Row,
)
from mixer_equiv.layouts.custom import check_layout, layout_from_dict, layout_from_file
from mixer_equiv.layouts.detect import LayoutMatch, detect
from mixer_equiv.layouts.jeonsworld import JEONSWORLD
from mixer_equiv.layouts.lucidrains import LUCIDRAINS
from mixer_equiv.layouts.mmpretrain import MMPRETRAIN
from mixer_equiv.layouts.natural import find_natural
from mixer_equiv.layouts.nnx import NNX
from mixer_equiv.layouts.official import LINEN
from mixer_equiv.layouts.pre_linen import PRE_LINEN
from mixer_equiv.layouts.scenic import SCENIC
from mixer_equiv.layouts.timm import TIMM
from mixer_equiv.layouts.torch import TORCH
from mixer_equiv.layouts.tutorial import JANKREPL

_BUILT_IN = (LINEN, TORCH, TIMM, JANKREPL, LUCIDRAINS, JEONSWORLD, MMPRETRAIN, SCENIC, NNX, PRE_LINEN)
# Every known layout by its name, also those that `register_layout` added.
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _BUILT_IN}

__all__ = [
    "ABSENT",
    "ADVICE",
    "CONSTRAINTS",
    "LAYOUTS",
    "LINEN",
    "NEUTRAL",
    "NNX",
    "OFFICIAL_CONVENTIONS",
    "TORCH",
    "Binding",
    "Constraint",
    "ConstraintKind",
    "Conventions",
    "Layout",
    "LayoutMatch",
    "Row",
    "detect",
    "find_layout",
    "get_layout",
    "register_layout",
]


def get_layout(name: str | Layout) -> Layout:
    """The layout of this name or alias; a `Layout` is returned as it is.

    Raises `LayoutError` for an unknown name, and for a `Layout` whose table is wrong.
    """
    if isinstance(name, Layout):
        return name if name is LAYOUTS.get(name.name) else check_layout(name)
    for layout in LAYOUTS.values():
        if name in (layout.name, *layout.aliases):
            return layout
    if (natural := find_natural(name)) is not None:
        return natural
    names = [each for layout in LAYOUTS.values() for each in (layout.name, *layout.aliases)]
    raise LayoutError(
        f"no layout is called {name!r}; the layouts are {', '.join(LAYOUTS)}, and those of torch modules in a "
        f"formulation, such as torch-linear-conv1d-conv1d{did_you_mean(str(name), names)}"
    )


def find_layout(name: object) -> Layout | None:
    """The layout of exactly this name, aliases excluded; None if there is none."""
    return LAYOUTS.get(name) or find_natural(name) if isinstance(name, str) else None


def register_layout(layout: Layout | Mapping[str, Any] | str | os.PathLike[str], *, replace: bool = False) -> Layout:
    """Add a layout of your own to `LAYOUTS`, to be used by its name and detected by its arrays' names.

    `layout` is a `Layout`, a dict of its fields, or a .toml or .json file that holds them:

        name = "ours"
        base = "timm"                      # fields and rows that are not given here are timm's
        computes = {activation = "gelu", layer_norm_eps = 1e-5}
        rows = '''
            stem/kernel  patchify.weight  ph pw channels hidden -> hidden (channels ph pw)
            stem/bias    -                hidden
        '''

    A row is a canonical name (the linen layout's), the layout's name with {i} for the block and {L}
    for the number of blocks, and an einops pattern from the canonical axes to the layout's. Rows
    may share a name (a LayerNorm used twice), leave {i} out (blocks tied across depth), or be
    called "-" (a bias or scale that the code does not have): then `convert` writes the layout only
    if the values coincide. `rows` may also be a list of lines, and a line a list of its three texts,
    as a name with spaces needs. Where names fit two layouts alike, the one registered last is taken.

    Raises `LayoutError` that lists all problems by row, and for a name in use, unless `replace`.
    """
    if isinstance(layout, Layout):
        checked = check_layout(layout)
    elif isinstance(layout, str | os.PathLike):
        checked = layout_from_file(Path(layout), LAYOUTS)
    else:
        checked = layout_from_dict(layout, LAYOUTS)
    others = [other for other in LAYOUTS.values() if not (replace and other.name == checked.name)]
    taken = {name for other in others for name in (other.name, *other.aliases)}
    if taken & {checked.name, *checked.aliases}:
        names = ", ".join(sorted(taken & {checked.name, *checked.aliases}))
        raise LayoutError(
            f"a layout is already called {names}; choose another name, or replace=True for one of that name"
        )
    LAYOUTS.clear()
    LAYOUTS.update({known.name: known for known in (checked, *others)})
    return checked
