"""`mixer-equiv reports`: several reports of `verify` side by side."""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixer_equiv.cli.exit_status import EXIT_STATUS, report_errors
from mixer_equiv.cli.output import check_outputs, show
from mixer_equiv.errors import MAX_LISTED, ReportError, summarize
from mixer_equiv.shown_paths import shown_path

if TYPE_CHECKING:
    from mixer_equiv.equivalence.report import Report


def reports(
    paths: Annotated[list[Path], typer.Argument(metavar="REPORT", help="Files of verify --json, or folders of them.")],
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page that compares them, with all details.")
    ] = None,
) -> None:
    """Compare several reports that verify has written as JSON: their models by verdict, checks and causes.

    The exit status is 0 where all are equivalent, 1 where any is not, and else 3.
    """
    from mixer_equiv.render import reports_to_html
    from mixer_equiv.render.reports import draw_reports

    with report_errors():
        check_outputs({"--html": html_file})
        read = read_reports(paths)
        show(draw_reports(read), {}, None, {"--html": (html_file, lambda: reports_to_html(read))})
    statuses = {EXIT_STATUS[report.verdict] for report in read.values()}
    raise typer.Exit(min(statuses - {0}, default=0))


def read_reports(paths: Sequence[Path]) -> dict[str, Report]:
    """The reports in files, and in the files *.json of folders, each once, by names that may be shown to others.

    Raises `ReportError`, which names every path that is missing, without a report or damaged.
    """
    from mixer_equiv.equivalence.report import Report

    problems: list[str] = []
    read: dict[str, Report] = {}
    for file, name in _files(paths, problems).items():
        try:
            read[_free(name, read)] = Report.from_json(file.read_text(encoding="utf-8"))
        except ReportError as error:
            problems.append(f"{name}: {error}")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{name} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}")
    if problems:
        raise ReportError(summarize(problems, MAX_LISTED, "\n"))
    return read


def _files(paths: Sequence[Path], problems: list[str]) -> dict[Path, str]:
    """The files at `paths`, and their names; folders without any are put to the `problems`."""
    files: dict[Path, str] = {}
    for path in paths:
        found = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not found:
            problems.append(
                f"{path} is a folder without files *.json; write one by: mixer-equiv verify ... --json FILE"
            )
        files |= {file.resolve(): shown_path(file) for file in found}
    return files


def _free(name: str, taken: Container[str]) -> str:
    """The name, with a number where another file has it: outside the current folder the last part is all of it."""
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if free not in taken)
