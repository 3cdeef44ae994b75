"""`mutate`: plant every catalogued fault, and see which of the checks that people use notice it.

Alone in importing `planted_code`. Plain data; `render.kill_matrix` draws it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mixer_equiv.arrays.interop import require
from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.faults.catalogue import CATALOGUE
from mixer_equiv.equivalence.report import Verdict
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_images
from mixer_equiv.equivalence.sides.runners import run_torch
from mixer_equiv.equivalence.verify import verify

if TYPE_CHECKING:
    from mixer_equiv.equivalence.faults.planted_code import PlantedCode
    from mixer_equiv.equivalence.faults.planted_weights import PlantedWeights

CONFIG = DEFAULT_CONFIG.replace(num_blocks=2)

Check = Callable[[np.ndarray, np.ndarray], bool]


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float((x * y).sum()) / scale if scale else 1.0


def _passes_assert_close(x: np.ndarray, y: np.ndarray) -> bool:
    torch = require("torch", "torch", "torch.testing.assert_close")
    try:
        torch.testing.assert_close(torch.from_numpy(x), torch.from_numpy(y))
    except AssertionError:
        return False
    return True


# Checks that people make of float32 outputs, each true where they pass for equal.
CHECKS: dict[str, Check] = {
    "1e-3": lambda x, y: bool(np.allclose(x, y, rtol=0, atol=1e-3)),
    "1e-4": lambda x, y: bool(np.allclose(x, y, rtol=0, atol=1e-4)),
    "1e-5": lambda x, y: bool(np.allclose(x, y, rtol=0, atol=1e-5)),
    "close": _passes_assert_close,
    "cosine": lambda x, y: _cosine(x, y) > 0.99,
    "PCC": lambda x, y: _cosine(x - x.mean(), y - y.mean()) > 0.99,
}
COUNT = "count"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One fault: which checks noticed it, with a fresh model and with every parameter random; what `verify` said.

    `named` tells whether `causes` are what was planted. Those of a notice, which is no fault of the function, are
    warnings.
    """

    fault: str
    kind: Literal["none", "code", "constraint", "port", "notice"]
    fresh: dict[str, bool]
    random: dict[str, bool]
    verdict: Verdict
    causes: tuple[str, ...]
    named: bool


