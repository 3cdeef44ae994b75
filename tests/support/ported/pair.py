"""Pairs of models that are the same function, written in two ways, and what each parameter of one is in the other.

Nothing here knows a model. Start at `Family.pair`, which makes a `Ported` of two writings of one function; its `Side`s
come from `sides.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import einops
import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Input:
    """An input by shape and dtype; its numbers are drawn evenly from `low` to `high`, for whole numbers without `high`.

    Images have the axes (batch, channels, height, width); see `Side.channels_last`.
    """

    shape: tuple[int, ...]
    dtype: str = "float64"
    low: float = -2.0
    high: float = 2.0

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        if np.dtype(self.dtype).kind == "i":
            return rng.integers(int(self.low), int(self.high), self.shape, dtype=self.dtype)
        return rng.uniform(self.low, self.high, self.shape).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Row:
    """Arrays of one writing that hold the numbers of arrays of another.

    Several arrays of a writing are stacked along a new first axis. `axes` is the einops pattern from the arrays of `a`
    to those of `b`, and `sizes` are lengths of its axes.
    """

    a: tuple[str, ...]
    b: tuple[str, ...]
    axes: str
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def flipped(self) -> Row:
        before, after = self.axes.split("->")
        return Row(self.b, self.a, f"{after} -> {before}", self.sizes)

    def relabel(self, arrays: Arrays) -> dict[str, np.ndarray]:
        given = [arrays[name] for name in self.a]
        made = einops.rearrange(given if len(given) > 1 else given[0], self.axes, **self.sizes)
        return dict(zip(self.b, made if len(self.b) > 1 else [made], strict=True))


@dataclasses.dataclass(frozen=True)
class Side:
    """One model, as `record_graph` of its framework takes it.

    - `model` is a torch module, a linen module, or a function that makes an nnx module.
    - `call` is the function of parameters and inputs by name, for JAX alone.
    - `shapes` are those of all parameters by name, running statistics among them.
    - `outputs` are the paths of the tensors that are compared, in the same order on both sides.
    - `run` gives these outputs in float64.
    """

    model: Any
    shapes: Mapping[str, tuple[int, ...]]
    run: Callable[[Arrays, Arrays], list[np.ndarray]]
    outputs: tuple[str, ...] = ("",)
    call: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None = None
    channels_last: bool = False

    def arguments(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The inputs of a pair as this side takes them: images in its order of axes."""
        return in_channels_last(inputs) if self.channels_last else dict(inputs)

    def draw(self, seed: int) -> dict[str, np.ndarray]:
        return {name: draw_parameter(seed, name, shape) for name, shape in self.shapes.items()}


@dataclasses.dataclass(frozen=True)
class Ported:
    """Two sides that are the same function of `inputs`, once A's parameters are brought to B's names and axes.

    `mapping` makes B's parameters of A's, and `inverse` A's of B's. Inputs named by a number are positional.
    """

    name: str
    a: Side
    b: Side
    inputs: Mapping[str, Input]
    mapping: Callable[[Arrays], dict[str, np.ndarray]]
    inverse: Callable[[Arrays], dict[str, np.ndarray]]

    def draw_inputs(self, seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {name: given.draw(rng) for name, given in self.inputs.items()}


@dataclasses.dataclass(frozen=True)
class Writing:
    """A way to write a function: how a side of some sizes is made, and how its arrays come from the reference's.

    The reference of a family has no rows.
    """

    make: Callable[[Any], Side]
    rows: Callable[[Any], Iterable[Row]] | None = None

    def from_reference(self, sizes: Any, arrays: Arrays) -> dict[str, np.ndarray]:
        return _relabel(self.rows(sizes), arrays) if self.rows else dict(arrays)

    def to_reference(self, sizes: Any, arrays: Arrays) -> dict[str, np.ndarray]:
        return _relabel((row.flipped() for row in self.rows(sizes)), arrays) if self.rows else dict(arrays)


@dataclasses.dataclass(frozen=True)
class Family:
    """Writings of one function by name, its inputs for some sizes, small sizes, and those of a published model."""

    name: str
    writings: Mapping[str, Writing]
    inputs: Callable[[Any], Mapping[str, Input]]
    small: Any
    real: Any

    def pair(self, a: str, b: str, sizes: Any = None) -> Ported:
        """Make the writing `a` and the writing `b` of these sizes, by default the small ones."""
        sizes = sizes or self.small
        one, other = self.writings[a], self.writings[b]
        return Ported(
            f"{self.name}: {a} - {b}",
            one.make(sizes),
            other.make(sizes),
            self.inputs(sizes),
            lambda arrays: other.from_reference(sizes, one.to_reference(sizes, arrays)),
            lambda arrays: one.from_reference(sizes, other.to_reference(sizes, arrays)),
        )


def draw_parameter(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A random parameter, never of zeros or ones; running variances are positive."""
    drawn = np.random.default_rng([seed, *name.encode()]).standard_normal(shape) / 4
    return np.abs(drawn) + 0.1 if name.endswith(("running_var", "/var")) else drawn


def in_channels_last(inputs: Arrays) -> dict[str, np.ndarray]:
    """The inputs with images as (batch, height, width, channels)."""
    return {name: np.moveaxis(array, 1, -1) if array.ndim == 4 else array for name, array in inputs.items()}


def _relabel(rows: Iterable[Row], arrays: Arrays) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {}
    for row in rows:
        made |= row.relabel(arrays)
    return made
