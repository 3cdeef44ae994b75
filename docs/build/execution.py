"""Run the code of a page while the site is built, and show below each block what it prints.

A page is a program: its blocks run one after another in a folder of their own.

- `python` blocks share one namespace. `continues: OTHER.md` in the front matter of a page begins with the names that
  another page ends with.
- A block with a title, of any language, is written to a file of that name instead.
- Of a `console` block, the commands that begin with `$ mixer-equiv`, `$ python` and `$ pytest` are run, and what each
  prints is shown below it. A command must end with exit status 0, unless a comment behind it says another one:
  `# exit status 1`.
- `given: [NAME]` in the front matter puts files of `given.py` into the folder.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.exceptions import BuildError

from docs.build import given
from docs.build.markdown import block

# The sections of the site whose pages are programs.
SECTIONS = "tutorial", "how-to", "explanation"

FENCE = re.compile(
    r"^(?P<ticks>```+)(?P<language>\w+)(?P<options>[^\n]*)\n(?P<text>.*?)^(?P=ticks)\n", re.DOTALL | re.MULTILINE
)

# The name of a page as a module. It has no file, so that a report does not take the builder's for the model's.
NAME = "page"

# How wide terminals are that commands write to.
COLUMNS = "80"


class Pages:
    """The pages that were run so far, with the names that each ends with."""

    def __init__(self) -> None:
        self.names: dict[str, dict[str, Any]] = {}

    def run(self, path: str, markdown: str, meta: Mapping[str, Any], first_line: int = 1) -> str:
        """Run the page at `path`, and return its Markdown with what the blocks print.

        `first_line` is the number of the line in the file at which `markdown` begins. Raises BuildError, with the line
        of the block, where one fails.
        """
        before = str(Path(path).parent / meta["continues"]) if "continues" in meta else None
        if before is not None and before not in self.names:
            raise BuildError(f"{path}: the page that it continues, {before}, was not run before it")
        names = _names_of_a_module(self.names[before] if before else {})
        with _folder_of_its_own() as folder:
            for name in meta.get("given", ()):
                given.FILES[name](folder / name)
            program = Program(path, names, markdown, first_line)
            shown = FENCE.sub(program.run, markdown)
        self.names[path] = names
        return shown


def _names_of_a_module(names: Mapping[str, Any]) -> dict[str, Any]:
    """The names of a new module, in which classes find their own: those given and its name."""
    module = ModuleType(NAME)
    sys.modules[NAME] = module
    vars(module).update({**names, "__name__": NAME})
    return vars(module)


class Program:
    """The blocks of one page, which are run in order."""

    def __init__(self, path: str, names: dict[str, Any], markdown: str, first_line: int) -> None:
        self.path, self.names, self.markdown, self.first_line = path, names, markdown, first_line

    def run(self, fence: re.Match[str]) -> str:
        """Run a block, and return it with its output below."""
        line = self.first_line + self.markdown.count("\n", 0, fence.start()) + 1
        title = re.search(r'title="([^"]+)"', fence["options"])
        if title:
            file = Path(title[1])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(fence["text"], encoding="utf-8")
            return fence[0]
        try:
            return self._shown(fence, line)
        except Exception as error:
            raise BuildError(f"docs/{self.path}:{line}: this block fails\n{_traceback(error)}") from error

    def _shown(self, fence: re.Match[str], line: int) -> str:
        if fence["language"] == "python":
            padded = "\n" * (line - 1) + fence["text"]  # so that a traceback has the line of the page
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(padded, f"docs/{self.path}", "exec"), self.names)
            output = printed.getvalue()
            return fence[0] + (f"\n{block(output, '{ .text .output }')}" if output.strip() else "")
        if fence["language"] == "console":
            return block("\n".join(map(_with_output, fence["text"].splitlines())), "console")
        return fence[0]


def _with_output(line: str) -> str:
    """A line of a console, and below a command what it prints."""
    output = run_command(line[2:]) if line.startswith("$ ") else ""
    return "\n".join([line, *(printed.rstrip() for printed in output.splitlines())])


def run_command(command: str) -> str:
    """Run a line of the shell if it is one of ours, and return what it prints.

    Raises RuntimeError where it ends with another exit status than its comment says.
    """
    expected = re.search(r"#.*exit status (\d)", command)
    words = shlex.split(command, comments=True)
    if words[0] == "mixer-equiv":
        status, output = _run_in_process(words[1:])
    elif words[0] in ("python", "pytest"):
        module = ["-m", "pytest"] if words[0] == "pytest" else []
        status, output = _run_beside([sys.executable, *module, *words[1:]])
    else:
        return ""
    if status != int(expected[1] if expected else 0):
        raise RuntimeError(f"$ {command}\nends with exit status {status}:\n{output}")
    return output


def _run_in_process(arguments: list[str]) -> tuple[int, str]:
    from typer.testing import CliRunner

    from mixer_equiv.cli import app

    with _with_built_in_layouts():
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": COLUMNS}, prog_name="mixer-equiv")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def _run_beside(command: list[str]) -> tuple[int, str]:
    environment = {**os.environ, "COLUMNS": COLUMNS}
    result = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return result.returncode, result.stdout


@contextlib.contextmanager
def _folder_of_its_own() -> Iterator[Path]:
    """Run in a new folder, and put back what pages may change of the process."""
    import torch

    from mixer_equiv.equivalence.sides.locate import import_timm

    import_timm()  # which copes with a torchvision that was built for another torch
    dtype, modules = torch.get_default_dtype(), set(sys.modules)
    folder, restored = tempfile.TemporaryDirectory(), _with_built_in_layouts()
    with folder as name, contextlib.chdir(name), restored, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.path.insert(0, name)
        try:
            yield Path(name)
        finally:
            sys.path.remove(name)
            torch.set_default_dtype(dtype)
            for module in set(sys.modules) - modules:
                if str(getattr(sys.modules[module], "__file__", None)).startswith(name):
                    del sys.modules[module]


@contextlib.contextmanager
def _with_built_in_layouts() -> Iterator[None]:
    """Begin as a new process does, and forget layouts that are registered meanwhile."""
    from mixer_equiv import LAYOUTS

    before = dict(LAYOUTS)
    try:
        _replace(LAYOUTS, _built_in_layouts())
        yield
    finally:
        _replace(LAYOUTS, before)


@functools.cache
def _built_in_layouts() -> dict[str, Any]:
    from mixer_equiv import LAYOUTS

    return dict(LAYOUTS)


def _replace(held: Any, contents: Mapping[str, Any]) -> None:
    held.clear()
    held.update(contents)


def _traceback(error: BaseException) -> str:
    """The error with the lines of the page where it was raised."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith("docs/")]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"
