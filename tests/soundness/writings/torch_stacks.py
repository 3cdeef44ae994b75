"""Several weights in one array: vectors, matrices with the bias in them, stacks of blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.writings.official import Affine, Block, Weights, official
from tests.soundness.writings.torch_holders import Holder, run


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


STACKS: dict[str, type[nn.Module]] = {
    "flat vector": FlatVector,
    "flat buffer": FlatBuffer,
    "kernel and bias in one matrix": Matrices,
    "corner of a larger array": Corner,
    "stacked": Stacked,
    "stacked along the last axis, buffers": StackedLast,
    "MLP in one array": OneStack,
}
