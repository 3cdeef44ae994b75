"""A `BenchResult` as plain data, and that as Markdown and CSV. Tables for the terminal are in `render.bench`.

Start reading at `to_dict`; every other function takes what it returns.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from mixer_equiv.bench.measurement import BenchResult, EntryTiming, Measurement, MixerTiming, ProductTiming, Refusal

PlainResult = Mapping[str, Any]
PlainRow = Mapping[str, Any]

CELL_FIELDS = ("variant", "dtype", "batch", "device", "mode")


def to_dict(result: BenchResult) -> dict[str, Any]:
    """Turn a result into numbers, strings, lists and dicts, for JSON."""
    return {
        "baseline": result.baseline,
        "rounds": result.rounds,
        "machine": dict(result.machine),
        "settings": dict(result.settings),
        "left_out": [str(cell) for cell in result.left_out],
        "rows": [_plain_row(measurement) for measurement in result.measurements],
    }


def _plain_row(measurement: Measurement) -> dict[str, Any]:
    """Flatten a measurement; the names, always the same ones, are the columns of the CSV."""
    timing = measurement.timing if isinstance(measurement, MixerTiming | ProductTiming) else None
    mixer = measurement if isinstance(measurement, MixerTiming) else None
    entry = measurement if isinstance(measurement, EntryTiming) else None
    refusal = measurement if isinstance(measurement, Refusal) else None
    entrant = entry or refusal
    ratio = mixer.ratio if mixer else None
    correctness = entrant.correctness if entrant else None
    return {
        **{name: getattr(measurement.cell, name) for name in CELL_FIELDS},
        "program": measurement.name,
        "ours": entrant is not None and entrant.ours,
        "images_per_second": mixer and mixer.images_per_second,
        "ms": timing and timing.ms.median,
        "ms_quartile_1": timing and timing.ms.low,
        "ms_quartile_3": timing and timing.ms.high,
        "gflops": timing and timing.gflops,
        "share_of_peak": timing and timing.share_of_peak,
        "ratio": ratio and ratio.median,
        "ratio_low": ratio and ratio.low,
        "ratio_high": ratio and ratio.high,
        "memory_bytes": entry and entry.memory,
        "compile_seconds": entry and entry.compile_seconds,
        "float64_residual": correctness and correctness.exact,
        "error": correctness and correctness.error,
        "error_bound": correctness and correctness.bound,
        "kernels": entry and entry.kernels,
        "gemm_size": measurement.size if isinstance(measurement, ProductTiming) else None,
        "refused": refusal and refusal.reason,
    }


def formatter(pattern: str, *fields: str) -> Callable[[PlainRow], str]:
    """Make a function that formats these fields of a row; its text is empty where the first of them is None."""
    return lambda row: "" if row[fields[0]] is None else pattern.format(*(row[field] for field in fields))


COLUMNS: Mapping[str, Callable[[PlainRow], str]] = {
    "program": lambda row: row["program"],
    "images/s": formatter("{:,.1f}", "images_per_second"),
    "ms": formatter("{:.2f}", "ms"),
    "quartiles": formatter("{:.2f}-{:.2f}", "ms_quartile_1", "ms_quartile_3"),
    "GFLOP/s": formatter("{:,.1f}", "gflops"),
    "of peak": formatter("{:.0%}", "share_of_peak"),
    "ratio": formatter("{:.3f} ({:.3f}-{:.3f})", "ratio", "ratio_low", "ratio_high"),
    "memory": lambda row: "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e6:,.0f} MB",
    "compile": formatter("{:.1f} s", "compile_seconds"),
    "error": formatter("{:.1e}", "error"),
}


def row_texts(row: PlainRow, columns: Mapping[str, Callable[[PlainRow], str]] = COLUMNS) -> list[str]:
    """Format a row as one text for each of `columns`."""
    if row["refused"]:
        return [row["program"], "refused", *[""] * (len(columns) - 2)]
    return [text_of(row) for text_of in columns.values()]


def group_by_cell(rows: Iterable[PlainRow]) -> Iterator[tuple[str, list[PlainRow]]]:
    """Yield the rows of each cell, which are compared with each other, after the cell's title."""
    for cell, group in groupby(rows, lambda row: [row[name] for name in CELL_FIELDS]):
        variant, dtype, batch, device, mode = cell
        yield f"{variant}, {dtype}, batch {batch}, {device}, {mode}", list(group)


