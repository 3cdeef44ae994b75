"""Dtypes, constants held as buffers, and kinds of results."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tests.soundness.writings.torch_plain import Mixer


class Autocast(Mixer):
    """Under autocast to bfloat16, which leaves float64 alone."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(images)


class WithoutAutocast(Mixer):
    """Autocast is switched off, whatever is on outside."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(images.type_as(self.head.weight))


class FloatImages(Mixer):
    """Images of any dtype become float32, then what the weights are."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.float().to(self.stem.weight.dtype))


class FloatLogits(Mixer):
    """The logits are made float32, for the loss."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).float()


class DoubleStream(Mixer):
    """The residual stream is kept in float64, branches in the weights' dtype."""

    def forward(self, images: Tensor) -> Tensor:
        dtype = self.head.weight.dtype
        x = self.embed(images).double()
        for block in self.blocks:
            x = x + block.tokens(x.to(dtype))
            x = x + block.channels(x.to(dtype))
        return self.classify(x.to(dtype))


class HalfWeights(nn.Module):
    """Weights in half precision, widened when they are used."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.mixer = Mixer().to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        wide = {name: parameter.float() for name, parameter in self.mixer.named_parameters()}
        return functional_call(self.mixer, wide, (images.float(),))


class EpsBuffer(Mixer):
    """eps is a buffer; LayerNorms are by hand."""

    persistent = True

    def __init__(self) -> None:
        super().__init__(norm=self.normalize)
        self.register_buffer("eps", torch.tensor(1e-6), persistent=self.persistent)

    def normalize(self, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps) * scale + bias


class SecretEps(EpsBuffer):
    persistent = False


class GeluBuffers(Mixer):
    """The constants of GELU are buffers."""

    persistent = True

    def __init__(self) -> None:
        super().__init__(gelu=self.bend)
        self.register_buffer("root", torch.tensor(math.sqrt(2 / math.pi)), persistent=self.persistent)
        self.register_buffer("cubic", torch.tensor(0.044715), persistent=self.persistent)

    def bend(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(self.root * (x + self.cubic * x**3)))


class SecretGelu(GeluBuffers):
    persistent = False


class MeanBuffer(Mixer):
    """The mean is a product with a vector of 1/n, a buffer."""

    persistent = True

    def __init__(self) -> None:
        super().__init__()
        tokens = self.config.num_tokens
        self.register_buffer("average", torch.full((1, tokens), 1 / tokens), persistent=self.persistent)

    def classify(self, x: Tensor) -> Tensor:
        return self.head((self.average @ self.norm(x)).squeeze(1))


class SecretMean(MeanBuffer):
    persistent = False


class ExactGelu(Mixer):
    """The constants of GELU are buffers of float64, of no dimension, which leave the dtype as it is."""

    def __init__(self) -> None:
        super().__init__(gelu=self.bend)
        self.register_buffer("root", torch.tensor(math.sqrt(2 / math.pi), dtype=torch.float64))
        self.register_buffer("cubic", torch.tensor(0.044715, dtype=torch.float64))

    def bend(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(self.root * (x + self.cubic * x**3)))


class ExactMean(Mixer):
    """The vector of 1/n is a buffer of float64, rounded to the dtype of the stream where it is used."""

    def __init__(self) -> None:
        super().__init__()
        tokens = self.config.num_tokens
        self.register_buffer("average", torch.full((1, tokens), 1 / tokens, dtype=torch.float64))

    def classify(self, x: Tensor) -> Tensor:
        return self.head((self.average.to(x.dtype) @ self.norm(x)).squeeze(1))


class OrderBuffer(Mixer):
    """The order of tokens is a buffer of whole numbers, which is the plain order."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(self.config.num_tokens))

    def embed(self, images: Tensor) -> Tensor:
        return super().embed(images).index_select(1, self.order)


class MaskOfOnes(Mixer):
    """A mask of ones, which is in no state_dict, on the branches."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.ones(1, self.config.num_tokens, 1)

    def embed(self, images: Tensor) -> Tensor:
        return super().embed(images) * self.mask


class VersionBuffer(Mixer):
    """A buffer that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("version", torch.tensor([2, 1]))


