"""A JAX program of a cell as something to call: jitted inference, or a jitted training step of SGD."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer_equiv.arrays.interop import flatten, unflatten
from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import Contestant
from mixer_equiv.bench.environment import extra_memory
from mixer_equiv.errors import ConfigError

Arrays = Mapping[str, np.ndarray]


class JaxCall:
    """Calling it computes once, and returns when that is done."""

    def __init__(self, contestant: Contestant, cell: Cell, params: Arrays, images: np.ndarray, cotangent: np.ndarray):
        self.cell, self.device = cell, device_of(cell.device)
        apply = contestant.program.make(cell.config, contestant.formulation)
        self.load(params)
        with precision(cell):
            self.images, self.cotangent = self._put(images), self._put(cotangent)
            self.still = self._put(np.zeros(()))
        self.infer = jax.jit(apply)
        self.step = jax.jit(_step_of(apply), donate_argnums=0)

    def load(self, params: Arrays) -> None:
        """Other weights, by canonical names, for the same program."""
        with precision(self.cell):
            self.params = self._put(unflatten(dict(params)))

    def _put(self, tree: Any) -> Any:
        return jax.device_put(jax.tree.map(lambda array: jnp.asarray(array, self.cell.storage), tree), self.device)

    def __call__(self) -> None:
        self._once(self.still)

    def _once(self, rate: Any) -> Any:
        with precision(self.cell):
            if self.cell.mode == "inference":
                return _finished(self.infer(self.params, self.images))
            self.params = _finished(self.step(self.params, self.images, self.cotangent, rate))
            return None

    def logits(self) -> np.ndarray:
        """(batch, classes), computed as when it is timed."""
        return np.asarray(self._once(self.still))

    def updates(self, rate: float) -> dict[str, np.ndarray]:
        """What a step of this rate takes from each parameter, over the rate, by canonical names; they come back."""
        before = jax.tree.map(np.array, self.params)
        with precision(self.cell):
            given = self._put(np.asarray(rate))
        self._once(given)
        after = dict(flatten(jax.tree.map(np.array, self.params)))
        with precision(self.cell):
            self.params = self._put(before)
        return {n: (old.astype(np.float64) - after[n].astype(np.float64)) / rate for n, old in flatten(before)}

    def kernels(self) -> None:
        """XLA chooses them, and does not say."""

    def memory(self) -> int | None:
        """Bytes that a call takes at its height, beyond weights and inputs: as planned by XLA, on a GPU."""
        return extra_memory(self) if self.cell.device == "cpu" else self.planned()

    def planned(self) -> int | None:
        """Bytes that XLA sets aside for what is computed on the way, and for results that are not made in place.

        The peak that JAX counts on a GPU never falls, so that it says nothing of a single call.
        None where XLA does not say.
        """
        arguments = (self.params, self.images, self.cotangent, self.still)
        with precision(self.cell):
            inference = self.cell.mode == "inference"
            lowered = self.infer.lower(*arguments[:2]) if inference else self.step.lower(*arguments)
            plan = lowered.compile().memory_analysis()
        return plan and int(plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes)


_finished: Callable[[Any], Any] = jax.block_until_ready


def _step_of(apply: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def scalar(params: Any, images: Any, cotangent: Any) -> Any:
        return (apply(params, images) * cotangent).sum()

    def step(params: Any, images: Any, cotangent: Any, rate: Any) -> Any:
        return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(scalar)(params, images, cotangent))

    return step


def gemm(cell: Cell, size: int) -> Callable[[], None]:
    """A product of two square matrices in the cell's dtype, on its device."""
    numbers = np.random.default_rng(0).standard_normal((2, size, size))
    with precision(cell):
        a, b = (jax.device_put(jnp.asarray(array, cell.storage), device_of(cell.device)) for array in numbers)
    product = jax.jit(jnp.matmul)

    def call() -> None:
        with precision(cell):
            product(a, b).block_until_ready()

    return call


def device_of(name: str) -> Any:
    """JAX's device of this name. Raises `ConfigError` for one that it does not have."""
    kind = {"cuda": "gpu"}.get(name, name)
    try:
        return jax.devices(kind)[0]
    except RuntimeError as error:
        found = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise ConfigError(f"device is {name!r}, and JAX {jax.__version__} has {found} alone; use cpu") from error


@contextlib.contextmanager
def precision(cell: Cell | None = None) -> Iterator[None]:
    """x64 and TF32 off, unless the cell is in float64 or in tf32: what torch is run with too."""
    x64, tf32 = (cell is not None and cell.dtype == dtype for dtype in ("float64", "tf32"))
    with jax.enable_x64(x64), jax.default_matmul_precision("tensorfloat32" if tf32 else "highest"):
        yield
