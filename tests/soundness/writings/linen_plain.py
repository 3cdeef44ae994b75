"""The plain Mixer in linen, whose parts are those of `jax_parts.py`, with parameters under flat official names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax import Array

from benchmarks.xla_options import cheap_jit
from mixer_equiv.arrays.interop import unflatten
from tests.soundness.cases import CONFIG
from tests.soundness.writings import jax_parts
from tests.soundness.writings.jax_parts import Part
from tests.soundness.writings.official import OFFICIAL

Params = Mapping[str, np.ndarray]
NORMAL = nn.initializers.normal(0.1)
SIZES, DEPTH = CONFIG.axis_sizes, CONFIG.num_blocks
DENSES = {
    "token_mixing/Dense_0": ("tokens", "tokens_mlp"),
    "token_mixing/Dense_1": ("tokens_mlp", "tokens"),
    "channel_mixing/Dense_0": ("hidden", "channels_mlp"),
    "channel_mixing/Dense_1": ("channels_mlp", "hidden"),
}


def shapes_of_block() -> dict[str, tuple[int, ...]]:
    """Official names in a block to shapes."""
    d = SIZES["hidden"]
    norms: dict[str, tuple[int, ...]] = {f"LayerNorm_{i}/{leaf}": (d,) for i in (0, 1) for leaf in ("scale", "bias")}
    kernels: dict[str, tuple[int, ...]] = {f"{name}/kernel": (SIZES[a], SIZES[b]) for name, (a, b) in DENSES.items()}
    return norms | kernels | {f"{name}/bias": (SIZES[b],) for name, (_, b) in DENSES.items()}


def block_of(p: Mapping[str, Array], x: Array, parts: Mapping[str, Part] = jax_parts.PARTS) -> Array:
    """One block of parameters by official names."""

    def affine(name: str) -> tuple[Array, Array]:
        return p[f"{name}/kernel"], p[f"{name}/bias"]

    y = parts["norm"](x, p["LayerNorm_0/scale"], p["LayerNorm_0/bias"])
    x = x + parts["tokens"](y, *affine("token_mixing/Dense_0"), *affine("token_mixing/Dense_1"), parts["gelu"])
    y = parts["norm"](x, p["LayerNorm_1/scale"], p["LayerNorm_1/bias"])
    return x + parts["channels"](y, *affine("channel_mixing/Dense_0"), *affine("channel_mixing/Dense_1"), parts["gelu"])


class Structure(NamedTuple):
    """A module and what puts official weights under its names."""

    make: Callable[[], nn.Module]
    pack: Callable[[Params], Mapping[str, Any]]


class Plain(nn.Module):
    """The official function by `jax_parts.PARTS`, or what `parts` have in their place.

    Every array is a parameter under its official name; subclasses replace how blocks are held and run.
    """

    parts: tuple[tuple[str, Part], ...] = ()

    def take(self, name: str, shape: tuple[int, ...]) -> Array:
        return self.param(name.replace("/", "__"), NORMAL, shape)

    def blocks(self, x: Array) -> Array:
        for i in range(DEPTH):
            p = {name: self.take(f"MixerBlock_{i}/{name}", shape) for name, shape in shapes_of_block().items()}
            x = block_of(p, x, jax_parts.PARTS | dict(self.parts))
        return x

    @nn.compact
    def __call__(self, images: Array) -> Any:
        parts, d = jax_parts.PARTS | dict(self.parts), CONFIG.hidden_dim
        stem = self.take("stem/kernel", (*CONFIG.patch_hw, CONFIG.in_channels, d))
        x = self.blocks(parts["embed"](images, stem, self.take("stem/bias", (d,))))
        norm = (self.take(f"pre_head_layer_norm/{leaf}", (d,)) for leaf in ("scale", "bias"))
        head = self.take("head/kernel", (d, CONFIG.num_classes)), self.take("head/bias", (CONFIG.num_classes,))
        return parts["classify"](parts["norm"](x, *norm), *head)


def flat(params: Params) -> dict[str, Any]:
    """The parameters of `Plain`."""
    return {name.replace("/", "__"): array for name, array in params.items()}


def nested(params: Params) -> dict[str, Any]:
    """The official tree, for modules that have official names."""
    return unflatten(dict(params))


def stacked(params: Params) -> dict[str, Any]:
    """The arrays of all blocks in one of each kind, the others as in `Plain`."""
    ends = {name: array for name, array in params.items() if not name.startswith("MixerBlock_")}
    stacks = {name: np.stack([params[f"MixerBlock_{i}/{name}"] for i in range(DEPTH)]) for name in shapes_of_block()}
    return flat(ends | stacks)


def logits_of(module: nn.Module, pack: Callable[[Params], Mapping[str, Any]], images: np.ndarray) -> Any:
    """What a module gives with official weights, which `pack` puts under its names, in float64."""
    with jax.enable_x64(True):
        packed = dict(pack(OFFICIAL))
        variables = packed if "params" in packed else {"params": packed}
        return jax.tree.map(np.asarray, cheap_jit(module.apply)(variables, images))
