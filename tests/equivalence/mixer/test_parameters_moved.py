"""Parameters that are multiplied into others, or that no output needs, are told as what they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv import Report, layout_of, verify
from mixer_equiv.layouts import Constraint
from tests.support.sizes import IMAGE
from tests.support.sizes import SMALL as CONFIG


class Folded(nn.Module):
    """LayerNorms before channel mixing and before the head are folded into the next layer, as `how` says."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.how = how
        tokens, hidden, blocks = CONFIG.num_tokens, CONFIG.hidden_dim, range(CONFIG.num_blocks)
        self.stem = nn.Conv2d(CONFIG.in_channels, hidden, CONFIG.patch_hw, CONFIG.patch_hw)
        self.first, self.second = (nn.ModuleList(nn.LayerNorm(hidden, 1e-6) for _ in blocks) for _ in "ab")
        self.up = nn.ModuleList(nn.Linear(tokens, CONFIG.tokens_mlp_dim) for _ in blocks)
        self.down = nn.ModuleList(nn.Linear(CONFIG.tokens_mlp_dim, tokens, bias=how != "idle") for _ in blocks)
        self.wide = nn.ModuleList(nn.Linear(hidden, CONFIG.channels_mlp_dim, bias=how != "one bias") for _ in blocks)
        self.narrow = nn.ModuleList(nn.Linear(CONFIG.channels_mlp_dim, hidden) for _ in blocks)
        self.last, self.head = nn.LayerNorm(hidden, 1e-6), nn.Linear(hidden, CONFIG.num_classes)

    def folded(self, x: Tensor, norm: nn.LayerNorm, layer: Any, pool: bool = False) -> Tensor:
        if self.how == "idle":
            return layer(norm(x).mean(1) if pool else norm(x))
        z = F.layer_norm(x, norm.normalized_shape, eps=1e-6)
        weight = layer.weight if self.how == "bias alone" else layer.weight * norm.weight
        z = z * norm.weight if self.how == "bias alone" else z
        bias = layer.weight @ norm.bias
        return F.linear(z.mean(1) if pool else z, weight, bias if layer.bias is None else layer.bias + bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        for i, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            x = x + self.down[i](F.gelu(self.up[i](first(x).mT), approximate="tanh")).mT
            x = x + self.narrow[i](F.gelu(self.folded(x, second, self.wide[i]), approximate="tanh"))
        return self.folded(x, self.last, self.head, pool=True)


@pytest.mark.parametrize("how", ["", "bias alone", "one bias"])
def test_a_layer_norm_that_is_folded_into_the_next_layer_has_its_parameters(how: str) -> None:
    torch.manual_seed(0)
    report = verify(Folded(how), image=IMAGE)
    if how == "one bias":
        assert (report.verdict, [cause.name for cause in report.causes]) == ("equivalent_under", ["absent_parameters"])
        assert report.causes[0].found == "MixerBlock_{i}/channel_mixing/Dense_0/bias all zeros"
    else:
        assert (report.verdict, report.causes) == ("equivalent", ())
    assert report.gradients is not None
    assert report.gradients.residual <= 1e-12
    bound = {name: report.mapping[f"MixerBlock_1/{name}"] for name in ("LayerNorm_1/scale", "LayerNorm_1/bias")}
    assert bound == {"LayerNorm_1/scale": "second.1.weight", "LayerNorm_1/bias": "second.1.bias"}
    assert report.mapping["MixerBlock_1/channel_mixing/Dense_0/kernel"] == "wide.1.weight"
    assert (report.mapping["pre_head_layer_norm/bias"], report.mapping["head/bias"]) == ("last.bias", "head.bias")
    assert any(text.startswith("scales and biases of LayerNorms are folded") for text in report.warnings)


def idle(report: Report) -> bool:
    return any(text.startswith("it lacks parameters on which no output depends") for text in report.warnings)


def test_a_bias_that_changes_no_output_may_be_absent() -> None:
    torch.manual_seed(0)
    report = verify(Folded("idle"), image=IMAGE)
    assert (report.verdict, report.causes) == ("equivalent", ())
    assert idle(report)
    constraints = layout_of(Folded("idle"), IMAGE).constraints
    assert constraints == (Constraint("absent_parameters", ("MixerBlock_{i}/token_mixing/Dense_1/bias",)),)
    # With a LayerNorm that takes no mean away, outputs do depend on it.
    report = verify(WithoutMean(), image=IMAGE)
    assert report.verdict == "different"
    assert [cause.name for cause in report.causes] == ["layer_norm_mean", "absent_parameters"]
    assert not idle(report)


class WithoutMean(Folded):
    def __init__(self) -> None:
        super().__init__("idle")
        rms = [nn.RMSNorm(CONFIG.hidden_dim, 1e-6) for _ in range(2 * CONFIG.num_blocks)]
        self.first, self.second = nn.ModuleList(rms[: CONFIG.num_blocks]), nn.ModuleList(rms[CONFIG.num_blocks :])
