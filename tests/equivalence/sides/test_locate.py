"""Models given by the place of their code: `path/to/file.py:Name` and `package.module:Name`."""

from __future__ import annotations

import importlib
import json
import signal
import textwrap
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixer_equiv import (
    MixerEquivError,
    verify,
)
from mixer_equiv.cli import app
from tests.support.sizes import IMAGE

SOURCE = """
    import torch
    from torch import nn
    from tests.support.structures import PortMixer
    from mixer_equiv import MixerConfig

    class Mixer(PortMixer):
        def __init__(self, image_size, depth=2):
            super().__init__(MixerConfig(
                num_classes=7, num_blocks=depth, patch_size=4, image_size=image_size, hidden_dim=20,
                tokens_mlp_dim=11, channels_mlp_dim=26, in_channels=3,
            ))

    class Other:
        pass

    made = Mixer(12)
"""


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def place(tmp_path: Any) -> Any:
    path = tmp_path / "theirs.py"
    path.write_text(textwrap.dedent(SOURCE))
    return path


def test_a_model_in_a_file_is_verified(place: Any) -> None:
    result = run("verify", f"{place}:Mixer", "--kwargs", '{"image_size": 12}', "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verdict"] == "equivalent"
    assert run("verify", f"{place}:made", "--image", "3x12x12").exit_code == 0
    assert run("verify", "tests.support.structures:PortMixer", "--image", "3x12x12").exit_code == 2


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Mixer", [], "cannot be made with no kwargs (--kwargs): TypeError"),
        ("Mixer", ["--kwargs", '{"image_size": 13}'], "cannot be made with kwargs {'image_size': 13} (--kwargs): Conf"),
        ("Missing", [], "has no Missing; its classes are Mixer"),
        ("made", [], "the image that Mixer takes is not known; give image=(channels, height, width), --image"),
        ("made", ["--kwargs", '{"a": 1}', "--image", "3x12x12"], "is an object already, so that it takes no kwargs"),
        ("Other", ["--image", "3x12x12"], "Other; verify takes a checkpoint"),
    ],
)
def test_a_place_without_a_model_is_refused_in_words(place: Any, name: str, arguments: list[str], message: str) -> None:
    result = run("verify", f"{place}:{name}", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


CLASS = "class Mixer(nn.Module):\n"
LEAVING = {
    "when it is imported": ("sys.exit(0)", "cannot be imported: SystemExit: 0"),
    "when it is made": (f"{CLASS}    def __init__(self):\n        sys.exit(0)", "(--kwargs): SystemExit: 0"),
    "when it is run": (f"{CLASS}    def forward(self, x):\n        sys.exit(0)", "raised SystemExit when"),
}


@pytest.mark.parametrize(("source", "message"), LEAVING.values(), ids=LEAVING)
def test_code_that_leaves_python_is_no_verdict(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "leaving.py"
    path.write_text(f"import sys\nfrom torch import nn\n{source}\n")
    result = run("verify", f"{path}:Mixer", "--image", "3x8x8")
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_signal_ends_the_process_while_a_model_runs(tmp_path: Path) -> None:
    path = tmp_path / "stopped.py"
    body = "os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(5)"
    path.write_text(
        f"import os, signal, time\nfrom torch import nn\n{CLASS}    def forward(self, x):\n        {body}\n"
    )
    result = run("verify", f"{path}:Mixer", "--image", "3x8x8")
    assert (result.exit_code, result.stderr) == (128 + signal.SIGTERM, "")


# In tests


def test_a_file_replaces_no_module_of_its_name(tmp_path: Any) -> None:
    path = tmp_path / "json.py"
    path.write_text("import dataclasses\n\n@dataclasses.dataclass\nclass Mixer:\n    depth: int = 2\n")
    with pytest.raises(MixerEquivError, match="Mixer; verify takes a checkpoint"):
        verify(f"{path}:Mixer", image=IMAGE)
    assert importlib.import_module("json") is json
    assert json.loads("1") == 1
