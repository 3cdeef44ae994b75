"""Files read and written by layouts that were found by values, stacks of scanned blocks included."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import flax.linen as flax_nn
import jax
import numpy as np
import pytest
import torch

from mixer_equiv import (
    Checkpoint,
    ConversionError,
    MixerConfig,
    convert,
    layout_of,
    load,
    save,
    verify,
)
from mixer_equiv.arrays.interop import flatten
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.equivalence.record.torch import find_unlisted_parameters
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.layouts.custom import layout_from_file
from mixer_equiv.models.torch import MlpMixer as TorchMixer
from tests.support.sizes import CONFIG, IMAGE
from tests.support.structures import (
    PortMixer,
)
from tests.support.structures.foreign import FOREIGN


def test_a_found_layout_reads_and_writes_files(tmp_path: Any) -> None:
    layout = layout_of(PortMixer(CONFIG), IMAGE)
    params = random_params(CONFIG, 0)
    path = save(convert(params, to=layout, config=CONFIG), tmp_path / "theirs.safetensors")
    assert not bit_differences(convert(load(path, layout=layout), to="linen").arrays, params)


# What is computed from parameters, or changes their order, has no layout.
WITHOUT_LAYOUT = (
    "weight norm",
    "two layers for a stem",
    "column-major tokens",
    "one vector",
    "vmap",
    "convolutions of the whole grid",  # whose tokens stand on two axes, where a table has one
)


# Whose arrays are of unusual shapes, or several parameters in one.
UNUSUAL = ("Conv1d of kernel 1", "stacked", "stacked, unbind", "parameters in a list", "1x1 Conv2d on maps")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in UNUSUAL else pytest.mark.soundness)
        for name in FOREIGN
        if name not in WITHOUT_LAYOUT
    ],
)
def test_files_of_any_writing_are_read_and_written_by_its_layout(name: str, tmp_path: Any) -> None:
    theirs = FOREIGN[name](CONFIG.replace(num_blocks=3))
    layout = layout_of(theirs, IMAGE)
    # Parameters in a plain list are in no state_dict; files of them are not torch's to write.
    held = {**dict(theirs.named_parameters()), **find_unlisted_parameters(theirs)}
    torch.save({key: parameter.detach() for key, parameter in held.items()}, tmp_path / "theirs.pt")
    described = tmp_path / "layout.toml"
    described.write_text(layout.to_toml())
    read = load(tmp_path / "theirs.pt", layout=layout_from_file(described, {}), image_size=IMAGE[1:])
    ours = TorchMixer(read.config)
    ours.load_state_dict(convert(read, to="torch"), strict=True)
    report = verify(ours, theirs, weights="given", image=IMAGE)
    assert report.verdict == "equivalent", report
    written = load(save(convert(read, to=layout), tmp_path / "back.safetensors"), layout=layout)
    assert written.keys() == held.keys()
    for key, parameter in held.items():
        assert torch.equal(written[key].reshape(parameter.shape), parameter.detach()), key


class Scanned(flax_nn.Module):
    """The official function with the blocks' parameters stacked by `nn.scan`."""

    config: MixerConfig

    @flax_nn.compact
    def __call__(self, images: Any) -> Any:
        config = self.config
        x = flax_nn.Conv(config.hidden_dim, config.patch_hw, config.patch_hw, name="embed")(images)
        x = x.reshape(len(x), -1, config.hidden_dim)
        block = flax_nn.scan(
            ScannedBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=config.num_blocks
        )
        x, _ = block(config, name="blocks")(x, None)
        return flax_nn.Dense(config.num_classes)(flax_nn.LayerNorm()(x).mean(1))


class ScannedBlock(flax_nn.Module):
    config: MixerConfig

    @flax_nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        def mlp(y: Any, width: int, name: str) -> Any:
            hidden = flax_nn.gelu(flax_nn.Dense(width, name=f"{name}_in")(y))
            return flax_nn.Dense(y.shape[-1], name=f"{name}_out")(hidden)

        y = flax_nn.LayerNorm(name="before_tokens")(x).swapaxes(1, 2)
        x = x + mlp(y, self.config.tokens_mlp_dim, "tokens").swapaxes(1, 2)
        return x + mlp(flax_nn.LayerNorm(name="before_channels")(x), self.config.channels_mlp_dim, "channels"), None


def test_scanned_blocks_have_a_layout_of_stacks(tmp_path: Any) -> None:
    model = Scanned(CONFIG)
    layout = layout_of(model, IMAGE)
    bound = layout.bindings(CONFIG.num_blocks)
    assert bound["MixerBlock_10/token_mixing/Dense_1/kernel"].foreign == "blocks/tokens_out/kernel[10]"
    params = random_params(CONFIG, 0)
    theirs = convert(params, to=layout, config=CONFIG)
    made = model.init(jax.random.key(0), np.zeros((1, *CONFIG.image_hw, CONFIG.in_channels)))["params"]
    assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, theirs)
    for suffix in (".npz", ".msgpack"):
        path = save(Checkpoint.from_arrays(theirs, layout=layout, config=CONFIG), tmp_path / f"scanned{suffix}")
        assert not bit_differences(convert(load(path, layout=layout), to="linen").arrays, params)
        assert sorted(load(path, layout=layout, lazy=True)) == sorted(name for name, _ in flatten(made))


def test_a_stack_with_a_gap_or_of_two_dtypes_is_refused(tmp_path: Any) -> None:
    layout = layout_of(Scanned(CONFIG), IMAGE)
    theirs = Checkpoint.from_arrays(convert(random_params(CONFIG, 0), to=layout, config=CONFIG), layout=layout)
    name = "blocks/tokens_out/kernel[3]"
    short = dict(theirs.arrays)
    single = {**short, name: short.pop(name).astype(np.float32)}
    for arrays, message in ((short, f"{re.escape(name)} is missing"), (single, "float32 and float64")):
        with pytest.raises(ConversionError, match=message):
            save(dataclasses.replace(theirs, arrays=arrays), tmp_path / "refused.npz")
    fewer = {key: array[:-1] if key == "blocks/tokens_out/bias" else array for key, array in theirs.whole.items()}
    with pytest.raises(ConversionError, match=re.escape("missing: blocks/tokens_out/bias[11], expected")):
        convert(fewer, from_=layout, to="torch", config=CONFIG)
