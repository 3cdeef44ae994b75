"""Draw the README's pictures, docs/verify.svg, their.svg and mutate.svg: `python docs/picture.py`."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console, RenderableType

from mixer_equiv import verify
from mixer_equiv.data import digits
from mixer_equiv.equivalence.faults.kill_matrix import mutate
from mixer_equiv.render.kill_matrix import draw_matrix
from mixer_equiv.render.report import draw_report

HERE = Path(__file__).parent
SIZES = {"image_size": 12, "patch_size": 4, "hidden": 20, "depth": 4}


def draw(name: str, command: str, shown: RenderableType, width: int) -> None:
    console = Console(record=True, file=io.StringIO(), width=width, highlight=False)
    console.print(f"$ {command}", style="bold")
    console.print(shown)
    console.save_svg(str(HERE / name), title="mixer-equiv")


if __name__ == "__main__":
    images, labels = digits.held_out()
    draw("verify.svg", "mixer-equiv verify", draw_report(verify(digits.CHECKPOINT, images=images, labels=labels)), 104)
    place = HERE / "their_mixer.py"
    report = verify(f"{place}:MLPMixer", kwargs=SIZES, image=(3, 12, 12))
    command = f"mixer-equiv verify their_mixer.py:MLPMixer --kwargs '{json.dumps(SIZES)}' --image 3x12x12"
    draw("their.svg", command, draw_report(report), 112)
    draw("mutate.svg", "mixer-equiv mutate", draw_matrix(mutate()), 110)
