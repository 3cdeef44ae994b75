"""Wrong Mixers that only nnx can write: modules that change their own state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.soundness.cases import CONFIG, DIFFERENT, FOLDABLE, NEUTRAL, NOT_OFFICIAL, Case
from tests.soundness.plain_flax import HIDDEN, LOGITS, NORM, STREAM, NnxMixer, at


class Planted(nnx.Module):
    """Does something at one place; what it knows is in its attributes."""

    def __init__(self, place: str, first: int = 0) -> None:
        self.place, self.first = place, first
        self.make()

    def make(self) -> None:
        """Make the state."""

    def __call__(self, place: str, x: Any) -> Any:
        return self.change(x) if place == self.place else x

    def change(self, x: Any) -> Any:
        return x


class CallsInVariable(Planted):
    def make(self) -> None:
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def change(self, x: Any) -> Any:
        self.calls[...] = self.calls[...] + 1
        return jnp.where(self.calls[...] >= self.first, x * 1.001, x)


class CallsInBatchStat(CallsInVariable):
    def make(self) -> None:
        self.calls = nnx.BatchStat(jnp.zeros((), jnp.float32))


class CallsInAttribute(Planted):
    def make(self) -> None:
        self.calls = 0

    def change(self, x: Any) -> Any:
        self.calls += 1
        return x * 1.001 if self.calls >= self.first else x


class CallsInDict(Planted):
    def make(self) -> None:
        self.calls = nnx.Dict(forward=nnx.Variable(jnp.zeros((), jnp.int32)))

    def change(self, x: Any) -> Any:
        self.calls["forward"][...] = self.calls["forward"][...] + 1
        return jnp.where(self.calls["forward"][...] >= self.first, x * 1.001, x)


class RunningMean(Planted):
    """Adds how far the mean is from a running one: in an MLP, since in the stream LayerNorms would hide it."""

    def make(self) -> None:
        self.running = nnx.BatchStat(jnp.zeros(()))
        self.begun = nnx.Variable(jnp.zeros((), bool))

    def change(self, x: Any) -> Any:
        mean = x.mean()
        self.running[...] = jnp.where(self.begun[...], 0.9 * self.running[...] + 0.1 * mean, mean)
        self.begun[...] = jnp.ones((), bool)
        return x + 1e-2 * (mean - self.running[...])


class FirstResult(Planted):
    """One number of the first call is returned for ever."""

    def make(self) -> None:
        self.kept = nnx.Variable(jnp.full((), jnp.nan))

    def change(self, x: Any) -> Any:
        self.kept[...] = jnp.where(jnp.isnan(self.kept[...]), x.ravel()[0], self.kept[...])
        return x.at[(0,) * x.ndim].set(self.kept[...].astype(x.dtype))


class Noise(Planted):
    """A key of its own for each call."""

    def make(self) -> None:
        self.rngs = nnx.Rngs(noise=0)

    def change(self, x: Any) -> Any:
        return x + 1e-6 * jax.random.normal(self.rngs.noise(), x.shape, x.dtype)


class Layer(Planted):
    """A layer of nnx at one place."""

    def __init__(self, place: str, layer: nnx.Module) -> None:
        super().__init__(place)
        self.layer = layer

    def change(self, x: Any) -> Any:
        return self.layer(x)


class Met(Planted):
    """Combines what passes with a variable."""

    def __init__(self, place: str, value: nnx.Variable[Any], combine: Callable[[Any, Any], Any], name: str) -> None:
        super().__init__(place)
        setattr(self, name, value)
        self.combine, self.name = combine, name

    def change(self, x: Any) -> Any:
        return self.combine(x, getattr(self, self.name)[...])


class Drifting(NnxMixer):
    """The bias of the head grows with every call."""

    def __call__(self, images: Any) -> Any:
        logits = super().__call__(images)
        self.head.bias[...] = self.head.bias[...] + 1e-3
        return logits


class Swapping(NnxMixer):
    """Has the erf GELU after the first call."""

    def __call__(self, images: Any) -> Any:
        logits = super().__call__(images)
        self.act = functools.partial(jax.nn.gelu, approximate=False)
        return logits


class LooseEps(NnxMixer):
    """One LayerNorm has an eps of 1e-5."""

    def __init__(self, *, rngs: nnx.Rngs | None = None) -> None:
        super().__init__(rngs=rngs)
        self.norms[3] = nnx.LayerNorm(CONFIG.hidden_dim, epsilon=1e-5, rngs=nnx.Rngs(0))


class Tied(NnxMixer):
    """Two token MLPs have one first layer."""

    def __init__(self, *, rngs: nnx.Rngs | None = None) -> None:
        super().__init__(rngs=rngs)
        self.tokens[4] = self.tokens[0]


def batch_norm(**options: Any) -> nnx.BatchNorm:
    return nnx.BatchNorm(CONFIG.hidden_dim, use_bias=False, use_scale=False, epsilon=0.0, rngs=nnx.Rngs(0), **options)


# Name, what makes the model, why it is wrong, what of it should be named.
_REMEMBERING: tuple[tuple[str, Callable[[], Any], str, tuple[str, ...]], ...] = (
    ("Variable, call 2", lambda: NnxMixer(CallsInVariable(LOGITS, 2)), "Later calls are scaled.", ("calls",)),
    ("Variable, call 3", lambda: NnxMixer(CallsInVariable(STREAM, 3)), "Later calls are scaled.", ("calls",)),
    ("Variable, call 6", lambda: NnxMixer(CallsInVariable(HIDDEN, 6)), "Later calls are scaled.", ("calls",)),
    ("BatchStat, call 3", lambda: NnxMixer(CallsInBatchStat(LOGITS, 3)), "Later calls are scaled.", ("calls",)),
    ("Dict of Variables, call 4", lambda: NnxMixer(CallsInDict(NORM, 4)), "Later calls are scaled.", ("calls",)),
    ("attribute, call 2", lambda: NnxMixer(CallsInAttribute(LOGITS, 2)), "Later calls are scaled.", ("calls",)),
    ("attribute, call 4", lambda: NnxMixer(CallsInAttribute(STREAM, 4)), "Later calls are scaled.", ("calls",)),
    ("running mean", lambda: NnxMixer(RunningMean(HIDDEN)), "It moves with every call.", ("running",)),
    ("first number", lambda: NnxMixer(FirstResult(LOGITS)), "One logit is the first call's.", ("kept",)),
    ("bias that drifts", Drifting, "It grows with every call.", ("bias",)),
    ("GELU that is swapped", Swapping, "From the second call on it is with erf.", ("act",)),
    ("a key for each call", lambda: NnxMixer(Noise(LOGITS)), "Noise of 1e-6.", ()),
)

CASES = (
    *(Case(f"nnx memory: {name}", make, DIFFERENT, why, words=words) for name, make, why, words in _REMEMBERING),
    Case(
        "nnx buffer: gate of ones",
        lambda: NnxMixer(Met(STREAM, nnx.Variable(jnp.ones(CONFIG.hidden_dim)), jnp.multiply, "gate")),
        NEUTRAL,
        "A checkpoint may hold any value of it.",
        words=("gate",),
    ),
    Case(
        "nnx buffer: temperature",
        lambda: NnxMixer(Met(LOGITS, nnx.BatchStat(jnp.ones(())), jnp.divide, "temperature")),
        FOLDABLE,
        "A checkpoint may hold any value of it.",
        words=("temperature",),
    ),
    Case(
        "nnx buffer: fresh batch norm",
        lambda: NnxMixer(Layer(STREAM, batch_norm(use_running_average=True))),
        NEUTRAL,
        "Its running statistics move.",
        words=("BatchNorm", "BatchStat", "layer"),
    ),
    Case(
        "nnx parameter: gate of ones",
        lambda: NnxMixer(Met(STREAM, nnx.Param(jnp.ones(CONFIG.hidden_dim)), jnp.multiply, "gate")),
        NOT_OFFICIAL,
        "Training moves it.",
    ),
    Case(
        "nnx: one eps of 1e-5",
        LooseEps,
        (*DIFFERENT, "equivalent_under"),
        "By 9e-6.",
        causes=("layer_norm_eps", "unknown"),
    ),
    Case(
        "nnx: one layer for two",
        Tied,
        ("equivalent_under",),
        "Their weights are equal.",
        causes=("shared_parameters", "tied_blocks"),
    ),
    Case(
        "nnx: erf beyond 4",
        lambda: NnxMixer(act=lambda x: jnp.where(x > 4, jax.nn.gelu(x, approximate=False), jax.nn.gelu(x))),
        NOT_OFFICIAL,
        "By 1e-4 for large numbers.",
    ),
    Case(
        "nnx: zero below -4",
        lambda: NnxMixer(act=lambda x: jnp.where(x < -4, 0.0, jax.nn.gelu(x))),
        NOT_OFFICIAL,
        "By 1e-4 for large numbers.",
    ),
    Case(
        "nnx: leak and erf",
        lambda: NnxMixer(
            at(STREAM, lambda z: z + 1e-6 * (z - z[:1])), functools.partial(jax.nn.gelu, approximate=False)
        ),
        DIFFERENT,
        "The erf GELU does not explain the leak.",
    ),
)
