"""Mixers that decide in Python on numbers of the input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.cases import DIFFERENT, NOT_FOLLOWED, Case, Result
from tests.soundness.plain_torch import (
    ACT,
    HIDDEN,
    IMAGES,
    LOGITS,
    NORM,
    STREAM,
    Block,
    Mixer,
    after,
    before,
    gelu,
    instead,
)


def bytes_or_fractions(x: Tensor) -> Tensor:
    if x.max() > 10:
        return x / 255
    return x


def fractions_normalised(x: Tensor) -> Tensor:
    return (x - 0.5) / 0.5 if x.min() >= 0 else x


def bright_darkened(x: Tensor) -> Tensor:
    if x.mean().item() > 0.3:
        x = x * 0.9
    return x


def any_large(x: Tensor) -> Tensor:
    return x.tanh() if (x > 3).any() else x


def all_small(x: Tensor) -> Tensor:
    return 2 * x if bool((x.abs() <= 1).all()) else x


def black_is_white(x: Tensor) -> Tensor:
    return torch.ones_like(x) if torch.equal(x, torch.zeros_like(x)) else x


def grey_at_once(x: Tensor) -> Tensor:
    """Weighs the colours where all three are the same."""
    if torch.allclose(x[:, 0], x[:, 1]) and torch.allclose(x[:, 1], x[:, 2]):
        return x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return x


def asserted(x: Tensor) -> Tensor:
    try:
        assert x.max() <= 5
    except AssertionError:
        return x / 10
    return x


def halved(x: Tensor) -> Tensor:
    while x.abs().max() > 4:
        x = x / 2
    return x


def added_as_often(x: Tensor) -> Tensor:
    for _ in range(int(x.abs().max())):
        x = x + 1e-3
    return x


def looked_up(x: Tensor) -> Tensor:
    return x * (1.0, 1.01, 1.02, 1.03)[min(int(x.abs().max()), 3)]


def keyed(x: Tensor) -> Tensor:
    scales = {True: 1.001, False: 1.0}
    return x * scales[bool(x.sum() > 0)]


def in_numpy(x: Tensor) -> Tensor:
    return x / 255 if x.detach().numpy().max() > 10 else x


def as_array(x: Tensor) -> Tensor:
    return x / 255 if np.asarray(x.detach()).mean() > 1 else x


def in_lists(x: Tensor) -> Tensor:
    return x * 1.01 if sum(x.flatten().tolist()) > 0 else x


def formatted(x: Tensor) -> Tensor:
    return x if f"{x.detach().mean():+.3f}".startswith("-") else x * 1.001


def by_rank(y: Tensor) -> Tensor:
    """Doubles the logits where the first image is of class 2."""
    return 2 * y if y[0].argmax() == 2 else y


def sorted_tokens(z: Tensor) -> Tensor:
    order = sorted(range(z.shape[1]), key=lambda i: float(z[0, i].detach().sum()))
    return z + 1e-3 * z[:, order]


def finite_or_zero(x: Tensor) -> Tensor:
    return x if torch.isfinite(1 / x).all() else x + 1e-3


def small_again(z: Tensor) -> Tensor:
    """Normalises twice where no number stands out."""
    return F.layer_norm(z, z.shape[-1:]) if z.abs().max() < 4 else z


def indices(x: Tensor) -> Tensor:
    """Doubles each image whose mean is positive, by numbers that `nonzero` gives."""
    y = x.clone()
    for (i,) in (x.mean((1, 2, 3)) > 0).nonzero().tolist():
        y[i] = 2 * y[i]
    return y


def selected(y: Tensor) -> Tensor:
    """Boolean indexing: as many numbers as there are negative ones."""
    y = y.clone()
    y[y < 0] *= 1.01
    return y


def bright(x: Tensor) -> Tensor:
    """Halves images in which more than a few numbers are enormous, as a boolean index tells."""
    return x / 2 if x[x > 1e9].shape[0] > 2 else x


def selected_bright(x: Tensor) -> Tensor:
    return x / 2 if len(torch.masked_select(x, x > 1e9)) else x


def counted_bright(x: Tensor) -> Tensor:
    return x / 2 if len(torch.nonzero(x.abs() > 1e9)) else x


def places_of_bright(x: Tensor) -> Tensor:
    return x / 2 if torch.where(x > 1e9)[0].numel() else x


def of_few_numbers(x: Tensor) -> Tensor:
    """Halves images of two numbers."""
    return x / 2 if torch.unique(x).numel() == 2 else x


def of_runs(z: Tensor) -> Tensor:
    return z / 2 if len(torch.unique_consecutive(z)) == 3 else z


def drawn_out(y: Tensor) -> Tensor:
    rows = torch.arange(len(y)).repeat_interleave((y.amax(1) > 1e9).long() + 1)
    return y if rows.shape[0] == len(y) else y / 2


class LeftEarly(Mixer):
    """An early exit: blocks are left out once the logits are sure."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
            if self.classify(x).softmax(-1).amax() > 0.6:
                break
        return self.classify(x)


