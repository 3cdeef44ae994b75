"""Results for people: CSV, JSON, tables, and the documents' tables of speed."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import result_files, speed, speed_tables
from mixer_equiv.bench import export
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


def full_tables(recorded: Mapping[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of the tables of speed, where `recorded` are the results on record, by name."""
    monkeypatch.setattr(result_files, "RESULTS", folder)
    for name, plain in recorded.items():
        (folder / f"{name}.json").write_text(json.dumps(plain))
    return speed_tables.full_tables().splitlines()


def test_the_documents_tables_have_every_ratio(
    result: BenchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = export.to_dict(result)
    ratios = {each.name: each.ratio for each in result.measurements if isinstance(each, MixerTiming) and each.ratio}
    recorded = {"speed_inference": plain, "speed_training": {**plain, "baseline": "torch"}}
    shown = full_tables(recorded, tmp_path, monkeypatch)
    rows = dict(line.strip("| ").rsplit(" | ", 1) for line in shown if line.startswith("| "))
    for name, ratio in ratios.items():
        assert rows.pop(name) == f"{ratio.median:.2f}"
    instructions = plain["machine"]["instruction_set"].split()[0]
    assert rows.pop(f"inference, cpu, {instructions}").endswith("<br>float32<br>batch 3")
    timm = next(row for row in result.measurements if row.name == "timm")
    assert rows.pop("timm, images/s") == f"{timm.images_per_second:.1f}"
    assert list(rows) == ["---"]


def test_the_documents_tables_have_no_numbers_of_a_cell_without_a_baseline(
    result: BenchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = export.to_dict(result)
    refused = [{**row, "batch": 8, "ratio": None, "images_per_second": None} for row in plain["rows"]]
    recorded = {"speed_inference": {**plain, "rows": plain["rows"] + refused}}
    shown = full_tables(recorded, tmp_path, monkeypatch)
    assert shown[0].endswith("<br>batch 8 |")
    assert all(line.endswith(" |  |") for line in shown[2:] if line.startswith("|"))


def test_make_bench_fails_if_a_call_is_wrong(result: BenchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = export.to_dict(result)
    monkeypatch.setattr(speed, "run_section", lambda section, device, threads: plain)
    assert speed.main(["quick"]) == 0
    plain["rows"][0] |= {"refused": "another function"}
    assert speed.main(["quick"]) == 1
