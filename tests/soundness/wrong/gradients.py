"""Mixers whose outputs are official and whose gradients are not, and hooks and overrides that change outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.soundness.cases import DIFFERENT, NOT_FOLLOWED, Case
from tests.soundness.plain_torch import ACT, HIDDEN, LOGITS, NORM, STREAM, Block, Mixer, after, gelu, instead


class LinearGelu(torch.autograd.Function):
    """tanh GELU with the derivative of a ReLU."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return gelu(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return gradient * (x > 0)


class RoundedGelu(torch.autograd.Function):
    """tanh GELU with a rounded constant, and the derivative of a ReLU; each changes another thing."""

    @staticmethod
    def forward(context: Any, x: Tensor, root: float) -> Tensor:
        context.save_for_backward(x)
        return 0.5 * x * (1 + torch.tanh(root * (x + 0.044715 * x**3)))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        (x,) = context.saved_tensors
        return gradient * (x > 0), None


def rounded(root: float) -> Callable[[], nn.Module]:
    return lambda: instead(ACT, lambda x: RoundedGelu.apply(x, root))


class Reversed(torch.autograd.Function):
    """The identity, whose gradient has the other sign."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Detached(Block):
    """The channel branch reads a stream that passes no gradient on."""

    def mix_channels(self, x: Tensor) -> Tensor:
        return x + self.channels(self.norm2(x.detach()))


class Frozen(Block):
    """The token branch is run without gradients."""

    def mix_tokens(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            mixed = self.tokens(self.norm1(x).mT).mT
        return x + mixed


def louder_going_back(x: Tensor) -> Tensor:
    if x.requires_grad:
        x.register_hook(lambda gradient: 1.01 * gradient)
    return x


def clipped_going_back(x: Tensor) -> Tensor:
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
    return x


def hooked_by(hook: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The identity, with a hook on what passes."""

    def pass_on(x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(hook)
        return x

    return pass_on


def with_norm_at_most(limit: float) -> Callable[[Tensor], Tensor]:
    return lambda g: g * (limit / g.norm()).clamp(max=1)


class Clipped(torch.autograd.Function):
    """The identity, with a gradient within 1000."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient.clamp(-1e3, 1e3)


def only_with_gradients(y: Tensor) -> Tensor:
    return y * 1.001 if torch.is_grad_enabled() else y


def only_without_gradients(y: Tensor) -> Tensor:
    return y if torch.is_grad_enabled() else y * 1.001


def hooked(path: str, register: str, hook: Callable[..., Any]) -> nn.Module:
    model = Mixer()
    getattr(model.get_submodule(path), register)(hook)
    return model


def parameter_hooked(path: str, hook: Callable[[Tensor], Any], register: str = "register_hook") -> nn.Module:
    model = Mixer()
    getattr(model.get_parameter(path), register)(hook)
    return model


def shrink(parameter: Tensor) -> None:
    parameter.grad.mul_(0.5)


class Noticing(nn.Module):
    """A parametrization that scales from the second time on that the weight is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.reads += 1
        return weight * (1 if self.reads < 4 else 1.001)


def parametrized(path: str, parametrization: nn.Module) -> nn.Module:
    model = Mixer()
    parametrize.register_parametrization(model.get_submodule(path), "weight", parametrization)
    return model


class Louder(torch.Tensor):
    """A weight with which `F.linear` gives a thousandth more."""

    @classmethod
    def __torch_function__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(function, kinds, args, kwargs or {})
        return result * 1.001 if function is F.linear else result


def with_subclass() -> nn.Module:
    model = Mixer()
    model.head.weight = nn.Parameter(model.head.weight.detach().as_subclass(Louder))
    return model


class CallOverridden(Mixer):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs) * 1.001


def with_patched_forward() -> nn.Module:
    """One LayerNorm has a `forward` of its own, with an eps of its own."""
    model = Mixer()
    norm = model.blocks[1].norm2
    norm.forward = lambda x: F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, 1e-4)
    return model


class Property(Block):
    """The MLP is a property, which wraps it anew each time with a thousandth more."""

    @property
    def mlp(self) -> Callable[[Tensor], Tensor]:
        return lambda x: 1.001 * self.channels(x) + 0.001

    def mix_channels(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm2(x)).cos()


