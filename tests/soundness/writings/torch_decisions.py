"""Decisions in Python, and guards that never act: the function is the official one on every image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.soundness.writings.torch_gelus import by_sigmoid, by_tanh
from tests.soundness.writings.torch_norms import by_clamped_moments
from tests.soundness.writings.torch_plain import Mixer


class Guarded(Mixer):
    """`check` sees the images, and what it returns is run."""

    def check(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.check(images))


class AssertsRange(Guarded):
    def check(self, images: Tensor) -> Tensor:
        assert images.min() > -1e9
        return images


class RaisesOnNan(Guarded):
    def check(self, images: Tensor) -> Tensor:
        if torch.isnan(images).any():
            raise ValueError("images have NaN")
        return images


class RaisesOnInfinity(Guarded):
    def check(self, images: Tensor) -> Tensor:
        if not torch.isfinite(images).all().item():
            raise ValueError("images must be finite")
        return images


class NotesBlackImages(Guarded):
    """Counts black batches."""

    black = 0

    def check(self, images: Tensor) -> Tensor:
        if images.abs().max() == 0:
            self.black += 1
        return images


class AssertsThroughList(Guarded):
    def check(self, images: Tensor) -> Tensor:
        assert all(number == number for number in images.flatten()[:3].tolist())
        return images


class AsksAllclose(Guarded):
    def check(self, images: Tensor) -> Tensor:
        if not torch.allclose(images, images):
            raise ValueError("NaN")
        return images


class AssertsLogits(Mixer):
    """The logits are looked at."""

    def classify(self, x: Tensor) -> Tensor:
        logits = super().classify(x)
        if bool((logits.abs() > 1e30).any()):
            raise OverflowError("logits overflow")
        return logits


class AsksStream(Mixer):
    """The stream is looked at behind the first block."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == 0 and torch.isnan(x.sum()):
                raise ValueError("NaN behind the first block")
        return self.classify(x)


class ChoosesGelu(Mixer):
    """Two writings of one GELU, by the sign of a mean."""

    def __init__(self) -> None:
        super().__init__(gelu=lambda x: by_tanh(x) if x.mean() > 0 else by_sigmoid(x))


class ChoosesByBias(Mixer):
    """A bias of zeros is not added."""

    def classify(self, x: Tensor) -> Tensor:
        mean = self.norm(x).mean(1) @ self.head.weight.T
        return mean + self.head.bias if self.head.bias.any() else mean


class DecidesOnShapes(Guarded):
    """Shapes, dtypes and devices are asked; channels last would be turned."""

    def check(self, images: Tensor) -> Tensor:
        if images.dim() == 3:
            images = images[None]
        if images.shape[1] != self.config.in_channels and images.shape[-1] == self.config.in_channels:
            images = images.permute(0, 3, 1, 2)
        assert images.shape[-2:] == self.config.image_hw, "another size"
        assert images.is_floating_point()
        assert not images.is_cuda
        return images if images.is_contiguous() else images.contiguous()


class ScalesBytes(Guarded):
    """Whole numbers are scaled; floats are taken as they are."""

    def check(self, images: Tensor) -> Tensor:
        return images / 255 if images.dtype == torch.uint8 else images


class DecidesOnTraining(Mixer):
    """Noise on the stream in training."""

    def embed(self, images: Tensor) -> Tensor:
        x = super().embed(images)
        if self.training:
            x = x + 0.01 * torch.randn_like(x)
        return x


class DecidesOnGradients(Mixer):
    """Two writings of one GELU, by whether gradients are wanted."""

    def __init__(self) -> None:
        super().__init__(gelu=lambda x: by_tanh(x) if torch.is_grad_enabled() and x.requires_grad else by_sigmoid(x))


class OfAnyBatch(Mixer):
    """Another way for a batch of one."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) == 1:
            return super().forward(images.expand(2, -1, -1, -1))[:1]
        return super().forward(images)


class TensorAssert(Guarded):
    """`torch._assert_async` on a tensor."""

    def check(self, images: Tensor) -> Tensor:
        torch._assert_async((images > -1e9).all())
        return images


def guarded(guard: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """A Mixer with a guard on the images."""

    class WithGuard(Guarded):
        def check(self, images: Tensor) -> Tensor:
            return guard(images)

    return WithGuard


class ClampsLogits(Mixer):
    def classify(self, x: Tensor) -> Tensor:
        return super().classify(x).clamp(-1e30, 1e30)


class Replaces(Mixer):
    """NaN of the stream, of which there are none, would be zeros."""

    def classify(self, x: Tensor) -> Tensor:
        return super().classify(torch.where(x.isnan(), torch.zeros_like(x), x))


class Options(Mixer):
    """Optional arguments at their defaults decide that nothing is done."""

    def forward(self, images: Tensor, mask: Any = None, return_features: bool = False, scale: float = 1.0) -> Any:
        if mask is not None:
            images = images * mask
        if scale != 1.0:
            images = images * scale
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return (self.classify(x), x) if return_features else self.classify(x)


# Decisions on numbers of the input: a warning names the file and line of each.
ON_NUMBERS: dict[str, Callable[[], nn.Module]] = {
    "asserts a range": AssertsRange,
    "raises on NaN": RaisesOnNan,
    "raises on infinity": RaisesOnInfinity,
    "counts black batches": NotesBlackImages,
    "asserts through a list": AssertsThroughList,
    "asks allclose": AsksAllclose,
    "asserts logits": AssertsLogits,
    "asks the stream": AsksStream,
    "chooses one of two equal GELUs": ChoosesGelu,
}
# Decisions on anything else, and guards that are operations.
HARMLESS: dict[str, Callable[[], nn.Module]] = {
    "bias of zeros not added": ChoosesByBias,
    "shapes, dtypes and devices": DecidesOnShapes,
    "bytes would be scaled": ScalesBytes,
    "training": DecidesOnTraining,
    "whether gradients are wanted": DecidesOnGradients,
    "another way for one image": OfAnyBatch,
    "_assert_async": TensorAssert,
    "variance clamped at 0": lambda: Mixer(norm=by_clamped_moments),
    "nan_to_num of images": guarded(torch.nan_to_num),
    "images clamped at 1e30": guarded(lambda x: x.clamp(-1e30, 1e30)),
    "logits clamped at 1e30": ClampsLogits,
    "NaN of the stream replaced": Replaces,
    "options at their defaults": Options,
}
