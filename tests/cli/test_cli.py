"""The command line: what it writes and says, and that bad input is one message and never a traceback."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

import mixer_equiv
from mixer_equiv import ConventionWarning, MixerConfig, convert, load, save
from mixer_equiv.checkpoints.formats import SUFFIXES, StoredArray
from mixer_equiv.cli import app
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.weights import random_params
from mixer_equiv.layouts import LAYOUTS, LINEN
from mixer_equiv.testing.strategies import DTYPES

CONFIG = DEFAULT_CONFIG.replace(num_blocks=2)
WRITABLE = [name for name, layout in LAYOUTS.items() if not layout.read_only]
JUNK = np.random.default_rng(5).bytes(500)
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


def same_bits(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    x, y = ({name: (v.dtype, v.shape, v.tobytes()) for name, v in arrays.items()} for arrays in (a, b))
    return x == y


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """What every file below `folder` holds; None for a directory."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def bytes_in(folder: Path, *others: Path) -> int:
    """Of all files below `folder` but the others."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path not in others)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A checkpoint as the authors publish them: an npz that says nothing of itself."""
    np.savez(tmp_path / "published.npz", **params())
    return tmp_path / "published.npz"


# convert


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
    assert same_bits(load(back).arrays, params())


@pytest.mark.parametrize("layout", WRITABLE)
def test_convert_to_any_layout_and_back_keeps_every_byte(tmp_path: Path, published: Path, layout: str) -> None:
    run("convert", published, tmp_path / "there.safetensors", "--to", layout)
    run("convert", tmp_path / "there.safetensors", tmp_path / "back.npz", "--to", "linen", "--from", layout)
    with np.load(tmp_path / "back.npz") as back:
        assert same_bits(back, params())
    assert load(tmp_path / "there.safetensors").layout.name == layout


@pytest.mark.parametrize("dtype", DTYPES)
def test_convert_rounds_to_a_dtype(tmp_path: Path, published: Path, dtype: str) -> None:
    shown = run("convert", published, tmp_path / "mixer.npz", "--to", "linen", "--dtype", dtype).stdout
    rounded = {name: array.astype(getattr(ml_dtypes, dtype, dtype)) for name, array in params().items()}
    assert f"3,473 parameters in 30 arrays, {dtype}\n" in shown
    assert same_bits(load(tmp_path / "mixer.npz").arrays, rounded)


def test_convert_leaves_out_what_may_be_missing(tmp_path: Path) -> None:
    headless = params(head__kernel=None, head__bias=None)
    np.savez(tmp_path / "headless.npz", **headless)
    shown = run("convert", tmp_path / "headless.npz", tmp_path / "mixer.pt", "--allow-missing", "head/*").stdout
    assert re.search(r"note: .*head/kernel.*\nnote: .*head/bias", shown)
    assert same_bits(convert(load(tmp_path / "mixer.pt"), to="linen").arrays, headless)
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


def test_verify_reads_the_set_of_weights_that_is_meant(tmp_path: Path) -> None:
    sets = {name: convert(params(seed), to="torch").params for name, seed in (("model", 0), ("ema", 1))}
    torch.save(sets, tmp_path / "two.pt")
    save(convert(params(1), to="torch"), tmp_path / "one.pt")
    said = run("verify", tmp_path / "two.pt", status=2).stderr
    assert "say which with prefix= (--prefix)" in said
    assert "EQUIVALENT" in run("verify", tmp_path / "two.pt", tmp_path / "one.pt", "--prefix", "ema").stdout
    run("verify", tmp_path / "two.pt", tmp_path / "one.pt", "--prefix", "model", "--from", "torch", status=1)
    assert (
        "--from and --prefix are for a checkpoint, and A is flax"
        in run("verify", "flax", "--prefix", "ema", status=2).stderr
    )


