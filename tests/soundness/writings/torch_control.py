"""How blocks are held and called: containers, loops, checkpoints."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.soundness.cases import CONFIG
from tests.soundness.writings.official import official
from tests.soundness.writings.torch_plain import Mixer, MixerBlock, conv, gelu, layer_norm, linear
from tests.soundness.writings.torch_wrappers import Lambda


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def sequential() -> nn.Module:
    """One Sequential of layers and lambdas."""
    w = official()
    turn, act = Lambda(lambda x: x.transpose(1, 2)), Lambda(gelu)
    layers: list[nn.Module] = [conv(w.stem), nn.Flatten(2), turn]
    for b in w.blocks:
        layers.append(Residual(layer_norm(b.norm_0), turn, linear(b.tokens_0), act, linear(b.tokens_1), turn))
        layers.append(Residual(layer_norm(b.norm_1), linear(b.channels_0), act, linear(b.channels_1)))
    return nn.Sequential(*layers, layer_norm(w.norm), Lambda(lambda x: x.mean(1)), linear(w.head))


class Dictionary(nn.Module):
    """A ModuleDict whose keys are looked up by names put together on the way."""

    def __init__(self) -> None:
        super().__init__()
        w = official()
        self.parts = nn.ModuleDict({"head": linear(w.head), "norm": layer_norm(w.norm), "stem": conv(w.stem)})
        for i, block in enumerate(w.blocks):
            for name, affine in block._asdict().items():
                self.parts[f"{name}__{i}"] = layer_norm(affine) if "norm" in name else linear(affine)

    def forward(self, images: Tensor) -> Tensor:
        x = self.parts["stem"](images).flatten(2).mT
        for i in range(CONFIG.num_blocks):
            p = {name: self.parts[f"{name}__{i}"] for name in official().blocks[0]._fields}
            x = x + p["tokens_1"](gelu(p["tokens_0"](p["norm_0"](x).mT))).mT
            x = x + p["channels_1"](gelu(p["channels_0"](p["norm_1"](x))))
        return self.parts["head"](self.parts["norm"](x).mean(1))


class Steps(Mixer):
    """Bound methods in a list, called one after the other."""

    def forward(self, images: Tensor) -> Tensor:
        steps = [self.embed, *self.blocks, self.classify]
        return reduce(lambda x, step: step(x), steps, images)


class Composed(nn.Module):
    """Blocks within blocks: each holds all that come after it."""

    def __init__(self, mixer: Mixer | None = None, depth: int = 0) -> None:
        super().__init__()
        mixer = Mixer() if mixer is None else mixer
        last = depth == len(mixer.blocks)
        self.stem = mixer.stem if depth == 0 else None
        self.block = None if last else mixer.blocks[depth]
        self.rest = None if last else Composed(mixer, depth + 1)
        self.norm: nn.Module = mixer.norm if last else nn.Identity()
        self.head: nn.Module = mixer.head if last else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.stem is not None:
            x = self.stem(x).flatten(2).mT
        if self.rest is not None and self.block is not None:
            return self.rest(self.block(x))
        return self.head(self.norm(x).mean(1))


class MixerOfTuples(Mixer):
    """Blocks in tuples of plain Python, not registered but for a ModuleList of a flat view."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = tuple((block.tokens, block.channels) for block in self.blocks)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for layer in self.layers:
            for branch in layer:
                x = operator.add(x, branch(x))
        return self.classify(x)


class Unregistered(Mixer):
    """Blocks in a plain list, which torch does not see."""

    def __init__(self) -> None:
        super().__init__()
        blocks = list(self.blocks)
        del self.blocks
        self.hidden_blocks = blocks

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.hidden_blocks:
            x = block(x)
        return self.classify(x)


class Checkpointed(Mixer):
    """Blocks are computed anew on the way back."""

    reentrant = False

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.classify(x)


class CheckpointedSequential(Mixer):
    """`checkpoint_sequential` over all blocks."""

    def forward(self, images: Tensor) -> Tensor:
        x = checkpoint_sequential(self.blocks, 2, self.embed(images), use_reentrant=False)
        return self.classify(x)


class ByFunctionalCall(Mixer):
    """One block is called with the parameters of each."""

    def forward(self, images: Tensor) -> Tensor:
        x, template = self.embed(images), self.blocks[0]
        for block in self.blocks:
            x = functional_call(template, dict(block.named_parameters()), (x,))
        return self.classify(x)


class Late(Mixer):
    """Layers are made in the first call, by copies of what `__init__` made."""

    def forward(self, images: Tensor) -> Tensor:
        if not hasattr(self, "order"):
            self.order = tuple(range(len(self.blocks)))
        x = self.embed(images)
        for i in self.order:
            x = self.blocks[i](x)
        return self.classify(x)


class Matched(Mixer):
    """A `match` over the kinds of layers."""

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for layer in (self.stem, *self.blocks, self.norm, self.head):
            match layer:
                case nn.Conv2d():
                    x = layer(x).flatten(2).mT
                case nn.LayerNorm():
                    x = layer(x).mean(1)
                case MixerBlock() | nn.Linear():
                    x = layer(x)
        return x


class While(Mixer):
    """A `while` loop over an iterator."""

    def forward(self, images: Tensor) -> Tensor:
        x, blocks = self.embed(images), iter(self.blocks)
        while (block := next(blocks, None)) is not None:
            x = block(x)
        return self.classify(x)


class Inherited(Checkpointed):
    """A subclass of a subclass that adds a keyword and hands on what it is given."""

    def forward(self, images: Tensor, *args: Any, verbose: bool = False, **kwargs: Any) -> Tensor:
        return super().forward(images, *args, **kwargs)


CONTROL: dict[str, Callable[[], nn.Module]] = {
    "Sequential of lambdas": sequential,
    "ModuleDict by formatted keys": Dictionary,
    "bound methods in a list": Steps,
    "each block holds the rest": Composed,
    "tuples of bound methods": MixerOfTuples,
    "blocks in a plain list": Unregistered,
    "checkpoint": Checkpointed,
    "checkpoint_sequential": CheckpointedSequential,
    "functional_call of one block": ByFunctionalCall,
    "order decided in the first call": Late,
    "match": Matched,
    "while": While,
    "inherited, keywords": Inherited,
}