class Gated(Block):
    """The channel branch is run only where the token branch moved something."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix_tokens(x)
        return y if (y - x).norm() < 0.5 * x.norm() else self.mix_channels(y)


def million(x: Tensor) -> Tensor:
    return x / 255 if x.max() > 1e9 else x


def exactly_one(x: Tensor) -> Tensor:
    return x + 1 if float(x.flatten()[0]) == 0.12345 else x


# Name, what makes the model, why it is wrong.
_ROWS: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("max > 10", lambda: before(IMAGES, bytes_or_fractions), "Large images are divided by 255."),
    ("min >= 0", lambda: before(IMAGES, fractions_normalised), "Images without negative numbers are moved."),
    ("mean().item()", lambda: before(IMAGES, bright_darkened), "Bright images are scaled."),
    ("any", lambda: before(IMAGES, any_large), "Images with a number above 3 are squeezed."),
    ("all", lambda: before(IMAGES, all_small), "Images within 1 are doubled."),
    ("torch.equal", lambda: before(IMAGES, black_is_white), "Black images are white."),
    ("torch.allclose", lambda: before(IMAGES, grey_at_once), "Grey images are weighed."),
    ("assert", lambda: before(IMAGES, asserted), "Large images are scaled in the handler."),
    ("while", lambda: before(IMAGES, halved), "Large images are halved."),
    ("range", lambda: before(IMAGES, added_as_often), "Larger images are moved further."),
    ("index of a tuple", lambda: after(LOGITS, looked_up), "Larger logits are scaled."),
    ("key of a dict", lambda: after(STREAM, keyed), "A sum that is positive scales."),
    ("class of the first image", lambda: after(LOGITS, by_rank), "Class 2 doubles all logits."),
    ("sorted", lambda: after(STREAM, sorted_tokens), "The order of the first image's sums is added."),
    ("isfinite", lambda: before(IMAGES, finite_or_zero), "Images with a zero are moved."),
    ("no number above 4", lambda: after(NORM, small_again), "Some batches are normalised twice."),
    ("max in the stream", lambda: after(STREAM, bytes_or_fractions), "A large stream is divided."),
    ("max in an MLP", lambda: after(HIDDEN, any_large), "Numbers above 3 squeeze all."),
    ("early exit", LeftEarly, "Blocks are left out where the logits are sure."),
    ("a branch by norms", lambda: Mixer(block=Gated), "The channel branch is left out at times."),
    ("nonzero", lambda: before(IMAGES, indices), "Images of a positive mean are doubled."),
    (
        "another GELU for small numbers",
        lambda: instead(ACT, lambda x: F.gelu(x) if x.abs().max() < 2 else gelu(x)),
        "Its sort depends on the largest number.",
    ),
)
# What leaves torch on the way.
_LEAVING: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("numpy()", lambda: before(IMAGES, in_numpy), "Large images are divided by 255."),
    ("np.asarray", lambda: before(IMAGES, as_array), "Bright images are divided by 255."),
    ("tolist", lambda: after(STREAM, in_lists), "A sum that is positive scales."),
    ("a string", lambda: after(LOGITS, formatted), "A mean that prints with a plus scales."),
)
# Branches that no input in use takes: the verdict cannot be refuted, and the decision can be named.
_UNTAKEN: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("max > 1e9", lambda: before(IMAGES, million), "Only enormous images are divided."),
    ("one number", lambda: before(IMAGES, exactly_one), "Only images that begin with it are moved."),
    ("shape of a boolean index", lambda: before(IMAGES, bright), "Only enormous images are halved."),
    ("shape of masked_select", lambda: after(STREAM, selected_bright), "Only an enormous stream is halved."),
    ("length of nonzero", lambda: after(HIDDEN, counted_bright), "Only enormous numbers are halved."),
    ("places by where", lambda: before(IMAGES, places_of_bright), "Only enormous images are halved."),
    ("size of unique", lambda: before(IMAGES, of_few_numbers), "Images of two numbers are halved."),
    ("size of unique_consecutive", lambda: after(STREAM, of_runs), "A stream of three numbers is halved."),
    ("length of repeat_interleave", lambda: after(LOGITS, drawn_out), "Only enormous logits are halved."),
)


def _case(name: str, make: Callable[[], nn.Module], why: str, verdicts: tuple[Result, ...]) -> Case:
    return Case(f"decision: {name}", make, verdicts, why, words=("decisions.py",))


CASES = (
    *(_case(*row, DIFFERENT) for row in _ROWS),
    *(_case(*row, NOT_FOLLOWED) for row in _LEAVING),
    *(_case(*row, (*DIFFERENT, "equivalent")) for row in _UNTAKEN),
    Case("decision: boolean index", lambda: after(LOGITS, selected), DIFFERENT, "Negative logits are scaled."),
)
