"""`mixer-equiv inspect`: a checkpoint's layout, config, conventions and arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixer_equiv.cli.exit_status import report_errors
from mixer_equiv.cli.options import (
    AllowMissing,
    IgnoreOption,
    ImageSizeOption,
    JsonOption,
    LayoutFileOption,
    LayoutOption,
    PrefixOption,
    RenameOption,
    StepOption,
    TrainedWithOption,
    parse_conventions,
    parse_image_size,
    parse_renamed,
    register_layouts,
)
from mixer_equiv.cli.output import show
from mixer_equiv.cli.progress import progress_bar


def inspect(
    source: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint to read.")],
    values: Annotated[
        bool, typer.Option("--values", help="Read every array: statistics, NaN, zeros. Else shapes and dtypes alone.")
    ] = False,
    from_: LayoutOption = None,
    layout_files: LayoutFileOption = None,
    prefix: PrefixOption = None,
    ignore: IgnoreOption = None,
    rename: RenameOption = None,
    step: StepOption = None,
    trained_with: TrainedWithOption = None,
    allow_missing: AllowMissing = None,
    image_size: ImageSizeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Show a checkpoint's layout, config and conventions, and with --values what is odd about its arrays."""
    from mixer_equiv.checkpoints.inspection import inspect as inspect_checkpoint
    from mixer_equiv.checkpoints.io import load
    from mixer_equiv.render.inspection import draw_inspection

    with report_errors():
        register_layouts(layout_files)
        with progress_bar(2) as advance:
            advance(f"reading {source.name}")
            checkpoint = load(
                source,
                layout=from_,
                image_size=parse_image_size(image_size),
                prefix=prefix,
                ignore=ignore or (),
                rename=parse_renamed(rename),
                step=step,
                trained_with=parse_conventions(trained_with),
                lazy=True,
            )
            advance("looking at the arrays")
            inspection = inspect_checkpoint(checkpoint, values=values, allow_missing=allow_missing or ())
        show(draw_inspection(inspection), inspection.to_dict(), json_file)
