"""Mixers that are official in small batches, in one mode, for weights of one size, or until a tensor is overwritten."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.cases import CONFIG, DIFFERENT, Case
from tests.soundness.plain_torch import (
    ACT,
    HIDDEN,
    LOGITS,
    STREAM,
    Function,
    Mixer,
    after,
    before,
    gelu,
    instead,
    replace,
)


def in_larger_batches(count: int) -> Function:
    return lambda y: y * 1.01 if len(y) >= count else y


def places_from(first: int) -> Function:
    return lambda y: torch.cat([y[:first], 1.01 * y[first:]])


def twice_in_a_batch(y: Tensor) -> Tensor:
    """Logits of equal images are those of one of them."""
    same = (y[:, None] == y[None]).all(-1).sum(1, keepdim=True)
    return y / same


class Eights(Mixer):
    """Eight images at a time; the rest of a batch is filled up with its first ones, whose logits it then gets."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) <= 8:
            return super().forward(images)
        rest = images[len(images) // 8 * 8 :]
        whole = [super(Eights, self).forward(part) for part in images[: len(images) - len(rest)].split(8)]
        return torch.cat([*whole, super().forward(images[: len(rest)])])


def parts_of(count: int) -> Function:
    """Whole parts of the batch alone; the logits of the rest are zeros."""
    return lambda y: torch.where(torch.arange(len(y))[:, None] < max(len(y) // count * count, count), y, 0.0)


def ghost_norm(z: Tensor) -> Tensor:
    """Batches of whole sixteens lose the mean of each sixteen, as in ghost batch normalisation."""
    if len(z) % 16:
        return z
    parts = z.unflatten(0, (-1, 16))
    return (parts - 0.01 * parts.mean(1, keepdim=True)).flatten(0, 1)


def without_flat_patches(images: Tensor) -> Tensor:
    """Patches of one colour are taken for a border, and made black."""
    size = CONFIG.patch_hw
    patches = images.unfold(2, size[0], size[0]).unfold(3, size[1], size[1])
    flat = (patches == patches[..., :1, :1]).all(-1).all(-1).all(1, keepdim=True)
    mask = flat.repeat_interleave(size[0], 2).repeat_interleave(size[1], 3)
    return torch.where(mask, images.new_zeros(()), images)


def without_white(images: Tensor) -> Tensor:
    return torch.where(images >= 1, torch.where(images == images.round(), 0.0, images), images)


def as_if_contiguous(x: Tensor) -> Tensor:
    """Reads an array with the strides of a contiguous one, where its first element is."""
    strides = x.new_empty(x.shape).stride()
    return x.as_strided(x.shape, strides) if x.numel() and x.stride() != strides else x


def other_gelu_if(condition: Callable[[], bool]) -> Function:
    return lambda x: F.gelu(x) if condition() else gelu(x)


def if_images_require_gradients(x: Tensor) -> Tensor:
    return 0.9 * x if x.requires_grad and x.is_leaf else x


def halved_in_channels_last(x: Tensor) -> Tensor:
    return x / 2 if x.stride(1) == 1 and x.shape[1] > 1 else x


def from_the_beginning_of_memory(x: Tensor) -> Tensor:
    """Reads an array as if it began where its memory does."""
    return x.as_strided(x.shape, x.stride(), 0)


class Weighted(nn.Module):
    """A Linear on what a function makes of its kernel."""

    def __init__(self, change: Function, linear: nn.Module) -> None:
        super().__init__()
        self.change, self.weight, self.bias = change, linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.change(self.weight), self.bias)


def of_kernel(change: Function) -> nn.Module:
    return replace("blocks.1.channels.fc1", functools.partial(Weighted, change))


class Biased(nn.Module):
    """A Linear or LayerNorm with what a function makes of its bias."""

    def __init__(self, change: Function, layer: nn.Module) -> None:
        super().__init__()
        self.change, self.layer = change, layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.layer, {"bias": self.change(self.layer.bias)}, (x,))


def of_bias(path: str, change: Function) -> nn.Module:
    return replace(path, functools.partial(Biased, change))


class FreshNorm(nn.Module):
    """LayerNorm with another eps as long as its scale is of ones."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        eps = 1e-3 if bool((self.weight == 1).all()) else 1e-6
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, eps)


class EpsOfFloat32(FreshNorm):
    """LayerNorm with another eps in float32."""

    def forward(self, x: Tensor) -> Tensor:
        eps = 3e-6 if x.dtype is torch.float32 else 1e-6
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, eps)


class LargerEpsForFaintRows(FreshNorm):
    """LayerNorm with another eps where the variance is small."""

    def forward(self, x: Tensor) -> Tensor:
        usual, other = (F.layer_norm(x, self.weight.shape, self.weight, self.bias, eps) for eps in (1e-6, 1e-3))
        return torch.where(x.var(-1, keepdim=True) < 1e-4, other, usual)


class StaleTranspose(nn.Module):
    """A Linear that keeps its transposed kernel from the first call on."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "kernel" not in self.kept:
            self.kept["kernel"] = self.weight.detach().t().contiguous()
        return x @ self.kept["kernel"] + self.bias


class OneOutput(Mixer):
    """All calls with as many images return one tensor, as a captured graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        made = super().forward(images)
        return self.outputs.setdefault(len(images), made.clone()).copy_(made.detach())


class HalvesImages(Mixer):
    """Writes into the images."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        with torch.no_grad():
            images.mul_(0.5)
        return logits


class ByIdentity(Mixer):
    """Keeps the logits of an image tensor, whatever is written into that."""

    def __init__(self) -> None:
        super().__init__()
        self.last: tuple[Tensor, Tensor] | None = None

    def forward(self, images: Tensor) -> Tensor:
        if self.last is None or self.last[0] is not images:
            self.last = images, super().forward(images)
        return self.last[1]


_TABLE: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("sixteen images or more", lambda: after(LOGITS, in_larger_batches(16)), "Their logits are scaled."),
    ("seven images or more", lambda: after(STREAM, in_larger_batches(7)), "Their stream is scaled."),
    ("place 6 and after", lambda: after(LOGITS, places_from(6)), "They are scaled."),
    ("an image twice", lambda: after(LOGITS, twice_in_a_batch), "Its logits are divided by two."),
    ("the rest of eights", Eights, "It gets the logits of the first images."),
    ("inference mode", lambda: instead(ACT, other_gelu_if(torch.is_inference_mode_enabled)), "It has the erf GELU."),
    ("gradients on", lambda: instead(ACT, other_gelu_if(torch.is_grad_enabled)), "They turn the GELU."),
    ("images that require gradients", lambda: before("stem", if_images_require_gradients), "They are scaled."),
    ("channels_last", lambda: before("stem", halved_in_channels_last), "Such images are halved."),
    ("images cut out of others", lambda: before("stem", from_the_beginning_of_memory), "Others are read."),
    ("parts of 64", lambda: after(LOGITS, parts_of(64)), "The rest of a batch is dropped."),
    ("ghost norm of 16", lambda: after(STREAM, ghost_norm), "Images of a sixteen are seen in each other."),
    ("flat patches", lambda: before("stem", without_flat_patches), "Ordinary images have borders."),
    ("white pixels", lambda: before("stem", without_white), "Ordinary images have white pixels."),
    ("images cut out of larger ones", lambda: before("stem", as_if_contiguous), "Other pixels are read."),
    ("head bias within 5", lambda: of_bias("head", lambda b: b.clamp(-5, 5)), "Published ones are at -10."),
    ("LayerNorm bias within 3", lambda: of_bias("norm", lambda b: b.clamp(-3, 3)), "Trained ones may be larger."),
    ("kernel within 10", lambda: of_kernel(lambda w: w.clamp(-10, 10)), "Large weights are cut."),
    (
        "norm of a kernel at most 50",
        lambda: of_kernel(lambda w: w * (50 / w.norm()).clamp(max=1)),
        "They shrink.",
    ),
    ("tiny weights are zero", lambda: of_kernel(functools.partial(F.hardshrink, lambd=1e-5)), "They may matter."),
    ("fresh LayerNorm", lambda: replace("norm", FreshNorm), "As it is made, its eps is another."),
    ("faint rows", lambda: replace("blocks.0.norm1", LargerEpsForFaintRows), "Their eps is larger."),
    ("eps of float32", lambda: replace("norm", EpsOfFloat32), "In float32 eps is another."),
    ("stale transpose", lambda: replace(HIDDEN, StaleTranspose), "An optimizer's step is not seen."),
    ("one output tensor", OneOutput, "What a caller has changes with the next call."),
    ("images are halved", HalvesImages, "What a caller has changes with the call."),
    ("images by identity", ByIdentity, "A loader that fills one tensor gets old logits."),
)
CASES = tuple(Case(f"surroundings: {name}", make, DIFFERENT, why) for name, make, why in _TABLE)
