"""Plots: which programs have a line, labels that can be read, and looks that are told apart without colour."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from benchmarks import pages, result_files
from mixer_equiv import ConfigError
from mixer_equiv.bench import export, plots
from mixer_equiv.bench.contestants import CONTESTANTS
from mixer_equiv.bench.line_labels import spread, wrap_names
from mixer_equiv.bench.lines import MOST_LINES, choose_lines
from mixer_equiv.bench.measurement import BenchResult
from mixer_equiv.formulation import TOKENS_CHOICES
from tests.support.colours import contrast

FORMULATION = "(linear, matmul, linear)"
PROGRAMS = [*CONTESTANTS, *(f"{name} {FORMULATION}" for name in ("torch", "torch compiled", "flax"))]


def rows_of(rates: dict[str, Sequence[float]], dtype: str = "float32") -> list[dict[str, Any]]:
    """Rows of programs, given images per second with batches of 1, 8 and so on."""
    return [
        {
            "variant": "S/32",
            "dtype": dtype,
            "batch": 8**i,
            "device": "cpu",
            "mode": "inference",
            "program": program,
            "ours": CONTESTANTS[program.partition(" (")[0]].ours,
            "images_per_second": rate,
        }
        for program, by_batch in rates.items()
        for i, rate in enumerate(by_batch)
    ]


def far_apart(seed: int) -> dict[str, Sequence[float]]:
    """Rates of all programs, of which no two nearly coincide."""
    places = random.Random(seed).sample(range(len(PROGRAMS)), len(PROGRAMS))
    return {program: (10 * 1.2**place, 12 * 1.2**place) for program, place in zip(PROGRAMS, places, strict=True)}


def names_of(rows: Sequence[dict[str, Any]], baseline: str | None = None) -> list[tuple[str, ...]]:
    return [line.names for line in choose_lines(rows, baseline)[0]]


# Files


def test_a_plot_is_an_svg_and_a_png_and_the_same_one_again_has_the_same_bytes(
    result: BenchResult, tmp_path: Path
) -> None:
    rows = export.to_dict(result)["rows"]
    for name, given_rows in (("bars", rows), ("lines", rows_of(far_apart(0)))):
        written = plots.plot(given_rows, tmp_path / f"{name}.svg")
        assert [path.name for path in written] == [f"{name}.svg", f"{name}.png"]
        first = [path.read_bytes() for path in written]
        assert b"<svg" in first[0]
        assert first[1].startswith(b"\x89PNG")
        plots.plot(given_rows, tmp_path / f"{name}.png")
        assert [path.read_bytes() for path in written] == first


def test_batches_that_are_several_are_plotted_as_lines_and_single_ones_as_bars(result: BenchResult) -> None:
    bars = plots.draw(export.to_dict(result)["rows"]).axes[0]
    assert (len(bars.patches), [text.get_text() for text in bars.get_yticklabels()]) == (3, ["flax", "timm", "torch"])
    lines = plots.draw(rows_of({"torch": (10, 20), "timm": (5, 10), "flax": (1, 2)})).axes[0]
    assert (len(lines.patches), len(lines.get_lines())) == (0, 3)


@pytest.mark.parametrize(("name", "rows"), [("speed.pdf", None), ("speed.svg", [])])
def test_what_cannot_be_plotted_is_an_error(result: BenchResult, tmp_path: Path, name: str, rows: Any) -> None:
    with pytest.raises(ConfigError, match=r"a plot is written as|there is nothing to plot"):
        plots.plot(export.to_dict(result)["rows"] if rows is None else rows, tmp_path / name)


# The lines of a panel


@pytest.mark.parametrize("seed", range(5))
def test_a_panel_has_at_most_five_lines_and_names_every_other_program(seed: int) -> None:
    figure = plots.draw(rows_of(far_apart(seed)), "timm")
    (axis,) = figure.axes
    labels = {" ".join(text.get_text().split()) for text in axis.texts}
    assert len(axis.get_lines()) == len(labels) == MOST_LINES
    caption = " ".join(" ".join(text.get_text() for text in figure.texts).split())
    left = caption.partition("In the table alone: ")[2].removesuffix(".")
    assert sorted(re.split(r", (?![^(]*\))", left)) == sorted(set(PROGRAMS) - labels)


@pytest.mark.parametrize("seed", range(5))
def test_the_baseline_the_official_two_of_ours_and_the_fastest_of_others_have_a_line(seed: int) -> None:
    rates = far_apart(seed)
    drawn = {name for (name,) in names_of(rows_of(rates), "tutorial")}
    by_rate = sorted(rates, key=lambda name: rates[name])
    ours, others = ([name for name in by_rate if _is_ours(name) == whose] for whose in (True, False))
    assert {"tutorial", "official", *ours[-2:]} <= drawn
    assert len(drawn) == MOST_LINES
    assert next(name for name in reversed(others) if name not in ("tutorial", "official")) in drawn


def _is_ours(program: str) -> bool:
    return CONTESTANTS[program.partition(" (")[0]].ours


@pytest.mark.parametrize(
    ("other", "faster", "shared"),
    [
        ("tutorial", 1.09, True),
        ("tutorial", 1.11, False),
        ("torch", 1.09, True),
        ("timm compiled", 1.0, False),
        ("official", 1.0, False),
        (f"torch {FORMULATION}", 1.0, False),
    ],
)
def test_programs_share_a_line_where_they_are_run_alike_and_nearly_as_fast(
    other: str, faster: float, shared: bool
) -> None:
    rows = rows_of({"timm": (10, 20), other: (10, 20 * faster)})
    assert (len(names_of(rows)) == 1) == shared


def test_programs_that_were_timed_with_other_batches_share_no_line() -> None:
    assert len(names_of(rows_of({"timm": (10, 20), "tutorial": (10,)}))) == 2


def test_all_programs_of_a_line_are_near_each_other_and_not_in_a_chain() -> None:
    assert len(names_of(rows_of({"timm": (10, 20), "tutorial": (10, 21.8), "lucidrains": (10, 23.5)}))) == 2


def test_a_shared_line_is_the_median_in_a_band_from_the_slowest_to_the_fastest() -> None:
    rows = rows_of({"flax": (10, 20), "nnx": (10.5, 21.5), "official": (10.2, 20.5)})
    (axis,) = plots.draw(rows).axes
    (line,), (band,) = axis.get_lines(), axis.collections
    assert list(line.get_ydata()) == [10.2, 20.5]
    assert {y for _, y in band.get_paths()[0].vertices} >= {10, 10.5, 20, 21.5}


# Labels


def label_boxes(figure: Any) -> Iterator[list[Bbox]]:
    """The boxes of the labels of each panel."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for axis in figure.axes:
        texts = [text for text in axis.texts if isinstance(text, Annotation)]
        # Of the text alone, without what leads to it.
        yield [super(Annotation, text).get_window_extent(renderer) for text in texts]


