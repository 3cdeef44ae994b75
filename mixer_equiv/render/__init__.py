"""Reports, checkpoints and benchmark results drawn for people: tables for terminals with rich, pages with jinja2.

`to_html(report)` makes a page of a report. `print(report)` needs none of this: its plain text is `equivalence.text`.
"""

from mixer_equiv.render.html import to_html

__all__ = ["to_html"]
