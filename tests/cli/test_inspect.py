"""`mixer-equiv inspect`: the page, its JSON, and how little of a file it reads."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mixer_equiv import MixerConfig, save
from mixer_equiv.checkpoints.formats import StoredArray
from mixer_equiv.cli import app
from mixer_equiv.layouts import LINEN
from mixer_equiv.testing.strategies import DTYPES
from tests.support.command_line import CONFIG, params, run, strict_json


def test_inspect_shows_the_checkpoint(published: Path) -> None:
    shown = run("inspect", published, "--image-size", "8x9").stdout
    for fragment in (
        "published.npz",
        "linen (official Flax linen model",
        "8x9, 3 channels, patches of 2x3",
        "12 (4x3)",
        "hidden 20, tokens_mlp 11, channels_mlp 26",
        "3,473 in 30 arrays, float64",
        f"{CONFIG.macs:,} an image",
        "tanh GELU, LayerNorm eps 1e-06",
    ):
        assert fragment in shown
    for row in LINEN.rows:
        assert row.foreign in shown
    assert "warning" not in shown
    assert "note" not in shown


def _odd(path: Path) -> Path:
    """A checkpoint with a NaN, an infinity, a constant array, a dead kernel and a head of zeros."""
    arrays = params()
    arrays["stem/bias"][3] = np.nan
    arrays["MixerBlock_0/LayerNorm_0/bias"][2] = -np.inf
    arrays["MixerBlock_0/LayerNorm_0/scale"][:] = 1.5
    arrays["MixerBlock_1/token_mixing/Dense_0/kernel"][:] = 0.5
    arrays["head/kernel"][:] = 0
    np.savez(path, **arrays)
    return path


ODDITIES = {
    "stem/bias": ["NaN"],
    "MixerBlock_0/LayerNorm_0/bias": ["inf"],
    "MixerBlock_0/LayerNorm_0/scale": ["constant"],
    "MixerBlock_1/token_mixing/Dense_0/kernel": ["constant"],
    "head/kernel": ["all zero"],
}


def test_inspect_flags_what_is_odd(tmp_path: Path) -> None:
    shown = run("inspect", _odd(tmp_path / "odd.npz"), "--values").stdout
    for fragment in (
        "NaN in 1 array: stem/bias",
        "inf in 1 array: MixerBlock_0/LayerNorm_0/bias",
        "warning: head/kernel is all zeros",
        "zero or constant in 1 kernel: MixerBlock_1/token_mixing/Dense_0/kernel",
        "constant in 1 of 2",
    ):
        assert fragment in shown


@pytest.mark.parametrize("to_stdout", [True, False])
def test_inspect_writes_json(tmp_path: Path, to_stdout: bool) -> None:
    target = "-" if to_stdout else tmp_path / "inspection.json"
    shown = run("inspect", _odd(tmp_path / "odd.npz"), "--values", "--json", target).stdout
    found = strict_json(shown if to_stdout else Path(target).read_text())
    assert {array["name"]: array["flags"] for array in found["arrays"] if array["flags"]} == ODDITIES
    assert [array["canonical"] for array in found["arrays"]] == list(LINEN.bindings(CONFIG.num_blocks))
    assert found["config"] == CONFIG.replace(image_size=(6, 12)).to_dict()
    assert (found["layout"], found["variant"], found["num_parameters"]) == ("linen", None, 3473)
    assert len(found["findings"]) == 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_inspect_takes_any_bits_and_writes_strict_json(tmp_path: Path, dtype: str) -> None:
    rng, wanted = np.random.default_rng(3), np.dtype(dtype)
    bits = {name: np.frombuffer(rng.bytes(x.size * wanted.itemsize), wanted) for name, x in params().items()}
    save({name: bits[name].reshape(array.shape) for name, array in params().items()}, tmp_path / "mixer.npz")
    assert (
        strict_json(run("inspect", tmp_path / "mixer.npz", "--values", "--json", "-").stdout)["num_parameters"] == 3473
    )


def test_inspect_reads_no_array_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(array: Any, *arguments: Any, **others: Any) -> None:
        raise AssertionError(f"{array} was read")

    path = _odd(tmp_path / "odd.npz")
    monkeypatch.setattr(StoredArray, "__array__", read)
    shown = run("inspect", path).stdout
    assert "stem/kernel  " in shown
    assert "2x3x3x20   float64" in shown
    assert "mean" not in shown
    found = strict_json(run("inspect", path, "--json", "-").stdout)
    assert (found["values_are_read"], found["findings"], found["arrays"][0]["mean"]) == (False, [], None)
    with pytest.raises(AssertionError, match="was read"):
        run("inspect", path, "--values")


def _npz_with_a_huge_array(path: Path, size: int) -> None:
    """A published npz with one array more, of `size` bytes."""
    np.savez(path, **params())
    info = zipfile.ZipInfo("beside/huge.npy")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
    with zipfile.ZipFile(path, "a") as archive, archive.open(info, "w", force_zip64=True) as member:
        member.write(header.getvalue())
        block = bytes(2**24)
        for _ in range(size // len(block)):
            member.write(block)


def test_inspect_of_a_huge_npz_takes_little_memory(tmp_path: Path) -> None:
    _npz_with_a_huge_array(tmp_path / "huge.npz", 2**28)
    script = (
        "import re, sys; from mixer_equiv.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "finally: print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, "inspect", str(tmp_path / "huge.npz")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unexpected: beside/huge, found (268435456,) uint8" in done.stderr
    assert int(done.stderr.split()[-1]) < 150_000  # KiB; the array has twice as many


def _sparse(path: Path, config: MixerConfig) -> Path:
    """safetensors of random names and shapes but no numbers: a header, and a hole of the right length."""
    header, end = {}, 0
    for name, binding in LINEN.bindings(config.num_blocks).items():
        begin, shape = end, binding.shape(config.axis_sizes)
        end += 8 * math.prod(shape)
        header[name] = {"dtype": "F64", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return path


def _peak_memory(*arguments: Any) -> tuple[str, int]:
    """What a command shows, and the most memory that it had, in KiB."""
    script = (
        "import re, sys; from mixer_equiv.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "finally: print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, int(done.stderr.split()[-1])


def test_inspect_of_a_whole_model_of_a_gigabyte_reads_its_header_alone(tmp_path: Path) -> None:
    config = CONFIG.replace(num_classes=2**30 // 8 // (CONFIG.hidden_dim + 1))
    path = _sparse(tmp_path / "huge.safetensors", config)
    assert path.stat().st_size > 2**30
    shown, peak = _peak_memory("inspect", path)
    assert f"{config.num_parameters:,} in 30 arrays, float64" in shown
    assert peak < 150_000


def test_the_memory_of_a_command_that_reads_is_seen(tmp_path: Path) -> None:
    """The planted fault of the test before, with less to read."""
    path = _sparse(tmp_path / "large.safetensors", CONFIG.replace(num_classes=2**26 // 8 // CONFIG.hidden_dim))
    assert _peak_memory("inspect", path, "--values")[1] > 150_000


def test_json_never_replaces_a_checkpoint(published: Path, tmp_path: Path) -> None:
    path = published
    before = path.read_bytes()
    for command in ("inspect", "verify"):
        result = CliRunner().invoke(app, [command, str(path), "--json", str(path)])
        assert result.exit_code == 2
        assert "by its suffix a checkpoint" in result.stderr
    assert path.read_bytes() == before
    target = tmp_path / "out.json"
    target.write_text("old")
    assert CliRunner().invoke(app, ["inspect", str(path), "--json", str(target)]).exit_code == 0
    assert json.loads(target.read_text())["layout"] == "linen"
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted([published.name, "out.json"])
