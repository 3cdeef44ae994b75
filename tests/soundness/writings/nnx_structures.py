"""The Mixer in nnx: how blocks and weights are held there, and nnx's transforms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from tests.soundness.writings import jax_parts
from tests.soundness.writings.jax_parts import gelu
from tests.soundness.writings.nnx_plain import DEPTH, Mixer, conv, layer_norm, linear, weights


class Numbered(Mixer):
    """Blocks are attributes, asked for by their numbers."""

    def __init__(self) -> None:
        super().__init__()
        for i, block in enumerate(list(self.blocks)):
            setattr(self, f"layer{i}", block)
        del self.blocks

    def between(self, x: Array) -> Array:
        for i in range(DEPTH):
            x = getattr(self, f"layer{i}")(x)
        return x


class InDict(Mixer):
    """Blocks are in an `nnx.Dict`."""

    def __init__(self) -> None:
        super().__init__()
        self.named = nnx.Dict({f"block {i}": block for i, block in enumerate(self.blocks)})
        del self.blocks

    def between(self, x: Array) -> Array:
        for i in range(DEPTH):
            x = self.named[f"block {i}"](x)
        return x


class Residual(nnx.Module):
    def __init__(self, *layers: Callable[..., Any]) -> None:
        self.inner = nnx.Sequential(*layers)

    def __call__(self, x: Array) -> Array:
        return x + self.inner(x)


def turn(x: Array) -> Array:
    return x.swapaxes(1, 2)


def sequential() -> nnx.Module:
    """One `nnx.Sequential` of layers and functions."""
    w = weights()
    layers: list[Callable[..., Any]] = [conv(w.stem), lambda x: x.reshape(len(x), -1, x.shape[-1])]
    for b in w.blocks:
        layers.append(Residual(layer_norm(b.norm_0), turn, linear(b.tokens_0), gelu, linear(b.tokens_1), turn))
        layers.append(Residual(layer_norm(b.norm_1), linear(b.channels_0), gelu, linear(b.channels_1)))
    return nnx.Sequential(*layers, layer_norm(w.norm), partial(jnp.mean, axis=1), linear(w.head))


class Stacked(Mixer):
    """One block whose arrays are the stacks of all."""

    def __init__(self) -> None:
        super().__init__()
        graph, *_ = nnx.split(self.blocks[0])
        states = [nnx.state(block) for block in self.blocks]
        self.stack = nnx.merge(graph, jax.tree.map(lambda *arrays: jnp.stack(arrays), *states))
        del self.blocks


class Scanned(Stacked):
    """`nnx.scan`."""

    def between(self, x: Array) -> Array:
        return nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.stack)


class ScannedByJax(Stacked):
    """`nnx.split`, `lax.scan`, and `nnx.merge` inside."""

    def between(self, x: Array) -> Array:
        graph, state = nnx.split(self.stack)
        return lax.scan(lambda x, layer: (nnx.merge(graph, layer)(x), None), x, state)[0]


class ForiLoop(Stacked):
    """`lax.fori_loop` over the split state."""

    def between(self, x: Array) -> Array:
        graph, state = nnx.split(self.stack)
        return lax.fori_loop(0, DEPTH, lambda i, x: nnx.merge(graph, jax.tree.map(lambda a: a[i], state))(x), x)


class Remat(Mixer):
    """`nnx.remat`."""

    def between(self, x: Array) -> Array:
        for block in self.blocks:
            x = nnx.remat(lambda block, x: block(x))(block, x)
        return x


class Jitted(Mixer):
    """`nnx.jit` of each block."""

    def between(self, x: Array) -> Array:
        for block in self.blocks:
            x = nnx.jit(lambda block, x: block(x))(block, x)
        return x


class OverImages(Mixer):
    """`nnx.vmap` over images."""

    def between(self, x: Array) -> Array:
        for block in self.blocks:
            x = nnx.vmap(lambda block, image: block(image[None])[0], in_axes=(None, 0))(block, x)
        return x


class OverTokens(Mixer):
    """LayerNorm and channel MLP are mapped over tokens by `jax.vmap`."""

    def between(self, x: Array) -> Array:
        for b in self.blocks:
            x = x + turn(b.tokens_1(gelu(b.tokens_0(turn(jax.vmap(b.norm_0, 1, 1)(x))))))
            x = x + jax.vmap(lambda token, b=b: b.channels_1(gelu(b.channels_0(b.norm_1(token)))), 1, 1)(x)
        return x


class Transposed(Mixer):
    """The stream is (b, d, s); `nnx.Linear` on transposed axes."""

    def between(self, x: Array) -> Array:
        x = turn(x)
        for b in self.blocks:
            x = x + b.tokens_1(gelu(b.tokens_0(turn(b.norm_0(turn(x))))))
            x = x + turn(b.channels_1(gelu(b.channels_0(b.norm_1(turn(x))))))
        return turn(x)


class Dropping(Mixer):
    """Dropout that is off in eval, with streams of random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rngs = nnx.Rngs(dropout=0)
        self.dropout = nnx.Dropout(0.1, deterministic=True, rngs=self.rngs)

    def embed(self, images: Array) -> Array:
        return self.dropout(super().embed(images))


