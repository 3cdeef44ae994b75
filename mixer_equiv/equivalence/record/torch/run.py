"""Run a torch module on other parameters than its own.

`record` keeps every value of one call, `gradients` differentiates an output, and `call` keeps the outputs of several
calls in a row. All three leave the module, the random generators and torch's settings as they were.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixer_equiv.equivalence.record.calls import IMAGES, PLAIN, CallLog, Calls, Way
from mixer_equiv.equivalence.record.contexts import in_copied_context
from mixer_equiv.equivalence.record.derivatives import LARGER, Derivatives
from mixer_equiv.equivalence.record.graph import Graph, split_arguments
from mixer_equiv.equivalence.record.holders import ABSENT, Change
from mixer_equiv.equivalence.record.places import PlaceFinder
from mixer_equiv.equivalence.record.precision import device, torch_full_precision
from mixer_equiv.equivalence.record.randomness import GeneratorWatch, fork_generators, seed_generators
from mixer_equiv.equivalence.record.state import ModelState, restoring_state
from mixer_equiv.equivalence.record.torch.arguments import map_leaves
from mixer_equiv.equivalence.record.torch.dispatch_modes import DispatchMode, FunctionMode
from mixer_equiv.equivalence.record.torch.eager import run_eagerly
from mixer_equiv.equivalence.record.torch.graph_tape import GraphTape
from mixer_equiv.equivalence.record.torch.nested_tensors import result_tensors
from mixer_equiv.equivalence.record.torch.scripted import scripts_on_stand_ins
from mixer_equiv.equivalence.record.torch.tape import Tape
from mixer_equiv.equivalence.record.trace import Draw, Trace
from mixer_equiv.errors import MixerEquivError


@run_eagerly
@in_copied_context
def record(
    module: Callable[..., Any],
    arguments: tuple[Any, ...],
    draw: Draw,
    *,
    names: Mapping[str, Tensor] | None = None,
    listed: Container[str] | None = None,
    constants: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
    kwargs: Mapping[str, Any] | None = None,
    every: bool = True,
) -> Trace:
    """Record `module(*arguments, **kwargs)`, of which the first argument is the input.

    `draw(name, shape)` gives each parameter its value. `names` are the parameters by name, the
    module's own by default, of which the `listed` ones are in its state_dict; others that the pass
    uses are called "hidden 0" and so on. Buffers and constants keep their values; `constants` are those that
    have names. Everything is computed in `dtype`. Unless `every` value is asked for, only the outputs have their
    arrays.
    """
    if names is None:
        names = dict(module.named_parameters()) if isinstance(module, nn.Module) else {}
    tape = Tape(draw, names, dtype, _places_in(module), constants=constants)
    with _isolated(module, names) as session, torch_full_precision(), _default_dtype(dtype):
        given = arguments[0].to(device(), dtype)
        entry = tape.enter(given)
        with FunctionMode(tape), DispatchMode(tape):
            result = module(given, *arguments[1:], **(kwargs or {}))
        uses_random_numbers = tape.uses_random_numbers or session.generators.were_used
    outputs = {}
    for path, leaf in result_tensors(result):
        outputs[path] = tape.number_of(leaf)
    tape.hidden += [name for name in names if listed is not None and name not in listed]
    wanted = range(len(tape.values)) if every else set(outputs.values())
    return Trace(
        values=[held.value(held.number in wanted) for held in tape.values],
        input=entry,
        outputs=outputs,
        parameters={name: tuple(parameter.shape) for name, parameter in names.items()},
        hidden=tuple(tape.hidden),
        scalars=tuple(dict.fromkeys(tape.scalars)),
        narrow_dtypes=tuple(dict.fromkeys(tape.narrow_dtypes)),
        decisions=tuple(tape.decisions),
        weight_decisions=tuple(tape.weight_decisions),
        constants_left=frozenset(tape.left),
        exits=tuple(place for place, count in tape.decisions.items() if count > _FEW),
        uses_random_numbers=uses_random_numbers,
    )


@run_eagerly
@in_copied_context
def record_graph(
    module: Callable[..., Any],
    inputs: Mapping[str, Any],
    draw: Draw,
    *,
    names: Mapping[str, Tensor] | None = None,
    constants: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Graph:
    """Record the calls of `module(*inputs)`, of which those named by a number are positional and others keywords.

    Every tensor among the inputs, in containers too, is an input of the graph: "0", or "mask[0]". `draw`, `names`,
    `constants` and `dtype` are those of `record`. Raises `NotFollowedError` for what cannot be run again.
    """
    if names is None:
        names = dict(module.named_parameters()) if isinstance(module, nn.Module) else {}
    tape = GraphTape(draw, names, dtype, _places_in(module), constants=constants)
    with _isolated(module, names), torch_full_precision(), _default_dtype(dtype):
        given = {
            name: map_leaves((Tensor,), lambda leaf: _to_dtype(leaf, dtype), value) for name, value in inputs.items()
        }
        for name, value in given.items():
            for path, tensor in result_tensors(value, name):
                tape.enter_input(path, tensor)
        positional, keywords = split_arguments(given)
        with FunctionMode(tape), DispatchMode(tape):
            result = module(*positional, **keywords)
        return tape.graph({path: tape.number_of(leaf) for path, leaf in result_tensors(result)})


def _to_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor on the device, a float in this dtype; always another object, so that two inputs are told apart."""
    return tensor.to(device(), dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


@run_eagerly
@in_copied_context
def gradients(
    module: Callable[..., Any],
    argument: Tensor,
    draw: Draw,
    names: Mapping[str, Tensor],
    output: str,
    cotangent: np.ndarray,
    kwargs: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Derivatives:
    """Differentiate the sum of an output times `cotangent` by the parameters, drawn as for `record`.

    Gradients of unused parameters are 0. In float64 a second backward pass tells which are not linear in `cotangent`.
    Raises `MixerEquivError` if all are unused, or no gradient is kept.
    """
    tape = Tape(draw, names, dtype, _places_in(module), differentiable=True)
    with _isolated(module, names), torch_full_precision(), torch.enable_grad(), _default_dtype(dtype):
        given = argument.to(device(), dtype)
        tape.enter(given)
        # Inside, because a checkpointed part is run once more on the way back.
        with scripts_on_stand_ins(module, tape), FunctionMode(tape), DispatchMode(tape):
            outputs = dict(result_tensors(module(given, **(kwargs or {}))))
            drawn = {name: tape.stand_ins[id(p)] for name, p in names.items() if id(p) in tape.stand_ins}
            weights = torch.from_numpy(cotangent).to(device(), dtype)
            tape.admit(weights)
            scalar = (outputs[output].reshape(cotangent.shape) * weights).sum()
            if not scalar.requires_grad:
                raise MixerEquivError("no gradient reaches any parameter, as under torch.no_grad")
            is_twice = dtype is torch.float64
            made = torch.autograd.grad(scalar, list(drawn.values()), retain_graph=is_twice, allow_unused=True)
            larger = _backward_again(scalar, list(drawn.values())) if is_twice else None

    def by_name(gradients: Sequence[Tensor | None]) -> dict[str, np.ndarray]:
        found = {name: gradient for name, gradient in zip(drawn, gradients, strict=True) if gradient is not None}
        return {
            name: found[name].cpu().numpy() if name in found else np.zeros(tuple(parameter.shape))
            for name, parameter in names.items()
        }

    return Derivatives(by_name(made)) if larger is None else Derivatives.of(by_name(made), by_name(larger))


def _backward_again(scalar: Tensor, drawn: Sequence[Tensor]) -> Sequence[Tensor | None] | None:
    """The gradients of a larger multiple; None for a graph that can be gone through only once."""
    try:
        return torch.autograd.grad(scalar, drawn, torch.full_like(scalar, LARGER), allow_unused=True)
    except Exception:  # of somebody's hook or `torch.autograd.Function`
        return None


@run_eagerly
@in_copied_context
def call(
    module: Callable[..., Any],
    batches: Sequence[Tensor],
    draw: Draw,
    names: Mapping[str, Tensor],
    kwargs: Mapping[str, Any] | None = None,
    *,
    training: bool = False,
    seed: int = 0,
    skipped: int = 0,
    dtype: torch.dtype = torch.float64,
    way: Way = PLAIN,
) -> Calls:
    """Call the module on each batch in turn, in `dtype`, with parameters drawn as for `record`.

    What a call leaves in the module stays for the next. All generators begin each call with `seed`. Before the last
    call, what counts calls is moved on by those `skipped`. The calls are made in a `way` of `WAYS`.
    """
    tape = Tape(draw, names, dtype, _places_in(module), differentiable=True)
    log = CallLog(len(batches), skipped)
    prepare, mode = WAYS[way.name]
    given = torch.empty(0)
    results: list[tuple[str, Tensor, Tensor]] = []  # of all calls, with copies
    with (
        _isolated(module, names, training, seed) as session,
        torch_full_precision(),
        _default_dtype(dtype),
        mode(),
    ):
        state = ModelState(session.parts)
        for batch in batches:
            held = tape.contents(session.buffers)
            seed_generators(seed)
            fresh = batch.to(device(), dtype)
            if way.rewritten is not None and log.is_before_last:
                tape.rewrite(way.rewritten)
                given.copy_(fresh)
            else:
                given = prepare(fresh.clone())
            tape.enter(given)
            with FunctionMode(tape), DispatchMode(tape):
                result = module(given, **(kwargs or {}))
            if not torch.equal(given.detach(), fresh):
                log.lose(IMAGES)
            for path, leaf, copy in results:
                if not _is_equal(leaf.detach(), copy):
                    log.lose(path)
            leaves = list(result_tensors(result))
            results += [(path, leaf, leaf.detach().clone()) for path, leaf in leaves]
            made = {path: leaf.detach().to("cpu", torch.float64).numpy().copy() for path, leaf in leaves}
            tape.forget_values()
            of_parameters = [Change(name, ABSENT, ABSENT, None) for name in tape.written]
            changes = state.changes()
            log.add(made, changes, [*tape.changes(session.buffers, held), *of_parameters])
            if changes:
                state = ModelState(session.parts)
    return log.calls()


def _is_equal(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _cut_out(images: Tensor) -> Tensor:
    """The same images behind others in memory."""
    return torch.cat([1 - images, images])[len(images) :]


def _cropped(images: Tensor) -> Tensor:
    """The same images (batch, channels, height, width) within larger ones in memory."""
    return nn.functional.pad(images, (1, 1, 1, 1), value=1.0)[..., 1:-1, 1:-1]


# What is done to images, and the mode in which a model is called on them, by the name of a way.
WAYS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[], contextlib.AbstractContextManager[Any]]]] = {
    "": (lambda images: images, contextlib.nullcontext),
    "where gradients are recorded": (lambda images: images, torch.enable_grad),
    "under torch.inference_mode": (lambda images: images, torch.inference_mode),
    "on images that require gradients": (lambda images: images.requires_grad_(), contextlib.nullcontext),
    "on images in channels_last": (
        lambda images: images.contiguous(memory_format=torch.channels_last),
        contextlib.nullcontext,
    ),
    "on images cut out of a larger batch": (_cut_out, contextlib.nullcontext),
    "on images cut out of larger ones": (_cropped, contextlib.nullcontext),
}


