"""`mixer-equiv layouts` and `--layout`: the registry, and layouts of one's own from a file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mixer_equiv import load
from mixer_equiv.layouts import LAYOUTS
from tests.support.command_line import assert_one_message, layout_file, params, run, strict_json
from tests.support.files import changed


def test_a_layout_file_given_twice_is_one(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text('name = "given-twice"\nbase = "timm"')
    try:
        assert run("layouts", "--layout", file, "--layout", file).stdout.count("given-twice") == 1
    finally:
        LAYOUTS.pop("given-twice", None)


def test_layouts_lists_the_registry(tmp_path: Path) -> None:
    shown = run("layouts").stdout
    assert all(name in shown for name in LAYOUTS)
    assert "read only" in shown
    rows = strict_json(run("layouts", "--json", "-", "--layout", layout_file(tmp_path)).stdout)["layouts"]
    assert {row["layout"]: row["expressible"] for row in rows}["ours"] == "stem/bias all zeros"
    assert [row["layout"].split(", ")[0] for row in rows] == list(LAYOUTS)


def test_the_layout_of_a_model_is_written_for_the_layout_option(tmp_path: Path) -> None:
    model = "examples/their_mixer.py:MLPMixer"
    sizes = '{"image_size": 12, "patch_size": 4, "hidden": 20, "depth": 3}'
    found = tmp_path / "theirs.toml"
    found.write_text(run("layouts", model, "--kwargs", sizes, "--image", "3x12x12").stdout)
    listed = strict_json(run("layouts", "--json", "-", "--layout", found).stdout)["layouts"]
    assert "MLPMixer" in [row["layout"] for row in listed]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_printed_to_begin_another_with(name: str, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    table = run("layouts", name).stdout.replace(f'name = "{name}"', 'name = "other"')
    other.write_text(re.sub(r"^aliases = \[[^]]*\]\n", "", table, flags=re.MULTILINE))
    listed = strict_json(run("layouts", "--json", "-", "--layout", other).stdout)["layouts"]
    assert "other" in [row["layout"] for row in listed]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["examples/their_mixer.py:MLPMixer"], "give --image, such as 3x224x224"),
        (["examples/their_mixer.py:MLPMixer", "--image", "3x12x12", "--markdown"], "written as TOML"),
        (["nothing.npz", "--image", "3x12x12"], "nothing.npz is no place of one: path/to/file.py:Name"),
        (["nothing.npz"], "no layout is called 'nothing.npz'"),
        (["tim"], "did you mean 'timm'"),
        (["timm", "--json", "-"], "one layout is written as TOML"),
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
    assert not changed(load(tmp_path / "back.npz").arrays, params(stem__bias=np.zeros(20)))
    LAYOUTS.pop("ours")
    run("verify", tmp_path / "ours.pt", tmp_path / "back.npz", "--layout", own)


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


@pytest.mark.parametrize(("suffix", "text"), [(".json", "["), (".toml", "a = [")])
def test_a_file_that_is_nested_without_end_is_one_message(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"deep{suffix}"
    path.write_text(text[:-1] + text[-1] * 100_000)
    assert_one_message(run("layouts", "--layout", str(path), status=2), "deep", "nested too deeply")


def test_kwargs_that_are_nested_without_end_are_one_message() -> None:
    assert_one_message(run("verify", "torch", "--kwargs", "[" * 100_000, status=2), "--kwargs is nested too deeply")
