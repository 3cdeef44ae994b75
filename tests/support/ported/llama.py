"""A small Llama of transformers beside one in nnx, which groups its queries and has one layer for gate and up.

The reference is that of transformers: RMSNorm with eps of 1e-5, rotary positions, grouped heads, SiLU. Its angles are
multiples of float32 numbers, which the model keeps, so that those of nnx are made in float32 as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.support.ported.packages import import_transformers
from tests.support.ported.pair import Family, Input, Row, Side, Writing
from tests.support.ported.rows import same
from tests.support.ported.sides import nnx_side, torch_side

THETA = 10000.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    depth: int = 3
    kv_heads: int = 5
    queries_per_kv: int = 3
    head_dim: int = 6
    width: int = 75
    mlp_dim: int = 70
    vocabulary: int = 101
    tokens: int = 11
    batch: int = 2


SMALL = Sizes()
SMALL_LLAMA = Sizes(30, 3, 3, 64, 576, 1536, 49152, 48, 1)  # of SmolLM-135M, whose head is tied


def inputs(sizes: Sizes) -> dict[str, Input]:
    return {"input_ids": Input((sizes.batch, sizes.tokens), "int64", 0, sizes.vocabulary)}


def of_transformers(sizes: Sizes) -> Side:
    transformers = import_transformers()
    config = transformers.LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp_dim,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.kv_heads * sizes.queries_per_kv,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
    )
    return torch_side(transformers.LlamaForCausalLM(config), "['logits']")


def frequencies(dim: int) -> np.ndarray:
    """Radians a token by which each pair of channels is turned."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.float32(1) / np.float32(THETA) ** exponents


def turned(x: jax.Array) -> jax.Array:
    """Turn channels i and i + dim/2 of (batch, tokens, ..., dim) by angles that grow with the token's place."""
    angles = jnp.arange(x.shape[1])[:, None] * frequencies(x.shape[-1]).astype(x.dtype)
    angles = angles.reshape(x.shape[1], *[1] * (x.ndim - 3), -1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    low, high = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


class Block(nnx.Module):
    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        width, heads, dim = sizes.width, sizes.kv_heads, sizes.head_dim
        grouped = heads, sizes.queries_per_kv, dim
        self.attention_norm = nnx.RMSNorm(width, epsilon=1e-5, rngs=rngs)
        self.query = nnx.LinearGeneral(width, grouped, use_bias=False, rngs=rngs)
        self.key = nnx.LinearGeneral(width, (heads, dim), use_bias=False, rngs=rngs)
        self.value = nnx.LinearGeneral(width, (heads, dim), use_bias=False, rngs=rngs)
        self.out = nnx.LinearGeneral(grouped, width, axis=(-3, -2, -1), use_bias=False, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(width, epsilon=1e-5, rngs=rngs)
        self.gate_and_up = nnx.LinearGeneral(width, (2, sizes.mlp_dim), use_bias=False, rngs=rngs)
        self.down = nnx.Linear(sizes.mlp_dim, width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attend(self.attention_norm(x))
        both = self.gate_and_up(self.mlp_norm(x))
        return x + self.down(jax.nn.silu(both[..., 0, :]) * both[..., 1, :])

    def attend(self, x: jax.Array) -> jax.Array:
        q, k, v = turned(self.query(x)), turned(self.key(x)), self.value(x)
        scores = jnp.einsum("bqhgd,bkhd->bhgqk", q, k) / jnp.sqrt(q.shape[-1])
        later = jnp.triu(jnp.ones(scores.shape[-2:], bool), 1)
        weights = jax.nn.softmax(jnp.where(later, -jnp.inf, scores))
        return self.out(jnp.einsum("bhgqk,bkhd->bqhgd", weights, v))


class Llama(nnx.Module):
    """Logits (batch, tokens, vocabulary) of token ids (batch, tokens)."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        # Not `nnx.Embed`, which keeps the float32 that it is made in.
        self.tokens = nnx.Param(jax.random.normal(rngs.params(), (sizes.vocabulary, sizes.width)))
        self.blocks = nnx.List([Block(sizes, rngs) for _ in range(sizes.depth)])
        self.norm = nnx.RMSNorm(sizes.width, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(sizes.width, sizes.vocabulary, use_bias=False, rngs=rngs)

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        x = self.tokens[input_ids]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def rows_of_nnx(sizes: Sizes) -> Iterator[Row]:
    axes = {"heads": sizes.kv_heads, "group": sizes.queries_per_kv}
    yield same("model.embed_tokens.weight", "tokens")
    for i in range(sizes.depth):
        a, b = f"model.layers.{i}", f"blocks/{i}"
        grouped = "(heads group dim) width -> width heads group dim"
        yield Row((f"{a}.self_attn.q_proj.weight",), (f"{b}/query/kernel",), grouped, axes)
        for theirs, ours in {"k": "key", "v": "value"}.items():
            pattern = "(heads dim) width -> width heads dim"
            sizes_of_axes = {"heads": sizes.kv_heads}
            yield Row((f"{a}.self_attn.{theirs}_proj.weight",), (f"{b}/{ours}/kernel",), pattern, sizes_of_axes)
        out = "width (heads group dim) -> heads group dim width"
        yield Row((f"{a}.self_attn.o_proj.weight",), (f"{b}/out/kernel",), out, axes)
        both = f"{a}.mlp.gate_proj.weight", f"{a}.mlp.up_proj.weight"
        yield Row(both, (f"{b}/gate_and_up/kernel",), "part hidden width -> width part hidden")
        yield Row((f"{a}.mlp.down_proj.weight",), (f"{b}/down/kernel",), "width hidden -> hidden width")
        yield same(f"{a}.input_layernorm.weight", f"{b}/attention_norm/scale")
        yield same(f"{a}.post_attention_layernorm.weight", f"{b}/mlp_norm/scale")
    yield same("model.norm.weight", "norm/scale")
    yield Row(("lm_head.weight",), ("head/kernel",), "words width -> width words")


LLAMA = Family(
    "Llama",
    {
        "transformers": Writing(of_transformers),
        "nnx": Writing(lambda sizes: nnx_side(lambda: Llama(sizes, nnx.Rngs(0))), rows_of_nnx),
    },
    inputs,
    SMALL,
    SMALL_LLAMA,
)
