"""Verdicts on models of other people: the official ones, public ports, and models that are no Mixers."""

from __future__ import annotations

import pytest
import torch
from flax import nnx
from torch import nn

from mixer_equiv import (
    InexpressibleError,
    layout_of,
    verify,
)
from mixer_equiv.equivalence.sides.locate import import_timm
from mixer_equiv.models.nnx import MlpMixer as NnxMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer
from tests.support.sizes import CONFIG, IMAGE, SMALL
from tests.support.structures import (
    PORTS,
    JeonsworldMixer,
    MmpretrainMixer,
    OfficialMixer,
    OwnMixer,
    PortMixer,
    TutorialMixer,
    timm_mixer,
)


def test_a_tutorial_s_model_is_the_same_function_under_two_conventions() -> None:
    report = verify(TutorialMixer(CONFIG), image=IMAGE)
    assert report.verdict == "equivalent_under"
    assert {(cause.name, cause.found, cause.expected, cause.count) for cause in report.causes} == {
        ("activation", "gelu", "gelu_tanh", "24 of 24 MLPs"),
        ("layer_norm_eps", "1e-05", "1e-06", "25 of 25 LayerNorms"),
    }
    assert report.residual is not None
    assert report.residual > 1e-6
    assert report.residual_without_causes is not None
    assert report.residual_without_causes <= 1e-14
    assert report.first_divergence == "MixerBlock_0/token_mixing"
    assert report.mapping["MixerBlock_3/LayerNorm_1/scale"] == "blocks.3.norm_2.weight"


def test_two_foreign_models_are_held_against_each_other() -> None:
    report = verify(TutorialMixer(CONFIG), MmpretrainMixer(CONFIG), image=IMAGE)
    assert report.verdict == "equivalent"
    report = verify(timm_mixer(SMALL), JeonsworldMixer(SMALL), image=IMAGE)
    assert report.verdict == "equivalent"
    report = verify(TutorialMixer(SMALL), timm_mixer(SMALL), image=IMAGE)
    assert [(cause.name, cause.found, cause.expected) for cause in report.causes] == [
        ("layer_norm_eps", "1e-05", "1e-06")
    ]


@pytest.mark.parametrize("framework", ["torch", "linen", "nnx"])
def test_official_models_are_equivalent(framework: str) -> None:
    model = {
        "torch": lambda: PortMixer(CONFIG),
        "linen": lambda: OfficialMixer(CONFIG.patch_hw, 7, 12, CONFIG.hidden_dim, 11, 26),
        "nnx": lambda: NnxMixer(CONFIG, rngs=nnx.Rngs(0)),
    }[framework]()
    report = verify(model, image=IMAGE)
    assert report.verdict == "equivalent"
    assert not report.causes


@pytest.mark.parametrize(
    ("fault", "found", "expected"), [("activation_none", "none", "an activation"), ("activation_relu", "relu", "gelu")]
)
def test_an_activation_beside_another_one_than_the_official_is_one_cause(fault: str, found: str, expected: str) -> None:
    other = TorchMixer(SMALL.replace(activation="gelu"))
    report = verify(OwnMixer(SMALL, (fault,)), other, image=IMAGE, gradients=False)
    causes = [(cause.name, cause.found, cause.expected) for cause in report.causes]
    assert causes == [("activation", found, expected)]


@pytest.mark.parametrize("name", [name for name in PORTS if "tied" in name or "shared" in name or "no " in name])
def test_constraints_are_named(name: str) -> None:
    report = verify(PortMixer(CONFIG, **PORTS[name]), image=IMAGE)
    assert report.verdict == "equivalent_under"
    assert {cause.kind for cause in report.causes} == {"constraint"}
    names = {cause.name for cause in report.causes}
    assert ("tied_blocks" in names) == ("tied" in name)
    assert ("shared_parameters" in names) == ("shared" in name)
    assert ("absent_parameters" in names) == ("no stem bias" in name)


def test_one_odd_place_is_named() -> None:
    model = PortMixer(CONFIG)
    model.blocks[7].mix_channels.act = nn.GELU()
    model.blocks[9].norm_tokens.eps = 3e-6
    report = verify(model, image=IMAGE)
    assert report.verdict == "equivalent_under"
    assert {(cause.name, cause.found, cause.count, cause.evidence) for cause in report.causes} == {
        ("activation", "gelu", "1 of 24 MLPs", "in PortMixer: MixerBlock_7/channel_mixing/activate"),
        ("layer_norm_eps", "3e-06", "1 of 25 LayerNorms", "in PortMixer: MixerBlock_9/LayerNorm_0"),
    }
    assert report.first_divergence == "MixerBlock_7/channel_mixing"


class Detached(PortMixer):
    """The official function, whose stem is not trained."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images).detach()
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.final_norm(x).mean(dim=1))


def test_the_same_outputs_with_other_gradients_are_not_equivalent() -> None:
    report = verify(Detached(SMALL), image=IMAGE)
    assert report.verdict == "different"
    assert report.residual is not None
    assert report.residual <= 1e-12
    assert report.gradients is not None
    assert report.gradients.worst in ("stem/kernel", "stem/bias")
    assert "the gradients differ by" in report.reasons[0]
    assert verify(Detached(SMALL), image=IMAGE, gradients=False).verdict == "equivalent"


@pytest.mark.parametrize("name", ["tied blocks, shared norm", "linear stem without bias"])
def test_gradients_of_what_is_in_common_are_summed(name: str) -> None:
    report = verify(PortMixer(SMALL, **PORTS[name]), image=IMAGE)
    assert report.gradients is not None
    assert report.gradients.residual <= report.gradients.threshold
    assert report.gradients.count == len(list(PortMixer(SMALL, **PORTS[name]).parameters()))


def test_gradients_of_our_models_agree() -> None:
    report = verify("torch", "flax", gradients=True)
    assert report.gradients is not None
    assert 0 < report.gradients.residual <= 1e-12


@pytest.mark.parametrize("model", [nn.Linear(5, 5), nn.Flatten(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())])
def test_what_is_no_mixer_is_said_to_be_none(model: nn.Module) -> None:
    report = verify(model, image=(3, 5, 5))
    assert report.verdict == "inexpressible"
    assert any("no patch embedding" in reason or "it is a Mixer up to" in reason for reason in report.reasons)
    with pytest.raises(InexpressibleError, match="has no layout: "):
        layout_of(model, (3, 5, 5))


def test_an_image_that_the_patches_do_not_divide_is_called_so() -> None:
    channels, height, width = IMAGE
    (ph, pw), rest = SMALL.patch_hw, 1
    report = verify(PortMixer(SMALL), image=(channels, height + rest, width + rest))
    assert report.verdict == "inexpressible"
    said = f"are {ph}x{pw} and do not divide images of {height + rest}x{width + rest} (height x width)"
    assert said in report.reasons[0]
    assert f"give images of {height}x{width}" in report.reasons[0]


@pytest.mark.soundness
@pytest.mark.parametrize("name", ["gmixer_12_224", "resmlp_12_224", "vit_tiny_patch16_224", "resnet10t"])
def test_timm_s_other_models_are_no_mixers(name: str) -> None:
    report = verify(import_timm().create_model(name))
    assert report.verdict == "inexpressible"
    assert report.reasons


@pytest.mark.soundness
def test_the_real_b_16_of_timm_differs_in_its_activation_alone() -> None:
    report = verify(import_timm().create_model("mixer_b16_224"))
    assert report.verdict == "equivalent_under"
    assert [(cause.name, cause.found, cause.count) for cause in report.causes] == [
        ("activation", "gelu", "24 of 24 MLPs")
    ]
