"""The command line as a process: pipes, terminals, and outputs that nobody takes."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixer_equiv import convert, load
from tests.support.command_line import params
from tests.support.files import changed

COMMAND = [sys.executable, "-m", "mixer_equiv"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["inspect"]])
def test_a_command_imports_only_what_it_uses(published: Path, arguments: list[str]) -> None:
    script = (
        "import sys; from mixer_equiv.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "finally: print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    words = [*arguments, *([str(published)] if arguments == ["inspect"] else [])]
    finished = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    imported = set(finished.stderr.split())
    assert {"mixer_equiv.cli.verify", "typer"} <= imported
    assert not imported & {"torch", "jax", "jinja2", "mixer_equiv.bench", "mixer_equiv.equivalence.verify"}
    assert ("rich.table" in imported) == (arguments == ["inspect"])


def test_a_pipe_sees_no_progress_bar(tmp_path: Path, published: Path) -> None:
    command = [*COMMAND, "convert", published, tmp_path / "mixer.safetensors", "--to", "timm"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stderr == ""
    assert finished.stdout.startswith(f"{published} (linen) -> {tmp_path / 'mixer.safetensors'} (timm)\n")
    assert "\x1b" not in finished.stdout
    assert not changed(convert(load(tmp_path / "mixer.safetensors"), to="linen").arrays, params())


@pytest.mark.parametrize(("columns", "width"), [({}, 110), ({"COLUMNS": "60"}, 60)])
def test_a_pipe_is_as_wide_as_it_is_told_and_has_no_trailing_blanks(columns: dict[str, str], width: int) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | columns
    command = [*COMMAND, "layouts"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()
    assert width - 15 < max(map(len, lines)) <= width
    assert [line for line in lines if line != line.rstrip()] == []


def at_a_terminal(*arguments: Any) -> tuple[int, str]:
    """Exit status of the command line, and all that it draws, with a pseudo-terminal for every stream."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen([*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    drawn = b""
    try:
        while chunk := os.read(ours, 4096):
            drawn += chunk
    except OSError:  # how Linux says that the other end was closed
        pass
    finally:
        os.close(ours)
    return process.wait(), drawn.decode()


def test_a_terminal_sees_a_progress_bar(tmp_path: Path, published: Path) -> None:
    status, drawn = at_a_terminal("convert", published, tmp_path / "mixer.npz", "--to", "timm")
    assert status == 0
    assert re.search(r"writing mixer\.npz.*━", drawn)
    assert "(timm)" in drawn
    assert (tmp_path / "mixer.npz").is_file()


@pytest.mark.parametrize(("sink", "status"), [("/dev/full", 2), ("pipe", 0)])
def test_output_that_nobody_takes_is_no_verdict(published: Path, sink: Any, status: Any) -> None:
    path = published
    command = [sys.executable, "-m", "mixer_equiv", "inspect", str(path)]
    if sink == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(sink, os.O_WRONLY)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, "Traceback" in done.stderr, "Exception" in done.stderr) == (status, False, False)
    assert ("the output cannot be written" in done.stderr) == (status == 2)