def refusal_lines(result: PlainResult) -> list[str]:
    """Say for each refused row why it was refused."""
    return [
        f"refused: {row['program']} in {title}: {row['refused']}"
        for title, rows in group_by_cell(result["rows"])
        for row in rows
        if row["refused"]
    ]


# Words for the kernels of a row; None for those that most processors have, which need no note.
KERNEL_NOTES = {
    "onednn": None,
    "layers": "its layers are called, as they are small",
    "blas": "plain products, the activation in place",
    "float32": "in float32, as oneDNN does not multiply in bfloat16 here",
}


def note_lines(result: PlainResult) -> list[str]:
    """Say where oneDNN's fused operations were not used, matrix products are smaller, or cells were left out."""
    largest = max((row["gemm_size"] or 0 for row in result["rows"]), default=0)
    titles_by_note: dict[tuple[str, str], list[str]] = {}
    for title, rows in group_by_cell(result["rows"]):
        for row in rows:
            if note := _note(row, largest):
                titles_by_note.setdefault((row["program"], note), []).append(title)
    lines = [f"note: {program} in {'; '.join(titles)}: {note}" for (program, note), titles in titles_by_note.items()]
    if result["left_out"]:
        lines.append(f"note: left out, as there was no time: {'; '.join(result['left_out'])}")
    return lines


def _note(row: PlainRow, largest: int) -> str:
    kernels, size = row["kernels"], row["gemm_size"]
    if words := KERNEL_NOTES.get(kernels, kernels) if kernels else None:
        packed = "transposed weights in float32, " if row["program"].endswith("packed") else ""
        return f"not by oneDNN's fused operations: {packed}{words}"
    return f"matrices of {size} x {size}, as larger ones take long" if size and size < largest else ""


def condition_lines(result: PlainResult) -> list[str]:
    """Say how the rows were measured, and on which machine."""
    machine, settings = result["machine"], result["settings"]
    before, after = ("unknown" if load is None else load for load in machine["load_before_and_after"])
    versions = [f"{name} {machine[name]}" for name in ("python", "torch", "jax", "flax", "numpy") if name in machine]
    switches = [f"{name} {value}" for name, value in settings.items() if name != "cores_pinned"]
    gpu = f"{machine['gpu']}; " if "gpu" in machine else ""
    return [
        f"Ratios are speeds relative to {result['baseline']}: the median over {result['rounds']} interleaved rounds, "
        "and its 95% interval by the bootstrap. A/A is the baseline against itself, and shows the noise. Peak is the "
        "rate of the best matrix product in the same cell. Memory is what a call takes beyond weights and inputs.",
        f"{machine['date']}: {gpu}{machine['processor']}, {machine['instruction_set']}, {machine['cores']} cores, "
        f"{_pinning(settings)}, of which this process had {machine['cores_had']:.2f}; load "
        f"{before} before and {after} after; {', '.join(switches)}; {', '.join(versions)}.",
    ]


def _pinning(settings: Mapping[str, Any]) -> str:
    cores = settings["cores_pinned"]
    return f"pinned to {', '.join(map(str, cores))}" if cores else "not pinned"


def to_markdown(result: PlainResult) -> str:
    """Write a table for each cell, then the refusals, notes and conditions."""
    lines: list[str] = []
    for title, rows in group_by_cell(result["rows"]):
        lines += [f"### {title}", "", *markdown_table(list(COLUMNS), map(row_texts, rows)), ""]
    tables = "\n".join(lines).rstrip()
    return "\n\n".join([tables, *refusal_lines(result), *note_lines(result), *condition_lines(result)]) + "\n"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Write the lines of a table; all columns but the first hold numbers, and are set to the right."""
    ruled = ["---", *["---:"] * (len(headings) - 1)]
    return [f"| {' | '.join(texts)} |" for texts in (headings, ruled, *rows)]


def to_csv(result: PlainResult) -> str:
    """Write a line for each row, under a line of names."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(result["rows"][0]) if result["rows"] else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["rows"])
    return stream.getvalue()
