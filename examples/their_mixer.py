"""A Mixer as many people write it, with torch's defaults: the model of the README's second picture."""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Module):
    """x + mix(norm(x)), over channels or, transposed, over tokens."""

    def __init__(self, hidden: int, size: int, width: int, *, transposed: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.mix = nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, size))
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + (self.mix(normed.mT).mT if self.transposed else self.mix(normed))


class MLPMixer(nn.Module):
    """Images (batch, 3, image_size, image_size) to logits (batch, 10)."""

    def __init__(self, image_size: int, patch_size: int, hidden: int, depth: int) -> None:
        super().__init__()
        tokens = (image_size // patch_size) ** 2
        self.stem = nn.Conv2d(3, hidden, patch_size, patch_size)
        self.layers = nn.Sequential(
            *(
                layer
                for _ in range(depth)
                for layer in (
                    Residual(hidden, tokens, 2 * hidden, transposed=True),
                    Residual(hidden, hidden, 4 * hidden, transposed=False),
                )
            )
        )
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        return self.head(self.norm(self.layers(x)).mean(dim=1))
