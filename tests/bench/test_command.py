"""`mixer-equiv bench`: the files, the terminal, and the errors."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixer_equiv.bench import export
from mixer_equiv.bench.contestants import CONTESTANTS
from mixer_equiv.cli import app
from tests.support.cells import COMPILED, EAGER, JITTED, SMALL

TINY = dataclasses.asdict(SMALL) | {"activation": "gelu_tanh"}
COMMAND = ["bench", "--kwargs", json.dumps(TINY), "--batch", "2", "--threads", "1", "--gemm", "32"]


def test_the_command_writes_what_it_shows(tmp_path: Path) -> None:
    files = {name: str(tmp_path / f"speed.{name}") for name in ("json", "csv", "markdown")}
    options = [text for name, path in files.items() for text in (f"--{name}", path)]
    outcome = CliRunner().invoke(app, [*COMMAND, "--program", "torch", "--program", "timm", *options])
    assert outcome.exit_code == 0, outcome.output
    plain = json.loads(Path(files["json"]).read_text())
    assert plain["baseline"] == "timm"
    assert f"{plain['rows'][0]['images_per_second']:,.1f}" in outcome.output
    assert Path(files["csv"]).read_text() == export.to_csv(plain)
    assert Path(files["markdown"]).read_text() == export.to_markdown(plain)


@pytest.mark.usefixtures("wrong")
def test_where_all_are_refused_everything_but_the_plot_is_written(tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "x.json"), "--plot", str(tmp_path / "x.svg")]
    outcome = CliRunner().invoke(app, [*COMMAND, *files, "--program", "erf"])
    assert outcome.exit_code == 1
    assert "refused: erf" in outcome.output
    assert "x.svg is not written: all were refused" in outcome.output.replace("\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.usefixtures("wrong")
def test_the_command_fails_if_what_it_times_is_wrong() -> None:
    outcome = CliRunner().invoke(app, [*COMMAND, "--program", "torch", "--program", "erf"])
    assert outcome.exit_code == 1
    assert "refused: erf" in outcome.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variant", "Z/16"], "Z/16"),
        (["--dtype", "int8"], "dtype is 'int8'"),
        (["--program", "jax"], "program is 'jax'"),
        (["--rounds", "2"], "rounds is 2"),
        (["--baseline", "nobody"], "the baseline is 'nobody'"),
        (["--kwargs", '{"width": 1}'], "MixerConfig has no field width; its fields are num_classes"),
        (["--kwargs", '{"name": "Z"}'], "MixerConfig has no field name; its fields are num_classes"),
        (["--kwargs", '{"num_classes": 0}'], "num_classes is 0; a timed Mixer has a head"),
        (["--threads", "1000"], "threads is 1000; this process may use "),
    ],
)
def test_the_command_says_what_it_cannot_do(options: list[str], message: str) -> None:
    outcome = CliRunner().invoke(app, [*COMMAND, *options])
    assert outcome.exit_code == 2
    assert message in outcome.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--csv", "-"], "--csv is -; only --json and --markdown go to the standard output"),
        (["--markdown", "folder"], "--markdown is folder, a directory"),
        (["--json", "missing/speed.json"], "cannot be written: missing is no directory"),
        (["--json", "same", "--csv", "./same"], "are both"),
        (["--plot", "speed.pdf"], "a plot is written as"),
        (["--plot", "pictures.svg"], "pictures.png is a directory"),
        (["--csv", "speed.safetensors"], "by its suffix a checkpoint"),
        (["--csv", os.devnull], f"--csv is {os.devnull}, a pipe or a device; give the name of a file"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_timed(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "pictures.png"):
        (tmp_path / folder / "below").mkdir(parents=True)
    (tmp_path / "kept.csv").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("mixer_equiv.bench.measurement.measure_cells", None)
    kept = [] if "--csv" in options else ["--csv", "kept.csv"]
    outcome = CliRunner().invoke(app, [*COMMAND, *kept, *options])
    assert outcome.exit_code == 2, outcome.output
    assert message in outcome.output
    assert (sorted(tmp_path.rglob("*")), (tmp_path / "kept.csv").read_text()) == (before, "kept")


def test_programs_are_those_that_the_docs_name() -> None:
    assert set(CONTESTANTS) == {*EAGER, *JITTED, *COMPILED}
