"""Reports as plain text, and drawn with rich: the same words in the same lines."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from mixer_equiv.checkpoints.provenance import Provenance
from mixer_equiv.equivalence.report import Cause, Report, SideReport, Stage
from mixer_equiv.equivalence.text import Column, Line, Paragraph, TextTable, list_lines, table_lines, wrap
from mixer_equiv.render.report import draw_report


def side(name: str, **changed: Any) -> SideReport:
    values: dict[str, Any] = {
        **{"name": name, "program": "PyTorch", "num_parameters": 18003, "weights": "150 arrays, float32"},
        **{"round_trip": True, "round_trip_path": "linen -> torch -> linen", "rms_error": 1.1e-7, "accuracy": None},
    }
    return SideReport(**values | changed)


def report(a: str = "mine.npz", b: str = "torch", **changed: Any) -> Report:
    values: dict[str, Any] = {
        **{"verdict": "equivalent_under", "threshold": 1e-12, "residual": 3.3e-4, "max_difference": 2.3e-4},
        "stages": (Stage("stem", 0.0, 1e-16, 2e-16), Stage("MixerBlock_0/token_mixing", 1e-5, 1e-16, float("nan"))),
        "sides": (side(a), side(b, rms_error=2.2e-7)),
        "causes": (Cause("activation", "code", "gelu_tanh", "gelu", "all 4 MLPs", "in torch"),),
        **{
            "first_divergence": "MixerBlock_0/token_mixing",
            "unobservable": ("MixerBlock_0/token_mixing/Dense_1/bias",),
        },
        **{"warnings": ("dropout",), "images": "on 8 random images", "num_images": 8, "prediction_flips": 1},
    }
    return Report(**values | changed)


def drawn(shown: Report, width: int = 110) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, no_color=True, highlight=False).print(draw_report(shown))
    return "\n".join(line.rstrip() for line in stream.getvalue().strip("\n").splitlines())


LONG = "a port of the model with a name that is long, in many words, and longer still, so that it wraps"
SHOWN = {
    "explained": report(),
    "a long name": report(a=LONG),
    "markup": report(a="weights[bold].npz", b="[/red]:smile:", warnings=("[red]not a colour[/red]",)),
    "nothing was run": Report("different", 1e-12, reasons=("of different sizes", "hidden_dim is 20 in one")),
    "what made it": report(
        names=("mine.npz", "torch"),
        provenance=Provenance("verify('mine.npz')", 0, "2026-11-30", {"mixer_equiv": "1.2"}),
    ),
    "a reason of two lines": Report("nothing_compared", 1e-12, reasons=("first\nsecond",)),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_print_and_rich_show_the_same_lines(kind: str) -> None:
    assert str(SHOWN[kind]) == drawn(SHOWN[kind])


def test_the_text_of_a_report_needs_no_rich() -> None:
    script = (
        "import sys; sys.modules['rich'] = None\n"
        "from mixer_equiv.equivalence.report import Report\n"
        "print(Report('different', 1e-12, reasons=('of different sizes',)))"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (finished.stdout, finished.stderr) == ("DIFFERENT\n  reason  of different sizes\n", "")


@pytest.mark.parametrize("width", [40, 72, 110])
def test_what_wraps_keeps_within_the_width_and_every_word(width: int) -> None:
    words = "one two three " * 9 + "x" * 150
    columns = Column(), Column("long", is_right=True, is_wrapped=True), Column(words, is_wrapped=True)
    table = TextTable(columns, ((Line(("label", words, "short")),),))
    for lines in (table_lines(table, width), list_lines([Paragraph("label", words)], width), wrap(words, width)):
        assert max(map(len, lines)) <= width
        assert "".join(lines).count("three") == words.count("three") * (2 if lines[0] == "" else 1)
        assert "".join(lines).count("x") == 150 * (2 if lines[0] == "" else 1)


@pytest.mark.parametrize("width", [44, 60, 80, 110])
def test_numbers_are_never_broken(width: int) -> None:
    """Not even beside names that are long; the table still fits."""
    shown = report(a=LONG, b=LONG.upper(), stages=(Stage("MixerBlock_11/channel_mixing", 1.3e-16, 2.5e-5, 9.8e-101),))
    words = drawn(shown, width).split()
    assert max(map(len, drawn(shown, width).splitlines())) <= width
    assert {"1.3e-16", "2.5e-05", "9.8e-101", "18,003"} <= set(words)


def test_a_broken_number_is_seen() -> None:
    assert wrap("1.2e-16", 6) == ["1.2e-1", "6"]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (report(), "equivalent_under: fp64 residual 3.3e-04 (threshold 1e-12); activation; 1 warning"),
        (report(verdict="equivalent", causes=(), warnings=()), "equivalent: fp64 residual 3.3e-04 (threshold 1e-12)"),
        (
            report(warnings=("one", "two")),
            "equivalent_under: fp64 residual 3.3e-04 (threshold 1e-12); activation; 2 warnings",
        ),
        (SHOWN["nothing was run"], "different: of different sizes"),
        (SHOWN["a reason of two lines"], "nothing_compared: first second"),
    ],
)
def test_the_summary_is_one_line(shown: Report, expected: str) -> None:
    assert shown.summary() == expected


def test_the_headline_names_what_was_not_compared() -> None:
    assert str(Report("inexpressible", 1e-12, names=("TheirModel",))) == "INEXPRESSIBLE: TheirModel"
