"""Every formulation of the Mixer, in both frameworks, is one function of one set of parameters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from einops import rearrange
from flax import nnx
from torch.nn.utils import prune

from mixer_equiv import Checkpoint, ConfigError, Formulation, LayoutError, MixerConfig, convert, load, save, verify
from mixer_equiv.arrays.interop import flatten, unflatten
from mixer_equiv.checkpoints.checkpoint import as_checkpoint
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.equivalence.policy import gradient_residuals, residual
from mixer_equiv.equivalence.record.precision import jax_full_precision
from mixer_equiv.equivalence.record.torch import record
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_images, random_params
from mixer_equiv.equivalence.sides.runners import run_reference
from mixer_equiv.formulation import CHANNELS_CHOICES, CONVOLUTIONAL, FORMULATIONS, PATCH_CHOICES, TOKENS_CHOICES
from mixer_equiv.layouts import LINEN, TORCH, get_layout
from mixer_equiv.layouts.natural import natural
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.nnx import MlpMixer as NnxMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer

CONFIG = DEFAULT_CONFIG.replace(num_blocks=2)
Arrays = Mapping[str, np.ndarray]


def in_torch(
    config: MixerConfig, formulation: Formulation, params: Arrays, images: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Taps, and canonical gradients of the sum of squared outputs."""
    model = TorchMixer(config, formulation)
    state = {name: torch.from_numpy(array) for name, array in relabel(params, LINEN, TORCH, config).items()}
    model.load_state_dict(state, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_()
    taps = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), taps=True)
    list(taps.values())[-1].square().sum().backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    back = relabel(gradients, TORCH, LINEN, config)
    return {name: tap.detach().numpy() for name, tap in taps.items()}, back


