"""`find_mixer`: from a trace to the sizes, conventions and layout of the Mixer in it, or why it is none."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mixer_equiv.activations import RoundedActivation
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.deviation import Choice, Deviation
from mixer_equiv.equivalence.faults.catalogue import fault_of
from mixer_equiv.equivalence.match.axes import locate_elements
from mixer_equiv.equivalence.match.parameter_search import AssignedOperand, Assignment, UnknownParameter
from mixer_equiv.equivalence.match.parts import JoinedValue
from mixer_equiv.equivalence.match.program_search import PartialMatch, ProgramMatch, WholeMatch
from mixer_equiv.equivalence.mixer.attention import attention_in
from mixer_equiv.equivalence.mixer.best_match import best_match
from mixer_equiv.equivalence.mixer.deviation_patterns import combine
from mixer_equiv.equivalence.mixer.folded_norms import unfolded
from mixer_equiv.equivalence.mixer.layout import layout_found
from mixer_equiv.equivalence.mixer.official_program import UNOBSERVABLE
from mixer_equiv.equivalence.mixer.result import FoundMixer, NothingFound, ParameterPlace, StagePlace, Unnamed
from mixer_equiv.equivalence.mixer.rewrites import folded, relocated
from mixer_equiv.equivalence.mixer.rounding import is_all_but_official, without_rounding
from mixer_equiv.equivalence.mixer.unfollowed import unfollowed
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.place import Place
from mixer_equiv.equivalence.record.idle import idle_operations
from mixer_equiv.equivalence.record.trace import Trace
from mixer_equiv.errors import summarize
from mixer_equiv.layouts import LINEN, OFFICIAL_CONVENTIONS, Constraint
from mixer_equiv.layouts.families import family_of
from mixer_equiv.operations import Parameter, Step


def find_mixer(
    trace: Trace, entry: np.ndarray, name: str, framework: str, *, thorough: bool = True
) -> FoundMixer | NothingFound:
    """Find the Mixer in a trace whose input, as (batch, height, width, channels), is `entry`.

    `name` is the model's, and of `framework` is the layout. A search that is not `thorough` gives up where no step
    leads on.
    """
    match, order = best_match(trace, entry, thorough)
    rounded = tuple(deviation for deviation in match.deviations if is_all_but_official(deviation))
    match = dataclasses.replace(match, deviations=without_rounding(match.deviations))
    deviations = combine(match.deviations)
    match = dataclasses.replace(match, assignments=relocated(match, deviations, trace))
    seen = _Seen(match, deviations, trace, len(entry))
    if isinstance(match, PartialMatch):
        is_blind = _is_blind(trace)
        stopped = () if is_blind else unfollowed(match, trace)
        return seen.nothing([*_why_not(match, trace, entry.shape), *stopped], is_blind=is_blind)
    match, deviations, notices = folded(match, deviations)
    match, of_norms = unfolded(match, trace)
    notices += of_norms
    sizes, conflicts = _sizes(match)
    seen = dataclasses.replace(seen, match=match, deviations=deviations, notices=tuple(notices))
    if conflicts:
        return seen.nothing(conflicts)
    config = _config(match, sizes, entry)
    named = layout_found(match, trace, config, name, framework)
    layout = named.layout
    notices += named.notices
    constraints, without_effect = _effective(named.constraints, deviations)
    notices += without_effect
    if order is not None:
        layout = Unnamed(f"its tokens are {_called(order, config)}, so that no layout is of its parameters")
    if isinstance(layout, Unnamed):
        notices.append(Notice(layout.reason))
    notices += map(Notice, _unused(trace))
    seen = dataclasses.replace(seen, notices=tuple(notices), constraints=constraints)
    if lacking := _lacking(match, deviations, config):
        return seen.nothing(lacking)
    tokens = None if order is None else tuple(np.argsort(order).tolist())
    return FoundMixer(
        **seen.fields(),
        config=config,
        layout=layout,
        sources={
            name: ParameterPlace.of(assigned, tokens)
            for name, assigned in match.assignments.items()
            if not isinstance(assigned, UnknownParameter)
        },
        residual=match.residual,
        rounded=rounded,
        stages=dict(_stages(match, len(entry), tokens)),
        path=trace.path,
        idle=idle_operations(trace),
        narrow_dtypes=trace.narrow_dtypes,
    )


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A match and what has been concluded from it so far, for the fields of `Searched`."""

    match: WholeMatch | PartialMatch
    deviations: tuple[Deviation, ...]
    trace: Trace
    batch: int
    notices: tuple[Notice, ...] = ()
    constraints: tuple[Constraint, ...] = ()

    def fields(self) -> dict[str, Any]:
        known = _known_steps(self.match)
        return {
            "deviations": self.deviations,
            "known": tuple(step.name for step in known),
            "knows_layer_norm": any(step.operation == "layer_norm" for step in known),
            "depth": _depth(self.match),
            "constraints": self.constraints,
            "notices": self.notices,
            "output": self.match.output if isinstance(self.match, WholeMatch) else "",
            "batch": self.batch,
            "draws": self.trace.uses_random_numbers,
            "decisions": self.trace.decisions,
            "weight_decisions": self.trace.weight_decisions,
            "constants": self.trace.constants,
            "exits": self.trace.exits,
        }

    def nothing(self, reasons: Iterable[str], *, is_blind: bool = False) -> NothingFound:
        family = family_of(self.trace.parameters)
        if family is not None:
            reasons = (*reasons, f"names of its parameters are those of {family.words}")
        elif (attention := attention_in(self.trace)) is not None:
            reasons = (
                *reasons,
                f"it weights values by a softmax of others, as attention does, first{_at(attention.place)}",
            )
        residual = self.match.residual if isinstance(self.match, WholeMatch) else None
        missing = self.match.missing if isinstance(self.match, PartialMatch) else None
        return NothingFound(
            **self.fields(),
            reasons=tuple(reasons),
            residual=residual,
            missing=missing,
            is_blind=is_blind,
            is_of_other_family=family is not None,
        )


