"""A report in Markdown, for a pull request."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mixer_equiv import Report, verify
from mixer_equiv.checkpoints.provenance import FileDigest, Provenance
from mixer_equiv.equivalence.report import Cause
from mixer_equiv.render import to_markdown
from tests.support.small_verify import IMAGE, SMALL
from tests.support.structures import OwnMixer

DIGEST = FileDigest("a_b.npz", 1234, "0123456789abcdef" * 4)
CAUSE = Cause("activation", "code", "gelu_tanh", "gelu", "all 4 MLPs", "in torch")


def report(**fields: Any) -> Report:
    made = Provenance("mixer-equiv verify a_b.npz", 3, "2026-11-30", {"mixer_equiv": "0.1.0"}, (DIGEST,))
    values: dict[str, Any] = {"verdict": "different", "threshold": 1e-12, "provenance": made, "names": ("a_b.npz",)}
    return Report(**values | fields)


def table_of(markdown: str, first: str) -> list[list[str]]:
    """The cells of the table whose heading begins with `first`, as GitHub splits them."""
    lines = markdown.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    assert lines[start - 1] == ""
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def test_the_markdown_has_verdict_causes_command_and_files() -> None:
    shown = to_markdown(report(causes=(CAUSE,), residual_without_causes=1e-15, reasons=("a reason",)))
    assert shown.startswith("## DIFFERENT: `a_b.npz`\n\n- a reason\n\n")
    heading, rule, row = table_of(shown, "cause")
    assert heading == ["cause", "found", "expected", "where"]
    assert set(rule) == {"---"}
    assert row == ["activation", "gelu", r"gelu\_tanh", "all 4 MLPs; in torch"]
    assert "```console\n$ mixer-equiv verify a_b.npz\n```" in shown
    assert table_of(shown, "file")[2] == [r"a\_b.npz", "1,234", DIGEST.sha256]
    assert "With this changed it is the same function: residual 1.0e-15." in shown


def test_a_call_in_python_is_shown_as_python() -> None:
    shown = to_markdown(verify(OwnMixer(SMALL, ("eps_1e-5",)), "reference", image=IMAGE, gradients=False))
    assert "```python\nverify(OwnMixer(...), 'reference', image=(3, 8, 9), gradients=False)\n```" in shown
    assert shown.startswith("## NOT EQUIVALENT, explained (equivalent_under): `OwnMixer` and `reference`\n")
    stages = table_of(shown, "stage")
    assert stages[1] == ["---", "---:", "---:", "---:"]
    assert stages[-1][0] == "logits"


HOSTILE = "a|b\n# c <i> **d** `e` ![f](g) @h ~~i~~"


@pytest.mark.parametrize("field", ["reasons", "warnings", "names", "causes"])
def test_text_stays_text_in_its_own_line_and_cell(field: str) -> None:
    values = (Cause("activation", "code", HOSTILE, HOSTILE, HOSTILE, ""),) if field == "causes" else (HOSTILE,)
    shown = to_markdown(report(**{field: values}))
    assert not re.search(r"^# c", shown, re.MULTILINE)
    if field == "causes":
        assert {len(row) for row in table_of(shown, "cause")} == {4}
    if field != "names":  # which are in code
        assert not re.search(r"(?<!\\)[<*`]", shown.partition("```")[0].replace("`a_b.npz`", ""))
    else:
        assert shown.splitlines()[0].count("`") == 2
