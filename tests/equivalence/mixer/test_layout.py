"""Layouts of other people's models, found by values: rules for names, axes, and what is shared or absent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from mixer_equiv import (
    LAYOUTS,
    MixerConfig,
    convert,
    layout_of,
    port,
)
from mixer_equiv.arrays.interop import flatten
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.layouts import LINEN, Row
from mixer_equiv.layouts.custom import layout_from_file
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.nnx import MlpMixer as NnxMixer
from tests.support.sizes import CONFIG, EQUAL, IMAGE, in_float32, names_and_axes
from tests.support.structures import (
    PORTS,
    STRUCTURES,
    OfficialMixer,
    PortMixer,
    ScenicMixer,
)

# Layouts


@pytest.mark.parametrize("config", [CONFIG, EQUAL], ids=["all different", "all equal"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_layout_of_a_structure_is_found_as_the_table_has_it(name: str, config: MixerConfig) -> None:
    found = layout_of(STRUCTURES[name](config), (config.in_channels, *config.image_hw))
    known = LAYOUTS[name]
    assert names_and_axes(found, config.num_blocks) == names_and_axes(known, config.num_blocks)
    assert found.computes == known.computes


@pytest.mark.parametrize("name", PORTS)
def test_what_a_port_shares_ties_or_lacks_is_found(name: str) -> None:
    arguments = PORTS[name]
    found = layout_of(PortMixer(CONFIG, **arguments), IMAGE)
    said = "\n".join(map(str, found.constraints))
    assert ("LayerNorm_1/scale equal to MixerBlock_{i}/LayerNorm_0/scale" in said) == bool(
        arguments.get("shared_norm") or arguments.get("norm_all")
    )
    assert ("Dense_0/kernel the same in all blocks" in said) == bool(arguments.get("tied_blocks"))
    assert ("stem/bias all zeros" in said) == (not arguments.get("stem_bias", True))


def test_layouts_of_flax_models_are_found() -> None:
    ours = layout_of(FlaxMixer(CONFIG), IMAGE)
    assert names_and_axes(ours, 12) == names_and_axes(LINEN, 12)
    assert names_and_axes(layout_of(NnxMixer(CONFIG, rngs=nnx.Rngs(0)), IMAGE), 12) == names_and_axes(LINEN, 12)
    config = CONFIG
    sizes = config.patch_hw, config.num_classes, config.num_blocks, config.hidden_dim
    widths = config.tokens_mlp_dim, config.channels_mlp_dim
    assert names_and_axes(layout_of(OfficialMixer(*sizes, *widths), IMAGE), 12) == names_and_axes(LINEN, 12)
    scenic = layout_of(ScenicMixer(CONFIG), IMAGE)
    assert names_and_axes(scenic, 12) == names_and_axes(LAYOUTS["scenic"], 12)


def test_names_without_a_rule_have_a_row_for_each_block() -> None:
    model: Any = PortMixer(CONFIG.replace(num_blocks=3))
    model.blocks = nn.ModuleDict(zip(("one", "two", "three"), model.blocks, strict=True))

    def forward(images: torch.Tensor) -> torch.Tensor:
        x = model.embed(images)
        for block in model.blocks.values():
            x = block(x)
        return model.classifier(model.final_norm(x).mean(dim=1))

    model.forward = forward
    config = CONFIG.replace(num_blocks=3)
    layout = layout_of(model, IMAGE)
    assert Row("MixerBlock_1/LayerNorm_0/scale", "blocks.two.norm_tokens.weight", "hidden") in layout.rows
    params = in_float32(config, 0)
    written = convert(params, to=layout, config=config)
    assert not bit_differences(convert(written, to="linen").arrays, params)
    result = port(params, model)
    assert torch.equal(model.blocks["two"].norm_tokens.weight, result["blocks.two.norm_tokens.weight"].float())


class Alternating(nn.Module):
    """Two layers a block in one Sequential, norms in one list: names that count every other, and on from the blocks."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        d, s = config.hidden_dim, config.num_tokens
        widths = (s, config.tokens_mlp_dim), (d, config.channels_mlp_dim)
        self.stem = nn.Conv2d(config.in_channels, d, config.patch_hw, config.patch_hw)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU("tanh"), nn.Linear(mlp_dim, dim))
            for _ in range(config.num_blocks)
            for dim, mlp_dim in widths
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d, 1e-6) for _ in range(2 * config.num_blocks + 1))
        self.head = nn.Linear(d, config.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images).flatten(2).mT
        for i in range(0, len(self.layers), 2):
            x = x + self.layers[i](self.norms[i](x).mT).mT
            x = x + self.layers[i + 1](self.norms[i + 1](x))
        return self.head(self.norms[-1](x).mean(1))


def test_names_that_count_every_other_are_a_rule_for_any_depth(tmp_path: Any) -> None:
    layout = layout_of(Alternating(CONFIG.replace(num_blocks=3)), IMAGE)
    assert Row("MixerBlock_{i}/LayerNorm_1/scale", "norms.{2i+1}.weight", "hidden") in layout.rows
    assert Row("pre_head_layer_norm/scale", "norms.{2L}.weight", "hidden") in layout.rows
    described = tmp_path / "layout.toml"
    described.write_text(layout.to_toml())
    deeper = Alternating(CONFIG)
    params = random_params(CONFIG, 0)
    state = convert(params, to=layout_from_file(described, {}), config=CONFIG)
    deeper.load_state_dict(state, strict=True)
    back = convert(deeper.double().state_dict(), from_=layout_from_file(described, {}), to="linen", config=CONFIG)
    port(params, deeper, image=IMAGE)
    assert torch.equal(deeper.norms[24].weight, state["norms.24.weight"])
    assert torch.equal(deeper.layers[21][0].weight, state["layers.21.0.weight"])
    assert not bit_differences(
        dict(flatten(back)), {name: a.astype(np.float32).astype(float) for name, a in params.items()}
    )
