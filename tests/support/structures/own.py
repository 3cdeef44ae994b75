"""A Mixer of the tests' own, written once more from the paper in a functional style, with faults planted by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, nn

from mixer_equiv.config import MixerConfig

_ROOT = math.sqrt(2 / math.pi)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "activation_erf": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "activation_relu": lambda x: x.clamp(min=0),
    "activation_silu": lambda x: x * x.sigmoid(),
    "activation_quick_gelu": lambda x: x * (1.702 * x).sigmoid(),
    "activation_none": lambda x: x,
}


class OwnMixer(nn.Module):
    """The official function, but for the `faults` among those of `FAULTS`."""

    def __init__(self, config: MixerConfig, faults: Collection[str] = ()) -> None:
        super().__init__()
        self.c, self.faults = config, set(faults)
        self.w = nn.ParameterDict({name: nn.Parameter(torch.randn(shape) / 4) for name, shape in self.shapes()})

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        c, f = self.c, self.faults
        tokens, hidden, classes, head = c.num_tokens, c.hidden_dim, c.num_classes, c.hidden_dim
        yield "theta", (c.in_channels * math.prod(c.patch_hw), hidden)
        if "stem_bias_absent" not in f:
            yield "theta0", (hidden,)
        if "position_embedding" in f:
            yield "where", (tokens, hidden)
        for i in range(1 if "blocks_tied" in f else c.num_blocks):
            for n in "a" if "norm_shared" in f else "ab":
                yield from ((f"g_{n}_{i}", (hidden,)), (f"s_{n}_{i}", (hidden,)))
            yield from ((f"t_up_{i}", (c.tokens_mlp_dim, tokens)), (f"t_dn_{i}", (tokens, c.tokens_mlp_dim)))
            if "token_bias_absent" not in f:
                yield f"t_up0_{i}", (c.tokens_mlp_dim,)
            yield from ((f"t_dn0_{i}", (tokens,)), (f"c_up_{i}", (hidden, c.channels_mlp_dim)))
            yield from ((f"c_up0_{i}", (c.channels_mlp_dim,)), (f"c_dn_{i}", (c.channels_mlp_dim, hidden)))
            yield f"c_dn0_{i}", (hidden,)
        if "norm_final_missing" not in f:
            yield from (("g_z", (hidden,)), ("s_z", (hidden,)))
        if "mlp_head" in f:
            head = 13
            yield from (("h1", (hidden, head)), ("h10", (head,)))
        yield from (("answer", (head, classes)), ("answer0", (classes,)))

    def act(self, x: Tensor) -> Tensor:
        planted = [function for name, function in ACTIVATIONS.items() if name in self.faults]
        return planted[0](x) if planted else 0.5 * x * (1 + torch.tanh(_ROOT * (x + 0.044715 * x**3)))

    def norm(self, x: Tensor, g: str, s: str, place: str = "") -> Tensor:
        f = self.faults
        eps = 1e-6
        for e in ("1e-5", "1e-12", "1e-3"):
            if f"eps_{e}" in f:
                eps = float(e)
        if "eps_1e-5_one_place" in f and place == "b0":
            eps = 1e-5
        if "norm_missing" in f and place == f"b{self.c.num_blocks - 1}":
            return x
        dims = (-2, -1) if "norm_both_axes" in f and x.dim() == 3 else (-1,)
        m = x.mean(dims, keepdim=True)
        v = ((x - m) ** 2).mean(dims, keepdim=True)
        if "norm_unbiased" in f:
            v = v * x.shape[-1] / (x.shape[-1] - 1)
        return (x - m) * torch.rsqrt(v + eps) * self.w[g] + self.w[s]

    def mix_tokens(self, x: Tensor, block: int) -> Tensor:
        w, f, b = self.w, self.faults, x.shape[0]
        i = 0 if "blocks_tied" in f else block
        n1 = x if "post_norm" in f else self.norm(x, f"g_a_{i}", f"s_a_{i}", f"a{block}")
        y = n1.reshape(b, n1.shape[2], n1.shape[1]) if "view_for_transpose" in f else n1.transpose(1, 2)
        u = torch.einsum("bds,ts->bdt", y, w[f"t_up_{i}"])
        if f"t_up0_{i}" in w:
            u = u + w[f"t_up0_{i}"]
        y = torch.einsum("bdt,st->bds", self.act(u), w[f"t_dn_{i}"]) + w[f"t_dn0_{i}"]
        y = y.reshape(b, y.shape[2], y.shape[1]) if "view_for_transpose" in f else y.transpose(1, 2)
        x = self.added(x, n1, y, "residual_token_missing")
        return self.norm(x, f"g_a_{i}", f"s_a_{i}", f"a{block}") if "post_norm" in f else x

    def mix_channels(self, x: Tensor, block: int) -> Tensor:
        w, f = self.w, self.faults
        i = 0 if "blocks_tied" in f else block
        second = "a" if "norm_shared" in f else "b"
        n2 = x if "post_norm" in f else self.norm(x, f"g_{second}_{i}", f"s_{second}_{i}", f"b{block}")
        u = torch.einsum("bnd,dc->bnc", n2, w[f"c_up_{i}"]) + w[f"c_up0_{i}"]
        y = torch.einsum("bnc,cd->bnd", self.act(u), w[f"c_dn_{i}"]) + w[f"c_dn0_{i}"]
        x = self.added(x, n2, y, "residual_channel_missing")
        return self.norm(x, f"g_{second}_{i}", f"s_{second}_{i}", f"b{block}") if "post_norm" in f else x

    def added(self, x: Tensor, normed: Tensor, y: Tensor, missing: str) -> Tensor:
        if missing in self.faults:
            return y
        return normed + y if "residual_normalised" in self.faults else x + y

    def forward(self, images: Tensor) -> Tensor:
        c, w, f = self.c, self.w, self.faults
        (ph, pw), (gh, gw) = c.patch_hw, c.grid_hw
        b = images.shape[0]
        cut = images.reshape(b, c.in_channels, gh, ph, gw, pw).permute(0, 2, 4, 3, 5, 1).reshape(b, gh * gw, -1)
        x = torch.einsum("bnp,pd->bnd", cut, w["theta"])
        if "theta0" in w:
            x = x + w["theta0"]
        if "where" in w:
            x = x + w["where"]
        for block in range(c.num_blocks):
            mixings = [self.mix_tokens, self.mix_channels]
            for mix in reversed(mixings) if "channels_first" in f else mixings:
                x = mix(x, block)
        if "norm_final_missing" not in f and "norm_after_pool" not in f:
            x = self.norm(x, "g_z", "s_z")
        if "pool_max" in f:
            x = x.amax(1)
        elif "pool_sum" in f:
            x = x.sum(1)
        elif "pool_first" in f:
            x = x[:, 0]
        else:
            x = x.mean(1)
        if "norm_after_pool" in f:
            x = self.norm(x, "g_z", "s_z")
        if "h1" in w:
            x = self.act(x @ w["h1"] + w["h10"])
        x = x @ w["answer"] + w["answer0"]
        return x.softmax(-1) if "output_softmax" in f else x


_E, _I, _D = "equivalent_under", "inexpressible", "different"

# By name: the verdict, the cause, what is found, and the first stage that differs, if outputs show it.
_FIRST, _FIRST_CHANNELS = "MixerBlock_0/token_mixing", "MixerBlock_0/channel_mixing"
FAULTS: dict[str, tuple[str, str, str, str | None]] = {
    "activation_erf": (_E, "activation", "gelu", _FIRST),
    "activation_relu": (_E, "activation", "relu", _FIRST),
    "activation_silu": (_E, "activation", "silu", _FIRST),
    "activation_quick_gelu": (_E, "activation", "quick_gelu", _FIRST),
    "activation_none": (_E, "activation", "none", _FIRST),
    "eps_1e-5": (_E, "layer_norm_eps", "1e-05", _FIRST),
    "eps_1e-12": (_E, "layer_norm_eps", "1e-12", _FIRST),
    "eps_1e-3": (_E, "layer_norm_eps", "0.001", _FIRST),
    "eps_1e-5_one_place": (_E, "layer_norm_eps", "1e-05", _FIRST_CHANNELS),
    "norm_missing": (_I, "layer_norm_missing", "none", "MixerBlock_{last}/LayerNorm_1"),
    "norm_final_missing": (_I, "layer_norm_missing", "none", "pre_head_layer_norm"),
    "post_norm": (_D, "post_norm", "after each addition", _FIRST),
    "norm_both_axes": (_I, "layer_norm_axes", "tokens and channels", _FIRST),
    "norm_after_pool": (_D, "norm_after_pool", "mean, LayerNorm", "pre_head_layer_norm"),
    "norm_unbiased": (_D, "layer_norm_variance", "unbiased", _FIRST),
    "residual_token_missing": (_D, "residual_missing", "none", _FIRST),
    "residual_channel_missing": (_D, "residual_missing", "none", _FIRST_CHANNELS),
    "residual_normalised": (_D, "residual_normalised", "the normalised stream", _FIRST),
    "channels_first": (_D, "sublayers_swapped", "channel mixing first", _FIRST),
    "pool_max": (_D, "pooling", "max", "pooled"),
    "pool_sum": (_D, "pooling", "sum", "pooled"),
    "pool_first": (_D, "pooling", "first token", "pooled"),
    "output_softmax": (_D, "output", "softmax", "logits"),
    "view_for_transpose": (_D, "transpose", "reshaped", _FIRST),
    "position_embedding": (_I, "position_embedding", "a parameter", _FIRST),
    "mlp_head": (_I, "mlp_head", "several layers", "head"),
    "norm_shared": (_E, "shared_parameters", "LayerNorm_1/scale equal to MixerBlock_{i}/LayerNorm_0/scale", None),
    "blocks_tied": (_E, "tied_blocks", "the same in all blocks", None),
    "stem_bias_absent": (_E, "absent_parameters", "stem/bias all zeros", None),
    "token_bias_absent": (_E, "absent_parameters", "token_mixing/Dense_0/bias all zeros", None),
}
