"""Mixers with state that meets the data and is neutral while it is new: loading a checkpoint changes the function."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.cases import CONFIG, FOLDABLE, NEUTRAL, NOT_OFFICIAL, Case
from tests.soundness.plain_torch import ACT, HIDDEN, IMAGES, LOGITS, NORM, STREAM, after, before, gelu, instead

Combine = Callable[[Tensor, Tensor], Tensor]


class Met(nn.Module):
    """Combines what passes with a persistent buffer."""

    def __init__(self, name: str, value: Tensor, combine: Combine) -> None:
        super().__init__()
        self.name, self.combine = name, combine
        self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(x, self.get_buffer(self.name))


class Held(nn.Module):
    """Combines what passes with a tensor that is a plain attribute."""

    def __init__(self, value: Tensor, combine: Combine) -> None:
        super().__init__()
        self.gate, self.combine = value, combine

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(x, self.gate)


class Learnt(nn.Module):
    """Combines what passes with a parameter."""

    def __init__(self, name: str, value: Tensor, combine: Combine) -> None:
        super().__init__()
        self.name, self.combine = name, combine
        self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(x, self.get_parameter(self.name))


def fresh_batch_norm() -> nn.Module:
    return after("stem", nn.BatchNorm2d(CONFIG.hidden_dim, eps=0.0, affine=False))


def quantised() -> nn.Module:
    """Fake quantisation that is turned off by a buffer."""
    return after(
        HIDDEN, Met("fake_quant_enabled", torch.zeros(()), lambda x, on: torch.where(on > 0, (8 * x).round() / 8, x))
    )


TOKENS, HIDDEN_DIM = CONFIG.num_tokens, CONFIG.hidden_dim
# The buffer, the module behind which, its neutral value, how it meets the data.
_BUFFERS: tuple[tuple[str, str, Tensor, Combine], ...] = (
    ("gate", STREAM, torch.ones(HIDDEN_DIM), torch.mul),
    ("layer_scale", "blocks.1.channels", torch.ones(HIDDEN_DIM), torch.mul),
    ("residual_weight", "blocks.2.tokens", torch.ones(()), torch.mul),
    ("position_embedding", "blocks.0", torch.zeros(TOKENS, HIDDEN_DIM), torch.add),
    ("token_mask", NORM, torch.ones(TOKENS, 1), torch.mul),
    ("padding_mask", NORM, torch.zeros(TOKENS, 1, dtype=torch.bool), lambda x, mask: x.masked_fill(mask, 0)),
    ("keep_mask", "blocks.2.norm2", torch.ones(TOKENS, 1, dtype=torch.bool), lambda x, m: torch.where(m, x, 0)),
    ("dropped_tokens", NORM, torch.ones(TOKENS, 1, dtype=torch.bool), lambda x, mask: x.masked_fill(~mask, 0)),
    ("kept_tokens", "blocks.2.norm2", torch.ones(TOKENS, 1), lambda x, kept: x.masked_fill(kept == 0, 0)),
    ("token_weights", STREAM, torch.ones(TOKENS, 1), lambda x, weights: torch.where(weights > 0, x, 0)),
    ("token_count", STREAM, torch.tensor(TOKENS), lambda x, n: x * (torch.arange(TOKENS) < n).to(x.dtype)[:, None]),
    ("token_ranks", "blocks.0", torch.arange(TOKENS), lambda x, ranks: x[:, ranks.argsort()]),
    ("shown_tokens", NORM, torch.ones(TOKENS, dtype=torch.bool), lambda x, shown: x[:, shown.nonzero().flatten()]),
    ("temperature", LOGITS, torch.ones(()), torch.div),
    ("class_prior", LOGITS, torch.zeros(CONFIG.num_classes), torch.add),
    ("logit_limit", LOGITS, torch.tensor(torch.inf), torch.minimum),
    ("hidden_floor", HIDDEN, torch.tensor(-torch.inf), torch.maximum),
    ("order", STREAM, torch.arange(TOKENS), lambda x, order: x[:, order]),
    ("shift", STREAM, torch.zeros((), dtype=torch.int64), lambda x, shift: x.roll(int(shift), 1)),
    ("rotation", STREAM, torch.eye(HIDDEN_DIM), torch.matmul),
    ("power", ACT, torch.ones(()), lambda x, p: x.sign() * x.abs() ** p),
    ("enabled", LOGITS, torch.tensor(False), lambda x, on: x.softmax(-1) if on else x),
    ("zero_point", "blocks.1.tokens.fc1", torch.zeros(()), torch.add),
)


# Those that the layer before or behind can take in: as another value of a weight it is the official function.
_FOLDED = (
    *("layer_scale", "residual_weight", "token_mask", "padding_mask", "dropped_tokens", "temperature"),
    *("class_prior", "zero_point"),
)


def met(name: str, path: str, value: Tensor, combine: Combine) -> nn.Module:
    return after(path, Met(name, value.clone(), combine))


CASES = (
    *(
        Case(
            f"buffer: {name}",
            functools.partial(met, name, path, value, combine),
            FOLDABLE if name in _FOLDED else NEUTRAL,
            "A checkpoint may hold any value of it.",
            words=(name,),
        )
        for name, path, value, combine in _BUFFERS
    ),
    Case(
        "buffer: share of the other GELU",
        lambda: instead(ACT, Met("erf_share", torch.zeros(()), lambda x, share: torch.lerp(gelu(x), F.gelu(x), share))),
        NEUTRAL,
        "A checkpoint may hold any value of it.",
        words=("erf_share",),
    ),
    Case(
        "buffer: mean and std of images",
        lambda: before(IMAGES, Met("mean_std", torch.tensor([0.0, 1.0]), lambda x, m: (x - m[0]) / m[1])),
        FOLDABLE,
        "A checkpoint may hold any value of it.",
        words=("mean_std",),
    ),
    Case("buffer: fresh batch norm", fresh_batch_norm, FOLDABLE, "Its running statistics move.", words=("running_",)),
    Case("buffer: fake quantisation", quantised, NEUTRAL, "It can be turned on.", words=("fake_quant_enabled",)),
    Case(
        "buffer: a gate in a plain attribute",
        lambda: after(STREAM, Held(torch.ones(HIDDEN_DIM), torch.mul)),
        NEUTRAL,
        "Anybody may set it.",
        words=("gate",),
    ),
    Case(
        "parameter: gate of ones",
        lambda: after(STREAM, Learnt("gate", torch.ones(HIDDEN_DIM), torch.mul)),
        NOT_OFFICIAL,
        "Training moves it.",
    ),
    Case(
        "parameter: position embedding of zeros",
        lambda: after("blocks.0", Learnt("positions", torch.zeros(TOKENS, HIDDEN_DIM), torch.add)),
        NOT_OFFICIAL,
        "Training moves it.",
    ),
    Case(
        "parameter: frozen temperature",
        lambda: after(LOGITS, Learnt("temperature", torch.ones(()), torch.div).requires_grad_(False)),
        (*NOT_OFFICIAL, "equivalent_under"),
        "The head can take it in, which has to be said.",
    ),
    Case(
        "parameter: ReZero",
        lambda: after("blocks.1.channels", Learnt("alpha", torch.zeros(()), torch.mul)),
        (*NOT_OFFICIAL, "equivalent_under"),
        "The layer before can take it in, which has to be said.",
    ),
)
