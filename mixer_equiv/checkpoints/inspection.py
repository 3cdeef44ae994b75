"""A checkpoint seen from outside: its layout, config and conventions, and what is odd about its arrays.

Plain data with its own plain text; `render.inspection` draws it for a terminal. Start at `inspect`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.checkpoints.convention_warnings import describe_conventions
from mixer_equiv.errors import summarize

Flag = Literal["NaN", "inf", "all zero", "constant"]
FindingKind = Literal["NaN", "inf", "untrained_head", "constant_kernels"]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean, standard deviation and largest magnitude of an array's finite values, and what is odd about all of them.

    A statistic is None where no value is finite, or where float64 cannot hold it.
    """

    mean: float | None
    std: float | None
    max_abs: float | None
    flags: tuple[Flag, ...]


@dataclasses.dataclass(frozen=True)
class ArrayInspection:
    """One array: its own and its canonical name, the name of its layout's row, and statistics if it was read."""

    name: str
    canonical: str
    row: str
    shape: tuple[int, ...]
    dtype: str
    statistics: Statistics | None

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Oddities of its values; none if it was not read."""
        return self.statistics.flags if self.statistics else ()

    def to_dict(self) -> dict[str, Any]:
        """The fields, and those of the statistics beside them, None and without flags if it was not read."""
        fields = dataclasses.asdict(self)
        return fields | (fields.pop("statistics") or dataclasses.asdict(_NO_STATISTICS))


_NO_STATISTICS = Statistics(None, None, None, ())


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that a porter should know before using these weights, and the arrays that show it."""

    kind: FindingKind
    arrays: tuple[str, ...]

    def __str__(self) -> str:
        some = summarize(self.arrays, 3)
        match self.kind:
            case "NaN" | "inf":
                return f"{self.kind} in {_count(len(self.arrays), 'array')}: {some}"
            case "untrained_head":
                return f"{some} is all zeros, as in a model that was never trained: its logits show nothing"
            case "constant_kernels":
                return f"zero or constant in {_count(len(self.arrays), 'kernel')}: {some}"


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A checkpoint seen from outside."""

    checkpoint: Checkpoint
    arrays: tuple[ArrayInspection, ...]
    notes: tuple[str, ...]

    @property
    def values_are_read(self) -> bool:
        """Whether the arrays were read, so that there are statistics and findings."""
        return all(array.statistics is not None for array in self.arrays)

    @property
    def findings(self) -> list[Finding]:
        """Findings in the arrays' values; none if they were not read."""
        head = [array for array in self.arrays if array.canonical == "head/kernel"]
        kernels = [a for a in self.arrays if a.canonical.endswith("kernel") and not a.canonical.startswith("head")]
        odd: dict[FindingKind, list[ArrayInspection]] = {
            "NaN": [array for array in self.arrays if "NaN" in array.flags],
            "inf": [array for array in self.arrays if "inf" in array.flags],
            "untrained_head": [array for array in head if "all zero" in array.flags],
            "constant_kernels": [array for array in kernels if {"all zero", "constant"} & set(array.flags)],
        }
        return [Finding(kind, tuple(array.name for array in arrays)) for kind, arrays in odd.items() if arrays]

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
            "trained_with_assumed_from": checkpoint.assumed_from,
            "num_parameters": checkpoint.num_parameters,
            "macs": checkpoint.config.macs,
            "notes": list(self.notes),
            "findings": list(map(str, self.findings)),
            "values_are_read": self.values_are_read,
            "arrays": [array.to_dict() for array in self.arrays],
        }

    def __str__(self) -> str:
        table = array_table(self)
        lines = [*_aligned(summary(self).items()), "", *_aligned([table.headings, *table.rows]), ""]
        lines += [f"warning: {finding}" for finding in self.findings]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines).rstrip()


def inspect(checkpoint: Checkpoint, *, values: bool = False, allow_missing: Collection[str] = ()) -> Inspection:
    """Check that `checkpoint` fills its layout, and inspect every array of it.

    Without `values` no array is read, so that a lazy checkpoint of any size takes no time; with
    them there are statistics, and findings. Raises `ConversionError` as `Checkpoint.check` does.
    """
    present, notes = checkpoint.check(allow_missing=allow_missing)
    bindings = {binding.foreign: binding for binding in reversed(present.values()) if not binding.is_absent}
    specs = checkpoint.specs
    arrays = []
    for name, binding in reversed(bindings.items()):
        spec = specs[name]
        statistics = _statistics(checkpoint.arrays[name]) if values else None
        arrays.append(
            ArrayInspection(name, binding.canonical, binding.row.foreign, spec.shape, str(spec.dtype), statistics)
        )
    return Inspection(checkpoint, tuple(arrays), (*checkpoint.notes, *notes))


