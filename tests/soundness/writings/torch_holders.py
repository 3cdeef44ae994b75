"""Weights held in unusual places. Every class only says where they are; `run` is the same for all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.writings.official import Affine, Block, Weights, leaves, of_leaves, official
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


class FlatVector(Holder):
    """One vector of all numbers, cut by `narrow`."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.shapes = [tensor.shape for tensor in tensors]
        self.vector = nn.Parameter(torch.cat([tensor.flatten() for tensor in tensors]))

    def tensors(self) -> Sequence[Tensor]:
        parts, at = [], 0
        for shape in self.shapes:
            parts.append(self.vector.narrow(0, at, math.prod(shape)).reshape(shape))
            at += math.prod(shape)
        return parts


class FlatBuffer(FlatVector):
    """The same as a buffer."""

    def hold(self, tensors: list[Tensor]) -> None:
        super().hold(tensors)
        vector = self.vector.detach()
        del self.vector
        self.register_buffer("vector", vector)


class Matrices(Holder):
    """Kernel and bias of a layer in one matrix, the bias as its last row; cut apart at each call."""

    def hold(self, tensors: list[Tensor]) -> None:
        pairs = zip(tensors[::2], tensors[1::2], strict=True)
        self.shapes = [w.shape for w in tensors[::2]]
        self.matrices = nn.ParameterList(nn.Parameter(torch.vstack([w.reshape(-1, len(b)), b])) for w, b in pairs)

    def tensors(self) -> Sequence[Tensor]:
        parts = zip(self.matrices, self.shapes, strict=True)
        return [t for m, shape in parts for t in (m[:-1].reshape(shape), m[-1])]


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


class Corner(Holder):
    """Each is the corner of an array that has room for more, as in networks that grow."""

    def hold(self, tensors: list[Tensor]) -> None:
        self.shapes = [tensor.shape for tensor in tensors]
        self.room = nn.ParameterList(nn.Parameter(F.pad(tensor, [0, 3] * tensor.ndim)) for tensor in tensors)

    def tensors(self) -> Sequence[Tensor]:
        return [p[tuple(map(slice, shape))] for p, shape in zip(self.room, self.shapes, strict=True)]


class Stacked(nn.Module):
    """The arrays of all blocks are one parameter of each kind, indexed by negative numbers."""

    def __init__(self) -> None:
        super().__init__()
        weights = official()
        self.config = weights.config
        kinds = zip(*weights.blocks, strict=True)
        self.stacks = nn.ParameterList(
            nn.Parameter(torch.stack(part)) for kind in kinds for part in zip(*kind, strict=True)
        )
        self.ends = nn.ParameterList(
            nn.Parameter(part) for affine in (weights.stem, weights.norm, weights.head) for part in affine
        )

    def block(self, i: int) -> Block:
        parts = [stack[i - self.config.num_blocks] for stack in self.stacks]
        return Block(*map(Affine, parts[::2], parts[1::2]))

    def forward(self, images: Tensor) -> Tensor:
        stem, final, head = (Affine(self.ends[i], self.ends[i + 1]) for i in (0, 2, 4))
        blocks = tuple(map(self.block, range(self.config.num_blocks)))
        return run(Weights(self.config, stem, blocks, final, head), images)


class StackedLast(Stacked):
    """Stacked along the last axis, a stack of buffers."""

    def __init__(self) -> None:
        super().__init__()
        stacks = [stack.detach().movedim(0, -1).contiguous() for stack in self.stacks]
        del self.stacks
        self.count = len(stacks)
        for i, stack in enumerate(stacks):
            self.register_buffer(f"stack{i}", stack)

    def block(self, i: int) -> Block:
        parts = [self.get_buffer(f"stack{k}")[..., i] for k in range(self.count)]
        return Block(*map(Affine, parts[::2], parts[1::2]))


class OneStack(nn.Module):
    """Both kernels of an MLP in one array (2, mlp, dim), the second transposed; both LayerNorms in one (4, d)."""

    def __init__(self) -> None:
        super().__init__()
        w = official()
        self.config = w.config
        self.token_mlps = nn.Parameter(
            torch.stack([torch.stack([b.tokens_0.weight.T, b.tokens_1.weight]) for b in w.blocks])
        )
        self.channel_mlps = nn.Parameter(
            torch.stack([torch.stack([b.channels_0.weight.T, b.channels_1.weight]) for b in w.blocks])
        )
        self.norms = nn.Parameter(torch.stack([torch.stack([*b.norm_0, *b.norm_1]) for b in w.blocks]))
        self.biases = nn.ParameterList(
            nn.Parameter(torch.cat([b.tokens_0.bias, b.tokens_1.bias, b.channels_0.bias, b.channels_1.bias]))
            for b in w.blocks
        )
        self.ends = nn.ParameterList(nn.Parameter(part) for affine in (w.stem, w.norm, w.head) for part in affine)

    def block(self, i: int) -> Block:
        c = self.config
        widths = [c.tokens_mlp_dim, c.num_tokens, c.channels_mlp_dim, c.hidden_dim]
        b = self.biases[i].split(widths)
        (t0, t1), (c0, c1), (s0, o0, s1, o1) = self.token_mlps[i], self.channel_mlps[i], self.norms[i]
        tokens, channels = (Affine(t0.T, b[0]), Affine(t1, b[1])), (Affine(c0.T, b[2]), Affine(c1, b[3]))
        return Block(Affine(s0, o0), *tokens, Affine(s1, o1), *channels)

    def forward(self, images: Tensor) -> Tensor:
        stem, final, head = (Affine(self.ends[i], self.ends[i + 1]) for i in (0, 2, 4))
        blocks = tuple(map(self.block, range(self.config.num_blocks)))
        return run(Weights(self.config, stem, blocks, final, head), images)


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
    "closure": Closure,
    "flat vector": FlatVector,
    "flat buffer": FlatBuffer,
    "kernel and bias in one matrix": Matrices,
    "frozen": Frozen,
    "axes and arrays backwards": Backwards,
    "embeddings": Embeddings,
    "sum of base and change": Sums,
    "corner of a larger array": Corner,
    "stacked": Stacked,
    "stacked along the last axis, buffers": StackedLast,
    "MLP in one array": OneStack,
    "scales beyond one": ZeroCentred,
    "low-rank changes": LowRank,
    "cached transposes": Cached,
}
# Not seen by torch, because they are tensors only during a call.
FOREIGN_HOLDERS: dict[str, type[nn.Module]] = {
    "NumPy arrays": NumpyArrays,
    "one NumPy vector": StructuredArray,
    "Python numbers": PythonNumbers,
}
