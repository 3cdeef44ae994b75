"""JAX's loops and transforms over the blocks of a linen module whose parameters are plain arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tests.soundness.cases import CONFIG
from tests.soundness.writings.linen_plain import (
    DENSES,
    DEPTH,
    NORMAL,
    Params,
    Plain,
    Structure,
    block_of,
    flat,
    shapes_of_block,
    stacked,
)

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


# --- Where arrays are held ---


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


LOOPS: dict[str, Structure] = {
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
    "kernel and bias in one array": Structure(Matrices, packed_matrices),
    "one vector": Structure(Vector, packed_vector),
}
# Weights that are no parameters, and values that leave JAX.
UNFOLLOWED: dict[str, Structure] = {
    "weights in another collection": Structure(Constants, lambda p: {"params": {}, "frozen": flat(p)}),
    "pure_callback": Structure(lambda: Transformed(transform=called_back), flat),
}
