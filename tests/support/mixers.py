"""What laws are tried on: a program with sizes, random weights and images, drawn by Hypothesis."""

from __future__ import annotations

import dataclasses
import os
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import strategies as st

from benchmarks.model_functions import FLAX_FUNCTIONS, NNX_FUNCTION, REFERENCE, TORCH_FUNCTIONS, Arrays, ModelFunction
from mixer_equiv import Formulation, MixerConfig, Policy
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.formulation import CONVOLUTIONAL
from mixer_equiv.random_weights import draw_images, draw_params
from mixer_equiv.testing.strategies import FEW_CONFIGS, configs

POLICY = Policy()
FUZZ = os.environ.get("HYPOTHESIS_PROFILE") == "fuzz"

# The configs for which JAX compiles: all of them in `make fuzz`.
COMPILED = FEW_CONFIGS if FUZZ else FEW_CONFIGS[:1]
SOME_FLAX = tuple(
    ModelFunction("flax", formulation)
    for formulation in (Formulation(), CONVOLUTIONAL, Formulation("linear", "depthwise_conv", "linear"))
)

SEEDS = st.integers(0, 2**32 - 1)
STYLES = st.sampled_from(["normal", "heavy_tailed", "sparse"])
ANY_CONFIG = configs(max_blocks=3, max_dim=9, min_hidden_dim=5, allow_headless=True)


@dataclasses.dataclass(frozen=True)
class Mixer:
    """A program with sizes, random weights and images, as a law takes it."""

    program: Any
    config: MixerConfig
    seed: int
    style: str = "normal"

    @cached_property
    def params(self) -> dict[str, np.ndarray]:
        return draw_params(self.config, self.seed, self.style)

    @cached_property
    def images(self) -> np.ndarray:
        return draw_images(self.config, self.seed + 1)

    @cached_property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, 2])

    @cached_property
    def outputs(self) -> np.ndarray:
        return self.run(self.params)

    def run(self, params: Arrays, images: np.ndarray | None = None) -> np.ndarray:
        return self.program(self.config, params, self.images if images is None else images)


def mixers(programs: tuple[ModelFunction, ...], of: st.SearchStrategy[MixerConfig]) -> st.SearchStrategy[Mixer]:
    return st.builds(Mixer, st.sampled_from(programs), of, SEEDS, STYLES)


MIXERS = {
    "reference": mixers((REFERENCE,), ANY_CONFIG),
    "torch": mixers(TORCH_FUNCTIONS, ANY_CONFIG),
    "flax": mixers((*FLAX_FUNCTIONS, NNX_FUNCTION) if FUZZ else (*SOME_FLAX, NNX_FUNCTION), st.sampled_from(COMPILED)),
}


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    assert residual(actual, expected) <= POLICY.residual
