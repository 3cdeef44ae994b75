"""`mixer-equiv reports`: several reports side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixer_equiv.cli import app
from tests.support.reports import REPORTS, full_report
from tests.support.small_verify import run


def reports(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["reports", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every report, in the current one."""
    monkeypatch.chdir(tmp_path)
    for name, report in REPORTS.items():
        path = tmp_path / "all" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(report.to_json(), encoding="utf-8")
    return tmp_path / "all"


def test_a_folder_becomes_a_table_and_a_page(folder: Path) -> None:
    result = reports("all", "--html", "page.html")
    shown = " ".join(result.stdout.split())
    for part in ("TheirMixer and reference", "NOT EQUIVALENT,", "2.3e-06, over", "layer norm eps: found"):
        assert part in shown
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count('<details class="report">') == len(REPORTS)
    assert all(f"all/{name}.json" in page for name in REPORTS)
    assert str(folder.parent) not in page + result.stdout


def test_what_verify_writes_is_read(tmp_path: Path) -> None:
    assert run("--json", str(tmp_path / "a.json"), "--quiet").exit_code == 0
    result = reports(tmp_path / "a.json")
    assert result.exit_code == 0
    assert "torch and flax" in result.stdout
    assert "EQUIVALENT" in result.stdout


@pytest.mark.parametrize(
    ("names", "status"),
    [
        (("equivalent", "with a warning"), 0),
        (("equivalent", "explained"), 1),
        (("equivalent", "inexpressible"), 3),
        (("nothing compared", "different", "equivalent"), 1),
    ],
)
def test_the_exit_status_is_that_of_all_verdicts(names: tuple[str, ...], status: int, folder: Path) -> None:
    assert reports(*(folder / f"{name}.json" for name in names)).exit_code == status


def test_a_file_that_is_given_twice_is_one_report_and_equal_names_are_two(folder: Path) -> None:
    other = folder.parent.parent / "elsewhere"
    for place in (other / "one", other / "two"):
        place.mkdir(parents=True)
        (place / "report.json").write_text(REPORTS["equivalent"].to_json())
    result = reports(folder / "explained.json", folder / ".." / "all" / "explained.json", other / "one", other / "two")
    assert result.stdout.count("explained.json") == 1
    assert result.stdout.count("report.json") == 2
    assert "report.json (2)" in result.stdout


def test_one_error_names_every_path_that_has_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("config.json").write_text('{"hidden_dim": 768}')
    Path("broken.json").write_text("{")
    Path("picture.json").write_bytes(b"\x89PNG\r\n")
    Path("newer.json").write_text(json.dumps({**full_report().to_dict(), "format_version": 2}))
    Path("damaged.json").write_text(json.dumps({**full_report().to_dict(), "names": 3, "num_images": "x"}))
    names = ("empty", "none.json", "config.json", "broken.json", "picture.json", "newer.json", "damaged.json")
    result = reports(*names, "--html", "page.html")
    assert result.exit_code == 2
    assert not Path("page.html").exists()
    message = result.stderr.replace("\n", " ")
    for part in (
        "empty is a folder without files *.json; write one by: mixer-equiv verify ... --json FILE",
        "none.json cannot be read: No such file or directory",
        "config.json: it is no report of verify; write one by",
        "broken.json: it is not JSON of Unicode text",
        "picture.json cannot be read: it is not UTF-8 text",
        "newer.json: it is a report of format version 2, and this mixer_equiv reads version 1; read it with",
        "damaged.json: it is a damaged report: num_images is 'x', not a whole number; names is 3, not a list",
    ):
        assert part in message
    assert "Traceback" not in message


def test_a_page_is_not_written_over_a_checkpoint(folder: Path) -> None:
    result = reports(folder, "--html", "mine.npz")
    assert result.exit_code == 2
    assert "by its suffix a checkpoint" in result.stderr


def test_a_stranger_s_names_do_not_command_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(full_report(names=("\x1b[2Jname\u202e[red]x[/red]",)).to_json())
    shown = reports(tmp_path / "a.json").stdout
    assert "\x1b" not in shown
    assert r"\x1b[2Jname\u202e[red]x" in shown
