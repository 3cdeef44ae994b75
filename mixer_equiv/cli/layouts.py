"""`mixer-equiv layouts`: the layouts that are known, or the one of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixer_equiv.cli.examples import PLACES
from mixer_equiv.cli.exit_status import report_errors
from mixer_equiv.cli.options import (
    ImageOption,
    JsonOption,
    LayoutFileOption,
    parse_image,
    parse_kwargs,
    register_layouts,
)
from mixer_equiv.cli.output import show, write
from mixer_equiv.cli.progress import prints_on_stderr, progress_bar
from mixer_equiv.errors import ConfigError, LayoutError

if TYPE_CHECKING:
    from mixer_equiv.layouts import Layout


def layouts(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A layout to print, or a model whose layout to find; ways to name it are below.",
        ),
    ] = None,
    kwargs: Annotated[str | None, typer.Option(metavar="JSON", help="What the model is made with.")] = None,
    image: ImageOption = None,
    layout_files: LayoutFileOption = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a table of Markdown.")] = False,
    json_file: JsonOption = None,
) -> None:
    """List the layouts: what their code computes, what weights they can hold, and a name in each.

    With the name of a layout: print its table as TOML, to begin one of your own with. With a model: find the layout
    of its parameters by running it, and print that, for --layout.
    """
    from mixer_equiv.layouts import LAYOUTS
    from mixer_equiv.render.layouts import DrawnLayouts, describe_layout, layouts_markdown

    with report_errors():
        if markdown and json_file is not None:
            raise ConfigError("--markdown and --json are both given; the table is written in one form")
        if model is not None:
            if markdown or json_file is not None:
                raise ConfigError("one layout is written as TOML, without --markdown and --json")
            register_layouts(layout_files)
            write(_layout_of(model, kwargs, image).to_toml())
            return
        if kwargs is not None or image is not None:
            raise ConfigError("--kwargs and --image are for the layout of a model, and none is given")
        register_layouts(layout_files)
        rows = [describe_layout(layout) for layout in LAYOUTS.values()]
        if markdown:
            write(layouts_markdown(rows))
        else:
            show(DrawnLayouts(rows), {"layouts": rows}, json_file)


def _layout_of(model: str, kwargs: str | None, image: str | None) -> Layout:
    """The layout of this name, or else that of the model at a place."""
    from mixer_equiv.equivalence.sides.locate import is_source
    from mixer_equiv.layouts import get_layout

    if is_source(model):
        return _layout_at(model, parse_kwargs(kwargs) or {}, parse_image(image))
    if kwargs is not None or image is not None:
        raise ConfigError(
            f"--kwargs and --image are for the layout of a model, and {model} is no place of one: {', '.join(PLACES)}"
        )
    try:
        return get_layout(model)
    except LayoutError as error:
        raise ConfigError(f"{error}; a model is named by its place: {', '.join(PLACES)}") from error


def _layout_at(model: str, kwargs: Mapping[str, Any], image: tuple[int, int, int] | None) -> Layout:
    """The layout of the model at a place, called with `kwargs`."""
    from mixer_equiv.equivalence.porting import layout_of
    from mixer_equiv.equivalence.sides.lazy_modules import initialize
    from mixer_equiv.equivalence.sides.locate import model_at, object_at

    if model.endswith(".py"):
        object_at(model)  # which says what there is to name in it
    if image is None:
        raise ConfigError("the layout of a model is found by running it: give --image, such as 3x224x224")
    with progress_bar(1) as step, prints_on_stderr():
        step("running the model")
        located = model_at(model, kwargs)
        if located.is_new:
            initialize(located.model, image)
        return layout_of(located.model, image)
