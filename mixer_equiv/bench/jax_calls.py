"""Calls of Mixers in JAX: jitted inference, or a jitted training step of SGD. Start reading at `JaxCall`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer_equiv.arrays.interop import flatten, unflatten
from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import Entry
from mixer_equiv.bench.environment import extra_memory
from mixer_equiv.errors import ConfigError

Arrays = Mapping[str, np.ndarray]


class JaxCall:
    """A `Call` of a jitted function."""

    def __init__(self, entry: Entry, cell: Cell, params: Arrays, images: np.ndarray, cotangent: np.ndarray):
        self.cell, self.device = cell, find_device(cell.device)
        apply = entry.contestant.make(cell.config, entry.formulation)
        self.load(params)
        with precision(cell):
            self.images, self.cotangent = self._put(images), self._put(cotangent)
            self.zero_rate = self._put(np.zeros(()))
        self.infer = jax.jit(apply)
        self.step = jax.jit(_sgd_step(apply), donate_argnums=0)

    def load(self, params: Arrays) -> None:
        with precision(self.cell):
            self.params = self._put(unflatten(dict(params)))

    def _put(self, tree: Any) -> Any:
        return jax.device_put(jax.tree.map(lambda array: jnp.asarray(array, self.cell.storage), tree), self.device)

    def __call__(self) -> None:
        self._run(self.zero_rate)

    def _run(self, rate: Any) -> Any:
        with precision(self.cell):
            if self.cell.mode == "inference":
                return _finished(self.infer(self.params, self.images))
            self.params = _finished(self.step(self.params, self.images, self.cotangent, rate))
            return None

    def logits(self) -> np.ndarray:
        return np.asarray(self._run(self.zero_rate))

    def updates(self, rate: float) -> dict[str, np.ndarray]:
        before = jax.tree.map(np.array, self.params)
        with precision(self.cell):
            given = self._put(np.asarray(rate))
        self._run(given)
        after = dict(flatten(jax.tree.map(np.array, self.params)))
        with precision(self.cell):
            self.params = self._put(before)
        return {n: (old.astype(np.float64) - after[n].astype(np.float64)) / rate for n, old in flatten(before)}

    def kernels(self) -> None:
        """XLA chooses the kernels, and does not tell them."""

    def memory(self) -> int | None:
        """Measure the memory on a CPU; on a GPU, take it from XLA's plan."""
        return extra_memory(self) if self.cell.device == "cpu" else self.planned_memory()

    def planned_memory(self) -> int | None:
        """Read the bytes that XLA reserves for intermediate values, and for results that are not made in place.

        JAX's own peak on a GPU never falls, so it says nothing about a single call. None where XLA does not tell.
        """
        arguments = (self.params, self.images, self.cotangent, self.zero_rate)
        with precision(self.cell):
            inference = self.cell.mode == "inference"
            lowered = self.infer.lower(*arguments[:2]) if inference else self.step.lower(*arguments)
            plan = lowered.compile().memory_analysis()
        return plan and int(plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes)


_finished: Callable[[Any], Any] = jax.block_until_ready


def _sgd_step(apply: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def scalar(params: Any, images: Any, cotangent: Any) -> Any:
        return (apply(params, images) * cotangent).sum()

    def step(params: Any, images: Any, cotangent: Any, rate: Any) -> Any:
        return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(scalar)(params, images, cotangent))

    return step


def matrix_product(cell: Cell, size: int) -> Callable[[], None]:
    """Make the product of two square matrices in the cell's dtype, on its device."""
    numbers = np.random.default_rng(0).standard_normal((2, size, size))
    with precision(cell):
        a, b = (jax.device_put(jnp.asarray(array, cell.storage), find_device(cell.device)) for array in numbers)
    product = jax.jit(jnp.matmul)

    def call() -> None:
        with precision(cell):
            product(a, b).block_until_ready()

    return call


def find_device(name: str) -> Any:
    """Find JAX's device of this name. Raises `ConfigError` if there is none."""
    kind = {"cuda": "gpu"}.get(name, name)
    try:
        return jax.devices(kind)[0]
    except RuntimeError as error:
        found = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise ConfigError(f"device is {name!r}, and JAX {jax.__version__} has {found} alone; use cpu") from error


@contextlib.contextmanager
def precision(cell: Cell | None = None) -> Iterator[None]:
    """Switch x64 and TF32 off, as for torch, unless the cell is in float64 or in tf32."""
    x64, tf32 = (cell is not None and cell.dtype == dtype for dtype in ("float64", "tf32"))
    with jax.enable_x64(x64), jax.default_matmul_precision("tensorfloat32" if tf32 else "highest"):
        yield
