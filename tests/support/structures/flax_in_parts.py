"""The official function in Flax, computed in parts, by loops and branches of `jax.lax`, and with biases as rows.

`LINEN_PARTS[name](config, fault)` is the official function, and with a fault of `FAULTS` another one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer_equiv.config import MixerConfig

FAULTS = "erf", "one chunk without bias"


class LinenInParts(nn.Module):
    """The official function on stacked parameters, whose blocks, MLPs and layers may be run otherwise."""

    config: MixerConfig
    fault: str = ""

    @nn.compact
    def __call__(self, images: Any) -> Any:
        config = self.config
        (ph, pw), (rows, columns), d = config.patch_hw, config.grid_hw, config.hidden_dim
        patches = images.reshape(len(images), rows, ph, columns, pw, config.in_channels).transpose(0, 1, 3, 2, 4, 5)
        x = self.dense(patches.reshape(len(images), rows * columns, -1), self.layer("stem", patches[0, 0, 0].size, d))
        x = self.run_blocks(x, self.blocks())
        x = self.norm(x, *(self.noise(f"last_{name}", d) for name in ("scale", "bias"))).mean(1)
        return self.dense(x, self.layer("head", d, config.num_classes))

    def noise(self, name: str, *shape: int) -> Any:
        return self.param(name, nn.initializers.normal(0.3), shape)

    def layer(self, name: str, inputs: int, outputs: int, *blocks: int) -> tuple[Any, Any]:
        return self.noise(f"{name}_kernel", *blocks, inputs, outputs), self.noise(f"{name}_bias", *blocks, outputs)

    def blocks(self) -> Any:
        """The parameters of all blocks, stacked."""
        c, n = self.config, self.config.num_blocks
        s, d, ds, dc = c.num_tokens, c.hidden_dim, c.tokens_mlp_dim, c.channels_mlp_dim
        norms = [(self.noise(f"scale_{i}", n, d), self.noise(f"shift_{i}", n, d)) for i in "ab"]
        tokens = self.layer("t1", s, ds, n), self.layer("t2", ds, s, n)
        channels = self.layer("c1", d, dc, n), self.layer("c2", dc, d, n)
        return norms, tokens, channels

    def run_blocks(self, x: Any, stacked: Any) -> Any:
        for i in range(self.config.num_blocks):
            x = self.block(x, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
        return x

    def block(self, x: Any, parameters: Any) -> Any:
        (first, second), tokens, channels = parameters
        x = x + self.tokens(self.norm(x, *first), tokens)
        return x + self.channels(self.norm(x, *second), channels)

    def norm(self, x: Any, scale: Any, bias: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale + bias

    def act(self, x: Any) -> Any:
        return jax.nn.gelu(x, approximate=self.fault != "erf")

    def dense(self, x: Any, layer: Any) -> Any:
        kernel, bias = layer
        return x @ kernel + bias

    def mlp(self, x: Any, layers: Any) -> Any:
        return self.dense(self.act(self.dense(x, layers[0])), layers[1])

    def tokens(self, x: Any, layers: Any) -> Any:
        return self.mlp(x.mT, layers).mT

    def channels(self, x: Any, layers: Any) -> Any:
        return self.mlp(x, layers)

    def bias(self, bias: Any, start: int, stop: int) -> Any:
        return bias[start:stop] if self.fault != "one chunk without bias" or not start else 0 * bias[start:stop]


def hidden_sum(self: LinenInParts, x: Any, layers: Any) -> Any:
    """The sum over parts of the hidden units."""
    (into, first), (out, second) = layers
    total, width = second, len(first)
    for start in range(0, width, 9):
        stop = min(start + 9, width)
        total = total + self.act(x @ into[:, start:stop] + self.bias(first, start, stop)) @ out[start:stop]
    return total


def row_by_row(self: LinenInParts, x: Any, layers: Any) -> Any:
    """One row of the second axis at a time, by `lax.map`."""
    rows = jax.lax.map(lambda row: self.mlp(row, layers), jnp.moveaxis(x, 1, 0))
    return jnp.moveaxis(rows, 0, 1)


def written_rows(self: LinenInParts, x: Any, layers: Any) -> Any:
    """One row of the second axis at a time, written into zeros by `fori_loop`."""

    def turn(i: Any, out: Any) -> Any:
        return out.at[:, i].set(self.mlp(x[:, i], layers))

    return jax.lax.fori_loop(0, x.shape[1], turn, jnp.zeros_like(x))


def _block(self: LinenInParts, i: Any, x: Any, stacked: Any) -> Any:
    return self.block(x, jax.tree.map(lambda leaf: leaf[i], stacked))


def fori_blocks(self: LinenInParts, x: Any, stacked: Any) -> Any:
    return jax.lax.fori_loop(0, self.config.num_blocks, lambda i, x: _block(self, i, x, stacked), x)


def while_blocks(self: LinenInParts, x: Any, stacked: Any) -> Any:
    def turn(held: Any) -> Any:
        i, x = held
        return i + 1, _block(self, i, x, stacked)

    return jax.lax.while_loop(lambda held: held[0] < self.config.num_blocks, turn, (0, x))[1]


def switched_blocks(self: LinenInParts, x: Any, stacked: Any) -> Any:
    branches = [partial(lambda i, x: _block(self, i, x, stacked), i) for i in range(self.config.num_blocks)]

    def turn(held: Any) -> Any:
        i, x = held
        return i + 1, jax.lax.switch(i, branches, x)

    return jax.lax.while_loop(lambda held: held[0] < self.config.num_blocks, turn, (0, x))[1]


def branching_blocks(self: LinenInParts, x: Any, stacked: Any) -> Any:
    """The same in either branch of a condition on the stream."""
    plain = partial(LinenInParts.run_blocks, self)
    return jax.lax.cond(x.mean() > 0, plain, lambda x, stacked: plain(x + 0, stacked), x, stacked)


def branching_function(self: LinenInParts, x: Any, stacked: Any) -> Any:
    """Another function in one of the branches, which is not always taken."""
    x = LinenInParts.run_blocks(self, x, stacked)
    return jax.lax.cond(jnp.abs(x).max() > 1e3, lambda x: 2 * x, lambda x: x, x)


def row_of_bias(self: LinenInParts, x: Any, layer: Any) -> Any:
    """The kernel with the bias as its last row, times the input with a column of ones."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1) @ layer


