"""Which Mixer a traced program is: its sizes, its conventions, its layout, and where it is none."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.faults import recognised
from mixer_equiv.equivalence.fitting import Use, arranged, in_order
from mixer_equiv.equivalence.matching import Deviation, Match, match
from mixer_equiv.equivalence.trace import Trace, Value
from mixer_equiv.layouts import ABSENT, LINEN, OFFICIAL, Conventions, Layout, Row
from mixer_equiv.models.reference import MlpMixer
from mixer_equiv.operations import Parameter, Program, Step

DEEPEST = 96  # blocks of the deepest Mixer that is looked for

_ANY_SIZE: dict[str, Any] = {
    "patch_size": 1,
    "image_size": 1,
    "hidden_dim": 1,
    "tokens_mlp_dim": 1,
    "channels_mlp_dim": 1,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Tap:
    """Where a stage of the official model is among a trace's values, and its elements in the stage's order."""

    number: int
    order: np.ndarray
    shape: tuple[int, ...]

    def of(self, array: np.ndarray) -> np.ndarray:
        """The stage, from the value that another run of the same program has there."""
        return array.reshape(-1)[self.order].reshape(self.shape)


def _by_rows(grid: tuple[int, int]) -> np.ndarray:
    """Where the tokens of a grid, one row after another, are among the same tokens one column after another."""
    rows, columns = grid
    return np.arange(rows * columns).reshape(columns, rows).T.reshape(-1)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a run has an official parameter: the number of a value, whose axes follow in `order`.

    None for a parameter that the code does not have. `then` are kernel and bias of a second layer;
    `grid` is that of tokens which are by columns.
    """

    number: int | None
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    then: tuple[Source, Source] | None = None
    grid: tuple[int, int] | None = None

    @classmethod
    def of(cls, use: Use, grid: tuple[int, int] | Literal[False] = False) -> Source:
        then = None if use.then is None else (cls.of(use.then[0]), cls.of(use.then[1]))
        return cls(None if use.operand is None else use.operand.number, use.order, use.sizes, then, grid or None)

    def array(self, trace: Trace, axes: tuple[str, ...], neutral: float) -> np.ndarray:
        """The parameter in the official order of its `axes`."""
        held = self._as_found(trace, neutral)
        if self.grid is not None and "tokens" in axes:
            held = held.take(_by_rows(self.grid), axes.index("tokens"))
        return held.swapaxes(0, 1) if self.grid is not None and "ph" in axes else held

    def _as_found(self, trace: Trace, neutral: float) -> np.ndarray:
        if self.number is None:
            held = np.full(self.sizes, float(neutral))
        else:
            held = in_order(trace.values[self.number].array, self.sizes, self.order)
        if self.then is not None:
            kernel, bias = (source._as_found(trace, 0.0) for source in self.then)
            held = held @ kernel + (bias if held.ndim == 1 else 0.0)
        return held


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What a traced program was found to be.

    `config` has the sizes, and the conventions that it was seen to compute throughout; None where
    `reasons` say why it is no Mixer. `sources` are the official parameters among the values of a
    run, None where some have no counterpart; `layout` their names, None also where they are computed
    from others. `constraints` are what the official model leaves free and this one does not.

    `deviations` are the steps that differ from the official model's, and with these `residual` is
    how far the replayed output was from the real one. Where the program ended before, `missing` is
    the first step that was not found; `known` are those with parameters that were. `notices` are
    what a user should know. `output` says which of the results the logits are, and `taps` where the
    stages are among the `num_values` values of a run on `batch` images.
    """

    config: MixerConfig | None
    layout: Layout | None
    sources: Mapping[str, Source] | None
    constraints: tuple[str, ...]
    deviations: tuple[Deviation, ...]
    residual: float | None
    missing: str | None
    known: tuple[str, ...]
    reasons: tuple[str, ...]
    notices: tuple[str, ...]
    output: str
    taps: Mapping[str, Tap]
    num_values: int
    batch: int

    def but(self, reason: str) -> Found:
        """The same, no Mixer after all."""
        return dataclasses.replace(
            self, config=None, layout=None, sources=None, residual=None, reasons=(*self.reasons, reason)
        )

    @property
    def image_hw(self) -> tuple[int, int]:
        assert self.config is not None
        return self.config.image_hw

    @property
    def in_channels(self) -> int:
        assert self.config is not None
        return self.config.in_channels

    @property
    def is_whole(self) -> bool:
        return self.missing is None

    @property
    def is_settled(self) -> bool:
        return _is_settled(self)

    @property
    def is_by_convention(self) -> bool:
        """Whether it deviates in conventions alone, and throughout, so that its config says all."""
        return self.config is not None and set(self.deviations) == set(deviations_of(self.config))


def find_mixer(trace: Trace, entry: np.ndarray, name: str, framework: str, *, thorough: bool = True) -> Found:
    """The Mixer in a trace whose input, as (batch, height, width, channels), is `entry`."""
    found, by_columns = _best_match(trace, entry, thorough)
    deviations = recognised(found.deviations)
    found = dataclasses.replace(found, uses=_relocated(found, deviations, trace))
    config = layout = sources = None
    notices: list[str] = []
    constraints: tuple[str, ...] = ()
    if found.is_whole:
        found, deviations, notices = _folded(found, deviations)
        sizes, reasons = _sizes(found)
        if not reasons:
            config = _config(found, sizes, entry, by_columns)
            reasons = _lacking(found, deviations, config)
            if not reasons:
                sources = {name: Source.of(use, by_columns and config.grid_hw) for name, use in found.uses.items()}
            layout, constraints, made = _layout(found, trace, config, name, framework)
            notices += made + _unused(trace)
            if by_columns:
                notices.append("its tokens are in the order of columns, so that no layout is of its parameters")
            layout = None if reasons or by_columns else layout
    else:
        reasons = list(_why_not(found, trace))
    taps = {}
    for stage, place in found.program.stages.items() if sources is not None else ():
        meant, seen = found.before.get(place, (found.values[place], found.seen[place]))
        if seen is not None:
            if by_columns and meant.ndim == 3 and config is not None:
                meant = meant[:, _by_rows(config.grid_hw)]
            order = np.empty(seen.size, np.intp)
            order[np.argsort(meant, axis=None)] = np.argsort(seen.array, axis=None)
            taps[stage] = Tap(seen.number, order, meant.shape)
    return Found(
        config=config,
        layout=layout,
        sources=sources,
        constraints=constraints,
        deviations=deviations,
        residual=found.residual,
        missing=found.missing,
        known=tuple(
            step.name
            for step in found.program.steps[: len(found.values) - 1]
            if step.parameters and all(found.uses[parameter.name].is_known for parameter in step.parameters)
        ),
        reasons=tuple(reasons),
        notices=tuple(notices),
        output=found.output or "",
        taps=taps,
        num_values=len(trace.values),
        batch=len(entry),
    )


def _relocated(found: Match, deviations: tuple[Deviation, ...], trace: Trace) -> dict[str, Use]:
    """Uses by parameter, with those of a LayerNorm that stands elsewhere in their own place."""
    uses = dict(found.uses)
    moved = [d for d in deviations if d.what in ("post_norm", "norm_after_pool")]
    norms = [step for step in found.program.steps if step.operation == "layer_norm"]
    for deviation in moved:
        operands = {operand.name: operand for operand in trace.operands}
        extra = [Use(operands[name], sizes=(operands[name].size,)) for name in deviation.parameters if name in operands]
        if len(extra) == 2:
            places = norms if deviation.what == "post_norm" else norms[-1:]
            held = [[uses[parameter.name] for parameter in step.parameters] for step in places[1:]] + [extra]
            for step, own in zip(places, held, strict=True):
                uses.update(zip((parameter.name for parameter in step.parameters), own, strict=True))
    return uses


def deviations_of(config: MixerConfig) -> list[Deviation]:
    """The steps at which a model of ours with this config differs from the official one."""
    fields = {"activate": "activation", "layer_norm": "layer_norm_eps"}
    official = {field: getattr(OFFICIAL, field) for field in fields.values()}
    return [
        Deviation(step.name, "variant", field, official[field], getattr(config, field))
        for step in official_steps(config.num_blocks)
        if (field := fields.get(step.operation)) and getattr(config, field) != official[field]
    ]


def official_steps(num_blocks: int) -> tuple[Step, ...]:
    """The steps of the official model with a head."""
    return official_programs(num_blocks)[-2].steps


def _best_match(trace: Trace, entry: np.ndarray, thorough: bool) -> tuple[Match, bool]:
    """The match, also of tokens taken by columns, which the second result tells, and of an image changed first."""
    programs = official_programs(_deepest(trace))
    found = match(trace, entry, programs, thorough=False)
    if _is_settled(found) or not trace.operands:
        return found, False
    if len(found.values) > 2:
        # By columns, an image is its transpose by rows.
        transposed = entry.swapaxes(1, 2)
        by_columns = match(trace, transposed, programs, thorough=False)
        if _is_settled(by_columns):
            return by_columns, True
        if thorough:
            further = len(by_columns.values) > len(found.values)
            found = match(trace, entry, programs)
            by_columns = match(trace, transposed, programs) if further and not found.is_whole else by_columns
        better = by_columns.is_whole and (not found.is_whole or len(by_columns.deviations) < len(found.deviations))
        return (by_columns, True) if better else (found, False)
    given = trace.values[trace.input]
    for value in trace.by_size.get(entry.size, [])[1:5]:
        if value.array.shape == given.array.shape:
            image = arranged(value.array, given.array, entry)
            changed = match(dataclasses.replace(trace, input=value.number), image, programs, thorough=thorough)
            if changed.is_whole:
                scaled = Deviation(changed.program.steps[0].name, "insert", "input_scaling", None, value.operation)
                return dataclasses.replace(changed, deviations=(scaled, *changed.deviations)), False
    return found, False


def _is_settled(found: Match | Found) -> bool:
    """Whether the output was reached without a step that is not known."""
    return found.is_whole and all(deviation.kind != "unknown" for deviation in found.deviations)


def _deepest(trace: Trace) -> int:
    """No Mixer in the trace has more blocks, since a block meets at least four kernels."""
    return min(DEEPEST, sum(map(len, trace.uses.values())) // 4 + 1)


@lru_cache(maxsize=4)
def official_programs(deepest: int) -> tuple[Program, ...]:
    """The official model of every depth, with a head and without; steps in common are the same objects."""
    known: dict[Step, Step] = {}
    programs = []
    for depth in range(1, deepest + 1):
        parameters = {
            name: Parameter(name, tuple(binding.row.canonical_axes.split()))
            for name, binding in LINEN.bindings(depth).items()
        }
        for classes in (1, 0):
            config = MixerConfig(num_classes=classes, num_blocks=depth, **_ANY_SIZE)
            program = MlpMixer(config).program(parameters)
            steps = tuple(known.setdefault(step, step) for step in program.steps)
            programs.append(Program(steps, program.stages))
    return tuple(programs)


def _why_not(found: Match, trace: Trace) -> Iterator[str]:
    outputs = [trace.values[number] for number in trace.outputs.values()]
    if not any(output.is_data for output in outputs):
        yield (
            "its output does not depend on the images by any operation that could be followed; code that leaves the "
            "framework on the way, to NumPy or to C++, cannot be"
        )
        return
    if not any(np.isfinite(output.array).all() for output in outputs):
        yield "its output holds NaN or infinity"
    done = [step.name for step in found.program.steps[: len(found.values) - 1] if step.parameters]
    if not done:
        yield "no patch embedding: no parameter, as a kernel over patches of any size, gives a value of the model"
        return
    yield f"it is a Mixer up to {done[-1]}, and what follows is not {found.missing}, nor any known variant of it"


def _sizes(found: Match) -> tuple[dict[str, int], list[str]]:
    """The size of every axis, and where parameters disagree on it."""
    votes: dict[str, Counter[int]] = {}
    for parameter, use in _used(found):
        sizes = use.sizes if use.then is None else (*use.sizes[:-1], use.then[0].sizes[-1])
        for axis, size in zip(parameter.axes, sizes, strict=False):
            if len(parameter.axes) == len(use.sizes):
                votes.setdefault(axis, Counter())[size] += 1
    conflicts = [
        f"{axis} is {' in some parameters and '.join(map(str, seen))} in others"
        for axis, seen in votes.items()
        if len(seen) > 1
    ]
    return {axis: seen.most_common(1)[0][0] for axis, seen in votes.items()}, conflicts


def _used(found: Match) -> Iterator[tuple[Parameter, Use]]:
    for step in found.program.steps:
        for parameter in step.parameters:
            if found.uses.get(parameter.name, Use(None)).operand is not None:
                yield parameter, found.uses[parameter.name]


def _config(found: Match, sizes: Mapping[str, int], entry: np.ndarray, by_columns: bool) -> MixerConfig:
    _, height, width, channels = entry.shape
    ph, pw = found.values[1].shape[3:1:-1] if by_columns else found.values[1].shape[2:4]
    depth = len({step.name.split("/")[0] for step in found.program.steps if step.name.startswith("MixerBlock_")})
    return MixerConfig(
        num_classes=found.values[-1].shape[-1] if found.program.steps[-1].parameters else 0,
        num_blocks=depth,
        patch_size=(ph, pw),
        image_size=(height, width),
        in_channels=channels,
        hidden_dim=found.values[2].shape[-1],
        tokens_mlp_dim=sizes.get("tokens_mlp", 1),
        channels_mlp_dim=sizes.get("channels_mlp", 1),
        activation=_throughout(found, "activate", "activation", OFFICIAL.activation),
        layer_norm_eps=_throughout(found, "layer_norm", "layer_norm_eps", OFFICIAL.layer_norm_eps),
    )


def _throughout(found: Match, operation: str, what: str, official: Any) -> Any:
    """What every such step computes, if it is one thing, else what the official model's do."""
    steps = [step.name for step in found.program.steps if step.operation == operation]
    others = {deviation.step: deviation.found for deviation in found.deviations if deviation.what == what}
    kinds = {others.get(step, official) for step in steps}
    return kinds.pop() if len(kinds) == 1 else official


