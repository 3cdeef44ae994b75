"""Reports of `verify` as pages of HTML, which load nothing else. Start at `to_html`; `reports_to_html` is for several.

Both pages are made of the templates beside this module. They need no script, which only adds sorting, filtering and
copying, and their policy lets a browser run and load nothing but what is written in them.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mixer_equiv.equivalence.report import HEADLINES, Report, readable, shown_by_inputs, unobservable_in_words
from mixer_equiv.render import html_tables
from mixer_equiv.render.checks import count_headlines, in_words
from mixer_equiv.render.colours import COLOURS
from mixer_equiv.render.residual_plot import residual_plot

if TYPE_CHECKING:
    import jinja2
    import markupsafe

# Numbers that would be broken at the minus sign of the exponent, or anywhere where a column is narrow.
_NUMBER = re.compile(r"\d[\d.]{0,20}e[+-]\d{1,3}|\d{1,3}(?:,\d{3}){1,6}")


def to_html(report: Report) -> str:
    """Write `report` as a page of HTML; encode it in UTF-8."""
    return _page("report.html", report=report)


def reports_to_html(reports: Mapping[str, Report]) -> str:
    """Write several reports, by the names of their files, as a page of HTML that compares them; encode it in UTF-8.

    A row of its table is a report, a column a check; below are all reports, as `to_html` shows them.
    """
    places = [f"report-{number}" for number in range(1, len(reports) + 1)]
    return _page(
        "reports.html",
        reports=list(zip(places, reports.items(), strict=True)),
        table=html_tables.reports_table(reports, places),
        counts=count_headlines(reports.values()),
    )


def _page(template: str, **shown: Any) -> str:
    page: str = _environment().get_template(template).render(**shown)
    return page


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2
    import markupsafe

    loader = jinja2.PackageLoader("mixer_equiv.render")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style, script = (loader.get_source(environment, name)[0] for name in ("page.css", "page.js"))
    environment.filters.update(in_words=in_words, readable=readable, sentence=_sentence, unbroken=_unbroken)
    environment.globals.update(
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        digests={"style": _digest(style), "script": _digest(script)},
        headlines=HEADLINES,
        colours=COLOURS,
        tables=html_tables,
        plot_of=residual_plot,
        shown_by_inputs=shown_by_inputs,
        unobservable_in_words=unobservable_in_words,
    )
    return environment


def _sentence(text: str) -> str:
    """The text with a capital letter at its beginning and a full stop at its end."""
    return f"{text[:1].upper()}{text[1:]}."


def _unbroken(text: str) -> markupsafe.Markup:
    """The text as HTML whose numbers stay on one line."""
    import markupsafe

    escaped = str(markupsafe.escape(text))
    return markupsafe.Markup(_NUMBER.sub(lambda number: f'<span class="unbroken">{number[0]}</span>', escaped))


def _digest(text: str) -> str:
    """The digest by which a content security policy knows a style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
