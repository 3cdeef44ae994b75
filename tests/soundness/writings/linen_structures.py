"""linen's and JAX's ways to hold and to run blocks: transforms, loops, `setup`, layers of other kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tests.soundness.cases import CONFIG
from tests.soundness.writings.jax_parts import gelu
from tests.soundness.writings.linen_plain import (
    DENSES,
    NORMAL,
    Params,
    Plain,
    block_of,
    flat,
    nested,
    shapes_of_block,
    stacked,
)

DEPTH = CONFIG.num_blocks
layer_norm = partial(nn.LayerNorm, epsilon=1e-6)


class Structure(NamedTuple):
    """A module and what puts official weights under its names."""

    make: Callable[[], nn.Module]
    pack: Callable[[Params], Mapping[str, Any]]


# --- All blocks' arrays in one parameter of each kind, and loops over these ---


class Stacks(Plain):
    def stacks(self) -> dict[str, Array]:
        return {name: self.take(name, (DEPTH, *shape)) for name, shape in shapes_of_block().items()}


class Scanned(Stacks):
    """`lax.scan`."""

    def blocks(self, x: Array) -> Array:
        return lax.scan(lambda x, p: (block_of(p, x), None), x, self.stacks())[0]


class ScannedRemat(Stacks):
    """`lax.scan` of checkpointed blocks, two at a time unrolled."""

    def blocks(self, x: Array) -> Array:
        step = jax.checkpoint(lambda x, p: (block_of(p, x), None))
        return lax.scan(step, x, self.stacks(), unroll=2)[0]


class ForiLoop(Stacks):
    """`lax.fori_loop`."""

    def blocks(self, x: Array) -> Array:
        stacks = self.stacks()
        return lax.fori_loop(0, DEPTH, lambda i, x: block_of(jax.tree.map(lambda a: a[i], stacks), x), x)


class WhileLoop(Stacks):
    """`lax.while_loop`."""

    def blocks(self, x: Array) -> Array:
        stacks = self.stacks()

        def body(state: tuple[Array, Array]) -> tuple[Array, Array]:
            i, x = state
            p = {name: lax.dynamic_index_in_dim(a, i, keepdims=False) for name, a in stacks.items()}
            return i + 1, block_of(p, x)

        return lax.while_loop(lambda state: state[0] < DEPTH, body, (jnp.asarray(0), x))[1]


class Switched(Plain):
    """`lax.switch` over blocks, in a Python loop."""

    def branches(self) -> list[Callable[[Array], Array]]:
        every = [
            {name: self.take(f"MixerBlock_{i}/{name}", shape) for name, shape in shapes_of_block().items()}
            for i in range(DEPTH)
        ]
        return [partial(block_of, p) for p in every]

    def blocks(self, x: Array) -> Array:
        branches = self.branches()
        for i in range(DEPTH):
            x = lax.switch(i, branches, x)
        return x


class SwitchedInLoop(Switched):
    """`lax.switch` over blocks, in a `fori_loop`."""

    def blocks(self, x: Array) -> Array:
        branches = self.branches()
        return lax.fori_loop(0, DEPTH, lambda i, x: lax.switch(i, branches, x), x)


class Unstacked(Stacks):
    """Stacks, taken apart by `jax.tree.map` and zip."""

    def blocks(self, x: Array) -> Array:
        stacks = self.stacks()
        for arrays in zip(*stacks.values(), strict=True):
            x = block_of(dict(zip(stacks, arrays, strict=True)), x)
        return x


# --- How a block's function is transformed ---


class Transformed(Plain):
    """Every block's function passes through a transform."""

    transform: Callable[..., Any] = jax.jit

    def blocks(self, x: Array) -> Array:
        for i in range(DEPTH):
            p = {name: self.take(f"MixerBlock_{i}/{name}", shape) for name, shape in shapes_of_block().items()}
            x = self.transform(block_of)(p, x)
        return x


def over_images(block: Callable[..., Array]) -> Callable[..., Array]:
    return jax.vmap(lambda p, x: block(p, x[None])[0], in_axes=(None, 0))


def over_images_by_map(block: Callable[..., Array]) -> Callable[..., Array]:
    return lambda p, x: lax.map(lambda image: block(p, image[None])[0], x)


def with_debug(block: Callable[..., Array]) -> Callable[..., Array]:
    """The norm of the stream is shown to a callback that does nothing."""

    def shown(p: Any, x: Array) -> Array:
        jax.debug.callback(lambda norm: None, jnp.linalg.norm(x))
        return block(p, x)

    return shown


