"""Pictures of a result: images per second and shares of the peak, against the batch where there are several.

Takes rows as JSON has them. Start reading at `draw`; matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mixer_equiv.arrays.interop import require
from mixer_equiv.bench.contestants import CONTESTANTS
from mixer_equiv.errors import ConfigError

PICTURE_SUFFIXES = (".svg", ".png")
LINE_COLOURS = (
    *("#0b5394", "#cc4125", "#38761d", "#93c47d", "#8e44ad", "#b45f06"),  # for our six contestants
    *("#17808a", "#666666", "#6fa8dc", "#a61c5a", "#000000", "#bf9000"),  # for the six of others
)
BAR_COLOURS = {True: "#7fa9d6", False: "#b5b5b5"}  # ours, others'
MARKERS = "osD^v<>P"
RC_PARAMS = {
    "svg.hashsalt": "mixer-equiv",  # the same picture gives the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

Rows = Sequence[Mapping[str, Any]]
Lines = Mapping[str, Rows]


def plot(rows: Rows, path: Path) -> list[Path]:
    """Draw `rows`, and write the picture as `path` and under the same name with the other of `PICTURE_SUFFIXES`.

    Raises `ConfigError` for another suffix or where nothing was timed, `MissingDependencyError` without matplotlib.
    """
    check_picture_path(path)
    figure, written = draw(rows), [path.with_suffix(suffix) for suffix in PICTURE_SUFFIXES]
    for file in written:
        save_figure(figure, file)
    return written


def draw(rows: Rows) -> Any:
    """Draw `rows` as a matplotlib figure. Raises as `plot` does."""
    rows = [row for row in rows if row["images_per_second"] and row["program"] != "A/A"]
    panels = _panels(rows)
    if not panels:
        raise ConfigError("there is nothing to plot: no program was timed")
    figures = require("matplotlib.figure", "bench", "a plot")
    with picture_style():
        several = any(len(rows) > 1 for lines in panels.values() for rows in lines.values())
        return _draw_lines(figures, panels, _styles(rows)) if several else _draw_bars(figures, panels)


def check_picture_path(path: Path) -> None:
    """Check that a picture can be written as `path`. Raises as `plot` does."""
    require("matplotlib", "bench", "a plot")
    if path.suffix not in PICTURE_SUFFIXES:
        raise ConfigError(f"a plot is written as {' or '.join(PICTURE_SUFFIXES)}, and not as {path.name}")
    if folders := [str(file) for suffix in PICTURE_SUFFIXES if (file := path.with_suffix(suffix)).is_dir()]:
        raise ConfigError(f"{folders[0]} is a directory; give a plot another name")


def _draw_lines(figures: Any, panels: Mapping[str, Lines], styles: Mapping[str, Mapping[str, Any]]) -> Any:
    """Draw a panel for each variant, dtype, device and mode, against the batch."""
    figure = figures.Figure(figsize=(max(6.4, 4.6 * len(panels)), 7.2), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False)
    for (above, below), (title, lines) in zip(axes.T, panels.items(), strict=True):
        above.set_title(title)
        _draw_panel(above, lines, "images_per_second", styles)
        _draw_panel(below, lines, "share_of_peak", styles)
        above.set_ylabel("images per second")
        below.set_ylabel("share of the matrix product's rate")
        below.set_xlabel("batch")
    handles = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    columns = max(2, min(5, 2 * len(panels)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _draw_bars(figures: Any, panels: Mapping[str, Lines]) -> Any:
    """Draw a bar for each program, where all have one batch: quartiles as whiskers, the share of the peak beside it."""
    longest = max(map(len, panels.values()))
    figure = figures.Figure(figsize=(7.2, (0.6 + 0.32 * longest) * len(panels) + 0.4), layout="constrained")
    for axis, (title, lines) in zip(figure.subplots(len(panels), squeeze=False).flat, panels.items(), strict=True):
        rows = [row for (row,) in lines.values()][::-1]
        rates = [row["images_per_second"] for row in rows]
        quartiles = [[row["batch"] / row[f"ms_quartile_{n}"] * 1e3 for row in rows] for n in (3, 1)]
        spread = [[abs(rate - at) for rate, at in zip(rates, side, strict=True)] for side in quartiles]
        colours = [BAR_COLOURS[row["ours"]] for row in rows]
        axis.barh(
            range(len(rows)), rates, xerr=spread, color=colours, height=0.7, error_kw={"elinewidth": 1, "capsize": 2}
        )
        for i, (row, end) in enumerate(zip(rows, quartiles[1], strict=True)):
            text = f" {row['images_per_second']:,.1f} ({row['share_of_peak']:.0%})"
            axis.text(max(end, rates[i]), i, text, va="center")
        axis.set_yticks(range(len(rows)), [row["program"] for row in rows])
        axis.set_title(f"{title}, batch {rows[0]['batch']}")
        axis.set_xlim(0, 1.2 * max(quartiles[1]))
    axis.set_xlabel("images per second (share of the matrix product's rate); ours in blue")
    return figure


def picture_style() -> AbstractContextManager[None]:
    """Set the look of all pictures, while they are drawn and while they are written."""
    style: AbstractContextManager[None] = require("matplotlib", "bench", "a plot").rc_context(RC_PARAMS)
    return style


def save_figure(figure: Any, path: Path, dpi: int = 150) -> None:
    """Write a matplotlib figure in the format of the suffix; the same picture gives the same bytes."""
    with picture_style():
        figure.savefig(path, dpi=dpi, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panels(rows: Rows) -> Mapping[str, Lines]:
    """Sort rows by panel, which is a variant, dtype, device and mode, and by program."""
    panels: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        title = f"{row['variant']}, {row['dtype']}, {row['device']}, {row['mode']}"
        panels[title][row["program"]].append(row)
    return panels


def _styles(rows: Rows) -> dict[str, dict[str, Any]]:
    """Choose the style of each program, the same in every picture.

    A contestant has its colour, each of its formulations a marker; ours are drawn thicker.
    """
    names, formulations = list(CONTESTANTS), Counter[str]()
    styles = {}
    for name, ours in {row["program"]: row["ours"] for row in rows}.items():
        contestant, _, formulation = name.partition(" (")
        formulations[contestant] += bool(formulation)
        styles[name] = {
            "color": LINE_COLOURS[names.index(contestant)],
            "marker": MARKERS[formulations[contestant] % len(MARKERS) if formulation else 0],
            "linewidth": 2.0 if ours else 1.1,
            "linestyle": "-" if ours else "--",
        }
    return styles


def _draw_panel(axis: Any, lines: Lines, field: str, styles: Mapping[str, Mapping[str, Any]]) -> None:
    for program, rows in lines.items():
        points = sorted((row["batch"], row[field]) for row in rows)
        axis.plot(*zip(*points, strict=True), label=program, markersize=4, **styles[program])
    batches = sorted({row["batch"] for rows in lines.values() for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
