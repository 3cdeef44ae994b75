"""Pictures that are drawn from results, drawn anew: `python -m docs.build.pictures`.

They are terminals, docs/verify.svg, their.svg and mutate.svg, and docs/assets/figures/usual_checks.svg.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from rich.console import Console, RenderableType

from docs.build import usual_checks
from mixer_equiv import verify
from mixer_equiv.data import digits
from mixer_equiv.equivalence.faults.kill_matrix import KillMatrix, mutate, planted_in_code
from mixer_equiv.equivalence.faults.planted_weights import PLANTED_WEIGHTS
from mixer_equiv.render.kill_matrix import draw_matrix
from mixer_equiv.render.report import draw_report

ROOT = Path(__file__).parents[2]
MODEL_KWARGS = {"image_size": 12, "patch_size": 4, "hidden": 20, "depth": 4}


def draw_terminal(name: str, command: str, output: RenderableType, width: int) -> None:
    """Write the picture of a terminal of `width` columns with a command and its output."""
    console = Console(record=True, file=io.StringIO(), width=width, highlight=False)
    console.print(f"$ {command}", style="bold")
    console.print(output)
    console.save_svg(str(ROOT / "docs" / name), title="mixer-equiv")


def draw_usual_checks(matrix: KillMatrix) -> None:
    """Write the picture of what usual checks miss."""
    in_code = {name: planted.fault for name, planted in planted_in_code().items()}
    in_weights = {name: planted.fault for name, planted in PLANTED_WEIGHTS.items()}
    path = ROOT / "docs" / "assets" / "figures" / "usual_checks.svg"
    path.write_text(usual_checks.draw(matrix, in_code | in_weights), encoding="utf-8")


if __name__ == "__main__":
    images, labels = digits.held_out()
    report = verify(digits.CHECKPOINT, images=images, labels=labels).made_by_command("mixer-equiv verify")
    draw_terminal("verify.svg", "mixer-equiv verify", draw_report(report), 104)
    command = f"mixer-equiv verify their_mixer.py:MLPMixer --kwargs '{json.dumps(MODEL_KWARGS)}' --image 3x12x12"
    with contextlib.chdir(ROOT / "examples"):  # where the command is typed
        report = verify("their_mixer.py:MLPMixer", kwargs=MODEL_KWARGS, image=(3, 12, 12)).made_by_command(command)
    draw_terminal("their.svg", command, draw_report(report), 112)
    matrix = mutate()
    draw_terminal("mutate.svg", "mixer-equiv mutate", draw_matrix(matrix), 110)
    draw_usual_checks(matrix)
