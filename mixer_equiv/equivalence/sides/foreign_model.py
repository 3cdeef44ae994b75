"""`ForeignModel`: somebody else's model, as functions that run it on weights and images of our choice.

`adapters.py` makes them of models of torch, Flax linen and nnx; `mixer_search.py` looks for a Mixer in one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.record.calls import PLAIN, Calls, Way
from mixer_equiv.equivalence.record.derivatives import Derivatives
from mixer_equiv.equivalence.record.trace import Draw, Trace
from mixer_equiv.errors import MixerEquivError


class Record(Protocol):
    def __call__(self, images: np.ndarray, draw: Draw, dtype: Any, every: bool) -> Trace:
        """A run on images (batch, height, width, channels), keeping `every` value or the outputs alone."""


class Differentiate(Protocol):
    def __call__(self, images: np.ndarray, draw: Draw, output: str, cotangent: np.ndarray, dtype: Any) -> Derivatives:
        """Gradients, by parameter, of the sum of the result at `output` times a cotangent of its shape."""


class CallInTurn(Protocol):
    def __call__(
        self,
        batches: Sequence[np.ndarray],
        draw: Draw,
        dtype: Any,
        *,
        training: bool,
        seed: int,
        skipped: int,
        way: Way,
    ) -> Calls:
        """Calls in a row, computed in `dtype`, in eval or train mode, each with random generators so seeded.

        Before the last one, what counts calls is moved on by those `skipped`. They are made in some `way`.
        """


@dataclasses.dataclass(eq=False)
class ForeignModel:
    """Somebody else's model, and how it is run with its parameters drawn by name and shape.

    `own` are its own parameters by name, and `put` gives it others. `notices` are what a user should know of how it
    is called; `has_modes` tells whether it can be put into train mode. `computed` are those of its parameters that it
    computes from others, and therefore holds but for rounding. `constants` are other tensors of it by name, of which
    its checkpoints hold those `saved`; `drawing` gives the same model in which some of them are parameters.
    `labels_constants` tells whether its traces know where constants meet the images. `ways` are the names of ways to
    call it that change nothing of a function, and `rewrites` tells whether parameters can be written into.
    `as_nhwc` gives the same model called on images (batch, height, width, channels); None where it is so already.
    """

    name: str
    framework: str
    record: Record
    own: Mapping[str, Any]
    put: Callable[[Mapping[str, np.ndarray]], None]
    differentiate: Differentiate
    call_in_turn: CallInTurn
    notices: tuple[Notice, ...] = ()
    has_modes: bool = True
    computed: tuple[str, ...] = ()
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    saved: frozenset[str] = frozenset()
    drawing: Callable[[Collection[str]], ForeignModel] | None = None
    labels_constants: bool = True
    ways: tuple[str, ...] = ()
    rewrites: bool = False
    as_nhwc: Callable[[], ForeignModel] | None = None

    def trace(self, images: np.ndarray, draw: Draw, dtype: Any = np.float64, *, every: bool = True) -> Trace:
        """Record a run. Raises `MixerEquivError` where the model raises or returns no array."""
        with np.errstate(all="ignore"):
            trace = self.record(images, draw, dtype, every)
        if not trace.outputs:
            raise MixerEquivError(f"{self.name} returned no array; a Mixer gives logits (batch, classes)")
        return trace

    def drawn(self, names: Collection[str]) -> ForeignModel:
        """The same model, in which these constant tensors are parameters."""
        return self if self.drawing is None else self.drawing(names)

    def calls(
        self,
        batches: Sequence[np.ndarray],
        draw: Draw,
        dtype: Any = np.float64,
        *,
        training: bool = False,
        seed: int = 0,
        skipped: int = 0,
        way: Way = PLAIN,
    ) -> Calls:
        """Call the model on each batch in turn; nothing that a call leaves is taken back before the last."""
        with np.errstate(all="ignore"):
            return self.call_in_turn(batches, draw, dtype, training=training, seed=seed, skipped=skipped, way=way)


def part_of(parameters: Mapping[str, Any], name: str) -> Any:
    """A parameter, or the part of one that a name such as "kernels[3]" means."""
    whole, *places = re.split(r"\[(\d+)\]", name)
    part = parameters[whole]
    for place in places:
        part = part[int(place)] if place else part
    return part


def usual_images(image: tuple[int, int, int], seed: int, count: int) -> np.ndarray:
    """Standard normal images (count, height, width, channels) for a model that takes (channels, height, width)."""
    channels, height, width = image
    return np.random.default_rng([seed, 2]).standard_normal((count, height, width, channels))


# Names of statistics that are never negative.
_VARIANCES = ("running_var", "/var")


def generic(seed: int) -> Draw:
    """Random values that no two parameters have in common, of sizes that keep activations near 1.

    They depend on the seed and on each parameter's name and shape alone.
    """

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        drawn = values(name, shape)
        return np.abs(drawn) if name.endswith(_VARIANCES) else drawn

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([seed, *name.encode()])
        if len([size for size in shape if size > 1]) < 2:
            # With more axes it may be a kernel of one column, of which a GELU must not see large sums alone.
            size = 1.0 if len(shape) < 2 else float(np.sqrt(np.prod(shape)))
            return rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape) / size
        fan = max(shape[0], int(np.prod(shape[1:])))
        return rng.standard_normal(shape) / np.sqrt(fan)

    return draw
