"""The packed Mixer computes the same as the model, on its own copy of the weights, and names what it cannot take."""

from __future__ import annotations

import copy
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from mixer_equiv import ConfigError, Formulation, MixerConfig
from mixer_equiv.config import ACTIVATION_NAMES
from mixer_equiv.models.torch import MlpMixer, fused_onednn
from mixer_equiv.models.torch.fast_mlp import FAST_DTYPES
from mixer_equiv.models.torch.kernel_choice import KERNELS
from mixer_equiv.models.torch.packed_onednn import packs
from tests.support.small_torch import CONFIG, EPSILON, LARGE, images, mixer

CASES = [
    pytest.param(kernels, dtype, id=f"{kernels}, {dtype}")
    for kernels in KERNELS
    for dtype in FAST_DTYPES
    if kernels != "onednn" or packs(dtype)
]
HERE = [kernels for kernels in KERNELS if kernels != "onednn" or packs(torch.float32)]


def errors(model: MlpMixer, x: torch.Tensor, kernels: Any = None) -> tuple[float, ...]:
    """Errors of the packed and of the plain model, relative to float64."""
    with torch.no_grad():
        packed, plain = model.packed(kernels)(x), model(x)
        truth = model.double()(x.double())
    assert packed.dtype == x.dtype
    return tuple(float((y.double() - truth).norm() / truth.norm()) for y in (packed, plain))


@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize(("kernels", "dtype"), CASES)
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_packed_is_as_exact_as_the_model(activation: str, kernels: str, dtype: torch.dtype, num_classes: int) -> None:
    config = CONFIG.replace(activation=activation, num_classes=num_classes)
    packed, plain = errors(mixer(config, dtype), images(config, dtype), kernels)
    assert 0 < packed <= 4 * plain
    assert packed < EPSILON[dtype]


@pytest.mark.parametrize("kernels", HERE)
def test_the_eps_of_the_model_is_that_of_the_packed_one(kernels: str) -> None:
    packed, plain = errors(mixer(CONFIG.replace(layer_norm_eps=0.5)), images(), kernels)
    assert 0 < packed <= 4 * plain


@pytest.mark.parametrize("kernels", HERE)
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_nan_is_not_lost(activation: str, kernels: str) -> None:
    model = mixer(CONFIG.replace(activation=activation))
    model.blocks[3].channel_mixing.dense_0.bias.data[0] = torch.nan
    assert model.packed(kernels)(images()).isnan().all()


@pytest.mark.parametrize("kernels", HERE)
@pytest.mark.parametrize("config", [CONFIG, LARGE], ids=["odd", "large"])
def test_one_packed_model_takes_batches_of_any_size(config: MixerConfig, kernels: str) -> None:
    model = mixer(config)
    packed = model.packed(kernels)
    for batch in (40, 0, 1, 3, 40):
        x = images(config, batch=batch)
        expected = model(x)
        assert packed(x).shape == expected.shape
        assert torch.linalg.norm(packed(x) - expected) <= EPSILON[x.dtype] * torch.linalg.norm(expected)


def test_a_result_stays_when_the_next_is_computed() -> None:
    for kernels in HERE:
        packed, x = mixer().packed(kernels), images()
        first = packed(x)
        kept = first.clone()
        packed(2 * x)
        assert torch.equal(first, kept)


@pytest.mark.parametrize("kernels", HERE)
def test_a_packed_model_computes_the_same_from_several_threads_and_under_autocast(kernels: str) -> None:
    packed, x = mixer(LARGE).packed(kernels), images(LARGE, batch=8)
    expected = packed(x)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(packed, [x] * 16))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(x), expected)


@pytest.mark.parametrize(("kernels", "dtype"), CASES)
def test_a_packed_model_is_mapped_over_images(kernels: str, dtype: torch.dtype) -> None:
    packed, x = mixer(dtype=dtype).packed(kernels), images(dtype=dtype)
    with torch.no_grad():
        found = torch.vmap(lambda image: packed(image[None])[0])(x)
    assert torch.linalg.norm((found - packed(x)).double()) <= EPSILON[dtype] * torch.linalg.norm(packed(x).double())


def test_a_layer_without_a_bias_is_packed() -> None:
    model = mixer()
    model.stem.bias = model.blocks[1].token_mixing.dense_0.bias = model.blocks[2].channel_mixing.dense_1.bias = None
    for kernels in HERE:
        packed, plain = errors(copy.deepcopy(model), images(), kernels)
        assert packed <= 4 * plain


@pytest.mark.parametrize("formulation", [Formulation("linear", "conv1d", "linear"), Formulation(channels="conv1d")])
def test_a_model_of_any_formulation_is_packed(formulation: Formulation) -> None:
    for kernels in HERE:
        found, expected = (made.packed(kernels)(images()) for made in (mixer(formulation=formulation), mixer()))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kernels", HERE)
def test_images_may_lie_in_memory_as_they_please(kernels: str) -> None:
    packed, x = mixer().packed(kernels), images()
    assert torch.equal(packed(x.to(memory_format=torch.channels_last)), packed(x))


@pytest.mark.parametrize("kernels", HERE)
@pytest.mark.parametrize("config", [CONFIG, LARGE], ids=["odd", "large"])
def test_what_becomes_of_the_model_does_not_reach_the_packed_one(config: MixerConfig, kernels: str) -> None:
    model, x = mixer(config), images(config)
    packed = model.packed(kernels)
    before = packed(x)
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(float("nan"))
    assert torch.equal(packed(x), before)