def test_a_layout_file_given_twice_is_one(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text('name = "given-twice"\nbase = "timm"')
    try:
        assert run("layouts", "--layout", file, "--layout", file).stdout.count("given-twice") == 1
    finally:
        LAYOUTS.pop("given-twice", None)


def test_force_replaces_the_target(tmp_path: Path, published: Path) -> None:
    (tmp_path / "mixer.npz").write_bytes(JUNK)
    run("convert", published, tmp_path / "mixer.npz", "--to", "linen", "--force")
    assert same_bits(load(tmp_path / "mixer.npz").arrays, params())


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


# inspect


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


# Surgery and files


def layout_file(folder: Path, **fields: str) -> Path:
    rows = "stem/kernel  patchify.weight  ph pw channels hidden -> hidden (channels ph pw)\nstem/bias  -  hidden"
    values = {"name": "ours", "base": "timm", "rows": rows, **fields}
    (folder / "ours.json").write_text(json.dumps(values))
    return folder / "ours.json"


@pytest.fixture(autouse=True)
def _the_registry_stays() -> Iterator[None]:
    before = dict(LAYOUTS)
    yield
    LAYOUTS.clear()
    LAYOUTS.update(before)


def test_layouts_lists_the_registry(tmp_path: Path) -> None:
    shown = run("layouts").stdout
    assert all(name in shown for name in LAYOUTS)
    assert "read only" in shown
    rows = strict_json(run("layouts", "--json", "-", "--layout", layout_file(tmp_path)).stdout)["layouts"]
    assert {row["layout"]: row["expressible"] for row in rows}["ours"] == "stem/bias all zeros"
    assert [row["layout"].split(", ")[0] for row in rows] == list(LAYOUTS)


def test_the_layout_of_a_model_is_written_for_the_layout_option(tmp_path: Path) -> None:
    model = "docs/their_mixer.py:MLPMixer"
    sizes = '{"image_size": 12, "patch_size": 4, "hidden": 20, "depth": 3}'
    found = tmp_path / "theirs.toml"
    found.write_text(run("layouts", model, "--kwargs", sizes, "--image", "3x12x12").stdout)
    listed = strict_json(run("layouts", "--json", "-", "--layout", found).stdout)["layouts"]
    assert "MLPMixer" in [row["layout"] for row in listed]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["docs/their_mixer.py:MLPMixer"], "give --image, such as 3x224x224"),
        (["docs/their_mixer.py:MLPMixer", "--image", "3x12x12", "--markdown"], "written as TOML"),
        (["nothing.npz", "--image", "3x12x12"], "nothing.npz is no place of a model"),
        (["--image", "3x12x12"], "--kwargs and --image are for the layout of a model"),
    ],
)
def test_the_layout_of_what_is_no_model_is_refused_in_words(arguments: list[str], message: str) -> None:
    assert message in run("layouts", *arguments, status=2).stderr


def test_layouts_gives_the_readme_s_table() -> None:
    assert run("layouts", "--markdown").stdout in (Path(__file__).parents[2] / "README.md").read_text()


def test_a_layout_of_one_s_own_is_written_and_found(tmp_path: Path) -> None:
    own = layout_file(tmp_path)
    np.savez(tmp_path / "plain.npz", **params(stem__bias=np.zeros(20)))
    arguments = "convert", tmp_path / "plain.npz", tmp_path / "ours.pt", "--to", "ours", "--layout", own
    run(*arguments)
    LAYOUTS.pop("ours")
    refused = run("convert", tmp_path / "ours.pt", tmp_path / "back.npz", status=2)
    assert "it was written in the layout 'ours': register that first (--layout FILE)" in refused.stderr
    run("convert", tmp_path / "ours.pt", tmp_path / "back.npz", "--layout", own)
    assert same_bits(load(tmp_path / "back.npz").arrays, params(stem__bias=np.zeros(20)))
    LAYOUTS.pop("ours")
    run("verify", tmp_path / "ours.pt", tmp_path / "back.npz", "--layout", own)


