"""Counts of parameters and of multiply-accumulates, and the published sizes, each held against another count."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mixer_equiv import Formulation, MixerConfig
from mixer_equiv import config as config_module
from mixer_equiv.layouts import TORCH, Layout
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer
from mixer_equiv.random_weights import draw_params
from mixer_equiv.testing.strategies import FEW_CONFIGS, configs, few_configs, formulations, layouts

# Tolstikhin et al. 2021, table 1. Parameters are in millions, without the head.
PAPER = """
    name                S/32  S/16  B/32  B/16  L/32  L/16  H/14
    resolution             32    16    32    16    32    16    14
    num_blocks              8     8    12    12    24    24    32
    hidden_dim            512   512   768   768  1024  1024  1280
    num_tokens             49   196    49   196    49   196   256
    channels_mlp_dim     2048  2048  3072  3072  4096  4096  5120
    tokens_mlp_dim        256   256   384   384   512   512   640
    parameters             19    18    60    59   206   207   431
"""
ROWS = {row[0]: row[1:] for row in map(str.split, PAPER.strip().splitlines())}
TABLE = {name: {field: int(ROWS[field][i]) for field in ROWS if field != "name"} for i, name in enumerate(ROWS["name"])}


# Parameters


def counts_the_arrays(model: Callable[[MixerConfig], nn.Module], config: MixerConfig) -> None:
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in model(config).parameters())
    assert counted == config.num_parameters


@given(config=configs(allow_headless=True))
def test_the_formula_counts_the_parameters(config: MixerConfig) -> None:
    counts_the_arrays(TorchMixer, config)
    assert sum(array.size for array in draw_params(config).values()) == config.num_parameters


def holds_all(config: MixerConfig, layout: Layout) -> None:
    bindings = layout.bindings(config.num_blocks, head=config.num_classes > 0).values()
    assert sum(math.prod(binding.shape(config.axis_sizes)) for binding in bindings) == config.num_parameters


@given(config=configs(allow_headless=True), layout=layouts())
def test_every_layout_has_as_many(config: MixerConfig, layout: Layout) -> None:
    holds_all(config, layout)


def test_the_flax_models_have_as_many() -> None:
    for config in FEW_CONFIGS:
        images = np.zeros((1, *config.image_hw, config.in_channels), np.float32)
        shapes = jax.eval_shape(FlaxMixer(config).init, jax.random.key(0), images)
        assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == config.num_parameters


# Multiply-accumulates


def macs_in_torch(model: nn.Module, config: MixerConfig, count: int) -> float:
    """As torch's own counter has them, which counts two operations for each."""
    images = torch.empty(count, config.in_channels, *config.image_hw, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops() / 2 / count


def counts_the_products(model: Callable[..., nn.Module], config: MixerConfig, formulation: Formulation) -> None:
    with torch.device("meta"):
        made = model(config, formulation)
    assert macs_in_torch(made, config, 2) == config.macs


@given(config=configs(max_blocks=3, allow_headless=True), formulation=formulations())
def test_the_formula_counts_the_products_that_torch_computes(config: MixerConfig, formulation: Formulation) -> None:
    counts_the_products(TorchMixer, config, formulation)


@cache
def macs_in_jax(config: MixerConfig, formulation: Formulation) -> int:
    """From the program as JAX has it, for one image."""
    model = FlaxMixer(config, formulation)
    images = jax.ShapeDtypeStruct((1, *config.image_hw, config.in_channels), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    return macs_of(jax.make_jaxpr(model.apply)(params, images).jaxpr)


def macs_of(jaxpr: Any) -> int:
    """Of all matrix products and convolutions: output elements times what each is a sum of."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [value for value in equation.params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
        total += sum(macs_of(getattr(value, "jaxpr", value)) for value in inner)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            terms = math.prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        else:
            continue
        total += math.prod(equation.outvars[0].aval.shape) * terms
    return total


@given(config=few_configs(allow_headless=True), formulation=formulations())
def test_the_formula_counts_the_products_that_jax_computes(config: MixerConfig, formulation: Formulation) -> None:
    assert macs_in_jax(config, formulation) == config.macs


# Published sizes


def is_in_the_table(name: str, spelling: str, side: int) -> None:
    """A variant of this name, as it is written and whatever else is asked for, has the paper's sizes."""
    row = TABLE[name]
    config = MixerConfig.from_name(spelling, image_size=side * row["resolution"], num_classes=0)
    assert config.patch_hw == (row["resolution"], row["resolution"])
    for field in ("num_blocks", "hidden_dim", "channels_mlp_dim", "tokens_mlp_dim"):
        assert getattr(config, field) == row[field]
    assert config.num_tokens == side**2
    published = MixerConfig.from_name(spelling, num_classes=0)
    assert published.num_tokens == row["num_tokens"]
    assert round(published.num_parameters / 1e6) == row["parameters"]


SPELLINGS = ("{}", "Mixer-{}", "{lower}", "Mixer-{under}", "{under}")


@given(name=st.sampled_from(sorted(TABLE)), spelling=st.sampled_from(SPELLINGS), side=st.integers(1, 40))
def test_a_name_means_what_the_paper_s_table_says(name: str, spelling: str, side: int) -> None:
    is_in_the_table(name, spelling.format(name, lower=name.lower(), under=name.replace("/", "_")), side)


# Faults that break them


class WithPositions(TorchMixer):
    """A position embedding: parameters that no product shows."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.positions = nn.Parameter(torch.empty(config.num_tokens, config.hidden_dim))


class WithoutStemBias(TorchMixer):
    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.stem.bias = None


class TwiceTheHead(TorchMixer):
    """The head of every token, and the mean of that: the same function, for more."""

    def forward(self, images: torch.Tensor, *, taps: bool = False) -> Any:
        head, self.head = self.head, None
        features = super().forward(images)
        self.head = head
        return head(torch.stack([features, features], 1)).mean(1)  # type: ignore[misc]


@pytest.mark.parametrize("model", [WithPositions, WithoutStemBias])
def test_a_parameter_more_or_less_is_counted(model: Callable[[MixerConfig], nn.Module]) -> None:
    for config in FEW_CONFIGS:
        with pytest.raises(AssertionError):
            counts_the_arrays(model, config)


def test_a_row_less_is_counted() -> None:
    for row in TORCH.rows:
        rows = tuple(other for other in TORCH.rows if other is not row)
        with pytest.raises(AssertionError):
            holds_all(FEW_CONFIGS[0], dataclasses.replace(TORCH, rows=rows))


def test_a_head_of_every_token_is_counted() -> None:
    for config in FEW_CONFIGS:
        if config.num_classes:
            with pytest.raises(AssertionError):
                counts_the_products(TwiceTheHead, config, Formulation())


def test_products_inside_of_products_are_counted_in_jax() -> None:
    once = jax.make_jaxpr(lambda a, b: a @ b)(np.ones((2, 3)), np.ones((3, 5)))
    inside = jax.make_jaxpr(jax.jit(lambda a, b: jax.jit(lambda c: c @ b)(a) + a @ b))(np.ones((2, 3)), np.ones((3, 5)))
    assert (macs_of(once.jaxpr), macs_of(inside.jaxpr)) == (30, 60)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("fault", ["widths swapped", "a block less"])
def test_another_table_is_not_the_paper_s(name: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, hidden, tokens, channels = config_module.VARIANTS[name[0]]
    wrong = (blocks, hidden, channels, tokens) if fault == "widths swapped" else (blocks - 1, hidden, tokens, channels)
    monkeypatch.setitem(config_module.VARIANTS, name[0], wrong)
    with pytest.raises(AssertionError):
        is_in_the_table(name, name, 2)