def _known_steps(found: ProgramMatch) -> list[Step]:
    """The steps all of whose parameters were found."""
    return [
        step
        for step in found.program.steps[: len(found.values) - 1]
        if step.parameters and all(_is_known(found, parameter.name) for parameter in step.parameters)
    ]


def _stages(found: ProgramMatch, batch: int, tokens: tuple[int, ...] | None) -> Iterator[tuple[str, StagePlace]]:
    """The places of the official stages of the first images, so many as the `batch` has.

    `tokens` are the model's in the official order, where that is another one.
    """
    for stage, place in found.program.stages.items():
        meant, seen = found.before_insertion.get(place, (found.values[place], found.seen[place]))
        if seen is not None and not isinstance(seen, JoinedValue):
            if tokens is not None and meant.ndim == 3:
                meant = meant[:, list(tokens)]
            places = locate_elements(seen.array, meant).reshape(meant.shape)[:batch]
            yield stage, StagePlace(seen.number, places.reshape(-1), places.shape)


def _called(order: np.ndarray, config: MixerConfig) -> str:
    by_columns = np.arange(config.num_tokens).reshape(config.grid_hw).T.reshape(-1)
    return "in the order of columns" if np.array_equal(order, by_columns) else "in another order than by rows"


def _is_blind(trace: Trace) -> bool:
    """Whether nothing can be compared: no output is finite and of the images, or all weights are in the code."""
    outputs = [trace.values[number] for number in trace.outputs.values()]
    is_seen = any(output.is_data and np.isfinite(output.array).all() for output in outputs)
    return not is_seen or _has_weights_in_code(trace)


def _has_weights_in_code(trace: Trace) -> bool:
    """Whether arrays meet the images, and none of them is made of parameters."""
    met = (trace.values[number] for value in trace.data for number in value.inputs)
    return not trace.uses and any(not value.is_data and value.size > 1 for value in met)


