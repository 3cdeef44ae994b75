"""Bad input to any command is one message, a status, and never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mixer_equiv
from mixer_equiv import save
from mixer_equiv.checkpoints.formats import SUFFIXES
from tests.support.checkpoints import JUNK
from tests.support.command_line import assert_one_message, params, run
from tests.support.files import snapshot


def _savez(**replaced: Any) -> Callable[[Path], Any]:
    return lambda path: np.savez(path, **params(**replaced))


def _cut(suffix: str) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        save(params(), path.with_suffix(f".whole{suffix}"))
        whole = path.with_suffix(f".whole{suffix}").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])

    return write


OBJECTS = np.array([{"a": 1}, None], object)
BAD_SOURCES: dict[str, tuple[str, Callable[[Path], Any], tuple[str, ...]]] = {
    "missing file": (".npz", lambda path: None, ("does not exist",)),
    "directory": (".npz", Path.mkdir, ("is a directory; a checkpoint is a file",)),
    "unknown suffix": (".ckpt", lambda path: path.write_bytes(JUNK), ("suffix '.ckpt'", "none of them either")),
    "truncated npz": (".npz", _cut(".npz"), ("damaged or not a checkpoint",)),
    "truncated safetensors": (".safetensors", _cut(".safetensors"), ("SafetensorError: ",)),
    "truncated pt": (".pt", _cut(".pt"), ("damaged or not a checkpoint",)),
    "junk safetensors": (".safetensors", lambda path: path.write_bytes(JUNK), ("SafetensorError: ",)),
    "object array": (
        ".npz",
        _savez(head__bias=OBJECTS),
        ("head/bias: found an array of Python objects", "must be an array of numbers"),
    ),
    "strings": (".npz", _savez(head__bias=np.array(["a"])), ("head/bias", "must be an array of numbers")),
    "wrong shape": (
        ".npz",
        _savez(MixerBlock_1__token_mixing__Dense_0__bias=np.full(12, 0.3)),
        (
            "mis-shaped: MixerBlock_1/token_mixing/Dense_0/bias, found (12,), expected (11,)",
            "blocks.1.token_mixing.dense_0.bias (11,)",
        ),
    ),
    "extra array": (".npz", _savez(extra__kernel=np.full(3, 0.3)), ("unexpected: extra/kernel, found (3,) float64",)),
    "missing array": (
        ".npz",
        _savez(MixerBlock_1__LayerNorm_0__scale=None),
        ("missing: MixerBlock_1/LayerNorm_0/scale, expected (20,)", "blocks.1.layer_norm_0.weight (20,)"),
    ),
    "missing head": (
        ".npz",
        _savez(head__kernel=None),
        ("missing: head/kernel, expected (20, 7)", "head.weight (7, 20)", "--allow-missing 'head/*'"),
    ),
    "no known layout": (
        ".npz",
        lambda path: np.savez(path, a=np.full(2, 0.5)),
        ("no known layout: found a.", "linen: stem/kernel", "timm: stem.proj.weight"),
    ),
}
GOOD: Callable[[Path], Any] = _savez()
BAD_OPTIONS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "unknown layout to": (["--to", "keras"], ("no layout is called 'keras'", "linen, torch, timm, jankrepl")),
    "unknown layout from": (["--from", "keras"], ("no layout is called 'keras'", "linen, torch, timm, jankrepl")),
    "another layout's from": (["--from", "timm"], ("not of the layout timm, but by their names of linen",)),
    "image size of other tokens": (["--image-size", "8x12"], ("8x12 does not give the 12 tokens", "6x12, 8x9, 4x18")),
    "image size of any length": (["--image-size", "9" * 5000], ("--image-size is '999", "224x224")),
    "image size of no numbers": (["--image-size", "big"], ("--image-size is 'big'", "224x224")),
    "unknown dtype": (["--dtype", "float12"], ("'float12'", "must be one of float16, bfloat16, float32, float64")),
    "integer dtype": (["--dtype", "int32"], ("'int32'", "must be one of float16, bfloat16, float32, float64")),
    "glob of nothing": (["--allow-missing", "tail/*"], ("'tail/*' matches no parameter", "stem/kernel")),
}
BAD_CONVERT = {
    **{kind: (suffix, write, [], expected) for kind, (suffix, write, expected) in BAD_SOURCES.items()},
    **{kind: (".npz", GOOD, options, expected) for kind, (options, expected) in BAD_OPTIONS.items()},
}


@pytest.mark.parametrize("kind", BAD_CONVERT)
def test_convert_refuses_bad_input_and_keeps_the_target(tmp_path: Path, kind: str) -> None:
    suffix, write, options, expected = BAD_CONVERT[kind]
    source, target = tmp_path / f"source{suffix}", tmp_path / "target.pt"
    write(source)
    target.write_bytes(JUNK)
    before = snapshot(tmp_path)
    assert_one_message(run("convert", source, target, "--force", *options, status=2), *expected)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", BAD_SOURCES)
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_inspect_and_verify_refuse_bad_checkpoints(tmp_path: Path, command: str, kind: str) -> None:
    suffix, write, expected = BAD_SOURCES[kind]
    write(tmp_path / f"source{suffix}")
    assert_one_message(run(command, tmp_path / f"source{suffix}", status=2), expected[0].split(", ")[0])


BAD_TARGETS: dict[str, tuple[str, list[str], str]] = {
    "existing": ("old.pt", [], "exists; pass force=True (--force) to replace it"),
    "directory": ("folder.pt", ["--force"], "is a directory; give the name of a file"),
    "unknown suffix": ("mixer.ckpt", [], "a checkpoint is one of .npz, .safetensors"),
    "missing directory": ("missing/mixer.pt", [], "there is no directory"),
    "below a file": ("old.pt/mixer.pt", [], "there is no directory"),
    **{f"/proc{suffix}": (f"/proc/mixer{suffix}", [], "cannot be written") for suffix in SUFFIXES},
}


@pytest.mark.parametrize("kind", BAD_TARGETS)
def test_convert_refuses_bad_targets(tmp_path: Path, published: Path, kind: str) -> None:
    name, options, expected = BAD_TARGETS[kind]
    (tmp_path / "old.pt").write_bytes(JUNK)
    (tmp_path / "folder.pt").mkdir()
    before = snapshot(tmp_path)
    assert_one_message(run("convert", published, tmp_path / name, *options, status=2), str(tmp_path / name), expected)
    assert snapshot(tmp_path) == before


def test_an_image_that_does_not_fit_a_checkpoint_lists_those_that_do(published: Path) -> None:
    assert_one_message(run("verify", published, "--image", "3x8x12", status=2), "6x12, 8x9, 4x18, 12x6, 2x36, 24x3")
    assert_one_message(run("verify", published, "--image", "2x8x9", status=2), "2 channels", "takes 3")


@pytest.mark.parametrize(
    "arguments", [["convert"], ["convert", "a.npz"], ["inspect"], ["verify", "--nonsense"], ["port"]]
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    assert "Usage: mixer-equiv" in run(*arguments, status=2).stderr


@pytest.mark.parametrize("arguments", [[], ["convert"], ["inspect"], ["layouts"], ["verify"]])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_status_0(arguments: list[str], flag: str) -> None:
    assert "Usage: mixer-equiv" in run(*arguments, flag).stdout


def test_the_version_is_the_package_s() -> None:
    assert run("--version").stdout == f"mixer-equiv {mixer_equiv.__version__}\n"
    assert "Usage: mixer-equiv" in run("--version", "--nonsense", status=2).stderr
