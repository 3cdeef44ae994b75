"""Official functions that cannot be followed by nature, because what computes is not torch's tensors in Python."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.cases import CONFIG
from tests.soundness.writings.torch_plain import Gelu, Mixer


@contextlib.contextmanager
def without_deprecation() -> Iterator[None]:
    """People still use `torch.jit`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def through_numpy(x: Tensor) -> Tensor:
    array = x.detach().numpy()
    array = 0.5 * array * (1 + np.tanh(np.sqrt(2 / np.pi) * (array + 0.044715 * array**3)))
    return torch.from_numpy(array).to(x.dtype)


def compact_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


def tokens_by_sparse(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    """Kernels are made sparse in the forward pass."""
    w1, w2 = first.weight.to_sparse(), second.weight.to_sparse()
    wide = torch.stack([act(torch.sparse.mm(w1, image) + first.bias[:, None]) for image in y])
    return torch.stack([torch.sparse.mm(w2, image) + second.bias[:, None] for image in wide])


def tokens_by_vmap(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    return torch.vmap(lambda image: second(act(first(image.T))).T)(y)


def channels_by_nested(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    """Images as a nested tensor, as for sequences of several lengths."""
    nested = torch.nested.nested_tensor(list(y.unbind(0)), layout=torch.jagged)
    wide = F.linear(nested, first.weight, first.bias).to_padded_tensor(0.0)
    return second(act(wide))


class Wholly(Mixer):
    """Written for one image and mapped by `vmap`."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.vmap(lambda image: super(Wholly, self).forward(image[None])[0])(images)


class Forked(Mixer):
    """Images one by one in `torch.jit.fork`."""

    def forward(self, images: Tensor) -> Tensor:
        with without_deprecation():
            parts: list[Any] = [torch.jit.fork(super(Forked, self).forward, part) for part in images.split(1)]
            return torch.cat([torch.jit.wait(part) for part in parts])


def with_scripted_gelu() -> nn.Module:
    with without_deprecation():
        return Mixer(gelu=torch.jit.script(compact_gelu))


def traced() -> nn.Module:
    with without_deprecation():
        return torch.jit.trace(Mixer().eval(), torch.zeros(2, CONFIG.in_channels, *CONFIG.image_hw))


def scripted() -> nn.Module:
    """A small Mixer that `torch.jit.script` compiles."""
    with without_deprecation():
        return torch.jit.script(Scriptable())


class Scriptable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        plain = Mixer()
        self.stem, self.norm, self.head = plain.stem, plain.norm, plain.head
        self.blocks = nn.ModuleList(ScriptableBlock(block) for block in plain.blocks)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class ScriptableBlock(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm_0, self.norm_1 = block.norm_0, block.norm_1
        self.tokens_0, self.tokens_1 = block.tokens_0, block.tokens_1
        self.channels_0, self.channels_1 = block.channels_0, block.channels_1
        self.act = nn.GELU("tanh")

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens_1(self.act(self.tokens_0(self.norm_0(x).transpose(1, 2))))
        x = x + y.transpose(1, 2)
        return x + self.channels_1(self.act(self.channels_0(self.norm_1(x))))


UNFOLLOWED: dict[str, Callable[[], nn.Module]] = {
    "GELU through NumPy": lambda: Mixer(gelu=through_numpy),
    "scripted GELU": with_scripted_gelu,
    "jit.fork": Forked,
    "jit.trace": traced,
    "jit.script": scripted,
}
# A sentence names torch.func.
TRANSFORMED: dict[str, Callable[[], nn.Module]] = {
    "vmap of token mixing": lambda: Mixer(tokens=tokens_by_vmap),
    "vmap of the whole": Wholly,
}
# A sentence says that tensors of these kinds cannot be followed.
TENSORS_OF_OTHER_KINDS: dict[str, Callable[[], nn.Module]] = {
    "sparse kernels": lambda: Mixer(tokens=tokens_by_sparse),
    "nested tensors": lambda: Mixer(channels=channels_by_nested),
}
