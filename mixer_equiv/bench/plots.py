"""Pictures of a result: images per second against the batch, or as bars where there is one batch.

Takes rows as JSON has them. Start reading at `draw`; matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mixer_equiv.arrays.interop import require
from mixer_equiv.bench.line_labels import WIDTH as LABEL_WIDTH
from mixer_equiv.bench.line_labels import Label, height_of, label_lines, wrap_names
from mixer_equiv.bench.lines import MOST_LINES, NEARLY, Line, Rows, choose_lines
from mixer_equiv.errors import ConfigError

PICTURE_SUFFIXES = (".svg", ".png")
# Okabe and Ito's colours, which people with colour blindness tell apart, darkened where text would be pale on white.
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#b84c00", "#007a5a", "#9c4a7c"
ORANGE, GREY, BLACK = "#8a5a00", "#5f5f5f", "#000000"
# The colour and marker of each contestant, the same in every picture. Ours are solid, others' dashed, and no marker is
# twice among ours, or among others'. Formulations have markers of their own, as many as a panel has lines.
STYLES = {
    "torch": (BLUE, "o"),
    "torch packed": (VERMILLION, "s"),
    "torch compiled": (PURPLE, "X"),
    "torch graphed": (VERMILLION, "D"),
    "flax": (GREEN, "^"),
    "nnx": (GREEN, "v"),
    "timm": (GREY, "o"),
    "timm compiled": (PURPLE, "s"),
    "timm graphed": (VERMILLION, "v"),
    "tutorial": (ORANGE, "^"),
    "lucidrains": (ORANGE, "P"),
    "official": (BLACK, "D"),
}
FORMULATION_MARKERS = "P*h<>"
# Ours are full bars, others' are hatched.
BAR_STYLES: Mapping[bool, Mapping[str, Any]] = {
    True: {"color": BLUE},
    False: {"facecolor": "#ffffff", "edgecolor": GREY, "hatch": "////", "linewidth": 0.8},
}
RC_PARAMS = {
    "svg.hashsalt": "mixer-equiv",  # the same picture gives the same file
    "font.size": 9,
    "hatch.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

# In inches. A page shows a picture at some 100 pixels an inch.
WIDTH, WIDTH_OF_ONE_PANEL = 7.2, 5.0
PANEL_HEIGHT = 1.9
_LEFT, _ABOVE, _BELOW = 0.45, 0.28, 0.42  # of a panel, for ticks, title, and ticks and label
_HEADING, _LINE_OF_TEXT, _CHARACTERS_AN_INCH = 0.3, 0.15, 17
# What separates panels, as fields of a row.
_FIELDS = ("variant", "dtype", "device", "mode")


def plot(rows: Rows, path: Path, baseline: str | None = None) -> list[Path]:
    """Draw `rows`, and write the picture as `path` and under the same name with the other of `PICTURE_SUFFIXES`.

    Raises `ConfigError` for another suffix or where nothing was timed, `MissingDependencyError` without matplotlib.
    """
    check_picture_path(path)
    figure, written = draw(rows, baseline), [path.with_suffix(suffix) for suffix in PICTURE_SUFFIXES]
    for file in written:
        save_figure(figure, file)
    return written


def draw(rows: Rows, baseline: str | None = None) -> Any:
    """Draw `rows` as a matplotlib figure; the program `baseline` always has a line. Raises as `plot` does."""
    rows = [row for row in rows if row["images_per_second"] and row["program"] != "A/A"]
    if not rows:
        raise ConfigError("there is nothing to plot: no program was timed")
    figures = require("matplotlib.figure", "bench", "a plot")
    heading, panels = _panels(rows)
    with picture_style():
        several = any(len({row["batch"] for row in own}) > 1 for own in panels.values())
        return _draw_lines(figures, heading, panels, baseline) if several else _draw_bars(figures, heading, panels)


def check_picture_path(path: Path) -> None:
    """Check that a picture can be written as `path`. Raises as `plot` does."""
    require("matplotlib", "bench", "a plot")
    if path.suffix not in PICTURE_SUFFIXES:
        raise ConfigError(f"a plot is written as {' or '.join(PICTURE_SUFFIXES)}, and not as {path.name}")
    if folders := [str(file) for suffix in PICTURE_SUFFIXES if (file := path.with_suffix(suffix)).is_dir()]:
        raise ConfigError(f"{folders[0]} is a directory; give a plot another name")


def _draw_lines(figures: Any, heading: str, panels: Mapping[str, Rows], baseline: str | None) -> Any:
    """Draw panels of images per second against the batch, two in a row, with a label at the end of each line."""
    chosen = {title: choose_lines(rows, baseline) for title, rows in panels.items()}
    labels = {title: [_label(line) for line in lines] for title, (lines, _) in chosen.items()}
    across, width = (1, WIDTH_OF_ONE_PANEL) if len(panels) == 1 else (2, WIDTH)
    size = width / across - _LEFT - LABEL_WIDTH, max(PANEL_HEIGHT, *map(height_of, labels.values()))
    down = math.ceil(len(panels) / across)
    caption = _caption(chosen, width)
    footer = _LINE_OF_TEXT * (len(caption) + 1)
    row_height = _ABOVE + size[1] + _BELOW
    height = _HEADING + down * row_height + footer
    figure = figures.Figure(figsize=(width, height))
    figure.text(0.08 / width, 1 - 0.08 / height, f"Images per second: {heading}", va="top", fontsize=10)
    figure.text(0.08 / width, 0.08 / height, "\n".join(caption), va="bottom", fontsize=8, linespacing=1.25)
    for i, (title, (lines, _)) in enumerate(chosen.items()):
        left = i % across * width / across + _LEFT
        bottom = height - _HEADING - i // across * row_height - _ABOVE - size[1]
        axis = figure.add_axes((left / width, bottom / height, size[0] / width, size[1] / height))
        axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
        _draw_panel(axis, lines)
        label_lines(axis, labels[title], size)
    return figure


def _draw_panel(axis: Any, lines: Sequence[Line]) -> None:
    for line, style in zip(lines, line_styles(lines), strict=True):
        axis.plot(line.batches, line.rates(), markersize=4.5, clip_on=False, **style)
        if len(line.programs) > 1:
            axis.fill_between(
                line.batches, line.rates(min), line.rates(max), color=style["color"], alpha=0.2, linewidth=0
            )
    batches = sorted({batch for line in lines for batch in line.batches})
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.minorticks_off()
    axis.set_xlabel("batch")
    axis.set_ylim(0, 1.06 * max(max(line.rates(max)) for line in lines))
    axis.grid(alpha=0.25)


def line_styles(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Choose the styles of a panel's lines, each of another look even without colour.

    A line has the style of its first program: a colour that is the same in every picture, and a marker. Ours are solid.
    """
    styles, markers = [], iter(FORMULATION_MARKERS)
    for first in (line.programs[0] for line in lines):
        colour, marker = STYLES[first.contestant]
        if first.formulation:
            marker = next(markers)
        stroke = {"linewidth": 2.0, "linestyle": "-"} if first.ours else {"linewidth": 1.3, "linestyle": "--"}
        styles.append({"color": colour, "marker": marker, **stroke})
    return styles