def _statistics(array: np.ndarray) -> Statistics:
    with np.errstate(over="ignore", invalid="ignore"):
        values = array.astype(np.float64).ravel()
        finite = values[np.isfinite(values)]
        computed = [finite.mean(), finite.std(), np.abs(finite).max()] if finite.size else [np.nan] * 3
    same = bool(np.all(values == values[0]))
    checks: dict[Flag, bool] = {
        "NaN": bool(np.isnan(values).any()),
        "inf": bool(np.isinf(values).any()),
        "all zero": same and values[0] == 0,
        "constant": same and values[0] != 0 and values.size > 1,
    }
    mean, std, max_abs = (float(number) if np.isfinite(number) else None for number in computed)
    return Statistics(mean, std, max_abs, tuple(flag for flag, holds in checks.items() if holds))


def summary(inspection: Inspection) -> dict[str, str]:
    """Facts about the whole checkpoint in words, by their labels."""
    checkpoint, config = inspection.checkpoint, inspection.checkpoint.config
    (ph, pw), (height, width), (rows, columns) = config.patch_hw, config.image_hw, config.grid_hw
    trained_with = describe_conventions(checkpoint.trained_with) if checkpoint.trained_with else "not recorded"
    if checkpoint.assumed_from:
        trained_with = f"not recorded; {checkpoint.assumed_from}'s code computes {trained_with}"
    return {
        "checkpoint": Path(checkpoint.source).name,
        "layout": f"{checkpoint.layout.name} ({checkpoint.layout.summary})",
        "variant": f"Mixer-{config.name}" if config.name else "none of the published ones",
        "image": f"{height}x{width}, {_count(config.in_channels, 'channel')}, patches of {ph}x{pw}",
        "tokens": f"{config.num_tokens} ({rows}x{columns})",
        "blocks": f"{config.num_blocks}",
        "widths": f"hidden {config.hidden_dim}, tokens_mlp {config.tokens_mlp_dim}, "
        f"channels_mlp {config.channels_mlp_dim}",
        "classes": str(config.num_classes) if config.num_classes else "no head",
        "parameters": f"{checkpoint.num_parameters:,} in {len(checkpoint)} arrays, {', '.join(checkpoint.dtypes)}",
        "MACs": f"{config.macs:,} an image",
        "trained with": trained_with,
        "its code computes": describe_conventions(checkpoint.layout.computes),
    }


class ArrayTable(NamedTuple):
    """Headings, and a row of cells for each row of the layout, with all blocks in one."""

    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


def array_table(inspection: Inspection) -> ArrayTable:
    """The arrays in words: their shapes, with statistics if they were read, else with dtypes."""
    by_row: dict[str, list[ArrayInspection]] = {}
    for array in inspection.arrays:
        by_row.setdefault(array.row, []).append(array)
    read = inspection.values_are_read
    headings = ("mean", "std", "max |x|", "seen") if read else ("dtype",)
    cells = _statistics_cells if read else _dtype_cells
    shapes = {row: "x".join(map(str, arrays[0].shape)) for row, arrays in by_row.items()}
    rows = [(row, shapes[row], *cells(arrays)) for row, arrays in by_row.items()]
    return ArrayTable(("array", "shape", *headings), rows)


def _dtype_cells(arrays: Sequence[ArrayInspection]) -> tuple[str, ...]:
    return (", ".join(sorted({array.dtype for array in arrays})),)


def _statistics_cells(arrays: Sequence[ArrayInspection]) -> tuple[str, ...]:
    counts = {flag: sum(flag in a.flags for a in arrays) for flag in sorted({f for a in arrays for f in a.flags})}
    flags = [flag if len(arrays) == 1 else f"{flag} in {count} of {len(arrays)}" for flag, count in counts.items()]
    statistics = [array.statistics for array in arrays if array.statistics]
    return (
        _over(np.mean, [one.mean for one in statistics]),
        _over(np.mean, [one.std for one in statistics]),
        _over(np.max, [one.max_abs for one in statistics]),
        ", ".join(flags),
    )


def _over(reduce: Callable[[list[float]], Any], numbers: list[float | None]) -> str:
    known = [number for number in numbers if number is not None]
    return f"{reduce(known):.2g}" if known else "-"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """One line for each row, with every column as wide as its longest cell."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
