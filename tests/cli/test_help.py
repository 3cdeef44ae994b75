"""Help and completion: what a newcomer reads and types."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixer_equiv.cli import app

WAYS = ("path/to/file.py:Name", "package.module:Name", "timm:mixer_b16_224", "--kwargs", "Examples:")
WAYS_OF_VERIFY = ("Mixer-B_16.npz", "checkpoints/", "flax, nnx, torch", "reference", "flax:B/16")


def help_of(command: str, width: int) -> str:
    result = CliRunner().invoke(app, [command, "--help"], terminal_width=width)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("command", ["verify", "layouts"])
def test_help_shows_every_way_to_name_a_model(command: str, width: int) -> None:
    shown = help_of(command, width)
    assert all(way in shown for way in WAYS + WAYS_OF_VERIFY * (command == "verify"))


@pytest.mark.parametrize("command", ["convert", "inspect", "layouts", "verify", "reports", "mutate", "bench"])
def test_help_fits_a_narrow_terminal_and_breaks_no_option(command: str) -> None:
    lines = help_of(command, 60).splitlines()
    assert max(map(len, lines)) <= 60
    options = [line.split()[0].rstrip(",") for line in lines if line.startswith("  -")]
    assert all(option in help_of(command, 80) for option in options)
    assert not any("…" in line for line in lines)


def test_the_examples_of_help_are_commands_that_are_understood() -> None:
    """A misspelt option of an example would be an error of usage."""
    text = help_of("verify", 80).partition("Examples:\n")[2].replace("\\\n", "")
    for line in text.splitlines():
        words = [word for word in line.split() if word.startswith("--")]
        assert line.split()[:2] == ["mixer-equiv", "verify"]
        assert all(word in help_of("verify", 80).partition("Ways to name")[0] for word in words)


def completions(*words: str, folder: Path) -> list[str]:
    """What a shell offers for the last of `words`, as bash asks for it."""
    variables = {"COMP_WORDS": " ".join(("mixer-equiv", *words)), "COMP_CWORD": str(len(words))}
    environment = {**os.environ, **variables, "_MIXER_EQUIV_COMPLETE": "complete_bash"}
    script = "import sys; sys.argv[0] = 'mixer-equiv'; from mixer_equiv.cli import app; app(prog_name='mixer-equiv')"
    finished = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=folder
    )
    return finished.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("convert", "a", "b", "--to", "ti"), ["timm"]),
        (("verify", "--from", "of"), ["official"]),
        (("inspect", "--from", "jank"), ["jankrepl"]),
        (("verify", "fl"), ["flax", "flowers.npz"]),
        (("verify", "flax", "ref"), ["reference"]),
        (("verify", "other"), []),  # the shell completes files by itself
    ],
)
def test_shells_are_offered_layouts_and_our_models(tmp_path: Path, words: tuple[str, ...], offered: list[str]) -> None:
    (tmp_path / "flowers.npz").touch()
    (tmp_path / "other.npz").touch()
    assert completions(*words, folder=tmp_path) == offered
