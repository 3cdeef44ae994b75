"""A small Mixer, and a quick benchmark of it."""

from __future__ import annotations

from typing import Any

from mixer_equiv import MixerConfig
from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import Entry
from mixer_equiv.bench.measurement import BenchResult, measure_cells

SMALL = MixerConfig(
    num_classes=5,
    num_blocks=1,
    patch_size=2,
    image_size=(4, 6),
    hidden_dim=12,
    tokens_mlp_dim=7,
    channels_mlp_dim=20,
)
EAGER = ("torch", "torch packed", "timm", "tutorial", "lucidrains")
COMPILED = ("torch compiled", "torch graphed", "timm compiled", "timm graphed")
JITTED = ("flax", "nnx", "official")


def small_bench(given: list[Entry], mode: str = "inference", **kwargs: Any) -> BenchResult:
    return measure_cells([Cell(SMALL, batch=3, mode=mode)], given, **{"threads": 1, "gemm": 32, **kwargs})
