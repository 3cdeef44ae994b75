"""`mixer-equiv verify`: what it compares, its report as JSON, and the exit status of each verdict."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mixer_equiv import convert, save
from mixer_equiv.cli import app
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from tests.support.command_line import CONFIG, assert_one_message, params, run, strict_json


def test_verify_reads_the_set_of_weights_that_is_meant(tmp_path: Path) -> None:
    sets = {name: convert(params(seed), to="torch").params for name, seed in (("model", 0), ("ema", 1))}
    torch.save(sets, tmp_path / "two.pt")
    save(convert(params(1), to="torch"), tmp_path / "one.pt")
    said = run("verify", tmp_path / "two.pt", status=2).stderr
    assert "say which with prefix= (--prefix)" in said
    assert "EQUIVALENT" in run("verify", tmp_path / "two.pt", tmp_path / "one.pt", "--prefix", "ema").stdout
    run("verify", tmp_path / "two.pt", tmp_path / "one.pt", "--prefix", "model", "--from", "torch", status=1)
    assert "--prefix needs a checkpoint, and A is flax" in run("verify", "flax", "--prefix", "ema", status=2).stderr


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
    "provenance",
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


def test_a_cause_that_may_differ_is_status_0(pair: Path) -> None:
    sides = pair / "torch.safetensors", pair / "erf.safetensors"
    allowed = run("verify", *sides, "--under", "layer_norm_eps", "--under", "activation", status=0)
    assert "NOT EQUIVALENT, explained (equivalent_under)" in allowed.stdout
    assert allowed.stderr == "exit status 0: activation may differ (--under)\n"
    assert run("verify", *sides, "--under", "layer_norm_eps", status=1).stderr == ""
    assert run("verify", sides[0], pair / "timm.safetensors", "--under", "activation", status=0).stderr == ""
    run("verify", sides[0], pair / "other.pt", "--under", "activation", status=1)


def test_a_file_whose_layout_has_code_that_computes_something_else_is_warned_of(pair: Path) -> None:
    warned = report_of(pair / "torch.safetensors", pair / "timm.safetensors", status=0)["warnings"]
    assert warned == [
        "timm.safetensors (timm) is weights alone, and no code of timm was run: timm's code computes erf GELU; these "
        "weights were trained with tanh GELU: pass act_layer=partial(nn.GELU, approximate='tanh')"
    ]
    assert report_of(pair / "torch.safetensors", pair / "a.npz", status=0)["warnings"] == []


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


BAD_VERIFY: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "kwargs of no JSON": (["torch", "--kwargs", "{num_blocks: 2}"], ("--kwargs is not JSON", "{num_blocks: 2}")),
    "kwargs of no object": (["torch", "--kwargs", "[2]"], ("--kwargs is [2]; it must be a JSON object",)),
    "unknown field": (["torch", "--kwargs", '{"blocks": 2}'], ("has no field blocks", "num_classes, num_blocks")),
    "value of another type": (["torch", "--kwargs", '{"num_blocks": "2"}'], ("num_blocks is '2'; it must be a whole",)),
    "unknown activation": (["torch", "--kwargs", '{"activation": "elu"}'], ("activation is 'elu'", "gelu_tanh, gelu")),
    "image of two sizes": (["torch", "--image", "8x9"], ("--image is '8x9'; it must be channels, height and width",)),
    "image of any length": (["torch", "--image", "3x9x" + "9" * 5000], ("--image is '3x9x9",)),
    "image of no numbers": (["torch", "--image", "big"], ("--image is 'big'; it must be channels, height and width",)),
    "image between patches": (["torch", "--image", "3x7x9"], ("7x9 is not divisible by patch_size 2x3", "8x9")),
    "image of no pixels": (["torch", "--image", "3x0x9"], ("image_size is 0; it must be a whole number",)),
    "unknown variant": (["flax:Z/9"], ("no Mixer is called 'Z/9'", "'B/16'")),
    "unknown program": (["keras"], ("'keras' is neither a file nor the name of a model; verify takes a checkpoint",)),
    "missing weights": (["torch", "--weights", "missing.npz"], ("missing.npz does not exist",)),
    "no weights to be given": (["torch", "flax", "--weights", "given"], ("neither torch nor flax has weights",)),
    "negative seed": (["torch", "reference", "--seed", "-1"], ("seed",)),
    "json and markdown to stdout": (
        ["torch", "--json", "-", "--markdown", "-"],
        ("--json - and --markdown - both write to the standard output, which takes one of them; give a file",),
    ),
    "quiet and json to stdout": (
        ["torch", "--quiet", "--json", "-"],
        ("--json - and --quiet both write to the standard output",),
    ),
    "all to stdout": (
        ["torch", "--quiet", "--json", "-", "--markdown", "-"],
        ("--json -, --markdown - and --quiet all write to the standard output",),
    ),
    "html to stdout": (["torch", "--html", "-"], ("only --json and --markdown go to the standard output",)),
    "weights nearly given": (["torch", "--weights", "gven"], ("'gven', which is no file; did you mean 'given'?",)),
    "dtype nearly float16": (["torch", "--dtype", "flaot16"], ("did you mean 'float16'?",)),
    "threshold nearly sgd": (["torch", "--rtol", "sdg:1e-9"], ("did you mean 'sgd'?",)),
    "cause nearly activation": (["torch", "--under", "activations"], ("among absent_", "did you mean 'activation'?")),
    "layout nearly timm": (
        ["mixer_equiv/data/digits_mixer.npz", "--from", "tim"],
        ("no layout is called 'tim'", "did you mean 'timm'?"),
    ),
    "json into no directory": (["reference", "reference", "--json", "missing/report.json"], ("cannot be written",)),
}


@pytest.mark.parametrize("kind", BAD_VERIFY)
def test_verify_refuses_bad_arguments(kind: str) -> None:
    arguments, expected = BAD_VERIFY[kind]
    assert_one_message(run("verify", *arguments, status=2), *expected)


def test_kwargs_without_a_built_in_are_refused(published: Path, tmp_path: Path) -> None:
    path = published
    result = CliRunner().invoke(app, ["verify", str(path), "--kwargs", '{"activation": "relu"}'])
    assert result.exit_code == 2
    assert "kwargs (activation) are for flax, nnx, torch, reference, and none of them is here" in result.stderr


def test_verify_takes_a_headless_checkpoint_on_request(tmp_path: Path) -> None:
    path = tmp_path / "headless.npz"
    params = {name: array for name, array in random_params(CONFIG, 0).items() if not name.startswith("head/")}
    np.savez(path, **params)
    assert CliRunner().invoke(app, ["verify", str(path)]).exit_code == 2
    result = CliRunner().invoke(app, ["verify", str(path), "--allow-missing", "head/*"])
    assert result.exit_code == 0, result.output
    assert "pooled" in result.stdout


def test_quiet_is_one_line_and_keeps_the_status(pair: Path) -> None:
    shown = run("verify", pair / "torch.safetensors", pair / "erf.safetensors", "--quiet", status=1).stdout
    # The warning is of eps, which the code of the tutorial leaves at torch's default.
    assert re.fullmatch(r"equivalent_under: fp64 residual \S+ \(threshold 1e-12\); activation; 1 warning\n", shown)
    shown = run("verify", pair / "torch.safetensors", "torch:S/32", "-q", status=1).stdout
    assert re.fullmatch(r"different: .* are of different sizes, so nothing was run\n", shown)


def test_markdown_goes_to_a_file_or_to_the_standard_output(pair: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.md"
    arguments = "verify", pair / "torch.safetensors", pair / "erf.safetensors"
    assert "NOT EQUIVALENT" in run(*arguments, "--markdown", target, status=1).stdout
    printed = run(*arguments, "--markdown", "-", status=1).stdout
    assert printed.startswith("## NOT EQUIVALENT, explained (equivalent_under): `torch.safetensors (torch)` and")
    assert printed.replace("--markdown -", "--markdown report.md") == target.read_text()


def test_a_report_says_the_command_that_made_it(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair)
    words = "reference", "--seed", "3", "--no-gradients", "--allow-missing", "head/*", "--kwargs", '{"num_blocks": 12}'
    made = report_of(pair / "a.npz", *words, status=1)["provenance"]
    assert made["call"] == (
        "mixer-equiv verify a.npz reference --kwargs '{\"num_blocks\": 12}' --no-gradients --seed 3 "
        "--allow-missing 'head/*' --json -"
    )
    assert made["seed"] == 3
    expected = hashlib.sha256((pair / "a.npz").read_bytes()).hexdigest()
    assert [(file["path"], file["sha256"]) for file in made["files"]] == [("a.npz", expected)]
