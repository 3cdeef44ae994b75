"""What weights and images could show: faults that would be seen, and by how much."""

from __future__ import annotations

import pytest

from mixer_equiv import Checkpoint, verify
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_images, random_params
from tests.support.small_verify import SMALL


def test_every_known_fault_would_show_with_random_weights() -> None:
    report = verify("torch", "flax")
    assert len(report.visible) == 25
    assert min(report.visible.values()) > 1e-9
    assert "would show each of 25 known mistakes" in " ".join(str(report).split())


def test_what_the_weights_cannot_show_is_said() -> None:
    params = random_params(SMALL, 0)
    params["MixerBlock_2/channel_mixing/Dense_1/kernel"][:] = 0
    report = verify(Checkpoint.from_arrays(params, config=SMALL), images=random_images(SMALL, 0))
    unseen = {fault for fault, moved in report.visible.items() if moved <= report.threshold}
    assert unseen == {f"activation: {name}" for name in ("none", "gelu", "relu", "silu", "quick_gelu")}
    said = " ".join(str(report).split())
    assert "would show 20 of 25 known mistakes" in said
    assert "Its outputs stayed the same with: activation: none, " in said


def test_a_fault_moves_the_output_by_as_much_as_is_said() -> None:
    """The erf GELU in the last block alone, by another program: the torch model with one layer exchanged."""
    from mixer_equiv.models.torch import MlpMixer

    report = verify("torch", "flax")
    model = MlpMixer(DEFAULT_CONFIG)
    model.blocks[-1].channel_mixing.activation = "gelu"
    planted = verify(model, "flax")
    assert report.visible["activation: gelu"] == pytest.approx(planted.residual, rel=1)
