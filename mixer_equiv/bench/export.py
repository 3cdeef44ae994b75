"""A `Result` as plain data, and that as Markdown and as CSV. Tables for the terminal are in `render.bench`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from mixer_equiv.bench.bench import Result, Row

Plain = Mapping[str, Any]

CELL = ("variant", "dtype", "batch", "device", "mode")


def to_dict(result: Result) -> dict[str, Any]:
    """Plain numbers, strings, lists and dicts, for JSON; what the other functions here take."""
    return {
        "baseline": result.baseline,
        "rounds": result.rounds,
        "machine": dict(result.machine),
        "settings": dict(result.settings),
        "left_out": [str(cell) for cell in result.left_out],
        "rows": [_plain(row) for row in result.rows],
    }


def _plain(row: Row) -> dict[str, Any]:
    """A row, flat, by names that are the columns of the CSV too."""
    low, median, high = row.ms or (None, None, None)
    ratio, proof = row.ratio, row.proof
    return {
        **{name: getattr(row.cell, name) for name in CELL},
        "program": row.name,
        "ours": row.ours,
        "images_per_second": row.images_per_second,
        "ms": median,
        "ms_quartile_1": low,
        "ms_quartile_3": high,
        "gflops": row.gflops,
        "share_of_peak": row.share,
        "ratio": ratio and ratio.median,
        "ratio_low": ratio and ratio.low,
        "ratio_high": ratio and ratio.high,
        "memory_bytes": row.memory,
        "compile_seconds": row.compiling,
        "float64_residual": proof and proof.exact,
        "error": proof and proof.error,
        "error_bound": proof and proof.bound,
        "kernels": row.kernels,
        "gemm_size": row.size,
        "refused": row.refused,
    }


def said(pattern: str, *fields: str) -> Callable[[Plain], str]:
    """Those fields of a row in words, nothing where the first is None."""
    return lambda row: "" if row[fields[0]] is None else pattern.format(*(row[field] for field in fields))


COLUMNS: Mapping[str, Callable[[Plain], str]] = {
    "program": lambda row: row["program"],
    "images/s": said("{:,.1f}", "images_per_second"),
    "ms": said("{:.2f}", "ms"),
    "quartiles": said("{:.2f}-{:.2f}", "ms_quartile_1", "ms_quartile_3"),
    "GFLOP/s": said("{:,.1f}", "gflops"),
    "of peak": said("{:.0%}", "share_of_peak"),
    "ratio": said("{:.3f} ({:.3f}-{:.3f})", "ratio", "ratio_low", "ratio_high"),
    "memory": lambda row: "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e6:,.0f} MB",
    "compile": said("{:.1f} s", "compile_seconds"),
    "error": said("{:.1e}", "error"),
}


def cells_of(row: Plain, columns: Mapping[str, Callable[[Plain], str]] = COLUMNS) -> list[str]:
    """What stands under each of `columns`."""
    if row["refused"]:
        return [row["program"], "refused", *[""] * (len(columns) - 2)]
    return [say(row) for say in columns.values()]


def by_cell(rows: Iterable[Plain]) -> Iterator[tuple[str, list[Plain]]]:
    """Rows that are compared with each other, and in words what they have in common."""
    for cell, group in groupby(rows, lambda row: [row[name] for name in CELL]):
        variant, dtype, batch, device, mode = cell
        yield f"{variant}, {dtype}, batch {batch}, {device}, {mode}", list(group)


def refusals(result: Plain) -> list[str]:
    """Why each that was refused was."""
    return [
        f"refused: {row['program']} in {title}: {row['refused']}"
        for title, rows in by_cell(result["rows"])
        for row in rows
        if row["refused"]
    ]


# What the kernels of a row are called, where they are not those that most processors have.
KERNELS = {
    "onednn": None,
    "layers": "its layers are called, as they are small",
    "blas": "plain products, the activation in place",
    "float32": "in float32, as oneDNN does not multiply in bfloat16 here",
}


def notes(result: Plain) -> list[str]:
    """Where oneDNN's fused operations were not taken, and where a matrix product was smaller than the others."""
    largest = max((row["gemm_size"] or 0 for row in result["rows"]), default=0)
    cells_of_note: dict[tuple[str, str], list[str]] = {}
    for title, rows in by_cell(result["rows"]):
        for row in rows:
            if said := _noted(row, largest):
                cells_of_note.setdefault((row["program"], said), []).append(title)
    found = [f"note: {program} in {'; '.join(titles)}: {said}" for (program, said), titles in cells_of_note.items()]
    if result["left_out"]:
        found.append(f"note: left out, as there was no time: {'; '.join(result['left_out'])}")
    return found


def _noted(row: Plain, largest: int) -> str:
    """What is to be known of how a row was computed, nothing for most."""
    kernels, size = row["kernels"], row["gemm_size"]
    if words := KERNELS.get(kernels, kernels) if kernels else None:
        packed = "transposed weights in float32, " if row["program"].endswith("packed") else ""
        return f"not by oneDNN's fused operations: {packed}{words}"
    return f"matrices of {size} x {size}, as larger ones take long" if size and size < largest else ""


def conditions(result: Plain) -> list[str]:
    """How it was measured and on what, in sentences."""
    machine, used = result["machine"], result["settings"]
    before, after = ("untold" if load is None else load for load in machine["load_before_and_after"])
    versions = [f"{name} {machine[name]}" for name in ("python", "torch", "jax", "flax", "numpy") if name in machine]
    switches = [f"{name} {value}" for name, value in used.items() if name != "cores_pinned"]
    gpu = f"{machine['gpu']}; " if "gpu" in machine else ""
    return [
        f"Ratios are speeds relative to {result['baseline']}: the median over {result['rounds']} interleaved rounds, "
        "and its 95% interval by the bootstrap; A/A is the baseline against itself, the noise. Peak is the rate of the "
        "best matrix product in the same cell, memory what a call takes beyond weights and inputs.",
        f"{machine['date']}: {gpu}{machine['processor']}, {machine['instruction_set']}, {machine['cores']} cores, "
        f"{_pinned(used)}, of which this process had {machine['cores_had']:.2f}; load "
        f"{before} before and {after} after; {', '.join(switches)}; {', '.join(versions)}.",
    ]


def _pinned(used: Plain) -> str:
    return f"pinned to {', '.join(map(str, used['cores_pinned']))}" if used["cores_pinned"] else "not pinned"


def markdown(result: Plain) -> str:
    """Every cell's table, and the conditions."""
    lines: list[str] = []
    for title, rows in by_cell(result["rows"]):
        lines += [f"### {title}", "", *markdown_rows(list(COLUMNS), map(cells_of, rows)), ""]
    return "\n\n".join(["\n".join(lines).rstrip(), *refusals(result), *notes(result), *conditions(result)]) + "\n"


def markdown_rows(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table of Markdown; all columns but the first are numbers."""
    ruled = ["---", *["---:"] * (len(headings) - 1)]
    return [f"| {' | '.join(texts)} |" for texts in (headings, ruled, *rows)]


def to_csv(result: Plain) -> str:
    """One line for each row, with a line of names above."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(result["rows"][0]) if result["rows"] else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["rows"])
    return stream.getvalue()