def _why_not(found: PartialMatch, trace: Trace, images: tuple[int, ...]) -> Iterator[str]:
    """Say why no Mixer was found; `images` are (batch, height, width, channels)."""
    outputs = [trace.values[number] for number in trace.outputs.values()]
    if not any(output.is_data for output in outputs):
        last = _at(trace.data[-1].place) if trace.data else ""
        yield (
            "its output does not depend on the images by any operation that could be followed; code that leaves the "
            f"framework on the way, to NumPy or to C++, cannot be{last and f'; the last operation that could is{last}'}"
        )
        return
    if not any(np.isfinite(output.array).all() for output in outputs):
        first = next((_at(value.place) for value in trace.data if not np.isfinite(value.array).all()), "")
        yield f"its output holds NaN or infinity{first and f', first made{first}'}"
        return
    if _has_weights_in_code(trace):
        yield (
            "no parameter of it meets the images, and weights in closures, NumPy arrays or numbers of the code can be "
            "given no other values; hold them as parameters, buffers or attributes of the module"
        )
        return
    stopped = _at(_stopped(found, trace))
    that_is = stopped and f"; that is{stopped}"
    done = [step.name for step in found.program.steps[: len(found.values) - 1] if step.parameters]
    if not done and (uneven := _uneven_patches(trace, images)):
        yield uneven
    elif not done:
        given = f"{trace.values[trace.input].array.shape}{stopped and f' and takes them{stopped}'}"
        yield (
            "no patch embedding: no parameter, as a kernel over patches of any size that divides the image, gives a "
            f"value of the model, which was given images {given}"
        )
    elif found.missing == "output":
        shapes, expected = [output.array.shape for output in outputs], found.values[-1].shape
        if expected in shapes:
            yield f"it is a Mixer up to {done[-1]}, and what it returns is made of that by no known operation{that_is}"
        else:
            returned = " and ".join(map(str, shapes))
            yield f"it is a Mixer up to {done[-1]}, which is {expected}, and what it returns is {returned}"
    else:
        follows = _in_words(found.missing)
        yield f"it is a Mixer up to {done[-1]}, and what follows is not {follows}, nor any known variant of it{that_is}"


def _uneven_patches(trace: Trace, images: tuple[int, ...]) -> str:
    """Say which convolution leaves a rest of `images` (batch, height, width, channels), if one has its size as stride.

    Kernels are (hidden, channels, ph, pw), or (ph, pw, channels, hidden) as Flax has them.
    """
    batch, height, width, channels = images
    for name, shape in trace.parameters.items():
        for hidden, in_channels, ph, pw in (shape, (*shape[:1:-1], *shape[:2])) if len(shape) == 4 else ():
            rows, columns = height // ph, width // pw
            is_uneven = in_channels == channels and (height % ph or width % pw)
            if is_uneven and any(value.size == batch * hidden * rows * columns > 0 for value in trace.data):
                return (
                    f"no patch embedding: the patches of {name} are {ph}x{pw} and do not divide images of "
                    f"{height}x{width} (height x width); give images of {rows * ph}x{columns * pw} if these are meant"
                )
    return ""


def _stopped(found: PartialMatch, trace: Trace) -> Place | None:
    """The place of the first operation that was not followed."""
    place = len(found.values) - 1
    taken = found.program.steps[place].inputs[-1] if place < len(found.program.steps) else place
    seen = found.seen[taken] or max((value for value in found.seen if value), key=lambda value: value.number)
    return trace.place_after(seen)


def _at(place: Place | None) -> str:
    return f" at {place}" if place is not None else ""


def _in_words(step: str) -> str:
    """A step of the program in the words of the paper."""
    place, _, operation = step.rpartition("/")
    return f"{_OPERATIONS[operation]} in {place}" if place and operation in _OPERATIONS else step


_OPERATIONS = {
    "swap": "the transposition of tokens and channels",
    "activate": "the activation",
    "add": "the addition to the stream",
    "mean": "the mean over tokens",
}


def _sizes(found: ProgramMatch) -> tuple[dict[str, int], list[str]]:
    """The size of every axis, and a sentence for each on which parameters disagree."""
    holders: dict[str, dict[int, list[str]]] = {}
    for parameter, assigned in _assigned_operands(found):
        second = assigned.second_layer
        sizes = assigned.sizes if second is None else (*assigned.sizes[:-1], second[0].sizes[-1])
        for axis, size in zip(parameter.axes, sizes, strict=False):
            if len(parameter.axes) == len(assigned.sizes):
                holders.setdefault(axis, {}).setdefault(size, []).append(parameter.name)
    conflicts = [
        f"{axis} is {' and '.join(f'{size} in {names[0]}' for size, names in by_size.items())}, and should be one"
        for axis, by_size in holders.items()
        if len(by_size) > 1
    ]
    return {axis: max(by_size, key=lambda size: len(by_size[size])) for axis, by_size in holders.items()}, conflicts


def _assigned_operands(found: ProgramMatch) -> Iterator[tuple[Parameter, AssignedOperand]]:
    for step in found.program.steps:
        for parameter in step.parameters:
            assignment = found.assignments.get(parameter.name)
            if isinstance(assignment, AssignedOperand):
                yield parameter, assignment


def _is_known(found: ProgramMatch, parameter: str) -> bool:
    return not isinstance(found.assignments[parameter], UnknownParameter)


