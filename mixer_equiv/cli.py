"""The command line: convert, inspect, layouts, verify, mutate and bench."""

from __future__ import annotations

import collections
import contextlib
import glob
import io
import json
import math
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from mixer_equiv.arrays.lazy import each
from mixer_equiv.checkpoints import io as checkpoint_io
from mixer_equiv.checkpoints import surgery
from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.checkpoints.conversion import convert as convert_weights
from mixer_equiv.checkpoints.formats import SUFFIXES, parse_size
from mixer_equiv.checkpoints.formats.atomic import replacement
from mixer_equiv.checkpoints.inspection import describe_layout, layouts_table, markdown_table
from mixer_equiv.checkpoints.inspection import inspect as inspect_checkpoint
from mixer_equiv.checkpoints.io import load
from mixer_equiv.checkpoints.names import rename_prefixes
from mixer_equiv.config import MixerConfig
from mixer_equiv.data import digits
from mixer_equiv.errors import ConfigError, ConventionWarning, InexpressibleError, MixerEquivError
from mixer_equiv.layouts import LAYOUTS, Conventions, Layout, register_layout

if TYPE_CHECKING:
    from mixer_equiv.equivalence.policy import Policy

EXIT_STATUS = {
    "equivalent": 0,
    "equivalent_under": 1,
    "different": 1,
    "inexpressible": 3,
    "nothing_compared": 3,
}
BAD_INPUT = 2
# What --rtol takes, and the field of `Policy` it is.
RTOL = {"logits": "residual", "gradients": "gradients", "sgd": "sgd", "adamw": "adamw"}
READABLE = f"{', '.join(SUFFIXES)}, or a folder of orbax or safetensors"

app = typer.Typer(
    name="mixer-equiv",
    help="Convert MLP-Mixer weights between implementations, and prove two Mixers to be the same function.",
    epilog="Exit status: 0 equivalent, done, 1 not equivalent, 2 bad input or usage, 3 inexpressible or not compared.",
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
PrefixOption = Annotated[
    str | None, typer.Option("--prefix", metavar="PREFIX", help="Which of several sets of weights to read: ema.")
]
TrainedWithOption = Annotated[
    str | None,
    typer.Option(
        "--trained-with", metavar="ACTIVATION[,EPS]", help="What the weights were trained with; eps 1e-6 if not given."
    ),
]
LayoutFileOption = Annotated[
    list[Path] | None,
    typer.Option("--layout", metavar="FILE", help="A layout of your own, in TOML or JSON, to know too. Repeatable."),
]
STDOUT = ("--json", "-")
JsonOption = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write JSON to FILE, or '-'.")]


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help=f"Checkpoint to read: {', '.join(SUFFIXES)}, a folder.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Checkpoint to write, in the format of its suffix.")],
    to: Annotated[
        str | None, typer.Option(metavar="LAYOUT", help="Layout to write; the other framework's if not given.")
    ] = None,
    from_: LayoutOption = None,
    layout_files: LayoutFileOption = None,
    prefix: PrefixOption = None,
    trained_with: TrainedWithOption = None,
    allow_missing: AllowMissing = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            "--image-size",
            metavar="HxW",
            help="Image size in pixels; a square grid if not given. K times the size so far widens the weights.",
        ),
    ] = None,
    drop_head: Annotated[bool, typer.Option("--drop-head", help="Leave the head out.")] = False,
    num_classes: Annotated[
        int | None, typer.Option(metavar="N", help="Put a new head of zeros, for N classes.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(metavar="DTYPE", help="Round to this dtype; kept if not given.")] = None,
    rename_prefix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW", help="Change how names begin in DST: '=backbone.'. The longest OLD wins. Repeatable."
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Split safetensors into shards of at most 5GB, 100MB, ...")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")] = False,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Do not check the CRCs of an npz; deflated arrays are checked all the same."),
    ] = False,
    fsync: Annotated[bool, typer.Option("--fsync", help="Wait until the disk has DST.")] = False,
) -> None:
    """Convert a checkpoint from one layout and file format to another, bit for bit, array by array."""
    with _reported(), _progress(3) as step:
        started = time.perf_counter()
        if drop_head and num_classes is not None:
            raise ConfigError("--drop-head and --num-classes are both given; a head is either left out or new")
        _register(layout_files)
        prefixes = _parse_prefixes(rename_prefix)
        if max_shard_size is not None:
            parse_size(max_shard_size)
        checkpoint_io.check_target(target, force=force, max_shard_size=max_shard_size)
        step(f"reading {source.name}")
        reading = {
            "layout": from_,
            "prefix": prefix,
            "trained_with": _parse_conventions(trained_with),
            "lazy": True,
            "verify": not no_verify,
        }
        found, larger = _load_resized(source, _parse_size(image_size), reading)
        step("converting")
        changed = surgery.drop_head(found) if drop_head else found
        if num_classes is not None:
            changed = surgery.new_head(changed, num_classes)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConventionWarning)
            converted = convert_weights(changed, to=to or _other_framework(found), allow_missing=allow_missing or ())
        if larger is not None:
            converted = surgery.enlarge(converted, larger)
        if dtype is not None:
            converted = converted.astype(dtype)
        names = rename_prefixes(converted.whole, prefixes)
        written = target
        if dry_run:
            collections.deque(each(converted.whole), maxlen=0)  # for what is found only when arrays are made
        else:
            step(f"writing {target.name}")
            written = checkpoint_io.save(
                converted, target, force=force, max_shard_size=max_shard_size, rename_prefix=prefixes, fsync=fsync
            )
        elapsed = time.perf_counter() - started
    with _reported():
        if dry_run:
            written = checkpoint_io.path_to_read(converted, target, max_shard_size)
            _print(_renaming_table(found, converted, names))
        _say(f"{source} ({found.layout.name}) -> {written} ({converted.layout.name})")
        _say(f"{converted.num_parameters:,} parameters in {len(converted)} arrays, {', '.join(converted.dtypes)}")
        _say("dry run: nothing was written" if dry_run else f"{_bytes_of(written):,} bytes in {elapsed:.2f} s")
        for note in converted.notes:
            _say(f"note: {note}")
        for warning in caught:
            _say(f"warning: {warning.message}")


