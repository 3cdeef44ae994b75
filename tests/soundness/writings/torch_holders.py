"""Weights held in unusual places. Every class only says where they are; `run` is the same for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.writings.official import Affine, Weights, leaves, of_leaves, official
from tests.soundness.writings.torch_plain import gelu, norm


def dense(x: Tensor, affine: Affine) -> Tensor:
    return x @ affine.weight + affine.bias


def run(weights: Weights, images: Tensor) -> Tensor:
    """The official function of weights in Flax's orientation."""
    kernel, bias = weights.stem
    x = F.conv2d(images, kernel.permute(3, 2, 0, 1), bias, weights.config.patch_hw).flatten(2).mT
    for block in weights.blocks:
        y = norm(x, *block.norm_0).mT
        x = x + dense(gelu(dense(y, block.tokens_0)), block.tokens_1).mT
        x = x + dense(gelu(dense(norm(x, *block.norm_1), block.channels_0)), block.channels_1)
    return dense(norm(x, *weights.norm).mean(1), weights.head)


class Holder(nn.Module):
    """Asks for all tensors in canonical order at each call."""

    def __init__(self) -> None:
        super().__init__()
        weights = official()
        self.config = weights.config
        self.hold(leaves(weights))

    def hold(self, tensors: list[Tensor]) -> None:
        raise NotImplementedError

    def tensors(self) -> Sequence[Tensor]:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return run(of_leaves(self.config, list(self.tensors())), images)


class Buffers(Holder):
    """All are buffers."""

    persistent = True

    def hold(self, tensors: list[Tensor]) -> None:
        for i, tensor in enumerate(tensors):
            self.register_buffer(f"w{i}", tensor, persistent=self.persistent)

    def tensors(self) -> Sequence[Tensor]:
        return [self.get_buffer(f"w{i}") for i in range(len(self._buffers))]


class SecretBuffers(Buffers):
    """Buffers that are in no state_dict."""

    persistent = False


class PlainAttributes(Holder):
    """Tensors as attributes, which torch does not see."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.count = len(tensors)
        for i, tensor in enumerate(tensors):
            setattr(self, f"w{i}", tensor)

    def tensors(self) -> Sequence[Tensor]:
        return [getattr(self, f"w{i}") for i in range(self.count)]


class PlainList(Holder):
    """A Python list of tensors."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.weights = tensors

    def tensors(self) -> Sequence[Tensor]:
        return self.weights


class PlainDict(Holder):
    """A dict of pairs of tensors that ask for gradients."""

    def hold(self, tensors: list[Tensor]) -> None:
        pairs = zip(tensors[::2], tensors[1::2], strict=True)
        self.layers = {
            f"layer {i}": {"w": w.requires_grad_(), "b": b.requires_grad_()} for i, (w, b) in enumerate(pairs)
        }

    def tensors(self) -> Sequence[Tensor]:
        return [tensor for layer in self.layers.values() for tensor in layer.values()]


@dataclasses.dataclass
class Box:
    weight: Tensor
    bias: Tensor


class Dataclasses(Holder):
    """Dataclasses of tensors, in a tuple."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.boxes = tuple(Box(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True))

    def tensors(self) -> Sequence[Tensor]:
        return [tensor for box in self.boxes for tensor in (box.weight, box.bias)]


@dataclasses.dataclass(slots=True)
class SlottedBox:
    weight: Tensor
    bias: Tensor


class Slots(Holder):
    """Dataclasses with slots, of tensors, in a tuple."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.boxes = tuple(SlottedBox(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True))

    def tensors(self) -> Sequence[Tensor]:
        return [tensor for box in self.boxes for tensor in (box.weight, box.bias)]


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    count: int
    name: str = "mixer"


class ConfigInSlots(Holder):
    """A frozen configuration with slots beside the parameters."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.sizes = Sizes(len(tensors))
        self.held = nn.ParameterList(nn.Parameter(tensor) for tensor in tensors)

    def tensors(self) -> Sequence[Tensor]:
        return [self.held[i] for i in range(self.sizes.count)]


class NumpyArrays(Holder):
    """NumPy arrays, made tensors at each call."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.arrays = [tensor.numpy() for tensor in tensors]

    def tensors(self) -> Sequence[Tensor]:
        return [torch.from_numpy(array) for array in self.arrays]


class PythonNumbers(Holder):
    """Nested lists of Python numbers, made tensors at each call."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.numbers: list[Any] = [tensor.tolist() for tensor in tensors]

    def tensors(self) -> Sequence[Tensor]:
        return [torch.tensor(numbers) for numbers in self.numbers]


class Closure(Holder):
    """A function that has them in its closure."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.get = lambda: tensors

    def tensors(self) -> Sequence[Tensor]:
        return self.get()


class Frozen(Holder):
    """Parameters that ask for no gradient."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.frozen = nn.ParameterList(nn.Parameter(tensor, requires_grad=False) for tensor in tensors)

    def tensors(self) -> Sequence[Tensor]:
        return list(self.frozen)


class Backwards(Holder):
    """Every array's axes stand in the opposite order, and so do the arrays."""

    def hold(self, tensors: list[Tensor]) -> None:
        turned = [tensor.permute(*reversed(range(tensor.ndim))).contiguous() for tensor in reversed(tensors)]
        self.turned = nn.ParameterList(nn.Parameter(tensor) for tensor in turned)

    def tensors(self) -> Sequence[Tensor]:
        return [p.permute(*reversed(range(p.ndim))) for p in reversed(list(self.turned))]


