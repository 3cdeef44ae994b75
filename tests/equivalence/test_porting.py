"""`port`: weights put into models of other people."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from mixer_equiv import (
    Checkpoint,
    ConfigError,
    ConventionWarning,
    ConversionError,
    InexpressibleError,
    MixerConfig,
    MixerEquivError,
    convert,
    layout_of,
    load,
    port,
    verify,
)
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.data import digits
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.nnx import MlpMixer as NnxMixer
from tests.support.sizes import CONFIG, IMAGE, SMALL, in_float32
from tests.support.structures import (
    PortMixer,
    run_torch,
    timm_mixer,
)


def unseen_class() -> type[nn.Module]:
    """A Mixer for the digits under names that no table has."""

    class Unseen(nn.Module):
        def __init__(self, config: MixerConfig) -> None:
            super().__init__()
            self.inner = PortMixer(config, linear_stem="channels ph pw")

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(images)

    return Unseen


def test_the_digits_checkpoint_predicts_the_same_in_an_unseen_class() -> None:
    checkpoint = load(digits.CHECKPOINT)
    model = unseen_class()(checkpoint.config)
    before = [parameter.clone() for parameter in model.parameters()]
    port(digits.CHECKPOINT, model)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    images, labels = digits.held_out()
    from mixer_equiv.models.numpy import MlpMixer as Reference

    expected = Reference(checkpoint.config)(checkpoint.arrays, images)
    actual = run_torch(model, images.astype(np.float64))
    assert np.array_equal(actual.argmax(-1), expected.argmax(-1))
    assert np.linalg.norm(actual - expected) <= 1e-12 * np.linalg.norm(expected)
    assert np.mean(actual.argmax(-1) == labels) > 0.9


def test_porting_warns_of_what_the_model_computes() -> None:
    params = in_float32(CONFIG, 0)
    with pytest.warns(ConventionWarning, match="MlpMixer's code computes erf GELU") as caught:
        port(params, timm_mixer(CONFIG), image=IMAGE)
    assert len(caught) == 1


def test_an_assumed_image_that_the_model_refuses_is_said_to_be_assumed() -> None:
    with pytest.raises(
        MixerEquivError, match=r"the image was taken to be 3x6x12, from the number of tokens; give image"
    ):
        port(random_params(CONFIG, 0), timm_mixer(CONFIG))


def test_porting_into_nnx_and_linen() -> None:
    params = in_float32(CONFIG, 3)
    model = NnxMixer(CONFIG, rngs=nnx.Rngs(0))
    port(params, model)
    held = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    np.testing.assert_array_equal(held["stem"]["kernel"], params["stem/kernel"].astype(np.float32))
    assert not bit_differences(port(params, FlaxMixer(CONFIG)).arrays, params)


def test_weights_of_another_size_are_refused_and_nothing_is_changed() -> None:
    model = timm_mixer(CONFIG.replace(hidden_dim=24))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match="do not fit MlpMixer: hidden_dim is 20 in one and 24 in the other"):
        port(random_params(CONFIG, 0), model, image=IMAGE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")
def test_a_head_may_stay_as_it_is() -> None:
    model = timm_mixer(CONFIG.replace(num_classes=5))
    head = model.head.weight.clone()
    port(random_params(CONFIG.replace(num_classes=0), 0), model, image=IMAGE, allow_missing=["head/*"])
    assert torch.equal(model.head.weight, head)


class WithoutHead(PortMixer):
    """Features alone; the classifier is there and is not used."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x).mean(dim=1)


def test_a_model_without_a_head_takes_weights_with_one_or_without() -> None:
    params = in_float32(SMALL, 0)
    layout = layout_of(WithoutHead(SMALL), image=IMAGE)
    features = {name: array for name, array in params.items() if not name.startswith("head/")}
    for weights, allowed in ((params, []), (params, ["head/*"]), (features, [])):
        model = WithoutHead(SMALL)
        before = model.classifier.weight.clone()
        with pytest.warns(ConventionWarning, match=r"stay as they were: classifier.weight, classifier.bias$"):
            ported = port(weights, model, image=IMAGE, allow_missing=allowed)
        assert torch.equal(model.classifier.weight, before)
        assert ("left out: head/kernel, which WithoutHead does not have" in ported.notes) == (weights is params)
        assert verify(model, image=IMAGE).verdict == "equivalent"
    with pytest.raises(InexpressibleError, match=r"it has no head/kernel(.|\n)*leave the head out with drop_head"):
        convert(Checkpoint.from_arrays(params, config=SMALL), to=layout)
    state = convert(Checkpoint.from_arrays(params, config=SMALL), to=layout, allow_missing=["head/*"])
    again = convert(state, to="linen")
    assert not any(name.startswith("head") for name in again.arrays)


def test_a_head_of_the_model_must_be_filled_or_named() -> None:
    features = {name: array for name, array in in_float32(SMALL, 0).items() if not name.startswith("head/")}
    with pytest.raises(ConversionError, match=r"missing: head/kernel(.|\n)*allow_missing=\['head/\*'\]"):
        port(features, PortMixer(SMALL), image=IMAGE)
    with pytest.raises(ConversionError, match="must be a list of globs"):
        port(features, WithoutHead(SMALL), image=IMAGE, allow_missing="head/*")


def test_porting_warns_once_and_says_each_thing_once() -> None:
    """The GELU and the rounding are two sentences of one warning."""
    with pytest.warns(ConventionWarning) as caught:
        port(random_params(CONFIG, 0), timm_mixer(CONFIG), image=IMAGE)
    assert len(caught) == 1
    sentences = str(caught[0].message).splitlines()
    assert [sentence.partition(";")[0] for sentence in sentences] == [
        "MlpMixer's code computes erf GELU",
        "MlpMixer rounds 150 of 150 arrays to float32, the first is stem.proj.weight",
    ]
