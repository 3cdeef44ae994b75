"""Other families of models are told by the names of their parameters, and no Mixer is taken for one."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch

from mixer_equiv import ConversionError, InexpressibleError, LayoutError, convert, verify
from mixer_equiv.equivalence.sides.locate import import_timm
from mixer_equiv.layouts import LAYOUTS
from mixer_equiv.layouts.families import FAMILIES, family_of
from tests.support.sizes import CONFIG
from tests.support.structures import PORTS, STRANGE, STRUCTURES, PortMixer
from tests.support.structures.foreign import FOREIGN

OF_TIMM = {
    "gmlp_s16_224": "gMLP",
    "gmixer_12_224": "gMixer",
    "resmlp_12_224": "ResMLP",
    "sequencer2d_s": "Sequencer",
    "focalnet_tiny_srf": "FocalNet",
    "poolformer_s12": "PoolFormer",
    "caformer_s18": "PoolFormer",
    "convmixer_768_32": "ConvMixer",
    "convnext_atto": "ConvNeXt",
    "convnextv2_atto": "ConvNeXt",
    "swin_tiny_patch4_window7_224": "Swin",
    "vit_tiny_patch16_224": "ViT",
    "deit_tiny_distilled_patch16_224": "ViT",
    "levit_128s": "attention",
    "resnet10t": "ResNet",
    "resnet50": "ResNet",
    "resnetv2_50": "ResNet",
    "seresnet50": "ResNet",
    "densenet121": "convolutional",
    "efficientnet_b0": "convolutional",
}

# Names as the code of each family has them, where timm has none of it.
BY_NAMES = {
    "CycleMLP": ["network.0.0.attn.sfc_h.weight", "network.0.0.attn.mlp_c.weight"],
    "Vision Permutator": ["network.0.0.attn.mlp_h.weight", "network.0.0.attn.mlp_w.weight"],
    "Wave-MLP": ["network.0.0.attn.theta_h_conv.0.weight"],
    "AS-MLP": ["layers.0.blocks.0.axial_shift.conv1.weight"],
    "CLIP": ["text_projection", "visual.transformer.resblocks.0.attn.in_proj_weight"],
    "language model": ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"],
    "recurrent": ["rnn.weight_hh_l0"],
    "diffusion": ["down_blocks.0.resnets.0.conv1.weight"],
    "ViT": [
        "Transformer/posembed_input/pos_embedding",
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/key/b",
    ],
    "gMLP": ["blocks.0.sgu.proj.weight"],
    "ResMLP": ["blocks.0.aff1.g"],
}

# Usual names in torchvision, in the example code of Flax and in other libraries.
ELSEWHERE = {
    "torchvision's ViT": ("ViT", ["class_token", "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"]),
    "torch's MultiheadAttention": ("attention", ["blocks.0.mix.in_proj_weight", "blocks.0.mix.out_proj.weight"]),
    "torchvision's ConvNeXt": ("ConvNeXt", ["features.1.0.layer_scale", "features.1.0.block.0.weight"]),
    "torchvision's ResNet": ("ResNet", ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.weight"]),
    "transformers' ViT": ("ViT", ["vit.embeddings.cls_token", "vit.encoder.layer.0.attention.attention.query.weight"]),
    "transformers' ConvNeXt": (
        "ConvNeXt",
        ["encoder.stages.0.layers.0.dwconv.weight", "encoder.stages.0.layers.0.layer_scale_parameter"],
    ),
    "transformers' ResNet": ("ResNet", ["encoder.stages.0.layers.0.layer.0.convolution.weight"]),
    "lucidrains' ViT": ("ViT", ["pos_embedding", "cls_token", "transformer.layers.0.0.to_qkv.weight"]),
    "Flax's ViT": ("ViT", ["cls", "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"]),
    "Flax's ResNet": ("ResNet", ["conv_init/kernel", "ResNetBlock_0/Conv_0/kernel", "ResNetBlock_0/BatchNorm_0/scale"]),
    "Flax's deep ResNet": ("ResNet", ["BottleneckResNetBlock_0/Conv_0/kernel"]),
    "big_vision's ResNet": ("ResNet", ["root_block/conv_root/kernel", "block1/unit1/conv1/kernel"]),
    "Flax's ConvNeXt": ("ConvNeXt", ["ConvNeXtBlock_0/Conv_0/kernel", "ConvNeXtBlock_0/gamma"]),
    "Flax's gMLP": ("gMLP", ["gMLPBlock_0/SpatialGatingUnit_0/Dense_0/kernel"]),
    "Flax's ResMLP": ("ResMLP", ["ResMLPBlock_0/Affine_0/alpha", "ResMLPBlock_0/Affine_0/beta"]),
}


@pytest.mark.parametrize("name", OF_TIMM)
def test_models_of_timm_are_of_their_families(name: str) -> None:
    with torch.device("meta"):
        model = import_timm().create_model(name)
    for tensors in (model.state_dict(), dict(model.named_parameters())):  # a model that is run shows no buffers
        shapes = {n: tuple(tensor.shape) for n, tensor in tensors.items()}
        family = family_of(shapes)
        assert family is FAMILIES[OF_TIMM[name]] or (family is None and OF_TIMM[name] == "convolutional")


@pytest.mark.parametrize("name", BY_NAMES)
def test_names_of_other_code_are_of_their_families(name: str) -> None:
    assert family_of(dict.fromkeys(BY_NAMES[name], (3, 3))) is FAMILIES[name]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_of_other_libraries_are_of_their_families(name: str) -> None:
    family, names = ELSEWHERE[name]
    assert family_of(dict.fromkeys(names, (3, 3))) is FAMILIES[family]


def test_every_family_is_tried() -> None:
    assert {*OF_TIMM.values(), *BY_NAMES} == set(FAMILIES)


def test_no_layout_is_of_another_family() -> None:
    for layout in LAYOUTS.values():
        shapes = {name: binding.shape(CONFIG.axis_sizes) for name, binding in layout.parameters(12).items()}
        assert family_of(shapes) is None


MIXERS = {**STRUCTURES, **FOREIGN, **STRANGE, **{name: partial(PortMixer, **kwargs) for name, kwargs in PORTS.items()}}


@pytest.mark.parametrize("name", MIXERS)
def test_no_mixer_that_somebody_wrote_is_of_another_family(name: str) -> None:
    model = MIXERS[name](CONFIG)
    assert family_of({name: tuple(parameter.shape) for name, parameter in model.named_parameters()}) is None


def test_what_lacks_parameters_in_its_blocks_is_said_to_be_of_its_family() -> None:
    state = import_timm().create_model("gmixer_12_224", num_classes=5).state_dict()
    with pytest.raises(
        InexpressibleError, match="no official Mixer is this: names of it are those of gMixer"
    ) as caught:
        convert(state, to="linen")
    assert "--ignore" not in str(caught.value)


def test_names_of_no_layout_are_said_to_be_of_their_family() -> None:
    state = import_timm().create_model("vit_tiny_patch16_224").state_dict()
    with pytest.raises(LayoutError, match=r"Some of these names are those of a Vision Transformer \(ViT\)\."):
        convert(state, to="linen")


def test_a_mixer_beside_another_model_is_of_no_family() -> None:
    state = STRUCTURES["timm"](CONFIG).state_dict()
    text = {"text.transformer.resblocks.0.attn.in_proj_weight": torch.ones(9, 3), "text_projection": torch.ones(3, 3)}
    lacking = {name: tensor for name, tensor in state.items() if name != "blocks.3.norm1.bias"}
    with pytest.raises(ConversionError, match=r"missing: blocks\.3\.norm1\.bias") as caught:
        convert({**lacking, **text}, to="linen")
    assert not isinstance(caught.value, InexpressibleError)


SLOW = pytest.mark.soundness


@pytest.mark.parametrize(
    ("name", "family", "sizes"),
    [
        ("vit_tiny_patch16_224", "ViT", {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}),
        ("convnext_atto", "ConvNeXt", {"depths": (1, 1, 1, 1), "dims": (4, 6, 8, 10)}),
        pytest.param("resmlp_12_224", "ResMLP", {"img_size": 32}, marks=SLOW),
        pytest.param("gmlp_ti16_224", "gMLP", {"img_size": 32}, marks=SLOW),
        pytest.param("gmixer_12_224", "gMixer", {"img_size": 32}, marks=SLOW),
        pytest.param("resnet10t", "ResNet", {"channels": (4, 6, 8, 10)}, marks=SLOW),
    ],
)
def test_the_verifier_names_the_family(name: str, family: str, sizes: dict[str, Any]) -> None:
    report = verify(import_timm().create_model(name, num_classes=5, **sizes), image=(3, 32, 32))
    assert report.verdict == "inexpressible"
    assert any(re.search(rf"those of .*\b{family}\b", reason) for reason in report.reasons), report.reasons
