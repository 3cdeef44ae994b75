"""Cases verified in a second, ours beside a tutorial's: `python -m benchmarks.rates`.

A case of the tutorial is one shape: the parameter count and output shape of two fresh models. A case of ours is one
draw of weights and images, verified deeply (`benchmarks.stack_verification`), compiling included. Both run on the same
shapes, in turns, so that other load on the machine meets both alike. Before anything counts, faults planted into one
draw of each shape must be found in that draw and in no other. Start reading at `time_sides`.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import result_files
from benchmarks.stack_faults import missed_faults
from benchmarks.stack_runs import LINEAR_STEM, RunOptions
from benchmarks.stack_verification import Verification, verify_draws
from benchmarks.tutorial import IMAGES_PER_CASE, TUTORIAL_CONFIGS, check_as_tutorial
from benchmarks.xla_options import CHEAP_OPTIONS
from mixer_equiv import MixerConfig
from mixer_equiv.bench.environment import Machine

SEED = 2021
LEAST_SPEEDUP = 10.0  # ours verifies at least this many times the tutorial's cases in a second

# The gain by a choice is measured by undoing it, while all others stay as they are.
ABLATIONS: dict[str, RunOptions] = {
    "Flax without jit": RunOptions(flax="eager"),
    "Flax by vmap": RunOptions(flax="vmap"),
    "Flax by vmap, linear stem": RunOptions(flax="vmap", flax_formulation=LINEAR_STEM),
    "Flax by lax.map": RunOptions(flax="map"),
    "torch draw by draw": RunOptions(torch="loop"),
    "torch on two threads": RunOptions(threads=2),
    "XLA's own options": RunOptions(xla_options={}),
    **{
        f"without {name}": RunOptions(
            xla_options={option: value for option, value in CHEAP_OPTIONS.items() if option != name}
        )
        for name in CHEAP_OPTIONS
    },
}


@dataclasses.dataclass
class SideBySide:
    """Seconds for each shape of each side, and the results of the verifications."""

    seconds: dict[str, list[float]]
    verifications: list[Verification]


def time_sides(configs: Sequence[MixerConfig], draws: int) -> SideBySide:
    """Time the tutorial's check, `draws` draws and one draw of each shape, in turns; each goes first equally often."""
    verifications: list[Verification] = []

    def verify(config: MixerConfig, count: int, seed: int) -> None:
        verifications.append(verify_draws(config, count, IMAGES_PER_CASE, seed, RunOptions()))

    sides: dict[str, Callable[[MixerConfig, int], Any]] = {
        "tutorial": lambda config, seed: check_as_tutorial(config),
        "stack": lambda config, seed: verify(config, draws, seed),
        "one": lambda config, seed: verify(config, 1, seed),
    }
    return SideBySide(time_in_turns(sides, configs), verifications)


def time_in_turns(
    sides: Mapping[str, Callable[[MixerConfig, int], Any]], configs: Sequence[MixerConfig]
) -> dict[str, list[float]]:
    """Measure the seconds of each side for each shape; the side that begins changes from shape to shape."""
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
    """Measure the seconds for each shape with each of `ABLATIONS`, and under "as it is" with none."""

    def verified_with(options: RunOptions) -> Callable[[MixerConfig, int], None]:
        def run(config: MixerConfig, seed: int) -> None:
            assert not verify_draws(config, draws, IMAGES_PER_CASE, seed, options).mismatches

        return run

    options_by_name = {"as it is": RunOptions(), **ABLATIONS}
    return time_in_turns({name: verified_with(options) for name, options in options_by_name.items()}, configs)


def warm_up() -> None:
    """Run both sides once on a shape that is not timed, so that no shape pays for the process's start."""
    config = TUTORIAL_CONFIGS[0].replace(num_classes=3, in_channels=2)
    check_as_tutorial(config)
    verify_draws(config, 2, IMAGES_PER_CASE, SEED, RunOptions())


