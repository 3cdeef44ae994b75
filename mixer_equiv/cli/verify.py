"""`mixer-equiv verify`: whether two Mixers are the same function, and where they part if they are not."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixer_equiv.cli.exit_status import EXIT_STATUS, report_errors
from mixer_equiv.cli.options import (
    AllowMissing,
    IgnoreOption,
    ImageOption,
    JsonOption,
    LayoutFileOption,
    RenameOption,
    StepOption,
    command_line,
    complete_layouts,
    complete_models,
    parse_image,
    parse_kwargs,
    parse_renamed,
    register_layouts,
)
from mixer_equiv.cli.output import check_outputs, show, warn
from mixer_equiv.cli.progress import prints_on_stderr, progress_bar
from mixer_equiv.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from mixer_equiv.equivalence.policy import Policy
    from mixer_equiv.equivalence.report import Report

# Names of thresholds for --rtol, and the fields of `Policy`.
_THRESHOLDS = {"logits": "residual", "gradients": "gradients", "sgd": "sgd", "adamw": "adamw"}
# Options of reading A, and the parameters of `load`.
_READING = {"--from": "layout", "--prefix": "prefix", "--ignore": "ignore", "--rename": "rename", "--step": "step"}
_WEIGHTS = ("given", "random")
_STEPS = 9  # of most comparisons


def verify(
    context: typer.Context,
    a: Annotated[
        str | None,
        typer.Argument(
            metavar="A", help="A checkpoint or a model; ways to name it are below.", autocompletion=complete_models
        ),
    ] = None,
    b: Annotated[
        str | None,
        typer.Argument(
            metavar="B",
            help="As A. If not given: of a checkpoint its port, of a model the official one (of torch, in NumPy).",
            autocompletion=complete_models,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS", help="random, given or a FILE for both; given for checkpoints, random for models."
        ),
    ] = None,
    kwargs: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="What the model is made with, or MixerConfig fields for ours: '{\"num_blocks\": 2}'.",
        ),
    ] = None,
    image: ImageOption = None,
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
            metavar="[NAME:]VALUE",
            help=f"Threshold of {', '.join(_THRESHOLDS)}; of logits without NAME. Repeatable.",
        ),
    ] = None,
    under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CAUSE",
            help="A cause that may differ, such as activation: exit status 0 if nothing else does. Repeatable.",
        ),
    ] = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Compute nothing more once the two are seen to differ.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of random weights and images.")] = 0,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="LAYOUT", help="Layout of A; detected.", autocompletion=complete_layouts),
    ] = None,
    layout_files: LayoutFileOption = None,
    prefix: Annotated[
        str | None, typer.Option("--prefix", metavar="PREFIX", help="Which of several sets of weights in A: ema.")
    ] = None,
    ignore: IgnoreOption = None,
    rename: RenameOption = None,
    step: StepOption = None,
    allow_missing: AllowMissing = None,
    json_file: JsonOption = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report as a page of HTML, too.")
    ] = None,
    markdown_file: Annotated[
        str | None,
        typer.Option("--markdown", metavar="FILE", help="Write Markdown for a pull request to FILE, or '-'."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print one line: the verdict and why.")] = False,
) -> None:
    """Tell whether two Mixers are the same function, and where they part if they are not.

    With no argument: a Mixer trained in Flax on handwritten digits, and its port to PyTorch.
    """
    with report_errors():
        outputs = {"--json": json_file, "--html": html_file, "--markdown": markdown_file}
        check_outputs(outputs, is_quiet=quiet)
        _check_weights(weights)
        allowed = _allowed(under)
        register_layouts(layout_files)
        report = _verify(
            a,
            b,
            reading={
                "--from": from_,
                "--prefix": prefix,
                "--ignore": ignore,
                "--rename": parse_renamed(rename),
                "--step": step,
            },
            weights=weights,
            kwargs=parse_kwargs(kwargs),
            image=parse_image(image),
            gradients=gradients,
            train_steps=train_steps,
            dtype=dtype,
            device=device,
            policy=_parse_thresholds(rtol),
            fail_fast=fail_fast,
            seed=seed,
            allow_missing=allow_missing or (),
        )
        _show(report.made_by_command(command_line(context)), json_file, html_file, markdown_file, quiet)
        is_allowed = report.is_equivalent_under(allowed)
        if is_allowed and not report.equivalent:
            warn(f"exit status 0: {', '.join(sorted({cause.name for cause in report.causes}))} may differ (--under)")
    raise typer.Exit(0 if is_allowed else EXIT_STATUS[report.verdict])


def _show(report: Report, json_file: str | None, html: Path | None, markdown: str | None, quiet: bool) -> None:
    """Print the report, and write it in the forms that are asked for."""
    from mixer_equiv.render import to_html, to_markdown
    from mixer_equiv.render.report import draw_report

    others = {"--html": (html, lambda: to_html(report)), "--markdown": (markdown, lambda: to_markdown(report))}
    show(report.summary() if quiet else draw_report(report), report.to_dict(), json_file, others)


def _allowed(under: list[str] | None) -> Collection[str]:
    """The causes of `--under`, each one that leaves the same function once it is changed."""
    if not under:
        return ()
    from mixer_equiv.equivalence.faults.catalogue import changeable

    return changeable(under)


def _check_weights(weights: str | None) -> None:
    """Refuse a word that is no file and nearly one of those that say where weights are from."""
    if weights is not None and not os.path.exists(weights) and weights not in _WEIGHTS:
        near = did_you_mean(weights, _WEIGHTS)
        if near:
            raise ConfigError(f"--weights is {weights!r}, which is no file{near}")


def _verify(a: str | None, b: str | None, *, reading: dict[str, Any], **options: Any) -> Report:
    """Verify `a` and `b`, or the digits if there is no `a`. `reading` has options of reading A as a checkpoint."""
    from mixer_equiv.checkpoints.io import load
    from mixer_equiv.equivalence.verify import verify as verify_pair

    source: Any = a
    told = {option: value for option, value in reading.items() if value not in (None, [], {})}
    if told:
        if a is None or not Path(a).exists():
            verb = "needs" if len(told) == 1 else "need"
            raise ConfigError(f"{' and '.join(told)} {verb} a checkpoint, and A is {a or 'not given'}")
        source = load(a, **{_READING[option]: value for option, value in told.items()})
    if a is None:
        from mixer_equiv.data import digits

        source = str(digits.CHECKPOINT)
        options["images"], options["labels"] = digits.held_out()
    with progress_bar(_STEPS) as step, prints_on_stderr():
        return verify_pair(source, b, on_step=step, **options)


def _parse_thresholds(texts: list[str] | None) -> Policy:
    """The thresholds of `--rtol`, such as gradients:1e-9, or 1e-9 for the logits'."""
    from mixer_equiv.equivalence.policy import Policy

    thresholds = {}
    for text in texts or ():
        name, colon, value = text.rpartition(":")
        name = name if colon else "logits"
        try:
            threshold = float(value)
        except ValueError:
            threshold = math.nan
        if name not in _THRESHOLDS or not threshold >= 0:
            names = f"{', '.join(_THRESHOLDS)}{did_you_mean(name, _THRESHOLDS) * (name not in _THRESHOLDS)}"
            raise ConfigError(f"--rtol is {text!r}; it must be NAME:VALUE, such as logits:1e-9, of {names}")
        thresholds[_THRESHOLDS[name]] = threshold
    return Policy(**thresholds)
