"""Draw docs/verify.svg, the picture in the README: `python docs/picture.py`."""

import io
from pathlib import Path

from rich.console import Console

from mixer_equiv import digits, verify

if __name__ == "__main__":
    images, labels = digits.held_out()
    console = Console(record=True, file=io.StringIO(), width=104, highlight=False)
    console.print("$ mixer-equiv verify", style="bold")
    console.print(verify(digits.CHECKPOINT, images=images, labels=labels))
    console.save_svg(str(Path(__file__).with_name("verify.svg")), title="mixer-equiv")
