"""What a model is compared with where no second side is given."""

from __future__ import annotations

from typing import Any

import pytest

from mixer_equiv import verify
from mixer_equiv.bench.peers_flax import official_mixer
from mixer_equiv.models.numpy import MlpMixer as ReferenceMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer
from tests.support.small_verify import IMAGE, SMALL
from tests.support.structures import OwnMixer


@pytest.mark.parametrize(
    ("model", "programs"),
    [
        (lambda: OwnMixer(SMALL), ["PyTorch", "NumPy"]),
        (lambda: official_mixer(SMALL), ["Flax", "Flax"]),
        (lambda: TorchMixer(SMALL), ["PyTorch", "Flax"]),
        (lambda: "flax", ["Flax", "PyTorch"]),
        (lambda: "reference", ["NumPy", "Flax"]),
    ],
    ids=["somebody else's, of torch", "somebody else's, of Flax", "ours of torch", "flax", "reference"],
)
def test_the_counterpart_of_a_model(model: Any, programs: list[str]) -> None:
    report = verify(model(), image=IMAGE, gradients=False)
    assert report.verdict == "equivalent"
    assert [side.program for side in report.sides] == programs
    assert all(program in str(report) for program in programs)


@pytest.mark.parametrize(("asked", "program"), [("flax", "Flax"), ("torch", "PyTorch"), ("nnx", "Flax nnx")])
def test_a_counterpart_that_is_asked_for_is_used(asked: str, program: str) -> None:
    report = verify(OwnMixer(SMALL), asked, image=IMAGE, gradients=False)
    assert [side.program for side in report.sides] == ["PyTorch", program]


def test_gradients_are_compared_with_the_reference_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = ReferenceMixer.gradients
    assert verify(OwnMixer(SMALL), image=IMAGE).verdict == "equivalent"

    def slightly_off(*given: Any) -> Any:
        return {name: array * (1 + 1e-9 * name.startswith("stem")) for name, array in gradients(*given).items()}

    monkeypatch.setattr(ReferenceMixer, "gradients", slightly_off)
    report = verify(OwnMixer(SMALL), image=IMAGE)
    assert report.verdict == "different"
    assert "the gradients differ by 1.0e-09, most at stem/" in report.reasons[0]