def in_flax(
    config: MixerConfig, formulation: Formulation, params: Arrays, images: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Taps, and canonical gradients of the sum of squared outputs."""
    model = FlaxMixer(config, formulation)

    def scalar(weights: Any) -> Any:
        taps: Any = model.apply({"params": weights}, images, taps=True)
        return (list(taps.values())[-1] ** 2).sum(), taps

    with jax_full_precision():
        gradients, taps = jax.grad(scalar, has_aux=True)(unflatten(params))
        return (
            {name: np.asarray(tap) for name, tap in taps.items()},
            {name: np.asarray(leaf) for name, leaf in flatten(gradients)},
        )


FRAMEWORKS = {"torch": in_torch, "flax": in_flax}


@cache
def reference_taps_and_official_gradients() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    params, images = random_params(CONFIG, 0), random_images(CONFIG, 0)[:2]
    return run_reference(CONFIG, params, images), in_torch(CONFIG, Formulation(), params, images)[1]


@cache
def initial_weights(formulation: Formulation) -> Any:
    images = np.zeros((1, *CONFIG.image_hw, CONFIG.in_channels), np.float32)
    return FlaxMixer(CONFIG, formulation).init(jax.random.key(0), images)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("formulation", FORMULATIONS, ids=str)
def test_every_formulation_is_the_reference_with_the_gradients_of_the_official_one(
    framework: str, formulation: Formulation
) -> None:
    params, images = random_params(CONFIG, 0), random_images(CONFIG, 0)[:2]
    taps, gradients = FRAMEWORKS[framework](CONFIG, formulation, params, images)
    reference, official = reference_taps_and_official_gradients()
    assert max(residual(taps[name], tap) for name, tap in reference.items()) <= 1e-14
    assert max(gradient_residuals(gradients, official).values()) <= 1e-12


def test_there_are_all_combinations() -> None:
    assert len(FORMULATIONS) == len(set(FORMULATIONS)) == 30
    named = {(f.patch, f.tokens, f.channels) for f in FORMULATIONS}
    assert named == set(itertools.product(PATCH_CHOICES, TOKENS_CHOICES, CHANNELS_CHOICES))
    assert Formulation() == FORMULATIONS[0]


@pytest.mark.parametrize("formulation", FORMULATIONS, ids=str)
def test_flax_models_start_from_the_same_weights_in_every_formulation(formulation: Formulation) -> None:
    official, other = initial_weights(Formulation()), initial_weights(formulation)
    assert jax.tree.structure(official) == jax.tree.structure(other)
    assert jax.tree.all(jax.tree.map(np.array_equal, official, other))


def test_the_convolutional_mixer_has_no_linear_and_copies_no_transpose_before_the_head() -> None:
    """An MLP-Mixer is a CNN."""
    images = torch.randn(2, *(CONFIG.in_channels, *CONFIG.image_hw), dtype=torch.float64)
    seen = {}
    for formulation in (CONVOLUTIONAL, Formulation()):
        model = TorchMixer(CONFIG.replace(num_classes=0), formulation)
        trace = record(model, (images,), lambda name, shape: np.random.default_rng(0).standard_normal(shape))
        seen[formulation] = {value.operation for value in trace.values}
    products = {"mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "einsum"}
    copies = {"clone", "contiguous", "copy_", "_to_copy", "_unsafe_view"}
    assert not seen[CONVOLUTIONAL] & (products | copies)
    assert "convolution" in seen[CONVOLUTIONAL]
    assert seen[Formulation()] & products


@pytest.mark.parametrize("formulation", [CONVOLUTIONAL, Formulation("linear", "depthwise_conv", "linear")], ids=str)
def test_verify_takes_a_model_of_any_formulation(formulation: Formulation) -> None:
    report = verify(TorchMixer(CONFIG, formulation), "flax", gradients=True)
    assert report.verdict == "equivalent"
    assert report.gradients is not None
    assert report.gradients.residual <= 1e-12


PRUNED = ("stem", "blocks.0.token_mixing.dense_0", "blocks.0.channel_mixing.dense_1")
LAYERS = ("stem", "blocks.0.layer_norm_0", *PRUNED[1:], "pre_head_layer_norm", "head")


@pytest.mark.parametrize("formulation", FORMULATIONS, ids=str)
def test_hooks_on_layers_run_in_every_formulation(formulation: Formulation) -> None:
    model, seen = TorchMixer(CONFIG, formulation), []
    for name in LAYERS:
        model.get_submodule(name).register_forward_hook(lambda module, given, output: seen.append(module))
    images = torch.rand(2, CONFIG.in_channels, *CONFIG.image_hw)
    with torch.no_grad():
        model(images)
    assert seen == [model.get_submodule(name) for name in LAYERS]
    assert isinstance(model.blocks[0].token_mixing.dense_0, torch.nn.Linear)


class Doubled(torch.nn.Linear):
    """A layer put in the place of a Linear, such as an adapter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", [torch.nn.Linear, Doubled])
@pytest.mark.parametrize("formulation", FORMULATIONS, ids=str)
def test_layers_may_be_replaced_in_every_formulation(formulation: Formulation, kind: type[torch.nn.Linear]) -> None:
    outputs = []
    for each in (Formulation(), formulation):
        model = TorchMixer(CONFIG, each).double()
        state = relabel(random_params(CONFIG, 0), LINEN, TORCH, CONFIG)
        for name in PRUNED[1:]:
            old = model.get_submodule(name)
            model.set_submodule(name, kind(old.in_features, old.out_features).double())
        model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
        with torch.no_grad():
            outputs.append(model(torch.from_numpy(random_images(CONFIG, 1).transpose(0, 3, 1, 2).copy())))
    assert torch.allclose(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("formulation", FORMULATIONS, ids=str)
def test_pruned_models_are_trained_in_every_formulation(formulation: Formulation) -> None:
    made = [TorchMixer(CONFIG, each) for each in (Formulation(), formulation)]
    images = torch.rand(2, CONFIG.in_channels, *CONFIG.image_hw, dtype=torch.float64)
    for model in made:
        state = relabel(random_params(CONFIG, 0), LINEN, TORCH, CONFIG)
        model.double().load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
        for name in PRUNED:
            prune.ln_structured(model.get_submodule(name), "weight", 0.3, n=2, dim=0)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            model(images).square().sum().backward()
            optimiser.step()
    (official, other), outputs = made, [model.eval()(images) for model in made]
    assert torch.allclose(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)
    for name, value in official.named_parameters():
        assert torch.allclose(other.get_parameter(name), value, rtol=1e-9, atol=1e-9), name
    assert (other.stem.weight == 0).flatten(1).all(dim=1).any()


@pytest.mark.parametrize("model", [TorchMixer, FlaxMixer])
@pytest.mark.parametrize("value", ["conv1d", ("conv", "linear", "linear"), {"tokens": "linear"}, None])
def test_what_is_no_formulation_is_refused(model: Any, value: Any) -> None:
    with pytest.raises(ConfigError, match="it must be a Formulation, such as"):
        model(CONFIG, value)


@pytest.mark.filterwarnings(r"ignore:var_mean\(\)")  # torch warns of a variance over no numbers
@pytest.mark.parametrize("formulation", FORMULATIONS, ids=str)
def test_no_images_give_no_logits(formulation: Formulation) -> None:
    images = torch.zeros(0, CONFIG.in_channels, *CONFIG.image_hw)
    assert TorchMixer(CONFIG, formulation)(images).shape == (0, CONFIG.num_classes)
    flax = FlaxMixer(CONFIG, formulation)
    given = images.permute(0, 2, 3, 1).numpy()
    weights = unflatten({name: array.astype(np.float32) for name, array in random_params(CONFIG, 0).items()})
    assert flax.apply({"params": weights}, given).shape == (0, CONFIG.num_classes)


def test_no_images_give_no_logits_in_nnx() -> None:
    given = np.zeros((0, *CONFIG.image_hw, CONFIG.in_channels), np.float32)
    assert NnxMixer(CONFIG, rngs=nnx.Rngs(0))(given).shape == (0, CONFIG.num_classes)


@pytest.mark.parametrize("field", ["patch", "tokens", "channels"])
def test_unknown_names_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"formulation {field} is 'fft'; it must be one of"):
        Formulation(**{field: "fft"})


# Natural shapes


def modules(config: MixerConfig, formulation: Formulation) -> dict[str, torch.nn.Module]:
    """The modules that users would write for the stem and for the two MLPs of block 1."""
    tokens, hidden = config.num_tokens, config.hidden_dim
    (ph, pw), channels = config.patch_hw, config.in_channels
    make: dict[str, Any] = {
        "linear": torch.nn.Linear,
        "matmul": torch.nn.Linear,
        "conv1d": lambda a, b: torch.nn.Conv1d(a, b, 1),
        "shared_conv": lambda a, b: torch.nn.Conv2d(1, b, (1, a)),
    }
    stem: torch.nn.Module = torch.nn.Linear(ph * pw * channels, hidden)
    if formulation.patch == "conv":
        stem = torch.nn.Conv2d(channels, hidden, (ph, pw), (ph, pw))
    return {
        "stem": stem,
        "blocks.1.token_mixing.dense_0": make[formulation.tokens](tokens, config.tokens_mlp_dim),
        "blocks.1.token_mixing.dense_1": make[formulation.tokens](config.tokens_mlp_dim, tokens),
        "blocks.1.channel_mixing.dense_0": make[formulation.channels](hidden, config.channels_mlp_dim),
        "blocks.1.channel_mixing.dense_1": make[formulation.channels](config.channels_mlp_dim, hidden),
    }


WRITABLE = [formulation for formulation in FORMULATIONS if formulation.tokens != "depthwise_conv"]


@pytest.mark.parametrize("formulation", WRITABLE, ids=str)
def test_modules_take_their_weights_in_natural_shapes_and_give_them_back(formulation: Formulation) -> None:
    params = random_params(CONFIG, 0)
    state = convert(Checkpoint.from_arrays(params, config=CONFIG), to=natural(formulation))
    for prefix, module in modules(CONFIG, formulation).items():
        module.load_state_dict({name: state[f"{prefix}.{name}"] for name in ("weight", "bias")}, strict=True)
    back = convert(state, to="linen")
    assert all(np.array_equal(params[name], array) for name, array in back.arrays.items())


def test_natural_shapes_give_the_official_values() -> None:
    """Run a stem written as a Linear over einops-flattened patches, and a token MLP written as Conv1d."""
    params, images = random_params(CONFIG, 0), random_images(CONFIG, 0)[:2]
    reference = run_reference(CONFIG, params, images)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    (ph, pw), norm = CONFIG.patch_hw, torch.nn.functional.layer_norm
    for patch, order in (("linear", "(ph pw c)"), ("linear_channels_first", "(c ph pw)")):
        formulation = Formulation(patch, "conv1d", "linear")
        state = convert(Checkpoint.from_arrays(params, config=CONFIG), to=natural(formulation))
        flat = rearrange(pixels, f"b c (h ph) (w pw) -> b (h w) {order}", ph=ph, pw=pw)
        x = torch.nn.functional.linear(flat, state["stem.weight"], state["stem.bias"])
        assert residual(x.numpy(), reference["stem"]) <= 1e-14
        scale, bias = (state[f"blocks.0.layer_norm_0.{name}"] for name in ("weight", "bias"))
        y = norm(x, (CONFIG.hidden_dim,), scale, bias, 1e-6)
        for i in range(2):
            dense = (state[f"blocks.0.token_mixing.dense_{i}.{name}"] for name in ("weight", "bias"))
            y = torch.nn.functional.conv1d(y, *dense)
            y = torch.nn.functional.gelu(y, approximate="tanh") if i == 0 else y
        assert residual((x + y).numpy(), reference["MixerBlock_0/token_mixing"]) <= 1e-14


NATURAL = natural(Formulation("linear", "conv1d", "conv1d"))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_natural_shapes_are_known_by_their_name_in_files_too(tmp_path: Path, suffix: str) -> None:
    assert get_layout(NATURAL.name) == NATURAL
    params = random_params(CONFIG, 3)
    path = save(convert(params, to=NATURAL.name, config=CONFIG), tmp_path / f"natural{suffix}")
    found = load(path)
    assert (found.layout, found.config, found.notes) == (NATURAL, CONFIG, ())
    back = convert(found, to="linen").arrays
    assert all(np.array_equal(back[name], array) for name, array in params.items())


def test_a_checkpoint_of_an_equal_layout_is_taken_with_its_config() -> None:
    params = random_params(CONFIG, 3)
    state = convert(params, to=NATURAL, config=CONFIG)
    again = natural(Formulation("linear", "conv1d", "conv1d"))
    assert again is not state.layout
    assert as_checkpoint(state, layout=again) is state
    back = convert(state, to="linen", from_=again)
    assert (back.config, back.notes) == (CONFIG, ())
    assert all(np.array_equal(back.arrays[name], array) for name, array in params.items())


def test_that_a_file_says_another_layout_than_one_is_told_is_noted(tmp_path: Path) -> None:
    other = natural(Formulation("linear_channels_first", "conv1d", "conv1d"))
    state = convert(random_params(CONFIG, 3), to=NATURAL, config=CONFIG)
    path = save(state, tmp_path / "natural.safetensors")
    for found in (load(path, layout=other), convert(state, to="linen", from_=other)):
        (note,) = found.notes
        assert note == f"it says of itself that its layout is {NATURAL.name}; it was read as {other.name}, as told"
        assert found.config == CONFIG


def test_what_is_no_formulation_has_no_natural_shapes() -> None:
    with pytest.raises(ConfigError, match="formulation is 'conv1d'; it must be a Formulation"):
        natural("conv1d")


def test_a_repeated_filter_has_no_natural_shape() -> None:
    with pytest.raises(LayoutError, match="depthwise_conv has every filter once for each channel"):
        natural(Formulation(tokens="depthwise_conv"))
