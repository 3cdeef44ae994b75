"""The names and shapes before and after a conversion, drawn with rich."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from mixer_equiv.checkpoints.checkpoint import Checkpoint


def draw_names(source: Checkpoint, target: Checkpoint, written_names: Mapping[str, str]) -> Table:
    """Each parameter's name and shape in both checkpoints; "-" where a layout has no such parameter.

    `written_names` gives the names in the file, by those of `target`, where they differ.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for layout in (source.layout.name, target.layout.name):
        table.add_column(Text(layout), overflow="fold")
        table.add_column("shape", justify="right")
    before = source.layout.bindings(source.config.num_blocks)
    for canonical, binding in target.layout.bindings(target.config.num_blocks).items():
        old, new = before[canonical].foreign, binding.foreign
        if new in target.arrays or (binding.is_absent and old in source.specs):
            cells = old, _shape(source, old), written_names.get(new, new), _shape(target, new)
            table.add_row(*map(Text, cells))
    return table


def _shape(checkpoint: Checkpoint, name: str) -> str:
    return "x".join(map(str, checkpoint.specs[name].shape)) if name in checkpoint.specs else ""