class Embeddings(Holder):
    """Each array is a row of an embedding, looked up at each call."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.shapes = [tensor.shape for tensor in tensors]
        self.rows = nn.ModuleList(nn.Embedding.from_pretrained(t.reshape(1, -1), freeze=False) for t in tensors)

    def tensors(self) -> Sequence[Tensor]:
        row = torch.tensor(0)
        return [table(row).view(shape) for table, shape in zip(self.rows, self.shapes, strict=True)]


class Sums(Holder):
    """Each is the sum of a base that was trained before and of a change."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.base = nn.ParameterList(nn.Parameter(tensor / 2) for tensor in tensors)
        self.change = nn.ParameterList(nn.Parameter(tensor / 2) for tensor in tensors)

    def tensors(self) -> Sequence[Tensor]:
        return [base + change for base, change in zip(self.base, self.change, strict=True)]


class ZeroCentred(Holder):
    """LayerNorm scales are held as what they are beyond one."""

    def hold(self, tensors: list[Tensor]) -> None:
        shifted = [t - 1 if self.is_scale(i, tensors) else t for i, t in enumerate(tensors)]
        self.shifted = nn.ParameterList(nn.Parameter(tensor) for tensor in shifted)

    @staticmethod
    def is_scale(i: int, tensors: Sequence[Tensor]) -> bool:
        return i % 2 == 0 and tensors[i].ndim == 1

    def tensors(self) -> Sequence[Tensor]:
        held = list(self.shifted)
        return [1 + t if self.is_scale(i, held) else t for i, t in enumerate(held)]


class LowRank(Holder):
    """Each kernel has a change of rank 2 beside it, as after fine-tuning; the change was zero when it began."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.base = nn.ParameterList(nn.Parameter(tensor) for tensor in tensors)
        matrices = [i for i, tensor in enumerate(tensors) if tensor.ndim == 2]
        self.down = nn.ParameterDict({str(i): nn.Parameter(torch.randn(len(tensors[i]), 2)) for i in matrices})
        self.up = nn.ParameterDict({str(i): nn.Parameter(torch.zeros(2, tensors[i].shape[1])) for i in matrices})

    def tensors(self) -> Sequence[Tensor]:
        changed = {int(i): self.base[int(i)] + 0.5 * (self.down[i] @ self.up[i]) for i in self.down}
        return [changed.get(i, tensor) for i, tensor in enumerate(self.base)]


class Standardised(Holder):
    """Each kernel is a direction of unit norm times a length, of which neither is divided by 0."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.directions = nn.ParameterList(nn.Parameter(tensor.clone()) for tensor in tensors)
        self.lengths = nn.ParameterList(nn.Parameter(tensor.norm()) for tensor in tensors)

    def tensors(self) -> Sequence[Tensor]:
        pairs = zip(self.directions, self.lengths, strict=True)
        return [length * v / v.norm().clamp(min=1e-12) for v, length in pairs]


class Cached(Holder):
    """Transposes of the parameters are kept from the first call on, as long as the parameters do not change."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.held = nn.ParameterList(nn.Parameter(t.permute(*reversed(range(t.ndim)))) for t in tensors)
        self.cache: dict[tuple[int, int], Tensor] = {}

    def tensors(self) -> Sequence[Tensor]:
        return [self.turned(parameter) for parameter in self.held]

    def turned(self, parameter: Tensor) -> Tensor:
        key = id(parameter), parameter._version
        if key not in self.cache or torch.is_grad_enabled():
            self.cache[key] = parameter.permute(*reversed(range(parameter.ndim)))
        return self.cache[key]


class StructuredArray(NumpyArrays):
    """One flat NumPy vector, cut at each call."""

    def hold(self, tensors: list[Tensor]) -> None:
        super().hold(tensors)
        self.flat = np.concatenate([array.ravel() for array in self.arrays])

    def tensors(self) -> Sequence[Tensor]:
        bounds = np.cumsum([array.size for array in self.arrays])[:-1]
        parts = np.split(self.flat, bounds)
        return [torch.as_tensor(part.reshape(a.shape)) for part, a in zip(parts, self.arrays, strict=True)]


HOLDERS: dict[str, type[nn.Module]] = {
    "buffers": Buffers,
    "buffers in no state_dict": SecretBuffers,
    "attributes": PlainAttributes,
    "list": PlainList,
    "dict that asks for gradients": PlainDict,
    "dataclasses": Dataclasses,
    "dataclasses with slots": Slots,
    "a configuration with slots": ConfigInSlots,
    "closure": Closure,
    "frozen": Frozen,
    "axes and arrays backwards": Backwards,
    "embeddings": Embeddings,
    "sum of base and change": Sums,
    "scales beyond one": ZeroCentred,
    "low-rank changes": LowRank,
    "unit directions times lengths": Standardised,
    "cached transposes": Cached,
}
# Not seen by torch, because they are tensors only during a call.
FOREIGN_HOLDERS: dict[str, type[nn.Module]] = {
    "NumPy arrays": NumpyArrays,
    "one NumPy vector": StructuredArray,
    "Python numbers": PythonNumbers,
}
