"""The residual stream in other shapes and holders."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.writings.torch_plain import Mixer, MixerBlock, gelu, norm


def mlp(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    return second(gelu(first(x)))


class ChannelsFirst(Mixer):
    """The stream is (b, d, s)."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2)
        for block in self.blocks:
            x = x + mlp(block.norm_0(x.mT).mT, block.tokens_0, block.tokens_1)
            x = x + mlp(block.norm_1(x.mT), block.channels_0, block.channels_1).mT
        return self.head(self.norm(x.mT).mean(1))


class Rows(Mixer):
    """The stream is (b * s, d)."""

    def forward(self, images: Tensor) -> Tensor:
        b, s = len(images), self.config.num_tokens
        x = self.stem(images).permute(0, 2, 3, 1).reshape(b * s, -1)
        for block in self.blocks:
            y = mlp(block.norm_0(x).view(b, s, -1).mT, block.tokens_0, block.tokens_1)
            x = x + y.mT.reshape(b * s, -1)
            x = x + mlp(block.norm_1(x), block.channels_0, block.channels_1)
        return self.head(self.norm(x).view(b, s, -1).mean(1))


class Maps(Mixer):
    """The stream is a map (b, h, w, d)."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).movedim(1, -1)
        for block in self.blocks:
            y = mlp(block.norm_0(x).flatten(1, 2).mT, block.tokens_0, block.tokens_1)
            x = x + y.mT.view_as(x)
            x = x + mlp(block.norm_1(x), block.channels_0, block.channels_1)
        return self.head(self.norm(x).mean((1, 2)))


class TokensFirst(Mixer):
    """The stream is (s, b, d), as recurrent networks have it."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).permute(2, 0, 1)
        for block in self.blocks:
            x = x + mlp(block.norm_0(x).movedim(0, -1), block.tokens_0, block.tokens_1).movedim(-1, 0)
            x = x + mlp(block.norm_1(x), block.channels_0, block.channels_1)
        return self.head(self.norm(x).mean(0))


class BatchLast(Mixer):
    """The stream is (d, s, b)."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).permute(1, 2, 0)
        for block in self.blocks:
            y = norm(x.permute(2, 1, 0), block.norm_0.weight, block.norm_0.bias).permute(2, 1, 0)
            wide = gelu(torch.einsum("dsb,ts->dtb", y, block.tokens_0.weight) + block.tokens_0.bias[:, None])
            x = x + torch.einsum("dtb,st->dsb", wide, block.tokens_1.weight) + block.tokens_1.bias[:, None]
            x = x + mlp(block.norm_1(x.permute(2, 1, 0)), block.channels_0, block.channels_1).permute(2, 1, 0)
        return self.head(self.norm(x.permute(2, 1, 0)).mean(1))


class ListOfTokens(Mixer):
    """The stream is a list of tokens (b, d)."""

    def forward(self, images: Tensor) -> Tensor:
        tokens = list(self.embed(images).unbind(1))
        for block in self.blocks:
            mixed = mlp(torch.stack([block.norm_0(t) for t in tokens], -1), block.tokens_0, block.tokens_1)
            tokens = [token + more for token, more in zip(tokens, mixed.unbind(-1), strict=True)]
            tokens = [t + mlp(block.norm_1(t), block.channels_0, block.channels_1) for t in tokens]
        return self.head(sum(map(self.norm, tokens)) / len(tokens))


class ListOfImages(Mixer):
    """Each image has a stream (s, d) of its own, block by block."""

    def forward(self, images: Tensor) -> Tensor:
        streams = [self.stem(image).flatten(1).T for image in images]
        for block in self.blocks:
            streams = [x + mlp(block.norm_0(x).T, block.tokens_0, block.tokens_1).T for x in streams]
            streams = [x + mlp(block.norm_1(x), block.channels_0, block.channels_1) for x in streams]
        return torch.stack([self.head(self.norm(x).mean(0)) for x in streams])


class Halves(Mixer):
    """The stream is two halves of its channels, put together for every LayerNorm."""

    def forward(self, images: Tensor) -> Tensor:
        a, b = self.embed(images).chunk(2, -1)
        for block in self.blocks:
            da, db = block.tokens(torch.cat([a, b], -1)).chunk(2, -1)
            a, b = a + da, b + db
            da, db = block.channels(torch.cat([a, b], -1)).chunk(2, -1)
            a, b = a + da, b + db
        return self.classify(torch.cat([a, b], -1))


class Accumulated(Mixer):
    """All branches are kept in a list, and the stream is their sum."""

    def forward(self, images: Tensor) -> Tensor:
        branches = [self.embed(images)]
        for block in self.blocks:
            branches.append(block.tokens(torch.stack(branches).sum(0)))
            branches.append(block.channels(torch.stack(branches).sum(0)))
        return self.classify(torch.stack(branches).sum(0))


class InPlace(Mixer):
    """One tensor, added to through views of it."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).contiguous()
        turned = x.transpose(1, 2)
        for block in self.blocks:
            turned += block.tokens(x).mT
            x.view(-1).add_(block.channels(x).reshape(-1))
        return self.classify(x)


