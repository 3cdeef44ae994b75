"""The Vision Transformer (arXiv 2010.11929) of timm, of transformers, and in four writings of the tests' own.

The reference is timm's, with its exact GELU and eps of 1e-6. Those of the tests are in the `vit_*.py` beside this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from flax import nnx
from torch import nn

from mixer_equiv.equivalence.sides.locate import import_timm
from tests.support.ported.packages import import_transformers
from tests.support.ported.pair import Family, Input, Row, Side, Writing
from tests.support.ported.rows import conv, dense, layer, norm, same
from tests.support.ported.sides import linen_side, nnx_side, torch_side
from tests.support.ported.vit_linen import VisionTransformer as LinenViT
from tests.support.ported.vit_nnx import VisionTransformer as NnxViT
from tests.support.ported.vit_torch import FusedViT, SeparateViT

PARTS = "qkv"


@dataclasses.dataclass(frozen=True)
class Sizes:
    depth: int = 3
    heads: int = 8
    head_dim: int = 10
    mlp_dim: int = 110
    patch: tuple[int, int] = (4, 6)
    grid: tuple[int, int] = (5, 7)
    classes: int = 13
    batch: int = 2

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def image(self) -> tuple[int, int]:
        return self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]


SMALL = Sizes()
TINY_16 = Sizes(12, 3, 64, 768, (16, 16), (14, 14), 1000, 1)  # ViT-Ti/16
BASE_16 = Sizes(12, 12, 64, 3072, (16, 16), (14, 14), 1000, 1)  # ViT-B/16


def inputs(sizes: Sizes) -> dict[str, Input]:
    return {"0": Input((sizes.batch, 3, *sizes.image))}


def of_timm(sizes: Sizes) -> Side:
    model = import_timm().models.VisionTransformer(
        img_size=sizes.image,
        patch_size=sizes.patch,
        num_classes=sizes.classes,
        embed_dim=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.heads,
        mlp_ratio=sizes.mlp_dim / sizes.width,
    )
    return torch_side(model)


def of_transformers(sizes: Sizes) -> Side:
    transformers = import_transformers()
    config = transformers.ViTConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp_dim,
        layer_norm_eps=1e-6,
        image_size=list(sizes.image),
        patch_size=list(sizes.patch),
        num_labels=sizes.classes,
    )
    return torch_side(transformers.ViTForImageClassification(config), "['logits']")


def rows_of_transformers(sizes: Sizes) -> Iterator[Row]:
    yield same("cls_token", "vit.embeddings.cls_token")
    yield same("pos_embed", "vit.embeddings.position_embeddings")
    yield from layer("patch_embed.proj", "vit.embeddings.patch_embeddings.projection")
    for i in range(sizes.depth):
        a, b = f"blocks.{i}", f"vit.layers.{i}"
        yield from layer(f"{a}.norm1", f"{b}.layernorm_before")
        for kind in ("weight", "bias"):
            parts = tuple(f"{b}.attention.{part}_proj.{kind}" for part in PARTS)
            yield Row((f"{a}.attn.qkv.{kind}",), parts, "(part out) ... -> part out ...", {"part": 3})
        yield from layer(f"{a}.attn.proj", f"{b}.attention.o_proj")
        yield from layer(f"{a}.norm2", f"{b}.layernorm_after")
        yield from layer(f"{a}.mlp.fc1", f"{b}.mlp.fc1")
        yield from layer(f"{a}.mlp.fc2", f"{b}.mlp.fc2")
    yield from layer("norm", "vit.layernorm")
    yield from layer("head", "classifier")


def rows_of_linen(sizes: Sizes) -> Iterator[Row]:
    yield same("cls_token", "cls")
    yield same("pos_embed", "Transformer/posembed_input/pos_embedding")
    yield from conv("patch_embed.proj", "embedding")
    for i in range(sizes.depth):
        a, b = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        attention = f"{b}/MultiHeadDotProductAttention_0"
        axes = {"part": 3, "heads": sizes.heads}
        kernels, biases = (
            tuple(f"{attention}/{part}/{kind}" for part in ("query", "key", "value")) for kind in ("kernel", "bias")
        )
        yield from norm(f"{a}.norm1", f"{b}/LayerNorm_0")
        yield Row((f"{a}.attn.qkv.weight",), kernels, "(part heads dim) width -> part width heads dim", axes)
        yield Row((f"{a}.attn.qkv.bias",), biases, "(part heads dim) -> part heads dim", axes)
        out = "width (heads dim) -> heads dim width"
        yield Row((f"{a}.attn.proj.weight",), (f"{attention}/out/kernel",), out, {"heads": sizes.heads})
        yield same(f"{a}.attn.proj.bias", f"{attention}/out/bias")
        yield from norm(f"{a}.norm2", f"{b}/LayerNorm_1")
        yield from dense(f"{a}.mlp.fc1", f"{b}/MlpBlock_0/Dense_0")
        yield from dense(f"{a}.mlp.fc2", f"{b}/MlpBlock_0/Dense_1")
    yield from norm("norm", "Transformer/encoder_norm")
    yield from dense("head", "head")


def rows_of_nnx(sizes: Sizes) -> Iterator[Row]:
    yield Row(("cls_token",), ("class_token",), "1 1 width -> width")
    yield Row(("pos_embed",), ("positions",), "1 tokens width -> tokens width")
    yield from conv("patch_embed.proj", "patches")
    for i in range(sizes.depth):
        a, b = f"blocks.{i}", f"blocks/{i}"
        axes = {"part": 3, "heads": sizes.heads}
        yield from norm(f"{a}.norm1", f"{b}/attention_norm")
        joined = "(part heads dim) width -> width heads part dim"
        yield Row((f"{a}.attn.qkv.weight",), (f"{b}/attention/qkv/kernel",), joined, axes)
        joined = "(part heads dim) -> heads part dim"
        yield Row((f"{a}.attn.qkv.bias",), (f"{b}/attention/qkv/bias",), joined, axes)
        yield from dense(f"{a}.attn.proj", f"{b}/attention/out")
        yield from norm(f"{a}.norm2", f"{b}/mlp_norm")
        yield from dense(f"{a}.mlp.fc1", f"{b}/up")
        yield from dense(f"{a}.mlp.fc2", f"{b}/down")
    yield from norm("norm", "norm")
    yield from dense("head", "head")


def rows_of_fused(sizes: Sizes) -> Iterator[Row]:
    yield Row(("cls_token",), ("start",), "1 1 width -> width")
    yield Row(("pos_embed",), ("positions",), "1 tokens width -> tokens width")
    yield from layer("patch_embed.proj", "stem")
    for i in range(sizes.depth):
        a, b = f"blocks.{i}", f"encoder.{i}"
        names = {"norm1": "0", "attn.qkv": "1", "attn.proj": "2", "norm2": "3", "mlp.fc1": "4", "mlp.fc2": "5"}
        for theirs, ours in names.items():
            yield from layer(f"{a}.{theirs}", f"{b}.layers.{ours}")
    yield from layer("norm", "last")
    yield from layer("head", "classify")


def rows_of_separate(sizes: Sizes) -> Iterator[Row]:
    ph, pw = sizes.patch
    yield Row(("cls_token",), ("cls",), "1 1 width -> 1 width")
    yield Row(("pos_embed",), ("pos",), "1 tokens width -> tokens width")
    columns = "width channels ph pw -> width (ph pw channels)"
    yield Row(("patch_embed.proj.weight",), ("patch.weight",), columns, {"channels": 3, "ph": ph, "pw": pw})
    yield same("patch_embed.proj.bias", "patch.bias")
    for i in range(sizes.depth):
        a, b = f"blocks.{i}", f"layers.{i}"
        axes = {"part": 3, "heads": sizes.heads}
        kernels = tuple(f"{b}.attention.w_{part}" for part in PARTS)
        biases = tuple(f"{b}.attention.b_{part}" for part in PARTS)
        yield from layer(f"{a}.norm1", f"{b}.norm_attention")
        yield Row((f"{a}.attn.qkv.weight",), kernels, "(part heads dim) width -> part heads width dim", axes)
        yield Row((f"{a}.attn.qkv.bias",), biases, "(part heads dim) -> part heads dim", axes)
        out = "width (heads dim) -> heads dim width"
        yield Row((f"{a}.attn.proj.weight",), (f"{b}.attention.w_out",), out, {"heads": sizes.heads})
        yield same(f"{a}.attn.proj.bias", f"{b}.attention.b_out")
        yield from layer(f"{a}.norm2", f"{b}.norm_mlp")
        yield from layer(f"{a}.mlp.fc1", f"{b}.mlp.0")
        yield from layer(f"{a}.mlp.fc2", f"{b}.mlp.2")
    yield from layer("norm", "norm")
    yield from layer("head", "head")


def _own(model: type[nn.Module]) -> Writing:
    rows = {FusedViT: rows_of_fused, SeparateViT: rows_of_separate}[model]
    return Writing(lambda sizes: torch_side(model(sizes)), rows)


VIT = Family(
    "ViT",
    {
        "timm": Writing(of_timm),
        "transformers": Writing(of_transformers, rows_of_transformers),
        "linen": Writing(lambda sizes: linen_side(LinenViT(sizes), inputs(sizes)), rows_of_linen),
        "nnx": Writing(lambda sizes: nnx_side(lambda: NnxViT(sizes, nnx.Rngs(0))), rows_of_nnx),
        "fused": _own(FusedViT),
        "separate": _own(SeparateViT),
    },
    inputs,
    SMALL,
    BASE_16,
)
