"""The examples run as their docstrings say, and say what they show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_trained_mixer_is_ported_and_proven(tmp_path: Path) -> None:
    said = run("port_and_prove.py", "--output-dir", str(tmp_path))
    assert "timm: equivalent:" in said
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "equivalent"
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json", ".html"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("check_torch.py", ("activation is gelu, and should be gelu_tanh", "layer_norm_eps is 1e-05", "\nequivalent:")),
        ("check_linen.py", ("EQUIVALENT", "norm_a{i}", "held-out images")),
        ("check_nnx.py", ("DIFFERENT", "residual", "check_nnx.py:", "\nequivalent:")),
    ],
)
def test_a_model_is_checked(name: str, said: tuple[str, ...]) -> None:
    output = run(name)
    assert [words for words in said if words not in output] == []