def summarize_run(
    side_by_side: SideBySide, undone: Mapping[str, Sequence[float]], draws: int, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Compute the numbers of a run, for JSON: ratios of sums over shapes, and quartiles of the ratios of each shape."""
    cases = {"tutorial": 1, "stack": draws, "one": 1}
    seconds, verifications = side_by_side.seconds, side_by_side.verifications
    rates = {name: cases[name] * len(times) / sum(times) for name, times in seconds.items()}
    paired = {
        name: cases[name] * np.divide(seconds["tutorial"], times)
        for name, times in seconds.items()
        if name != "tutorial"
    }
    return {
        "shapes": len(seconds["tutorial"]),
        "draws": draws,
        "cases_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "times_the_tutorial": round(rates["stack"] / rates["tutorial"], 2),
        "times_the_tutorial_one_draw": round(rates["one"] / rates["tutorial"], 3),
        "paired_quartiles": {
            name: [round(float(q), 2) for q in np.quantile(ratios, (0.25, 0.5, 0.75))]
            for name, ratios in paired.items()
        },
        "rounding": sum(len(each.rounding) for each in verifications),
        "largest_residual": {
            "outputs": max(each.outputs for each in verifications),
            "gradients": max(each.gradients for each in verifications),
        },
        "undone": {
            name: round(float(np.median(np.divide(times, undone["as it is"]))), 2)
            for name, times in undone.items()
            if name != "as it is"
        },
        "undone_shapes": len(undone.get("as it is", ())),
        "options": dict(CHEAP_OPTIONS),
        "machine": dict(machine),
    }


def page(result: Mapping[str, Any]) -> str:
    """Write the summary in Markdown."""
    rates, paired = result["cases_per_second"], result["paired_quartiles"]
    rows = [
        ("the tutorial's check: parameter count, output shape", rates["tutorial"], "1", ""),
        (
            f"deep, {result['draws']} draws a shape",
            rates["stack"],
            f"**{result['times_the_tutorial']:.1f}**",
            _slashed(paired["stack"]),
        ),
        (
            "deep, one draw a shape",
            rates["one"],
            f"{result['times_the_tutorial_one_draw']:.2f}",
            _slashed(paired["one"]),
        ),
    ]
    lines = [
        f"# Cases a second, {result['shapes']} shapes",
        "",
        "Written by `make rates`. A deep case is one draw of weights and 11 images. The weights make a bit-exact round",
        "trip to torch; outputs and gradients are compared in float64, Flax against torch. Compiling is included.",
        "",
        "| | cases a second | times the tutorial's | quartiles of that over shapes |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | {rate:.2f} | {times} | {quartiles} |" for name, rate, times, quartiles in rows),
        "",
        f"Largest residual: outputs {result['largest_residual']['outputs']:.1e}, gradients "
        f"{result['largest_residual']['gradients']:.1e}. Draws over 1e-12 that float32 showed to be rounding: "
        f"{result['rounding']}.",
        "",
    ]
    if result["undone"]:
        lines += [
            "## The gain by each choice",
            "",
            "One choice is undone, all others stay as they are: the time for a shape relative to all choices as they",
            f"are, the median over {result['undone_shapes']} shapes of {result['draws']} draws.",
            "",
            "| undone | time |",
            "| --- | --- |",
            *(f"| {name} | {ratio:.2f} |" for name, ratio in result["undone"].items()),
            "",
        ]
    return "\n".join([*lines, result_files.machine_line(result["machine"]), ""])


def _slashed(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in values)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", type=int, default=len(TUTORIAL_CONFIGS), help="how many of the shapes, drawn by a fixed seed"
    )
    parser.add_argument("--draws", type=int, default=64, help="draws a shape")
    parser.add_argument("--ablation", type=int, default=6, help="shapes on which each choice is undone, 0 for none")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/rates.json and .md")
    options = parser.parse_args(arguments)
    order = np.random.default_rng(SEED).permutation(len(TUTORIAL_CONFIGS))
    shuffled = [TUTORIAL_CONFIGS[i] for i in order]
    configs = shuffled[: options.shapes]

    with Machine() as machine:
        missed = [
            fault
            for number, config in enumerate(configs)
            for fault in missed_faults(config, 5, IMAGES_PER_CASE, SEED + number, RunOptions())
        ]
        assert not missed, "\n".join(missed)
        warm_up()
        side_by_side = time_sides(configs, options.draws)
        undone = ablate(shuffled[: options.ablation], options.draws) if options.ablation else {}
    mismatches = [mismatch for each in side_by_side.verifications for mismatch in each.mismatches]
    assert not mismatches, mismatches
    result = result_files.rounded(summarize_run(side_by_side, undone, options.draws, machine.describe()))
    print(page(result))
    if options.write:
        result_files.write("rates", result, page(result))
    speedup = result["times_the_tutorial"]
    assert speedup >= LEAST_SPEEDUP, f"{speedup:.1f} times the tutorial's rate"


if __name__ == "__main__":
    main()
