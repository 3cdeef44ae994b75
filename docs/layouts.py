"""Update the README's table of layouts from the registry: `python docs/layouts.py`."""

import re
from pathlib import Path

from mixer_equiv.checkpoints.inspection import describe_layout, markdown_table
from mixer_equiv.layouts import LAYOUTS

README = Path(__file__).parent.parent / "README.md"
MARKED = re.compile(r"(<!-- mixer-equiv layouts --markdown -->\n).*?(<!-- end -->\n)", re.DOTALL)


def with_table(text: str) -> str:
    """The README's text with the current table."""
    rows = markdown_table([describe_layout(layout) for layout in LAYOUTS.values()])
    return MARKED.sub(lambda marks: f"{marks[1]}{rows}{marks[2]}", text)


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
