"""Check a Flax nnx Mixer that forgot a residual connection: the report names the place, and the mended one passes.

pip install 'mixer_equiv[flax]'
python examples/check_nnx.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mixer_equiv import verify

IMAGE = 3, 12, 12  # channels, height, width


class Mlp(nnx.Module):
    def __init__(self, size: int, width: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(size, width, rngs=rngs)
        self.second = nnx.Linear(width, size, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(nnx.gelu(self.first(x)))


class MyMixer(nnx.Module):
    """Images (batch, 12, 12, 3) to logits (batch, 7)."""

    def __init__(self, *, forgets: bool = False, depth: int = 3, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 20, (4, 4), (4, 4), rngs=rngs)
        self.norms = nnx.List(nnx.LayerNorm(20, rngs=rngs) for _ in range(2 * depth + 1))
        self.tokens = nnx.List(Mlp(9, 11, rngs) for _ in range(depth))
        self.channels = nnx.List(Mlp(20, 26, rngs) for _ in range(depth))
        self.head = nnx.Linear(20, 7, rngs=rngs)
        self.forgets = forgets

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.stem(images)
        x = x.reshape(len(x), -1, 20)
        for i, (tokens, channels) in enumerate(zip(self.tokens, self.channels, strict=True)):
            x = x + jnp.swapaxes(tokens(jnp.swapaxes(self.norms[2 * i](x), 1, 2)), 1, 2)
            mixed = channels(self.norms[2 * i + 1](x))
            x = mixed if self.forgets and i == 1 else x + mixed
        return self.head(self.norms[-1](x).mean(1))


def main() -> None:
    report = verify(MyMixer(forgets=True, rngs=nnx.Rngs(0)), image=IMAGE)
    print(report)
    assert report.verdict == "different"
    mended = verify(MyMixer(rngs=nnx.Rngs(0)), image=IMAGE)
    print(mended.summary())
    assert mended.verdict == "equivalent"


if __name__ == "__main__":
    main()
