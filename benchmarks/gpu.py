"""What a project without a GPU checks once it has one: `python -m benchmarks.gpu [--dry-run] [--seconds N]`.

The tests marked `cuda`; `verify --device cuda` on the digits checkpoint; Mixers timed in float32, TF32 and half
precision, eager, compiled and as CUDA graphs, beside timm's, and jitted Flax. Each step is a process of its own, in
which one framework has the device to itself, and has a time limit: cells for which there is no time are named in its
results, benchmarks/results/gpu_STEP.json and .md. No step needs a network.

With `--dry-run` nothing is run: every program of every cell is built with its real sizes, without memory or a device.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks import record
from mixer_equiv import MixerConfig
from mixer_equiv.bench import export
from mixer_equiv.bench.cells import Cell, make_cells
from mixer_equiv.bench.contestants import Entry
from mixer_equiv.bench.measurement import measure_cells
from mixer_equiv.render.bench import Tables

ROOT = Path(__file__).parent.parent
SECONDS = 350
MATRICES = 8192  # smaller ones do not reach the peak of a large GPU

# XLA would take three quarters of the device's memory at once, which verify shares with torch.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

VARIANTS, DTYPES, BATCHES = ("S/32", "B/16"), ("float32", "tf32", "bfloat16", "float16"), (1, 32, 256)


class Timed(NamedTuple):
    """Programs that are timed in every cell of these axes, the first of them the baseline."""

    programs: tuple[str, ...]
    variants: tuple[str, ...] = VARIANTS
    dtypes: tuple[str, ...] = DTYPES
    batches: tuple[int, ...] = BATCHES

    def cells(self) -> list[Cell]:
        configs = [MixerConfig.from_name(name) for name in self.variants]
        return sorted(
            make_cells(configs, self.dtypes, self.batches, "cuda", ["inference"]),
            key=lambda cell: BATCHES.index(cell.batch),
        )


class Step(NamedTuple):
    """A process: the share of all seconds that it may take, and what it runs: `timed`, or a command."""

    share: float
    timed: Timed | None = None
    command: tuple[str, ...] = ()


VERIFY = ("-m", "mixer_equiv", "verify", "--device", "cuda", "--json", str(record.RESULTS / "gpu_verify.json"))
STEPS: Mapping[str, Step] = {
    "tests": Step(0.2, command=("-m", "pytest", "-q", "-m", "cuda", "tests/test_cuda.py")),
    "verify": Step(0.1, command=VERIFY),
    "torch": Step(0.2, Timed(("timm", "torch", "timm graphed", "torch graphed"))),
    "compiled": Step(0.25, Timed(("timm compiled", "torch compiled"), dtypes=("bfloat16", "tf32"))),
    "flax": Step(0.25, Timed(("official", "flax"))),
}


def plan() -> Table:
    """The steps, for a person."""
    table = Table("step", "at most", "what", title="make gpu", title_justify="left")
    for name, step in STEPS.items():
        timed = step.timed
        axes = (timed.variants, timed.dtypes, timed.batches) if timed else ()
        said = f"{', '.join(timed.programs)}: {'; '.join(', '.join(map(str, axis)) for axis in axes)}" if timed else ""
        table.add_row(name, f"{SECONDS * step.share:.0f} s", said or f"python {' '.join(map(_relative, step.command))}")
    return table


def _relative(text: str) -> str:
    return str(Path(text).relative_to(ROOT)) if text.startswith(str(ROOT)) else text


def build(timed: Timed) -> Iterator[tuple[Cell, str, tuple[int, ...]]]:
    """Each program in each of its cells, and the shape of its logits: traced on no device.

    Raises `AssertionError` for logits of another shape or dtype than a classifier's of the cell.
    """
    for cell in timed.cells():
        for name in timed.programs:
            entry = Entry(name)
            assert entry.contestant.runs_in(cell), f"{name} does not run in {cell}"
            trace = {"torch": _traced_by_torch, "jax": _traced_by_jax}[entry.contestant.framework]
            shape, dtype = trace(entry, cell)
            assert (shape, dtype) == ((cell.batch, cell.config.num_classes), cell.storage), f"{name} in {cell}: {shape}"
            yield cell, name, shape


def _traced_by_torch(entry: Entry, cell: Cell) -> tuple[tuple[int, ...], str]:
    import torch

    dtype = getattr(torch, cell.storage)
    with torch.device("meta"), torch.inference_mode():
        model = entry.contestant.make(cell.config, entry.formulation).eval().to(dtype)
        logits = model(torch.empty(cell.batch, cell.config.in_channels, *cell.config.image_hw, dtype=dtype))
    return tuple(logits.shape), str(logits.dtype).removeprefix("torch.")


def _traced_by_jax(entry: Entry, cell: Cell) -> tuple[tuple[int, ...], str]:
    import jax

    from mixer_equiv.arrays.interop import unflatten
    from mixer_equiv.checkpoints.validate import parameter_shapes
    from mixer_equiv.layouts import LINEN

    config = cell.config
    shapes = parameter_shapes(LINEN, config)
    params = {name: jax.ShapeDtypeStruct(shape, cell.storage) for name, shape in shapes.items()}
    images = jax.ShapeDtypeStruct((cell.batch, *config.image_hw, config.in_channels), cell.storage)
    logits = jax.eval_shape(entry.contestant.make(config, entry.formulation), unflatten(params), images)
    return tuple(logits.shape), str(logits.dtype)


def time_cells(name: str, seconds: float) -> int:
    """Run the bench of a step in this process and write its results; 1 if a program was refused."""
    timed = STEPS[name].timed
    assert timed is not None
    given = [Entry(program) for program in timed.programs]
    console = Console(stderr=True)
    result = export.to_dict(
        measure_cells(
            timed.cells(),
            given,
            gemm=MATRICES,
            seconds=seconds,
            on_step=lambda step: console.print(step, style="dim", soft_wrap=True),
        )
    )
    write(name, result)
    Console().print(Tables(result))
    return int(bool(export.refusal_lines(result)))


def write(name: str, result: Mapping[str, Any]) -> None:
    """`results/gpu_NAME.json` and `.md`."""
    said = f"# On a GPU: {name}\n\nWritten by `make gpu`.\n\n{export.to_markdown(result)}"
    record.write(result, f"gpu_{name}", said)


def run(name: str, seconds: float) -> str:
    """A step in a process of its own: what became of it."""
    step = STEPS[name]
    limit = seconds * step.share
    # The last cell may take longer than those before it; what is under way then has a fifth of the time left.
    command = step.command or ("-m", "benchmarks.gpu", "--step", name, "--seconds", str(0.8 * limit))
    start = time.monotonic()
    try:
        status = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env={**os.environ, **SHARED}, timeout=limit, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    return f"{'done' if status == 0 else f'failed, exit status {status}'}, {time.monotonic() - start:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="build every program, run none")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all steps; {SECONDS}")
    parser.add_argument("--step", choices=[name for name, step in STEPS.items() if step.timed], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.step:
        return time_cells(options.step, options.seconds)
    console = Console()
    console.print(plan())
    if options.dry_run:
        built = [found for step in STEPS.values() if step.timed for found in build(step.timed)]
        console.print(f"{len(built)} programs built in {len({cell for cell, *_ in built})} cells; nothing was run")
        return 0
    import torch

    if not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device; --dry-run builds everything without one")
    outcomes = {}
    with contextlib.suppress(KeyboardInterrupt):
        for name in STEPS:
            outcomes[name] = run(name, options.seconds)
    for name, outcome in outcomes.items():
        console.print(f"{name}: {outcome}")
    return int(len(outcomes) < len(STEPS) or not all(outcome.startswith("done") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