@dataclasses.dataclass(frozen=True)
class _Session:
    """A module under isolation: the generators' watch, and its parts and buffers by name."""

    generators: GeneratorWatch
    parts: list[tuple[str, Any]]
    buffers: Mapping[str, Tensor]


def _places_in(module: Any) -> PlaceFinder:
    modules = module.named_modules() if isinstance(module, nn.Module) else ()
    return PlaceFinder({id(submodule): name for name, submodule in modules}, __file__)


@contextlib.contextmanager
def _isolated(module: Any, names: Mapping[str, Tensor], training: bool = False, seed: int = 0) -> Iterator[_Session]:
    """Inside, the module is in eval or train mode, and generators begin with `seed`; after it, all is as it was.

    `names` are the tensors that are drawn.
    """
    is_module = isinstance(module, nn.Module)
    parts = list(module.named_modules()) if is_module else [("", module)]
    drawn = {id(tensor) for tensor in names.values()}
    buffers = {name: held for name, held in module.named_buffers() if id(held) not in drawn} if is_module else {}
    with fork_generators(seed) as generators, torch.inference_mode(False), restoring_state(parts):
        if is_module:
            _set_mode(module, training)
        yield _Session(generators, parts, buffers)


def _set_mode(module: nn.Module, training: bool) -> None:
    """Put a module into train or eval mode as its user would, whose `train` may be another than torch's."""
    try:
        module.train(training)
    except NotImplementedError:  # of an exported program, which has one mode alone
        for submodule in module.modules():
            submodule.training = training


# More numbers than decisions are made on, so that more may be made of them.
_FEW = 32


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