def _folded(found: Match, deviations: tuple[Deviation, ...]) -> tuple[Match, tuple[Deviation, ...], list[str]]:
    """Without the deviations that only write the official function otherwise, and what they are.

    A second affine layer right behind a linear one is part of it; the head and the affine part of
    the last LayerNorm may stand on either side of the mean.
    """
    kept, notices = [], []
    for deviation in deviations:
        for fold in (_second_layer, _affine_after_mean, _head_before_mean):
            folded = fold(found, deviation) if deviation.kind == "insert" else None
            if folded is not None:
                found, notice = folded
                notices.append(notice)
                break
        else:
            kept.append(deviation)
    return found, tuple(kept), notices


def _before(found: Match, deviation: Deviation) -> Step | None:
    """The step whose result was changed first."""
    step = next(step for step in found.program.steps if step.name == deviation.step)
    return found.program.steps[step.inputs[0] - 1] if step.inputs and step.inputs[0] else None


def _second_layer(found: Match, deviation: Deviation) -> tuple[Match, str] | None:
    before = _before(found, deviation)
    if deviation.what != "linear" or before is None or before.operation != "linear":
        return None
    uses = dict(found.uses)
    for parameter in before.parameters:
        kernel, bias = deviation.uses
        uses[parameter.name] = dataclasses.replace(uses[parameter.name], then=(kernel, bias))
    place = found.program.steps.index(before) + 1
    found = dataclasses.replace(found, before={p: pair for p, pair in found.before.items() if p != place})
    notice = f"two affine layers in a row are taken as one: {before.name}, and {deviation.parameters[0]}"
    return dataclasses.replace(found, uses=uses), notice


