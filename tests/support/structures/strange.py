"""Official Mixers written in ways that nobody would expect, each by itself: the same function, under other names."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from mixer_equiv.config import MixerConfig

GELU = functools.partial(F.gelu, approximate="tanh")


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class Convolutional(nn.Module):
    """Every layer a convolution: 1x1 Conv2d over the grid for channels, Conv1d over tokens as its channels."""

    def __init__(self, c: MixerConfig) -> None:
        super().__init__()
        self.zebra = nn.Conv2d(c.hidden_dim, c.num_classes, 1)  # registered first, used last
        self.grid = c.grid_hw
        self.yak = nn.ModuleList()
        for _ in range(c.num_blocks):
            self.yak.append(
                nn.ModuleDict(
                    {
                        "out": nn.Conv2d(c.channels_mlp_dim, c.hidden_dim, 1),
                        "in": nn.Conv2d(c.hidden_dim, c.channels_mlp_dim, 1),
                        "sideways": nn.Conv1d(c.num_tokens, c.tokens_mlp_dim, 1),
                        "back": nn.Conv1d(c.tokens_mlp_dim, c.num_tokens, 1),
                        "m": nn.LayerNorm(c.hidden_dim, eps=1e-6),
                        "n": nn.LayerNorm(c.hidden_dim, eps=1e-6),
                    }
                )
            )
        self.last = nn.LayerNorm(c.hidden_dim, eps=1e-6)
        self.first = nn.Conv2d(c.in_channels, c.hidden_dim, c.patch_hw, c.patch_hw)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layers in self.yak:
            tokens = x.flatten(2).mT
            x = x + layers["back"](GELU(layers["sideways"](layers["n"](tokens)))).mT.reshape(x.shape)
            y = layers["m"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
            x = x + layers["out"](GELU(layers["in"](y)))
        x = self.last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.zebra(F.adaptive_avg_pool2d(x, 1)).flatten(1)


class Depthwise(nn.Module):
    """Token mixing as a convolution of every channel with one filter, repeated, as the tutorial's notebook has it."""

    def __init__(self, c: MixerConfig) -> None:
        super().__init__()
        self.c = c
        self.cutting = nn.Linear(c.in_channels * math.prod(c.patch_hw), c.hidden_dim)
        self.filters = nn.ParameterList()
        for _ in range(c.num_blocks):
            self.filters.append(nn.Parameter(torch.randn(c.tokens_mlp_dim, 1, c.num_tokens)))
            self.filters.append(nn.Parameter(torch.randn(c.tokens_mlp_dim)))
            self.filters.append(nn.Parameter(torch.randn(c.num_tokens, 1, c.tokens_mlp_dim)))
            self.filters.append(nn.Parameter(torch.randn(c.num_tokens)))
        self.pairs = nn.ModuleList(nn.Linear(c.hidden_dim, c.channels_mlp_dim) for _ in range(c.num_blocks))
        self.backs = nn.ModuleList(nn.Linear(c.channels_mlp_dim, c.hidden_dim) for _ in range(c.num_blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(c.hidden_dim, eps=1e-6) for _ in range(2 * c.num_blocks + 1))
        self.head = nn.Linear(c.hidden_dim, c.num_classes)

    def mix(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        d = self.c.hidden_dim
        y = F.conv1d(x, weight.repeat(d, 1, 1), bias.repeat(d), groups=d)  # (batch, hidden * out, 1)
        return y.reshape(len(x), d, -1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.unfold(x, self.c.patch_hw, stride=self.c.patch_hw).mT
        x = self.cutting(x)
        for i in range(self.c.num_blocks):
            w, b, w2, b2 = self.filters[4 * i : 4 * i + 4]
            y = GELU(self.mix(self.norms[2 * i](x).mT, w, b))
            x = x + self.mix(y, w2, b2).mT
            x = x + self.backs[i](GELU(self.pairs[i](self.norms[2 * i + 1](x))))
        return self.head(self.norms[-1](x).mean(1))


class Stacked(nn.Module):
    """The weights of all blocks in one parameter each, and everything by einsum."""

    def __init__(self, c: MixerConfig, *, unbind: bool = False) -> None:
        super().__init__()
        self.c, self.unbind = c, unbind
        n, d, s, t, u = c.num_blocks, c.hidden_dim, c.num_tokens, c.tokens_mlp_dim, c.channels_mlp_dim
        shapes = {"g": (n, 2, d), "h": (n, 2, d), "tu": (n, s, t), "tub": (n, t), "td": (n, t, s), "tdb": (n, s)}
        shapes |= {"cu": (n, d, u), "cub": (n, u), "cd": (n, u, d), "cdb": (n, d)}
        if unbind:
            shapes |= {"g": (n, d), "h": (n, d), "g2": (n, d), "h2": (n, d)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) / 4))
        ph, pw = c.patch_hw
        self.e = nn.Parameter(torch.randn(d, ph, pw, c.in_channels))
        self.eb = nn.Parameter(torch.randn(d))
        self.fg, self.fh = nn.Parameter(torch.randn(d)), nn.Parameter(torch.randn(d))
        self.k = nn.Parameter(torch.randn(c.num_classes, d))
        self.kb = nn.Parameter(torch.randn(c.num_classes))

    @staticmethod
    def norm(x: Tensor, g: Tensor, h: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, dim=-1, unbiased=False, keepdim=True)
        return torch.addcmul(h, (x - mean) / torch.sqrt(var + 1e-6), g)

    def forward(self, x: Tensor) -> Tensor:
        (ph, pw), c = self.c.patch_hw, self.c
        x = rearrange(x, "b c (h p) (w q) -> b (h w) p q c", p=ph, q=pw)
        x = torch.einsum("bnpqc,dpqc->bnd", x, self.e) + self.eb
        parts = [p.unbind(0) for p in (self.tu, self.tub, self.td, self.tdb, self.cu, self.cub, self.cd, self.cdb)]
        for i in range(c.num_blocks):
            tu, tub, td, tdb, cu, cub, cd, cdb = (part[i] for part in parts)
            g, h, g2, h2 = (
                (self.g[i], self.h[i], self.g2[i], self.h2[i])
                if self.unbind
                else (self.g[i, 0], self.h[i, 0], self.g[i, 1], self.h[i, 1])
            )
            y = torch.einsum("bsd,st->bdt", self.norm(x, g, h), tu) + tub
            x = x + (torch.einsum("bdt,ts->bsd", GELU(y), td) + tdb[:, None])
            y = torch.einsum("bsd,du->bsu", self.norm(x, g2, h2), cu) + cub
            x = x + (torch.einsum("bsu,ud->bsd", GELU(y), cd) + cdb)
        x = self.norm(x, self.fg, self.fh)
        return torch.einsum("bd,kd->bk", x.sum(1) / x.shape[1], self.k) + self.kb


class LeftHanded(nn.Module):
    """Bare matrix products from the left on (batch, tokens, hidden), everything written by hand, in place."""

    def __init__(self, c: MixerConfig) -> None:
        super().__init__()
        self.c = c
        self.everything = nn.ParameterDict()
        add = self.everything.__setitem__
        ph, pw = c.patch_hw
        add("e", nn.Parameter(torch.randn(pw * ph * c.in_channels, c.hidden_dim)))
        add("e0", nn.Parameter(torch.randn(c.hidden_dim)))
        for i in range(c.num_blocks):
            for name in ("s1", "b1", "s2", "b2"):
                add(f"{name}~{i}", nn.Parameter(torch.randn(c.hidden_dim)))
            add(f"L~{i}", nn.Parameter(torch.randn(c.tokens_mlp_dim, c.num_tokens)))
            add(f"l~{i}", nn.Parameter(torch.randn(c.tokens_mlp_dim, 1)))
            add(f"M~{i}", nn.Parameter(torch.randn(c.num_tokens, c.tokens_mlp_dim)))
            add(f"m~{i}", nn.Parameter(torch.randn(c.num_tokens, 1)))
            add(f"R~{i}", nn.Parameter(torch.randn(c.hidden_dim, c.channels_mlp_dim)))
            add(f"r~{i}", nn.Parameter(torch.randn(1, 1, c.channels_mlp_dim)))
            add(f"Q~{i}", nn.Parameter(torch.randn(c.channels_mlp_dim, c.hidden_dim)))
            add(f"q~{i}", nn.Parameter(torch.randn(1, 1, c.hidden_dim)))
        add("s", nn.Parameter(torch.randn(c.hidden_dim)))
        add("b", nn.Parameter(torch.randn(c.hidden_dim)))
        add("w", nn.Parameter(torch.randn(c.hidden_dim, c.num_classes)))
        add("w0", nn.Parameter(torch.randn(c.num_classes)))

    @staticmethod
    def normed(x: Tensor, s: Tensor, b: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        var = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) * torch.rsqrt(var + 1e-6) * s + b

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        p, (ph, pw) = self.everything, self.c.patch_hw
        x = rearrange(x, "b c (h ph) (w pw) -> b (h w) (pw ph c)", ph=ph, pw=pw) @ p["e"]
        x += p["e0"]
        for i in range(self.c.num_blocks):
            y = tanh_gelu(p[f"L~{i}"] @ self.normed(x, p[f"s1~{i}"], p[f"b1~{i}"]) + p[f"l~{i}"])
            x += p[f"M~{i}"] @ y
            x += p[f"m~{i}"]
            y = tanh_gelu(self.normed(x, p[f"s2~{i}"], p[f"b2~{i}"]) @ p[f"R~{i}"] + p[f"r~{i}"])
            x.add_(y @ p[f"Q~{i}"] + p[f"q~{i}"])
        x = self.normed(x, p["s"], p["b"])
        return {"features": x, "logits": reduce(x, "b n d -> b d", "mean") @ p["w"] + p["w0"]}


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


class Hidden(nn.Module):
    """Channel weights in plain lists, which no state_dict holds; weight_norm on the others; an object returned."""

    def __init__(self, c: MixerConfig) -> None:
        super().__init__()
        self.c = c
        self.embed = nn.Conv2d(c.in_channels, c.hidden_dim, c.patch_hw, c.patch_hw)
        self.tokens = nn.ModuleList(
            nn.Sequential(
                nn.Linear(c.num_tokens, c.tokens_mlp_dim), nn.GELU("tanh"), nn.Linear(c.tokens_mlp_dim, c.num_tokens)
            )
            for _ in range(c.num_blocks)
        )
        self.channels = [
            (nn.Linear(c.hidden_dim, c.channels_mlp_dim), nn.Linear(c.channels_mlp_dim, c.hidden_dim))
            for _ in range(c.num_blocks)
        ]
        self.scales = [nn.Parameter(torch.ones(c.hidden_dim)) for _ in range(2 * c.num_blocks + 1)]
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(c.hidden_dim)) for _ in range(2 * c.num_blocks + 1))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(c.hidden_dim, c.num_classes)

    def norm(self, i: int, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], None, None, 1e-6) * self.scales[i] + self.shifts[i]

    def forward(self, x: Tensor, mask: Tensor | None = None, *, verbose: bool = False) -> Answer:
        x = x.float()
        x = self.embed(x).flatten(2).transpose(1, 2)
        for i, (up, down) in enumerate(self.channels):
            x = x + self.drop(self.tokens[i](self.norm(2 * i, x).transpose(1, 2)).transpose(1, 2))
            self.seen = up(self.norm(2 * i + 1, x))
            x = x + down(GELU(self.seen))
        return Answer(self.head(self.norm(-1, x).mean(1).to(torch.float32)), x)


