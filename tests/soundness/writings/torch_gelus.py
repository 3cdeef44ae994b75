"""The tanh GELU in other writings. All are right for numbers of any size, in float32 as well."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.writings.torch_plain import Gelu

ROOT, CUBIC = math.sqrt(2 / math.pi), 0.044715


def bend(x: Tensor) -> Tensor:
    """The argument of the tanh."""
    return ROOT * (x + CUBIC * x**3)


def by_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(bend(x)))


def by_twelve_digits(x: Tensor) -> Tensor:
    """A rounded constant, which neither outputs nor gradients show."""
    return 0.5 * x * (1 + torch.tanh(0.797884560803 * (x + CUBIC * x**3)))


def by_horner(x: Tensor) -> Tensor:
    return x.div(2).mul(torch.tanh(x.mul(x).mul(ROOT * CUBIC).add(ROOT).mul(x)).add(1))


def by_sigmoid(x: Tensor) -> Tensor:
    return x * torch.sigmoid(2 * bend(x))


def by_exp(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-2 * bend(x)))


def by_exp_of_tanh(x: Tensor) -> Tensor:
    tanh = 1 - 2 / (torch.exp(2 * bend(x)) + 1)
    return x * (0.5 + 0.5 * tanh)


def by_softmax(x: Tensor) -> Tensor:
    """A soft choice between the number and 0."""
    return x * torch.stack([2 * bend(x), torch.zeros_like(x)], -1).softmax(-1)[..., 0]


def by_softplus(x: Tensor) -> Tensor:
    return x * torch.exp(-F.softplus(-2 * bend(x)))


def by_lerp(x: Tensor) -> Tensor:
    return torch.lerp(torch.zeros_like(x), x, torch.special.expit(2 * bend(x)))


def by_sides(x: Tensor) -> Tensor:
    """Each sign by the exponential that cannot overflow."""
    small = torch.exp(-2 * bend(x).abs())
    return torch.where(x >= 0, x / (1 + small), x * small / (1 + small))


def in_place(x: Tensor) -> Tensor:
    u = x.pow(3).mul_(CUBIC).add_(x).mul_(ROOT).tanh_().add_(1).mul_(0.5)
    return u.mul_(x)


def by_addcmul(x: Tensor) -> Tensor:
    half = 0.5 * x
    return torch.addcmul(half, half, torch.tanh(ROOT * torch.addcmul(x, x.square(), x, value=CUBIC)))


def by_glu(x: Tensor) -> Tensor:
    return F.glu(torch.cat([x, 2 * bend(x)], -1), -1)


def hidden_unit_by_unit(x: Tensor) -> Tensor:
    return torch.stack([by_tanh(unit) for unit in x.unbind(-1)], -1)


class OwnFunction(torch.autograd.Function):
    """With a derivative of its own, which is right."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return by_tanh(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(2 * bend(x))
        return gradients[0] * (gate + x * gate * (1 - gate) * 2 * ROOT * (1 + 3 * CUBIC * x * x))


class Activation(Tensor):
    """A class of tensors that adds nothing."""


def in_another_class(x: Tensor) -> Tensor:
    return F.gelu(x.as_subclass(Activation), approximate="tanh").as_subclass(Tensor)


GELUS: dict[str, Gelu] = {
    "tanh": by_tanh,
    "tanh of twelve digits": by_twelve_digits,
    "tanh, Horner": by_horner,
    "sigmoid": by_sigmoid,
    "exp": by_exp,
    "tanh by exp": by_exp_of_tanh,
    "softmax of two": by_softmax,
    "softplus": by_softplus,
    "lerp and expit": by_lerp,
    "by sign": by_sides,
    "in place": in_place,
    "addcmul": by_addcmul,
    "glu": by_glu,
    "unit by unit": hidden_unit_by_unit,
    "autograd.Function": OwnFunction.apply,
    "in another class of tensors": in_another_class,
    "nn.GELU": nn.GELU("tanh"),
}