# Name, what makes the model, why it is wrong.
_GRADIENTS: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("a ReLU's for a GELU", lambda: instead(ACT, LinearGelu.apply), "A backward of its own is another derivative."),
    ("a ReLU's for a GELU of 0.79788456", rounded(0.79788456), "A rounded constant does not explain it."),
    ("a ReLU's for a GELU of 0.7978845608", rounded(0.7978845608), "A rounded constant does not explain it."),
    ("the other sign", lambda: after(STREAM, Reversed.apply), "A backward of its own is another derivative."),
    ("a detached branch", lambda: Mixer(block=Detached), "The branch passes no gradient to the stream."),
    ("a frozen branch", lambda: Mixer(block=Frozen), "The branch's weights get none."),
    ("a tensor's hook", lambda: after(STREAM, louder_going_back), "Gradients grow by a hundredth."),
    ("a tensor's hook that clips", lambda: after(HIDDEN, clipped_going_back), "Gradients are clipped."),
    (
        "a module's backward hook",
        lambda: hooked("blocks.1.channels.fc2", "register_full_backward_hook", lambda m, i, o: (2 * i[0],)),
        "Gradients are doubled.",
    ),
    (
        "through Python's numbers",
        lambda: after("blocks.1.channels.fc2", lambda x: torch.tensor(x.tolist(), dtype=x.dtype)),
        "Gradients end there.",
    ),
    ("straight through", lambda: after(HIDDEN, lambda x: x.detach() + 0.9 * (x - x.detach())), "A tenth is lost."),
)
# The gradients of usual losses are official.
_NONLINEAR: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("clipped at 1000", lambda: after(STREAM, hooked_by(lambda g: g.clamp(-1e3, 1e3))), "Large ones are clipped."),
    ("of norm at most 1000", lambda: after(HIDDEN, hooked_by(with_norm_at_most(1e3))), "Large ones are clipped."),
    ("squashed", lambda: after(NORM, hooked_by(lambda g: torch.tanh(g / 1e4) * 1e4)), "They are bent."),
    ("clipped by a backward", lambda: after(STREAM, Clipped.apply), "Large ones are clipped."),
    (
        "clipped by a module's hook",
        lambda: hooked("blocks.1.channels.fc2", "register_full_backward_hook", lambda m, i, o: (i[0].clamp(-99, 99),)),
        "Large ones are clipped.",
    ),
    ("clipped on a kernel", lambda: parameter_hooked("head.weight", lambda g: g.clamp(-1e3, 1e3)), "As above."),
)
_PARAMETERS: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("a hook on a kernel", lambda: parameter_hooked("head.weight", lambda g: 2 * g), "Its gradient is doubled."),
    ("a hook on a bias", lambda: parameter_hooked("stem.bias", torch.zeros_like), "Its gradient is zero."),
    (
        "a hook behind accumulation",
        lambda: parameter_hooked("norm.weight", shrink, "register_post_accumulate_grad_hook"),
        "Its gradient is halved.",
    ),
)
_OUTPUTS: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("forward hook", lambda: hooked(LOGITS, "register_forward_hook", lambda m, i, y: y * 1.001), "Logits are scaled."),
    (
        "forward hook on a norm",
        lambda: hooked(NORM, "register_forward_hook", lambda m, i, y: y + 1e-6 * y**2),
        "It bends.",
    ),
    (
        "forward hook in place",
        lambda: hooked("blocks.1.channels.fc2", "register_forward_hook", lambda m, i, y: y.mul_(1.001)),
        "It scales, and returns the same tensor.",
    ),
    ("pre hook", lambda: hooked("blocks.2", "register_forward_pre_hook", lambda m, i: (i[0] * 1.01,)), "It scales."),
    (
        "pre hook on images",
        lambda: hooked("stem", "register_forward_pre_hook", lambda m, i: (i[0].relu(),)),
        "Negative pixels are zero.",
    ),
    ("with gradients only", lambda: after(LOGITS, only_with_gradients), "It is scaled where gradients are taken."),
    ("without gradients only", lambda: after(STREAM, only_without_gradients), "It is scaled under no_grad."),
    ("parametrization that counts", lambda: parametrized("head", Noticing()), "From the fourth read it scales."),
    ("__call__ overridden", CallOverridden, "Logits are scaled behind `forward`."),
    ("forward of one instance", with_patched_forward, "One LayerNorm has an eps of 1e-4."),
    ("a property", lambda: Mixer(block=Property), "Branches are bent by a cosine."),
)

CASES = (
    *(Case(f"gradient: {name}", make, DIFFERENT, why, words=("radient",)) for name, make, why in _GRADIENTS),
    *(Case(f"gradient: {name}", make, DIFFERENT, why, words=("clipped",)) for name, make, why in _NONLINEAR),
    *(
        Case(f"gradient: {name}", make, (*DIFFERENT, "equivalent"), why, words=("hook", "DIFFERENT"))
        for name, make, why in _PARAMETERS
    ),
    *(Case(f"override: {name}", make, (*DIFFERENT, "equivalent_under"), why) for name, make, why in _OUTPUTS),
    Case("override: __torch_function__", with_subclass, NOT_FOLLOWED, "A weight of a subclass scales logits."),
)