def linearized(block: Callable[..., Array]) -> Callable[..., Array]:
    """The value of a `jvp`, whose tangent is thrown away."""
    return lambda p, x: jax.jvp(partial(block, p), (x,), (jnp.ones_like(x),))[0]


def partially_evaluated(block: Callable[..., Array]) -> Callable[..., Array]:
    """The value of a `vjp`, whose pullback is not called."""
    return lambda p, x: jax.vjp(block, p, x)[0]


def called_back(block: Callable[..., Array]) -> Callable[..., Array]:
    """LayerNorm aside, nothing JAX can see: NumPy by `pure_callback`."""
    return lambda p, x: block(p, jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(x.shape, x.dtype), x))


# --- linen's own layers and transforms, under official names ---


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


class Constants(Plain):
    """The weights are in a collection that is not `params`."""

    def take(self, name: str, shape: tuple[int, ...]) -> Array:
        short = name.replace("/", "__")
        return self.variable("frozen", short, lambda: NORMAL(jax.random.key(len(short)), shape)).value


class Matrices(Plain):
    """Kernel and bias of each Dense in a block are one array, the bias as its last row."""

    def blocks(self, x: Array) -> Array:
        for i in range(DEPTH):
            p = {n: self.take(f"MixerBlock_{i}/{n}", s) for n, s in shapes_of_block().items() if "LayerNorm" in n}
            for name in DENSES:
                into, out = shapes_of_block()[f"{name}/kernel"]
                whole = self.take(f"MixerBlock_{i}/{name}", (into + 1, out))
                p |= {f"{name}/kernel": whole[:-1], f"{name}/bias": whole[-1]}
            x = block_of(p, x)
        return x


def packed_matrices(params: Params) -> dict[str, Any]:
    kept = {name: array for name, array in params.items() if "Dense" not in name}
    kernels = [name.removesuffix("/kernel") for name in params if name.endswith("kernel") and "Dense" in name]
    return flat(kept | {name: np.vstack([params[f"{name}/kernel"], params[f"{name}/bias"]]) for name in kernels})


class Vector(Plain):
    """All arrays are one vector."""

    @nn.compact
    def __call__(self, images: Array) -> Any:
        sizes = {name: array.shape for name, array in packed_shapes().items()}
        whole = self.param("whole", NORMAL, (sum(int(np.prod(shape)) for shape in sizes.values()),))
        parts, at = {}, 0
        for name, shape in sizes.items():
            size = int(np.prod(shape))
            parts[name], at = whole[at : at + size].reshape(shape), at + size
        return Plain().apply({"params": parts}, images)


def packed_shapes() -> dict[str, Any]:
    return jax.eval_shape(Plain().init, jax.random.key(0), jnp.zeros((1, *CONFIG.image_hw, CONFIG.in_channels)))[
        "params"
    ]


def packed_vector(params: Params) -> dict[str, Any]:
    arrays = flat(params)
    return {"whole": np.concatenate([arrays[name].ravel() for name in packed_shapes()])}


STRUCTURES: dict[str, Structure] = {
    "lax.scan over stacks": Structure(Scanned, stacked),
    "lax.scan, remat, unrolled": Structure(ScannedRemat, stacked),
    "fori_loop over stacks": Structure(ForiLoop, stacked),
    "while_loop over stacks": Structure(WhileLoop, stacked),
    "stacks taken apart": Structure(Unstacked, stacked),
    "switch over blocks": Structure(Switched, flat),
    "switch in a fori_loop": Structure(SwitchedInLoop, flat),
    "jit of blocks": Structure(Transformed, flat),
    "checkpoint of blocks": Structure(lambda: Transformed(transform=jax.checkpoint), flat),
    "vmap over images": Structure(lambda: Transformed(transform=over_images), flat),
    "map over images": Structure(lambda: Transformed(transform=over_images_by_map), flat),
    "debug.callback": Structure(lambda: Transformed(transform=with_debug), flat),
    "value of a jvp": Structure(lambda: Transformed(transform=linearized), flat),
    "value of a vjp": Structure(lambda: Transformed(transform=partially_evaluated), flat),
    "compact, official names": Structure(Official, nested),
    "setup and Sequential": Structure(Setup, packed_for_setup),
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
    "kernel and bias in one array": Structure(Matrices, packed_matrices),
    "one vector": Structure(Vector, packed_vector),
}
# Weights that are no parameters, and values that leave JAX.
UNFOLLOWED: dict[str, Structure] = {
    "weights in another collection": Structure(Constants, lambda p: {"params": {}, "frozen": flat(p)}),
    "pure_callback": Structure(lambda: Transformed(transform=called_back), flat),
}
