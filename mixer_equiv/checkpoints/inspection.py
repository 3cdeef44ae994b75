"""What a checkpoint holds: its layout, config and conventions, and the numbers that give faults away."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mixer_equiv.arrays.lazy import Spec
from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.checkpoints.conversion import describe_conventions
from mixer_equiv.errors import summarize
from mixer_equiv.layouts import Binding, Layout


@dataclasses.dataclass(frozen=True)
class ArraySummary:
    """One array: its names, shape and dtype, statistics over its finite values, and what is odd about it.

    A statistic is None where nothing is finite, float64 cannot hold it, or the values were not read.
    `flags` are among "NaN", "inf", "all zero" and "constant".
    """

    name: str
    canonical: str
    row: str
    shape: tuple[int, ...]
    dtype: str
    mean: float | None
    std: float | None
    max_abs: float | None
    flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A checkpoint seen from outside."""

    checkpoint: Checkpoint
    arrays: tuple[ArraySummary, ...]
    notes: tuple[str, ...]
    values_are_read: bool

    @property
    def findings(self) -> list[str]:
        """Sentences on what a porter should know before using these weights."""
        sentences = []
        for flag in ("NaN", "inf"):
            names = [array.name for array in self.arrays if flag in array.flags]
            if names:
                sentences.append(f"{flag} in {_count(len(names), 'array')}: {summarize(names, 3)}")
        head = [array for array in self.arrays if array.canonical == "head/kernel"]
        if head and "all zero" in head[0].flags:
            sentences.append(
                f"{head[0].name} is all zeros, as in a model that was never trained: its logits show nothing"
            )
        kernels = [a for a in self.arrays if a.canonical.endswith("kernel") and not a.canonical.startswith("head")]
        dead = [array.name for array in kernels if {"all zero", "constant"} & set(array.flags)]
        if dead:
            sentences.append(f"zero or constant in {_count(len(dead), 'kernel')}: {summarize(dead, 3)}")
        return sentences

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, ready for JSON."""
        checkpoint = self.checkpoint
        trained_with = checkpoint.trained_with
        return {
            "source": checkpoint.source,
            "layout": checkpoint.layout.name,
            "variant": checkpoint.config.name,
            "config": checkpoint.config.to_dict(),
            "config_is_stated": checkpoint.config_is_stated,
            "computes": dataclasses.asdict(checkpoint.layout.computes),
            "trained_with": dataclasses.asdict(trained_with) if trained_with else None,
            "num_parameters": checkpoint.num_parameters,
            "macs": checkpoint.config.macs,
            "notes": list(self.notes),
            "findings": self.findings,
            "values_are_read": self.values_are_read,
            "arrays": [dataclasses.asdict(array) for array in self.arrays],
        }

    def __rich__(self) -> RenderableType:
        lines = [Text.assemble(("warning: ", "bold yellow"), finding) for finding in self.findings]
        lines += [Text(f"note: {note}") for note in self.notes]
        return Group(_summary_table(self.checkpoint), _array_table(self), *lines)


def inspect(checkpoint: Checkpoint, *, values: bool = False, allow_missing: Collection[str] = ()) -> Inspection:
    """Check that `checkpoint` fills its layout, and summarise every array of it.

    Without `values` no array is read, so that a lazy checkpoint of any size takes no time; with
    them there are statistics, and findings. Raises `ConversionError` as `Checkpoint.check` does.
    """
    present, notes = checkpoint.check(allow_missing=allow_missing)
    bindings = {binding.foreign: binding for binding in reversed(present.values()) if not binding.is_absent}
    summaries = tuple(
        _summarise(binding, checkpoint.specs[binding.foreign], checkpoint.arrays if values else None)
        for binding in reversed(bindings.values())
    )
    return Inspection(checkpoint, summaries, (*checkpoint.notes, *notes), values)


def describe_layout(layout: Layout) -> dict[str, Any]:
    """A layout in words, by column: its names, whose it is, what its code computes, what it can hold."""
    example = next(row for row in layout.rows if row.general == EXAMPLE)
    return {
        "layout": ", ".join((layout.name, *layout.aliases)),
        "whose": layout.summary,
        "framework": {"flax": "Flax", "torch": "torch"}[layout.framework],
        "its code computes": describe_conventions(layout.computes).replace("LayerNorm ", "").replace("e-0", "e-"),
        "expressible": "read only" if layout.read_only else "; ".join(map(str, layout.constraints)) or "both ways",
        "a name in it": next(b.foreign for b in layout.bindings(1).values() if b.row is example),
    }


EXAMPLE = "MixerBlock_{i}/token_mixing/Dense_0/kernel"


def layouts_table(rows: list[dict[str, Any]]) -> Table:
    """What `describe_layout` says of each layout, for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, overflow="fold", style="bold" if column == "layout" else "")
    for row in rows:
        table.add_row(*row.values())
    return table


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """The same in Markdown, names of layouts and arrays as code."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    for row in rows:
        names = ", ".join(f"`{name}`" for name in row["layout"].split(", "))
        lines.append([*{**row, "layout": names, "a name in it": f"`{row['a name in it']}`"}.values()])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _summarise(binding: Binding, spec: Spec, arrays: Mapping[str, np.ndarray] | None) -> ArraySummary:
    statistics = (None, None, None, ()) if arrays is None else _statistics(arrays[binding.foreign])
    return ArraySummary(
        binding.foreign, binding.canonical, binding.row.foreign, spec.shape, str(spec.dtype), *statistics
    )


def _statistics(array: np.ndarray) -> tuple[float | None, float | None, float | None, tuple[str, ...]]:
    """Mean, standard deviation and largest magnitude of the finite values, and flags."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = array.astype(np.float64).ravel()
        finite = values[np.isfinite(values)]
        statistics = [finite.mean(), finite.std(), np.abs(finite).max()] if finite.size else [np.nan] * 3
    same = bool(np.all(values == values[0]))
    checks = {
        "NaN": bool(np.isnan(values).any()),
        "inf": bool(np.isinf(values).any()),
        "all zero": same and values[0] == 0,
        "constant": same and values[0] != 0 and values.size > 1,
    }
    flags = tuple(flag for flag, holds in checks.items() if holds)
    mean, std, max_abs = (float(number) if np.isfinite(number) else None for number in statistics)
    return mean, std, max_abs, flags


