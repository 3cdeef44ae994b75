"""Checkpoint layouts: one table each, found by name in `LAYOUTS`."""

from __future__ import annotations

from mixer_equiv.errors import LayoutError
from mixer_equiv.layouts.detect import Match, detect
from mixer_equiv.layouts.jankrepl import JANKREPL
from mixer_equiv.layouts.layout import OFFICIAL, Binding, Conventions, Layout, Row
from mixer_equiv.layouts.linen import LINEN
from mixer_equiv.layouts.timm import TIMM
from mixer_equiv.layouts.torch import TORCH

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (LINEN, TORCH, TIMM, JANKREPL)}

__all__ = [
    "LAYOUTS",
    "LINEN",
    "OFFICIAL",
    "TORCH",
    "Binding",
    "Conventions",
    "Layout",
    "Match",
    "Row",
    "detect",
    "get_layout",
]


def get_layout(name: str | Layout) -> Layout:
    """The layout called `name`, or by one of its aliases; a `Layout` is itself.

    Raises `LayoutError` for an unknown name.
    """
    if isinstance(name, Layout):
        return name
    for layout in LAYOUTS.values():
        if name in (layout.name, *layout.aliases):
            return layout
    raise LayoutError(f"no layout is called {name!r}; the layouts are {', '.join(LAYOUTS)}")
