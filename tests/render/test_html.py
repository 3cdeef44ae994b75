"""The page of a report."""

from __future__ import annotations

import html.parser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixer_equiv import Checkpoint, save, verify
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.render.html import to_html
from tests.support.small_verify import IMAGE, SMALL, run
from tests.support.structures import OwnMixer


class _Seen(html.parser.HTMLParser):
    """The text of a page, and elements that are not closed."""

    EMPTY = frozenset({"meta", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert not any("://" in (value or "") for _, value in attrs)
        self.open += [tag] if tag not in self.EMPTY else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> str:
    seen = _Seen()
    seen.feed(page)
    assert not seen.open
    return " ".join(" ".join(seen.text).split())


def test_the_page_has_what_the_report_has(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    result = run("--html", str(path), "--gradients", "--train-steps", "2")
    assert result.exit_code == 0
    assert "EQUIVALENT: fp64 residual" in result.stdout
    text = read(path.read_text(encoding="utf-8"))
    for part in ("EQUIVALENT", "block 1 channel mixing", "2 steps of AdamW", "float32 error", "moves the output by"):
        assert part in text

    report = verify(OwnMixer(SMALL, ("eps_1e-5",)), image=IMAGE)
    text = read(to_html(report))
    for part in (
        "NOT EQUIVALENT, explained (equivalent_under)",
        "layer norm eps",
        "1e-05",
        "7 of 7",
        "is the same function",
    ):
        assert part in text


@pytest.mark.parametrize("kind", ["no Mixer", "other sizes", "other weights", "not a number"])
def test_reports_with_little_in_them_have_a_page(kind: str) -> None:
    if kind == "no Mixer":
        report = verify(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(216, 7)), image=IMAGE)
    elif kind == "other sizes":
        report = verify("torch:S/32", "flax:B/32")
    elif kind == "other weights":
        pair = [Checkpoint.from_arrays(random_params(SMALL, seed), config=SMALL) for seed in (0, 1)]
        report = verify(*pair, fail_fast=True)
    else:
        params = random_params(SMALL, 0)
        params["stem/bias"][0] = np.nan
        report = verify(Checkpoint.from_arrays(params, config=SMALL))
    page = to_html(report)
    assert all(reason in read(page) for reason in report.reasons)
    assert report.reasons
    assert report.names
    title = page.partition("<title>")[2].partition("</title>")[0]
    assert all(name in title and name in read(page).replace(title, "", 1) for name in report.names)


def test_the_page_says_what_made_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    run("--html", str(path), "--seed", "3")
    text = read(path.read_text(encoding="utf-8"))
    made = text.partition("What made this report")[2]
    assert made.split()[:2] == ["mixer-equiv", "verify"]
    assert "--seed 3" in made
    assert "--html report.html" in made
    assert str(tmp_path) not in text


def test_names_are_text_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "<i>weights.npz"
    save(Checkpoint.from_arrays(random_params(SMALL, 0), config=SMALL), path)
    page = to_html(verify(str(path)))
    assert "&lt;i&gt;weights.npz" in page
    assert "<i>weights" not in page


def test_a_page_is_not_written_over_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    result = run("--html", str(path))
    assert result.exit_code == 2
    assert "by its suffix a checkpoint; give it another one, such as .html" in " ".join(result.stderr.split())
    assert not path.exists()
