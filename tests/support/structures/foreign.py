"""The official function in strange writings, and a writing of its own with faults and deviations to plant.

`FOREIGN` are modules of the official function, each written by itself; `OwnMixer(config, faults)` differs
from it as named; `DEVIATIONS` are modules that differ in ways that are not among the named faults.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import einops
import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from mixer_equiv.config import MixerConfig

gelu = functools.partial(F.gelu, approximate="tanh")
norm = functools.partial(nn.LayerNorm, eps=1e-6)


def noise(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * shape[-1] ** -0.5)


def near_one(*shape: int) -> nn.Parameter:
    return nn.Parameter(1 + 0.2 * torch.randn(shape))


def widths(config: MixerConfig) -> tuple[int, int, int, int]:
    """Tokens, hidden, and the widths of the two MLPs."""
    return config.num_tokens, config.hidden_dim, config.tokens_mlp_dim, config.channels_mlp_dim


def patch_numbers(config: MixerConfig) -> int:
    return math.prod(config.patch_hw) * config.in_channels


def patch_conv(config: MixerConfig) -> nn.Conv2d:
    return nn.Conv2d(config.in_channels, config.hidden_dim, config.patch_hw, config.patch_hw)


def cut(config: MixerConfig, order: str, tokens: str = "h w") -> Rearrange:
    """(batch, channels, height, width) to (batch, tokens, the patch's axes c, ph and pw in `order`)."""
    ph, pw = config.patch_hw
    return Rearrange(f"b c (h ph) (w pw) -> b ({tokens}) ({order})", ph=ph, pw=pw)


# --- The official function ---


class Keep(nn.Module):
    """Remembers what passes."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        return x


class Rejoin(nn.Module):
    """Adds what a `Keep` remembers, which is in a list so as not to be registered twice."""

    def __init__(self, keep: Keep) -> None:
        super().__init__()
        self.keeps = [keep]

    def forward(self, x: Tensor) -> Tensor:
        return self.keeps[0].kept + x


class Flat(nn.Sequential):
    """One flat Sequential; the residuals pass by attributes."""

    def __init__(self, config: MixerConfig) -> None:
        s, d, ds, dc = widths(config)
        layers = [cut(config, "ph pw c"), nn.Linear(patch_numbers(config), d)]
        act = nn.GELU("tanh")
        for _ in range(config.num_blocks):
            swap = Rearrange("b n d -> b d n")
            first, second = Keep(), Keep()
            layers += [first, norm(d), swap, nn.Linear(s, ds), act, nn.Linear(ds, s), swap, Rejoin(first)]
            layers += [second, norm(d), nn.Linear(d, dc), act, nn.Linear(dc, d), Rejoin(second)]
        super().__init__(*layers, norm(d), Reduce("b n d -> b d", "mean"), nn.Linear(d, config.num_classes))


class Jumbled(nn.Module):
    """A ModuleDict, registered backwards under names that say nothing or something else; a tuple comes out."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.stem = nn.Linear(d, config.num_classes)
        self.encoder = nn.ModuleDict()
        for i in reversed(range(config.num_blocks)):
            for name, layer in {
                "attention_out": nn.Linear(dc, d),
                "query": nn.Linear(s, ds),
                "ln_after": norm(d),
                "value": nn.Linear(ds, s),
                "bias": nn.Linear(d, dc),
                "ln_before": norm(d),
            }.items():
                self.encoder[f"{name}@{i}"] = layer
        self.encoder["wte"], self.encoder["head"] = norm(d), patch_conv(config)
        self.blocks = config.num_blocks

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        part = self.encoder
        x = part["head"](images).flatten(2).transpose(1, 2)
        for i in range(self.blocks):
            y = part[f"query@{i}"](part[f"ln_after@{i}"](x).transpose(1, 2))
            x = x + part[f"value@{i}"](gelu(y)).transpose(1, 2)
            x = x + part[f"attention_out@{i}"](gelu(part[f"bias@{i}"](part[f"ln_before@{i}"](x))))
        features = part["wte"](x).mean(1)
        return self.stem(features), features


class Pointwise(nn.Module):
    """Every Linear is a Conv1d of kernel 1; the stream stays (batch, hidden, tokens)."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.zzz = nn.Conv1d(d, config.num_classes, 1)
        self.up = nn.ModuleList(nn.Conv1d(d, dc, 1) for _ in range(config.num_blocks))
        self.down = nn.ModuleList(nn.Conv1d(dc, d, 1) for _ in range(config.num_blocks))
        self.across = nn.ModuleList(nn.Conv1d(s, ds, 1) for _ in range(config.num_blocks))
        self.back = nn.ModuleList(nn.Conv1d(ds, s, 1) for _ in range(config.num_blocks))
        self.norms = nn.ModuleList(norm(d) for _ in range(2 * config.num_blocks + 1))
        self.aaa = patch_conv(config)

    def forward(self, images: Tensor) -> Tensor:
        x = self.aaa(images).flatten(2)
        for i in range(len(self.up)):
            x = x + self.back[i](gelu(self.across[i](self.norms[2 * i](x.mT)))).mT
            x = x + self.down[i](gelu(self.up[i](self.norms[2 * i + 1](x.mT).mT)))
        x = self.norms[-1](x.mT).mT
        return self.zzz(F.adaptive_avg_pool1d(x, 1)).squeeze(-1)


class MapNorm(nn.Module):
    """LayerNorm over the second axis of (batch, hidden, height, width), by hand."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shove, self.stretch = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        x = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return x * self.stretch[:, None, None] + self.shove[:, None, None]


class Maps(nn.Module):
    """1x1 Conv2d on a map in channels-last memory; a dict comes out."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)

        def block() -> nn.Module:
            tokens = nn.Sequential(nn.Conv2d(s, ds, 1), nn.GELU("tanh"), nn.Conv2d(ds, s, 1))
            channels = nn.Sequential(nn.Conv2d(d, dc, 1), nn.GELU("tanh"), nn.Conv2d(dc, d, 1))
            return nn.ModuleList([channels, MapNorm(d), tokens, MapNorm(d)])

        self.stages = nn.ModuleList(block() for _ in range(config.num_blocks))
        self.entry, self.exit, self.sorter = patch_conv(config), MapNorm(d), nn.Conv2d(d, config.num_classes, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.entry(images.to(memory_format=torch.channels_last))
        for channels, norm_channels, tokens, norm_tokens in self.stages:
            mixed = tokens(norm_tokens(x).flatten(2).mT.unsqueeze(-1))
            x = x + mixed.squeeze(-1).mT.reshape(x.shape).contiguous(memory_format=torch.channels_last)
            x = x + channels(norm_channels(x))
        return {"logits": self.sorter(self.exit(x).mean((2, 3), keepdim=True)).flatten(1)}


class WholeGrid(nn.Module):
    """Tokens are mixed by a convolution as large as the grid, and by its transpose."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        _, d, ds, dc = widths(config)
        self.grid = config.grid_hw
        self.gather = nn.ModuleList(nn.Conv2d(1, ds, self.grid) for _ in range(config.num_blocks))
        self.scatter = nn.ModuleList(nn.ConvTranspose2d(ds, 1, self.grid, bias=False) for _ in range(config.num_blocks))
        self.ground = nn.ParameterList(noise(*self.grid) for _ in range(config.num_blocks))
        self.wide = nn.ModuleList(nn.Linear(d, dc) for _ in range(config.num_blocks))
        self.slim = nn.ModuleList(nn.Linear(dc, d) for _ in range(config.num_blocks))
        self.norms = nn.ModuleList(norm(d) for _ in range(2 * config.num_blocks + 1))
        self.eye, self.mouth = patch_conv(config), nn.Linear(d, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.eye(images).permute(0, 2, 3, 1)
        b, h, w, d = x.shape
        for i in range(len(self.gather)):
            maps = self.norms[2 * i](x).permute(0, 3, 1, 2).reshape(b * d, 1, h, w)
            maps = self.scatter[i](gelu(self.gather[i](maps))) + self.ground[i]
            x = x + maps.view(b, d, h, w).permute(0, 2, 3, 1)
            x = x + self.slim[i](gelu(self.wide[i](self.norms[2 * i + 1](x))))
        return self.mouth(self.norms[-1](x).mean((1, 2)))


class Depthwise(nn.Module):
    """Tokens are mixed by a depthwise Conv1d whose filter is repeated for every channel."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.filters = nn.ParameterList(noise(*shape) for _ in range(config.num_blocks) for shape in ((ds, s), (s, ds)))
        self.offsets = nn.ParameterList(noise(size) for _ in range(config.num_blocks) for size in (ds, s))
        self.mlps = nn.ModuleList(
            nn.Sequential(norm(d), nn.Linear(d, dc), nn.GELU("tanh"), nn.Linear(dc, d))
            for _ in range(config.num_blocks)
        )
        self.norms = nn.ModuleList(norm(d) for _ in range(config.num_blocks + 1))
        self.stem, self.head = patch_conv(config), nn.Linear(d, config.num_classes)

    def spread(self, x: Tensor, which: int) -> Tensor:
        """(batch, hidden, positions) to (batch, hidden, filters)."""
        b, d, _ = x.shape
        weights, bias = self.filters[which].unsqueeze(1).repeat(d, 1, 1), self.offsets[which].repeat(d)
        return F.conv1d(x, weights, bias, groups=d).reshape(b, d, -1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        for i, mlp in enumerate(self.mlps):
            y = self.norms[i](x).transpose(1, 2)
            x = x + self.spread(gelu(self.spread(y, 2 * i)), 2 * i + 1).transpose(1, 2)
            x = x + mlp(x)
        x = self.norms[-1](x)
        return self.head(x.sum(1) / x.shape[1])


class Einsums(nn.Module):
    """Bare parameters under Greek names, einsum throughout, tanh GELU by hand."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        (ph, pw), (s, d, ds, dc) = config.patch_hw, widths(config)
        self.patch_hw, self.depth = config.patch_hw, config.num_blocks
        self.register_parameter("Ω", noise(config.num_classes, d))
        self.register_parameter("ω", noise(config.num_classes))
        self.register_parameter("Ξ", noise(pw, d, config.in_channels, ph))
        self.register_parameter("ξ", noise(d))
        for i in range(config.num_blocks):
            self.register_parameter(f"Φ{i}", noise(s, ds))
            self.register_parameter(f"φ{i}", noise(ds))
            self.register_parameter(f"Ψ{i}", noise(ds, s))
            self.register_parameter(f"ψ{i}", noise(s))
            self.register_parameter(f"Γ{i}", noise(dc, d))
            self.register_parameter(f"Δ{i}", noise(d, dc))
            self.register_parameter(f"δ{i}", noise(d))
            self.register_parameter(f"Γ'{i}", noise(dc))
        self.norms = nn.ModuleList(norm(d) for _ in range(2 * config.num_blocks + 1))

    @staticmethod
    def bend(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def forward(self, images: Tensor) -> Tensor:
        p, (ph, pw) = self.get_parameter, self.patch_hw
        patches = einops.rearrange(images, "b c (h y) (w x) -> b h w c y x", y=ph, x=pw)
        z = torch.einsum("bhwcyx,xdcy->bhwd", patches, p("Ξ")).flatten(1, 2) + p("ξ")
        for i in range(self.depth):
            y = torch.einsum("bsd,st->bdt", self.norms[2 * i](z), p(f"Φ{i}")) + p(f"φ{i}")
            z = z + torch.einsum("bdt,ts->bsd", self.bend(y), p(f"Ψ{i}")) + p(f"ψ{i}").unsqueeze(-1)
            y = torch.einsum("bsd,ed->ebs", self.norms[2 * i + 1](z), p(f"Γ{i}")) + p(f"Γ'{i}")[:, None, None]
            z = z + torch.einsum("ebs,de->bsd", self.bend(y), p(f"Δ{i}")) + p(f"δ{i}")
        return torch.einsum("bd,kd->bk", einops.reduce(self.norms[-1](z), "b s d -> b d", "mean"), p("Ω")) + p("ω")


class FromTheLeft(nn.Module):
    """Tokens are mixed as W @ x and a bias added; the other weights are stored transposed."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.out, self.out_b = noise(d, config.num_classes), noise(config.num_classes)
        self.layers = nn.ModuleList()
        for _ in range(config.num_blocks):
            layer = nn.Module()
            layer.l2, layer.l1, layer.c2, layer.c1 = noise(s, ds), noise(ds, s), noise(dc, d), noise(d, dc)
            layer.b = nn.ParameterDict({"l2": noise(s), "l1": noise(ds), "c2": noise(d), "c1": noise(dc)})
            layer.n2, layer.n1 = norm(d), norm(d)
            self.layers.append(layer)
        self.n = norm(d)
        self.cut, self.into, self.into_b = cut(config, "ph pw c"), noise(patch_numbers(config), d), noise(d)

    def forward(self, images: Tensor) -> Tensor:
        x = self.cut(images) @ self.into + self.into_b
        for m in self.layers:
            y = gelu(m.l1 @ m.n1(x) + m.b["l1"][:, None])
            x = x + (m.l2 @ y + m.b["l2"][:, None])
            y = gelu(F.linear(m.n2(x), m.c1.t(), m.b["c1"]))
            x = x + F.linear(y, m.c2.T, m.b["c2"])
        return F.linear(self.n(x).mean(-2), self.out.t()) + self.out_b


class Stacked(nn.Module):
    """The weights of all blocks in one parameter of each kind, indexed; LayerNorms too."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        n, (s, d, ds, dc) = config.num_blocks, widths(config)
        self.kernels = nn.ParameterDict(
            {"t1": noise(n, s, ds), "t2": noise(n, ds, s), "c1": noise(n, d, dc), "c2": noise(n, dc, d)}
        )
        self.biases = nn.ParameterDict({"t1": noise(n, ds), "t2": noise(n, s), "c1": noise(n, dc), "c2": noise(n, d)})
        self.scales, self.shifts = near_one(n, 2, d), noise(n, 2, d)
        self.stem, self.norm, self.head = patch_conv(config), norm(d), nn.Linear(d, config.num_classes)

    def dense(self, x: Tensor, name: str, i: int) -> Tensor:
        return x @ self.kernels[name][i] + self.biases[name][i]

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        for i in range(len(self.scales)):
            y = F.layer_norm(x, x.shape[-1:], self.scales[i, 0], self.shifts[i, 0], 1e-6).mT
            x = x + self.dense(gelu(self.dense(y, "t1", i)), "t2", i).mT
            y = F.layer_norm(x, x.shape[-1:], self.scales[i, 1], self.shifts[i, 1], 1e-6)
            x = x + self.dense(gelu(self.dense(y, "c1", i)), "c2", i)
        return self.head(self.norm(x).mean(1))


class Unbound(nn.Module):
    """Stacked weights, the stack's axis first in all, taken apart by `unbind`; both layers of an MLP in one stack."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        n, (s, d, ds, dc) = config.num_blocks, widths(config)
        self.token_pairs, self.token_in_bias, self.token_out_bias = noise(n, 2, ds, s), noise(n, ds), noise(n, s, 1)
        self.channel_pairs, self.channel_in_bias, self.channel_out_bias = noise(n, 2, dc, d), noise(n, dc), noise(n, d)
        self.affines = near_one(n, 4, d)
        self.tail = nn.Sequential(norm(d), Reduce("b n d -> b d", "mean"), nn.Linear(d, config.num_classes))
        self.lead = nn.Sequential(patch_conv(config), nn.Flatten(2))

    def forward(self, images: Tensor) -> Tensor:
        x = self.lead(images).mT
        stacks = (self.token_pairs, self.token_in_bias, self.token_out_bias)
        stacks += (self.channel_pairs, self.channel_in_bias, self.channel_out_bias, self.affines)
        for (t1, t2), tb1, tb2, (c1, c2), cb1, cb2, (s1, o1, s2, o2) in zip(
            *(p.unbind(0) for p in stacks), strict=True
        ):
            y = gelu(F.linear(F.layer_norm(x, o1.shape, s1, o1, 1e-6).mT, t1, tb1))
            x = x + (t2.mT @ y.mT + tb2)
            y = gelu(F.linear(F.layer_norm(x, o2.shape, s2, o2, 1e-6), c1, cb1))
            x = x + (y @ c2 + cb2)
        return self.tail(x)


class WeightNormed(nn.Module):
    """Every Linear is weight-normed."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)

        def mlp(dim: int, mlp_dim: int) -> nn.Module:
            return nn.Sequential(
                weight_norm(nn.Linear(dim, mlp_dim)), nn.GELU("tanh"), weight_norm(nn.Linear(mlp_dim, dim))
            )

        self.cut = cut(config, "ph pw c")
        self.stem = weight_norm(nn.Linear(patch_numbers(config), d))
        self.token_mlps = nn.ModuleList(mlp(s, ds) for _ in range(config.num_blocks))
        self.channel_mlps = nn.ModuleList(mlp(d, dc) for _ in range(config.num_blocks))
        self.norms = nn.ModuleList(norm(d) for _ in range(2 * config.num_blocks + 1))
        self.head = weight_norm(nn.Linear(d, config.num_classes))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(self.cut(images))
        for i, (tokens, channels) in enumerate(zip(self.token_mlps, self.channel_mlps, strict=True)):
            x = x + tokens(self.norms[2 * i](x).mT).mT
            x = x + channels(self.norms[2 * i + 1](x))
        return self.head(self.norms[-1](x).mean(1))


class ByHand(nn.Module):
    """LayerNorm by mean, var and rsqrt, tanh GELU as x * sigmoid(2u); parameters in lists by kind."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        (s, d, ds, dc), n = widths(config), config.num_blocks
        self.g = nn.ParameterList(near_one(d) for _ in range(2 * n + 1))
        self.b = nn.ParameterList(noise(d) for _ in range(2 * n + 1))
        self.dense = nn.ModuleList(nn.Linear(*io) for _ in range(n) for io in ((s, ds), (ds, s), (d, dc), (dc, d)))
        self.ends = nn.ModuleList([nn.Linear(d, config.num_classes), patch_conv(config)])

    def level(self, x: Tensor, i: int) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-6)
        return self.g[i] * x + self.b[i]

    @staticmethod
    def bend(x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x))

    def forward(self, images: Tensor) -> Tensor:
        x = self.ends[1](images).flatten(2).permute(0, 2, 1)
        for i in range(0, len(self.dense), 4):
            into, out, up, down = self.dense[i : i + 4]
            x = x + out(self.bend(into(self.level(x, i // 2).permute(0, 2, 1)))).permute(0, 2, 1)
            x = x + down(self.bend(up(self.level(x, i // 2 + 1))))
        return self.ends[0](torch.sum(self.level(x, -1), dim=1) / x.size(1))


class MomentNorm(nn.Module):
    """LayerNorm by `var_mean`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.affine = nn.Parameter(torch.stack([torch.zeros(dim), torch.ones(dim)]))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        return torch.addcmul(self.affine[0], self.affine[1], (x - mean).div_((variance + 1e-6).sqrt_()))


class Moments(nn.Module):
    """`MomentNorm`s; nested three deep; the stem's columns are "c ph pw"; mean by matrix product."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.net = nn.ModuleDict({"outer": nn.ModuleDict({"inner": nn.ModuleList()})})
        for _ in range(config.num_blocks):
            tokens = nn.Sequential(MomentNorm(d), Rearrange("b n d -> b d n"), nn.Linear(s, ds), nn.GELU("tanh"))
            tokens.extend([nn.Linear(ds, s), Rearrange("b d n -> b n d")])
            channels = nn.Sequential(MomentNorm(d), nn.Linear(d, dc), nn.GELU("tanh"), nn.Linear(dc, d))
            self.net["outer"]["inner"].extend([tokens, channels])
        self.net["first"] = nn.Sequential(cut(config, "c ph pw"), nn.Linear(patch_numbers(config), d))
        self.net["last"] = nn.Sequential(MomentNorm(d))
        self.net["logits"] = nn.Linear(d, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.net["first"](images)
        for branch in self.net["outer"]["inner"]:
            x = torch.add(branch(x), x)
        share = torch.full((1, x.shape[1]), 1 / x.shape[1], dtype=x.dtype)
        return self.net["logits"]((share @ self.net["last"](x)).squeeze(1))


class BareNorm(nn.Module):
    """`F.layer_norm` without affine, then scale and shift; a pre-norm wrapper for everything, the head included."""

    def __init__(self, dim: int, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.scale_shift = inside, nn.ParameterDict({"shift": noise(dim), "scale": near_one(dim)})

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x, (x.shape[-1],), eps=1e-6)
        return self.inside(x * self.scale_shift["scale"] + self.scale_shift["shift"])


class Wrapped(nn.Module):
    """Every branch in a `BareNorm`, and branches alone in one list; `F.unfold` and a Linear are the stem."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.patch_hw = config.patch_hw
        swap = Rearrange("b n d -> b d n")
        branches: list[nn.Module] = []
        for _ in range(config.num_blocks):
            tokens = nn.Sequential(swap, nn.Linear(s, ds), nn.GELU("tanh"), nn.Linear(ds, s), swap)
            channels = nn.Sequential(nn.Linear(d, dc), nn.GELU("tanh"), nn.Linear(dc, d))
            branches += [BareNorm(d, tokens), BareNorm(d, channels)]
        head = nn.Sequential(Reduce("b n d -> b d", "mean"), nn.Linear(d, config.num_classes))
        self.top, self.middle, self.bottom = BareNorm(d, head), nn.ModuleList(branches), nn.LazyLinear(d)
        self.bottom(torch.zeros(1, patch_numbers(config)))

    def forward(self, images: Tensor) -> Tensor:
        x = self.bottom(F.unfold(images, self.patch_hw, stride=self.patch_hw).transpose(1, 2))
        return self.top(functools.reduce(lambda x, branch: x + branch(x), self.middle, x))


class ListedParameters(nn.Module):
    """The blocks' parameters are in a plain list, so that the module's state does not have them."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        shapes = ((ds, s), (ds,), (s, ds), (s,), (dc, d), (dc,), (d, dc), (d,))
        self.stash = [[noise(*shape) for shape in shapes] for _ in range(config.num_blocks)]
        self.norms = nn.ModuleList(norm(d) for _ in range(2 * config.num_blocks + 1))
        self.stem, self.head = patch_conv(config), nn.Linear(d, config.num_classes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ListedParameters:
        for parameter in (p for block in self.stash for p in block):
            parameter.data = fn(parameter.data)
        return super()._apply(fn, recurse)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        for i, (w1, b1, w2, b2, w3, b3, w4, b4) in enumerate(self.stash):
            x = x + F.linear(gelu(F.linear(self.norms[2 * i](x).mT, w1, b1)), w2, b2).mT
            x = x + F.linear(gelu(F.linear(self.norms[2 * i + 1](x), w3, b3)), w4, b4)
        return self.head(self.norms[-1](x).mean(1))


class ListedLayers(nn.Module):
    """Linears in plain lists and tuples of a dict; the module has the stem, the LayerNorms and the head."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.mixers = {
            "space": [(nn.Linear(s, ds), nn.Linear(ds, s)) for _ in range(config.num_blocks)],
            "depth": [(nn.Linear(d, dc), nn.Linear(dc, d)) for _ in range(config.num_blocks)],
        }
        self.norms = nn.ModuleList(norm(d) for _ in range(2 * config.num_blocks + 1))
        self.head, self.stem = nn.Linear(d, config.num_classes), patch_conv(config)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ListedLayers:
        for layer in (layer for pairs in self.mixers.values() for pair in pairs for layer in pair):
            layer._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        norms = iter(self.norms)
        for (into, out), (up, down) in zip(self.mixers["space"], self.mixers["depth"], strict=True):
            x = x + out(gelu(into(next(norms)(x).mT))).mT
            x = x + down(gelu(up(next(norms)(x))))
        return self.head(next(norms)(x).mean(1))


class OtherNorms(nn.Module):
    """LayerNorm as instance norm of tokens, and as group norm of one group; the stem's columns are "pw ph c"."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.cut, self.project = cut(config, "pw ph c"), nn.Linear(patch_numbers(config), d)
        self.scales = nn.ParameterList(near_one(d) for _ in range(config.num_blocks))
        self.shifts = nn.ParameterList(noise(d) for _ in range(config.num_blocks))
        self.groups = nn.ModuleList(nn.GroupNorm(1, d, eps=1e-6) for _ in range(config.num_blocks + 1))
        self.tokens = nn.ModuleList(nn.Linear(*io) for _ in range(config.num_blocks) for io in ((ds, s), (s, ds)))
        self.channels = nn.ModuleList(nn.Linear(*io) for _ in range(config.num_blocks) for io in ((dc, d), (d, dc)))
        self.head = nn.Linear(d, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.project(self.cut(images))
        for i, (scale, shift) in enumerate(zip(self.scales, self.shifts, strict=True)):
            y = F.instance_norm(x, eps=1e-6) * scale + shift
            x = x + self.tokens[2 * i](gelu(self.tokens[2 * i + 1](y.mT))).mT
            y = self.groups[i](x.flatten(0, 1)).view_as(x)
            x = x + self.channels[2 * i](gelu(self.channels[2 * i + 1](y)))
        y = self.groups[-1](x.flatten(0, 1)).view_as(x)
        return self.head(y.mean(1))


class TwoStems(nn.Module):
    """Two affine layers in a row are the stem."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.bottom = nn.Sequential(patch_conv(config), nn.Flatten(2), Rearrange("b d n -> b n d"), nn.Linear(d, d))
        self.token_norms, self.channel_norms = (nn.ModuleList(norm(d) for _ in range(config.num_blocks)) for _ in "tc")
        self.one = nn.ModuleList(nn.Linear(s, ds) for _ in range(config.num_blocks))
        self.two = nn.ModuleList(nn.Linear(ds, s) for _ in range(config.num_blocks))
        self.three = nn.ModuleList(nn.Linear(d, dc) for _ in range(config.num_blocks))
        self.four = nn.ModuleList(nn.Linear(dc, d) for _ in range(config.num_blocks))
        self.top = nn.Sequential(norm(d), Reduce("b n d -> b d", "mean"), nn.Linear(d, config.num_classes))

    def forward(self, images: Tensor) -> Tensor:
        x = self.bottom(images)
        layers = zip(self.token_norms, self.one, self.two, self.channel_norms, self.three, self.four, strict=True)
        for norm_1, one, two, norm_2, three, four in layers:
            x = x + two(gelu(one(norm_1(x).mT))).mT
            x = x + four(gelu(three(norm_2(x))))
        return self.top(x)


class ColumnMajor(nn.Module):
    """Tokens are numbered down the columns of the grid."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.look = nn.Sequential(cut(config, "ph pw c", tokens="w h"), nn.Linear(patch_numbers(config), d))
        self.think = nn.Sequential()
        for _ in range(config.num_blocks):
            swap = Rearrange("b n d -> b d n")
            tokens = [norm(d), swap, nn.Linear(s, ds), nn.GELU("tanh"), nn.Linear(ds, s), swap]
            channels = [norm(d), nn.Linear(d, dc), nn.GELU("tanh"), nn.Linear(dc, d)]
            self.think.extend([Skip(*tokens), Skip(*channels)])
        self.speak = nn.Sequential(norm(d), Reduce("b n d -> b d", "mean"), nn.Linear(d, config.num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.speak(self.think(self.look(images)))


class Skip(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class InPlace(nn.Module):
    """The stream is one tensor, written over and over, in the block and in its functions."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.p = patch_conv(config)
        self.t = nn.ModuleList(
            nn.ModuleList([nn.Linear(ds, s), norm(d), nn.Linear(s, ds)]) for _ in range(config.num_blocks)
        )
        self.c = nn.ModuleList(
            nn.ModuleList([nn.Linear(dc, d), norm(d), nn.Linear(d, dc)]) for _ in range(config.num_blocks)
        )
        self.n, self.h = norm(d), nn.Linear(d, config.num_classes)

    @staticmethod
    def bend_(x: Tensor) -> Tensor:
        u = x.pow(3).mul_(0.044715).add_(x).mul_((2 / math.pi) ** 0.5).tanh_().add_(1)
        return x.mul_(u).mul_(0.5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.p(images).flatten(2).mT.contiguous()
        for (t2, tn, t1), (c2, cn, c1) in zip(self.t, self.c, strict=True):
            x.mT.add_(t2(self.bend_(t1(tn(x).mT))))
            x += c2(self.bend_(c1(cn(x))))
        total = x.new_zeros(x.shape[0], x.shape[2])
        for token in self.n(x).unbind(1):
            total += token
        return self.h(total / x.shape[1])


class Preallocated(nn.Module):
    """Everything is assigned to slices of empty tensors, patch by patch and token by token; float32 images."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.config = config
        self.pixels, self.pixels_bias = noise(d, patch_numbers(config)), noise(d)
        self.mlps = nn.ModuleList(
            nn.ModuleDict(
                {"t1": nn.Linear(s, ds), "t2": nn.Linear(ds, s), "c1": nn.Linear(d, dc), "c2": nn.Linear(dc, d)}
            )
            for _ in range(config.num_blocks)
        )
        self.norms = nn.ModuleList(norm(d) for _ in range(2 * config.num_blocks + 1))
        self.head = nn.Linear(d, config.num_classes)

    def tokens(self, images: Tensor) -> Tensor:
        (ph, pw), (rows, columns) = self.config.patch_hw, self.config.grid_hw
        given = self.pixels.new_empty(images.shape)
        given[:] = images.to(torch.float32)
        x = given.new_empty(len(given), rows, columns, len(self.pixels))
        for i in range(rows):
            for j in range(columns):
                patch = given[:, :, i * ph : (i + 1) * ph, j * pw : (j + 1) * pw]
                x[:, i, j] = F.linear(patch.flatten(1), self.pixels, self.pixels_bias)
        return x.flatten(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images)
        for i, mlp in enumerate(self.mlps):
            y = gelu(mlp["t1"](self.norms[2 * i](x).mT))
            out = torch.empty_like(x)
            for j, (row, bias) in enumerate(zip(mlp["t2"].weight, mlp["t2"].bias, strict=True)):
                out[:, j] = x[:, j] + (y @ row + bias)
            y = gelu(mlp["c1"](self.norms[2 * i + 1](out)))
            x = torch.zeros_like(out)
            x[:, ::2], x[:, 1::2] = mlp["c2"](y[:, ::2]), mlp["c2"](y[:, 1::2])
            x[...] += out
        return self.head(self.norms[-1](x).mean(1))


class Fused(nn.Module):
    """Second layers by `baddbmm` with the residual as its first argument, first layers with the bias as theirs."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.front = patch_conv(config)
        self.rooms = nn.ModuleList()
        for _ in range(config.num_blocks):
            weights = {"east": noise(d, dc), "west": noise(dc, d), "north": noise(1, ds, s), "south": noise(1, s, ds)}
            biases = {"e": noise(dc), "w": noise(d), "n": noise(ds, 1), "s": noise(s, 1)}
            norms = {"floor": norm(d), "roof": norm(d)}
            self.rooms.append(
                nn.ModuleList([nn.ParameterDict(weights), nn.ParameterDict(biases), nn.ModuleDict(norms)])
            )
        self.roof, self.back = norm(d), nn.Linear(d, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.front(images).flatten(2).mT
        n = len(x)
        for weights, biases, norms in self.rooms:
            y = torch.baddbmm(biases["n"], weights["north"].expand(n, -1, -1), norms["floor"](x))
            x = torch.baddbmm(x, weights["south"].expand(n, -1, -1), gelu(y)) + biases["s"]
            y = torch.addmm(biases["e"], norms["roof"](x).flatten(0, 1), weights["east"])
            x = torch.addmm(x.flatten(0, 1), gelu(y), weights["west"]).unflatten(0, x.shape[:2]) + biases["w"]
        return torch.addmm(self.back.bias, self.roof(x).mean(1), self.back.weight.t())


class OneByOne(nn.Module):
    """Images one at a time, stacked in the end; bare matrices of two dimensions."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.conv = patch_conv(config)
        self.a, self.a0 = nn.ParameterList(noise(ds, s) for _ in range(config.num_blocks)), nn.ParameterList()
        self.b, self.b0 = nn.ParameterList(noise(s, ds) for _ in range(config.num_blocks)), nn.ParameterList()
        self.c, self.c0 = nn.ParameterList(noise(dc, d) for _ in range(config.num_blocks)), nn.ParameterList()
        self.d, self.d0 = nn.ParameterList(noise(d, dc) for _ in range(config.num_blocks)), nn.ParameterList()
        for _ in range(config.num_blocks):
            for biases, size in ((self.a0, ds), (self.b0, s), (self.c0, dc), (self.d0, d)):
                biases.append(noise(size))
        self.norms = nn.ModuleList(norm(d) for _ in range(2 * config.num_blocks + 1))
        self.head = nn.Linear(d, config.num_classes)

    def logits(self, image: Tensor) -> Tensor:
        """The stream is (hidden, tokens)."""
        x = self.conv(image).flatten(1)
        for i in range(len(self.a)):
            y = gelu(torch.addmm(self.a0[i], self.norms[2 * i](x.t()).t(), self.a[i].t()))
            x = torch.addmm(x, y, self.b[i].t()) + self.b0[i]
            y = gelu(torch.addmm(self.c0[i].unsqueeze(1), self.c[i], self.norms[2 * i + 1](x.t()).t()))
            x = torch.addmm(x, self.d[i], y) + self.d0[i].unsqueeze(1)
        return self.head(self.norms[-1](x.t()).mean(0))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.logits(image) for image in images])


class Autocast(nn.Module):
    """Runs under autocast to bfloat16, which leaves float64 alone."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.embed, self.norm_out, self.fc = patch_conv(config), norm(d), nn.Linear(d, config.num_classes)
        self.layers = nn.ModuleList(
            nn.ModuleList([norm(d), nn.Linear(s, ds), nn.Linear(ds, s), norm(d), nn.Linear(d, dc), nn.Linear(dc, d)])
            for _ in range(config.num_blocks)
        )

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = self.embed(images).flatten(2).mT
            for n1, t1, t2, n2, c1, c2 in self.layers:
                x = x + t2(gelu(t1(n1(x).mT))).mT
                x = x + c2(gelu(c1(n2(x))))
            with torch.autocast("cpu", enabled=False):
                x = self.norm_out(x.to(images.dtype)).mean(1)
            x = self.fc(x)
        return x.type(images.dtype)


class HardFloat(nn.Module):
    """Asks for float32 images whatever it is given, then for the parameters' dtype."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.cut, self.embed = cut(config, "c ph pw"), nn.Linear(patch_numbers(config), d)
        self.blocks = nn.ModuleList()
        for _ in range(config.num_blocks):
            block = nn.Module()
            block.spatial = nn.Sequential(nn.Linear(s, ds), nn.GELU("tanh"), nn.Linear(ds, s))
            block.spectral = nn.Sequential(nn.Linear(d, dc), nn.GELU("tanh"), nn.Linear(dc, d))
            block.pre_spatial, block.pre_spectral = norm(d), norm(d)
            self.blocks.append(block)
        self.final, self.fc = norm(d), nn.Linear(d, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(self.cut(images.float().type_as(self.fc.weight)))
        for block in self.blocks:
            x = x + block.spatial(block.pre_spatial(x).swapaxes(1, 2)).swapaxes(1, 2)
            x = x + block.spectral(block.pre_spectral(x))
        return self.fc(self.final(x).mean(dim=1))


class StochasticDepth(nn.Module):
    """Leaves branches of some images out in training."""

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training:
            return branch
        kept = torch.rand(len(branch), 1, 1, dtype=branch.dtype, device=branch.device) < 0.9
        return branch * kept / 0.9


class Regularised(nn.Module):
    """Dropout and stochastic depth everywhere, inactive in eval; the last stream stays on the module."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)

        def mlp(dim: int, mlp_dim: int) -> nn.Module:
            layers = [nn.Linear(dim, mlp_dim), nn.GELU("tanh"), nn.Dropout(0.5), nn.Linear(mlp_dim, dim), nn.Dropout()]
            return nn.Sequential(*layers)

        self.drop_path = StochasticDepth()
        self.dropout = nn.Dropout(0.3)
        self.norms = nn.ModuleList(norm(d) for _ in range(2 * config.num_blocks + 1))
        self.mlps = nn.ModuleList(mlp(*io) for _ in range(config.num_blocks) for io in ((s, ds), (d, dc)))
        self.stem, self.head = patch_conv(config), nn.Linear(d, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.dropout(self.stem(images).flatten(2).mT)
        for i in range(0, len(self.mlps), 2):
            x = x + self.drop_path(self.mlps[i](self.norms[i](x).mT).mT)
            x = x + self.drop_path(self.mlps[i + 1](self.norms[i + 1](x)))
        self.last_hidden_state = x
        return self.head(F.dropout(self.norms[-1](self.last_hidden_state).mean(1), 0.2, self.training))


class Partials(nn.Module):
    """The forward pass is a list of partial functions, which hold the parameters; these have numbers for names."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.steps: list[Callable[[Tensor], Tensor]] = []
        self.steps.append(
            functools.partial(F.conv2d, stride=config.patch_hw, **self.dense(d, config.in_channels, *config.patch_hw))
        )
        self.steps += [
            functools.partial(torch.flatten, start_dim=2),
            functools.partial(torch.transpose, dim0=1, dim1=2),
        ]
        for _ in range(config.num_blocks):
            for turned, dim, mlp_dim in ((True, s, ds), (False, d, dc)):
                into, out = (functools.partial(F.linear, **self.dense(*io)) for io in ((mlp_dim, dim), (dim, mlp_dim)))
                self.steps.append(functools.partial(self.branch, self.normed(d), into, out, turned=turned))
        self.steps += [self.normed(d), functools.partial(torch.mean, dim=1)]
        self.steps.append(functools.partial(F.linear, **self.dense(config.num_classes, d)))

    def new(self, parameter: nn.Parameter) -> nn.Parameter:
        self.register_parameter(str(len(self._parameters)), parameter)
        return parameter

    def dense(self, *shape: int) -> dict[str, nn.Parameter]:
        return {"bias": self.new(noise(shape[0])), "weight": self.new(noise(*shape))}

    def normed(self, dim: int) -> Callable[[Tensor], Tensor]:
        bias, weight = self.new(noise(dim)), self.new(near_one(dim))
        return functools.partial(F.layer_norm, normalized_shape=(dim,), weight=weight, bias=bias, eps=1e-6)

    @staticmethod
    def branch(normed: Any, into: Any, out: Any, x: Tensor, *, turned: bool) -> Tensor:
        y = normed(x)
        return x + (out(gelu(into(y.mT))).mT if turned else out(gelu(into(y))))

    def forward(self, images: Tensor) -> Tensor:
        return functools.reduce(lambda x, step: step(x), self.steps, images)


@dataclasses.dataclass
class Output:
    """What a model of a well-known library returns."""

    loss: Tensor | None
    hidden_states: tuple[Tensor, ...]
    logits: Tensor


class Library(nn.Module):
    """An embeddings-encoder-classifier model with optional arguments and a dataclass for its output."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.mixer = nn.ModuleDict({"embeddings": patch_conv(config), "encoder": nn.ModuleList(), "layernorm": norm(d)})
        for _ in range(config.num_blocks):
            self.mixer["encoder"].append(
                nn.ModuleDict(
                    {
                        "output": nn.Sequential(norm(d), nn.Linear(d, dc), nn.GELU("tanh"), nn.Linear(dc, d)),
                        "attention": nn.Sequential(nn.Linear(s, ds), nn.GELU("tanh"), nn.Linear(ds, s)),
                        "layernorm_before": norm(d),
                    }
                )
            )
        self.classifier = nn.Linear(d, config.num_classes)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, *, all_states: bool = True) -> Output:
        states = [einops.rearrange(self.mixer["embeddings"](pixel_values), "b d h w -> b (h w) d")]
        for layer in self.mixer["encoder"]:
            mixed = layer["attention"](layer["layernorm_before"](states[-1]).transpose(-1, -2)).transpose(-1, -2)
            mixed = mixed + states[-1]
            states.append(mixed + layer["output"](mixed))
        logits = self.classifier(self.mixer["layernorm"](states[-1]).mean(1))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return Output(loss, tuple(states) if all_states else (), logits)


class OneVector(nn.Module):
    """All numbers of the model are one vector, cut in the forward pass."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        block = ((d,), (d,), (ds, s), (ds,), (s, ds), (s,), (d,), (d,), (dc, d), (dc,), (d, dc), (d,))
        ends = ((d,), (d,), (config.num_classes, d), (config.num_classes,))
        self.shapes = [(d, config.in_channels, *config.patch_hw), (d,), *(block * config.num_blocks), *ends]
        self.patch_hw = config.patch_hw
        self.everything = nn.Parameter(0.3 * torch.randn(sum(map(math.prod, self.shapes))))

    def pieces(self) -> Iterator[Tensor]:
        parts = self.everything.split([math.prod(shape) for shape in self.shapes])
        return (part.view(shape) for part, shape in zip(parts, self.shapes, strict=True))

    def forward(self, images: Tensor) -> Tensor:
        w = list(self.pieces())
        x = F.conv2d(images, w[0], w[1], self.patch_hw).flatten(2).mT
        for i in range(2, len(w) - 4, 12):
            s1, o1, w1, b1, w2, b2, s2, o2, w3, b3, w4, b4 = w[i : i + 12]
            x = x + F.linear(gelu(F.linear(F.layer_norm(x, s1.shape, s1, o1, 1e-6).mT, w1, b1)), w2, b2).mT
            x = x + F.linear(gelu(F.linear(F.layer_norm(x, s2.shape, s2, o2, 1e-6), w3, b3)), w4, b4)
        scale, shift, head, bias = w[-4:]
        return F.linear(F.layer_norm(x, scale.shape, scale, shift, 1e-6).mean(1), head, bias)


class Checkpointed(nn.Module):
    """Branches are checkpointed, and their layers are in a Sequential each, the norm last."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.head, self.stem, self.norm = nn.Linear(d, config.num_classes), patch_conv(config), norm(d)
        self.tokens = nn.ModuleList(
            nn.ModuleList([nn.Linear(s, ds), nn.Linear(ds, s), norm(d)]) for _ in range(config.num_blocks)
        )
        self.channels = nn.ModuleList(
            nn.ModuleList([nn.Linear(d, dc), nn.Linear(dc, d), norm(d)]) for _ in range(config.num_blocks)
        )

    @staticmethod
    def branch(layers: Iterable[nn.Module], x: Tensor, axis: int) -> Tensor:
        into, out, before = layers
        return x + out(gelu(into(before(x).transpose(axis, -1)))).transpose(axis, -1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        for tokens, channels in zip(self.tokens, self.channels, strict=True):
            x = checkpoint(self.branch, tokens, x, 1, use_reentrant=False)
            x = checkpoint(self.branch, channels, x, 2, use_reentrant=False)
        return self.head(self.norm(x).mean(1))


class Mapped(nn.Module):
    """Written for one image and mapped over the batch by `vmap`."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.cut = Rearrange("c (h y) (w x) -> (h w) (x c y)", y=config.patch_hw[0], x=config.patch_hw[1])
        self.stem, self.stem_bias = noise(patch_numbers(config), d), noise(d)
        self.mlps = nn.ModuleList(
            nn.ModuleList([norm(d), nn.Linear(s, ds), nn.Linear(ds, s), norm(d), nn.Linear(d, dc), nn.Linear(dc, d)])
            for _ in range(config.num_blocks)
        )
        self.norm, self.head = norm(d), nn.Linear(d, config.num_classes)

    def one(self, image: Tensor) -> Tensor:
        x = self.cut(image) @ self.stem + self.stem_bias
        for n1, t1, t2, n2, c1, c2 in self.mlps:
            x = x + t2(gelu(t1(n1(x).t()))).t()
            x = x + c2(gelu(c1(n2(x))))
        return self.head(self.norm(x).mean(0))

    def forward(self, images: Tensor) -> Tensor:
        return torch.vmap(self.one)(images)


class LateMean(nn.Module):
    """The head is applied to every token, and the mean is taken of the logits."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.stem, self.last = patch_conv(config), nn.ModuleList([norm(d), nn.Linear(d, config.num_classes)])
        self.mlps = nn.ModuleList(
            nn.ModuleList([norm(d), nn.Linear(s, ds), nn.Linear(ds, s), norm(d), nn.Linear(d, dc), nn.Linear(dc, d)])
            for _ in range(config.num_blocks)
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        for n1, t1, t2, n2, c1, c2 in self.mlps:
            x = x + t2(gelu(t1(n1(x).mT))).mT
            x = x + c2(gelu(c1(n2(x))))
        for layer in self.last:
            x = layer(x)
        return x.mean(1)


class LateAffine(nn.Module):
    """The final LayerNorm's scale and shift come after the mean."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        s, d, ds, dc = widths(config)
        self.stem, self.scale, self.shift = patch_conv(config), near_one(d), noise(d)
        self.mlps = nn.ModuleList(
            nn.ModuleList([norm(d), nn.Linear(s, ds), nn.Linear(ds, s), norm(d), nn.Linear(d, dc), nn.Linear(dc, d)])
            for _ in range(config.num_blocks)
        )
        self.head = nn.Linear(d, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        for n1, t1, t2, n2, c1, c2 in self.mlps:
            x = x + t2(gelu(t1(n1(x).mT))).mT
            x = x + c2(gelu(c1(n2(x))))
        return self.head(F.layer_norm(x, x.shape[-1:], eps=1e-6).mean(1) * self.scale + self.shift)


FOREIGN: dict[str, Callable[[MixerConfig], nn.Module]] = {
    "flat Sequential": Flat,
    "jumbled registration": Jumbled,
    "Conv1d of kernel 1": Pointwise,
    "1x1 Conv2d on maps": Maps,
    "convolutions of the whole grid": WholeGrid,
    "depthwise with repeated filters": Depthwise,
    "einsum": Einsums,
    "matmul from the left": FromTheLeft,
    "stacked": Stacked,
    "stacked, unbind": Unbound,
    "weight norm": WeightNormed,
    "LayerNorm and GELU by hand": ByHand,
    "var_mean": Moments,
    "layer_norm without affine": Wrapped,
    "parameters in a list": ListedParameters,
    "Linears in a list": ListedLayers,
    "instance and group norm": OtherNorms,
    "two layers for a stem": TwoStems,
    "column-major tokens": ColumnMajor,
    "in place": InPlace,
    "preallocated": Preallocated,
    "addmm and baddbmm": Fused,
    "one image at a time": OneByOne,
    "autocast": Autocast,
    "hard-coded float32": HardFloat,
    "dropout and stochastic depth": Regularised,
    "partial functions": Partials,
    "dataclass and optional arguments": Library,
    "one vector": OneVector,
    "checkpointed": Checkpointed,
    "vmap": Mapped,
    "mean of logits": LateMean,
    "affine after the mean": LateAffine,
}


# --- With faults ---

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "activation_erf": F.gelu,
    "activation_relu": F.relu,
    "activation_silu": F.silu,
    "activation_quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "activation_none": lambda x: x,
}
EPS = {"eps_1e-5": 1e-5, "eps_1e-12": 1e-12, "eps_1e-3": 1e-3}
CODE_FAULTS = (
    *ACTIVATIONS,
    *EPS,
    "eps_1e-5_one_place",
    "norm_missing",
    "norm_final_missing",
    "post_norm",
    "norm_both_axes",
    "norm_after_pool",
    "norm_unbiased",
    "residual_token_missing",
    "residual_channel_missing",
    "residual_normalised",
    "pool_max",
    "pool_sum",
    "pool_first",
    "output_softmax",
    "view_for_transpose",
    "position_embedding",
    "mlp_head",
)
CONSTRAINT_FAULTS = ("norm_shared", "blocks_tied", "stem_bias_absent", "token_bias_absent")


class OwnMixer(nn.Module):
    """The official function by einsum on one flat dict of parameters, except for `faults`.

    Of faults that exclude each other, such as two activations, the one earlier in `CODE_FAULTS` counts.
    """

    def __init__(self, config: MixerConfig, faults: Collection[str] = ()) -> None:
        super().__init__()
        unknown = set(faults) - {*CODE_FAULTS, *CONSTRAINT_FAULTS}
        if unknown:
            raise ValueError(f"no fault is called {', '.join(sorted(unknown))}")
        self.config, self.faults = config, frozenset(faults)
        self.act = next((act for name, act in ACTIVATIONS.items() if name in faults), gelu)
        self.eps = next((eps for name, eps in EPS.items() if name in faults), 1e-6)
        self.theta = nn.ParameterDict(
            {name: near_one(*s) if "scale" in name else noise(*s) for name, s in self.shapes()}
        )

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every parameter's name and shape."""
        config, (s, d, ds, dc) = self.config, widths(self.config)
        yield "see", (*config.patch_hw, config.in_channels, d)
        if "stem_bias_absent" not in self.faults:
            yield "see_offset", (d,)
        if "position_embedding" in self.faults:
            yield "where", (s, d)
        for i in range(1 if "blocks_tied" in self.faults else config.num_blocks):
            for kind in ("both",) if "norm_shared" in self.faults else ("token", "channel"):
                yield f"{kind}_scale_{i}", (d,)
                yield f"{kind}_shift_{i}", (d,)
            yield f"token_in_{i}", (s, ds)
            if "token_bias_absent" not in self.faults:
                yield f"token_in_offset_{i}", (ds,)
            yield f"token_out_{i}", (s, ds)
            yield f"token_out_offset_{i}", (s,)
            yield f"channel_in_{i}", (dc, d)
            yield f"channel_in_offset_{i}", (dc,)
            yield f"channel_out_{i}", (dc, d)
            yield f"channel_out_offset_{i}", (d,)
        yield "last_scale", (d,)
        yield "last_shift", (d,)
        if "mlp_head" in self.faults:
            yield "say_first", (d, d)
            yield "say_first_offset", (d,)
        yield "say", (d, config.num_classes)
        yield "say_offset", (config.num_classes,)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for i in range(self.config.num_blocks):
            x = self.block(x, i)
        return self.end(x)

    def stem(self, images: Tensor) -> Tensor:
        (ph, pw), (rows, columns) = self.config.patch_hw, self.config.grid_hw
        patches = images.reshape(*images.shape[:2], rows, ph, columns, pw)
        x = torch.einsum("bcypxq,pqcd->byxd", patches, self.theta["see"]).flatten(1, 2)
        for name in ("see_offset", "where"):
            if name in self.theta:
                x = x + self.theta[name]
        return x

    def block(self, x: Tensor, i: int) -> Tensor:
        return self.branch(self.branch(x, i, "token"), i, "channel")

    def branch(self, x: Tensor, i: int, kind: str) -> Tensor:
        post = "post_norm" in self.faults
        entry = x if post else self.block_norm(x, i, kind)
        x = self.add(x, self.mix(entry, i, kind), entry, kind)
        return self.block_norm(x, i, kind) if post else x

    def add(self, x: Tensor, mixed: Tensor, entry: Tensor, kind: str) -> Tensor:
        if f"residual_{kind}_missing" in self.faults:
            return mixed
        return mixed + (entry if "residual_normalised" in self.faults else x)

    def block_norm(self, x: Tensor, i: int, kind: str) -> Tensor:
        if "norm_missing" in self.faults and kind == "channel" and i == self.config.num_blocks - 1:
            return x
        here = "eps_1e-5_one_place" in self.faults and kind == "channel" and i == 0
        name = "both" if "norm_shared" in self.faults else kind
        scale, shift = self.theta[f"{name}_scale_{self.place(i)}"], self.theta[f"{name}_shift_{self.place(i)}"]
        return self.normalise(x, 1e-5 if here else self.eps) * scale + shift

    def place(self, i: int) -> int:
        """The block whose parameters block `i` has."""
        return 0 if "blocks_tied" in self.faults else i

    def normalise(self, x: Tensor, eps: float) -> Tensor:
        axes = tuple(range(1, x.ndim)) if "norm_both_axes" in self.faults else (-1,)
        centred = x - x.mean(axes, keepdim=True)
        count = math.prod(x.shape[axis] for axis in axes) - ("norm_unbiased" in self.faults)
        return centred / torch.sqrt((centred * centred).sum(axes, keepdim=True) / count + eps)

    def mix(self, x: Tensor, i: int, kind: str) -> Tensor:
        return self.mix_tokens(x, i) if kind == "token" else self.mix_channels(x, i)

    def mix_tokens(self, x: Tensor, i: int) -> Tensor:
        n, (b, s, d) = self.place(i), x.shape
        view = "view_for_transpose" in self.faults
        y = x.reshape(b, d, s) if view else x.permute(0, 2, 1)
        y = torch.einsum("bds,st->bdt", y, self.theta[f"token_in_{n}"])
        if f"token_in_offset_{n}" in self.theta:
            y = y + self.theta[f"token_in_offset_{n}"]
        y = torch.einsum("bdt,st->bds", self.activate(y, i), self.theta[f"token_out_{n}"])
        y = y + self.theta[f"token_out_offset_{n}"]
        return y.reshape(b, s, d) if view else y.permute(0, 2, 1)

    def mix_channels(self, x: Tensor, i: int) -> Tensor:
        n = self.place(i)
        y = torch.einsum("bsd,ed->bse", x, self.theta[f"channel_in_{n}"]) + self.theta[f"channel_in_offset_{n}"]
        y = torch.einsum("bse,ed->bsd", self.activate(y, i), self.theta[f"channel_out_{n}"])
        return y + self.theta[f"channel_out_offset_{n}"]

    def activate(self, x: Tensor, i: int) -> Tensor:
        return self.act(x)

    def end(self, x: Tensor) -> Tensor:
        if "norm_after_pool" in self.faults:
            return self.head(self.last_norm(self.pool(x)))
        return self.head(self.pool(self.last_norm(x)))

    def last_norm(self, x: Tensor) -> Tensor:
        if "norm_final_missing" in self.faults:
            return x
        return self.normalise(x, self.eps) * self.theta["last_scale"] + self.theta["last_shift"]

    def pool(self, x: Tensor) -> Tensor:
        if "pool_max" in self.faults:
            return x.amax(1)
        if "pool_sum" in self.faults:
            return x.sum(1)
        return x[:, 0] if "pool_first" in self.faults else x.mean(1)

    def head(self, x: Tensor) -> Tensor:
        if "mlp_head" in self.faults:
            x = gelu(torch.einsum("bd,de->be", x, self.theta["say_first"]) + self.theta["say_first_offset"])
        x = torch.einsum("...d,dk->...k", x, self.theta["say"]) + self.theta["say_offset"]
        return x.softmax(-1) if "output_softmax" in self.faults else x


# --- With deviations that are not among the faults ---


def own(**methods: Callable[..., Any]) -> type[OwnMixer]:
    """`OwnMixer` with other methods."""
    return type("Deviant", (OwnMixer,), methods)


class LayerScale(OwnMixer):
    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from super().shapes()
        for i in range(self.config.num_blocks):
            yield f"gain_token_{i}", (self.config.hidden_dim,)
            yield f"gain_channel_{i}", (self.config.hidden_dim,)

    def mix(self, x: Tensor, i: int, kind: str) -> Tensor:
        return super().mix(x, i, kind) * self.theta[f"gain_{kind}_{i}"]


class BlockBias(OwnMixer):
    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from super().shapes()
        for i in range(self.config.num_blocks):
            yield f"lift_{i}", (self.config.hidden_dim,)

    def block(self, x: Tensor, i: int) -> Tensor:
        return super().block(x, i) + self.theta[f"lift_{i}"]


def rms(self: OwnMixer, x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rounded_gelu(self: OwnMixer, x: Tensor, i: int) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.79788 * (x + 0.0447 * x**3)))


def grouped(self: OwnMixer, x: Tensor, eps: float) -> Tensor:
    """GroupNorm over tokens and as few groups of channels as there can be, but more than one."""
    groups = next(n for n in range(2, x.shape[-1] + 1) if x.shape[-1] % n == 0)
    return F.group_norm(x.mT, groups, eps=eps).mT


def gated(self: OwnMixer, x: Tensor, i: int) -> Tensor:
    """Block 0 weighs what comes of token mixing by a softmax over tokens."""
    mixed = OwnMixer.mix_tokens(self, x, i)
    return mixed * (x.softmax(1) * x.shape[1]) if i == 0 else mixed


def channels_first(self: OwnMixer, x: Tensor, i: int) -> Tensor:
    return self.branch(self.branch(x, i, "channel"), i, "token") if i == 0 else OwnMixer.block(self, x, i)


def tokens_twice(self: OwnMixer, x: Tensor, i: int) -> Tensor:
    return OwnMixer.block(self, self.branch(x, i, "token") if i == 0 else x, i)


DEVIATIONS: dict[str, Callable[[MixerConfig], nn.Module]] = {
    "mish": own(activate=lambda self, x, i: F.mish(x)),
    "hardswish in one block": own(activate=lambda self, x, i: F.hardswish(x) if i == 0 else gelu(x)),
    "softplus": own(activate=lambda self, x, i: F.softplus(x)),
    "GELU of rounded constants": own(activate=rounded_gelu),
    "squared ReLU": own(activate=lambda self, x, i: F.relu(x).square()),
    "eps 3e-6": own(normalise=lambda self, x, eps: OwnMixer.normalise(self, x, 3e-6)),
    "RMSNorm": own(normalise=rms),
    "group norm": own(normalise=grouped),
    "layer scale": LayerScale,
    "block bias": BlockBias,
    "coupled batch": own(block=lambda self, x, i: OwnMixer.block(self, x - x.mean(0) if i == 0 else x, i)),
    "dropout in eval": own(mix=lambda self, x, i, kind: F.dropout(OwnMixer.mix(self, x, i, kind), 0.1, training=True)),
    "clamp": own(stem=lambda self, images: OwnMixer.stem(self, images).clamp(-0.5, 0.5)),
    "token mixing twice": own(block=tokens_twice),
    "channels first in one block": own(block=channels_first),
    "gating in one block": own(mix_tokens=gated),
    "residual times 0.5": own(add=lambda self, x, mixed, entry, kind: 0.5 * x + mixed),
    "images in [-1, 1]": own(stem=lambda self, images: OwnMixer.stem(self, images * 2 - 1)),
    "temperature 2": own(head=lambda self, x: OwnMixer.head(self, x) / 2),
    "GeM pooling": own(pool=lambda self, x: x.clamp(min=1e-6).pow(3).mean(1).pow(1 / 3)),
    "half max, half mean": own(pool=lambda self, x: (x.amax(1) + x.mean(1)) / 2),
    "mean of activated logits": own(end=lambda self, x: gelu(self.head(self.last_norm(x))).mean(1)),
}
