"""Cases verified in a second, ours beside the tutorial's: `python -m benchmarks.rates`.

A case of the tutorial's is one shape: parameter count and output shape of two fresh models. A case of
ours is one draw of weights and images, verified deeply (`benchmarks.deep`), compiling included. Both
run on the same shapes, in turns, so that other load on the machine meets both alike. Before anything
counts, faults planted into one draw of each shape must be found in that draw and in no other.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.deep import Verification, verify_draws
from benchmarks.planted import misses
from benchmarks.programs import CHEAP, LINEAR_STEM, Ways
from benchmarks.tutorial import CONFIGS, IMAGES, check
from mixer_equiv import MixerConfig

SEED = 2021
TIMES = 10.0  # how many times the tutorial's cases a second ours must be

# What each choice buys: all the others as they are, this one undone.
ABLATIONS: dict[str, Ways] = {
    "Flax without jit": Ways(flax="eager"),
    "Flax by vmap": Ways(flax="vmap"),
    "Flax by vmap, linear stem": Ways(flax="vmap", flax_formulation=LINEAR_STEM),
    "Flax by lax.map": Ways(flax="map"),
    "torch draw by draw": Ways(torch="loop"),
    "torch on two threads": Ways(threads=2),
    "XLA's own options": Ways(options={}),
    **{
        f"without {name}": Ways(options={option: value for option, value in CHEAP.items() if option != name})
        for name in CHEAP
    },
}


@dataclasses.dataclass
class Rates:
    """Seconds for each shape of each side, and what the verifications found."""

    seconds: dict[str, list[float]]
    seen: list[Verification]


def side_by_side(configs: Sequence[MixerConfig], draws: int) -> Rates:
    """The tutorial's check, `draws` draws and one draw of each shape, in turns, each first equally often."""
    seen: list[Verification] = []
    sides: dict[str, Callable[[MixerConfig, int], Any]] = {
        "tutorial": lambda config, seed: check(config),
        "stack": lambda config, seed: seen.append(verify_draws(config, draws, IMAGES, seed, Ways())),
        "one": lambda config, seed: seen.append(verify_draws(config, 1, IMAGES, seed, Ways())),
    }
    return Rates(in_turns(sides, configs), seen)


def in_turns(
    sides: dict[str, Callable[[MixerConfig, int], Any]], configs: Sequence[MixerConfig]
) -> dict[str, list[float]]:
    """Seconds that each side takes for each shape; who begins changes from shape to shape."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number, config in enumerate(configs):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            start = time.perf_counter()
            sides[name](config, SEED + number)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ablate(configs: Sequence[MixerConfig], draws: int) -> dict[str, list[float]]:
    """Seconds for each shape with each of `ABLATIONS`, and under "as it is" with none."""

    def verified(ways: Ways) -> Callable[[MixerConfig, int], None]:
        def run(config: MixerConfig, seed: int) -> None:
            assert not verify_draws(config, draws, IMAGES, seed, ways).findings

        return run

    return in_turns(
        {"as it is": verified(Ways()), **{name: verified(ways) for name, ways in ABLATIONS.items()}}, configs
    )


def warm_up() -> None:
    """What every process pays once, of both sides, on a shape that is none of those timed."""
    config = CONFIGS[0].replace(num_classes=3, in_channels=2)
    check(config)
    verify_draws(config, 2, IMAGES, SEED, Ways())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", type=int, default=len(CONFIGS), help="how many of the shapes, drawn by a fixed seed"
    )
    parser.add_argument("--draws", type=int, default=64, help="draws a shape")
    parser.add_argument("--ablation", type=int, default=6, help="shapes on which each choice is undone, 0 for none")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/rates.json and .md")
    options = parser.parse_args(arguments)
    shuffled = [CONFIGS[i] for i in np.random.default_rng(SEED).permutation(len(CONFIGS))]
    configs = shuffled[: options.shapes]

    with record.Machine() as machine:
        missed = [miss for i, config in enumerate(configs) for miss in misses(config, 5, IMAGES, SEED + i, Ways())]
        assert not missed, "\n".join(missed)
        warm_up()
        rates = side_by_side(configs, options.draws)
        undone = ablate(shuffled[: options.ablation], options.draws) if options.ablation else {}
    findings = [finding for seen in rates.seen for finding in seen.findings]
    assert not findings, findings
    result = record.summary(rates.seconds, rates.seen, undone, options.draws, machine.describe())
    print(record.page(result))
    if options.write:
        record.write(result, "rates", record.page(result))
    assert result["times_the_tutorial"] >= TIMES, f"{result['times_the_tutorial']:.1f} times the tutorial's rate"


if __name__ == "__main__":
    main()
