"""Right models are the official function, and the verifier says so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from mixer_equiv import MixerConfig
from mixer_equiv.models.numpy import MlpMixer
from mixer_equiv.random_weights import draw_images, draw_params
from tests.soundness import right_flax, right_torch
from tests.soundness.cases import CONFIG, Case, judge, parametrize
from tests.soundness.writings import linen_plain
from tests.soundness.writings.official import OFFICIAL, SQUARE, SQUARE_IMAGE
from tests.soundness.writings.torch_constrained import CONSTRAINED

TOLERANCE = 1e-12
# Writings that ask for a lower precision than that of their weights, or round the constants of activations.
TOLERANCES = {
    "under: GELU of 0.79788456": 1e-8,
    "under: GELU of 0.044714998": 1e-8,
    "under: GELU of 0.8 and 0.0447": 2e-3,
    "under: GELU by sigmoid of 1.595769 and 0.0447": 1e-5,
    "under: GELU by erf of 0.70710678": 1e-8,
    "under: GELU by erf over 1.4142": 1e-5,
    "under: quick GELU of 1.7": 1e-3,
    "LayerNorm: in float32": 1e-6,
    "numbers: images to float32": 1e-6,
    "numbers: logits to float32": 1e-6,
    "numbers: weights in bfloat16": 0.02,
    "numbers: weights in float16": 0.002,
}
# One model keeps intermediates as people did before `nnx.capture`.
KEPT_BY_SOWING = pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")


def residual(logits: np.ndarray, expected: np.ndarray) -> float:
    assert logits.shape == expected.shape
    return float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))


def tolerance(case: Case) -> float:
    """How far a writing may be from the official function of its conventions, in torch and Flax alike."""
    return TOLERANCES.get(case.name.removeprefix("linen "), TOLERANCE)


def reference(case: Case, images: np.ndarray) -> np.ndarray:
    """The official function in NumPy, of the weights of which the case is made, under its constraint."""
    if case.image == SQUARE_IMAGE:
        return MlpMixer(SQUARE)(draw_params(SQUARE, seed=23), images)
    config, change = right_torch.REFERENCES.get(case.name.removeprefix("linen "), (CONFIG, dict))
    return MlpMixer(config)(change(OFFICIAL), images)


def images_of(case: Case) -> np.ndarray:
    config: MixerConfig = SQUARE if case.image == SQUARE_IMAGE else CONFIG
    return draw_images(config, seed=5, count=5)


def logits_of(output: Any) -> Any:
    """The logits in any kind of result."""
    if isinstance(output, torch.Tensor | np.ndarray):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, dict):
        return logits_of(output.get("logits", output.get("output")))
    return output[0]


@pytest.fixture
def in_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def torch_residual(case: Case) -> float:
    images, model = images_of(case), case.make()
    with contextlib.suppress(NotImplementedError):  # an exported module has no modes
        model.eval()
    with torch.no_grad():
        logits = logits_of(model(torch.from_numpy(images).permute(0, 3, 1, 2)))
    return residual(logits.double().numpy(), reference(case, images))


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("case", right_torch.CASES, ids=lambda case: case.name)
def test_every_torch_writing_is_the_official_function(case: Case) -> None:
    assert torch_residual(case) < tolerance(case)


@pytest.mark.usefixtures("in_float64")
def test_another_eps_is_not_the_official_function() -> None:
    assert torch_residual(Case("another eps", CONSTRAINED["eps 1e-5 by vector norm"].make, (), "")) > 1e-9


@KEPT_BY_SOWING
@parametrize(right_flax.CASES, one_in=8)
def test_every_flax_writing_is_the_official_function(case: Case) -> None:
    images = images_of(case)
    with jax.enable_x64(True):
        model = case.make()
        if isinstance(model, nnx.Module):
            output = jax.tree.map(np.asarray, nnx.jit(lambda m, x: m(x))(model, images))
        else:
            output = linen_plain.logits_of(model, right_flax.PACKS[case.name], images)
    assert residual(logits_of(output), reference(case, images)) < tolerance(case)


@KEPT_BY_SOWING
@parametrize((*right_torch.CASES, *right_flax.CASES), one_in=32)
def test_right_models_are_judged_as_written(case: Case) -> None:
    answer = judge(case)
    assert not answer.complaints, answer.text
