"""A report of `verify` in the Markdown of GitHub, for a pull request. Start at `to_markdown`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mixer_equiv.checkpoints.provenance import Provenance
from mixer_equiv.equivalence.report import HEADLINES, Report, number, readable

# Characters that mean something in Markdown wherever they stand.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#&])")


def to_markdown(report: Report) -> str:
    """Write `report` in Markdown: the verdict as a heading, its reasons, causes in a table, and what made it."""
    paragraphs = [*_verdict(report), *_causes(report), *_residuals(report), *_made_by(report.provenance)]
    return "\n\n".join(paragraphs) + "\n"


def _verdict(report: Report) -> Iterator[str]:
    names = " and ".join(f"`{_in_code(name)}`" for name in report.names)
    yield f"## {HEADLINES[report.verdict]}" + (f": {names}" if names else "")
    if report.residual is not None:
        yield (
            f"float64 residual of the outputs **{number(report.residual)}** (threshold {report.threshold:g}), "
            f"{_plain(report.images)}"
        )
    if report.reasons:
        yield "\n".join(f"- {_plain(reason)}" for reason in report.reasons)


def _causes(report: Report) -> Iterator[str]:
    if report.causes:
        heading = ("cause", "found", "expected", "where")
        rows = [
            (readable(c.name), c.found, c.expected, "; ".join(filter(None, (c.count, c.where)))) for c in report.causes
        ]
        yield _table(heading, rows)
    if report.residual_without_causes is not None:
        changed = "this" if len(report.causes) == 1 else "these"
        yield f"With {changed} changed it is the same function: residual {number(report.residual_without_causes)}."
    if report.first_divergence:
        yield f"Over the threshold from **{_plain(readable(report.first_divergence))}** on."
    if report.warnings:
        yield "\n".join(f"- warning: {_plain(warning)}" for warning in report.warnings)


def _residuals(report: Report) -> Iterator[str]:
    if report.stages:
        heading = ("stage", "between them", *(f"{side.name} to NumPy" for side in report.sides))
        rows = [
            (readable(s.name), number(s.residual), number(s.residual_a), number(s.residual_b)) for s in report.stages
        ]
        yield "<details><summary>float64 residuals, stage by stage</summary>"
        yield _table(heading, rows, numbers_from=1)
        yield "</details>"


def _made_by(provenance: Provenance | None) -> Iterator[str]:
    if provenance is None:
        return
    yield f"```console\n$ {provenance.call}\n```" if provenance.is_command else f"```python\n{provenance.call}\n```"
    packages = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    yield _plain(f"{packages}, seed {provenance.seed}, {provenance.date}")
    digests = [*provenance.files, *provenance.sources]
    if digests:
        yield _table(("file", "bytes", "sha256"), [(d.path, f"{d.num_bytes:,}", d.sha256 or "-") for d in digests])


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int | None = None) -> str:
    """A table; columns from `numbers_from` on are set to the right."""
    places = range(len(heading))
    rule = ["---:" if numbers_from is not None and place >= numbers_from else "---" for place in places]
    lines = [map(_plain, heading), rule, *(map(_plain, row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(text: str) -> str:
    """Text in one line, in which no character means anything to Markdown."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _in_code(text: str) -> str:
    """Text between backticks, which may hold none."""
    return " ".join(text.split()).replace("`", "'")
