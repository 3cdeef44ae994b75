"""What a packed torch Mixer's time is made of on a CPU: `python -m benchmarks.limits [--write]`.

Beside the whole model, in interleaved rounds: all its matrix products alone, on weights that are each read from
memory; the same products by one block's weights over and over, which stay in a cache; reading all weights once and
adding them up; and as much arithmetic as in its products in square ones, the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import record
from mixer_equiv import MixerConfig
from mixer_equiv.bench.calls import make_call
from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import Entry
from mixer_equiv.bench.correctness import Checker
from mixer_equiv.bench.environment import pin_cores
from mixer_equiv.bench.export import markdown_table
from mixer_equiv.bench.timing import quartiles, time_in_rounds
from mixer_equiv.bench.torch_calls import packed_matrix_product
from mixer_equiv.models.torch.packed import packed_product

CELLS = [Cell(MixerConfig.from_name(name), batch=batch) for name in ("S/32", "B/16") for batch in (1, 8)]
ROUNDS = 15
SIDE = 2048
PACKED = Entry("torch packed")
PARTS = {
    "model": "whole model",
    "products": "its products",
    "cached": "products, weights in cache",
    "reading": "reading the weights",
    "peak": "arithmetic at the peak",
}


def shapes(config: MixerConfig, batch: int) -> list[tuple[int, int, int]]:
    """Of all products but the head's, the stem's and four of each block: rows, and the weight's (out, in)."""
    tokens, channels = config.num_tokens, config.hidden_dim
    by_tokens, by_channels = batch * channels, batch * tokens
    patch = config.in_channels * config.patch_hw[0] * config.patch_hw[1]
    block = [
        (by_tokens, config.tokens_mlp_dim, tokens),
        (by_tokens, tokens, config.tokens_mlp_dim),
        (by_channels, config.channels_mlp_dim, channels),
        (by_channels, channels, config.channels_mlp_dim),
    ]
    return [(by_channels, channels, patch), *block * config.num_blocks]


def calls(cell: Cell) -> dict[str, Callable[[], object]]:
    """What is timed, by `PARTS`, or for the peak a square product. Raises `AssertionError` if the model is wrong."""
    whole, packed = make_call(PACKED, cell, 0), shapes(cell.config, cell.batch)
    refused = Checker().check(PACKED, cell, whole).refused
    assert refused is None, refused
    inputs = {(rows, width): torch.randn(rows, width) for rows, _, width in packed}
    weights = [torch.randn(out, width) for _, out, width in packed]
    layers = [
        (inputs[rows, width], packed_product(weight)) for (rows, _, width), weight in zip(packed, weights, strict=True)
    ]
    stem, *blocks = layers
    first = [stem, *blocks[:4] * cell.config.num_blocks]
    flat = torch.cat([weight.flatten() for weight in weights])

    def products(given: Iterable[tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]]) -> Callable[[], object]:
        def run() -> None:
            with torch.inference_mode():
                for x, layer in given:
                    layer(x)

        return run

    return {
        "model": whole,
        "products": products(layers),
        "cached": products(first),
        "reading": flat.sum,
        "square": packed_matrix_product(cell, SIDE),
    }


def measure(cell: Cell, rounds: int) -> dict[str, Any]:
    """Milliseconds, quartiles, of each part; megabytes of weights and gigabytes a second at which they were read."""
    seconds = time_in_rounds(calls(cell), rounds)
    products = shapes(cell.config, cell.batch)
    operations = sum(2 * rows * out * width for rows, out, width in products)
    seconds["peak"] = seconds.pop("square") * operations / (2 * SIDE**3)
    size = sum(4 * out * width for _, out, width in products)
    return {
        "cell": str(cell),
        "weights_MB": round(size / 1e6),
        "GB_per_second": round(size / 1e9 / float(np.median(seconds["reading"])), 1),
        "ms": {name: [float(f"{1e3 * q:.4g}") for q in quartiles(seconds[name])] for name in PARTS},
    }


def page(result: Mapping[str, Any]) -> str:
    """The numbers for a person, in Markdown."""
    rows = []
    for each in result["cells"]:
        whole = each["ms"]["model"][1]
        shown = [f"{m:.1f} ({low:.1f}-{high:.1f}), {m / whole:.0%}" for low, m, high in map(each["ms"].get, PARTS)]
        rows.append([each["cell"], *shown, f"{each['weights_MB']} MB", f"{each['GB_per_second']} GB/s"])
    lines = [
        "# What a packed Mixer's time is made of",
        "",
        "Written by `python -m benchmarks.limits --write`. Milliseconds of a call in float32: medians, with quartiles",
        "in brackets, and in per cent of the whole model. Products by weights that stay in a cache would be the time",
        "if reading weights cost nothing; the peak is that of square matrices of 2048.",
        "",
        *markdown_table(["cell", *PARTS.values(), "weights", "read at"], rows),
    ]
    return "\n".join([*lines, "", record.conditions(result["machine"], str(result["rounds"])), ""])


def all_cells(rounds: int) -> dict[str, Any]:
    with pin_cores(None, ["torch"]):
        return {"cells": [measure(cell, rounds) for cell in CELLS]}


def main(arguments: Sequence[str] | None = None) -> None:
    record.command(arguments, "limits", __doc__, ROUNDS, all_cells, page)


if __name__ == "__main__":
    main()
