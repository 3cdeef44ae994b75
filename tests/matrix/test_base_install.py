"""The base install converts, inspects and compares without torch and JAX; `make matrix` runs this without them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mixer_equiv import LAYOUTS, __version__, convert, drop_head, enlarge, load, new_head, save, verify
from mixer_equiv.data.digits import CHECKPOINT
from mixer_equiv.testing.strategies import DTYPES
from tests.support.files import arbitrary_bits, changed

SUFFIXES = ".npz", ".safetensors", ".safetensors.index.json"
WRITABLE = [name for name, layout in LAYOUTS.items() if not layout.read_only]


def run(*arguments: object, status: int = 0) -> str:
    """Return the output of the installed command."""
    command = [str(Path(sys.executable).parent / "mixer-equiv"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")
@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_weights_come_back_from_every_layout_in_every_file(tmp_path: Path, layout: str, suffix: str) -> None:
    weights = load(CHECKPOINT)
    save(convert(weights, to=layout), tmp_path / f"there{suffix}")
    back = convert(load(tmp_path / f"there{suffix}", layout=layout), to="linen")
    assert not changed(weights.arrays, back.arrays)
    assert back.config == weights.config


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("how", ["read", "lazy", "mmap"])
def test_arbitrary_bits_come_back_from_every_file(tmp_path: Path, dtype: str, suffix: str, how: str) -> None:
    weights = arbitrary_bits(dtype)
    save(convert(weights, to="torch"), tmp_path / f"there{suffix}")
    back = convert(load(tmp_path / f"there{suffix}", lazy=how == "lazy", mmap=how == "mmap"), to="linen")
    assert not changed(weights, {name: np.asarray(array) for name, array in back.arrays.items()})


def test_heads_and_images_change() -> None:
    weights = load(CHECKPOINT)
    assert drop_head(weights).config.num_classes == 0
    assert new_head(weights, 3).config.num_classes == 3
    assert enlarge(weights, 16).config.image_hw == (16, 16)


def test_the_command_line_converts_and_inspects(tmp_path: Path) -> None:
    assert "62,090 parameters" in run("convert", CHECKPOINT, tmp_path / "there.safetensors", "--to", "timm")
    run("convert", tmp_path / "there.safetensors", tmp_path / "back.npz", "--to", "linen")
    assert not changed(load(CHECKPOINT).arrays, load(tmp_path / "back.npz").arrays)
    run("inspect", tmp_path / "there.safetensors", "--values", "--json", tmp_path / "inspected.json")
    assert json.loads((tmp_path / "inspected.json").read_text())["layout"] == "timm"
    assert "lucidrains" in run("layouts")
    assert __version__ in run("--version")


def test_bad_input_is_status_2(tmp_path: Path) -> None:
    (tmp_path / "damaged.npz").write_bytes(b"PK not a zip")
    assert "Traceback" not in run("inspect", tmp_path / "damaged.npz", status=2)
    assert "Usage" in run("inspect", status=2)


def test_the_reference_is_compared_with_itself(tmp_path: Path) -> None:
    assert verify("reference", "reference", kwargs={"num_blocks": 2}).verdict == "equivalent"
    assert "EQUIVALENT" in run("verify", "reference", "reference", "--html", tmp_path / "report.html")
    assert "equivalent" in (tmp_path / "report.html").read_text().lower()


def test_the_pytest_plugin_is_installed(tmp_path: Path) -> None:
    test = (
        "def test_it(assert_equivalent):\n    assert_equivalent('reference', 'reference', kwargs={'num_blocks': 2})\n"
    )
    (tmp_path / "test_theirs.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
