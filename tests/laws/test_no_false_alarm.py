"""No false alarm: draws of weights and images of every kind, on which two right programs must come out the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.residuals import DEEP_CONFIGS, make_draws
from mixer_equiv import Checkpoint, MixerConfig, save, verify
from mixer_equiv.cli import app
from mixer_equiv.testing.strategies import configs
from tests.support.mixers import FUZZ
from tests.support.structures import OwnMixer, PortMixer

COUNTS = [pytest.param(2, id="few"), pytest.param(2000, id="2000", marks=pytest.mark.soundness)]


def test_the_configs_are_eight_of_twelve_blocks() -> None:
    assert len(set(DEEP_CONFIGS)) == 8
    assert {config.num_blocks for config in DEEP_CONFIGS} == {12}


@pytest.mark.parametrize("count", COUNTS)
def test_right_programs_are_never_called_different(count: int) -> None:
    alarms = []
    for seed, (config, params, images) in enumerate(make_draws(count)):
        weights = Checkpoint.from_arrays(params, config=config, source=f"draw {seed}")
        report = verify("torch", "flax", weights=weights, images=images, seed=seed)
        if (report.verdict, report.causes, report.reasons) != ("equivalent", (), ()):
            alarms.append((seed, str(report)))
    assert alarms == []


@pytest.mark.parametrize("count", [pytest.param(1, id="few"), pytest.param(160, id="160", marks=pytest.mark.soundness)])
def test_a_right_model_of_somebody_else_is_never_called_different(count: int) -> None:
    alarms = []
    for seed, (config, params, images) in enumerate(make_draws(count)):
        weights = Checkpoint.from_arrays(params, config=config, source=f"draw {seed}")
        image = config.in_channels, *config.image_hw
        report = verify(OwnMixer(config), weights=weights, image=image, images=images[:4], seed=seed)
        if (report.verdict, report.causes, report.reasons) != ("equivalent", (), ()):
            alarms.append((seed, str(report)))
    assert alarms == []


# Where a GELU saw nothing but large negative sums of its only unit, of which the models round the result otherwise.
ONE_UNIT = MixerConfig(
    num_classes=3,
    num_blocks=2,
    patch_size=(1, 2),
    image_size=2,
    in_channels=3,
    hidden_dim=5,
    tokens_mlp_dim=1,
    channels_mlp_dim=1,
)
SATURATED = {
    50: ONE_UNIT,
    10: ONE_UNIT.replace(num_blocks=1, image_size=(3, 6), in_channels=2, hidden_dim=6, tokens_mlp_dim=2, num_classes=5),
    1: ONE_UNIT.replace(patch_size=(2, 1), image_size=(2, 3), in_channels=2, num_classes=2),
}


def is_found(config: MixerConfig, seed: int) -> bool:
    image = config.in_channels, *config.image_hw
    return verify(PortMixer(config), "reference", image=image, seed=seed, gradients=False).equivalent


@pytest.mark.parametrize("seed", SATURATED)
def test_right_models_of_one_unit_are_found(seed: int) -> None:
    assert is_found(SATURATED[seed], seed)


@settings(max_examples=200 if FUZZ else 10)
@given(
    configs(
        allow_headless=True, min_dim=2, max_blocks=3, min_hidden_dim=3, activation="gelu_tanh", layer_norm_eps=1e-6
    ),
    st.integers(0, 99),
)
def test_right_models_of_any_small_size_are_found(config: MixerConfig, seed: int) -> None:
    assert is_found(config.replace(num_classes=config.num_classes or 2), seed)


@pytest.mark.parametrize("config", [DEEP_CONFIGS[0], pytest.param(DEEP_CONFIGS[3], marks=pytest.mark.soundness)])
def test_the_command_line_says_the_same(tmp_path: Path, config: MixerConfig) -> None:
    for seed, (drawn, params, _) in enumerate(make_draws(16)):
        if drawn == config:
            path = tmp_path / f"{seed}.npz"
            save(Checkpoint.from_arrays(params, config=config), path)
            size = "x".join(map(str, (config.in_channels, *config.image_hw)))
            arguments = ["verify", str(path), "--seed", str(seed), "--image", size, "--json", "-"]
            result = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert result.exit_code == 0
            assert json.loads(result.stdout)["verdict"] == "equivalent"
