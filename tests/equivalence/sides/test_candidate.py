"""Models in unusual states: followed or refused with a reason, and left as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flax import nnx
from torch import nn

from mixer_equiv import (
    MixerConfig,
    MixerEquivError,
    verify,
)
from mixer_equiv.models.nnx import MlpMixer as NnxMixer
from tests.support.sizes import CONFIG, IMAGE, SMALL
from tests.support.structures import (
    LucidrainsMixer,
    PortMixer,
    as_official,
)


def test_nothing_of_the_user_s_is_changed() -> None:
    model = PortMixer(CONFIG).train()
    model.blocks[3].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    grad = torch.is_grad_enabled()
    verify(model, image=IMAGE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_default_dtype() is dtype
    assert torch.is_grad_enabled() is grad


def test_nothing_of_the_user_s_is_changed_when_the_model_raises() -> None:
    class Raises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no such luck")

    model, dtype = Raises().train(), torch.get_default_dtype()
    with pytest.raises(MixerEquivError, match="Raises raised ValueError when it was run: no such luck"):
        verify(model, image=IMAGE)
    assert model.training
    assert torch.get_default_dtype() is dtype
    assert torch.equal(model.weight, torch.ones(3))


class _NaN(PortMixer):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * float("nan")


class _ThroughNumPy(PortMixer):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.from_numpy(images.detach().numpy() * 1))


class _WithMask(PortMixer):
    def forward(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * mask


STATES = {
    "compiled": lambda: torch.compile(PortMixer(SMALL)),
    "exported": lambda: torch.export.export(PortMixer(SMALL).eval(), (torch.zeros(2, *IMAGE),)).module(),
    "half": lambda: PortMixer(SMALL).half(),
    "bfloat16": lambda: PortMixer(SMALL).bfloat16(),
    "on the meta device": lambda: PortMixer(SMALL).to("meta"),
    "in train mode, with dropout": lambda: as_official(LucidrainsMixer(SMALL, dropout=0.5)).train(),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("state", STATES)
def test_models_in_any_state_are_followed(state: str) -> None:
    report = verify(STATES[state](), image=IMAGE)
    assert report.verdict == "equivalent"
    assert report.gradients is not None
    assert report.gradients.residual <= report.gradients.threshold


class _Functional(PortMixer):
    """Dropout without a module, and an option that changes what comes out."""

    def forward(self, images: torch.Tensor, probabilities: bool = False) -> torch.Tensor:
        x = nn.functional.dropout(super().forward(images), 0.5, self.training)
        return x.softmax(-1) if probabilities else x


class _Coupled(PortMixer):
    """The official function of one image alone; of several, each is drawn to their mean."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
            x = x + 0.1 * (x.mean(0, keepdim=True) - x)
        return self.classifier(self.final_norm(x).mean(dim=1))


class _CoupledAtTheEnd(PortMixer):
    """The same, where the images go one by one until the end."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.cat([super(_CoupledAtTheEnd, self).forward(image[None]) for image in images])
        return x + 0.1 * (x.mean(0, keepdim=True) - x)


@pytest.mark.parametrize("model", [_Coupled, _CoupledAtTheEnd])
def test_a_model_that_mixes_the_images_of_a_batch_is_another_function(model: Any) -> None:
    report = verify(model(SMALL), image=IMAGE)
    assert report.verdict == "different"
    assert {"neighbours"} <= {cause.name for cause in report.causes} <= {"unknown", "neighbours"}
    assert any("depends on the other images of its batch" in reason for reason in report.reasons)
    assert "it is the same function" not in str(report)


class _NnxDropout(NnxMixer):
    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    def __call__(self, images: Any) -> Any:
        return self.dropout(super().__call__(images))


@pytest.mark.parametrize("model", [_Functional, _NnxDropout])
def test_what_another_mode_or_option_would_do_is_said(model: Any) -> None:
    report = verify(model(SMALL), image=IMAGE, gradients=False)
    assert report.verdict == "equivalent"
    said = " ".join(report.warnings)
    assert "in train mode it computes something else, as with dropout" in said
    assert ("it also takes probabilities=False, left as given here" in said) == (model is _Functional)
    plain = PortMixer(SMALL) if model is _Functional else NnxMixer(SMALL, rngs=nnx.Rngs(0))
    assert "train mode" not in " ".join(verify(plain, image=IMAGE, gradients=False).warnings)


@pytest.mark.parametrize(
    ("model", "reason"), [(_NaN, "its output holds NaN or infinity"), (_ThroughNumPy, "to NumPy or to C++, cannot be")]
)
def test_of_models_that_cannot_be_followed_nothing_is_compared(model: Any, reason: str) -> None:
    report = verify(model(SMALL), image=IMAGE)
    assert report.verdict == "nothing_compared"
    assert any(reason in text for text in report.reasons)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: torch.jit.trace(PortMixer(SMALL).eval(), torch.zeros(2, *IMAGE)), "was made by torch.jit"),
        (lambda: _WithMask(SMALL), "raised TypeError when it was run: .*missing 1 required positional argument"),
        (lambda: PortMixer, "PortMixer cannot be made without arguments .*; give the config or kwargs"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_models_that_cannot_be_run_are_refused_in_words(model: Any, message: str) -> None:
    with pytest.raises(MixerEquivError, match=message):
        verify(model(), image=IMAGE)
