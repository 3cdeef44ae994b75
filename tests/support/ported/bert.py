"""BERT of transformers, with its pooler, beside one in nnx with one layer for queries, keys and values.

The reference is that of transformers, with the exact GELU and eps of 1e-12.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.support.ported.packages import import_transformers
from tests.support.ported.pair import Family, Input, Row, Side, Writing
from tests.support.ported.rows import dense, norm, same
from tests.support.ported.sides import nnx_side, torch_side


@dataclasses.dataclass(frozen=True)
class Sizes:
    depth: int = 3
    heads: int = 5
    head_dim: int = 12
    mlp_dim: int = 88
    vocabulary: int = 101
    positions: int = 19
    types: int = 4
    tokens: int = 11
    batch: int = 2

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


SMALL = Sizes()
BASE = Sizes(12, 12, 64, 3072, 30522, 512, 2, 48, 1)  # BERT-Base


def inputs(sizes: Sizes) -> dict[str, Input]:
    """Ids without 0, of which torch keeps no gradient; some token of each row has to be left by the mask."""
    shape = sizes.batch, sizes.tokens
    return {
        "input_ids": Input(shape, "int64", 1, sizes.vocabulary),
        "token_type_ids": Input(shape, "int64", 0, sizes.types),
        "attention_mask": Input(shape, "int64", 0, 2),
    }


def of_transformers(sizes: Sizes) -> Side:
    transformers = import_transformers()
    config = transformers.BertConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp_dim,
        max_position_embeddings=sizes.positions,
        type_vocab_size=sizes.types,
    )
    return torch_side(transformers.BertModel(config), "['last_hidden_state']", "['pooler_output']")


class Block(nnx.Module):
    """Attention and MLP, each with its LayerNorm after the sum."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        width, heads, dim = sizes.width, sizes.heads, sizes.head_dim
        self.qkv = nnx.LinearGeneral(width, (3, heads, dim), rngs=rngs)
        self.out = nnx.LinearGeneral((heads, dim), width, axis=(-2, -1), rngs=rngs)
        self.attention_norm = nnx.LayerNorm(width, epsilon=1e-12, rngs=rngs)
        self.up = nnx.Linear(width, sizes.mlp_dim, rngs=rngs)
        self.down = nnx.Linear(sizes.mlp_dim, width, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, epsilon=1e-12, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.attention_norm(x + self.attend(x, mask))
        return self.mlp_norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))

    def attend(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
        scores = scores + jnp.where(mask[:, None, None, :] > 0, 0.0, -1e30)
        return self.out(jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v))


class Bert(nnx.Module):
    """Tokens (batch, tokens, width) and the pooled first one (batch, width), of ids, types and a mask."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        def table(length: int) -> nnx.Param[Any]:
            return nnx.Param(jax.random.normal(rngs.params(), (length, sizes.width)))

        # Not `nnx.Embed`, which keeps the float32 that it is made in.
        self.words, self.places, self.types = table(sizes.vocabulary), table(sizes.positions), table(sizes.types)
        self.norm = nnx.LayerNorm(sizes.width, epsilon=1e-12, rngs=rngs)
        self.blocks = nnx.List([Block(sizes, rngs) for _ in range(sizes.depth)])
        self.pooler = nnx.Linear(sizes.width, sizes.width, rngs=rngs)

    def __call__(
        self, input_ids: jax.Array, token_type_ids: jax.Array, attention_mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        x = self.words[input_ids] + self.places[: input_ids.shape[1]] + self.types[token_type_ids]
        x = self.norm(x)
        for block in self.blocks:
            x = block(x, attention_mask)
        return x, jnp.tanh(self.pooler(x[:, 0]))


def rows_of_nnx(sizes: Sizes) -> Iterator[Row]:
    for theirs, ours in {"word": "words", "position": "places", "token_type": "types"}.items():
        yield same(f"embeddings.{theirs}_embeddings.weight", ours)
    yield from norm("embeddings.LayerNorm", "norm")
    for i in range(sizes.depth):
        a, b = f"encoder.layer.{i}", f"blocks/{i}"
        axes = {"heads": sizes.heads}
        weights, biases = (
            tuple(f"{a}.attention.self.{part}.{kind}" for part in ("query", "key", "value"))
            for kind in ("weight", "bias")
        )
        yield Row(weights, (f"{b}/qkv/kernel",), "part (heads dim) width -> width part heads dim", axes)
        yield Row(biases, (f"{b}/qkv/bias",), "part (heads dim) -> part heads dim", axes)
        out = "width (heads dim) -> heads dim width"
        yield Row((f"{a}.attention.output.dense.weight",), (f"{b}/out/kernel",), out, axes)
        yield same(f"{a}.attention.output.dense.bias", f"{b}/out/bias")
        yield from norm(f"{a}.attention.output.LayerNorm", f"{b}/attention_norm")
        yield from dense(f"{a}.intermediate.dense", f"{b}/up")
        yield from dense(f"{a}.output.dense", f"{b}/down")
        yield from norm(f"{a}.output.LayerNorm", f"{b}/mlp_norm")
    yield from dense("pooler.dense", "pooler")


BERT = Family(
    "BERT",
    {
        "transformers": Writing(of_transformers),
        "nnx": Writing(lambda sizes: nnx_side(lambda: Bert(sizes, nnx.Rngs(0)), "[0]", "[1]"), rows_of_nnx),
    },
    inputs,
    SMALL,
    BASE,
)
