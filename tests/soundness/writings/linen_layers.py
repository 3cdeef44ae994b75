"""linen's own layers and transforms, in modules that have official names."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tests.soundness.cases import CONFIG
from tests.soundness.writings import jax_parts
from tests.soundness.writings.jax_parts import gelu
from tests.soundness.writings.linen_plain import DEPTH, Params, Plain, Structure, flat, nested, shapes_of_block

layer_norm = partial(nn.LayerNorm, epsilon=1e-6)


class Mlp(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(x.shape[-1], name="Dense_1")(gelu(nn.Dense(self.features, name="Dense_0")(x)))


class Block(nn.Module):
    """A block under official names; what is replaced says itself."""

    mlp: Any = Mlp
    norm: Any = layer_norm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = self.norm(name="LayerNorm_0")(x).swapaxes(1, 2)
        x = x + self.mlp(CONFIG.tokens_mlp_dim, name="token_mixing")(y).swapaxes(1, 2)
        return x + self.mlp(CONFIG.channels_mlp_dim, name="channel_mixing")(self.norm(name="LayerNorm_1")(x))


class Official(nn.Module):
    """Official names; `block` makes the blocks."""

    block: Any = Block

    def between(self, x: Array) -> Array:
        for i in range(DEPTH):
            x = self.block(name=f"MixerBlock_{i}")(x)
        return x

    def end(self, x: Array) -> Any:
        return nn.Dense(CONFIG.num_classes, name="head")(x.mean(1))

    @nn.compact
    def __call__(self, images: Array) -> Any:
        x = nn.Conv(CONFIG.hidden_dim, CONFIG.patch_hw, CONFIG.patch_hw, name="stem")(images)
        x = self.between(x.reshape(len(x), -1, x.shape[-1]))
        return self.end(layer_norm(name="pre_head_layer_norm")(x))


class Setup(nn.Module):
    """Layers are made in `setup`, blocks in a list and MLPs in `nn.Sequential`."""

    def setup(self) -> None:
        self.stem = nn.Conv(CONFIG.hidden_dim, CONFIG.patch_hw, CONFIG.patch_hw)
        self.norms = [layer_norm() for _ in range(2 * DEPTH + 1)]
        widths = (CONFIG.tokens_mlp_dim, CONFIG.num_tokens), (CONFIG.channels_mlp_dim, CONFIG.hidden_dim)
        self.mlps = [nn.Sequential([nn.Dense(a), gelu, nn.Dense(b)]) for _ in range(DEPTH) for a, b in widths]
        self.head = nn.Dense(CONFIG.num_classes)

    def __call__(self, images: Array) -> Array:
        x = self.stem(images).reshape(len(images), -1, CONFIG.hidden_dim)
        for i in range(0, 2 * DEPTH, 2):
            x = x + self.mlps[i](self.norms[i](x).swapaxes(1, 2)).swapaxes(1, 2)
            x = x + self.mlps[i + 1](self.norms[i + 1](x))
        return self.head(self.norms[-1](x).mean(1))


def packed_for_setup(params: Params) -> dict[str, Any]:
    tree: dict[str, Any] = nested(params)
    named = {"stem": tree["stem"], "head": tree["head"], f"norms_{2 * DEPTH}": tree["pre_head_layer_norm"]}
    for i in range(DEPTH):
        block = tree[f"MixerBlock_{i}"]
        for j, mlp in enumerate(("token_mixing", "channel_mixing")):
            named[f"norms_{2 * i + j}"] = block[f"LayerNorm_{j}"]
            named[f"mlps_{2 * i + j}"] = {"layers_0": block[mlp]["Dense_0"], "layers_2": block[mlp]["Dense_1"]}
    return named


class LinenScan(Official):
    """`nn.scan` over blocks."""

    def between(self, x: Array) -> Array:
        body = nn.scan(
            ScanBody, variable_axes={"params": 0}, split_rngs={"params": True}, length=DEPTH, metadata_params={}
        )
        return body(name="blocks")(x, None)[0]


class ScanBody(nn.Module):
    @nn.compact
    def __call__(self, x: Array, _: Any) -> tuple[Array, None]:
        return Block(name="block")(x), None


def packed_for_scan(params: Params) -> dict[str, Any]:
    tree: dict[str, Any] = nested(params)
    blocks = [tree.pop(f"MixerBlock_{i}") for i in range(DEPTH)]
    return tree | {"blocks": {"block": jax.tree.map(lambda *arrays: np.stack(arrays), *blocks)}}


class General(nn.Module):
    """`DenseGeneral` over the tokens' axis where it stands."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = layer_norm(name="LayerNorm_0")(x)
        x = x + GeneralMlp(CONFIG.tokens_mlp_dim, 1, name="token_mixing")(y)
        return x + GeneralMlp(CONFIG.channels_mlp_dim, 2, name="channel_mixing")(layer_norm(name="LayerNorm_1")(x))


class GeneralMlp(nn.Module):
    features: int
    axis: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = gelu(nn.DenseGeneral(self.features, axis=self.axis, name="Dense_0")(x))
        y = nn.DenseGeneral(x.shape[self.axis], axis=-1, name="Dense_1")(y)
        return jnp.moveaxis(y, -1, self.axis)


