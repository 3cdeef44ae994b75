"""`mixer-equiv convert`: the bytes it writes, what it says, and what it refuses to write."""

from __future__ import annotations

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mixer_equiv import convert, load
from mixer_equiv.checkpoints.formats import SUFFIXES
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.layouts import LAYOUTS
from mixer_equiv.testing.strategies import DTYPES
from tests.support.checkpoints import JUNK, WRITABLE
from tests.support.command_line import CONFIG, bytes_in, params, run
from tests.support.files import changed, snapshot


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_convert_writes_the_other_framework_by_default(tmp_path: Path, published: Path, suffix: str) -> None:
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.npz"
    shown = run("convert", published, there).stdout
    assert f"{published} (linen) -> {there} (torch)" in shown
    assert "3,473 parameters in 30 arrays, float64" in shown
    assert f"{bytes_in(tmp_path, published):,} bytes in " in shown
    assert "note: 12 tokens are taken as 3x4, an image of 6x12" in shown
    run("convert", there, back)
    assert (load(there).layout.name, load(back).layout.name) == ("torch", "linen")
    assert not changed(load(back).arrays, params())


@pytest.mark.parametrize("layout", WRITABLE)
def test_convert_to_any_layout_and_back_keeps_every_byte(tmp_path: Path, published: Path, layout: str) -> None:
    run("convert", published, tmp_path / "there.safetensors", "--to", layout)
    run("convert", tmp_path / "there.safetensors", tmp_path / "back.npz", "--to", "linen", "--from", layout)
    with np.load(tmp_path / "back.npz") as back:
        assert not changed(back, params())
    assert load(tmp_path / "there.safetensors").layout.name == layout


@pytest.mark.parametrize("dtype", DTYPES)
def test_convert_rounds_to_a_dtype(tmp_path: Path, published: Path, dtype: str) -> None:
    shown = run("convert", published, tmp_path / "mixer.npz", "--to", "linen", "--dtype", dtype).stdout
    rounded = {name: array.astype(getattr(ml_dtypes, dtype, dtype)) for name, array in params().items()}
    assert f"3,473 parameters in 30 arrays, {dtype}\n" in shown
    assert not changed(load(tmp_path / "mixer.npz").arrays, rounded)


def test_convert_leaves_out_what_may_be_missing(tmp_path: Path) -> None:
    headless = params(head__kernel=None, head__bias=None)
    np.savez(tmp_path / "headless.npz", **headless)
    shown = run("convert", tmp_path / "headless.npz", tmp_path / "mixer.pt", "--allow-missing", "head/*").stdout
    assert re.search(r"note: .*head/kernel.*\nnote: .*head/bias", shown)
    assert not changed(convert(load(tmp_path / "mixer.pt"), to="linen").arrays, headless)
    assert "no head" in run("inspect", tmp_path / "mixer.pt").stdout


@pytest.mark.parametrize(("given", "expected"), [("8x9", (8, 9)), ("6x12", (6, 12)), ("12x6", (12, 6))])
def test_convert_takes_the_image_size(tmp_path: Path, published: Path, given: str, expected: tuple[int, int]) -> None:
    shown = run("convert", published, tmp_path / "mixer.pt", "--image-size", given).stdout
    assert load(tmp_path / "mixer.pt").config.image_hw == expected
    assert "note:" not in shown


def test_one_number_is_a_square_image(tmp_path: Path) -> None:
    square = CONFIG.replace(patch_size=(2, 3), image_size=(12, 12))
    np.savez(tmp_path / "square.npz", **random_params(square, 0))
    run("convert", tmp_path / "square.npz", tmp_path / "mixer.pt", "--image-size", 12)
    assert load(tmp_path / "mixer.pt").config.image_hw == (12, 12)


def test_dry_run_shows_every_name_and_writes_nothing(tmp_path: Path, published: Path) -> None:
    before = snapshot(tmp_path)
    shown = run("convert", published, tmp_path / "mixer.pt", "--to", "timm", "--dry-run").stdout
    assert snapshot(tmp_path) == before
    assert "dry run: nothing was written" in shown
    for binding in LAYOUTS["timm"].bindings(CONFIG.num_blocks).values():
        assert re.search(rf"{re.escape(binding.canonical)} .* {re.escape(binding.foreign)} ", shown)
    assert re.search(r"stem/kernel +2x3x3x20 +stem\.proj\.weight +20x3x2x3", shown)


@pytest.mark.parametrize("target", ["missing/mixer.pt", "taken.pt", "mixer.unknown"])
def test_dry_run_refuses_what_the_run_would_refuse(tmp_path: Path, published: Path, target: str) -> None:
    (tmp_path / "taken.pt").write_bytes(JUNK)
    dry, real = (
        run("convert", published, tmp_path / target, *option, status=2).stderr for option in (["--dry-run"], [])
    )
    assert dry == real
    run("convert", published, tmp_path / "taken.pt", "--force", "--dry-run")
    assert (tmp_path / "taken.pt").read_bytes() == JUNK


@pytest.mark.parametrize("limit", ["10KB", "5GB"])
def test_dry_run_names_the_file_that_the_run_writes(tmp_path: Path, published: Path, limit: str) -> None:
    command = ["convert", published, tmp_path / "mixer.safetensors", "--max-shard-size", limit]
    dry = run(*command, "--dry-run").stdout
    first = next(line for line in dry.splitlines() if " -> " in line)
    assert first in run(*command).stdout.splitlines()
    assert ("index.json" in first) == (limit == "10KB")


@pytest.mark.parametrize("option", [["--image-size", "800000x900000"], ["--num-classes", "1000000000000"]])
def test_a_result_that_no_machine_holds_is_refused_in_words(tmp_path: Path, published: Path, option: list[str]) -> None:
    said = run("convert", published, tmp_path / "mixer.pt", *option, status=2).stderr
    assert re.search(
        r"the result would have [\d,]+ parameters, of [\d,]+ GB at least; this machine has [\d,]+ GB", said
    )
    assert not (tmp_path / "mixer.pt").exists()


def test_force_replaces_the_target(tmp_path: Path, published: Path) -> None:
    (tmp_path / "mixer.npz").write_bytes(JUNK)
    run("convert", published, tmp_path / "mixer.npz", "--to", "linen", "--force")
    assert not changed(load(tmp_path / "mixer.npz").arrays, params())


def test_convert_can_replace_its_own_source(published: Path) -> None:
    run("convert", published, published, "--to", "timm", "--force")
    assert load(published).layout.name == "timm"


WARNINGS = {
    "timm": "timm's code computes erf GELU; these weights were trained with tanh GELU: pass act_layer=",
    "jankrepl": "jankrepl's code computes LayerNorm eps 1e-05; these weights were trained with LayerNorm eps 1e-06:",
}


@pytest.mark.parametrize("layout", WARNINGS)
def test_convert_says_what_the_targets_code_does_otherwise(tmp_path: Path, published: Path, layout: str) -> None:
    result = run("convert", published, tmp_path / "mixer.safetensors", "--to", layout)
    assert f"warning: {WARNINGS[layout]}" in result.stdout
