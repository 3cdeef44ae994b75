"""The README's table of layouts, updated from the registry: `python -m docs.build.readme_table`."""

from __future__ import annotations

import re
from pathlib import Path

from mixer_equiv.layouts import LAYOUTS
from mixer_equiv.render.layouts import describe_layout, layouts_markdown

README_PATH = Path(__file__).parents[2] / "README.md"
LAYOUTS_TABLE = re.compile(r"(<!-- mixer-equiv layouts --markdown -->\n).*?(<!-- end -->\n)", re.DOTALL)


def with_layouts_table(readme: str) -> str:
    """Replace the table in the README's text by that of the registry."""
    rows = layouts_markdown([describe_layout(layout) for layout in LAYOUTS.values()])
    return LAYOUTS_TABLE.sub(lambda marks: f"{marks[1]}{rows}{marks[2]}", readme)


if __name__ == "__main__":
    README_PATH.write_text(with_layouts_table(README_PATH.read_text()))