def problems_of(figure: Any) -> list[str]:
    """What is wrong with labels: overlaps, cut text, and text over another panel."""
    problems = []
    for boxes in label_boxes(figure):
        for x, y in itertools.combinations(boxes, 2):
            if x.overlaps(y):
                problems.append("labels overlap")
        for box in boxes:
            if box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1:
                problems.append("a label is cut")
            if any(box.overlaps(other.bbox) for other in figure.axes):
                problems.append("a label is over a panel")
    return problems


def all_equal(dtypes: Sequence[str]) -> list[dict[str, Any]]:
    return [row for dtype in dtypes for row in rows_of(dict.fromkeys(PROGRAMS, (10, 20)), dtype)]


CROWDED = {
    "all programs equal, one panel": all_equal(["float32"]),
    "all programs equal, three panels": all_equal(["float32", "bfloat16", "float64"]),
    "all programs slow": rows_of({"timm": (1000, 1000), **dict.fromkeys(PROGRAMS[:5], (1, 1))}),
    "long names": rows_of(
        {
            f"torch compiled (linear_channels_first, {tokens}, conv1d)": (10 + i, 20 + 3 * i)
            for i, tokens in enumerate(TOKENS_CHOICES)
        }
    ),
    **{f"far apart, {seed}": rows_of(far_apart(seed)) for seed in range(3)},
}


