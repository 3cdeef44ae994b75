"""`mixer-equiv convert`: a checkpoint in another layout and file format, array by array."""

from __future__ import annotations

import collections
import glob
import time
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixer_equiv.arrays.lazy import prefetch_arrays
from mixer_equiv.checkpoints.formats import SUFFIXES
from mixer_equiv.cli.exit_status import report_errors
from mixer_equiv.cli.options import (
    AllowMissing,
    IgnoreOption,
    LayoutFileOption,
    LayoutOption,
    PrefixOption,
    RenameOption,
    StepOption,
    TrainedWithOption,
    complete_layouts,
    parse_conventions,
    parse_image_size,
    parse_pairs,
    parse_renamed,
    register_layouts,
)
from mixer_equiv.cli.output import draw, say
from mixer_equiv.cli.progress import progress_bar
from mixer_equiv.errors import ConfigError, ConventionWarning

if TYPE_CHECKING:
    from mixer_equiv.checkpoints.checkpoint import Checkpoint


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help=f"Checkpoint to read: {', '.join(SUFFIXES)}, a folder.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Checkpoint to write, in the format of its suffix.")],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT",
            help="Layout to write; the other framework's if not given.",
            autocompletion=complete_layouts,
        ),
    ] = None,
    from_: LayoutOption = None,
    layout_files: LayoutFileOption = None,
    prefix: PrefixOption = None,
    ignore: IgnoreOption = None,
    rename: RenameOption = None,
    step: StepOption = None,
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
    from mixer_equiv.checkpoints import io as checkpoint_io
    from mixer_equiv.checkpoints.formats import parse_size
    from mixer_equiv.checkpoints.renaming import rename_prefixes

    with report_errors():
        if drop_head and num_classes is not None:
            raise ConfigError("--drop-head and --num-classes are both given; a head is either left out or new")
        register_layouts(layout_files)
        prefixes = parse_pairs("--rename-prefix", rename_prefix, "'head.=fc.' or '=backbone.'")
        if max_shard_size is not None:
            parse_size(max_shard_size)
        reading = {
            "layout": from_,
            "prefix": prefix,
            "ignore": ignore or (),
            "rename": parse_renamed(rename),
            "step": step,
            "trained_with": parse_conventions(trained_with),
            "lazy": True,
            "verify": not no_verify,
        }
        with progress_bar(3) as advance:
            started = time.perf_counter()
            checkpoint_io.check_target(target, force=force, max_shard_size=max_shard_size)
            advance(f"reading {source.name}")
            original, larger = _load_resized(source, parse_image_size(image_size), reading)
            advance("converting")
            converted, caught = _convert(
                _change_head(original, drop_head, num_classes),
                to=to or _other_framework(original),
                allow_missing=allow_missing or (),
                image_size=larger,
                dtype=dtype,
            )
            names = rename_prefixes(converted.whole, prefixes)
            if dry_run:
                collections.deque(prefetch_arrays(converted.whole), maxlen=0)  # some errors show only in making arrays
                written = checkpoint_io.path_to_read(converted, target, max_shard_size)
            else:
                advance(f"writing {target.name}")
                written = checkpoint_io.save(
                    converted, target, force=force, max_shard_size=max_shard_size, rename_prefix=prefixes, fsync=fsync
                )
            seconds = time.perf_counter() - started
        if dry_run:
            from mixer_equiv.render.conversion import draw_names

            draw(draw_names(original, converted, names))
        say(f"{source} ({original.layout.name}) -> {written} ({converted.layout.name})")
        say(f"{converted.num_parameters:,} parameters in {len(converted)} arrays, {', '.join(converted.dtypes)}")
        say("dry run: nothing was written" if dry_run else f"{_bytes_in(written):,} bytes in {seconds:.2f} s")
        for note in converted.notes:
            say(f"note: {note}")
        for warning in caught:
            say(f"warning: {warning}")


def _change_head(checkpoint: Checkpoint, drop_head: bool, num_classes: int | None) -> Checkpoint:
    """Take the head off, or put a new one for `num_classes`, where that is asked for."""
    from mixer_equiv.checkpoints import surgery

    if drop_head:
        return surgery.drop_head(checkpoint)
    return checkpoint if num_classes is None else surgery.new_head(checkpoint, num_classes)


def _convert(
    checkpoint: Checkpoint,
    *,
    to: str,
    allow_missing: Collection[str],
    image_size: tuple[int, int] | None,
    dtype: str | None,
) -> tuple[Checkpoint, list[str]]:
    """Convert to the layout `to`, widen to `image_size` and round to `dtype` if these are given; and list warnings."""
    from mixer_equiv.checkpoints import surgery
    from mixer_equiv.checkpoints.conversion import convert as convert_weights

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConventionWarning)
        converted = convert_weights(checkpoint, to=to, allow_missing=allow_missing)
    if image_size is not None:
        converted = surgery.enlarge(converted, image_size)
    if dtype is not None:
        converted = converted.astype(dtype)
    return converted, [str(warning.message) for warning in caught]


def _load_resized(
    source: Path, image_size: tuple[int, int] | None, reading: dict[str, Any]
) -> tuple[Checkpoint, tuple[int, int] | None]:
    """Load a checkpoint for images of `image_size`; with it, the size to widen it to, if it has fewer tokens."""
    from mixer_equiv.checkpoints import surgery
    from mixer_equiv.checkpoints.io import load

    if image_size is None:
        return load(source, **reading), None
    try:
        return load(source, image_size=image_size, **reading), None
    except ConfigError as error:
        checkpoint = load(source, **reading)
        try:
            factor = surgery.enlargement_factor(checkpoint, image_size)
        except ConfigError:
            advice = "to widen the weights by the paper's rule, give a whole number of times one of these"
            raise ConfigError(f"{error}; {advice}") from None
        size_so_far = image_size[0] // factor, image_size[1] // factor
        return load(source, image_size=size_so_far, **reading), image_size


def _other_framework(checkpoint: Checkpoint) -> str:
    """The layout written unless one is asked for."""
    return "torch" if checkpoint.layout.framework == "flax" else "linen"


def _bytes_in(path: Path) -> int:
    """Bytes in a file, in a directory, or in an index and its shards."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    stem = path.name.removesuffix(".safetensors.index.json")
    shards = path.parent.glob(f"{glob.escape(stem)}-*-of-*.safetensors") if stem != path.name else ()
    return sum(file.stat().st_size for file in (path, *shards))
