"""Mixers with one layer's outputs or inputs in several layers, and one whose stream differs by what no output shows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.soundness.writings.torch_plain import Mixer

# Of an official kernel and bias, (in, out) of a Linear: the parts by outputs, or by inputs, and how they are held.
Mlp = Callable[[nn.Linear, nn.Linear], nn.Module]


def part(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer


class Experts(nn.Module):
    """An MLP for some of the hidden units in each, all of which are always chosen; one of them has the bias."""

    def __init__(self, first: nn.Linear, second: nn.Linear, size: int, shared: int) -> None:
        super().__init__()
        ins = zip(first.weight.split(size), first.bias.split(size), strict=True)
        self.first = nn.ModuleList(part(w, b) for w, b in ins)
        outs = second.weight.split(size, 1)
        biases = [second.bias / shared if i < shared else None for i in range(len(outs))]
        self.second = nn.ModuleList(part(w, b) for w, b in zip(outs, biases, strict=True))

    def forward(self, y: Tensor) -> Tensor:
        pairs = zip(self.first, self.second, strict=True)
        return sum(
            (second(nn.functional.gelu(first(y), approximate="tanh")) for first, second in pairs), y.new_zeros(1)
        )


class OneByOne(Experts):
    """Layers first, then activations, then the sum by stacking."""

    def forward(self, y: Tensor) -> Tensor:
        hidden = [nn.functional.gelu(h, approximate="tanh") for h in [first(y) for first in self.first]]
        return torch.stack([second(h) for second, h in zip(self.second, hidden, strict=True)]).sum(0)


class BiasOfItsOwn(Experts):
    """No second layer has a bias, and the sum has."""

    def __init__(self, first: nn.Linear, second: nn.Linear, size: int) -> None:
        super().__init__(first, second, size, 0)
        self.bias = nn.Parameter(second.bias.clone())

    def forward(self, y: Tensor) -> Tensor:
        return super().forward(y) + self.bias


class Concatenated(nn.Module):
    """The first layer in several, whose outputs are put together, and one second layer."""

    def __init__(self, first: nn.Linear, second: nn.Linear, size: int) -> None:
        super().__init__()
        ins = zip(first.weight.split(size), first.bias.split(size), strict=True)
        self.first, self.second = nn.ModuleList(part(w, b) for w, b in ins), part(second.weight, second.bias)

    def forward(self, y: Tensor) -> Tensor:
        hidden = [nn.functional.gelu(first(y), approximate="tanh") for first in self.first]
        return self.second(torch.cat(hidden, -1))


class Several(Mixer):
    """The official function, with the MLP over some axis by `mlp`."""

    def __init__(self, axis: str, mlp: Mlp) -> None:
        super().__init__()
        for block in self.blocks:
            layers = [getattr(block, f"{axis}_{i}") for i in range(2)]
            block.mlp = mlp(*layers)
            delattr(block, f"{axis}_0")
            delattr(block, f"{axis}_1")
            norm = block.norm_0 if axis == "tokens" else block.norm_1
            setattr(block, axis, self._branch(block.mlp, norm, axis))

    @staticmethod
    def _branch(mlp: nn.Module, norm: nn.Module, axis: str) -> Callable[[Tensor], Tensor]:
        return lambda x: mlp(norm(x).mT).mT if axis == "tokens" else mlp(norm(x))


class HeadByGroups(Mixer):
    """A head for each group of classes."""

    def __init__(self) -> None:
        super().__init__()
        halves = zip(self.head.weight.split(2), self.head.bias.split(2), strict=True)
        self.heads = nn.ModuleList(part(w, b) for w, b in halves)
        del self.head

    def classify(self, x: Tensor) -> Tensor:
        y = self.norm(x).mean(1)
        return torch.cat([head(y) for head in self.heads], 1)


class TwoHeads(Mixer):
    """The mean of two heads, as of a distilled model."""

    def __init__(self) -> None:
        super().__init__()
        change = [torch.randn_like(p) for p in self.head.parameters()]
        pairs = [(self.head.weight + sign * change[0], self.head.bias + sign * change[1]) for sign in (1, -1)]
        self.heads = nn.ModuleList(part(w.detach(), b.detach()) for w, b in pairs)
        del self.head

    def classify(self, x: Tensor) -> Tensor:
        y = self.norm(x).mean(1)
        return (self.heads[0](y) + self.heads[1](y)) / 2


class StemByColour(Mixer):
    """A convolution for each colour, whose results are added."""

    def __init__(self) -> None:
        super().__init__()
        weight, bias = self.stem.weight, self.stem.bias
        size = weight.shape[2:]
        self.stems = nn.ModuleList(nn.Conv2d(1, len(weight), size, size, bias=i == 0) for i in range(weight.shape[1]))
        with torch.no_grad():
            for stem, kernel in zip(self.stems, weight.split(1, 1), strict=True):
                stem.weight.copy_(kernel)
            self.stems[0].bias.copy_(bias)
        del self.stem

    def embed(self, images: Tensor) -> Tensor:
        colours = zip(self.stems, images.split(1, 1), strict=True)
        return sum((stem(colour) for stem, colour in colours), images.new_zeros(1)).flatten(2).mT


class Centred(Mixer):
    """The mean over channels is taken away behind each block, which every LayerNorm does anyhow."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
            x = x - x.mean(-1, keepdim=True)
        return self.classify(x)