class Counting(Mixer):
    """Counts its calls in a Variable, which nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, images: Array) -> Any:
        self.calls[...] = self.calls[...] + 1
        return super().__call__(images)


class Sowing(Mixer):
    """Keeps the stream as an intermediate."""

    def classify(self, x: Array) -> Any:
        self.sow(nnx.Intermediate, "stream", x)
        return super().classify(x)


class Bare(nnx.Module):
    """Bare `nnx.Param`s in lists, everything by einsum."""

    variable: Callable[[Array], Any] = nnx.Param

    def __init__(self) -> None:
        w = weights()
        self.layers = nnx.List([nnx.List([self.variable(a) for pair in block for a in pair]) for block in w.blocks])
        self.ends = nnx.List([self.variable(a) for pair in (w.stem, w.norm, w.head) for a in pair])

    def __call__(self, images: Array) -> Array:
        stem, bias, scale, shift, head, last = (array[...] for array in self.ends)
        x = jax_parts.embed_by_dot_general(images, stem, bias)
        for layer in self.layers:
            s0, o0, k0, b0, k1, b1, s1, o1, k2, b2, k3, b3 = (array[...] for array in layer)
            y = gelu(jnp.einsum("bsd,st->bdt", jax_parts.norm(x, s0, o0), k0) + b0)
            x = x + jnp.einsum("bdt,ts->bsd", y, k1) + b1[:, None]
            y = gelu(jnp.einsum("bsd,de->bse", jax_parts.norm(x, s1, o1), k2) + b2)
            x = x + jnp.einsum("bse,ed->bsd", y, k3) + b3
        return jax_parts.classify_by_einsum(jax_parts.norm(x, scale, shift), head, last)


class OwnKind(nnx.Param[Array]):
    """A kind of parameter that only this model has."""


class BareOwnKind(Bare):
    variable = OwnKind


class BareStatistics(Bare):
    """The weights are Variables of another kind than `Param`."""

    variable = nnx.BatchStat


class BareArrays(Bare):
    """The weights are arrays, in no Variable."""

    variable = staticmethod(lambda array: array)


class General(Mixer):
    """`nnx.LinearGeneral` over the tokens' axis where it stands, and `nnx.Einsum` over channels."""

    def __init__(self) -> None:
        super().__init__()
        for block, own in zip(self.blocks, weights().blocks, strict=True):
            s, t = own.tokens_0.weight.shape
            d, e = own.channels_0.weight.shape
            block.general = nnx.LinearGeneral(s, t, axis=1, rngs=nnx.Rngs(0))
            block.general.kernel, block.general.bias = nnx.Param(own.tokens_0.weight), nnx.Param(own.tokens_0.bias)
            block.einsum = nnx.Einsum("bsd,de->bse", (d, e), (e,), rngs=nnx.Rngs(0))
            block.einsum.kernel, block.einsum.bias = nnx.Param(own.channels_0.weight), nnx.Param(own.channels_0.bias)
            del block.tokens_0, block.channels_0

    def between(self, x: Array) -> Array:
        for b in self.blocks:
            x = x + turn(b.tokens_1(gelu(b.general(b.norm_0(x)))))
            x = x + b.channels_1(gelu(b.einsum(b.norm_1(x))))
        return x


class Switched(Mixer):
    """`nnx.switch` over blocks."""

    def between(self, x: Array) -> Array:
        blocks = [lambda mixer, x, i=i: mixer.blocks[i](x) for i in range(DEPTH)]
        for i in range(DEPTH):
            x = nnx.switch(i, blocks, self, x)
        return x


class Conditional(Mixer):
    """`nnx.cond` on a sign, of two equal ends."""

    def classify(self, x: Array) -> Any:
        def mean_first(mixer: Mixer, x: Array) -> Array:
            return mixer.head(mixer.norm(x).mean(1))

        def head_first(mixer: Mixer, x: Array) -> Array:
            return mixer.head(mixer.norm(x)).mean(1)

        return nnx.cond(x.mean() > 0, mean_first, head_first, self, x)


class PythonAssert(Mixer):
    """Python asks for a number of the input; under `jit` this would fail."""

    def embed(self, images: Array) -> Array:
        if not isinstance(images, jax.core.Tracer):
            assert np.isfinite(np.asarray(images)).all()
        return super().embed(images)


class Tuple(Mixer):
    """Features come out beside the logits."""

    def classify(self, x: Array) -> Any:
        return super().classify(x), x


NNX: dict[str, Callable[[], nnx.Module]] = {
    "List": Mixer,
    "attributes": Numbered,
    "Dict": InDict,
    "Sequential": sequential,
    "scan": Scanned,
    "lax.scan, split and merge": ScannedByJax,
    "fori_loop, split and merge": ForiLoop,
    "remat": Remat,
    "jit": Jitted,
    "vmap over images": OverImages,
    "vmap over tokens": OverTokens,
    "transposed stream": Transposed,
    "dropout": Dropping,
    "counter": Counting,
    "sow": Sowing,
    "bare Params": Bare,
    "Params of its own kind": BareOwnKind,
    "LinearGeneral and Einsum": General,
    "switch": Switched,
    "cond of two equal ends": Conditional,
    "asserts where there is no tracer": PythonAssert,
    "logits and features": Tuple,
}
UNFOLLOWED_NNX: dict[str, Callable[[], nnx.Module]] = {
    "weights as BatchStat": BareStatistics,
    "weights as arrays": BareArrays,
}
