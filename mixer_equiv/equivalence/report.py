"""The result of `verify` as plain data, as JSON and in words. Start at `Report`.

Knows nothing of how it is drawn: `text` sets the words as plain text, `render.report` and `render.html` draw them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

from mixer_equiv.checkpoints.provenance import Provenance
from mixer_equiv.equivalence.plain import PlainDataError, from_plain, to_plain
from mixer_equiv.equivalence.text import Column, Line, Paragraph, TextTable, list_lines, table_lines, wrap
from mixer_equiv.errors import ReportError, summarize

# The version of a report as JSON; to be raised when readers of the version before would misunderstand the fields.
FORMAT_VERSION = 1

# The verdicts on two sides, from the same function to no comparison at all.
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
    """One reason why two sides differ.

    `name` is that of the fault in the catalogue; `count` says in how many places it was found, `evidence` where
    and how it shows, and `places` the lines of the model's own code that do it, with its modules.
    """

    name: str
    kind: Literal["code", "constraint", "port"]
    expected: str
    found: str
    count: str
    evidence: str
    places: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The evidence, and the places in the model's own code."""
        return ", ".join(filter(None, (self.evidence, *self.places)))


@dataclasses.dataclass(frozen=True)
class SideReport:
    """One of the two sides, as a report shows it.

    `round_trip` tells whether its weights came back bit for bit from the other side's layout, None where no weights
    were given. `rms_error` is the relative RMS error of the logits in the report's `dtype` against those in float64,
    None for the NumPy reference, which runs in float64 alone. `accuracy` is a fraction, None without labels.
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
    same in float32, where it is over the `threshold`. `by_parameter` has the residual of each. `nonlinear`
    are a model's names of parameters whose gradients do not grow with the loss, as where they are clipped.
    """

    worst: str
    residual: float
    threshold: float
    count: int
    num_images: int
    float32: float | None = None
    by_parameter: Mapping[str, float] = dataclasses.field(default_factory=dict)
    nonlinear: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Training:
    """How far the parameters of the two sides are apart after training steps from the same weights, in float64.

    `residual` is the largest over the `count` parameters on which an output depends, at `worst`: the
    2-norm of the difference over that of the parameter.
    """

    optimiser: str
    steps: int
    worst: str
    residual: float
    threshold: float
    count: int
    num_images: int

    @property
    def label(self) -> str:
        return f"{self.steps} step{'s'[: self.steps > 1]} of {self.optimiser}"


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `verify`.

    `residual` is the distance between the two sides' logits in float64, relative in the 2-norm, None where nothing
    could be run. `decision` is the largest of it and of each side's distance to the NumPy reference; `threshold` is
    the most that it may be.
    `mapping` goes from canonical names to those of the side `mapping_of`: the one whose names were searched for, else
    side b; `shapes` are those of its arrays, by canonical names. `unobservable` are parameters on which no output
    depends. `dtype` is the low precision whose errors are shown. `warnings` are sentences; `notices` are the ids of
    those that are in the catalogue of faults. `visible` has known faults, and how far each, planted in one place, would
    have moved these outputs. `names` are those of the models and checkpoints that it is about, also where nothing was
    run; `provenance` says what made it.
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
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    unobservable: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
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
    names: tuple[str, ...] = ()
    provenance: Provenance | None = None

    @property
    def equivalent(self) -> bool:
        """Whether the verdict is "equivalent"."""
        return self.verdict == "equivalent"

    def is_equivalent_under(self, causes: Collection[str]) -> bool:
        """Whether the two are the same function once `causes`, such as "activation", are changed where they differ."""
        is_explained = self.verdict == "equivalent_under" and {cause.name for cause in self.causes} <= set(causes)
        return self.equivalent or is_explained

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts; a residual that is no number is None."""
        return {"format_version": FORMAT_VERSION, **to_plain(self)}

    def to_json(self) -> str:
        """The report as JSON text, as `to_dict` has it."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Any) -> Report:
        """A report from its plain data, the inverse of `to_dict`.

        A residual that was no number is NaN, or None where a report may do without. Raises `ReportError`, which lists
        all problems, for what `to_dict` cannot have written, and for another version of the format.
        """
        if not isinstance(values, Mapping) or not {"verdict", "threshold"} <= values.keys():
            raise ReportError("it is no report of verify; write one by: mixer-equiv verify ... --json FILE")
        _check_version(values.get("format_version"))
        try:
            report = from_plain(cls, {name: value for name, value in values.items() if name != "format_version"})
        except PlainDataError as error:
            raise ReportError(f"it is a damaged report: {summarize(error.problems, separator='; ')}") from error
        contradictions = _contradictions(report)
        if contradictions:
            raise ReportError(f"it is a damaged report: {'; '.join(contradictions)}")
        return report

    @classmethod
    def from_json(cls, text: str) -> Report:
        """A report from JSON text, the inverse of `to_json`. Raises `ReportError`, as `from_dict` does."""
        try:
            values = json.loads(text)
            json.dumps(values, ensure_ascii=False).encode()  # which half a surrogate pair fails
        except (ValueError, RecursionError) as error:
            raise ReportError(f"it is not JSON of Unicode text ({error})") from error
        return cls.from_dict(values)

    def made_by_command(self, command: str) -> Report:
        """The same report, with the command line that made it in place of the call in Python."""
        if self.provenance is None:
            return self
        return dataclasses.replace(self, provenance=dataclasses.replace(self.provenance, call=command))

    def summary(self) -> str:
        """The verdict with its residual, its causes or else first reason, and how many warnings, in one line."""
        parts = [f"fp64 residual {number(self.residual)} (threshold {self.threshold:g})"] * (self.residual is not None)
        parts += [", ".join(dict.fromkeys(cause.name for cause in self.causes)) or "".join(self.reasons[:1])]
        count = len(self.warnings)
        parts += [f"{count} warning{'s'[: count > 1]}"] * (count > 0)
        return " ".join(f"{self.verdict}: {'; '.join(filter(None, parts))}".split())

    def __str__(self) -> str:
        table = stage_table(self)
        lines = table_lines(table) if table else []
        return "\n".join([*lines, *wrap(headline(self)), *list_lines([*details(self), *made_by(self)])])