def _affine_after_mean(found: Match, deviation: Deviation) -> tuple[Match, str] | None:
    before = _before(found, deviation)
    if deviation.what not in ("scale", "bias") or before is None or before.operation != "mean":
        return None
    norm = found.program.steps[before.inputs[0] - 1]
    names = [parameter.name for parameter in norm.parameters]
    if norm.operation != "layer_norm" or any(found.uses[name].operand is not None for name in names):
        return None
    uses = {**found.uses, **dict(zip(names, deviation.uses, strict=True))}
    return dataclasses.replace(found, uses=uses), "the scale and bias of the last LayerNorm stand behind the mean"


def _head_before_mean(found: Match, deviation: Deviation) -> tuple[Match, str] | None:
    last = found.program.steps[-1]
    if deviation.what != "linear" or last.operation != "mean" or deviation.step != last.name:
        return None
    (program,) = (
        program
        for program in official_programs(DEEPEST)
        if len(program.steps) == len(found.program.steps) + 1 and program.steps[:-1] == found.program.steps
    )
    uses = dict(zip((parameter.name for parameter in program.steps[-1].parameters), deviation.uses, strict=True))
    seen = (*found.seen[:-2], None, None, found.seen[-1])
    values = (*found.values, found.values[-1])
    changed = dataclasses.replace(found, program=program, uses={**found.uses, **uses}, values=values, seen=seen)
    return changed, "the head stands before the mean"