@app.command()
def inspect(
    source: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint to read.")],
    values: Annotated[
        bool, typer.Option("--values", help="Read every array: statistics, NaN, zeros. Else shapes and dtypes alone.")
    ] = False,
    from_: LayoutOption = None,
    layout_files: LayoutFileOption = None,
    prefix: PrefixOption = None,
    trained_with: TrainedWithOption = None,
    allow_missing: AllowMissing = None,
    image_size: ImageSizeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Show a checkpoint's layout, config and conventions, and with --values what is odd about its arrays."""
    with _reported():
        _register(layout_files)
        with _progress(2) as step:
            step(f"reading {source.name}")
            found = load(
                source,
                layout=from_,
                image_size=_parse_size(image_size),
                prefix=prefix,
                trained_with=_parse_conventions(trained_with),
                lazy=True,
            )
            step("looking at the arrays")
            inspection = inspect_checkpoint(found, values=values, allow_missing=allow_missing or ())
        _output(inspection, inspection.to_dict(), json_file)


@app.command()
def layouts(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Whose layout to find: path/to/file.py:Name, package.module:Name, timm:NAME."
        ),
    ] = None,
    kwargs: Annotated[str | None, typer.Option(metavar="JSON", help="What the model is made with.")] = None,
    image: Annotated[str | None, typer.Option(metavar="CxHxW", help="Image channels and size, in pixels.")] = None,
    layout_files: LayoutFileOption = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a table of Markdown.")] = False,
    json_file: JsonOption = None,
) -> None:
    """List the layouts: what their code computes, what weights they can hold, and a name in each.

    With a model: find the layout of its parameters by running it, and print it as TOML, for --layout.
    """
    with _reported():
        if markdown and json_file is not None:
            raise ConfigError("--markdown and --json are both given; the table is written in one form")
        if model is not None:
            if markdown or json_file is not None:
                raise ConfigError("the layout of a model is written as TOML, without --markdown and --json")
            _write(_layout_at(model, _parse_kwargs(kwargs) or {}, _parse_image(image)).to_toml())
            return
        if kwargs is not None or image is not None:
            raise ConfigError("--kwargs and --image are for the layout of a model, and none is given")
        _register(layout_files)
        rows = [describe_layout(layout) for layout in LAYOUTS.values()]
        if markdown:
            _write(markdown_table(rows))
        else:
            _output(layouts_table(rows), {"layouts": rows}, json_file)


