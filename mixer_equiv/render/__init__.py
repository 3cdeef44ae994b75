"""Reports, checkpoints and benchmark results drawn for people: tables for terminals with rich, pages with jinja2.

`to_html(report)` makes a page of a report, `reports_to_html(reports)` one that compares several, and
`to_markdown(report)` a comment for a pull request. `print(report)` needs none of this: its plain text is
`equivalence.text`.
"""

from mixer_equiv.render.html import reports_to_html, to_html
from mixer_equiv.render.markdown import to_markdown

__all__ = ["reports_to_html", "to_html", "to_markdown"]