def _lacking(found: Match, deviations: tuple[Deviation, ...], config: MixerConfig) -> list[str]:
    """Why the official parameters are not all there."""
    reasons = [_BEYOND[d.what] for d in deviations if d.what in _BEYOND]
    names = LINEN.bindings(config.num_blocks, head=config.num_classes > 0)
    without = [name for name in names if not found.uses[name].is_known]
    if without:
        more = f" and {len(without) - 2} more" if len(without) > 2 else ""
        reasons.append(f"no parameter of it is {', '.join(without[:2])}{more}")
    return reasons


_BEYOND = {"mlp_head": "its head has several layers, and the official one is a single Dense"}


def _unused(trace: Trace) -> list[str]:
    effective = {name for leaves in trace.uses for name in leaves}
    unused = [name for name in trace.parameters if name not in effective]
    return [f"parameters without effect: {', '.join(unused)}"] if unused else []


# The layout


def _layout(
    found: Match, trace: Trace, config: MixerConfig, name: str, framework: str
) -> tuple[Layout | None, tuple[str, ...], list[str]]:
    """The layout, if every parameter is one of its own; what it constrains; and what a user should know."""
    names: dict[str, tuple[str, str]] = {}
    computed = []
    for canonical, binding in LINEN.bindings(config.num_blocks, head=config.num_classes > 0).items():
        use, axes = found.uses[canonical], binding.row.canonical_axes
        own = None if use.operand is None or use.then is not None else _name_of(use.operand, trace)
        if use.operand is None and use.is_known:
            names[canonical] = ABSENT, axes
        elif own is not None:
            names[canonical] = own, _pattern(axes, use, own, trace)
        elif use.operand is not None:
            computed.append(f"{canonical} is computed from {', '.join(sorted(use.operand.leaves))}")
    used = {foreign.partition("[")[0] for foreign, _ in names.values()}
    hidden = [own for own in trace.hidden if own in used]
    notices = [f"not in the state_dict, so that loading leaves them as they are: {_some(hidden)}"] if hidden else []
    if computed:
        notices.append(f"no layout, since parameters are not its own: {_some(computed)}")
    rows = tuple(_rows(names, config.num_blocks))
    computes = Conventions(config.activation, config.layer_norm_eps)
    layout = Layout(
        name=re.sub(r"[^\w.-]+", "-", name).strip("-") or "found",
        summary=f"as found in {name}",
        framework="flax" if framework == "flax" else "torch",
        computes=computes,
        trained_with=None,
        advice={},
        rows=rows,
    )
    if layout.is_tied:
        layout = dataclasses.replace(layout, num_blocks=config.num_blocks)
    return (None if computed else layout), layout.constraints, notices


