"""gMixer of timm, a Mixer with gated MLPs, beside one in plain torch, with an array each for values and gates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mixer_equiv.equivalence.sides.locate import import_timm
from tests.support.ported.pair import Family, Row, Side, Writing
from tests.support.ported.rows import layer, same
from tests.support.ported.sides import torch_side
from tests.support.ported.timm_mlp import SMALL, Sizes, inputs, of_timm, ratio_of, stem_as_dense

GMIXER_12 = dataclasses.replace(
    SMALL,
    depth=12,
    width=384,
    hidden=1536,
    hidden_tokens=384,
    patch=(16, 16),
    grid=(14, 14),
    classes=1000,
    batch=1,
)


def of_gmixer(sizes: Sizes) -> Side:
    layers = import_timm().models.mlp_mixer
    ratio = ratio_of(sizes.hidden_tokens, sizes.width), ratio_of(sizes.hidden, sizes.width)
    return of_timm(sizes, ratio, mlp_layer=layers.GluMlp, act_layer=nn.SiLU)


class GatedMlp(nn.Module):
    """Values times the SiLU of gates, along any axis of (batch, tokens, width), by bare arrays (in, out)."""

    def __init__(self, axis: int, length: int, hidden: int) -> None:
        super().__init__()
        self.axis = axis
        for name in ("value", "gate"):
            self.register_parameter(name, nn.Parameter(torch.randn(length, hidden // 2)))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.randn(hidden // 2)))
        self.out, self.out_bias = nn.Parameter(torch.randn(hidden // 2, length)), nn.Parameter(torch.randn(length))

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.product(x, self.value, self.value_bias), self.product(x, self.gate, self.gate_bias)
        return self.product(value * gate * gate.sigmoid(), self.out, self.out_bias)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.axis == 1:
            return torch.einsum("biw,io->bow", x, weight) + bias[:, None]
        return x @ weight + bias


class GMixer(nn.Module):
    """Logits (batch, classes) of images (batch, 3, height, width)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.stem_kernel = nn.Parameter(torch.randn(3 * sizes.patch[0] * sizes.patch[1], sizes.width))
        self.stem_bias = nn.Parameter(torch.randn(sizes.width))
        self.mixings, self.norms = nn.ModuleList(), nn.ModuleList()
        for _ in range(sizes.depth):
            self.mixings.append(GatedMlp(1, sizes.tokens, sizes.hidden_tokens))
            self.mixings.append(GatedMlp(2, sizes.width, sizes.hidden))
        self.norms.extend(nn.LayerNorm(sizes.width, eps=1e-6) for _ in range(2 * sizes.depth + 1))
        self.head = nn.Linear(sizes.width, sizes.classes)

    def forward(self, images: Tensor) -> Tensor:
        (rows, columns), (ph, pw) = self.sizes.grid, self.sizes.patch
        pieces = images.reshape(len(images), 3, rows, ph, columns, pw).permute(0, 2, 4, 3, 5, 1)
        x = torch.addmm(self.stem_bias, pieces.reshape(-1, len(self.stem_kernel)), self.stem_kernel)
        x = x.unflatten(0, (len(images), -1))
        *norms, last = self.norms
        for norm, mixing in zip(norms, self.mixings, strict=True):
            x = x + mixing(norm(x))
        return self.head(last(x).mean(1))


def rows_of_torch(sizes: Sizes) -> Iterator[Row]:
    yield from stem_as_dense(sizes, "stem")
    for i in range(sizes.depth):
        for n, name in enumerate(("mlp_tokens", "mlp_channels")):
            a, number = f"blocks.{i}", 2 * i + n
            b = f"mixings.{number}"
            parts = {"part": 2}
            yield from layer(f"{a}.norm{n + 1}", f"norms.{number}")
            weights, biases = (f"{b}.value", f"{b}.gate"), (f"{b}.value_bias", f"{b}.gate_bias")
            yield Row((f"{a}.{name}.fc1.weight",), weights, "(part outs) ins -> part ins outs", parts)
            yield Row((f"{a}.{name}.fc1.bias",), biases, "(part outs) -> part outs", parts)
            yield Row((f"{a}.{name}.fc2.weight",), (f"{b}.out",), "outs ins -> ins outs")
            yield same(f"{a}.{name}.fc2.bias", f"{b}.out_bias")
    yield from layer("norm", f"norms.{2 * sizes.depth}")
    yield from layer("head", "head")


GMIXER = Family(
    "gMixer",
    {
        "timm": Writing(of_gmixer),
        "torch": Writing(lambda sizes: torch_side(GMixer(sizes)), rows_of_torch),
    },
    inputs,
    SMALL,
    GMIXER_12,
)