def joined_layer(self: LinenInParts, name: str, inputs: int, outputs: int, *blocks: int) -> Any:
    return self.noise(f"{name}_kernel", *blocks, inputs + 1, outputs)


def _writing(**methods: Callable[..., Any]) -> type[LinenInParts]:
    if "tokens" in methods:
        mix = methods["tokens"]
        methods["tokens"] = lambda self, x, layers: mix(self, x.mT, layers).mT
    return type("LinenInParts", (LinenInParts,), methods)


LINEN_PARTS: dict[str, type[LinenInParts]] = {
    "channels in parts of hidden units": _writing(channels=hidden_sum),
    "tokens in parts of hidden units": _writing(tokens=hidden_sum),
    "tokens channel by channel, by lax.map": _writing(tokens=row_by_row),
    "channels token by token, by fori_loop": _writing(channels=written_rows),
}

LINEN_CONTROL: dict[str, type[LinenInParts]] = {
    "fori_loop over blocks": _writing(run_blocks=fori_blocks),
    "while_loop over blocks": _writing(run_blocks=while_blocks),
    "switch over blocks": _writing(run_blocks=switched_blocks),
    "cond on the stream": _writing(run_blocks=branching_blocks),
    "cond that is not met": _writing(run_blocks=branching_function),
}

LINEN_BIAS_ROWS = _writing(layer=joined_layer, dense=row_of_bias)
