"""Options of `mixer-equiv convert` that change weights or files: heads, sizes, prefixes, shards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from mixer_equiv import convert, load
from mixer_equiv.layouts import LAYOUTS
from tests.support.command_line import assert_one_message, bytes_in, layout_file, params, run
from tests.support.files import changed, snapshot


def test_what_a_layout_cannot_hold_is_status_3_and_named(tmp_path: Path, published: Path) -> None:
    own, before = layout_file(tmp_path), None
    for target, reason in (("ours", "it has no stem/bias, which is not all zeros"), ("pre-linen", "recorded nowhere")):
        LAYOUTS.pop("ours", None)
        before = snapshot(tmp_path)
        result = run("convert", published, tmp_path / "a.npz", "--to", target, "--layout", own, status=3)
        assert reason in result.stderr
        assert snapshot(tmp_path) == before


def test_the_head_is_dropped_or_made_new(tmp_path: Path, published: Path) -> None:
    shown = run("convert", published, tmp_path / "a.npz", "--to", "linen", "--drop-head").stdout
    assert "note: the head was dropped" in shown
    headless = {name: array for name, array in params().items() if not name.startswith("head/")}
    assert not changed(load(tmp_path / "a.npz").arrays, headless)
    assert load(tmp_path / "a.npz").config.num_classes == 0
    for source in ("a.npz", "published.npz"):
        run("convert", tmp_path / source, tmp_path / "b.npz", "--to", "linen", "--num-classes", 9, "--force")
        fresh = {"head/kernel": np.zeros((20, 9)), "head/bias": np.zeros(9)}
        assert not changed(load(tmp_path / "b.npz").arrays, headless | fresh)
    refused = run("convert", published, tmp_path / "c.npz", "--num-classes", 9, "--drop-head", status=2)
    assert "--drop-head and --num-classes are both given" in refused.stderr
    assert "num_classes is 0" in run("convert", published, tmp_path / "c.npz", "--num-classes", 0, status=2).stderr


def test_an_image_k_times_as_large_widens_the_weights(tmp_path: Path, published: Path) -> None:
    target = tmp_path / "large.safetensors"
    shown = run("convert", published, target, "--to", "timm", "--image-size", "16x18").stdout
    assert "note: widened from images of 8x9 to 16x18, seen as 2x2 sub-images" in shown
    assert "are taken as" not in shown
    config = load(target).config
    assert (config.image_hw, config.tokens_mlp_dim) == ((16, 18), 44)
    again = run("convert", target, tmp_path / "larger.npz", "--image-size", "48x54").stdout
    assert "widened from images of 16x18 to 48x54, seen as 3x3 sub-images" in again
    refused = run("convert", target, tmp_path / "no.npz", "--image-size", "24x27", status=2)
    assert "to widen the weights by the paper's rule, give a whole number of times one of these" in refused.stderr


def test_prefixes_are_renamed_on_the_way_out(tmp_path: Path, published: Path) -> None:
    target = tmp_path / "a.safetensors"
    renaming = ["--rename-prefix", "head.=fc.", "--rename-prefix", "=backbone."]
    dry = run("convert", published, target, "--to", "timm", "--dry-run", *renaming).stdout
    assert "backbone.stem.proj.weight" in dry
    assert not target.exists()
    run("convert", published, target, "--to", "timm", *renaming)
    with safe_open(target, "np") as tensors:
        names = set(tensors.keys())
    assert {"fc.weight", "fc.bias", "backbone.stem.proj.weight"} <= names
    assert len(names) == 30
    for form, fragment in (("head.", "it must be OLD=NEW"), ("haed.=fc.", "no name begins so; they begin as stem.")):
        assert fragment in run("convert", published, tmp_path / "b.pt", "--rename-prefix", form, status=2).stderr
    collide = ["--rename-prefix", "stem.=norm.", "--rename-prefix", "stem.proj.=norm."]
    assert (
        "makes several names the same: norm."
        in run("convert", published, tmp_path / "b.pt", "--to", "timm", *collide, status=2).stderr
    )


def test_shards_are_written_read_and_named(tmp_path: Path, published: Path) -> None:
    shown = run("convert", published, tmp_path / "a.safetensors", "--max-shard-size", "10KB").stdout
    assert f"-> {tmp_path / 'a.safetensors.index.json'} (torch)" in shown
    shards = list(tmp_path.glob("a-*-of-*.safetensors"))
    assert len(shards) > 2
    assert f"{bytes_in(tmp_path, published):,} bytes in " in shown
    run("convert", tmp_path / "a.safetensors.index.json", tmp_path / "back.npz")
    assert not changed(load(tmp_path / "back.npz").arrays, params())
    shards[0].unlink()
    assert shards[0].name in run("inspect", tmp_path / "a.safetensors.index.json", status=2).stderr
    for size, target, fragment in (("5 cows", "b.safetensors", "5 cows"), ("1MB", "b.npz", "only safetensors are")):
        result = run("convert", published, tmp_path / target, "--max-shard-size", size, status=2)
        assert fragment in result.stderr


def test_one_of_two_sets_is_chosen_and_what_it_was_trained_with_is_said(tmp_path: Path) -> None:
    sets = {name: {n: torch.tensor(a) for n, a in convert(params(seed), to="torch").arrays.items()}
            for seed, name in enumerate(["model", "ema"])}  # fmt: skip
    torch.save(sets, tmp_path / "both.pt")
    refused = run("convert", tmp_path / "both.pt", tmp_path / "a.npz", status=2)
    assert "say which with prefix= (--prefix)" in refused.stderr
    said = ["--prefix", "ema", "--trained-with", "gelu,1e-5"]
    shown = run("convert", tmp_path / "both.pt", tmp_path / "a.npz", *said).stdout
    assert "these weights were trained with erf GELU" in shown
    assert not changed(load(tmp_path / "a.npz").arrays, params(1))
    assert load(tmp_path / "a.npz").config.layer_norm_eps == 1e-5
    bad = run("inspect", tmp_path / "both.pt", "--prefix", "ema", "--trained-with", "mish", status=2)
    assert "it must be an activation and perhaps an eps, such as gelu_tanh,1e-6" in bad.stderr


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_read_only_layout_is_status_3_and_the_target_stays(tmp_path: Path, published: Path, dry_run: bool) -> None:
    target = tmp_path / "kept.npz"
    np.savez(target, **params(1))
    before = snapshot(tmp_path)
    options = ["--to", "pre-linen", "--force", *(["--dry-run"] if dry_run else [])]
    result = run("convert", published, target, *options, status=3)
    assert_one_message(result, "nothing is written in the layout pre-linen: the places of its", "write linen instead")
    assert snapshot(tmp_path) == before


def test_a_dry_run_shows_all_that_is_changed_and_writes_nothing(tmp_path: Path, published: Path) -> None:
    before = snapshot(tmp_path)
    options = ["--drop-head", "--image-size", "16x18", "--dtype", "bfloat16", "--rename-prefix", "=model/", "--dry-run"]
    shown = run("convert", published, tmp_path / "a.npz", "--to", "linen", *options).stdout
    assert re.search(
        r"MixerBlock_0/token_mixing/Dense_0/ker\S* +12x11 +model/MixerBlock_0/token_mixing/\S* +48x44", shown
    )
    assert "in 28 arrays, bfloat16" in shown
    assert "note: the head was dropped\nnote: widened from images of 8x9 to 16x18" in shown
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("option", "head"), [(["--drop-head"], {}), (["--num-classes", 9], {"head/kernel": (20, 9)})])
def test_a_head_that_is_left_behind_is_nothing_to_refuse(
    tmp_path: Path, published: Path, option: list[Any], head: dict[str, Any]
) -> None:
    """The layout has no bias of the head, and that of the source goes with its head."""
    own = layout_file(tmp_path, base="linen", rows="head/bias  -  classes")
    run("convert", published, tmp_path / "a.npz", "--to", "ours", "--layout", own, *option)
    kept = {name: array for name, array in params().items() if not name.startswith("head/")}
    fresh = {name: np.zeros(shape) for name, shape in head.items()}
    assert not changed(load(tmp_path / "a.npz").arrays, kept | fresh)


BAD_SURGERY: dict[str, tuple[list[str], str]] = {
    "negative classes": (["--num-classes", "-3"], "num_classes is -3"),
    "between patches": (["--image-size", "17x18"], "17x18 does not give the 12 tokens"),
    "twice one way": (["--image-size", "16x9"], "give a whole number of times one of these"),
    "no pixels": (["--image-size", "0x0"], "image_size is 0; it must be a whole number"),
    "prefix of nothing": (["--prefix", "ema"], "no array lies under the prefix 'ema'; at the top are MixerBlock_0"),
    "eps of no number": (["--trained-with", "gelu,small"], "--trained-with is 'gelu,small'"),
    "eps that is no number": (["--trained-with", "gelu,nan"], "layer_norm_eps is nan"),
    "prefix renamed twice": (["--rename-prefix", "head.=a.", "--rename-prefix", "head.=b."], "head."),
    "dry run with a size of nothing": (["--max-shard-size", "5 cows", "--dry-run"], "5 cows"),
    "missing layout": (["--layout", "missing.toml"], "missing.toml cannot be read: No such file or directory"),
}


@pytest.mark.parametrize("kind", BAD_SURGERY)
def test_changes_that_cannot_be_made_are_refused_and_nothing_is_written(
    tmp_path: Path, published: Path, kind: str
) -> None:
    options, fragment = BAD_SURGERY[kind]
    before = snapshot(tmp_path)
    assert fragment in run("convert", published, tmp_path / "a.safetensors", *options, status=2).stderr
    assert snapshot(tmp_path) == before


def test_moments_are_not_converted_in_place_of_weights(tmp_path: Path) -> None:
    sets = {name: {n: torch.tensor(a) for n, a in convert(params(seed), to="torch").arrays.items()}
            for seed, name in enumerate(["model", "ema", "exp_avg", "exp_avg_sq"])}  # fmt: skip
    optimizer = {name: sets.pop(name) for name in ("exp_avg", "exp_avg_sq")}
    torch.save({"optimizer": optimizer, **sets}, tmp_path / "trained.pt")
    refused = run("convert", tmp_path / "trained.pt", tmp_path / "a.npz", status=2).stderr
    assert "under 'model/' and 'ema/'; say which with prefix= (--prefix)" in refused
    for seed, name in enumerate(sets):
        run("convert", tmp_path / "trained.pt", tmp_path / "a.npz", "--prefix", name, "--force")
        assert not changed(load(tmp_path / "a.npz").arrays, params(seed))