@app.command()
def verify(
    a: Annotated[
        str | None,
        typer.Argument(metavar="A", help="A checkpoint, or flax, nnx, torch, reference, or a variant: flax:B/16."),
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
    gradients: Annotated[
        bool | None, typer.Option("--gradients/--no-gradients", help="Compare them too; for models by default.")
    ] = None,
    train_steps: Annotated[
        int, typer.Option(metavar="N", help="Compare parameters after N steps of SGD, and of AdamW.")
    ] = 0,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="Low precision to show errors of: float32, bfloat16, float16.")
    ] = "float32",
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where torch, and JAX if it can, compute: cuda.")
    ] = "cpu",
    rtol: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME:]VALUE", help=f"Threshold of {', '.join(RTOL)}; of logits without NAME. Repeatable."
        ),
    ] = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Compute nothing more once the two are seen to differ.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of random weights and images.")] = 0,
    from_: Annotated[str | None, typer.Option("--from", metavar="LAYOUT", help="Layout of A; detected.")] = None,
    layout_files: LayoutFileOption = None,
    prefix: Annotated[
        str | None, typer.Option("--prefix", metavar="PREFIX", help="Which of several sets of weights in A: ema.")
    ] = None,
    allow_missing: AllowMissing = None,
    json_file: JsonOption = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report as a page of HTML, too.")
    ] = None,
) -> None:
    """Tell whether two Mixers are the same function, and where they part if they are not.

    With no argument: a Mixer trained in Flax on handwritten digits, and its port to PyTorch.
    """
    from mixer_equiv.equivalence.verify import verify as verify_pair
    from mixer_equiv.render.report import draw_report

    with _reported():
        _check_outputs({"--json": json_file, "--html": html_file})
        _register(layout_files)
        arguments: dict[str, Any] = {
            "kwargs": _parse_kwargs(kwargs),
            "image": _parse_image(image),
            "gradients": gradients,
            "train_steps": train_steps,
            "dtype": dtype,
            "device": device,
            "fail_fast": fail_fast,
            "policy": _parse_rtol(rtol),
        }
        source: Any = a
        if from_ is not None or prefix is not None:
            if a is None or not Path(a).exists():
                raise ConfigError(f"--from and --prefix are for a checkpoint, and A is {a or 'not given'}")
            source = load(a, layout=from_, prefix=prefix)
        if a is None:
            images, labels = digits.held_out()
            source, arguments = str(digits.CHECKPOINT), {**arguments, "images": images, "labels": labels}
        with _progress(9) as step, contextlib.redirect_stdout(sys.stderr):  # for what a model prints
            report = verify_pair(
                source, b, weights=weights, seed=seed, allow_missing=allow_missing or (), on_step=step, **arguments
            )
        if html_file is not None:
            from mixer_equiv.render.html import to_html

            _write_file("--html", html_file, to_html(report))
        _output(draw_report(report), report.to_dict(), json_file)
    raise typer.Exit(EXIT_STATUS[report.verdict])


@app.command()
def mutate(
    seed: Annotated[int, typer.Option(help="Seed of weights and images.")] = 0,
    json_file: JsonOption = None,
) -> None:
    """Plant every catalogued fault in a Mixer, and show which checks notice it, and what verify says."""
    from mixer_equiv.equivalence.faults.kill_matrix import mutate as plant_all
    from mixer_equiv.render.kill_matrix import draw_matrix

    with _reported():
        _check_outputs({"--json": json_file})
        with _progress(42) as step:
            matrix = plant_all(seed=seed, on_step=step)
        _output(draw_matrix(matrix), matrix.to_dict(), json_file)
    raise typer.Exit(0 if matrix.all_named else EXIT_STATUS["different"])