def test_what_a_layout_cannot_hold_is_status_3_and_named(tmp_path: Path, published: Path) -> None:
    own, before = layout_file(tmp_path), None
    for target, reason in (("ours", "it has no stem/bias, which is not all zeros"), ("pre-linen", "recorded nowhere")):
        LAYOUTS.pop("ours", None)
        before = snapshot(tmp_path)
        result = run("convert", published, tmp_path / "a.npz", "--to", target, "--layout", own, status=3)
        assert reason in result.stderr
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        (
            {"rows": "stem/kernle a hidden"},
            "row stem/kernle: no canonical parameter is called so; the nearest is stem/ke",
        ),
        ({"base": "tim"}, "base is 'tim'; it must be one of linen"),
        ({"name": "timm"}, "a layout is already called timm"),
        ({"colour": "red"}, "a layout has no field 'colour'"),
    ],
)
def test_a_wrong_layout_file_is_one_message(tmp_path: Path, fields: dict[str, str], fragment: str) -> None:
    result = run("layouts", "--layout", layout_file(tmp_path, **fields), status=2)
    assert fragment in result.stderr


def test_the_head_is_dropped_or_made_new(tmp_path: Path, published: Path) -> None:
    shown = run("convert", published, tmp_path / "a.npz", "--to", "linen", "--drop-head").stdout
    assert "note: the head was dropped" in shown
    headless = {name: array for name, array in params().items() if not name.startswith("head/")}
    assert same_bits(load(tmp_path / "a.npz").arrays, headless)
    assert load(tmp_path / "a.npz").config.num_classes == 0
    for source in ("a.npz", "published.npz"):
        run("convert", tmp_path / source, tmp_path / "b.npz", "--to", "linen", "--num-classes", 9, "--force")
        fresh = {"head/kernel": np.zeros((20, 9)), "head/bias": np.zeros(9)}
        assert same_bits(load(tmp_path / "b.npz").arrays, headless | fresh)
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
    assert same_bits(load(tmp_path / "back.npz").arrays, params())
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
    assert same_bits(load(tmp_path / "a.npz").arrays, params(1))
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
    assert_one_message(result, "nothing is written in the layout pre-linen: where its kernels", "write linen instead")
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
    assert same_bits(load(tmp_path / "a.npz").arrays, kept | fresh)


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
        assert same_bits(load(tmp_path / "a.npz").arrays, params(seed))


def test_a_file_in_a_layout_of_one_s_own_is_verified_with_its_table_alone(tmp_path: Path) -> None:
    """Without it the file is bad input; with it, other weights are still told apart."""
    own = layout_file(tmp_path)
    for seed in (0, 1):
        np.savez(tmp_path / "plain.npz", **params(seed, stem__bias=np.zeros(20)))
        run("convert", tmp_path / "plain.npz", tmp_path / f"{seed}.pt", "--to", "ours", "--layout", own)
        LAYOUTS.pop("ours")
    assert "register that first (--layout FILE)" in run("verify", tmp_path / "0.pt", status=2).stderr
    run("verify", tmp_path / "0.pt", tmp_path / "plain.npz", "--layout", own, status=1)
    LAYOUTS.pop("ours")
    run("verify", tmp_path / "1.pt", tmp_path / "plain.npz", "--layout", own)