class Adapter(nn.Module):
    """A layer with an adapter of low rank (LoRA), times a factor; the layer lacks what that adds."""

    def __init__(self, layer: nn.Linear, factor: float) -> None:
        super().__init__()
        outputs, inputs = layer.weight.shape
        self.down, self.up = (nn.Linear(*sizes, bias=False) for sizes in ((inputs, 2), (2, outputs)))
        self.factor = factor
        self.layer = part(layer.weight - factor * (self.up.weight @ self.down.weight).detach(), layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        added = self.up(self.down(x))
        return self.layer(x) + (added if self.factor == 1 else self.factor * added)


class Adapted(Mixer):
    """Adapters on the head, or on the layers of all blocks whose names begin so."""

    def __init__(self, name: str, factor: float = 1) -> None:
        super().__init__()
        for owner in (self, *self.blocks):
            for key, layer in list(owner.named_children()):
                if key.startswith(name):
                    setattr(owner, key, Adapter(layer, factor))


class AdaptedTwice(Mixer):
    """An adapter on a head that has one already."""

    def __init__(self) -> None:
        super().__init__()
        inner = Adapter(self.head, 0.5)
        outer = Adapter(inner.layer, 2)
        inner.layer = outer
        self.head = inner


SEVERAL: dict[str, Callable[[], nn.Module]] = {
    "channels in experts, one bias": lambda: Several("channels", lambda a, b: Experts(a, b, 9, 1)),
    "channels in experts, a bias each": lambda: Several(
        "channels", lambda a, b: Experts(a, b, 9, -(-len(a.bias) // 9))
    ),
    "channels in experts, layers first": lambda: Several("channels", lambda a, b: OneByOne(a, b, 9, 1)),
    "channels in experts, bias of the sum": lambda: Several("channels", lambda a, b: BiasOfItsOwn(a, b, 9)),
    "channels in layers, put together": lambda: Several("channels", lambda a, b: Concatenated(a, b, 9)),
    "tokens in experts, one bias": lambda: Several("tokens", lambda a, b: Experts(a, b, 4, 1)),
    "tokens in experts, bias of the sum": lambda: Several("tokens", lambda a, b: BiasOfItsOwn(a, b, 4)),
    "tokens in layers, put together": lambda: Several("tokens", lambda a, b: Concatenated(a, b, 4)),
    "heads for groups of classes": HeadByGroups,
    "mean of two heads": TwoHeads,
    "stem by colour": StemByColour,
    "head with an adapter": lambda: Adapted("head"),
    "head with an adapter, scaled": lambda: Adapted("head", 0.25),
    "head with two adapters": AdaptedTwice,
    "channels with adapters": lambda: Adapted("channels_"),
    "channels with adapters, scaled": lambda: Adapted("channels_", 4),
    "tokens with adapters": lambda: Adapted("tokens_"),
    "tokens with adapters, scaled": lambda: Adapted("tokens_", 4),
    "centred stream": Centred,
}
