"""The kill matrix of `mutate` drawn with rich: a line for each fault, a column for each check."""

from __future__ import annotations

import itertools

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mixer_equiv.equivalence.faults.kill_matrix import KillMatrix, Outcome

_HEADINGS = {
    "code": "other code",
    "constraint": "fewer parameters",
    "port": "weights handed over wrongly",
    "notice": "the same function, with a warning",
}
_LEGEND = (
    "x: the fault is noticed. The first of each pair is with a fresh model, whose head is zeros, the second with "
    "every parameter random. count: parameters, and shape of the output; 1e-3, 1e-4, 1e-5: allclose with this atol; "
    "close: torch.testing.assert_close; cosine, PCC: over 0.99. verify: the cause that it names, from the model or "
    "the weights alone."
)


def draw_matrix(matrix: KillMatrix) -> RenderableType:
    """The matrix, with the kinds of faults set apart, and below it the counts and a legend."""
    checks = list(matrix.killed)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("fault", no_wrap=True)
    for check in checks:
        table.add_column(check, justify="center", no_wrap=True)
    table.add_column("verify", no_wrap=True)
    for kind, outcomes in itertools.groupby(matrix.outcomes, lambda outcome: outcome.kind):
        table.add_section()
        if kind in _HEADINGS:
            table.add_row(_HEADINGS[kind], style="bold")
        for outcome in outcomes:
            table.add_row(outcome.fault, *(_marks(outcome, check) for check in checks), _verdict(outcome))
    table.add_section()
    counts = [f"{fresh} {random}" for fresh, random in matrix.killed.values()]
    named = sum(outcome.named for outcome in matrix.faults)
    table.add_row(f"noticed, of {len(matrix.faults)}", *counts, f"{named} named", style="bold")
    return Group(table, Text(_LEGEND))


def _marks(outcome: Outcome, check: str) -> Text:
    marks = (Text("x", "green") if noticed[check] else Text("·", "dim") for noticed in (outcome.fresh, outcome.random))
    return Text(" ").join(marks)


def _verdict(outcome: Outcome) -> Text:
    """The causes that `verify` names, in red if they are not what was planted."""
    return Text(", ".join(outcome.causes) or outcome.verdict, "" if outcome.named else "bold red")