def _check_version(version: Any) -> None:
    if version is None:
        raise ReportError("it has no format_version, as reports of versions before the first release; verify anew")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ReportError(
            f"it is a report of format version {version!r}, and this mixer_equiv reads version {FORMAT_VERSION}; "
            "read it with the mixer_equiv that wrote it, or verify anew"
        )


def _contradictions(report: Report) -> list[str]:
    """Say which fields of a report that was read cannot stand together, since what draws one relies on them."""
    made, accuracies = report.provenance, [side.accuracy is None for side in report.sides]
    wrong = {
        f"sides are {len(report.sides)}, not 2 or none": len(report.sides) not in (0, 2),
        "there are stages and no sides": bool(report.stages) and not report.sides,
        "one side alone has an accuracy": len(set(accuracies)) > 1,
        f"dtype is {report.dtype!r}, not {', '.join(_SHORT)}": report.dtype not in _SHORT,
        "provenance.versions has no mixer_equiv": made is not None and "mixer_equiv" not in made.versions,
    }
    return [problem for problem, is_so in wrong.items() if is_so]


# The report in words, for the plain text above and for `render`.

HEADLINES: Mapping[Verdict, str] = {
    "equivalent": "EQUIVALENT",
    "equivalent_under": "NOT EQUIVALENT, explained (equivalent_under)",
    "different": "DIFFERENT",
    "inexpressible": "INEXPRESSIBLE",
    "nothing_compared": "NOTHING COMPARED",
}


def stage_table(report: Report) -> TextTable | None:
    """The table of the two sides, their residuals stage by stage, and their errors; None where nothing was run."""
    if not report.stages:
        return None
    a, b = report.sides
    columns = (
        Column(),
        Column(a.name, is_right=True, is_wrapped=True),
        Column(b.name, is_right=True, is_wrapped=True),
        Column("between them", is_right=True, is_wrapped=True),
    )
    return TextTable(columns, (_side_lines(report), _stage_lines(report), _error_lines(report)))


def _side_lines(report: Report) -> tuple[Line, ...]:
    a, b = report.sides
    lines = [
        _line("program", a.program, b.program),
        _line("parameters", f"{a.num_parameters:,}", f"{b.num_parameters:,}"),
        _line("weights", a.weights, b.weights, report.weights),
    ]
    if a.round_trip is not None:
        lines.append(_line("round trip", a.round_trip_path, b.round_trip_path))
        lines.append(_line("", _bit_identical(a.round_trip), _bit_identical(b.round_trip)))
    return tuple(lines)


def _stage_lines(report: Report) -> tuple[Line, ...]:
    lines = [_line("fp64 residual", "to NumPy", "to NumPy", is_bold=True)]
    for stage in report.stages:
        residuals = map(number, (stage.residual_a, stage.residual_b, stage.residual))
        lines.append(_line(f"  {readable(stage.name)}", *residuals, is_bold=stage is report.stages[-1]))
    return tuple(lines)


