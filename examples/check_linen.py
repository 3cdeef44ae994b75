"""Check a Flax linen Mixer that has names of its own, and fill it with weights that were trained elsewhere.

pip install 'mixer_equiv[flax]'
python examples/check_linen.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mixer_equiv import layout_of, port, verify
from mixer_equiv.data import digits


class Mlp(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(x.shape[-1], name="back")(nn.gelu(nn.Dense(self.width, name="out")(x)))


class MyMixer(nn.Module):
    """Images (batch, 8, 8, 1) to logits (batch, 10), in the sizes of the digits checkpoint."""

    patch: int = digits.CONFIG.patch_hw[0]
    hidden: int = digits.CONFIG.hidden_dim
    across: int = digits.CONFIG.tokens_mlp_dim
    along: int = digits.CONFIG.channels_mlp_dim
    depth: int = digits.CONFIG.num_blocks

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Conv(self.hidden, (self.patch, self.patch), (self.patch, self.patch), name="patchify")(images)
        x = x.reshape(len(x), -1, self.hidden)
        for i in range(self.depth):
            y = jnp.swapaxes(nn.LayerNorm(name=f"norm_a{i}")(x), 1, 2)
            x = x + jnp.swapaxes(Mlp(self.across, name=f"across{i}")(y), 1, 2)
            x = x + Mlp(self.along, name=f"along{i}")(nn.LayerNorm(name=f"norm_b{i}")(x))
        return nn.Dense(10, name="classify")(nn.LayerNorm(name="last")(x).mean(1))


def main() -> None:
    model = MyMixer()
    image = digits.CONFIG.in_channels, *digits.CONFIG.image_hw
    report = verify(model, image=image)
    print(report)
    assert report.verdict == "equivalent"
    print(layout_of(model, image=image).to_toml())

    images, labels = digits.held_out()
    params = port(digits.CHECKPOINT, model, image=image).params
    logits = jnp.asarray(model.apply({"params": params}, images))
    accuracy = (logits.argmax(-1) == labels).mean()
    print(f"with the digits checkpoint it is right on {accuracy:.1%} of {len(labels)} held-out images")
    assert accuracy > 0.95


if __name__ == "__main__":
    main()
