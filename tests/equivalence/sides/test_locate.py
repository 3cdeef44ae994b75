"""Models given by the place of their code: `path/to/file.py:Name` and `package.module:Name`."""

from __future__ import annotations

import importlib
import json
import re
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
from tests.support.sizes import IMAGE, SMALL

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
        ("Missing", [], "has no Missing; its classes are Mixer\n"),
        ("mixr", [], "has no mixr; did you mean 'Mixer'? Its classes are Mixer\n"),
        (
            "made",
            [],
            "the image that Mixer takes is not known: give image=(channels, height, width), on the command line "
            "--image CxHxW such as 3x224x224\n",
        ),
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


# A file without a name

NAMELESS = {
    "one class": (
        "from torch import nn\nclass Mixer(nn.Module):\n    def __init__(self, dim, depth=2): pass\n",
        """its model is Mixer: mixer-equiv verify {path}:Mixer --kwargs '{{"dim": ...}}' --image 3x224x224""",
    ),
    "parts and a whole": (
        "from torch import nn\nclass Part(nn.Module): pass\nclass Whole(nn.Module):\n    part = Part\n",
        "name one of Whole, Part, as in: mixer-equiv verify {path}:Whole --image 3x224x224",
    ),
    "many classes": (
        "from torch import nn\n" + "".join(f"class M{i}(nn.Module): pass\n" for i in range(12)),
        "name one of M0, M1, M2, M3, M4, M5, M6, M7, M8, M9 and 2 more, as in: "
        "mixer-equiv verify {path}:M0 --image 3x224x224",
    ),
    "a class and functions that make a model": (
        "from __future__ import annotations\nfrom torch import nn\nclass Mixer(nn.Module): pass\n"
        "def build(): return Mixer()\ndef sized(dim) -> Mixer: return Mixer()\ndef gelu(x): return x\n"
        "def show() -> None: pass\ndef _kept(): pass\n",
        "name Mixer, or a function that makes a model (build, sized), as in: "
        "mixer-equiv verify {path}:Mixer --image 3x224x224",
    ),
    "a model": (
        "from torch import nn\nmade = nn.Linear(2, 2)\n",
        "its model is made: mixer-equiv verify {path}:made --image 3x224x224",
    ),
    "a function": (
        "def make(): pass\n",
        "it has no model; a function that makes one is given as {path}:name, and its functions are make",
    ),
}


@pytest.mark.parametrize("command", ["verify", "layouts"])
@pytest.mark.parametrize("kind", NAMELESS)
def test_a_file_alone_is_answered_with_the_models_in_it(tmp_path: Path, kind: str, command: str) -> None:
    source, message = NAMELESS[kind]
    path = tmp_path / "nameless.py"
    path.write_text(source)
    result = run(command, path)
    assert result.exit_code == 2
    assert result.stderr == f"error: {path} is code; {message.format(path=path)}\n"


def test_a_misspelt_name_is_corrected_before_the_others_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "many.py"
    classes = "".join(f"class Model{i}(nn.Module): pass\n" for i in range(11))
    path.write_text(f"from torch import nn\n{classes}def build(): pass\n")
    for given, meant in (("Modle10", "Model10"), ("biuld", "build")):
        listed = ", ".join(f"Model{i}" for i in range(10))
        message = f"{path} has no {given}; did you mean '{meant}'? Its classes are {listed} and 1 more\n"
        assert run("verify", f"{path}:{given}").stderr == f"error: {message}"


LAZY = """
    import torch
    from torch import nn
    from tests.support.sizes import SMALL
    from tests.support.structures import PortMixer

    class Mixer(PortMixer):
        def __init__(self):
            super().__init__(SMALL)
            self.classifier = nn.LazyLinear(SMALL.num_classes)

    made = Mixer()
"""