class EinsumMlp(nn.Module):
    """`nn.Einsum`."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.Einsum((x.shape[-1], self.features), "...i,ij->...j", name="Dense_0")(x)
        return nn.Einsum((self.features, x.shape[-1]), "...i,ij->...j", name="Dense_1")(gelu(y))


class ConvMlp(nn.Module):
    """Convolutions of kernel size 1."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Conv(x.shape[-1], (1,), name="Dense_1")(gelu(nn.Conv(self.features, (1,), name="Dense_0")(x)))


def packed_for_conv(params: Params) -> dict[str, Any]:
    return nested({n: a[None] if "Dense" in n and n.endswith("kernel") else a for n, a in params.items()})


class DropoutMlp(nn.Module):
    """Dropout that is off."""

    features: int
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.Dropout(0.1)(gelu(nn.Dense(self.features, name="Dense_0")(x)), deterministic=self.deterministic)
        return nn.Dropout(0.1, deterministic=self.deterministic)(nn.Dense(x.shape[-1], name="Dense_1")(y))


class SowingBlock(Block):
    """Keeps its stream as an intermediate."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        self.sow("intermediates", "stream", x)
        return super().__call__(x)


class Perturbed(Official):
    """`perturb` on the stream, for gradients with regard to it."""

    def between(self, x: Array) -> Array:
        return self.perturb("stream", super().between(x))


class OverImages(Official):
    """`nn.vmap` over images, with weights in common."""

    def between(self, x: Array) -> Array:
        mapped = nn.vmap(OneImage, variable_axes={"params": None}, split_rngs={"params": False})
        for i in range(DEPTH):
            x = mapped(name=f"MixerBlock_{i}")(x)
        return x


class OneImage(nn.Module):
    """A block on one image (s, d)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x + Mlp(CONFIG.tokens_mlp_dim, name="token_mixing")(layer_norm(name="LayerNorm_0")(x).T).T
        return x + Mlp(CONFIG.channels_mlp_dim, name="channel_mixing")(layer_norm(name="LayerNorm_1")(x))


class Folded(Plain):
    """Scale and bias of the LayerNorms before channel mixing are multiplied into the next layer at every call."""

    def blocks(self, x: Array) -> Array:
        for i in range(DEPTH):
            p = {name: self.take(f"MixerBlock_{i}/{name}", shape) for name, shape in shapes_of_block().items()}
            tokens = (p[f"token_mixing/Dense_{j}/{leaf}"] for j in (0, 1) for leaf in ("kernel", "bias"))
            y = jax_parts.norm(x, p["LayerNorm_0/scale"], p["LayerNorm_0/bias"])
            x = x + jax_parts.mix_tokens(y, *tokens, gelu)
            kernel, bias = (p[f"channel_mixing/Dense_0/{leaf}"] for leaf in ("kernel", "bias"))
            y = jax_parts.norm(x, jnp.ones(()), jnp.zeros(()))
            y = gelu(y @ (p["LayerNorm_1/scale"][:, None] * kernel) + (p["LayerNorm_1/bias"] @ kernel + bias))
            x = x + jax_parts.dense(y, p["channel_mixing/Dense_1/kernel"], p["channel_mixing/Dense_1/bias"])
        return x


class Train(Official):
    """A flag for training, and one for whether it is deterministic."""

    @nn.compact
    def __call__(self, images: Array, train: bool = False, deterministic: bool | None = None) -> Any:
        logits = super().__call__(images)
        return nn.Dropout(0.1, deterministic=not train)(logits)


class Features(Official):
    """A dict with features and logits."""

    def end(self, x: Array) -> Any:
        return {"features": x, "logits": nn.Dense(CONFIG.num_classes, name="head")(x.mean(1))}


class Counting(Official):
    """Counts calls in a collection of its own, which nothing reads."""

    def end(self, x: Array) -> Any:
        calls = self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        if self.is_mutable_collection("counters"):
            calls.value = calls.value + 1
        return super().end(x)


LAYERS: dict[str, Structure] = {
    "compact, official names": Structure(Official, nested),
    "setup and Sequential": Structure(Setup, packed_for_setup),
    "LayerNorms folded into layers": Structure(Folded, flat),
    "nn.scan": Structure(LinenScan, packed_for_scan),
    "nn.remat": Structure(lambda: Official(block=nn.remat(Block)), nested),
    "nn.jit": Structure(lambda: Official(block=nn.jit(Block)), nested),
    "nn.vmap over images": Structure(OverImages, nested),
    "DenseGeneral": Structure(lambda: Official(block=General), nested),
    "nn.Einsum": Structure(lambda: Official(block=partial(Block, mlp=EinsumMlp)), nested),
    "nn.Conv for MLPs": Structure(lambda: Official(block=partial(Block, mlp=ConvMlp)), packed_for_conv),
    "LayerNorm in two passes": Structure(
        lambda: Official(block=partial(Block, norm=partial(layer_norm, use_fast_variance=False))), nested
    ),
    "dropout, deterministic": Structure(lambda: Official(block=partial(Block, mlp=DropoutMlp)), nested),
    "sow": Structure(lambda: Official(block=SowingBlock), nested),
    "perturb": Structure(Perturbed, nested),
    "flags for training": Structure(Train, nested),
    "dict of features and logits": Structure(Features, nested),
    "counter nobody reads": Structure(Counting, lambda p: {"params": nested(p), "counters": {"calls": np.int32(0)}}),
}