# verify


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights in several layouts, other weights, and heads that show nothing."""
    folder = tmp_path_factory.mktemp("pair")
    np.savez(folder / "a.npz", **params())
    np.savez(folder / "zero head.npz", **params(head__kernel=np.zeros((20, 7)), head__bias=np.zeros(7)))
    np.savez(folder / "zero kernel.npz", **params(head__kernel=np.zeros((20, 7))))
    np.savez(folder / "nan.npz", **params(stem__bias=np.full(20, np.nan)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConventionWarning)
        for layout in WRITABLE:
            save(convert(load(folder / "a.npz"), to=layout), folder / f"{layout}.safetensors")
        save(convert(params(), to="jankrepl", config=CONFIG.replace(activation="gelu")), folder / "erf.safetensors")
        save(convert(params(1), to="torch"), folder / "other.pt")
    return folder


def test_verify_a_checkpoint_and_its_port(pair: Path) -> None:
    shown = run("verify", pair / "a.npz").stdout
    assert "EQUIVALENT: fp64 residual" in shown
    assert "linen -> torch -> linen" in shown
    assert "bit-identical" in shown


@pytest.mark.parametrize(("a", "b"), [("a.npz", "torch.safetensors"), ("timm.safetensors", "jankrepl.safetensors")])
def test_verify_two_checkpoints_of_the_same_weights(pair: Path, a: str, b: str) -> None:
    shown = run("verify", pair / a, pair / b).stdout
    assert "EQUIVALENT: fp64 residual" in shown
    assert "bit by bit" in shown


def test_verify_two_programs(tmp_path: Path) -> None:
    fields = {"num_blocks": 1, "num_classes": 5, "activation": "relu"}
    target = tmp_path / "report.json"
    shown = run("verify", "flax", "torch", "--kwargs", json.dumps(fields), "--image", "2x4x9", "--json", target).stdout
    report = strict_json(target.read_text())
    config = DEFAULT_CONFIG.replace(in_channels=2, image_size=(4, 9), **fields)
    assert "random, shared" in shown
    assert (report["verdict"], report["sides"][0]["num_parameters"]) == ("equivalent", config.num_parameters)
    assert 0 < report["residual"] < report["threshold"]
    assert report["mapping"]["head/kernel"] == "head.weight"


def test_verify_with_the_weights_of_a_file(pair: Path) -> None:
    fields = json.dumps({"num_blocks": CONFIG.num_blocks})
    shown = run("verify", "torch", "reference", "--weights", pair / "a.npz", "--kwargs", fields).stdout
    assert "from a.npz (linen)" in shown
    assert "EQUIVALENT" in shown


def test_verify_draws_from_the_seed() -> None:
    reports = [
        strict_json(run("verify", "torch", "reference", "--seed", seed, "--json", "-").stdout) for seed in (1, 1, 2)
    ]
    assert reports[0] == reports[1]
    assert reports[0]["residual"] != reports[2]["residual"]


REPORT_FIELDS = {
    "verdict",
    "residual",
    "threshold",
    "stages",
    "first_divergence",
    "causes",
    "reasons",
    "mapping",
    "unobservable",
    "warnings",
    "environment",
}


def report_of(*arguments: Any, status: int) -> dict[str, Any]:
    report = strict_json(run("verify", *arguments, "--json", "-", status=status).stdout)
    assert report.keys() >= REPORT_FIELDS
    return report


def test_equivalent_is_status_0(pair: Path) -> None:
    report = report_of(pair / "torch.safetensors", pair / "timm.safetensors", status=0)
    assert report["verdict"] == "equivalent"
    assert report["residual"] <= report["threshold"] == 1e-12
    assert [stage["name"] for stage in report["stages"]][-3:] == ["pre_head_layer_norm", "pooled", "logits"]
    assert (report["first_divergence"], report["causes"], report["reasons"]) == (None, [], [])
    assert report["mapping"]["stem/kernel"] == "stem.proj.weight"
    assert report["unobservable"] == [f"MixerBlock_{i}/token_mixing/Dense_1/bias" for i in range(CONFIG.num_blocks)]
    assert report["environment"].keys() >= {"python", "numpy", "torch", "precision"}


def test_other_weights_are_status_1(pair: Path) -> None:
    report = report_of(pair / "torch.safetensors", pair / "other.pt", status=1)
    assert (report["verdict"], report["first_divergence"]) == ("different", "stem")
    assert (report["causes"][0]["name"], report["causes"][0]["count"]) == ("weights", "30 of 30 arrays")


def test_another_convention_is_status_1_and_named(pair: Path) -> None:
    report = report_of(pair / "torch.safetensors", pair / "erf.safetensors", status=1)
    cause = {"name": "activation", "expected": "gelu_tanh", "found": "gelu", "count": "all 4 MLPs"}
    assert report["verdict"] == "equivalent_under"
    assert report["first_divergence"] == "MixerBlock_0/token_mixing"
    assert report["causes"][0].items() >= cause.items()
    assert report["residual_without_causes"] <= report["threshold"]


def test_other_sizes_are_status_1(pair: Path) -> None:
    report = report_of(pair / "torch.safetensors", "torch:S/32", status=1)
    assert report["verdict"] == "different"
    assert "hidden_dim is 20 in one and 512 in the other" in report["reasons"]


def test_bad_input_is_status_2(tmp_path: Path) -> None:
    run("verify", tmp_path / "missing.npz", status=2)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zero head", "the logits hardly move"),
        ("zero kernel", "the logits hardly move"),
        ("nan", "hold NaN or infinity"),
    ],
)
def test_logits_that_show_nothing_are_status_3(pair: Path, name: str, reason: str) -> None:
    report = report_of(pair / f"{name}.npz", "reference", status=3)
    assert report["verdict"] == "nothing_compared"
    assert reason in report["reasons"][0]


# Bad input


def _savez(**replaced: Any) -> Callable[[Path], Any]:
    return lambda path: np.savez(path, **params(**replaced))


def _cut(suffix: str) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        save(params(), path.with_suffix(f".whole{suffix}"))
        whole = path.with_suffix(f".whole{suffix}").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])

    return write


OBJECTS = np.array([{"a": 1}], object)
BAD_SOURCES: dict[str, tuple[str, Callable[[Path], Any], tuple[str, ...]]] = {
    "missing file": (".npz", lambda path: None, ("does not exist",)),
    "directory": (".npz", Path.mkdir, ("is a directory; a checkpoint is a file",)),
    "unknown suffix": (".ckpt", lambda path: path.write_bytes(JUNK), ("suffix '.ckpt'", "none of them either")),
    "truncated npz": (".npz", _cut(".npz"), ("damaged or not a checkpoint",)),
    "truncated safetensors": (".safetensors", _cut(".safetensors"), ("SafetensorError: ",)),
    "truncated pt": (".pt", _cut(".pt"), ("damaged or not a checkpoint",)),
    "junk safetensors": (".safetensors", lambda path: path.write_bytes(JUNK), ("SafetensorError: ",)),
    "object array": (".npz", _savez(head__bias=OBJECTS), ("head/bias", "array of Python objects (a pickle)")),
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
    "image size of no numbers": (["--image-size", "big"], ("--image-size is 'big'", "224x224")),
    "unknown dtype": (["--dtype", "float12"], ("'float12'", "must be one of float16, bfloat16, float32, float64")),
    "integer dtype": (["--dtype", "int32"], ("'int32'", "must be one of float16, bfloat16, float32, float64")),
    "glob of nothing": (["--allow-missing", "tail/*"], ("'tail/*' matches no parameter", "stem/kernel")),
}
BAD_CONVERT = {
    **{kind: (suffix, write, [], expected) for kind, (suffix, write, expected) in BAD_SOURCES.items()},
    **{kind: (".npz", GOOD, options, expected) for kind, (options, expected) in BAD_OPTIONS.items()},
}


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


BAD_VERIFY: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "kwargs of no JSON": (["torch", "--kwargs", "{num_blocks: 2}"], ("--kwargs is not JSON", "{num_blocks: 2}")),
    "kwargs of no object": (["torch", "--kwargs", "[2]"], ("--kwargs is [2]; it must be a JSON object",)),
    "unknown field": (["torch", "--kwargs", '{"blocks": 2}'], ("has no field blocks", "num_classes, num_blocks")),
    "value of another type": (["torch", "--kwargs", '{"num_blocks": "2"}'], ("num_blocks is '2'; it must be a whole",)),
    "unknown activation": (["torch", "--kwargs", '{"activation": "elu"}'], ("activation is 'elu'", "gelu_tanh, gelu")),
    "image of two sizes": (["torch", "--image", "8x9"], ("--image is '8x9'; it must be channels, height and width",)),
    "image of no numbers": (["torch", "--image", "big"], ("--image is 'big'; it must be channels, height and width",)),
    "image between patches": (["torch", "--image", "3x7x9"], ("7x9 is not divisible by patch_size 2x3", "8x9")),
    "image of no pixels": (["torch", "--image", "3x0x9"], ("image_size is 0; it must be a whole number",)),
    "unknown variant": (["flax:Z/9"], ("no Mixer is called 'Z/9'", "'B/16'")),
    "unknown program": (["keras"], ("'keras' is neither a file nor the name of a model; verify takes a checkpoint",)),
    "missing weights": (["torch", "--weights", "missing.npz"], ("missing.npz does not exist",)),
    "no weights to be given": (["torch", "flax", "--weights", "given"], ("neither torch nor flax has weights",)),
    "negative seed": (["torch", "reference", "--seed", "-1"], ("seed",)),
    "json into no directory": (["reference", "reference", "--json", "missing/report.json"], ("cannot be written",)),
}


@pytest.mark.parametrize("kind", BAD_VERIFY)
def test_verify_refuses_bad_arguments(kind: str) -> None:
    arguments, expected = BAD_VERIFY[kind]
    assert_one_message(run("verify", *arguments, status=2), *expected)


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


# As a process


COMMAND = [sys.executable, "-m", "mixer_equiv"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["inspect"]])
def test_a_command_imports_only_what_it_uses(published: Path, arguments: list[str]) -> None:
    script = (
        "import sys; from mixer_equiv.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "finally: print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    words = [*arguments, *([str(published)] if arguments == ["inspect"] else [])]
    finished = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    imported = set(finished.stderr.split())
    assert {"mixer_equiv.cli.verify", "typer"} <= imported
    assert not imported & {"torch", "jax", "jinja2", "mixer_equiv.bench", "mixer_equiv.equivalence.verify"}
    assert ("rich.table" in imported) == (arguments != ["--version"])


def test_a_pipe_sees_no_progress_bar(tmp_path: Path, published: Path) -> None:
    command = [*COMMAND, "convert", published, tmp_path / "mixer.safetensors", "--to", "timm"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stderr == ""
    assert finished.stdout.startswith(f"{published} (linen) -> {tmp_path / 'mixer.safetensors'} (timm)\n")
    assert "\x1b" not in finished.stdout
    assert same_bits(convert(load(tmp_path / "mixer.safetensors"), to="linen").arrays, params())


def at_a_terminal(*arguments: Any) -> tuple[int, str]:
    """Exit status of the command line, and all that it draws, with a pseudo-terminal for every stream."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen([*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    drawn = b""
    try:
        while chunk := os.read(ours, 4096):
            drawn += chunk
    except OSError:  # how Linux says that the other end was closed
        pass
    finally:
        os.close(ours)
    return process.wait(), drawn.decode()


