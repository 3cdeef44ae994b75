"""`natural`: the layout of torch code that is written in a formulation, each weight in the shape of its module.

The models of this package hold canonical parameters whatever their formulation. Code built of nn.Conv1d, or of
a Linear over flattened patches, holds weights of these modules' shapes: its layout has the names of the torch
layout, and can be read and written by `convert`.
"""

from __future__ import annotations

import dataclasses

from mixer_equiv.errors import LayoutError
from mixer_equiv.formulation import FORMULATIONS, Formulation, as_formulation
from mixer_equiv.layouts.base import Layout, Row
from mixer_equiv.layouts.torch import TORCH

_STEM = {
    "conv": "hidden channels ph pw",
    "linear": "hidden (ph pw channels)",
    "linear_channels_first": "hidden (channels ph pw)",
}
# Axes of a kernel that maps axis `a` to axis `b`.
_KERNEL = {"linear": "{b} {a}", "matmul": "{b} {a}", "conv1d": "{b} {a} 1", "shared_conv": "{b} 1 1 {a}"}


def natural(formulation: Formulation) -> Layout:
    """The layout of a torch Mixer whose modules hold their weights in this formulation's shapes.

    Its name, such as "torch-linear-conv1d-conv1d", is valid wherever a layout's name is, and in files.
    Raises `LayoutError` for "depthwise_conv", which holds every filter once for each channel, and `ConfigError`
    for anything but a `Formulation`.
    """
    if as_formulation(formulation).tokens not in _KERNEL:
        raise LayoutError(
            f"{formulation.tokens} has every filter once for each channel, so that no parameter is one of its own; "
            "take shared_conv, which shares the filter, or conv1d"
        )
    return dataclasses.replace(
        TORCH,
        name=_name(formulation),
        aliases=(),
        summary=f"modules of torch, formulated as {formulation}",
        rows=tuple(_reshape(row, formulation) for row in TORCH.rows),
    )


def find_natural(name: str) -> Layout | None:
    """The natural layout of this name; None if there is none."""
    return next((natural(f) for f in FORMULATIONS if f.tokens in _KERNEL and _name(f) == name), None)


def _name(formulation: Formulation) -> str:
    return f"torch-{formulation.patch}-{formulation.tokens}-{formulation.channels}"


def _reshape(row: Row, formulation: Formulation) -> Row:
    if row.canonical == "stem/kernel":
        return dataclasses.replace(row, pattern=f"{row.canonical_axes} -> {_STEM[formulation.patch]}")
    for mixing, kind in (("token_mixing", formulation.tokens), ("channel_mixing", formulation.channels)):
        if f"/{mixing}/" in row.canonical and row.canonical.endswith("/kernel"):
            a, b = row.canonical_axes.split()
            return dataclasses.replace(row, pattern=f"{a} {b} -> {_KERNEL[kind].format(a=a, b=b)}")
    return row
