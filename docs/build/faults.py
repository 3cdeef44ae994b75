"""The page of faults, written from the catalogue."""

from __future__ import annotations

from docs.build.markdown import anchor, code, plain, table
from mixer_equiv.equivalence.faults.catalogue import CATALOGUE, FaultKind

INTRODUCTION = """# Faults

Every known way in which one Mixer differs from another. A report shows a fault as a cause, under its name here; a
notice is no fault of the function, and is shown as a warning. The verdict is the one on a model that differs in this
alone. [`verify`][mixer_equiv.verify] names the faults that it finds, and `mixer-equiv mutate` plants them.

"""

# By kind: the title of its table, and what such a fault is.
KINDS: dict[FaultKind, tuple[str, str]] = {
    "code": ("Code", "The model computes another function."),
    "constraint": ("Constraints", "The model is of the official family, with parameters in common or absent."),
    "port": ("Ports", "Weights were handed over wrongly. `{}` stands for a detail, such as a dtype."),
    "notice": ("Notices", "The function is the same, with a warning."),
}


def write() -> str:
    """The page in Markdown: a table for each kind."""
    lines = [INTRODUCTION]
    for kind, (title, meaning) in KINDS.items():
        rows = [
            (anchor(fault.id) + code(fault.id), plain(fault.words), plain(fault.noun), code(fault.verdict))
            for fault in CATALOGUE.values()
            if fault.kind == kind
        ]
        lines += [f"## {title} {{ #{kind} }}\n", f"{meaning}\n", table(("name", "fault", "found in", "verdict"), rows)]
    return "\n".join(lines)
