"""The notebook of the tutorial has what its pages have, and runs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytest.importorskip("nbformat", reason="the extra docs is not installed")

from docs.build.notebook import PATH, ROOT, as_text, tutorial

# Run beside pytest, so that warnings of Jupyter's packages are no errors here.
EXECUTE = """
import sys
import nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
if sys.argv[2:]:
    notebook.cells[1].source += sys.argv[2]
nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
print(sum(cell.get("execution_count") is not None for cell in notebook.cells))
"""


def execute(*change: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", EXECUTE, str(PATH), *change]
    return subprocess.run(command, cwd=ROOT / "examples", capture_output=True, text=True, check=False)


def test_the_notebook_is_that_of_the_pages() -> None:
    assert PATH.read_text(encoding="utf-8") == as_text(tutorial()), "python -m docs.build.notebook writes it anew"


def test_links_and_pictures_of_the_notebook_lead_somewhere() -> None:
    text = "\n".join(cell.source for cell in tutorial().cells if cell.cell_type == "markdown")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text)]
    assert len(targets) >= 4
    assert [target for target in targets if not (PATH.parent / target).exists()] == []


def test_every_cell_of_the_notebook_runs() -> None:
    done = execute()
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(cell.cell_type == "code" for cell in tutorial().cells) > 30


def test_a_cell_that_fails_is_seen() -> None:
    done = execute("\nassert False, 'planted'")
    assert done.returncode != 0
    assert "planted" in done.stderr