@pytest.mark.parametrize("rows", CROWDED.values(), ids=CROWDED)
def test_no_label_covers_another_or_is_cut(rows: list[dict[str, Any]]) -> None:
    assert problems_of(plots.draw(rows, "timm")) == []


@pytest.mark.parametrize("name", pages.recorded_names())
def test_no_label_of_a_recorded_result_covers_another_or_is_cut(name: str) -> None:
    figure = pages.page_of(name).draw(result_files.rounded(result_files.read(name)))
    assert figure is None or problems_of(figure) == []


def test_labels_at_the_ends_of_their_lines_would_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixer_equiv.bench.line_labels.spread", lambda wanted, heights, available: wanted)
    assert "labels overlap" in problems_of(plots.draw(all_equal(["float32"]), "timm"))


def test_names_are_wrapped_between_names_and_words() -> None:
    assert wrap_names(["timm", "torch compiled"]) == "timm,\ntorch compiled"
    assert wrap_names(["torch (linear_channels_first, linear, linear)"]).splitlines() == [
        "torch (linear_",
        "channels_first,",
        "linear, linear)",
    ]


labels = st.lists(st.tuples(st.floats(-50, 250), st.floats(1, 30)), min_size=1, max_size=6)


@given(labels)
def test_spread_labels_keep_their_order_and_their_distance_inside_the_panel(drawn: list[tuple[float, float]]) -> None:
    wanted, heights = zip(*sorted(drawn), strict=True)
    places = spread(wanted, heights, 200)
    edges = [
        edge for place, height in zip(places, heights, strict=True) for edge in (place - height / 2, place + height / 2)
    ]
    assert all(below <= above + 1e-9 for below, above in itertools.pairwise(edges))
    assert edges[0] >= -1e-9
    assert edges[-1] <= 200 + 1e-9


def test_labels_that_have_room_are_not_moved_and_two_that_overlap_part_by_half_each() -> None:
    assert spread([20, 60, 100], [10, 10, 10], 200) == [20, 60, 100]
    assert spread([50, 52], [10, 10], 200) == pytest.approx([46, 56])
    assert spread([0, 199], [10, 20], 200) == [5, 190]


# Looks


def test_the_colour_of_every_text_and_line_has_enough_contrast_on_white() -> None:
    colours = {colour for colour, _ in plots.STYLES.values()}
    assert {colour: contrast(colour, "#ffffff") for colour in colours if contrast(colour, "#ffffff") < 4.5} == {}
    assert contrast("#d55e00", "#ffffff") < 4.5  # Okabe and Ito's own vermillion


def test_every_contestant_has_a_style_and_no_two_of_them_look_alike_without_colour() -> None:
    assert list(plots.STYLES) == list(CONTESTANTS)
    looks = [(marker, CONTESTANTS[name].ours) for name, (_, marker) in plots.STYLES.items()]
    assert len(set(looks)) == len(looks)
    assert not {marker for marker, ours in looks if ours} & set(plots.FORMULATION_MARKERS)
    assert len(set(plots.FORMULATION_MARKERS)) >= MOST_LINES


@pytest.mark.parametrize("rows", CROWDED.values(), ids=CROWDED)
def test_lines_of_a_panel_are_told_apart_without_colour(rows: list[dict[str, Any]]) -> None:
    for axis in plots.draw(rows, "timm").axes:
        looks = [(line.get_marker(), line.get_linestyle()) for line in axis.get_lines()]
        assert len(set(looks)) == len(looks)


def test_a_program_has_the_same_colour_in_every_plot() -> None:
    for name in PROGRAMS:
        (line,) = plots.draw(rows_of({name: (10, 20)})).axes[0].get_lines()
        assert line.get_color() == plots.STYLES[name.partition(" (")[0]][0]


def test_ours_and_others_bars_are_told_apart_without_colour() -> None:
    ours, others = (plots.BAR_STYLES[whose] for whose in (True, False))
    assert others["hatch"]
    assert not ours.get("hatch")
    assert contrast(ours["color"], others["facecolor"]) >= 3
