"""Pictures of a result: images per second against the batch, and shares of the peak."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixer_equiv.arrays import require
from mixer_equiv.errors import ConfigError

SUFFIXES = (".svg", ".png")
COLOURS = ("#0b5394", "#cc4125", "#38761d", "#8e44ad", "#b45f06", "#17808a", "#666666", "#a61c5a")
MARKERS = "osD^v<>P"
LOOK = {
    "svg.hashsalt": "mixer-equiv",  # the same picture is the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

Rows = Sequence[Mapping[str, Any]]


def plot(rows: Rows, path: Path) -> list[Path]:
    """Draw `rows`, as a result's JSON has them, into `path` and the same name of the other of `SUFFIXES`.

    Raises `ConfigError` for another suffix or where nothing was timed, `MissingDependencyError` without matplotlib.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"a plot is written as {' or '.join(SUFFIXES)}, and not as {path.name}")
    panels = _panels([row for row in rows if row["images_per_second"] and row["program"] != "A/A"])
    if not panels:
        raise ConfigError("there is nothing to plot: no program was timed")
    matplotlib = require("matplotlib", "bench", "a plot")
    figures = require("matplotlib.figure", "bench", "a plot")
    with matplotlib.rc_context(LOOK):
        figure = figures.Figure(figsize=(max(6.4, 4.6 * len(panels)), 7.2), layout="constrained")
        axes = figure.subplots(2, len(panels), squeeze=False)
        styles = _styles(rows)
        for (above, below), (title, lines) in zip(axes.T, panels.items(), strict=True):
            above.set_title(title)
            _draw(above, lines, "images_per_second", styles)
            _draw(below, lines, "share_of_peak", styles)
            above.set_ylabel("images per second")
            below.set_ylabel("share of the matrix product's rate")
            below.set_xlabel("batch")
        columns = max(2, min(5, 2 * len(panels)))
        handles = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=columns,
            frameon=False,
        )
        return save(figure, path)


def save(figure: Any, path: Path) -> list[Path]:
    """Write a matplotlib figure as `path` with each of `SUFFIXES`; the same picture is the same bytes."""
    written = [path.with_suffix(suffix) for suffix in SUFFIXES]
    for file in written:
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    return written


def _panels(rows: Rows) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """Rows by program, for each variant, dtype, device and mode."""
    panels: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        title = f"{row['variant']}, {row['dtype']}, {row['device']}, {row['mode']}"
        panels[title][row["program"]].append(row)
    return panels


def _styles(rows: Rows) -> dict[str, dict[str, Any]]:
    """Each program's colour and marker, the same in every panel; ours are drawn thicker."""
    programs = {row["program"]: row["ours"] for row in rows}
    return {
        program: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i // len(COLOURS) % len(MARKERS)],
            "linewidth": 2.0 if ours else 1.1,
            "linestyle": "-" if ours else "--",
        }
        for i, (program, ours) in enumerate(programs.items())
    }


def _draw(axis: Any, lines: Mapping[str, Rows], field: str, styles: Mapping[str, Mapping[str, Any]]) -> None:
    for program, rows in lines.items():
        points = sorted((row["batch"], row[field]) for row in rows)
        axis.plot(*zip(*points, strict=True), label=program, markersize=4, **styles[program])
    batches = sorted({row["batch"] for rows in lines.values() for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
