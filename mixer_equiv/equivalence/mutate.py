"""`mutate`: every catalogued fault planted, and which of the checks that people use notice it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mixer_equiv.arrays import require
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.subject import DEFAULT_CONFIG
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

    `named` tells whether that was the cause that was planted.
    """

    fault: str
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
        """How many faults each check noticed, with a fresh model and with everything random."""
        faults = self.rows[1:]
        return {
            check: (sum(row.fresh[check] for row in faults), sum(row.random[check] for row in faults))
            for check in self.rows[0].random
        }

    @property
    def all_named(self) -> bool:
        return all(row.named for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [dataclasses.asdict(row) for row in self.rows], "killed": self.killed}

    def __rich__(self) -> RenderableType:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("fault", no_wrap=True)
        checks = list(self.rows[0].random)
        for check in checks:
            table.add_column(check, justify="center", no_wrap=True)
        table.add_column("verify", overflow="fold")
        for row in self.rows:
            cells = [f"{_mark(row.fresh[check])} {_mark(row.random[check])}" for check in checks]
            said = ", ".join(row.causes) or row.verdict
            table.add_row(row.fault, *cells, Text(said, "" if row.named else "bold red"))
        table.add_section()
        of_all = len(self.rows) - 1
        counts = [f"{fresh} {everything}" for fresh, everything in self.killed.values()]
        table.add_row(
            f"noticed, of {of_all}", *counts, f"{sum(row.named for row in self.rows[1:])} named", style="bold"
        )
        return Group(table, Text(_LEGEND))


_LEGEND = (
    "x: the fault is noticed. The first of each pair is with a fresh model, whose head is zeros, the second with "
    "every parameter random. count: parameters, and shape of the output; 1e-3, 1e-4, 1e-5: allclose with this atol; "
    "close: torch.testing.assert_close; cosine, PCC: over 0.99. verify: the cause that it names, from the model alone."
)


def _mark(noticed: bool) -> str:
    return "x" if noticed else "."


def mutate(
    config: MixerConfig = CONFIG, *, seed: int = 0, on_step: Callable[[str], None] = lambda step: None
) -> Matrix:
    """Plant every catalogued fault in a Mixer of `config`, and see which checks notice it."""
    torch = require("torch", "torch", "planting faults")
    from mixer_equiv.equivalence.planting import PLANTED, PlantedMixer

    images = torch.randn(8, config.in_channels, *config.image_hw, generator=torch.Generator().manual_seed(seed))

    def outputs(fault: str | None, everything: bool) -> tuple[np.ndarray, int]:
        model = PlantedMixer(config, fault)
        model.initialise(seed, everything=everything)
        with torch.no_grad():
            return model(images).numpy(), sum(parameter.numel() for parameter in model.parameters())

    official = {everything: outputs(None, everything) for everything in (False, True)}

    def noticed(fault: str | None, everything: bool) -> dict[str, bool]:
        (expected, count), (actual, own) = official[everything], outputs(fault, everything)
        seen = {COUNT: own != count or actual.shape != expected.shape}
        return seen | {name: not check(actual, expected) for name, check in CHECKS.items()}

    rows = []
    for fault, cause in ((None, None), *((name, cause) for name, (_, cause) in PLANTED.items())):
        on_step(fault or "no fault")
        image = config.in_channels, *config.image_hw
        report = verify(PlantedMixer(config, fault), image=image, seed=seed, gradients=False)
        causes = tuple(found.name for found in report.causes)
        named = causes == ((cause,) if cause else ()) and (report.verdict == "equivalent") == (cause is None)
        rows.append(Row(fault or "none", noticed(fault, False), noticed(fault, True), report.verdict, causes, named))
    return Matrix(tuple(rows))
