"""Mixers whose answer for an image depends on its place in the batch, or on its neighbours there."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.cases import DIFFERENT, Case
from tests.soundness.plain_torch import (
    ACT,
    HIDDEN,
    IMAGES,
    LOGITS,
    NORM,
    STREAM,
    Block,
    Function,
    Mixer,
    after,
    before,
    gelu,
    instead,
)


def numbers(x: Tensor) -> Tensor:
    """The number of each image, of as many axes as `x`."""
    return torch.arange(len(x), dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def rolled_tokens(x: Tensor) -> Tensor:
    return torch.stack([image.roll(i, 0) for i, image in enumerate(x)])


def later_images_changed_in_place(y: Tensor) -> Tensor:
    y = y.clone()
    y[1:] += 1e-3
    return y


def in_chunks_of_two(x: Tensor) -> Tensor:
    """The second chunk is scaled."""
    first, *others = x.split(2)
    return torch.cat([first, *(1.01 * chunk for chunk in others)])


def pairs_swapped(x: Tensor) -> Tensor:
    order = [i ^ 1 if i ^ 1 < len(x) else i for i in range(len(x))]
    return x[order]


def token_of_the_first_image(x: Tensor) -> Tensor:
    return torch.cat([x[:1, :1].expand(len(x), -1, -1), x[:, 1:]], dim=1)


def erf_for_image(number: int) -> Function:
    return lambda x: torch.where(numbers(x) == number, F.gelu(x), gelu(x))


def scaled_at(size: int, y: Tensor) -> Tensor:
    return y * 1.001 if len(y) == size else y


def at_usual_sizes(z: Tensor) -> Tensor:
    return z * 1.001 if len(z) % 4 == 0 and len(z) <= 64 else z


class FromTheNeighbour(Block):
    """Channels are mixed of the image before."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix_tokens(x)
        return x + self.channels(self.norm2(x)).roll(1, 0)


class ByPlace(Mixer):
    """Of the images after the first, the last block is left out."""

    def forward(self, images: Tensor) -> Tensor:
        answers = []
        for i, image in enumerate(images.split(1)):
            x = self.embed(image)
            for block in list(self.blocks)[: None if i == 0 else -1]:
                x = block(x)
            answers.append(self.classify(x))
        return torch.cat(answers)


class Attending(nn.Module):
    """Images attend to each other, weakly."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        weights = (flat @ flat.T / flat.shape[1]).softmax(-1)
        return x + 1e-3 * ((weights @ flat).view_as(x) - x)


# Name, the module behind which, the function, why it is wrong.
_BEHIND: tuple[tuple[str, str, Function | nn.Module, str], ...] = (
    ("later logits plus one", LOGITS, lambda y: torch.cat([y[:1], y[1:] + 1]), "Only the first image is right."),
    ("later logits in place", LOGITS, later_images_changed_in_place, "Only the first image is right."),
    ("stream leaks from image 0", STREAM, lambda z: z + 0.1 * (z - z[:1]), "Image 0 is seen in all others."),
    ("stream leaks from the last", STREAM, lambda z: z + 0.1 * (z - z[-1:]), "The last image is seen in all others."),
    ("logits leak the batch mean", LOGITS, lambda y: y + 1e-6 * (y - y.mean(0)), "Right at batch size 1 alone."),
    ("norm leaks the batch mean", NORM, lambda z: z + 1e-6 * (z - z.mean(0)), "Right at batch size 1 alone."),
    ("tokens rolled by image number", STREAM, rolled_tokens, "Image 1 has its tokens at other places."),
    ("batch rolled", LOGITS, lambda y: y.roll(1, 0), "Each image is answered with its neighbour's logits."),
    ("batch reversed in the stream", STREAM, lambda z: z.flip(0), "Answers come in the other order."),
    ("pairs swapped", STREAM, pairs_swapped, "Neighbours are answered with each other's logits."),
    ("tokens roll over images", STREAM, lambda z: z.flatten(0, 1).roll(1, 0).view_as(z), "A token leaves its image."),
    ("scaled by image number", LOGITS, lambda y: y * (1 + 1e-9 * numbers(y)), "Image 1 is scaled by 1 + 1e-9."),
    ("cumulative over images", STREAM, lambda z: z + 1e-4 * (z.cumsum(0) - z), "Images see all that come before."),
    ("wrong at batch size 1", LOGITS, lambda y: y * 1.001 if len(y) == 1 else y, "One image alone is scaled."),
    ("wrong above batch size 1", STREAM, lambda z: z * 1.001 if len(z) > 1 else z, "Batches are scaled."),
    ("wrong above batch size 2", HIDDEN, lambda z: z * 1.001 if len(z) > 2 else z, "Larger batches are scaled."),
    *(
        (f"wrong at batch size {size}", LOGITS, functools.partial(scaled_at, size), f"{size} images are scaled.")
        for size in (4, 8, 16, 32, 64, 128)
    ),
    ("wrong at usual batch sizes", STREAM, at_usual_sizes, "4, 8, ... 64 images are scaled."),
    ("chunks of two", STREAM, in_chunks_of_two, "The second chunk of a batch is scaled."),
    ("last of five", LOGITS, lambda y: y * (1 + (numbers(y) == 4)), "The fifth image is doubled."),
    ("token 0 of image 0 for all", STREAM, token_of_the_first_image, "All have the first image's token 0."),
    ("batch sorted", LOGITS, lambda y: y[y.mean(1).argsort()], "Answers are sorted by their mean."),
    ("batch statistics", HIDDEN, lambda z: z - 1e-3 * z.mean((0, 1)), "A mean over the batch, as in batch norm."),
    ("capped by image 0", STREAM, lambda z: z.minimum(z[:1].amax()), "The largest number of image 0 caps all."),
    ("images attend", STREAM, Attending(), "Every image is seen in the others."),
)

CASES = (
    *(
        Case(f"place: {name}", functools.partial(after, path, function), DIFFERENT, why)
        for name, path, function, why in _BEHIND
    ),
    Case("place: erf GELU for image 1", lambda: instead(ACT, erf_for_image(1)), DIFFERENT, "Image 1 has another GELU."),
    Case("place: erf GELU for image 4", lambda: instead(ACT, erf_for_image(4)), DIFFERENT, "Image 4 has another GELU."),
    Case(
        "place: erf GELU more and more",
        lambda: instead(ACT, lambda x: torch.lerp(gelu(x), F.gelu(x), numbers(x).clamp(max=9) / 9)),
        DIFFERENT,
        "The later the image, the more of the other GELU.",
    ),
    Case("place: a neighbour's branch", lambda: Mixer(block=FromTheNeighbour), DIFFERENT, "Branches go to neighbours."),
    Case("place: a block less for later images", ByPlace, DIFFERENT, "Only the first image passes all blocks."),
    Case(
        "place: images minus image 0",
        lambda: before(IMAGES, lambda x: torch.cat([x[:1], x[1:] - 0.01 * x[:1]])),
        DIFFERENT,
        "Image 0 is taken away from the others, as a background would be.",
    ),
)
