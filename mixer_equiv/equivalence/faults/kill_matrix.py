"""`mutate`: every catalogued fault planted, and which of the checks that people use notice it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mixer_equiv.arrays.interop import require
from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.sides.frameworks import run_torch
from mixer_equiv.equivalence.sides.side import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.weights import random_images
from mixer_equiv.equivalence.verify import verify

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


# What people compare float32 outputs by, and whether they are then taken for equal.
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
class Row:
    """One fault: which checks noticed it, with a fresh model and with everything random; what `verify` said.

    `kind` is among "none", "code", "constraint", "port" and "notice". `named` tells whether `causes` are
    what was planted; for a notice, which is no fault of the function, they are warnings.
    """

    fault: str
    kind: str
    fresh: dict[str, bool]
    random: dict[str, bool]
    verdict: str
    causes: tuple[str, ...]
    named: bool


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The outcome of `mutate`; the first row is the model without a fault, which no check may notice."""

    rows: tuple[Row, ...]

    @property
    def killed(self) -> dict[str, tuple[int, int]]:
        """How many of the `faults` each check noticed, with a fresh model and with everything random."""
        return {
            check: (sum(row.fresh[check] for row in self.faults), sum(row.random[check] for row in self.faults))
            for check in self.rows[0].random
        }

    @property
    def faults(self) -> tuple[Row, ...]:
        """The rows of faults: without that of no fault, and without notices, which no output shows."""
        return tuple(row for row in self.rows if row.kind not in ("none", "notice"))

    @property
    def all_named(self) -> bool:
        return all(row.named for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        rows = [dataclasses.asdict(row) for row in self.rows]
        return {"rows": rows, "faults": len(self.faults), "killed": self.killed}

    def __rich__(self) -> RenderableType:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
        table.add_column("fault", no_wrap=True)
        checks = list(self.rows[0].random)
        for check in checks:
            table.add_column(check, justify="center", no_wrap=True)
        table.add_column("verify", no_wrap=True)
        for kind, group in itertools.groupby(self.rows, lambda row: row.kind):
            table.add_section()
            if kind in _HEADINGS:
                table.add_row(_HEADINGS[kind], style="bold")
            for row in group:
                cells = [Text(" ").join((_mark(row.fresh[check]), _mark(row.random[check]))) for check in checks]
                said = ", ".join(row.causes) or row.verdict
                table.add_row(row.fault, *cells, Text(said, "" if row.named else "bold red"))
        table.add_section()
        counts = [f"{fresh} {everything}" for fresh, everything in self.killed.values()]
        named = sum(row.named for row in self.faults)
        table.add_row(f"noticed, of {len(self.faults)}", *counts, f"{named} named", style="bold")
        return Group(table, Text(_LEGEND))


_HEADINGS = {
    "code": "other code",
    "constraint": "fewer parameters",
    "port": "weights handed over wrongly",
    "notice": "the same function, with a warning",
}
_LEGEND = (
    "x: the fault is noticed. The first of each pair is with a fresh model, whose head is zeros, the second with "
    "every parameter random. count: parameters, and shape of the output; 1e-3, 1e-4, 1e-5: allclose with this atol; "
    "close: torch.testing.assert_close; cosine, PCC: over 0.99. verify: the cause that it names, from the model or "
    "the weights alone."
)


def _mark(noticed: bool) -> Text:
    return Text("x", "green") if noticed else Text("·", "dim")


def mutate(
    config: MixerConfig = CONFIG, *, seed: int = 0, on_step: Callable[[str], None] = lambda step: None
) -> Matrix:
    """Plant every catalogued fault and see which checks notice it.

    Those of code in a Mixer of `config`; those of weights handed over in one whose sizes are equal where
    a fault needs it.
    """
    require("torch", "torch", "planting faults")
    return Matrix((*_in_code(config, seed, on_step), *_in_weights(seed, on_step)))


def _in_code(config: MixerConfig, seed: int, on_step: Callable[[str], None]) -> Iterator[Row]:
    """The model without a fault, then every fault of code and constraint, and what is only to be noticed."""
    import torch

    from mixer_equiv.equivalence.faults.planted_code import PLANTED, Planted, PlantedMixer

    images = torch.randn(8, config.in_channels, *config.image_hw, generator=torch.Generator().manual_seed(seed))

    def outputs(fault: str | None, everything: bool) -> tuple[np.ndarray, int]:
        model = PlantedMixer(config, fault).eval()
        model.initialise(seed, everything=everything)
        with torch.no_grad():
            return model(images).numpy(), sum(parameter.numel() for parameter in model.weights.values())

    official = {everything: outputs(None, everything) for everything in (False, True)}
    for fault, planted in ((None, Planted("code", "")), *PLANTED.items()):
        on_step(fault or "no fault")
        fresh, random = (_noticed(outputs(fault, everything), official[everything]) for everything in (False, True))
        image = config.in_channels, *config.image_hw
        report = verify(PlantedMixer(config, fault), image=image, seed=seed, gradients=False)
        causes = tuple(cause.name for cause in report.causes)
        if planted.kind == "notice":
            causes = tuple(warning for warning in report.warnings if planted.cause in warning)
            named = report.verdict == "equivalent" and len(causes) == 1
            causes = (planted.cause,) if named else report.warnings
        else:
            named = causes == ((planted.cause,) if fault else ())
            named = named and (report.verdict == "equivalent") == (fault is None)
        yield Row(fault or "none", planted.kind if fault else "none", fresh, random, report.verdict, causes, named)


# Sizes at which every array can be taken for every other one with which it is confused, and block 10.
_HANDED_OVER = MixerConfig(
    num_classes=7,
    num_blocks=12,
    patch_size=2,
    image_size=(8, 6),
    in_channels=3,
    hidden_dim=12,
    tokens_mlp_dim=12,
    channels_mlp_dim=12,
)


def _in_weights(seed: int, on_step: Callable[[str], None]) -> Iterator[Row]:
    """Every fault of weights handed over: official ones against what became of them."""
    from mixer_equiv.equivalence.faults.planted_code import HANDED_OVER, initial

    config = _HANDED_OVER
    images = random_images(config, seed).astype(np.float32)

    def outputs(weights: Mapping[str, np.ndarray]) -> tuple[np.ndarray, int]:
        return run_torch(config, weights, images)["logits"], sum(array.size for array in weights.values())

    official = {everything: initial(config, seed, everything=everything) for everything in (False, True)}
    for fault, (hand_over, cause) in HANDED_OVER.items():
        on_step(fault)
        handed = {everything: hand_over(weights, config) for everything, weights in official.items()}
        fresh, random = (_noticed(outputs(handed[e]), outputs(official[e])) for e in (False, True))
        sides = [Checkpoint.from_arrays(arrays, config=config) for arrays in (official[True], handed[True])]
        report = verify(*sides, seed=seed)
        causes = tuple(found.name for found in report.causes)
        named = (report.verdict, causes) == ("different", (cause,))
        yield Row(fault, "port", fresh, random, report.verdict, causes, named)


def _noticed(actual: tuple[np.ndarray, int], expected: tuple[np.ndarray, int]) -> dict[str, bool]:
    """Which checks see a difference between two outputs, each with its number of parameters."""
    (ours, own), (theirs, count) = actual, expected
    seen = {COUNT: own != count or ours.shape != theirs.shape}
    return seen | {name: not check(ours, theirs) for name, check in CHECKS.items()}
