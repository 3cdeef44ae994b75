"""`Formulation`: the operations that a Mixer is written in, all of one function of the same parameters."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from mixer_equiv.errors import ConfigError

PATCH_CHOICES = ("conv", "linear", "linear_channels_first")
TOKENS_CHOICES = ("linear", "matmul", "depthwise_conv", "shared_conv", "conv1d")
CHANNELS_CHOICES = ("linear", "conv1d")


@dataclasses.dataclass(frozen=True)
class Formulation:
    """Operations of the patch embedding, of token mixing and of channel mixing.

    `patch` is "conv", a convolution whose kernel and stride are the patch, or a Linear over flattened patches:
    "linear" flattens (ph pw channels), "linear_channels_first" (channels ph pw).

    `tokens` is one of
    - "linear": a Linear between two transposes;
    - "matmul": a product from the left, in Flax for the whole batch at once;
    - "conv1d": a Conv1d of kernel 1 whose channels are the tokens;
    - "depthwise_conv": one filter as long as the tokens, repeated for every channel, as in the tutorial;
    - "shared_conv": that filter without the repetition, a Conv2d with one input channel and kernel (1, tokens), to
      which every channel of every image is a picture of one row.

    `channels` is "linear", or "conv1d": a Conv1d of kernel 1 on (batch, hidden, tokens). The whole residual stream
    then has that order of axes, so that channel mixing transposes nothing.
    """

    patch: str = "conv"
    tokens: str = "linear"
    channels: str = "linear"

    def __post_init__(self) -> None:
        for field, known in (("patch", PATCH_CHOICES), ("tokens", TOKENS_CHOICES), ("channels", CHANNELS_CHOICES)):
            value = getattr(self, field)
            if value not in known:
                raise ConfigError(f"formulation {field} is {value!r}; it must be one of {', '.join(known)}")

    @property
    def channels_first(self) -> bool:
        """Whether the residual stream is (batch, hidden, tokens)."""
        return self.channels == "conv1d"

    def __str__(self) -> str:
        return f"{self.patch}, {self.tokens}, {self.channels}"


def as_formulation(value: Any) -> Formulation:
    """`value` itself if it is a `Formulation`. Raises `ConfigError` for anything else, such as a name."""
    if isinstance(value, Formulation):
        return value
    raise ConfigError(f"formulation is {value!r}; it must be a Formulation, such as Formulation(channels='conv1d')")


DEFAULT_FORMULATION = Formulation()  # that of the official model
FORMULATIONS = tuple(
    Formulation(*names) for names in itertools.product(PATCH_CHOICES, TOKENS_CHOICES, CHANNELS_CHOICES)
)
CONVOLUTIONAL = Formulation("conv", "shared_conv", "conv1d")
