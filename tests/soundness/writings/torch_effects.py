"""What code does beside computing: counters, logs, features that are kept. None changes the function."""

from __future__ import annotations

import array
import collections
import contextvars
import ctypes
import itertools
import logging
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.writings.torch_plain import Mixer, gelu

log = logging.getLogger(__name__)
calls_of_all = 0


class Counting(Mixer):
    """Counts its calls in an attribute and in a global."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        global calls_of_all
        self.calls += 1
        calls_of_all += 1
        return super().forward(images)


class CountingElsewhere(Mixer):
    """Counts its calls in what holds numbers outside of attributes, and takes names from a cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.array, self.number, self.bytes = array.array("q", [0]), ctypes.c_long(0), bytearray()
        self.local, self.names = threading.local(), itertools.cycle(("even", "odd"))
        self.step = contextvars.ContextVar("step", default=0)

    def forward(self, images: Tensor) -> Tensor:
        self.array[0] += 1
        self.number.value += 1
        self.bytes.append(1)
        self.local.calls = getattr(self.local, "calls", 0) + 1
        self.step.set(self.step.get() + 1)
        self.name = next(self.names)
        return super().forward(images)


class CountingImages(Mixer):
    """Counts calls and images in buffers that are in the state_dict."""

    num_batches_tracked: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.register_buffer("num_images_tracked", torch.tensor(0))

    def forward(self, images: Tensor) -> Tensor:
        self.num_batches_tracked += 1
        self.num_images_tracked.add_(len(images))
        return super().forward(images)


class KeepingFeatures(Mixer):
    """Keeps features and attention-like maps for whoever wants to look."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        self.features = [x.detach()]
        for block in self.blocks:
            x = block(x)
            self.features.append(x.detach().clone())
        self.last_features = x
        return self.classify(x)


class RunningStatistics(Mixer):
    """Keeps a running mean of its features, as a monitor, which nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(self.config.hidden_dim), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        with torch.no_grad():
            self.running_mean.lerp_(x.mean((0, 1)), 0.1)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


class Logging(Mixer):
    """Logs numbers of the input and of features."""

    def forward(self, images: Tensor) -> Tensor:
        log.debug("images from %.3f to %.3f", images.min().item(), images.max().item())
        x = self.embed(images)
        log.debug("stem of norm %s", float(x.norm()))
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


class History(Mixer):
    """Appends the mean of the logits to a list of at most ten."""

    def __init__(self) -> None:
        super().__init__()
        self.history: collections.deque[float] = collections.deque(maxlen=10)

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        self.history.append(logits.mean().item())
        return logits


class Timing(Mixer):
    """Measures how long blocks take, and names them for the profiler."""

    def forward(self, images: Tensor) -> Tensor:
        self.seconds = []
        x = self.embed(images)
        for i, block in enumerate(self.blocks):
            began = time.perf_counter()
            with torch.profiler.record_function(f"block {i}"):
                x = block(x)
            self.seconds.append(time.perf_counter() - began)
        return self.classify(x)


class Dropping(Mixer):
    """Dropout of 0.1 in three places, off in eval."""

    def __init__(self) -> None:
        super().__init__(gelu=lambda x: F.dropout(gelu(x), 0.1, self.training))
        self.dropout, self.feature_dropout = nn.Dropout(0.1), nn.AlphaDropout(0.1)

    def embed(self, images: Tensor) -> Tensor:
        return self.dropout(super().embed(images))

    def classify(self, x: Tensor) -> Tensor:
        return super().classify(self.feature_dropout(x))


class DropPath(nn.Module):
    """Stochastic depth as timm writes it."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.drop_prob)
        return x * keep.div_(1 - self.drop_prob)


class StochasticDepth(Mixer):
    """A rate that grows with depth."""

    def __init__(self) -> None:
        super().__init__()
        self.drops = nn.ModuleList(DropPath(0.1 * i) for i in range(len(self.blocks)))

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block, drop in zip(self.blocks, self.drops, strict=True):
            x = x + drop(block.tokens(x))
            x = x + drop(block.channels(x))
        return self.classify(x)


class DrawingRandomNumbers(Mixer):
    """Draws numbers that nothing needs."""

    def forward(self, images: Tensor) -> Tensor:
        self.noise = torch.rand(len(images))
        return super().forward(images)


class UnusedAuxiliaryHead(Mixer):
    """A head for features of the middle, whose result is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(self.config.hidden_dim, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == 1:
                self.auxiliary_logits = self.auxiliary(x.mean(1))
        return self.classify(x)


class WarnsOnce(Mixer):
    """Warns in its first call that it is old."""

    warned = False

    def forward(self, images: Tensor) -> Tensor:
        if not self.warned:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.warn("use the new class", DeprecationWarning, stacklevel=2)
            self.warned = True
        return super().forward(images)


class CachedGrid(Mixer):
    """Keeps a table of positions by the shape of images; only its length is used."""

    def __init__(self) -> None:
        super().__init__()
        self.grids: dict[tuple[int, ...], Tensor] = {}

    def grid(self, shape: tuple[int, ...]) -> Tensor:
        if shape not in self.grids:
            self.grids[shape] = torch.arange(self.config.num_tokens)
        return self.grids[shape]

    def embed(self, images: Tensor) -> Tensor:
        return super().embed(images)[:, self.grid(tuple(images.shape[-2:]))]


class Context(Mixer):
    """In contexts that ask for determinism and for gradients as they are."""

    def forward(self, images: Tensor, **options: Any) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled()), torch.random.fork_rng(devices=[]):
            return super().forward(images)


EFFECTS: dict[str, Callable[[], nn.Module]] = {
    "counter": Counting,
    "counters elsewhere": CountingElsewhere,
    "counters in buffers": CountingImages,
    "features kept": KeepingFeatures,
    "running statistics nobody reads": RunningStatistics,
    "logs numbers": Logging,
    "history of means": History,
    "timing": Timing,
    "dropout in eval": Dropping,
    "stochastic depth in eval": StochasticDepth,
    "random numbers unused": DrawingRandomNumbers,
    "auxiliary head": UnusedAuxiliaryHead,
    "warns once": WarnsOnce,
    "cached positions": CachedGrid,
    "contexts": Context,
}