def _some(texts: list[str]) -> str:
    return "; ".join(texts[:2]) + (f" and {len(texts) - 2} more" if len(texts) > 2 else "")


def _name_of(operand: Value, trace: Trace) -> str | None:
    """The parameter that an operand is, or the part of one, such as "kernels[3]"."""
    if operand.name is not None:
        return operand.name
    for leaf in trace.values:
        if leaf.name in operand.leaves and leaf.size > operand.size:
            place = _place_in(leaf.array, operand.array.reshape(-1))
            if place is not None:
                return f"{leaf.name}{place}"
    return None


def _place_in(whole: np.ndarray, part: np.ndarray) -> str | None:
    """The indices at which `part` lies in an array, as in "[3][0]"."""
    if whole.size == part.size:
        return "" if np.array_equal(whole.reshape(-1), part) else None
    if whole.size % part.size or whole.size // len(whole) < part.size:
        return None
    places = ((i, _place_in(inner, part)) for i, inner in enumerate(whole))
    return next((f"[{i}]{place}" for i, place in places if place is not None), None)


def _pattern(canonical_axes: str, use: Use, own: str, trace: Trace) -> str:
    """The einops pattern from the canonical axes to those of the parameter in its own shape."""
    axes = canonical_axes.split()
    assert use.operand is not None
    shape = list(trace.parameters.get(own, use.operand.array.shape))
    ordered = (
        [(axes[i], use.sizes[i]) for i in use.order] if len(use.sizes) == len(axes) else [(axes[0], use.operand.size)]
    )
    groups = []
    for size in shape:
        group: list[str] = []
        held = 1
        while ordered and held < size:
            axis, length = ordered.pop(0)
            group.append(axis)
            held *= length
        groups.append("1" if not group else group[0] if len(group) == 1 else f"({' '.join(group)})")
    if ordered:  # axes of size 1, which stand where they do not matter
        places = [i for i, group in enumerate(groups) if group == "1"]
        for (axis, _), place in zip(ordered, places, strict=False):
            groups[place] = axis
    foreign = " ".join(groups)
    return canonical_axes if foreign == canonical_axes else f"{canonical_axes} -> {foreign}"


