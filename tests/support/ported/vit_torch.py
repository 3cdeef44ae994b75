"""The Vision Transformer in plain torch, once with queries, keys and values in one layer and once in three arrays."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FusedBlock(nn.Module):
    """One layer makes queries, keys and values; the softmax is written out."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        width = sizes.width
        self.heads = sizes.heads
        self.layers = nn.ModuleList(
            [
                nn.LayerNorm(width, eps=1e-6),
                nn.Linear(width, 3 * width),
                nn.Linear(width, width),
                nn.LayerNorm(width, eps=1e-6),
                nn.Linear(width, sizes.mlp_dim),
                nn.Linear(sizes.mlp_dim, width),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        norm, qkv, out, mlp_norm, up, down = self.layers
        x = x + out(self.attend(qkv(norm(x))))
        return x + down(F.gelu(up(mlp_norm(x))))

    def attend(self, joined: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in joined.chunk(3, dim=-1))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        weights = weights / weights.sum(-1, keepdim=True)
        return (weights @ v).transpose(1, 2).flatten(2)


class FusedViT(nn.Module):
    """Logits (batch, classes) of images (batch, 3, height, width), for `Sizes` of `vit.py`."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, sizes.width, sizes.patch, sizes.patch)
        self.start = nn.Parameter(torch.randn(sizes.width))
        self.positions = nn.Parameter(torch.randn(sizes.grid[0] * sizes.grid[1] + 1, sizes.width))
        self.encoder = nn.Sequential(*(FusedBlock(sizes) for _ in range(sizes.depth)))
        self.last = nn.LayerNorm(sizes.width, eps=1e-6)
        self.classify = nn.Linear(sizes.width, sizes.classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.stem(images).flatten(2).mT
        first = self.start.expand(len(images), 1, -1)
        x = self.encoder(torch.cat([first, patches], dim=1) + self.positions)
        return self.classify(self.last(x[:, 0]))


class SeparateAttention(nn.Module):
    """Queries, keys and values by bare arrays (heads, width, dim), multiplied by einsum."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        dim = width // heads
        self.scale = dim**-0.5
        for part in "qkv":
            self.register_parameter(f"w_{part}", nn.Parameter(torch.randn(heads, width, dim)))
            self.register_parameter(f"b_{part}", nn.Parameter(torch.randn(heads, dim)))
        self.w_out = nn.Parameter(torch.randn(heads, dim, width))
        self.b_out = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        def project(weight: Tensor, bias: Tensor) -> Tensor:
            return torch.einsum("bnw,hwd->bhnd", x, weight) + bias[:, None]

        q, k, v = (project(getattr(self, f"w_{part}"), getattr(self, f"b_{part}")) for part in "qkv")
        weights = torch.einsum("bhnd,bhmd->bhnm", q * self.scale, k).softmax(-1)
        return torch.einsum("bhnm,bhmd,hdw->bnw", weights, v, self.w_out) + self.b_out


class SeparateBlock(nn.Module):
    def __init__(self, sizes: Any) -> None:
        super().__init__()
        width = sizes.width
        self.norm_attention = nn.LayerNorm(width, eps=1e-6)
        self.attention = SeparateAttention(width, sizes.heads)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, sizes.mlp_dim), nn.GELU(), nn.Linear(sizes.mlp_dim, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class SeparateViT(nn.Module):
    """Logits (batch, classes) of images (batch, 3, height, width), for `Sizes` of `vit.py`; the stem is a Linear."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.sizes = sizes
        self.patch = nn.Linear(3 * sizes.patch[0] * sizes.patch[1], sizes.width)
        self.cls = nn.Parameter(torch.randn(1, sizes.width))
        self.pos = nn.Parameter(torch.randn(sizes.grid[0] * sizes.grid[1] + 1, sizes.width))
        self.layers = nn.ModuleList(SeparateBlock(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)
        self.head = nn.Linear(sizes.width, sizes.classes)

    def forward(self, images: Tensor) -> Tensor:
        (rows, columns), (ph, pw) = self.sizes.grid, self.sizes.patch
        pieces = images.reshape(len(images), 3, rows, ph, columns, pw).permute(0, 2, 4, 3, 5, 1)
        x = self.patch(pieces.reshape(len(images), rows * columns, -1))
        x = torch.cat([self.cls.expand(len(images), 1, -1), x], dim=1)
        x = x + self.pos
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])
