"""The files of recorded results: NAME.json, NAME.md for people, and NAME.png where there is a picture.

A recording changes few lines: JSON has a line for each row, and numbers have six significant digits.
Knows no benchmark. Start reading at `write`; `python -m benchmarks.pages` writes pages and pictures anew from the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mixer_equiv.atomic import replacement
from mixer_equiv.bench import plots
from mixer_equiv.bench.environment import PACKAGES

RESULTS = Path(__file__).parent / "results"
SIGNIFICANT_DIGITS = 6

# A page shows a picture at half of its pixels, sharp on any screen. With few colours, a quarter of the bytes is enough.
DPI, COLOURS_IN_PNG = 200, 64


def write(name: str, result: Mapping[str, Any], page: str, figure: Any = None) -> None:
    """Write `result` as JSON, `page` as Markdown, and the matplotlib `figure`, if there is one, as PNG."""
    RESULTS.mkdir(exist_ok=True)
    for suffix, text in (("json", to_json(rounded(result)) + "\n"), ("md", page)):
        with replacement(RESULTS / f"{name}.{suffix}") as temporary:
            temporary.write_text(text)
    if figure is not None:
        _write_png(figure, RESULTS / f"{name}.png")


def _write_png(figure: Any, path: Path) -> None:
    plots.save_figure(figure, path, DPI)
    with Image.open(path) as picture:
        few_colours = picture.convert("RGB").quantize(COLOURS_IN_PNG, dither=Image.Dither.NONE)
    few_colours.save(path, optimize=True)


def read(name: str) -> dict[str, Any]:
    """Read the result that was written under this name."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return result


def rounded(value: Any) -> Any:
    """Round every float in plain data to six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def to_json(value: Any, indent: str = "") -> str:
    """Write plain data as JSON with a line for each row of a table, and for each part of anything deeper."""
    inner = f"{indent}  "
    if isinstance(value, Mapping) and (not indent or _depth(value) > 2):
        lines = [f"{inner}{json.dumps(name)}: {to_json(item, inner)}" for name, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        lines = [f"{inner}{to_json(item, inner)}" for item in value]
        return "[\n" + ",\n".join(lines) + f"\n{indent}]"
    return json.dumps(value)


def _depth(value: Any) -> int:
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else None
    return 0 if items is None else 1 + max(map(_depth, items), default=0)


def machine_line(machine: Mapping[str, Any], rounds: str = "") -> str:
    """Describe in words the machine of a measurement: all that `Machine.describe` gives, or a part of it."""
    had = f", of which this process had {machine['cores_had']:.2f}" if "cores_had" in machine else ""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", *PACKAGES))
    before, after = machine["load_before_and_after"]
    processor = ", ".join(filter(None, (machine["processor"], machine.get("instruction_set"))))
    return (
        f"{machine['date']}: {processor}, {machine['cores']} cores{had}; load {before} before and {after} "
        f"after{rounds and f', {rounds} rounds'}. {versions}."
    )
