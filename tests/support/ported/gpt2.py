"""GPT-2 of transformers, with its head tied to the embedding, beside one in nnx.

The reference is that of transformers, with the approximation of GELU by tanh and eps of 1e-5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from tests.support.ported.packages import import_transformers
from tests.support.ported.pair import Family, Input, Row, Side, Writing
from tests.support.ported.rows import norm, same
from tests.support.ported.sides import nnx_side, torch_side


@dataclasses.dataclass(frozen=True)
class Sizes:
    depth: int = 3
    heads: int = 7
    head_dim: int = 8
    mlp_dim: int = 90
    vocabulary: int = 101
    positions: int = 19
    tokens: int = 11
    batch: int = 2

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


SMALL = Sizes()
BASE = Sizes(12, 12, 64, 3072, 50257, 1024, 48, 1)  # the published model of 124 million parameters


def inputs(sizes: Sizes) -> dict[str, Input]:
    return {"input_ids": Input((sizes.batch, sizes.tokens), "int64", 0, sizes.vocabulary)}


def of_transformers(sizes: Sizes) -> Side:
    transformers = import_transformers()
    config = transformers.GPT2Config(
        vocab_size=sizes.vocabulary,
        n_positions=sizes.positions,
        n_embd=sizes.width,
        n_layer=sizes.depth,
        n_head=sizes.heads,
        n_inner=sizes.mlp_dim,
        bos_token_id=None,
        eos_token_id=None,
    )
    return torch_side(transformers.GPT2LMHeadModel(config), "['logits']")


class Block(nnx.Module):
    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        width, heads, dim = sizes.width, sizes.heads, sizes.head_dim
        self.attention_norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.query = nnx.LinearGeneral(width, (heads, dim), rngs=rngs)
        self.key = nnx.LinearGeneral(width, (heads, dim), rngs=rngs)
        self.value = nnx.LinearGeneral(width, (heads, dim), rngs=rngs)
        self.out = nnx.LinearGeneral((heads, dim), width, axis=(-2, -1), rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.up = nnx.Linear(width, sizes.mlp_dim, rngs=rngs)
        self.down = nnx.Linear(sizes.mlp_dim, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attend(self.attention_norm(x))
        return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x)), approximate=True))

    def attend(self, x: jax.Array) -> jax.Array:
        q, k, v = self.query(x), self.key(x), self.value(x)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q / jnp.sqrt(q.shape[-1]), k)
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
        return self.out(jnp.einsum("bhqk,bkhd->bqhd", weights, v))


class GPT2(nnx.Module):
    """Logits (batch, tokens, vocabulary) of token ids (batch, tokens)."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        # Not `nnx.Embed`, which keeps the float32 that it is made in.
        self.tokens = nnx.Param(jax.random.normal(rngs.params(), (sizes.vocabulary, sizes.width)))
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (sizes.positions, sizes.width)))
        self.blocks = nnx.List([Block(sizes, rngs) for _ in range(sizes.depth)])
        self.norm = nnx.LayerNorm(sizes.width, epsilon=1e-5, rngs=rngs)

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        x = self.tokens[input_ids] + self.positions[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens[...].T


def rows_of_nnx(sizes: Sizes) -> Iterator[Row]:
    yield same("transformer.wte.weight", "tokens")
    yield same("transformer.wpe.weight", "positions")
    for i in range(sizes.depth):
        a, b = f"transformer.h.{i}", f"blocks/{i}"
        axes = {"part": 3, "heads": sizes.heads}
        kernels, biases = (
            tuple(f"{b}/{part}/{kind}" for part in ("query", "key", "value")) for kind in ("kernel", "bias")
        )
        yield from norm(f"{a}.ln_1", f"{b}/attention_norm")
        # Linear layers of GPT-2 have the axes of Flax.
        yield Row((f"{a}.attn.c_attn.weight",), kernels, "width (part heads dim) -> part width heads dim", axes)
        yield Row((f"{a}.attn.c_attn.bias",), biases, "(part heads dim) -> part heads dim", axes)
        out = "(heads dim) width -> heads dim width"
        yield Row((f"{a}.attn.c_proj.weight",), (f"{b}/out/kernel",), out, {"heads": sizes.heads})
        yield same(f"{a}.attn.c_proj.bias", f"{b}/out/bias")
        yield from norm(f"{a}.ln_2", f"{b}/mlp_norm")
        for theirs, ours in {"c_fc": "up", "c_proj": "down"}.items():
            yield same(f"{a}.mlp.{theirs}.weight", f"{b}/{ours}/kernel")
            yield same(f"{a}.mlp.{theirs}.bias", f"{b}/{ours}/bias")
    yield from norm("transformer.ln_f", "norm")


GPT_2 = Family(
    "GPT-2",
    {
        "transformers": Writing(of_transformers),
        "nnx": Writing(lambda sizes: nnx_side(lambda: GPT2(sizes, nnx.Rngs(0))), rows_of_nnx),
    },
    inputs,
    SMALL,
    BASE,
)
