"""The checks and timings that need a GPU, for when there is one: `python -m benchmarks.gpu [--dry-run] [--seconds N]`.

The jobs are the tests marked `cuda`; `verify --device cuda` on the digits checkpoint; Mixers timed in float32, TF32
and half precision, eager, compiled and as CUDA graphs, beside timm's; and jitted Flax. Each job is a process of its
own, in which one framework has the device to itself, and has a time limit. Its results, benchmarks/results/gpu_JOB.json
and .md, name the cells for which there was no time. No job needs a network.

With `--dry-run` nothing is run: every contestant of every cell is built with its real sizes, without memory or device.
Start reading at `JOBS`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks import result_files
from mixer_equiv import MixerConfig
from mixer_equiv.bench import export
from mixer_equiv.bench.cells import Cell, make_cells
from mixer_equiv.bench.contestants import Entry
from mixer_equiv.bench.measurement import measure_cells
from mixer_equiv.render.bench import Tables

REPOSITORY = Path(__file__).parent.parent
SECONDS = 350
MATRICES = 8192  # smaller ones do not reach the peak of a large GPU

# XLA would take three quarters of the device's memory at once. In `verify` it shares the device with torch.
JOB_ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

GPU_VARIANTS, GPU_DTYPES, GPU_BATCHES = ("S/32", "B/16"), ("float32", "tf32", "bfloat16", "float16"), (1, 32, 256)


class Timings(NamedTuple):
    """Contestants that are timed in every cell of these axes; the first is the baseline."""

    contestants: tuple[str, ...]
    variants: tuple[str, ...] = GPU_VARIANTS
    dtypes: tuple[str, ...] = GPU_DTYPES
    batches: tuple[int, ...] = GPU_BATCHES

    def cells(self) -> list[Cell]:
        """List the cells, those of small batches first."""
        configs = [MixerConfig.from_name(name) for name in self.variants]
        made = make_cells(configs, self.dtypes, self.batches, "cuda", ["inference"])
        return sorted(made, key=lambda cell: GPU_BATCHES.index(cell.batch))

    def __str__(self) -> str:
        axes = self.variants, self.dtypes, self.batches
        return f"{', '.join(self.contestants)}: {'; '.join(', '.join(map(str, axis)) for axis in axes)}"


class PythonCommand(NamedTuple):
    """The arguments of Python."""

    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"python {' '.join(text.removeprefix(f'{REPOSITORY}/') for text in self.arguments)}"


class Job(NamedTuple):
    """A process that runs `work`, and its share of all seconds, which it may take at most."""

    share: float
    work: Timings | PythonCommand


VERIFY = ("-m", "mixer_equiv", "verify", "--device", "cuda", "--json", str(result_files.RESULTS / "gpu_verify.json"))
JOBS: Mapping[str, Job] = {
    "tests": Job(0.2, PythonCommand(("-m", "pytest", "-q", "-m", "cuda", "tests/test_cuda.py"))),
    "verify": Job(0.1, PythonCommand(VERIFY)),
    "torch": Job(0.2, Timings(("timm", "torch", "timm graphed", "torch graphed"))),
    "compiled": Job(0.25, Timings(("timm compiled", "torch compiled"), dtypes=("bfloat16", "tf32"))),
    "flax": Job(0.25, Timings(("official", "flax"))),
}
# The jobs that time contestants.
TIMINGS = {name: job.work for name, job in JOBS.items() if isinstance(job.work, Timings)}


def plan() -> Table:
    """Make a table of the jobs for the terminal."""
    table = Table("job", "at most", "work", title="make gpu", title_justify="left")
    for name, job in JOBS.items():
        table.add_row(name, f"{SECONDS * job.share:.0f} s", str(job.work))
    return table


def build(timings: Timings) -> Iterator[tuple[Cell, str, tuple[int, ...]]]:
    """Trace each contestant in each of its cells, without a device, and yield the shape of its logits.

    Raises `AssertionError` for logits of another shape or dtype than a classifier's of the cell.
    """
    for cell in timings.cells():
        for name in timings.contestants:
            entry = Entry(name)
            assert entry.contestant.runs_in(cell), f"{name} does not run in {cell}"
            trace = {"torch": _trace_in_torch, "jax": _trace_in_jax}[entry.contestant.framework]
            shape, dtype = trace(entry, cell)
            assert (shape, dtype) == ((cell.batch, cell.config.num_classes), cell.storage), f"{name} in {cell}: {shape}"
            yield cell, name, shape


def _trace_in_torch(entry: Entry, cell: Cell) -> tuple[tuple[int, ...], str]:
    import torch

    dtype = getattr(torch, cell.storage)
    with torch.device("meta"), torch.inference_mode():
        model = entry.contestant.make(cell.config, entry.formulation).eval().to(dtype)
        logits = model(torch.empty(cell.batch, cell.config.in_channels, *cell.config.image_hw, dtype=dtype))
    return tuple(logits.shape), str(logits.dtype).removeprefix("torch.")


def _trace_in_jax(entry: Entry, cell: Cell) -> tuple[tuple[int, ...], str]:
    import jax

    from mixer_equiv.arrays.interop import unflatten
    from mixer_equiv.checkpoints.validate import parameter_shapes
    from mixer_equiv.layouts import LINEN

    config = cell.config
    array_of: Callable[..., Any] = jax.ShapeDtypeStruct
    shapes = parameter_shapes(LINEN, config)
    params = {name: array_of(shape, cell.storage) for name, shape in shapes.items()}
    images = array_of((cell.batch, *config.image_hw, config.in_channels), cell.storage)
    logits = jax.eval_shape(entry.contestant.make(config, entry.formulation), unflatten(params), images)
    return tuple(logits.shape), str(logits.dtype)


def time_cells(name: str, seconds: float) -> int:
    """Time a job's contestants in this process and write the results; return 1 if one was refused."""
    timings = TIMINGS[name]
    console = Console(stderr=True)
    result = export.to_dict(
        measure_cells(
            timings.cells(),
            [Entry(contestant) for contestant in timings.contestants],
            gemm=MATRICES,
            seconds=seconds,
            on_step=lambda step: console.print(step, style="dim", soft_wrap=True),
        )
    )
    write(name, result)
    Console().print(Tables(result))
    return int(bool(export.refusal_lines(result)))


