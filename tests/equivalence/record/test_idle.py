"""Operations that no recorded run saw at work, and those of which that says nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv.equivalence.record import jax as of_jax
from mixer_equiv.equivalence.record import torch as of_torch
from mixer_equiv.equivalence.record.idle import idle_operations

INPUT = np.array([[0.5, -1.0, 2.0], [-0.25, 3.0, 1.5]])


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.resize([0.5, -0.75, 1.25], shape)


def idle_in_torch(function: Callable[[Tensor, Tensor], Tensor]) -> list[str]:
    trace = of_torch.record(Applied(function), (torch.from_numpy(INPUT),), draw)
    return [operation.partition(" at ")[0] for operation in idle_operations(trace)]


def idle_in_jax(function: Callable[[Any, Any], Any]) -> list[str]:
    def whole(params: Mapping[str, Any], x: Any, kept: Any) -> Any:
        return function(x, params["w"]), None

    trace = of_jax.record(whole, {"w": (3,)}, INPUT, draw)
    return [operation.partition(" at ")[0] for operation in idle_operations(trace)]


def by_a_written_part(x: Tensor, weight: Tensor) -> Tensor:
    x = x * weight
    x[:, :1].tanh_()
    return x


def negative_or_not(x: Tensor, weight: Tensor) -> Tensor:
    """A relu that is at work in one of its calls."""
    return sum((F.relu(c * part) for c in (1.0, 1e3) for part in (x, -x.abs())), torch.zeros(()))


IN_TORCH: list[tuple[Callable[[Tensor, Tensor], Tensor], list[str]]] = [
    (lambda x, w: x.clamp(-9, 9), ["clamp"]),
    (lambda x, w: (x * w).clamp_(-9, 9), ["clamp_"]),
    (lambda x, w: x - F.relu(x - 9), ["relu"]),
    (lambda x, w: x - F.relu_(x - 9), ["relu_"]),
    (lambda x, w: x / (x.abs().amax(1, True) / 9).clamp(min=1), ["clamp_min"]),
    (lambda x, w: x + torch.maximum(x, x.new_full((), 9.0)), ["maximum"]),
    (lambda x, w: x + F.hardtanh(x, 8, 9), ["hardtanh"]),
    (lambda x, w: x + F.threshold(x, 9.0, 0.0), ["threshold"]),
    (lambda x, w: x + torch.where(x > 9, x, 0.0), ["where"]),
    (lambda x, w: x * torch.where(x > 9, 2.0, 1.0), ["where"]),
    (lambda x, w: x + x.masked_fill(x < 9, 1.0), ["masked_fill"]),
    (lambda x, w: x.masked_fill(w > 9, 1.0), ["masked_fill"]),  # by other weights it is another
    (lambda x, w: F.relu(x), []),
    (lambda x, w: ((x * x).mean(1) - x.mean(1) ** 2).clamp(min=0), []),  # a variance is never negative
    (lambda x, w: ((x * x).mean(1) - x.mean(1) ** 2 + 1).clamp(min=0), ["relu"]),
    (lambda x, w: ((x * x).mean(1) - x.mean(1) ** 2).clamp(min=1e-9), ["clamp_min"]),
    (negative_or_not, []),
    (lambda x, w: F.relu(x[:1, :1] - 9), []),  # one number, of which nothing can be told
    (lambda x, w: F.relu(0 * x - 1) + x, []),  # of one number
    (lambda x, w: x.masked_fill(torch.zeros(3, dtype=torch.bool), 1.0), []),
    (lambda x, w: torch.where(torch.ones(3, dtype=torch.bool), x, 0.0), []),
    (lambda x, w: torch.where(torch.zeros(3, dtype=torch.bool), x, 0.0) + x, []),
    (lambda x, w: (x * w).add_(0).mul_(1).sub_(0).div_(1), []),
    (lambda x, w: F.pad(x, (0, 0)) + F.adaptive_avg_pool1d(x, 1), []),
    (by_a_written_part, []),
    (lambda x, w: x * w.clamp(-9, 9), ["clamp"]),
    (lambda x, w: x * (w * (9 / w.norm()).clamp(max=1)), ["clamp_max"]),
    (lambda x, w: x * torch.where(w.abs() < 1e-6, 0.0, w), ["where"]),
    (lambda x, w: x * (w * (w.abs() > 1e-6)), ["gt"]),
    (lambda x, w: x * (x.norm(dim=1, keepdim=True) < 1e6), ["lt"]),
    (lambda x, w: x * (x > 0), []),
    (lambda x, w: x * F.hardshrink(w, 1e-6), ["hardshrink"]),
    (lambda x, w: x * (w / w.norm().clamp(min=1e-12)) + F.normalize(w, dim=0), []),  # never divided by 0
    (lambda x, w: x * ((w - w.mean()) * torch.rsqrt(torch.clamp(w.var() * 3, min=1e-4))), []),
    (lambda x, w: x * (w + 0) * w.contiguous() * torch.stack([w]).sum(0) * w[None].sum(0, True)[0], []),
]


@pytest.mark.parametrize(("function", "expected"), IN_TORCH)
def test_what_was_not_at_work_in_torch_is_named(
    function: Callable[[Tensor, Tensor], Tensor], expected: list[str]
) -> None:
    assert idle_in_torch(function) == expected


IN_JAX: list[tuple[Callable[[Any, Any], Any], list[str]]] = [
    (lambda x, w: jax.lax.clamp(-9.0, x, 9.0), ["clamp"]),
    (lambda x, w: x + jax.nn.relu(x - 9), ["max"]),
    (lambda x, w: x + jnp.minimum(x, -9), ["min"]),
    (lambda x, w: x * jnp.where(x > 9, 2.0, 1.0), ["select_n"]),
    (lambda x, w: x + jnp.where(x > 9, x, 0.0), ["select_n"]),
    (lambda x, w: jax.nn.relu(x), []),
    (lambda x, w: jnp.where(jnp.ones(x.shape, bool), x, 0.0), []),
    (lambda x, w: x / jnp.sqrt(jnp.maximum(x.var(1, keepdims=True), 0)), []),  # a variance is never negative
    (lambda x, w: jnp.var(x, 1), []),
    (lambda x, w: x * jnp.minimum(w, 9), ["min"]),
    (lambda x, w: x * jnp.where(abs(w) < 1e-6, 0.0, w), ["select_n"]),
    (lambda x, w: x * (w / jnp.maximum(jnp.linalg.norm(w), 1e-12)), []),
]


@pytest.mark.parametrize(("function", "expected"), IN_JAX)
def test_what_was_not_at_work_in_jax_is_named(function: Callable[[Any, Any], Any], expected: list[str]) -> None:
    names = idle_in_jax(function)
    assert [name for name in names if name != "pjit"] == expected