def test_lazy_modules_that_are_made_here_get_their_shapes(tmp_path: Path) -> None:
    path = tmp_path / "lazy.py"
    path.write_text(textwrap.dedent(LAZY))
    size = "x".join(map(str, (SMALL.in_channels, *SMALL.image_hw)))
    assert run("verify", f"{path}:Mixer", "--image", size, "--no-gradients", "-q").exit_code == 0
    assert run("layouts", f"{path}:Mixer", "--image", size).exit_code == 0
    refused = run("verify", f"{path}:made", "--image", size)
    assert "Mixer has parameters without shapes" in refused.stderr
    wrong = run("verify", f"{path}:Mixer", "--image", "3x99x98")
    assert wrong.stderr.count("It was run on images of 3x99x98") == 1, wrong.stderr


def test_names_that_are_nearly_right_are_offered() -> None:
    offered = {
        "timm:mixer_b16_244": "no model mixer_b16_244; did you mean 'mixer_b16_224'?",
        "flx:B/16": "did you mean 'flax'?",
        "refrence": "did you mean 'reference'?",
    }
    for given, message in offered.items():
        with pytest.raises(MixerEquivError, match=re.escape(message)):
            verify(given, image=IMAGE)
    with pytest.raises(MixerEquivError, match="'qqqqq' is neither a file nor the name of a model; verify takes"):
        verify("qqqqq")


# Arguments that are known by their names

HEAD = """
    import jax
    from flax import linen, nnx
    from mixer_equiv.models.flax import MlpMixer as Linen
    from mixer_equiv.models.nnx import MlpMixer as Nnx
    from tests.support.sizes import SMALL

    def dropped(images, deterministic):
        return linen.Dropout(0.5, deterministic=deterministic)(Linen(SMALL)(images))
"""
IN_FLAX = {
    "nnx, rngs": """
    class Mixer(Nnx):
        def __init__(self, *, rngs: nnx.Rngs):
            super().__init__(SMALL, rngs=rngs)
""",
    "nnx, rngs and a mode": """
    class Mixer(nnx.Module):
        def __init__(self, deterministic: bool, rngs: nnx.Rngs):
            self.mixer, self.drop = Nnx(SMALL, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.mode = deterministic

        def __call__(self, images):
            return self.drop(self.mixer(images), deterministic=self.mode)
""",
    "nnx, a function": """
    def Mixer(rngs):
        return Nnx(SMALL, rngs=rngs)
""",
    "linen, in the call": """
    class Mixer(linen.Module):
        @linen.compact
        def __call__(self, images, *, train: bool):
            return dropped(images, not train)
""",
    "linen, in the constructor": """
    class Mixer(linen.Module):
        deterministic: bool

        @linen.compact
        def __call__(self, images):
            return dropped(images, self.deterministic)
""",
    "linen, the other mode in the constructor": """
    class Mixer(linen.Module):
        train: bool = True

        @linen.compact
        def __call__(self, images):
            return dropped(images, not self.train)
""",
    "linen, open in the constructor": """
    class Mixer(linen.Module):
        deterministic: bool | None = None

        @linen.compact
        def __call__(self, images):
            return dropped(images, linen.merge_param("deterministic", self.deterministic, None))
""",
    "linen, open in both": """
    class Mixer(linen.Module):
        deterministic: bool | None = None

        @linen.compact
        def __call__(self, images, deterministic: bool | None = None):
            return dropped(images, linen.merge_param("deterministic", self.deterministic, deterministic))
""",
}


@pytest.mark.parametrize("kind", IN_FLAX)
def test_flax_models_get_their_random_keys_and_mode(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "in_flax.py"
    path.write_text(textwrap.dedent(HEAD) + textwrap.dedent(IN_FLAX[kind]))
    result = run("verify", f"{path}:Mixer", "reference", "--image", "3x6x12", "--no-gradients", "--quiet")
    assert (result.exit_code, result.stdout.partition(":")[0]) == (0, "equivalent"), result.output


def test_arguments_that_are_not_known_are_still_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "in_flax.py"
    source = "class Mixer(nnx.Module):\n    def __init__(self, depth, rngs): pass\n"
    path.write_text(textwrap.dedent(HEAD) + source)
    result = run("verify", f"{path}:Mixer", "--image", "3x6x12")
    assert result.exit_code == 2
    assert "missing 1 required positional argument: 'depth'" in result.stderr