def _rows(names: Mapping[str, tuple[str, str]], depth: int) -> list[Row]:
    """Rows with {i} for the block if the names of all blocks go by a rule, else every name as it is."""
    rows, done = [], set()
    for canonical, (foreign, pattern) in names.items():
        block = re.match(r"MixerBlock_(\d+)/(.*)", canonical)
        if block is None:
            rows.append(Row(canonical, foreign, pattern))
        elif block[2] not in done:
            done.add(block[2])
            every = {i: names[n] for i in range(depth) if (n := f"MixerBlock_{i}/{block[2]}") in names}
            if len(every) == 1:  # one block alone shows no rule
                rows.append(Row(canonical, foreign, pattern))
                continue
            rule = _rule({i: name for i, (name, _) in every.items()})
            if rule is None or len({own for _, own in every.values()}) > 1:
                return [Row(name, *own) for name, own in names.items()]
            rows.append(Row(f"MixerBlock_{{i}}/{block[2]}", rule, pattern))
    return rows


def _rule(names: Mapping[int, str]) -> str | None:
    """One name with {i}, or {i+2}, for the names of all blocks; the name itself if they have it in common."""
    if len(set(names.values())) == 1:
        return next(iter(names.values()))
    split = [re.split(r"(\d+)", name) for name in names.values()]
    if len({len(parts) for parts in split}) > 1:
        return None
    rule = ""
    for place, parts in enumerate(zip(*split, strict=True)):
        if len(set(parts)) == 1:
            rule += parts[0]
            continue
        offsets = {int(part) - i for i, part in zip(names, parts, strict=True)} if place % 2 else {-1}
        offset = min(offsets)
        if len(offsets) > 1 or offset < 0:
            return None
        rule += f"{{i+{offset}}}" if offset else "{i}"
    return rule
