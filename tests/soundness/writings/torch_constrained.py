"""Restrictions of the official family, its two other conventions and rounded constants, in unusual writings.

Each has the names of its causes beside it, and the conventions and canonical weights under which it is the official
function, which those of rounded constants are nearly.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv import MixerConfig
from mixer_equiv.random_weights import draw_params
from tests.soundness.cases import CONFIG
from tests.soundness.writings.official import official
from tests.soundness.writings.torch_gelus import ROOT
from tests.soundness.writings.torch_mixing import by_broadcasting, mixing
from tests.soundness.writings.torch_plain import Gelu, Mixer
from tests.soundness.writings.torch_pools import POOLS

Params = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Constrained:
    """A model, the causes that are right, and what makes the official function of it."""

    make: Callable[[], nn.Module]
    causes: tuple[str, ...]
    config: MixerConfig = CONFIG
    params: Callable[[Params], Params] = dict


def gelu_by_erf(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_by_erfc(x: Tensor) -> Tensor:
    return 0.5 * x * torch.erfc(-x * 0.5**0.5)


def gelu_by_ndtr(x: Tensor) -> Tensor:
    return x * torch.special.ndtr(x)


def norm_1e_5(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    deviation = torch.linalg.vector_norm(x - x.mean(-1, keepdim=True), dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return (x - x.mean(-1, keepdim=True)) / (deviation**2 + 1e-5).sqrt() * scale + bias


def norm_without_affine(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, scale.shape, eps=1e-6)


def norm_without_bias(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * scale


def one_norm_a_block() -> nn.Module:
    model = Mixer()
    for block in model.blocks:
        block.norm_1 = block.norm_0
    return model


def one_norm() -> nn.Module:
    """One LayerNorm for all."""
    model = Mixer()
    for block in model.blocks:
        block.norm_0 = block.norm_1 = model.norm
    return model


class OneBlock(Mixer):
    """One block, which is run three times."""

    def __init__(self) -> None:
        super().__init__()
        self.block = self.blocks[0]
        del self.blocks

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for _ in range(self.config.num_blocks):
            x = self.block(x)
        return self.classify(x)


class NoBiases(Mixer):
    """No Linear has a bias, and the stem has none."""

    def __init__(self) -> None:
        super().__init__()
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.bias = None


def no_stem_bias() -> nn.Module:
    model = Mixer(classify=POOLS["cumsum"])
    model.stem.bias = None
    return model


def zeros(pattern: str) -> Callable[[Params], Params]:
    """Arrays whose name matches are zeros."""
    return lambda params: {name: 0 * a if re.search(pattern, name) else a for name, a in params.items()}


def plain_norms(params: Params) -> Params:
    ones = {name: np.ones_like(a) if name.endswith("scale") else a for name, a in params.items()}
    return zeros(r"(LayerNorm_\d|layer_norm)/bias")(ones)


def copied(pattern: str, source: str) -> Callable[[Params], Params]:
    """Arrays whose name matches are those of another name."""
    return lambda params: {name: params[re.sub(pattern, source, name)] for name in params}


def gelu_by_tanh(root: float, cubic: float = 0.044715) -> Gelu:
    return lambda x: 0.5 * x * (1 + torch.tanh(root * x * (1 + cubic * x * x)))


def gelu_by_sigmoid(x: Tensor) -> Tensor:
    """Both constants are rounded, the first of them doubled before."""
    return x * torch.sigmoid(1.595769 * (x + 0.0447 * x**3))


def gelu_by_rounded_erf(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x * 0.70710678))


def gelu_by_rounded_quotient(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 1.4142))


ERF, EPS = CONFIG.replace(activation="gelu"), CONFIG.replace(layer_norm_eps=1e-5)
OTHERS = CONFIG.replace(activation="gelu", layer_norm_eps=1e-5)
QUICK, DEEP = CONFIG.replace(activation="quick_gelu"), CONFIG.replace(num_blocks=8)
BIASES = r"(stem|Dense_\d|head)/bias"

CONSTRAINED: dict[str, Constrained] = {
    "GELU by erf": Constrained(lambda: Mixer(gelu=gelu_by_erf), ("activation",), ERF),
    "GELU by erfc": Constrained(lambda: Mixer(gelu=gelu_by_erfc), ("activation",), ERF),
    "GELU by the normal distribution": Constrained(lambda: Mixer(gelu=gelu_by_ndtr), ("activation",), ERF),
    "eps 1e-5 by vector norm": Constrained(lambda: Mixer(norm=norm_1e_5), ("layer_norm_eps",), EPS),
    "erf and eps 1e-5, broadcasting": Constrained(
        lambda: Mixer(gelu=gelu_by_erf, norm=norm_1e_5, tokens=mixing(by_broadcasting, 1)),
        ("activation", "layer_norm_eps"),
        OTHERS,
    ),
    "GELU of 0.79788456": Constrained(lambda: Mixer(gelu=gelu_by_tanh(0.79788456)), ("activation",)),
    # No output shows it, and the gradients do.
    "GELU of 0.7978845608 in eight blocks": Constrained(
        lambda: Mixer(official(DEEP), gelu=gelu_by_tanh(0.7978845608)),
        ("activation",),
        DEEP,
        lambda params: draw_params(DEEP, seed=23),
    ),
    "GELU of 0.044714998": Constrained(lambda: Mixer(gelu=gelu_by_tanh(ROOT, 0.044714998)), ("activation",)),
    "GELU of 0.8 and 0.0447": Constrained(lambda: Mixer(gelu=gelu_by_tanh(0.8, 0.0447)), ("activation",)),
    "GELU by sigmoid of 1.595769 and 0.0447": Constrained(lambda: Mixer(gelu=gelu_by_sigmoid), ("activation",)),
    "GELU by erf of 0.70710678": Constrained(lambda: Mixer(gelu=gelu_by_rounded_erf), ("activation",), ERF),
    "GELU by erf over 1.4142": Constrained(lambda: Mixer(gelu=gelu_by_rounded_quotient), ("activation",), ERF),
    "quick GELU of 1.7": Constrained(lambda: Mixer(gelu=lambda x: x * torch.sigmoid(1.7 * x)), ("activation",), QUICK),
    "LayerNorms without scale and bias": Constrained(
        lambda: Mixer(norm=norm_without_affine), ("absent_parameters",), params=plain_norms
    ),
    "LayerNorms without bias": Constrained(
        lambda: Mixer(norm=norm_without_bias), ("absent_parameters",), params=zeros(r"(LayerNorm_\d|layer_norm)/bias")
    ),
    "no biases": Constrained(NoBiases, ("absent_parameters",), params=zeros(BIASES)),
    "no stem bias": Constrained(no_stem_bias, ("absent_parameters",), params=zeros("stem/bias")),
    "one LayerNorm a block": Constrained(
        one_norm_a_block, ("shared_parameters",), params=copied(r"LayerNorm_1", "LayerNorm_0")
    ),
    "one LayerNorm": Constrained(
        one_norm, ("shared_parameters",), params=copied(r"MixerBlock_\d/LayerNorm_\d", "pre_head_layer_norm")
    ),
    "one block run three times": Constrained(
        OneBlock, ("tied_blocks",), params=copied(r"MixerBlock_\d", "MixerBlock_0")
    ),
}
