"""Options that several commands have, and parsers of their texts; a parser gives None for an option not given."""

from __future__ import annotations

import glob
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixer_equiv.errors import ConfigError
from mixer_equiv.shown_paths import without_private_parts

if TYPE_CHECKING:
    from mixer_equiv.layouts import Conventions


def complete_layouts(incomplete: str) -> list[str]:
    """Names and aliases of layouts that begin so, for the shell."""
    from mixer_equiv.layouts import LAYOUTS

    names = [name for layout in LAYOUTS.values() for name in (layout.name, *layout.aliases)]
    return [name for name in names if name.startswith(incomplete)]


def complete_models(incomplete: str) -> list[str]:
    """Names of our models that begin so, and files; where there is no such name, the shell itself completes paths."""
    from mixer_equiv.equivalence.sides.runners import RUNNERS

    names = [name for name in (*RUNNERS, "timm:") if name.startswith(incomplete)]
    files = sorted(path.name for path in Path().glob(f"{glob.escape(incomplete)}*")) if names else []
    return [*names, *(file for file in files if not file.startswith("."))]


AllowMissing = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-missing", metavar="GLOB", help="Parameters that may be absent, such as 'head/*'. Repeatable."
    ),
]
LayoutOption = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="LAYOUT", help="Layout of the checkpoint; detected.", autocompletion=complete_layouts
    ),
]
ImageSizeOption = Annotated[
    str | None, typer.Option("--image-size", metavar="HxW", help="Image size in pixels; a square grid if not given.")
]
ImageOption = Annotated[
    str | None, typer.Option("--image", metavar="CxHxW", help="Image channels and size, in pixels.")
]
PrefixOption = Annotated[
    str | None, typer.Option("--prefix", metavar="PREFIX", help="Which of several sets of weights to read: ema.")
]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="GLOB", help="Arrays to leave out, such as 'text.*'. Repeatable."),
]
RenameOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rename",
        metavar="OLD=NEW",
        help="Parts of names to read as others: classifier=head. Nothing for NEW takes them out. Repeatable.",
    ),
]
StepOption = Annotated[
    int | None, typer.Option("--step", metavar="N", help="Which step of a folder of several to read; the last one.")
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
JsonOption = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write JSON to FILE, or '-'.")]


def command_line(context: typer.Context) -> str:
    """The command line of a call, with options by their longest names, and without private parts of paths."""
    words = ["mixer-equiv", str(context.info_name)]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if value != parameter.get_default(context) and value is not None:
            words += _words(parameter, value)
    return " ".join(shlex.quote(without_private_parts(word)) for word in words)


def _words(parameter: Any, value: Any) -> list[str]:
    """An argument or option as it is typed."""
    if parameter.param_type_name == "argument":
        return [str(value)]
    name = max(parameter.opts, key=len)
    if isinstance(value, bool):
        return [name if value else parameter.secondary_opts[0]]
    values = value if isinstance(value, list | tuple) else [value]
    return [word for each in values for word in (name, str(each))]


def register_layouts(files: Sequence[Path] | None) -> None:
    """Make the layouts in `files` known, each once."""
    from mixer_equiv.layouts import register_layout

    for file in {file.resolve(): file for file in files or ()}.values():
        register_layout(file)


def parse_pairs(option: str, texts: Sequence[str] | None, example: str) -> dict[str, str]:
    """The pairs OLD=NEW of an option that is repeated."""
    pairs = [text.partition("=") for text in texts or ()]
    if not all(equals for _, equals, _ in pairs):
        raise ConfigError(f"{option} is {texts}; it must be OLD=NEW, such as {example}")
    olds = [old for old, _, _ in pairs]
    twice = sorted({old for old in olds if olds.count(old) > 1})
    if twice:
        raise ConfigError(f"{option} is given twice for {', '.join(map(repr, twice))}; give each OLD once")
    return {old: new for old, _, new in pairs}


def parse_renamed(texts: Sequence[str] | None) -> dict[str, str]:
    """The pairs of `--rename`, such as classifier=head."""
    return parse_pairs("--rename", texts, "'classifier=head'")


def parse_kwargs(text: str | None) -> dict[str, Any] | None:
    """The object that `--kwargs` gives in JSON."""
    if text is None:
        return None
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--kwargs is not JSON ({error}): {text}") from error
    except RecursionError as error:
        raise ConfigError("--kwargs is nested too deeply") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"--kwargs is {text}; it must be a JSON object, such as '{{\"num_blocks\": 2}}'")
    return fields


def parse_conventions(text: str | None) -> Conventions | None:
    """The conventions of `--trained-with`, such as gelu_tanh,1e-6."""
    from mixer_equiv.layouts import Conventions

    if text is None:
        return None
    activation, _, eps = text.partition(",")
    try:
        return Conventions(activation, float(eps or 1e-6))
    except ValueError as error:
        raise ConfigError(
            f"--trained-with is {text!r}; it must be an activation and perhaps an eps, such as gelu_tanh,1e-6 ({error})"
        ) from error


_COUNT = r"(\d{1,9})"


def parse_image(text: str | None) -> tuple[int, int, int] | None:
    """The channels, height and width of `--image`, such as 3x224x224."""
    if text is None:
        return None
    match = re.fullmatch(f"{_COUNT}x{_COUNT}x{_COUNT}", text)
    if not match:
        raise ConfigError(f"--image is {text!r}; it must be channels, height and width, such as 3x224x224")
    return int(match[1]), int(match[2]), int(match[3])


def parse_image_size(text: str | None) -> tuple[int, int] | None:
    """The height and width of `--image-size`, such as 224x224, or 224 for both."""
    if text is None:
        return None
    match = re.fullmatch(f"{_COUNT}(?:x{_COUNT})?", text)
    if not match:
        raise ConfigError(f"--image-size is {text!r}; it must be height and width in pixels, such as 224x224")
    return int(match[1]), int(match[2] or match[1])
