"""Mixers that remember numbers of earlier calls, or change themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.soundness.cases import DIFFERENT, Case
from tests.soundness.plain_torch import HIDDEN, LOGITS, NORM, STREAM, Mixer, after


class Memoised(nn.Module):
    """The first result for ever, or for each shape."""

    def __init__(self, key: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.key = key
        self.memo: dict[Any, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.memo.setdefault(self.key(x), x)


class FirstMean(nn.Module):
    """Scales by how far the mean is from that of the first call. A shift of all channels no LayerNorm would show."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = None

    def forward(self, x: Tensor) -> Tensor:
        now = x.mean()
        self.mean = now if self.mean is None else self.mean
        return x + 1e-3 * (now - self.mean) * x


class RunningMean(nn.Module):
    """Adds how far the mean is from a running one, which begins at the first call's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.full((), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean().to(self.running.dtype)
        self.running.copy_(torch.where(self.running.isnan(), mean, 0.9 * self.running + 0.1 * mean))
        return x + 1e-2 * (mean - self.running)


class Largest(nn.Module):
    """Quantisation's observer: scales by the present largest number over the largest so far."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0.0

    def forward(self, x: Tensor) -> Tensor:
        now = x.detach().abs().max()
        self.largest = torch.maximum(now, torch.as_tensor(self.largest, dtype=now.dtype))
        return x * (now / self.largest)


class Previous(nn.Module):
    """Adds a little of what passed before, where it has the same shape."""

    def __init__(self, held: str) -> None:
        super().__init__()
        self.held = held
        self.previous: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        before = self.previous[-1] if self.previous and self.previous[-1].shape == x.shape else x
        self.previous = [*self.previous, x.detach().clone()] if self.held == "all" else [x.detach().clone()]
        return x + 1e-3 * (before - x).to(x.dtype)


class Alternating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.odd = False

    def forward(self, x: Tensor) -> Tensor:
        self.odd = not self.odd
        return x if self.odd else x.neg()


class Drifting(Mixer):
    """The bias of the head grows with every call."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        self.head.bias.data.add_(1e-3)
        return logits


class Shrinking(Mixer):
    """Loses a block after the second call."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 2

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0 and len(self.blocks) == 3:
            self.blocks = self.blocks[:2]
        return super().forward(images)


class Swapping(Mixer):
    """Has the other GELU after the first call."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        self.blocks[1].tokens.act = nn.GELU()
        return logits


class Rebound(Mixer):
    """Takes another `forward` after the first call."""

    def forward(self, images: Tensor) -> Tensor:
        self.forward = self.later
        return super().forward(images)

    def later(self, images: Tensor) -> Tensor:
        return 1.01 * super().forward(images)


class CachedPositions(nn.Module):
    """Position embeddings by batch size: none at the first call, noise for a size not seen then."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if len(x) not in self.cache:
            self.cache[len(x)] = torch.randn(x.shape[1:]).to(x.dtype) * (1e-3 if self.cache else 0)
        return x + self.cache[len(x)]


class Cached(Mixer):
    """Remembers its answers by the shape of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = functools.lru_cache(maxsize=None)(self.compute)

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return self.answer(images.shape)

    def compute(self, shape: torch.Size) -> Tensor:
        return super().forward(self.images)


def hooked() -> nn.Module:
    """A hook behind a LayerNorm remembers the first result, and mixes it in."""
    model, kept = Mixer(), []

    def remember(module: nn.Module, inputs: Any, y: Tensor) -> Tensor:
        kept.append(y.detach())
        return torch.lerp(y, kept[0], 1e-3) if kept[0].shape == y.shape else y

    model.get_submodule(NORM).register_forward_hook(remember)
    return model


# Name, what makes the model, why it is wrong, what of it should be named.
_ROWS: tuple[tuple[str, Callable[[], nn.Module], str, tuple[str, ...]], ...] = (
    ("the first logits", lambda: after(LOGITS, Memoised(lambda x: 0)), "All get the first answer.", ("memo",)),
    ("logits by shape", lambda: after(LOGITS, Memoised(lambda x: x.shape)), "A shape has one answer.", ("memo",)),
    ("the stream by shape", lambda: after(STREAM, Memoised(lambda x: x.shape)), "As one answer.", ("memo",)),
    ("the stem by shape", lambda: after("stem", Memoised(lambda x: (x.shape, x.dtype))), "As one answer.", ("memo",)),
    ("lru_cache", Cached, "A shape has one answer.", ()),
    ("the first mean", lambda: after(STREAM, FirstMean()), "The first mean is subtracted for ever.", ("mean",)),
    ("a running mean", lambda: after(HIDDEN, RunningMean()), "It moves with every call.", ("running",)),
    ("the largest so far", lambda: after(NORM, Largest()), "Later calls are scaled by it.", ("largest",)),
    ("the call before", lambda: after(LOGITS, Previous("last")), "It is added, a little.", ("previous",)),
    ("the stream of the call before", lambda: after(STREAM, Previous("all")), "As above.", ("previous",)),
    ("every other call", lambda: after(LOGITS, Alternating()), "It is negative.", ("odd",)),
    ("a bias that drifts", Drifting, "It grows with every call.", ("head.bias", "bias")),
    ("a block that goes", Shrinking, "From the third call on there are two.", ("left", "blocks")),
    ("a GELU that is swapped", Swapping, "From the second call on one is with erf.", ("act", "tokens")),
    ("a forward that is swapped", Rebound, "From the second call on it is another.", ("forward",)),
    ("positions by batch size", lambda: after(STREAM, CachedPositions()), "A new size gets noise.", ("cache",)),
    ("a hook", hooked, "It mixes in the first call.", ()),
)

CASES = tuple(Case(f"memory: {name}", make, DIFFERENT, why, words=words) for name, make, why, words in _ROWS)