def _summary_table(checkpoint: Checkpoint) -> Table:
    config = checkpoint.config
    (ph, pw), (height, width), (rows, columns) = config.patch_hw, config.image_hw, config.grid_hw
    trained_with = checkpoint.trained_with
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("checkpoint", Path(checkpoint.source).name)
    table.add_row("layout", f"{checkpoint.layout.name} ({checkpoint.layout.summary})")
    table.add_row("variant", f"Mixer-{config.name}" if config.name else "none of the published ones")
    table.add_row("image", f"{height}x{width}, {_count(config.in_channels, 'channel')}, patches of {ph}x{pw}")
    table.add_row("tokens", f"{config.num_tokens} ({rows}x{columns})")
    table.add_row("blocks", f"{config.num_blocks}")
    table.add_row(
        "widths",
        f"hidden {config.hidden_dim}, tokens_mlp {config.tokens_mlp_dim}, channels_mlp {config.channels_mlp_dim}",
    )
    table.add_row("classes", str(config.num_classes) if config.num_classes else "no head")
    table.add_row(
        "parameters", f"{checkpoint.num_parameters:,} in {len(checkpoint)} arrays, {', '.join(checkpoint.dtypes)}"
    )
    table.add_row("MACs", f"{config.macs:,} an image")
    table.add_row("trained with", describe_conventions(trained_with) if trained_with else "not recorded")
    table.add_row("its code computes", describe_conventions(checkpoint.layout.computes))
    return table


def _array_table(inspection: Inspection) -> Table:
    """One row for each row of the layout, blocks taken together."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("array", overflow="fold")
    columns = ("shape", "mean", "std", "max |x|", "seen") if inspection.values_are_read else ("shape", "dtype")
    for column in columns:
        table.add_column(column, justify="left" if column in ("seen", "dtype") else "right")
    rows: dict[str, list[ArraySummary]] = {}
    for array in inspection.arrays:
        rows.setdefault(array.row, []).append(array)
    for name, members in rows.items():
        shape = "x".join(map(str, members[0].shape))
        if not inspection.values_are_read:
            table.add_row(name, shape, ", ".join(sorted({member.dtype for member in members})))
            continue
        counts = {flag: sum(flag in m.flags for m in members) for flag in _flags_of(members)}
        flags = [flag if len(members) == 1 else f"{flag} in {n} of {len(members)}" for flag, n in counts.items()]
        table.add_row(
            name,
            shape,
            _over(np.mean, [m.mean for m in members]),
            _over(np.mean, [m.std for m in members]),
            _over(np.max, [m.max_abs for m in members]),
            ", ".join(flags),
        )
    return table


def _flags_of(members: list[ArraySummary]) -> list[str]:
    return sorted({flag for member in members for flag in member.flags})


def _over(reduce: Callable[[list[float]], Any], numbers: list[float | None]) -> str:
    known = [number for number in numbers if number is not None]
    return f"{reduce(known):.2g}" if known else "-"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
