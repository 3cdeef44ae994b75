"""Gradients through what `torch.jit.script` compiled."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor, nn

from mixer_equiv.equivalence.record.torch import gradients


def plus(bias: Tensor, x: Tensor) -> Tensor:
    return bias + x


class Scripted(nn.Module):
    """A scripted layer, and a scripted function of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.plus, self.layer = torch.jit.script(plus), torch.jit.script(nn.Linear(3, 4))
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.plus(self.bias, self.layer(x)).square()


def of_drawn(module: nn.Module, x: Tensor) -> dict[str, np.ndarray]:
    drawn = {name: torch.full(p.shape, 2.0, dtype=torch.float64) for name, p in module.named_parameters()}
    cotangent = np.ones((len(x), 4))
    return gradients(module, x, lambda name, _: drawn[name].numpy(), dict(module.named_parameters()), "", cotangent)


def test_gradients_of_scripts_are_those_of_the_drawn_parameters() -> None:
    module, x = Scripted(), torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    made = of_drawn(module, x)
    slope = 2 * (2 * x.sum(1) + 4)[:, None].expand(-1, 4)
    np.testing.assert_allclose(made["bias"], slope.sum(0))
    np.testing.assert_allclose(made["layer.bias"], slope.sum(0))
    np.testing.assert_allclose(made["layer.weight"], slope.T @ x)


def test_scripts_are_left_as_they_were() -> None:
    module, calls = Scripted(), (torch._C.ScriptFunction.__call__, torch._C.ScriptMethod.__call__)
    before = dict(module.named_parameters())
    of_drawn(module, torch.ones(2, 3))
    after = dict(module.named_parameters())
    assert all(after[name] is held and held.dtype is torch.float32 for name, held in before.items())
    assert calls == (torch._C.ScriptFunction.__call__, torch._C.ScriptMethod.__call__)