def _error_lines(report: Report) -> tuple[Line, ...]:
    a, b = report.sides
    errors = a.rms_error, b.rms_error
    lines = [_line(f"{_SHORT[report.dtype]} error (RMS)", *map(number, errors), _ratio(*errors))]
    if a.accuracy is not None and b.accuracy is not None:
        lines.append(_line("accuracy", f"{a.accuracy:.2%}", f"{b.accuracy:.2%}"))
    if report.gradients is not None:
        lines.append(_line("gradients, fp64", "", "", number(report.gradients.residual)))
    for trained in report.training:
        lines.append(_line(trained.label, "", "", number(trained.residual)))
    if report.prediction_flips is not None:
        lines.append(_line("prediction flips", "", "", f"{report.prediction_flips} of {report.num_images}"))
    return tuple(lines)


def _line(*cells: str, is_bold: bool = False) -> Line:
    """A line whose last cells may be left out."""
    return Line((*cells, *[""] * (4 - len(cells))), is_bold)


_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def headline(report: Report) -> str:
    """The verdict, and the residual on which it rests."""
    if report.residual is None:
        return ": ".join(filter(None, (HEADLINES[report.verdict], " and ".join(report.names))))
    return (
        f"{HEADLINES[report.verdict]}: fp64 residual {number(report.residual)} (threshold {report.threshold:g}), "
        f"max |logit difference| {number(report.max_difference)}, {report.images}"
    )


def details(report: Report) -> list[Paragraph]:
    """Reasons and causes, the limits of what was compared, and warnings."""
    paragraphs = [Paragraph("reason", reason) for reason in report.reasons]
    if report.first_divergence:
        paragraphs.append(Paragraph("first", f"over the threshold from {readable(report.first_divergence)} on"))
    for cause in report.causes:
        where = f"; {cause.where}" if cause.where else ""
        paragraphs.append(
            Paragraph(cause.name, f"found {cause.found}, expected {cause.expected}: {cause.count}{where}")
        )
    if report.residual_without_causes is not None:
        after = number(report.residual_without_causes)
        changed = "this" if len(report.causes) == 1 else "these"
        paragraphs.append(Paragraph("", f"with {changed} changed it is the same function: residual {after}"))
    if report.visible:
        paragraphs.append(Paragraph("inputs", shown_by_inputs(report.visible, report.threshold)))
    if report.unobservable:
        paragraphs.append(Paragraph("unobservable", unobservable_in_words(report)))
    return [*paragraphs, *(Paragraph("warning", warning) for warning in report.warnings)]


def made_by(report: Report) -> list[Paragraph]:
    """Say which call, versions and files made the report, if that is known."""
    return [Paragraph("made by", str(report.provenance))] if report.provenance else []


def shown_by_inputs(visible: Mapping[str, float], threshold: float) -> str:
    """Say which known faults these outputs would not have shown, or else which one moves them least."""
    unseen = [fault for fault, moved in visible.items() if not moved > threshold]
    count = f"{len(visible) - len(unseen)} of {len(visible)}" if unseen else f"each of {len(visible)}"
    shown = (
        f"these weights and images would show {count} known mistakes, such as a missing LayerNorm: one at a time was "
        "made in a Mixer that runs on them"
    )
    if unseen:
        return f"{shown}. Its outputs stayed the same with: {', '.join(unseen)}"
    least = min(visible, key=lambda fault: visible[fault])
    return f"{shown}, and its outputs moved. They moved least, by {number(visible[least])}, for {least}"


def unobservable_in_words(report: Report) -> str:
    """Say why some parameters change no output, and whether they were compared nevertheless."""
    count = len(report.unobservable)
    is_covered = any(side.round_trip is not None for side in report.sides)
    covered = "were compared as weights alone" if is_covered else "were not compared"
    return (
        f"{count} array{'s'[: count > 1]} change no output, whatever is in them, since the next LayerNorm takes away "
        f"what they add: {summarize(report.unobservable, 1)}. They {covered}"
    )


def readable(stage: str) -> str:
    """The name of a stage or cause in words."""
    return stage.replace("MixerBlock_", "block ").replace("/", " ").replace("_", " ")


def _bit_identical(same: bool | None) -> str:
    return "bit-identical" if same else "NOT bit-identical"


def number(value: float | None) -> str:
    """A residual in words; "-" where there is none."""
    if value is None or math.isnan(value):
        return "-"
    return "0" if value == 0 else f"{value:.1e}"


def _ratio(a: float | None, b: float | None) -> str:
    return f"ratio {a / b:.2f}" if a and b and math.isfinite(a) and math.isfinite(b) else ""