class Tape(Mixer):
    """Every state is written into one tensor (depth, b, s, d) that was made before."""

    def forward(self, images: Tensor) -> Tensor:
        first = self.embed(images)
        tape = first.new_empty(2 * len(self.blocks) + 1, *first.shape)
        tape[0] = first
        for i, block in enumerate(self.blocks):
            tape[2 * i + 1] = tape[2 * i] + block.tokens(tape[2 * i].clone())
            tape[2 * i + 2] = tape[2 * i + 1] + block.channels(tape[2 * i + 1].clone())
        return self.classify(tape[-1])


class Reduced(Mixer):
    """`functools.reduce` over branches."""

    def forward(self, images: Tensor) -> Tensor:
        branches = [branch for block in self.blocks for branch in (block.tokens, block.channels)]
        return self.classify(functools.reduce(lambda x, branch: x + branch(x), branches, self.embed(images)))


class Recursive(Mixer):
    """A block calls the rest of the network."""

    def rest(self, x: Tensor, i: int) -> Tensor:
        return self.classify(x) if i == len(self.blocks) else self.rest(self.blocks[i](x), i + 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.rest(self.embed(images), 0)


class Generated(Mixer):
    """A generator of states; the last one counts."""

    def states(self, x: Tensor) -> Iterator[Tensor]:
        yield x
        for block in self.blocks:
            x = x + block.tokens(x)
            yield x
            x = x + block.channels(x)
            yield x

    def forward(self, images: Tensor) -> Tensor:
        (last,) = deque(self.states(self.embed(images)), maxlen=1)
        return self.classify(last)


class Scaled(Mixer):
    """The stream is kept times 4, a power of two, and divided for every reader."""

    def forward(self, images: Tensor) -> Tensor:
        x = 4 * self.embed(images)
        for block in self.blocks:
            x = x + 4 * block.tokens(x / 4)
            x = x + 4 * block.channels(x / 4)
        return self.classify(x / 4)


class ColumnMajor(Mixer):
    """Tokens go down the columns of the grid between stem and first block, and back again."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        x = maps.mT.flatten(2).unflatten(2, (maps.shape[3], maps.shape[2])).mT.flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


class Shuffled(Mixer):
    """Images are put into another order, and the logits back into theirs."""

    def forward(self, images: Tensor) -> Tensor:
        order = torch.arange(len(images)).flip(0)
        return super().forward(images[order])[order.argsort()]


class PairOfBatches(Mixer):
    """The batch is cut into parts of two images, one after the other."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([super(PairOfBatches, self).forward(part) for part in images.split(2)])


class PaddedBatch(Mixer):
    """The batch is filled up to 8 with black images, whose logits are thrown away."""

    def forward(self, images: Tensor) -> Tensor:
        full = F.pad(images, (0, 0, 0, 0, 0, 0, 0, -len(images) % 8))
        return super().forward(full)[: len(images)]


class TwiceNested(Mixer):
    """The stream stands in a dict that is handed from one block to the other."""

    def step(self, state: dict[str, Tensor], block: MixerBlock) -> dict[str, Tensor]:
        x = state["x"] + block.tokens(state["x"])
        return {**state, "x": x + block.channels(x), "before": state["x"]}

    def forward(self, images: Tensor) -> Tensor:
        state = {"x": self.embed(images)}
        for block in self.blocks:
            state = self.step(state, block)
        return self.classify(state["x"])


class ImageTensor(Tensor):
    """A class of tensors that adds nothing, as libraries for images have."""


class OfAnotherClass(Mixer):
    """From the images on, all tensors are of another class."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.as_subclass(ImageTensor)).as_subclass(Tensor)


STREAMS: dict[str, type[nn.Module]] = {
    "channels first": ChannelsFirst,
    "rows": Rows,
    "maps": Maps,
    "tokens first": TokensFirst,
    "batch last": BatchLast,
    "list of tokens": ListOfTokens,
    "list of images": ListOfImages,
    "halves": Halves,
    "sum of a list": Accumulated,
    "in place, by views": InPlace,
    "tape": Tape,
    "functools.reduce": Reduced,
    "recursion": Recursive,
    "generator": Generated,
    "kept times 4": Scaled,
    "column-major and back": ColumnMajor,
    "images in another order and back": Shuffled,
    "two images at a time": PairOfBatches,
    "batch filled with black images": PaddedBatch,
    "dict": TwiceNested,
    "another class of tensors": OfAnotherClass,
}