def test_a_terminal_sees_a_progress_bar(tmp_path: Path, published: Path) -> None:
    status, drawn = at_a_terminal("convert", published, tmp_path / "mixer.npz", "--to", "timm")
    assert status == 0
    assert re.search(r"writing mixer\.npz.*━", drawn)
    assert "(timm)" in drawn
    assert (tmp_path / "mixer.npz").is_file()


def test_json_never_replaces_a_checkpoint(published, tmp_path):
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


def test_kwargs_without_a_built_in_are_refused(published, tmp_path):
    path = published
    result = CliRunner().invoke(app, ["verify", str(path), "--kwargs", '{"activation": "relu"}'])
    assert result.exit_code == 2
    assert "kwargs (activation) are for flax, nnx, torch, reference, and none of them is here" in result.stderr


def test_verify_takes_a_headless_checkpoint_on_request(tmp_path):
    path = tmp_path / "headless.npz"
    params = {name: array for name, array in random_params(CONFIG, 0).items() if not name.startswith("head/")}
    np.savez(path, **params)
    assert CliRunner().invoke(app, ["verify", str(path)]).exit_code == 2
    result = CliRunner().invoke(app, ["verify", str(path), "--allow-missing", "head/*"])
    assert result.exit_code == 0, result.output
    assert "pooled" in result.stdout


@pytest.mark.parametrize(("sink", "status"), [("/dev/full", 2), ("pipe", 0)])
def test_output_that_nobody_takes_is_no_verdict(published, sink, status):
    path = published
    command = [sys.executable, "-m", "mixer_equiv", "inspect", str(path)]
    if sink == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(sink, os.O_WRONLY)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, "Traceback" in done.stderr, "Exception" in done.stderr) == (status, False, False)
    assert ("the output cannot be written" in done.stderr) == (status == 2)
