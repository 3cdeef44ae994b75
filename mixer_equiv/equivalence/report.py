"""`Report`: what a verification found, as an object, as text and as JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

Verdict = Literal["equivalent", "equivalent_under", "different", "inexpressible", "nothing_compared"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Float64 residuals, relative in the 2-norm, at one stage of the network.

    `residual` is between the two sides; the others are each side's against the NumPy reference.
    """

    name: str
    residual: float
    residual_a: float
    residual_b: float


@dataclasses.dataclass(frozen=True)
class Cause:
    """Why two sides differ: in what, which was expected, which was found, how often, and how it shows."""

    name: str
    kind: Literal["code", "constraint", "port", "notice"]
    expected: str
    found: str
    count: str
    evidence: str


@dataclasses.dataclass(frozen=True)
class SideReport:
    """One of the two that were compared.

    `rms_error` is the relative RMS error of the logits in the report's `dtype` against float64 ones, None
    for the NumPy reference, which has no such;
    `round_trip` tells whether its weights came back bit for bit from the other side's layout, and
    is None where no weights were given; `accuracy` is a fraction, None without labels.
    """

    name: str
    program: str
    num_parameters: int
    weights: str
    round_trip: bool | None
    round_trip_path: str
    rms_error: float | None
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class Gradients:
    """How far the gradients of the two sides are apart, in float64.

    `residual` is the largest over the `count` parameters, at `worst`: the 2-norm of the difference
    over that of the gradient, or over a thousandth of all gradients if that is more. `float32` is the
    same in float32, where it is over the `threshold`.
    """

    worst: str
    residual: float
    threshold: float
    count: int
    num_images: int
    float32: float | None = None


@dataclasses.dataclass(frozen=True)
class Training:
    """How far the parameters of the two sides are apart after training steps from the same weights, in float64.

    `residual` is the largest over the `count` parameters that an output can see, at `worst`: the
    2-norm of the difference over that of the parameter.
    """

    optimiser: str
    steps: int
    worst: str
    residual: float
    threshold: float
    count: int
    num_images: int


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of `verify`.

    `residual` is the float64 one of the logits between the sides, relative in the 2-norm, None
    where nothing could be run; `decision` is the largest among the sides and the NumPy reference,
    and it is what `threshold` is held against. `mapping` goes from canonical names to those of the
    side called `mapping_of`: the one whose names were searched for, else side b. `unobservable` are
    parameters that no output can show. `dtype` is the low precision whose errors are shown.
    `visible` has known faults and how far each, planted in one place, would have moved these outputs.
    """

    verdict: Verdict
    threshold: float
    residual: float | None = None
    decision: float | None = None
    stages: tuple[Stage, ...] = ()
    first_divergence: str | None = None
    causes: tuple[Cause, ...] = ()
    residual_without_causes: float | None = None
    reasons: tuple[str, ...] = ()
    mapping: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mapping_of: str = ""
    unobservable: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sides: tuple[SideReport, ...] = ()
    weights: str = ""
    images: str = ""
    num_images: int = 0
    dtype: str = "float32"
    max_difference: float | None = None
    gradients: Gradients | None = None
    training: tuple[Training, ...] = ()
    visible: Mapping[str, float] = dataclasses.field(default_factory=dict)
    prediction_flips: int | None = None

    @property
    def equivalent(self) -> bool:
        return self.verdict == "equivalent"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts; a residual that is no number is None."""
        return _plain(dataclasses.asdict(self))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        stream = io.StringIO()
        Console(file=stream, width=110, no_color=True, highlight=False).print(self)
        return "\n".join(line.rstrip() for line in stream.getvalue().strip("\n").splitlines())

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [_table(self)] if self.stages else []
        return Group(*parts, _headline(self), _details(self))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _table(report: Report) -> Table:
    a, b = report.sides
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column(a.name, justify="right", overflow="fold")
    table.add_column(b.name, justify="right", overflow="fold")
    table.add_column("between them", justify="right", no_wrap=True)
    table.add_row("program", a.program, b.program, "")
    table.add_row("parameters", f"{a.num_parameters:,}", f"{b.num_parameters:,}", "")
    table.add_row("weights", a.weights, b.weights, report.weights)
    if a.round_trip is not None:
        table.add_row("round trip", a.round_trip_path, b.round_trip_path, "")
        table.add_row("", _bit_identical(a.round_trip), _bit_identical(b.round_trip), "")
    table.add_section()
    table.add_row("fp64 residual", "to NumPy", "to NumPy", "", style="bold")
    for stage in report.stages:
        style = "bold" if stage is report.stages[-1] else ""
        table.add_row(f"  {readable(stage.name)}", *map(number, _residuals(stage)), style=style)
    table.add_section()
    errors = a.rms_error, b.rms_error
    table.add_row(f"{_SHORT[report.dtype]} error (RMS)", *map(number, errors), _ratio(*errors))
    if a.accuracy is not None and b.accuracy is not None:
        table.add_row("accuracy", f"{a.accuracy:.2%}", f"{b.accuracy:.2%}", "")
    if report.gradients is not None:
        table.add_row("gradients, fp64", "", "", number(report.gradients.residual))
    for trained in report.training:
        label = f"{trained.steps} step{'s'[: trained.steps > 1]} of {trained.optimiser}"
        table.add_row(label, "", "", number(trained.residual))
    if report.prediction_flips is not None:
        table.add_row("prediction flips", "", "", f"{report.prediction_flips} of {report.num_images}")
    return table