def write(name: str, result: Mapping[str, Any]) -> None:
    """Write a job's files."""
    result = result_files.rounded(result)
    result_files.write(f"gpu_{name}", result, page(name, result))


def page(name: str, result: Mapping[str, Any]) -> str:
    """Write a job's tables in Markdown."""
    return f"# On a GPU: {name}\n\nWritten by `make gpu`.\n\n{export.to_markdown(result)}"


def run_job(name: str, seconds: float) -> str:
    """Run a job in a process of its own, and say how it ended."""
    job = JOBS[name]
    limit = seconds * job.share
    # A fifth of the time is kept for the last cell, which may take longer than those before it.
    own = PythonCommand(("-m", "benchmarks.gpu", "--job", name, "--seconds", str(0.8 * limit)))
    command = job.work if isinstance(job.work, PythonCommand) else own
    start = time.monotonic()
    try:
        status = subprocess.run(
            [sys.executable, *command.arguments],
            cwd=REPOSITORY,
            env={**os.environ, **JOB_ENVIRONMENT},
            timeout=limit,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    return f"{'done' if status == 0 else f'failed, exit status {status}'}, {time.monotonic() - start:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="build every contestant, run none")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all jobs; {SECONDS}")
    parser.add_argument("--job", choices=list(TIMINGS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job:
        return time_cells(options.job, options.seconds)
    console = Console()
    console.print(plan())
    if options.dry_run:
        built = [each for timings in TIMINGS.values() for each in build(timings)]
        console.print(f"{len(built)} models built in {len({cell for cell, *_ in built})} cells; nothing was run")
        return 0
    import torch

    if not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device; --dry-run builds everything without one")
    outcomes = {}
    with contextlib.suppress(KeyboardInterrupt):
        for name in JOBS:
            outcomes[name] = run_job(name, options.seconds)
    for name, outcome in outcomes.items():
        console.print(f"{name}: {outcome}")
    return int(len(outcomes) < len(JOBS) or not all(outcome.startswith("done") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
