"""Three blocks for tests of the options of `verify`, and its command line on two built-in models."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from mixer_equiv.cli import app
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG

SMALL = DEFAULT_CONFIG.replace(num_blocks=3)
IMAGE = SMALL.in_channels, *SMALL.image_hw
RUN = "verify", "torch", "flax", "--kwargs", '{"num_blocks": 2}'


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*RUN, *arguments], catch_exceptions=False)
