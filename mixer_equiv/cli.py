"""The command line: convert, inspect and verify."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from mixer_equiv import checkpoint as checkpoints
from mixer_equiv import digits
from mixer_equiv.checkpoint import Checkpoint, load
from mixer_equiv.containers import SUFFIXES, replacing
from mixer_equiv.convert import convert as convert_weights
from mixer_equiv.equivalence.verify import verify as verify_pair
from mixer_equiv.errors import ConfigError, ConventionWarning, MixerEquivError
from mixer_equiv.inspection import inspect as inspect_checkpoint

EXIT_STATUS = {
    "equivalent": 0,
    "equivalent_under": 1,
    "different": 1,
    "inexpressible": 3,
    "nothing_compared": 3,
}
BAD_INPUT = 2

app = typer.Typer(
    name="mixer-equiv",
    help="Convert MLP-Mixer weights between implementations, and prove two Mixers to be the same function.",
    epilog="Exit status: 0 equivalent or done, 1 not equivalent, 2 usage or bad input, 3 nothing could be compared.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AllowMissing = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-missing", metavar="GLOB", help="Parameters that may be absent, such as 'head/*'. Repeatable."
    ),
]
LayoutOption = Annotated[
    str | None, typer.Option("--from", metavar="LAYOUT", help="Layout of the checkpoint; detected.")
]
ImageSizeOption = Annotated[
    str | None, typer.Option("--image-size", metavar="HxW", help="Image size in pixels; a square grid if not given.")
]
JsonOption = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write JSON to FILE, or '-'.")]


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Checkpoint to read: .npz, .safetensors, .pt, .pth.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Checkpoint to write, in the format of its suffix.")],
    to: Annotated[
        str | None, typer.Option(metavar="LAYOUT", help="Layout to write; the other framework's if not given.")
    ] = None,
    from_: LayoutOption = None,
    dtype: Annotated[str | None, typer.Option(metavar="DTYPE", help="Round to this dtype; kept if not given.")] = None,
    allow_missing: AllowMissing = None,
    image_size: ImageSizeOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")] = False,
) -> None:
    """Convert a checkpoint from one layout and file format to another, bit for bit."""
    with _reported(), _progress(3) as step:
        started = time.perf_counter()
        if not dry_run:
            checkpoints.check_target(target, force=force)
        step(f"reading {source.name}")
        found = load(source, layout=from_, image_size=_parse_size(image_size))
        step("converting")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConventionWarning)
            converted = convert_weights(found, to=to or _other_framework(found), allow_missing=allow_missing or ())
        if dtype is not None:
            converted = converted.astype(dtype)
        if not dry_run:
            step(f"writing {target.name}")
            checkpoints.save(converted, target, force=force)
        elapsed = time.perf_counter() - started
    with _reported():
        if dry_run:
            _print(_renaming_table(found, converted))
        _say(f"{source} ({found.layout.name}) -> {target} ({converted.layout.name})")
        _say(f"{converted.num_parameters:,} parameters in {len(converted)} arrays, {', '.join(converted.dtypes)}")
        _say("dry run: nothing was written" if dry_run else f"{target.stat().st_size:,} bytes in {elapsed:.2f} s")
        for note in converted.notes:
            _say(f"note: {note}")
        for warning in caught:
            _say(f"warning: {warning.message}")


@app.command()
def inspect(
    source: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint to read.")],
    from_: LayoutOption = None,
    allow_missing: AllowMissing = None,
    image_size: ImageSizeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Show a checkpoint's layout, config, conventions, and what is odd about its arrays."""
    with _reported():
        with _progress(2) as step:
            step(f"reading {source.name}")
            found = load(source, layout=from_, image_size=_parse_size(image_size))
            step("looking at the arrays")
            inspection = inspect_checkpoint(found, allow_missing=allow_missing or ())
        _output(inspection, inspection.to_dict(), json_file)