class UnusedParameters(Mixer):
    """A class token and a mask token that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.config.hidden_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.config.hidden_dim))


def constants_as_tensors(x: Tensor) -> Tensor:
    """GELU with constants that are made as tensors of the input's dtype in each call."""
    half, one, cubic = (torch.tensor(number, dtype=x.dtype) for number in (0.5, 1.0, 0.044715))
    root = torch.sqrt(torch.tensor(2.0, dtype=x.dtype) / torch.pi)
    return half * x * (one + torch.tanh(root * (x + cubic * x * x * x)))


@dataclasses.dataclass
class Result:
    logits: Tensor
    features: Tensor | None = None


class Pair(NamedTuple):
    logits: Tensor
    features: Tensor


def returning(give: Callable[[Tensor, Tensor], Any]) -> Callable[[], nn.Module]:
    """A Mixer that returns what `give` makes of logits and stream."""

    class Returning(Mixer):
        def forward(self, images: Tensor) -> Any:
            x = self.embed(images)
            for block in self.blocks:
                x = block(x)
            return give(self.classify(x), x)

    return Returning


class TaskKeyword(Mixer):
    """The input has another name, and more arguments follow it."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, *, return_dict: bool = True) -> Any:
        logits = super().forward(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if return_dict else (loss, logits)


NUMBERS: dict[str, Callable[[], nn.Module]] = {
    "autocast off": WithoutAutocast,
    "images to float32": FloatImages,
    "logits to float32": FloatLogits,
    "stream in float64": DoubleStream,
    "constants made as tensors": lambda: Mixer(gelu=constants_as_tensors),
    "order of tokens as a buffer": OrderBuffer,
    "mask of ones in no state_dict": MaskOfOnes,
    "buffer nobody reads": VersionBuffer,
    "eps buffer in no state_dict": SecretEps,
    "GELU buffers in no state_dict": SecretGelu,
    "averaging buffer in no state_dict": SecretMean,
    "tuple": returning(lambda logits, x: (logits, x)),
    "dict": returning(lambda logits, x: {"features": x, "logits": logits}),
    "OrderedDict": returning(lambda logits, x: OrderedDict(logits=logits, pooled=x.mean(1))),
    "dataclass": returning(Result),
    "named tuple": returning(Pair),
    "list of one": returning(lambda logits, x: [logits]),
    "nested dict": returning(lambda logits, x: {"output": {"logits": logits}}),
    "loss and labels": TaskKeyword,
    "tokens that nothing reads": UnusedParameters,
}


class Capped(Mixer):
    """Pixels beyond 1000 would count by half, which no images have."""

    def embed(self, images: Tensor) -> Tensor:
        return super().embed(images - 0.5 * images.sign() * F.relu(images.abs() - 1000))


class ScaledWhereLarge(Mixer):
    """Images with a pixel beyond 1000 would be scaled down."""

    def embed(self, images: Tensor) -> Tensor:
        peak = images.abs().amax((1, 2, 3), keepdim=True)
        return super().embed(images / (peak / 1000).clamp(min=1))


# With a word in the report: what `words` has beside each.
WITH_A_WORD: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "autocast to bfloat16": (Autocast, ("float32", "autocast", "bfloat16")),
    "weights in bfloat16": (lambda: HalfWeights(torch.bfloat16), ()),
    "weights in float16": (lambda: HalfWeights(torch.float16), ()),
    "a cap that nothing reaches": (Capped, ("not seen at work, and so not compared: relu at",)),
    "a scale that nothing reaches": (ScaledWhereLarge, ("not seen at work, and so not compared: clamp at",)),
    "eps as a buffer": (EpsBuffer, ("eps",)),
    "constants of GELU as buffers": (GeluBuffers, ("root", "cubic")),
    "averaging vector as a buffer": (MeanBuffer, ("average",)),
    "constants of GELU as buffers of float64": (ExactGelu, ("root", "cubic")),
    "averaging vector as a buffer of float64": (ExactMean, ("average",)),
}
