"""The command line called in this process, and small checkpoints for it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from mixer_equiv.cli import app
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from tests.support.sizes import SMALL

CONFIG = SMALL
Arrays = dict[str, np.ndarray]


def params(seed: int = 0, **replaced: Any) -> Arrays:
    """Canonical weights; of `replaced`, named with "__" for "/", None is left out."""
    arrays = {**random_params(CONFIG, seed), **{name.replace("__", "/"): array for name, array in replaced.items()}}
    return {name: array for name, array in arrays.items() if array is not None}


def run(*arguments: Any, status: int = 0) -> Any:
    """What the command line did, which is an error of the test where it raised anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def strict_json(text: str) -> Any:
    """JSON as the standard has it: no NaN and no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def bytes_in(folder: Path, *others: Path) -> int:
    """Of all files below `folder` but the others."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path not in others)


# Surgery and files


def layout_file(folder: Path, **fields: str) -> Path:
    rows = "stem/kernel  patchify.weight  ph pw channels hidden -> hidden (channels ph pw)\nstem/bias  -  hidden"
    values = {"name": "ours", "base": "timm", "rows": rows, **fields}
    (folder / "ours.json").write_text(json.dumps(values))
    return folder / "ours.json"


def assert_one_message(result: Any, *fragments: str) -> None:
    """One paragraph on stderr, nothing on stdout."""
    message = result.stderr.rstrip("\n")
    assert result.stdout == ""
    assert message.startswith("error: ")
    assert "\n\n" not in message
    assert "Traceback" not in message
    assert "\x1b" not in message
    for fragment in fragments:
        assert fragment in message