def test_another_gelu_in_the_packed_model_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fused_onednn.POST_OPS, "gelu_tanh", fused_onednn.POST_OPS["gelu"])
    packed, _ = errors(mixer(), images(), "onednn")
    assert packed > 100 * EPSILON[torch.float32]


# The second token-mixing bias shifts all channels of a token alike, which every LayerNorm takes out again.
SEEN = [
    name
    for name, _ in mixer().named_parameters()
    if (".1." in name or "blocks" not in name) and "token_mixing.dense_1.bias" not in name
]


@pytest.mark.parametrize("kernels", HERE)
@pytest.mark.parametrize("name", SEEN)
def test_every_parameter_counts(name: str, kernels: str) -> None:
    model = mixer()
    before = model.packed(kernels)(images())
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] += 1
    assert not torch.allclose(model.packed(kernels)(images()), before, rtol=1e-3, atol=1e-3)
    packed, _ = errors(model, images(), kernels)
    assert packed < EPSILON[torch.float32]


def test_no_gradients_are_kept() -> None:
    assert not mixer().packed()(images()).requires_grad


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda model: model.double(), "float64 on cpu"),
        (lambda model: model.to("meta"), "float32 on meta"),
        (lambda model: model.head.bfloat16() and model, "bfloat16 on cpu and float32 on cpu"),
    ],
)
def test_what_cannot_be_packed_is_an_error(change: Any, found: str) -> None:
    with pytest.raises(ConfigError, match=f"the model is {found}; weights are packed in float32 or bfloat16 on cpu"):
        change(mixer()).packed()


def test_kernels_that_are_none_are_an_error() -> None:
    with pytest.raises(ConfigError, match="kernels is 'mkl'; it must be one of onednn, blas, or None"):
        mixer().packed("mkl")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            images(CONFIG.replace(image_size=(6, 6))),
            "images have shape (3, 4, 6, 6); this model takes (batch, 4, 6, 9)",
        ),
        (images(dtype=torch.bfloat16), "images are bfloat16; these packed weights take float32, and have no gradients"),
        (images().requires_grad_(), "images are float32 and need gradients; these packed weights take float32"),
    ],
)
def test_what_it_cannot_take_is_an_error(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        mixer().packed()(x)


def test_a_packed_mixer_says_that_it_cannot_be_copied_or_saved() -> None:
    packed = mixer(LARGE).packed()
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or saved; keep the model, and call its packed"):
            duplicate(packed)


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


REPLACED: dict[str, tuple[nn.Module, str]] = {
    "blocks.1.token_mixing.dense_0": (Doubled(9, 7), "is a Doubled"),
    "blocks.0.channel_mixing": (nn.Identity(), "is a Identity"),
    "pre_head_layer_norm": (nn.LayerNorm(13, elementwise_affine=False), "is a LayerNorm"),
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_model_with_another_part_is_not_packed(name: str) -> None:
    model = mixer()
    part, found = REPLACED[name]
    model.set_submodule(name, part)
    with pytest.raises(ConfigError, match=f"{re.escape(name)} {found}; only weights of Linear, Conv2d, LayerNorm"):
        model.packed()


def _pruned(model: MlpMixer) -> None:
    prune.l1_unstructured(model.blocks[1].channel_mixing.dense_0, "weight", 0.5)


def _watched(model: MlpMixer) -> None:
    model.pre_head_layer_norm.register_forward_hook(lambda module, given, output: 2 * output)


def _watched_as_a_whole(model: MlpMixer) -> None:
    model.register_forward_pre_hook(lambda module, given: None)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_pruned, "hooks on blocks.1.channel_mixing.dense_0 would not run; remove them, those of pruning by"),
        (_watched, "hooks on pre_head_layer_norm would not run"),
        (_watched_as_a_whole, "hooks on the model would not run"),
    ],
)
def test_a_model_with_hooks_is_not_packed(change: Any, found: str) -> None:
    model = mixer()
    change(model)
    with pytest.raises(ConfigError, match=re.escape(found)):
        model.packed()
    if change is _pruned:
        prune.remove(model.blocks[1].channel_mixing.dense_0, "weight")
        packed, plain = errors(model, images())
        assert packed <= 4 * plain


@pytest.mark.parametrize("fields", [{"dilation": (2, 1)}, {"padding": (1, 0)}, {"stride": (1, 3)}])
def test_a_stem_that_is_not_of_patches_is_not_packed(fields: dict[str, Any]) -> None:
    model = mixer()
    model.stem = nn.Conv2d(4, 13, (2, 3), **{"stride": (2, 3), **fields})
    with pytest.raises(ConfigError, match=r"stem is Conv2d.*only a convolution of patches, side by side, is packed"):
        model.packed()


def test_a_parametrised_part_is_packed() -> None:
    model = mixer(LARGE)
    weight_norm(model.blocks[0].token_mixing.dense_0)
    packed, plain = errors(model, images(LARGE))
    assert packed <= 4 * plain


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, in its forward mode
def test_images_with_a_tangent_are_refused() -> None:
    packed, x = mixer(LARGE).packed(), images(LARGE)
    with forward_ad.dual_level(), pytest.raises(ValueError, match="have no gradients"):
        packed(forward_ad.make_dual(x, torch.ones_like(x)))
