"""The tables of a page, as plain data that one macro draws. Start at `HtmlTable`.

Knows no HTML: escaping, stacking on a telephone, sorting and filtering are those of the templates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from mixer_equiv.checkpoints.provenance import Provenance
from mixer_equiv.equivalence.report import HEADLINES, Cause, Report, SideReport, readable
from mixer_equiv.render.checks import CHECKS, NOT_COMPARED, Check, checks_of, in_words, reasons_in_short, sortable
from mixer_equiv.render.colours import COLOURS


class Cell(NamedTuple):
    """Text with further `lines` below it.

    `value` is what the column is sorted by if not the text, `link` a place on the page, `is_passed` the outcome of a
    check, and `colour` one of a verdict.
    """

    text: str = ""
    lines: tuple[str, ...] = ()
    value: float | None = None
    link: str = ""
    is_passed: bool | None = None
    colour: str = ""


class Column(NamedTuple):
    """A heading, and what the cells below it hold: "words" are our own, and never broken in two."""

    heading: str
    kind: Literal["text", "words", "code", "number"] = "text"


@dataclasses.dataclass(frozen=True)
class HtmlTable:
    """Rows below columns; the first cell of a row is its heading."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_sortable: bool = False


def checks_table(report: Report) -> HtmlTable:
    """The checks that were made."""
    rows = [(Cell(check.name), _check_cell(check)) for check in checks_of(report) if check.text != NOT_COMPARED]
    return HtmlTable(
        "Each part that was compared, against its threshold", (Column("check"), Column("result")), tuple(rows)
    )


def causes_table(causes: Iterable[Cause]) -> HtmlTable:
    """Causes with their places, each place on a line of its own."""
    columns = Column("cause"), Column("found"), Column("expected"), Column("where")
    rows = [
        (
            Cell(readable(cause.name)),
            Cell(cause.found),
            Cell(cause.expected),
            Cell(cause.count, tuple(filter(None, (cause.evidence, *cause.places)))),
        )
        for cause in causes
    ]
    return HtmlTable("Causes, with their places in the code or weights", columns, tuple(rows))


def stages_table(report: Report) -> HtmlTable:
    """The float64 residuals of every stage."""
    against = [Column(f"{side.name} to NumPy", "number") for side in report.sides]
    rows = [
        (Cell(readable(s.name)), *map(_number_cell, (s.residual, s.residual_a, s.residual_b))) for s in report.stages
    ]
    caption = "float64 residuals, stage by stage, relative in the 2-norm"
    return HtmlTable(caption, (Column("stage"), Column("between them", "number"), *against), tuple(rows))


def sides_table(report: Report) -> HtmlTable:
    """What the two sides are, and how exact each is."""
    rows: list[tuple[str, Iterable[str], str]] = [
        ("program", [side.program for side in report.sides], ""),
        ("parameters", [f"{side.num_parameters:,}" for side in report.sides], ""),
        ("weights", [side.weights for side in report.sides], report.weights),
        ("round trip", map(_round_trip, report.sides), ""),
        (f"{report.dtype} error (RMS)", [in_words(side.rms_error) for side in report.sides], ""),
        ("accuracy", [_percent(side.accuracy) for side in report.sides], ""),
    ]
    if report.gradients:
        rows.append(("gradients, float64", ("", ""), _most(report.gradients.residual, report.gradients.worst)))
    rows += [(trained.label, ("", ""), _most(trained.residual, trained.worst)) for trained in report.training]
    if report.prediction_flips is not None:
        rows.append(("prediction flips", ("", ""), f"{report.prediction_flips} of {report.num_images}"))
    cells = [(Cell(name), *map(Cell, of_sides), Cell(between)) for name, of_sides, between in rows]
    columns = Column("part"), *(Column(side.name) for side in report.sides), Column("between them")
    return HtmlTable(
        "Programs, weights and errors of each",
        columns,
        tuple(row for row in cells if any(cell.text for cell in row[1:])),
    )


def arrays_table(report: Report) -> HtmlTable:
    """The parameters, one a row: names, shape, how far their gradients are apart, and whether an output shows them."""
    columns = [
        Column("official name", "code"),
        Column(f"name in {report.mapping_of}", "code"),
        Column("shape", "number"),
    ]
    gradients = report.gradients.by_parameter if report.gradients else {}
    columns += [Column("gradients apart", "number")] * bool(gradients)
    rows = []
    for name, foreign in report.mapping.items():
        shape, apart = report.shapes.get(name), gradients.get(name, gradients.get(foreign))
        cells = [Cell(name), Cell(foreign), _shape_cell(shape), *[_number_cell(apart)] * bool(gradients)]
        rows.append((*cells, Cell("no" if name in report.unobservable else "yes")))
    return HtmlTable(
        "Parameters under their names, with what was found for each",
        (*columns, Column("changes an output")),
        tuple(rows),
        is_sortable=True,
    )


def faults_table(visible: Mapping[str, float]) -> HtmlTable:
    """Known faults, and how far each would have moved the outputs."""
    columns = Column("known fault, planted in one place"), Column("moves the output by", "number")
    rows = [(Cell(readable(fault)), _number_cell(moved)) for fault, moved in visible.items()]
    return HtmlTable("Known faults on these inputs", columns, tuple(rows), is_sortable=True)


def digests_table(provenance: Provenance) -> HtmlTable:
    """The files that were read, and those with the models' code."""
    columns = Column("file", "code"), Column("bytes", "number"), Column("sha256", "code")
    rows = [
        (
            Cell(digest.path),
            Cell(f"{digest.num_bytes:,}", value=digest.num_bytes),
            Cell(digest.sha256 or "not computed"),
        )
        for digest in (*provenance.files, *provenance.sources)
    ]
    return HtmlTable("Files that were read, and code of the models", columns, tuple(rows))


def reports_table(reports: Mapping[str, Report], places: Iterable[str]) -> HtmlTable:
    """Several reports by their files, one a row, with the checks as columns; `places` have their details."""
    columns = Column("models"), *(Column(heading, "words") for heading in ("verdict", *CHECKS)), Column("causes")
    rows = [
        (
            Cell(" and ".join(report.names) or file, (file,) * bool(report.names), link=place),
            Cell(HEADLINES[report.verdict], colour=COLOURS[report.verdict]),
            *map(_check_cell, checks_of(report)),
            Cell("", reasons_in_short(report)),
        )
        for (file, report), place in zip(reports.items(), places, strict=True)
    ]
    return HtmlTable("Each row is a report; its name leads to the details", columns, tuple(rows), is_sortable=True)


def _check_cell(check: Check) -> Cell:
    if check.text == NOT_COMPARED:
        return Cell(lines=(NOT_COMPARED,))
    return Cell(
        check.text, value=None if check.residual is None else sortable(check.residual), is_passed=check.is_passed
    )


def _number_cell(value: float | None) -> Cell:
    return Cell(in_words(value), value=None if value is None else sortable(value))


def _shape_cell(shape: tuple[int, ...] | None) -> Cell:
    return Cell() if shape is None else Cell(" x ".join(map(str, shape)) or "scalar", value=math.prod(shape))


def _round_trip(side: SideReport) -> str:
    if side.round_trip is None:
        return ""
    return f"{side.round_trip_path}: {'' if side.round_trip else 'NOT '}bit-identical"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.2%}"


def _most(residual: float, worst: str) -> str:
    return f"{in_words(residual)}, most at {worst}"