def _config(found: ProgramMatch, sizes: Mapping[str, int], entry: np.ndarray) -> MixerConfig:
    _, height, width, channels = entry.shape
    ph, pw = found.values[1].shape[2:4]
    if height % ph or width % pw:  # patches that overlap or are padded, which no config can say
        ph, pw = height, width
    return MixerConfig(
        num_classes=found.values[-1].shape[-1] if found.program.steps[-1].parameters else 0,
        num_blocks=_depth(found),
        patch_size=(ph, pw),
        image_size=(height, width),
        in_channels=channels,
        hidden_dim=found.values[2].shape[-1],
        tokens_mlp_dim=sizes.get("tokens_mlp", 1),
        channels_mlp_dim=sizes.get("channels_mlp", 1),
        activation=_throughout(found, "activate", "activation", OFFICIAL_CONVENTIONS.activation),
        layer_norm_eps=_throughout(found, "layer_norm", "layer_norm_eps", OFFICIAL_CONVENTIONS.layer_norm_eps),
    )


def _depth(found: ProgramMatch) -> int:
    return len({step.name.split("/")[0] for step in found.program.steps if step.name.startswith("MixerBlock_")})


def _throughout(found: ProgramMatch, operation: str, what: str, official: Any) -> Any:
    """The setting of all steps of this operation if they have one in common, else the official one."""
    steps = [step.name for step in found.program.steps if step.operation == operation]
    others = {deviation.step: deviation.found for deviation in found.deviations if deviation.what == what}
    kinds = {others.get(step, official) for step in steps}
    kind = kinds.pop() if len(kinds) == 1 else official
    return official if isinstance(kind, RoundedActivation) else kind


def _lacking(found: ProgramMatch, deviations: tuple[Deviation, ...], config: MixerConfig) -> list[str]:
    """The reasons why official parameters are missing."""
    reasons = [reason for d in deviations if (reason := _BEYOND.get(d.what) or _BEYOND.get(d.found))]
    reasons = list(dict.fromkeys(reasons))
    bindings = LINEN.bindings(config.num_blocks, head=config.num_classes > 0)
    axes = {name: len(binding.row.canonical_axes.split()) for name, binding in bindings.items()}
    # A parameter of more axes, such as a scale for every token and channel, is not the official one either.
    without = [name for name in bindings if not _has_axes(found.assignments[name], axes[name])]
    unknown = {deviation.step for deviation in deviations if deviation.kind == "unknown"}
    untold = [name for name in without if name.rpartition("/")[0] in unknown]
    if untold:
        reasons.append(
            f"it does something else at {summarize(sorted(unknown), 2)}, by which {summarize(untold, 2)} cannot be told"
        )
    lacking = [name for name in without if name not in untold]
    if lacking:
        reasons.append(f"no parameter of it is {summarize(lacking, 2)}")
    return reasons


def _effective(
    constraints: tuple[Constraint, ...], deviations: tuple[Deviation, ...]
) -> tuple[tuple[Constraint, ...], list[Notice]]:
    """The constraints that restrict the function, and a notice of those that do not.

    A bias that no output depends on may as well be absent, as long as what follows is the official model's.
    """
    is_official = all(fault_of(deviation).verdict == "equivalent_under" for deviation in deviations)
    idle = [constraint for constraint in constraints if is_official and _is_unobservable(constraint)]
    absent = [name for constraint in idle for name in constraint.parameters]
    said = f"it lacks parameters on which no output depends, whatever is in them: {summarize(absent, 2)}"
    return tuple(constraint for constraint in constraints if constraint not in idle), [Notice(said)] if idle else []


def _is_unobservable(constraint: Constraint) -> bool:
    in_any_block = {re.sub(r"^MixerBlock_\d+/", "MixerBlock_{i}/", name) for name in constraint.parameters}
    return constraint.kind == "absent_parameters" and in_any_block == {UNOBSERVABLE}


def _has_axes(assignment: Assignment, axes: int) -> bool:
    return not isinstance(assignment, UnknownParameter) and len(assignment.sizes) <= axes


# Reasons by what differs, or by what was found instead.
_BEYOND: Mapping[Any, str] = {
    "mlp_head": "its head has several layers, and the official one is a single Dense",
    "patches": "its patches are not those of the official model, which are side by side and cover the image",
    "extra_mlp": "it has blocks with a further MLP, and the official ones have one over tokens and one over channels",
    Choice.EVERY_TOKEN: "it returns logits for every token, and the official model for every image",
}


def _unused(trace: Trace) -> list[str]:
    effective = {name for leaves in trace.uses for name in leaves}
    unused = [name for name in trace.parameters if name not in effective]
    return [f"parameters without effect: {', '.join(unused)}"] if unused else []