def _label(line: Line) -> Label:
    colour, _ = STYLES[line.programs[0].contestant]
    return Label(wrap_names(line.names), colour, line.batches[-1], line.rates()[-1])


def _caption(chosen: Mapping[str, tuple[Sequence[Line], Sequence[str]]], width: float) -> list[str]:
    """Say what lines and bands are, and which programs are left to the table, in lines that fit the picture."""
    sentences = ["Solid where the first program of a label is ours."]
    if any(len(line.programs) > 1 for lines, _ in chosen.values() for line in lines):
        sentences.append(
            f"Programs that are run alike, and within {NEARLY:.0%} of each other, share a line: their median, in a "
            "band from the slowest to the fastest."
        )
    left = [f"{title}{title and ': '}{', '.join(names)}" for title, (_, names) in chosen.items() if names]
    if left:
        sentences.append(f"A panel has at most {MOST_LINES} lines. In the table alone: {'; '.join(left)}.")
    return textwrap.wrap(" ".join(sentences), int(width * _CHARACTERS_AN_INCH))


def _draw_bars(figures: Any, heading: str, panels: Mapping[str, Rows]) -> Any:
    """Draw a bar for each program, where all have one batch: quartiles as whiskers, the share of the peak beside it."""
    longest = max(map(len, panels.values()))
    figure = figures.Figure(figsize=(WIDTH, (0.6 + 0.32 * longest) * len(panels) + 0.6), layout="constrained")
    for axis, (title, own) in zip(figure.subplots(len(panels), squeeze=False).flat, panels.items(), strict=True):
        rows = own[::-1]
        rates = [row["images_per_second"] for row in rows]
        quartiles = [[row["batch"] / row[f"ms_quartile_{n}"] * 1e3 for row in rows] for n in (3, 1)]
        spread = [[abs(rate - at) for rate, at in zip(rates, side, strict=True)] for side in quartiles]
        for ours, style in BAR_STYLES.items():
            places = [i for i, row in enumerate(rows) if row["ours"] == ours]
            axis.barh(places, [rates[i] for i in places], height=0.7, **style)
        axis.errorbar(rates, range(len(rows)), xerr=spread, fmt="none", ecolor=BLACK, elinewidth=1, capsize=2)
        for i, (row, end) in enumerate(zip(rows, quartiles[1], strict=True)):
            text = f" {row['images_per_second']:,.1f} ({row['share_of_peak']:.0%})"
            axis.text(max(end, rates[i]), i, text, va="center")
        axis.set_yticks(range(len(rows)), [row["program"] for row in rows])
        axis.set_title(f"{title}{title and ', '}batch {rows[0]['batch']}", loc="left", fontsize=9, fontweight="bold")
        axis.set_xlim(0, 1.2 * max(quartiles[1]))
    figure.suptitle(f"Images per second: {heading}", x=0.01, ha="left", fontsize=10)
    whose = {row["ours"] for own in panels.values() for row in own}
    legend = "; ours are full, others' hatched" if len(whose) > 1 else ""
    axis.set_xlabel(f"quartiles as whiskers, shares of the matrix product's rate in brackets{legend}", fontsize=8)
    axis.xaxis.label.set(x=1.0, horizontalalignment="right")
    return figure


def picture_style() -> AbstractContextManager[None]:
    """Set the look of all pictures, while they are drawn and while they are written."""
    style: AbstractContextManager[None] = require("matplotlib", "bench", "a plot").rc_context(RC_PARAMS)
    return style


def save_figure(figure: Any, path: Path, dpi: int = 150) -> None:
    """Write a matplotlib figure in the format of the suffix; the same picture gives the same bytes."""
    with picture_style():
        figure.savefig(path, dpi=dpi, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panels(rows: Rows) -> tuple[str, dict[str, list[Mapping[str, Any]]]]:
    """Sort rows by variant, dtype, device and mode: what all have in common, and rows by what sets a panel apart."""
    differing = [field for field in _FIELDS if len({row[field] for row in rows}) > 1]
    panels: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        panels[", ".join(row[field] for field in differing)].append(row)
    return ", ".join(rows[0][field] for field in _FIELDS if field not in differing), panels