@dataclasses.dataclass(frozen=True)
class KillMatrix:
    """The result of `mutate`; the first outcome is of the model without a fault, which no check may notice."""

    outcomes: tuple[Outcome, ...]

    @property
    def faults(self) -> tuple[Outcome, ...]:
        """The outcomes of faults: without that of no fault, and without notices, which no output shows."""
        return tuple(outcome for outcome in self.outcomes if outcome.kind not in ("none", "notice"))

    @property
    def killed(self) -> dict[str, tuple[int, int]]:
        """How many of the `faults` each check noticed, with a fresh model and with every parameter random."""
        return {
            check: (sum(fault.fresh[check] for fault in self.faults), sum(fault.random[check] for fault in self.faults))
            for check in self.outcomes[0].random
        }

    @property
    def all_named(self) -> bool:
        return all(outcome.named for outcome in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, ready for JSON."""
        rows = [dataclasses.asdict(outcome) for outcome in self.outcomes]
        return {"rows": rows, "faults": len(self.faults), "killed": self.killed}


def count_outcomes() -> int:
    """The number of outcomes of `mutate`: the catalogued faults as they are planted, and the model without one."""
    require("torch", "torch", "planting faults")
    from mixer_equiv.equivalence.faults.planted_weights import PLANTED_WEIGHTS

    return 1 + len(planted_in_code()) + len(PLANTED_WEIGHTS)


def planted_in_code() -> dict[str, PlantedCode]:
    """All faults and notices of code as they are planted, by what they are called."""
    from mixer_equiv.equivalence.faults.planted_behaviour import PLANTED_BEHAVIOUR
    from mixer_equiv.equivalence.faults.planted_code import PLANTED

    return {**PLANTED, **PLANTED_BEHAVIOUR}


def mutate(
    config: MixerConfig = CONFIG,
    *,
    seed: int = 0,
    code: Mapping[str, PlantedCode] | None = None,
    weights: Mapping[str, PlantedWeights] | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> KillMatrix:
    """Plant faults and see which checks notice them.

    By default these are all of the catalogue: those of `code` in a Mixer of `config`, those of `weights` handed over
    in one whose sizes are equal where a fault needs it.
    """
    require("torch", "torch", "planting faults")
    from mixer_equiv.equivalence.faults.planted_weights import PLANTED_WEIGHTS

    in_code = _in_code(planted_in_code() if code is None else code, config, seed, on_step)
    return KillMatrix((*in_code, *_in_weights(PLANTED_WEIGHTS if weights is None else weights, seed, on_step)))


def _in_code(
    faults: Mapping[str, PlantedCode], config: MixerConfig, seed: int, on_step: Callable[[str], None]
) -> Iterator[Outcome]:
    """Yield the outcomes of the model without a fault, and of every fault of code, constraint or notice."""
    import torch

    from mixer_equiv.equivalence.faults.planted_code import plant

    images = torch.randn(8, config.in_channels, *config.image_hw, generator=torch.Generator().manual_seed(seed))
    image = config.in_channels, *config.image_hw

    def outputs(planted: PlantedCode | None, everything: bool) -> tuple[np.ndarray, int]:
        model = plant(config, planted).eval()
        model.initialise(seed, everything=everything)
        with torch.no_grad():
            return model(images).numpy(), sum(parameter.numel() for parameter in model.weights.values())

    official = {everything: outputs(None, everything) for everything in (False, True)}
    for name, planted in (("none", None), *faults.items()):
        on_step(name)
        fresh, random = (_noticed(outputs(planted, everything), official[everything]) for everything in (False, True))
        report = verify(plant(config, planted), image=image, seed=seed, gradients=False)
        kind = "none" if planted is None else CATALOGUE[planted.fault].kind
        causes = report.notices if kind == "notice" else tuple(cause.name for cause in report.causes)
        named = causes == (() if planted is None else (planted.fault,))
        named = named and report.equivalent == (kind in ("none", "notice"))
        yield Outcome(name, kind, fresh, random, report.verdict, causes, named)


# Sizes at which every array can be taken for every other one with which it is confused, and block 10.
_EQUAL_SIZES = MixerConfig(
    num_classes=7,
    num_blocks=12,
    patch_size=2,
    image_size=(8, 6),
    in_channels=3,
    hidden_dim=12,
    tokens_mlp_dim=12,
    channels_mlp_dim=12,
)


def _in_weights(faults: Mapping[str, PlantedWeights], seed: int, on_step: Callable[[str], None]) -> Iterator[Outcome]:
    """Yield the outcome of every fault of weights, handed over for official ones."""
    from mixer_equiv.equivalence.faults.planted_weights import initial

    config = _EQUAL_SIZES
    images = random_images(config, seed).astype(np.float32)

    def outputs(weights: Mapping[str, np.ndarray]) -> tuple[np.ndarray, int]:
        return run_torch(config, weights, images)["logits"], sum(array.size for array in weights.values())

    @cache
    def official_in(dtype: Any) -> tuple[dict[bool, Any], dict[bool, Any]]:
        weights = {e: initial(config, seed, everything=e, dtype=dtype) for e in (False, True)}
        return weights, {e: outputs(arrays) for e, arrays in weights.items()}

    for name, planted in faults.items():
        on_step(name)
        official, expected = official_in(planted.dtype)
        handed = {everything: planted.hand_over(weights, config) for everything, weights in official.items()}
        fresh, random = (_noticed(outputs(handed[e]), expected[e]) for e in (False, True))
        sides = [Checkpoint.from_arrays(arrays, config=config) for arrays in (official[True], handed[True])]
        report = verify(*sides, seed=seed)
        causes = tuple(cause.name for cause in report.causes)
        named = (report.verdict, causes) == (CATALOGUE[planted.fault].verdict, (planted.fault,))
        yield Outcome(name, "port", fresh, random, report.verdict, causes, named)


def _noticed(actual: tuple[np.ndarray, int], expected: tuple[np.ndarray, int]) -> dict[str, bool]:
    """Which checks see a difference between two outputs, each with its number of parameters."""
    (ours, own), (theirs, count) = actual, expected
    seen = {COUNT: own != count or ours.shape != theirs.shape}
    return seen | {name: not check(ours, theirs) for name, check in CHECKS.items()}