def reparameterised(c: MixerConfig) -> nn.Module:
    model = Convolutional(c)
    for layers in model.yak:
        for name in ("in", "out", "sideways", "back"):
            torch.nn.utils.parametrizations.weight_norm(layers[name])
    return model


class ByImage(nn.Module):
    """A loop over images, under autocast, with a preallocated result and the residual inside the product."""

    def __init__(self, c: MixerConfig) -> None:
        super().__init__()
        self.inner = Convolutional(c)
        self.c = c

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            out = torch.empty(len(x), self.c.num_classes, dtype=x.dtype)
            for i, image in enumerate(x):
                out[i] = self.inner(image[None])[0]
        return out, out.argmax(-1)


class Fused(nn.Module):
    """addmm and baddbmm with the residual as their first argument, and two affine layers as the stem."""

    def __init__(self, c: MixerConfig, *, double_stem: bool = True) -> None:
        super().__init__()
        self.c = c
        self.one = nn.Conv2d(c.in_channels, 13 if double_stem else c.hidden_dim, c.patch_hw, c.patch_hw)
        self.two = nn.Linear(13, c.hidden_dim) if double_stem else nn.Identity()
        self.blocks = nn.ModuleList(Convolutional(c).yak[0] for _ in range(c.num_blocks))
        self.norm = nn.LayerNorm(c.hidden_dim, eps=1e-6)
        self.head = nn.Linear(c.hidden_dim, c.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(rearrange(self.one(x), "b d h w -> b (h w) d"))
        b, s, d = x.shape
        for p in self.blocks:
            y = GELU(p["sideways"](p["n"](x)))
            x = torch.baddbmm(x, p["back"].weight[:, :, 0].expand(b, -1, -1), y) + p["back"].bias[:, None]
            y = GELU(F.conv2d(p["m"](x).mT[..., None], p["in"].weight, p["in"].bias))[..., 0].mT
            stream, weight = (x + p["out"].bias).reshape(b * s, d), p["out"].weight[:, :, 0, 0].T
            x = torch.addmm(stream, y.reshape(b * s, -1), weight).reshape(b, s, d)
        return self.head(self.norm(x).mean(1))


STRANGE: dict[str, Callable[[MixerConfig], nn.Module]] = {
    "convolutional": Convolutional,
    "depthwise": Depthwise,
    "stacked": Stacked,
    "stacked, unbound": functools.partial(Stacked, unbind=True),
    "left-handed": LeftHanded,
    "hidden": Hidden,
    "reparameterised": reparameterised,
    "by image": ByImage,
    "fused": functools.partial(Fused, double_stem=False),
    "double stem": Fused,
}