_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def _residuals(stage: Stage) -> tuple[float, float, float]:
    return stage.residual_a, stage.residual_b, stage.residual


HEADLINES = {
    "equivalent": ("EQUIVALENT", "bold green"),
    "equivalent_under": ("NOT EQUIVALENT, explained", "bold yellow"),
    "different": ("DIFFERENT", "bold red"),
    "inexpressible": ("INEXPRESSIBLE", "bold red"),
    "nothing_compared": ("NOTHING COMPARED", "bold red"),
}


def _headline(report: Report) -> Text:
    text = Text(*HEADLINES[report.verdict])
    if report.residual is not None:
        text.append(
            f": fp64 residual {number(report.residual)} (threshold {report.threshold:g}), "
            f"max |logit difference| {number(report.max_difference)}, {report.images}",
            style="not bold default",
        )
    return text


def _details(report: Report) -> Table:
    lines: list[tuple[str, str]] = [("reason", reason) for reason in report.reasons]
    if report.first_divergence:
        lines.append(("first", f"over the threshold from {readable(report.first_divergence)} on"))
    for cause in report.causes:
        evidence = f"; {cause.evidence}" if cause.evidence else ""
        lines.append((cause.name, f"found {cause.found}, expected {cause.expected}: {cause.count}{evidence}"))
    if report.residual_without_causes is not None:
        after = number(report.residual_without_causes)
        changed = "this" if len(report.causes) == 1 else "these"
        lines.append(("", f"with {changed} changed it is the same function: residual {after}"))
    if report.visible:
        lines.append(("inputs", shown_by_inputs(report.visible, report.threshold)))
    if report.unobservable:
        count, first = len(report.unobservable), report.unobservable[0]
        covered = "compared as weights alone" if report.sides[0].round_trip is not None else "not compared here"
        lines.append(("unobservable", f"{count} arrays that no output can show, {covered}: {first}, ..."))
    lines += [("warning", warning) for warning in report.warnings]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, line in lines:
        table.add_row(f"  {label}", line)
    return table


def shown_by_inputs(visible: Mapping[str, float], threshold: float) -> str:
    """In words, which of the known faults these outputs could not have shown, or the one that moves them least."""
    unseen = [fault for fault, moved in visible.items() if not moved > threshold]
    of_all = f"{len(visible) - len(unseen)} of {len(visible)} known faults, each planted in one place"
    if unseen:
        return f"these weights and images would have shown {of_all}, and not: {', '.join(unseen)}"
    least = min(visible, key=lambda fault: visible[fault])
    return f"would have shown {of_all}; {least} moves the output least, by {number(visible[least])}"


def readable(stage: str) -> str:
    """The name of a stage or cause in words."""
    return stage.replace("MixerBlock_", "block ").replace("/", " ").replace("_", " ")


def _bit_identical(same: bool | None) -> str:
    return "bit-identical" if same else "NOT bit-identical"


def number(value: float | None) -> str:
    """A residual, or "-" if there is none."""
    if value is None or math.isnan(value):
        return "-"
    return "0" if value == 0 else f"{value:.1e}"


def _ratio(a: float | None, b: float | None) -> str:
    return f"ratio {a / b:.2f}" if a and b and math.isfinite(a) and math.isfinite(b) else ""
