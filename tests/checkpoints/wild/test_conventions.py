"""What is known or assumed of the code that weights were trained with goes through every conversion and format."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixer_equiv import Checkpoint, ConventionWarning, convert, load, save
from mixer_equiv.bench.peers_torch import with_conventions
from mixer_equiv.checkpoints.formats import SUFFIXES
from mixer_equiv.layouts import LAYOUTS, Conventions
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.torch import MlpMixer
from tests.support.checkpoints import in_layout
from tests.support.command_line import run
from tests.support.sizes import CONFIG
from tests.support.structures import timm_mixer

SETTINGS = ("activation", "layer_norm_eps")


def settings_of(conventions: Any) -> tuple[Any, ...]:
    return tuple(getattr(conventions, setting) for setting in SETTINGS)


@contextlib.contextmanager
def warned(expected: bool) -> Iterator[None]:
    """Whether a `ConventionWarning` comes, or none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConventionWarning)
        yield
    assert any(issubclass(warning.category, ConventionWarning) for warning in caught) == expected


def timm_file(folder: Path) -> tuple[Path, torch.nn.Module]:
    """A .pth of timm's own code, with nothing that says so."""
    torch.manual_seed(3)
    model = timm_mixer(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(model.state_dict(), folder / "x.pth")
    return folder / "x.pth", model


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("to", ["linen", "torch"])
def test_what_timm_s_code_computes_goes_through_every_format(tmp_path: Path, suffix: str, to: str) -> None:
    path, model = timm_file(tmp_path)
    with warned(True):
        converted = convert(load(path, image_size=CONFIG.image_hw), to=to)
    found = load(save(converted, tmp_path / f"there{suffix}"))
    assert settings_of(found.config) == settings_of(LAYOUTS["timm"].computes)
    assert (found.trained_with, found.assumed_from) == (converted.trained_with, "timm")
    with warned(to != "torch"):
        state = convert(found, to="torch") if to != "torch" else found
    ours = MlpMixer(state.config).double()
    ours.load_state_dict({name: tensor.double() for name, tensor in state.items()})
    images = torch.randn(2, 3, *CONFIG.image_hw, dtype=torch.float64)
    with torch.no_grad():
        theirs = model.double().eval()(images).numpy()
        np.testing.assert_allclose(ours.eval()(images).numpy(), theirs, rtol=1e-12, atol=1e-12)
    with warned(False):
        back = convert(state, to="timm")
    assert back.assumed_from == "timm"


def test_the_command_line_says_whose_conventions_they_are(tmp_path: Path) -> None:
    path, _ = timm_file(tmp_path)
    shown = run("convert", path, tmp_path / "there.npz", "--to", "linen").output
    assert "timm's code computes erf GELU" in " ".join(shown.split())
    shown = " ".join(run("inspect", tmp_path / "there.npz").output.split())
    assert "trained with not recorded; timm's code computes erf GELU, LayerNorm eps 1e-06" in shown


@pytest.mark.parametrize("source", LAYOUTS)
def test_conventions_go_through_any_two_conversions(source: str) -> None:
    start = Checkpoint.from_arrays(in_layout_of(source), layout=source, config=None)
    expected = settings_of(start.trained_with or start.layout.computes)
    for first in LAYOUTS:
        if LAYOUTS[first].read_only:
            continue
        for second in ("linen", "torch", "timm", "lucidrains"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConventionWarning)
                there = convert(start, to=first)
                found = convert(there, to=second)
            assert settings_of(found.config) == settings_of(found.trained_with) == expected
            assert found.assumed_from == (None if start.trained_with else source)
            with warned(expected != settings_of(LAYOUTS[second].computes)):
                convert(there, to=second)


def in_layout_of(name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    params = {
        canonical: rng.normal(size=binding.shape(CONFIG.axis_sizes)).astype(np.float32)
        for canonical, binding in LAYOUTS["linen"].bindings(CONFIG.num_blocks).items()
    }
    return dict(in_layout(params, name, CONFIG))


def test_what_the_caller_says_outranks_what_was_assumed(tmp_path: Path) -> None:
    path, _ = timm_file(tmp_path)
    with warned(True):
        converted = convert(load(path), to="linen")
    save(converted, tmp_path / "x.npz")
    found = load(tmp_path / "x.npz", trained_with=Conventions())
    assert (settings_of(found.config), found.assumed_from) == (settings_of(Conventions()), None)
    with warned(False):
        convert(found, to="torch")


def test_a_config_that_is_given_is_no_assumption(tmp_path: Path) -> None:
    path, _ = timm_file(tmp_path)
    with warned(True):
        assumed = convert(load(path, image_size=CONFIG.image_hw), to="linen")
    given = convert(assumed, to="torch", config=CONFIG)
    assert (settings_of(given.trained_with), given.assumed_from) == (settings_of(CONFIG), None)


def test_a_plain_dict_warns_when_it_is_converted(tmp_path: Path) -> None:
    path, _ = timm_file(tmp_path)
    with warned(True):
        params = convert(dict(load(path)), to="linen")
    assert type(params) is dict


def test_another_name_of_the_layout_keeps_what_is_known(tmp_path: Path) -> None:
    path, _ = timm_file(tmp_path)
    known = load(path, trained_with=Conventions("silu", 1e-3))
    with warned(True):
        there = convert(known, to="linen", from_="timm")
    assert (settings_of(there.trained_with), there.assumed_from) == (("silu", 1e-3), None)


# Modules that were saved whole


def whole(folder: Path, activation: str = "gelu_tanh", layer_norm_eps: float = 1e-6) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(3)
    model = with_conventions(timm_mixer(CONFIG), activation, layer_norm_eps).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(model, folder / "x.pth")
    return folder / "x.pth", model


def test_a_module_of_timm_s_with_the_tanh_gelu_needs_no_warning_in_flax(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = timm_mixer(CONFIG, act_layer=partial(torch.nn.GELU, approximate="tanh")).eval()
    torch.save(model, tmp_path / "x.pth")
    found = load(tmp_path / "x.pth", image_size=CONFIG.image_hw)
    assert "its modules compute tanh GELU, LayerNorm eps 1e-06" in found.notes
    assert (settings_of(found.config), found.assumed_from) == (("gelu_tanh", 1e-6), None)
    with warned(False):
        converted = convert(found, to="linen")
    images = np.random.default_rng(0).normal(size=(2, *CONFIG.image_hw, 3)).astype(np.float32)
    ours = FlaxMixer(converted.config).apply({"params": converted.params}, images)
    with torch.no_grad():
        theirs = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
@pytest.mark.parametrize("layer_norm_eps", [1e-5, 1e-3])
def test_what_modules_compute_goes_through_a_conversion(tmp_path: Path, activation: str, layer_norm_eps: float) -> None:
    path, _ = whole(tmp_path, activation, layer_norm_eps)
    with warned(True):
        converted = convert(load(path), to="linen")
    assert settings_of(load(save(converted, tmp_path / "x.npz")).config) == (activation, layer_norm_eps)


def test_the_caller_outranks_the_modules_and_these_a_name(tmp_path: Path) -> None:
    path, _ = whole(tmp_path, "gelu", 1e-5)
    named = path.rename(tmp_path / "mixer_b16_224.goog_in21k.pth")
    assert settings_of(load(named).config) == ("gelu", 1e-5)
    assert settings_of(load(named, trained_with=Conventions("silu", 1e-3)).config) == ("silu", 1e-3)


def test_modules_that_differ_say_so_and_tell_nothing(tmp_path: Path) -> None:
    path, model = whole(tmp_path)
    model.blocks[1].mlp_tokens.act = torch.nn.ReLU()
    torch.save(model, path)
    found = load(path)
    assert found.trained_with is None
    assert "its modules differ in activation: gelu_tanh, relu" in found.notes
    model = with_conventions(timm_mixer(CONFIG, act_layer=torch.nn.Mish), "gelu", 1e-5)
    torch.save(model, path)
    found = load(path)
    assert found.trained_with is None
    assert any(note.startswith("its modules compute Mish, LayerNorm eps 1e-05, which") for note in found.notes)
