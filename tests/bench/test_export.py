"""Results for people: CSV, JSON, tables, plots, and the README's table."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import speed
from mixer_equiv import ConfigError
from mixer_equiv.bench import export, plots
from mixer_equiv.bench.contestants import CONTESTANTS
from mixer_equiv.bench.measurement import BenchResult, MixerTiming
from mixer_equiv.render.bench import NARROW, NARROWEST, Tables


def test_csv_and_json_hold_every_number(result: BenchResult) -> None:
    plain = json.loads(json.dumps(export.to_dict(result), allow_nan=False))
    assert [row["program"] for row in plain["rows"]] == [row.name for row in result.measurements]
    read = list(csv.DictReader(io.StringIO(export.to_csv(plain))))
    assert [float(row["ms"]) for row in read] == [row["ms"] for row in plain["rows"]]
    assert {"torch", "jax", "processor", "load_before_and_after"} <= plain["machine"].keys()


def test_a_terminal_of_80_columns_shows_every_name_and_number_whole(result: BenchResult) -> None:
    plain = export.to_dict(result)
    row = {**plain["rows"][0], "images_per_second": 12345.67}
    rows = [{**row, "program": name} for name in (*CONTESTANTS, "torch compiled (linear, depthwise_conv, linear)")]
    console = Console(file=io.StringIO(), width=80)
    console.print(Tables({**plain, "rows": rows}))
    shown = console.file.getvalue()
    assert "…" not in shown
    assert all(re.search(rf"^ ?{name} +12,345\.7 ", shown, re.MULTILINE) for name in CONTESTANTS)
    assert all(heading in shown for heading in NARROW)


def test_a_wide_terminal_shows_all_columns(result: BenchResult) -> None:
    plain = export.to_dict(result)
    for width, shown in ((60, NARROWEST), (80, NARROW), (150, export.COLUMNS)):
        console = Console(width=width, file=io.StringIO())
        console.print(Tables(plain))
        headings = next(line for line in console.file.getvalue().splitlines() if "images/s" in line)
        assert {heading for heading in export.COLUMNS if heading in headings} == set(shown)
        assert "…" not in console.file.getvalue()


def test_markdown_names_every_program_and_why_one_was_refused(result: BenchResult) -> None:
    plain = export.to_dict(result)
    plain["rows"][1] |= {"refused": "another function", "ms": None}
    shown = export.to_markdown(plain)
    assert all(f"| {row.name} |" in shown for row in result.measurements)
    assert "refused: timm in custom (1 x 6 x 12), float32, batch 3, cpu, inference: another function" in shown
    assert "torch_threads 1" in shown


def test_a_plot_is_an_svg_and_a_png_of_every_program(result: BenchResult, tmp_path: Path) -> None:
    rows = export.to_dict(result)["rows"]
    written = plots.plot(rows, tmp_path / "speed.svg")
    assert [path.name for path in written] == ["speed.svg", "speed.png"]
    assert written[1].read_bytes().startswith(b"\x89PNG")
    first = written[0].read_text()
    assert "<svg" in first
    plots.plot(rows, tmp_path / "speed.png")
    assert written[0].read_text() == first


def test_batches_that_are_several_are_plotted_as_lines_and_single_ones_as_bars(
    result: BenchResult, tmp_path: Path
) -> None:
    rows = export.to_dict(result)["rows"]
    shown = {
        name: plots.plot(given, tmp_path / f"{name}.svg")[0].read_text()
        for name, given in (("bars", rows), ("lines", [*rows, *({**row, "batch": 8} for row in rows)]))
    }
    assert ("matplotlib.axis_4" in shown["lines"], "matplotlib.axis_4" in shown["bars"]) == (True, False)


def test_a_program_has_the_same_colour_in_every_plot() -> None:
    names = [
        *CONTESTANTS,
        "flax (conv, matmul, linear)",
        "torch (conv, conv1d, linear)",
        "torch (conv, matmul, linear)",
    ]
    rows = [{"program": name, "ours": CONTESTANTS[name.partition(" (")[0]].ours} for name in names]
    styles = plots._styles(rows)
    assert {row["program"]: plots._styles([row])[row["program"]]["color"] for row in rows} == {
        name: style["color"] for name, style in styles.items()
    }
    assert styles["torch (conv, conv1d, linear)"]["color"] == styles["torch"]["color"]
    assert len({(style["color"], style["marker"]) for style in styles.values()}) == len(names)


@pytest.mark.parametrize(("name", "rows"), [("speed.pdf", None), ("speed.svg", [])])
def test_what_cannot_be_plotted_is_an_error(result: BenchResult, tmp_path: Path, name: str, rows: Any) -> None:
    with pytest.raises(ConfigError, match=r"a plot is written as|there is nothing to plot"):
        plots.plot(export.to_dict(result)["rows"] if rows is None else rows, tmp_path / name)


def test_the_readmes_tables_have_every_ratio(result: BenchResult) -> None:
    plain = export.to_dict(result)
    ratios = {each.name: each.ratio for each in result.measurements if isinstance(each, MixerTiming) and each.ratio}
    shown = speed.readme_table([plain, {**plain, "baseline": "torch"}]).splitlines()
    rows = dict(line.strip("| ").rsplit(" | ", 1) for line in shown if line.startswith("| "))
    for name, ratio in ratios.items():
        assert rows.pop(name) == f"{ratio.median:.2f}"
    instructions = plain["machine"]["instruction_set"].split()[0]
    assert rows.pop(f"inference, cpu, {instructions}").endswith("<br>float32<br>batch 3")
    timm = next(row for row in result.measurements if row.name == "timm")
    assert rows.pop("timm, images/s") == f"{timm.images_per_second:.1f}"
    assert list(rows) == ["---"]


def test_the_readmes_tables_have_no_numbers_of_a_cell_without_a_baseline(result: BenchResult) -> None:
    plain = export.to_dict(result)
    refused = [{**row, "batch": 8, "ratio": None, "images_per_second": None} for row in plain["rows"]]
    shown = speed.readme_table([{**plain, "rows": plain["rows"] + refused}]).splitlines()
    assert shown[0].endswith("<br>batch 8 |")
    assert all(line.endswith(" |  |") for line in shown[2:] if line.startswith("|"))


def test_make_bench_fails_if_a_call_is_wrong(result: BenchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = export.to_dict(result)
    monkeypatch.setattr(speed, "run_section", lambda section, device, threads: plain)
    assert speed.main(["quick"]) == 0
    plain["rows"][0] |= {"refused": "another function"}
    assert speed.main(["quick"]) == 1