@app.command()
def verify(
    a: Annotated[
        str | None,
        typer.Argument(metavar="A", help="A checkpoint, or flax, torch, reference, also with a variant: flax:B/16."),
    ] = None,
    b: Annotated[
        str | None, typer.Argument(metavar="B", help="As A; its port to the other framework if not given.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="random|given|FILE", help="given for checkpoints, random for programs.")
    ] = None,
    kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="MixerConfig fields for built-in models: '{\"num_blocks\": 2}'.")
    ] = None,
    image: Annotated[str | None, typer.Option(metavar="CxHxW", help="Image channels and size, in pixels.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights and images.")] = 0,
    allow_missing: AllowMissing = None,
    json_file: JsonOption = None,
) -> None:
    """Tell whether two Mixers are the same function, and where they part if they are not.

    With no argument: a Mixer trained in Flax on handwritten digits, and its port to PyTorch.
    """
    with _reported():
        arguments: dict[str, Any] = {"kwargs": _parse_kwargs(kwargs), "image": _parse_image(image)}
        if a is None:
            images, labels = digits.held_out()
            a, arguments = str(digits.CHECKPOINT), {**arguments, "images": images, "labels": labels}
        with _progress(8) as step:
            report = verify_pair(
                a, b, weights=weights, seed=seed, allow_missing=allow_missing or (), on_step=step, **arguments
            )
        _output(report, report.to_dict(), json_file)
    raise typer.Exit(EXIT_STATUS[report.verdict])


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Errors of ours become one message on stderr and exit status 2."""
    try:
        yield
    except MixerEquivError as error:
        Console(stderr=True, soft_wrap=True).print("error:", str(error), style="red", highlight=False, markup=False)
        raise typer.Exit(BAD_INPUT) from error


@contextlib.contextmanager
def _progress(steps: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr at a terminal, and nothing in a pipe; call what is yielded as each step begins."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=steps)
        yield lambda step: progress.update(task, description=step, advance=1)


def _output(shown: RenderableType, plain: dict[str, Any], json_file: str | None) -> None:
    text = json.dumps(plain, indent=2, allow_nan=False) + "\n"
    if json_file == "-":
        _write(text)
        return
    if json_file is not None:
        _write_json(Path(json_file), text)
    _print(shown)


def _write_json(path: Path, text: str) -> None:
    if path.suffix.lower() in SUFFIXES:
        raise MixerEquivError(f"--json is {path}, by its suffix a checkpoint; give the JSON another one, such as .json")
    with replacing(path) as temporary:
        temporary.write_text(text)


def _print(shown: RenderableType) -> None:
    terminal = Console()
    stream, width = io.StringIO(), terminal.width if terminal.is_terminal else 110
    # Rendered first and written by `_write`, because rich makes a failing output exit status 1.
    Console(file=stream, force_terminal=terminal.is_terminal, width=width, highlight=False).print(shown)
    _write(stream.getvalue())


def _say(line: str) -> None:
    _write(f"{line}\n")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered must not fail once more when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # whose reader has seen enough
            raise MixerEquivError(f"the output cannot be written: {error.strerror}") from error


def _renaming_table(source: Checkpoint, target: Checkpoint) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for framework, column in ((source.layout.name, "shape"), (target.layout.name, "shape")):
        table.add_column(framework, overflow="fold")
        table.add_column(column, justify="right")
    theirs = target.layout.bindings(target.config.num_blocks)
    for canonical, binding in source.layout.bindings(source.config.num_blocks).items():
        wanted = theirs[canonical].foreign
        if wanted in target.arrays:
            before, after = source.arrays[binding.foreign].shape, target.arrays[wanted].shape
            table.add_row(binding.foreign, "x".join(map(str, before)), wanted, "x".join(map(str, after)))
    return table


def _other_framework(checkpoint: Checkpoint) -> str:
    return "torch" if checkpoint.layout.framework == "flax" else "linen"


def _parse_kwargs(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--kwargs is not JSON ({error}): {text}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"--kwargs is {text}; it must be a JSON object, such as '{{\"num_blocks\": 2}}'")
    return fields


def _parse_image(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not match:
        raise ConfigError(f"--image is {text!r}; it must be channels, height and width, such as 3x224x224")
    return int(match[1]), int(match[2]), int(match[3])


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match:
        raise ConfigError(f"--image-size is {text!r}; it must be height and width in pixels, such as 224x224")
    return int(match[1]), int(match[2] or match[1])