@app.command()
def bench(
    variant: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Sizes: B/16, S/32, ... Repeatable; S/32 if not given.")
    ] = None,
    kwargs: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="Other MixerConfig fields, of all programs: '{\"num_blocks\": 2}'."),
    ] = None,
    program: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What is timed: torch, timm, ... Repeatable; all.")
    ] = None,
    formulation: Annotated[
        list[str] | None,
        typer.Option(metavar="P,T,C", help="Of our models, too: conv,matmul,linear. Repeatable, or 'all'."),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(metavar="DTYPE", help="float32, bfloat16, float64, on cuda float16, tf32. Repeatable; float32."),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(metavar="N", help="Images a call. Repeatable; 1 and 8.")] = None,
    mode: Annotated[
        list[str] | None, typer.Option(metavar="MODE", help="inference or training. Repeatable; inference.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(metavar="N", help="Cores for both frameworks; all.")] = None,
    rounds: Annotated[int, typer.Option(metavar="N", help="Interleaved rounds, at least 10.")] = 10,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="What ratios are to; timm if it is timed, else the first.")
    ] = None,
    gemm: Annotated[int, typer.Option(metavar="N", help="Side of the matrices whose product is the peak.")] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of weights, images and the order of turns.")] = 0,
    json_file: JsonOption = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write CSV, too.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Markdown, too.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="A plot: SVG and PNG, both.")] = None,
) -> None:
    """Time Mixers side by side: ours, timm's, the tutorial's, lucidrains' and the official one.

    Each is proven right first, in the same process; one that is not is refused, and the exit status is 1.
    """
    from mixer_equiv.bench import bench as runner
    from mixer_equiv.bench import cells as cases
    from mixer_equiv.bench import contestants as programs
    from mixer_equiv.bench import export as page
    from mixer_equiv.bench import plots
    from mixer_equiv.render.bench import Tables

    with _reported():
        files = {"--json": json_file, "--csv": csv_file, "--markdown": markdown_file, "--plot": plot_file}
        _check_outputs(files)
        if plot_file is not None:
            plots.check(plot_file)
        fields = _parse_kwargs(kwargs) or {}
        published = [MixerConfig.from_name(name).to_dict() for name in variant or ["S/32"]]
        configs = [MixerConfig.from_dict({**values, **fields}) for values in published]
        cells = list(cases.cells(configs, dtype or ["float32"], batch or [1, 8], device, mode or ["inference"]))
        contestants = list(
            programs.contestants(program or programs.running_in(cells), programs.parse_formulations(formulation or []))
        )
        with _progress(len(cells) * (len(contestants) + 1)) as step, contextlib.redirect_stdout(sys.stderr):
            result = runner.bench(
                cells,
                contestants,
                baseline="timm" if baseline is None and "timm" in map(str, contestants) else baseline,
                rounds=rounds,
                threads=threads,
                seed=seed,
                gemm=gemm,
                on_step=step,
            )
        plain = page.to_dict(result)
        if csv_file is not None:
            _write_file("--csv", csv_file, page.to_csv(plain))
        if markdown_file is not None:
            _write_file("--markdown", markdown_file, page.markdown(plain))
        _output(Tables(plain), plain, json_file)
        if plot_file is not None and any(row["ms"] for row in plain["rows"]):
            plots.plot(plain["rows"], plot_file)
        elif plot_file is not None:
            Console(stderr=True).print(f"{plot_file} is not written: all were refused", markup=False, soft_wrap=True)
    raise typer.Exit(EXIT_STATUS["different"] if result.refused else 0)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Errors of ours become one message on stderr and exit status 2; what is half done is undone if we are stopped."""
    try:
        with _stoppable():
            yield
    except MixerEquivError as error:
        Console(stderr=True, soft_wrap=True).print("error:", str(error), style="red", highlight=False, markup=False)
        status = EXIT_STATUS["inexpressible"] if isinstance(error, InexpressibleError) else BAD_INPUT
        raise typer.Exit(status) from error


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the process as Ctrl-C does, so that temporary files go; ignored ones stay ignored."""
    chosen = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in chosen}
    ours = [number for number, handler in before.items() if handler == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for number in ours:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _layout_at(model: str, kwargs: Mapping[str, Any], image: tuple[int, int, int] | None) -> Layout:
    from mixer_equiv.equivalence.porting import layout_of
    from mixer_equiv.equivalence.sides.locate import is_source, model_at

    if not is_source(model):
        raise ConfigError(f"{model} is no place of a model: path/to/file.py:Name, package.module:Name, timm:NAME")
    if image is None:
        raise ConfigError("the layout of a model is found by running it: give --image, such as 3x224x224")
    with _progress(1) as step, contextlib.redirect_stdout(sys.stderr):  # for what a model prints
        step("running the model")
        return layout_of(model_at(model, kwargs), image)


def _register(files: list[Path] | None) -> None:
    for file in {file.resolve(): file for file in files or ()}.values():
        register_layout(file)


def _load_resized(
    source: Path, image_size: tuple[int, int] | None, reading: dict[str, Any]
) -> tuple[Checkpoint, tuple[int, int] | None]:
    """The checkpoint, and the image size that it is to be widened to, if it has not as many tokens."""
    if image_size is None:
        return load(source, **reading), None
    try:
        return load(source, image_size=image_size, **reading), None
    except ConfigError as error:
        found = load(source, **reading)
        try:
            factor = surgery.factor_to(found, image_size)
        except ConfigError:
            advice = "to widen the weights by the paper's rule, give a whole number of times one of these"
            raise ConfigError(f"{error}; {advice}") from None
        now = image_size[0] // factor, image_size[1] // factor
        return load(source, image_size=now, **reading), image_size


def _bytes_of(path: Path) -> int:
    """Bytes in a file, in a directory, or in an index and its shards."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    stem = path.name.removesuffix(".safetensors.index.json")
    shards = path.parent.glob(f"{glob.escape(stem)}-*-of-*.safetensors") if stem != path.name else ()
    return sum(file.stat().st_size for file in (path, *shards))


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
        _write_file("--json", Path(json_file), text)
    _print(shown)


def _check_outputs(files: Mapping[str, str | Path | None]) -> None:
    """Whether files can be written, by the options that name them, before hours are spent on what is in them."""
    given = {option: Path(file) for option, file in files.items() if file is not None and (option, file) != STDOUT}
    for option, path in given.items():
        if str(path) == STDOUT[1]:
            raise ConfigError(f"{option} is {path}; only {STDOUT[0]} goes to the standard output, give a file")
        if path.name.lower().endswith(SUFFIXES):
            own = option.replace("--", ".")
            raise ConfigError(f"{option} is {path}, by its suffix a checkpoint; give it another one, such as {own}")
        if path.exists() and not path.is_file():
            what = "a directory" if path.is_dir() else "a pipe or a device"
            raise ConfigError(f"{option} is {path}, {what}; give the name of a file")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            why = "may not be written to" if path.parent.is_dir() else "is no directory"
            raise ConfigError(f"{option} is {path}, which cannot be written: {path.parent} {why}")
    by_place = {path.resolve(): option for option, path in given.items()}
    for option, path in given.items():
        if by_place[path.resolve()] != option:
            raise ConfigError(f"{option} and {by_place[path.resolve()]} are both {path}; give each a file of its own")


def _write_file(option: str, path: Path, text: str) -> None:
    _check_outputs({option: path})
    with replacement(path) as temporary:
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


def _renaming_table(source: Checkpoint, target: Checkpoint, names: Mapping[str, str]) -> Table:
    """Each parameter's name and shape before and after; "-" where it has none."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for layout in (source.layout.name, target.layout.name):
        table.add_column(layout, overflow="fold")
        table.add_column("shape", justify="right")
    before = source.layout.bindings(source.config.num_blocks)
    for canonical, binding in target.layout.bindings(target.config.num_blocks).items():
        found, wanted = before[canonical].foreign, binding.foreign
        if wanted in target.arrays or (binding.is_absent and found in source.specs):
            cells = [found, _shape(source, found), names.get(wanted, wanted), _shape(target, wanted)]
            table.add_row(*cells)
    return table


def _shape(checkpoint: Checkpoint, name: str) -> str:
    return "x".join(map(str, checkpoint.specs[name].shape)) if name in checkpoint.specs else ""


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


def _parse_rtol(texts: list[str] | None) -> Policy:
    from mixer_equiv.equivalence.policy import Policy

    thresholds = {}
    for text in texts or ():
        name, colon, value = text.rpartition(":")
        name = name if colon else "logits"
        try:
            threshold = float(value)
        except ValueError:
            threshold = math.nan
        if name not in RTOL or not threshold >= 0:
            raise ConfigError(f"--rtol is {text!r}; it must be NAME:VALUE, such as logits:1e-9, of {', '.join(RTOL)}")
        thresholds[RTOL[name]] = threshold
    return Policy(**thresholds)


def _parse_prefixes(texts: list[str] | None) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts or ()]
    if not all(equals for _, equals, _ in pairs):
        raise ConfigError(f"--rename-prefix is {texts}; it must be OLD=NEW, such as 'head.=fc.' or '=backbone.'")
    olds = [old for old, _, _ in pairs]
    twice = sorted({old for old in olds if olds.count(old) > 1})
    if twice:
        raise ConfigError(f"--rename-prefix is given twice for {', '.join(map(repr, twice))}; give each OLD once")
    return {old: new for old, _, new in pairs}


def _parse_conventions(text: str | None) -> Conventions | None:
    if text is None:
        return None
    activation, _, eps = text.partition(",")
    try:
        return Conventions(activation, float(eps or 1e-6))
    except ValueError as error:
        raise ConfigError(
            f"--trained-with is {text!r}; it must be an activation and perhaps an eps, such as gelu_tanh,1e-6 ({error})"
        ) from error


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
