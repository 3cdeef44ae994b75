"""Record a forward pass of any torch module, in float64, with other parameters than it has.

Two modes work together. The function mode sees calls before torch looks at dtypes, and puts
float64 values in the place of every tensor that was not made during the pass. The dispatch mode
sees every operation that is carried out. The module, and what it refers to, stay as they are.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import threading
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from mixer_equiv.equivalence.record.isolation import restoring_state
from mixer_equiv.equivalence.record.precision import device, torch_full_precision
from mixer_equiv.equivalence.record.randomness import GeneratorWatch, fork_generators
from mixer_equiv.equivalence.record.trace import Trace, Value
from mixer_equiv.errors import MixerEquivError

Draw = Callable[[str, tuple[int, ...]], np.ndarray]

Passing = ParamSpec("Passing")
Result = TypeVar("Result")

_COMPILER = "torch._dynamo"
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


class _Compiles(BaseException):
    """What runs is about to import torch's compiler."""


class _NoCompiler:
    """A finder of modules that stops this thread where it is about to import torch's compiler."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == _COMPILER and threading.get_ident() == self.thread:
            raise _Compiles


def _uncompiled(run: Callable[Passing, Result]) -> Callable[Passing, Result]:
    """A function that runs a module: what torch.compile made, or is about to make, is run as it is written.

    The compiler takes a second to import. Where it is not there yet, nothing is compiled yet.
    """

    @functools.wraps(run)
    def uncompiled(*args: Passing.args, **kwargs: Passing.kwargs) -> Result:
        if _COMPILER not in sys.modules:
            finder = _NoCompiler()
            sys.meta_path.insert(0, finder)
            try:
                return run(*args, **kwargs)
            except _Compiles:
                pass
            finally:
                sys.meta_path.remove(finder)
        with torch.compiler.set_stance("force_eager"):
            return run(*args, **kwargs)

    return uncompiled


@_uncompiled
def record(
    module: Callable[..., Any],
    arguments: tuple[Any, ...],
    draw: Draw,
    *,
    names: Mapping[str, Tensor] | None = None,
    listed: Container[str] | None = None,
    dtype: torch.dtype = torch.float64,
    kwargs: Mapping[str, Any] | None = None,
    every: bool = True,
) -> Trace:
    """The trace of `module(*arguments, **kwargs)`, of which the first argument is the input.

    `draw(name, shape)` gives each parameter its value. `names` are the parameters by name, the
    module's own by default, of which the `listed` ones are in its state_dict; others that the pass
    uses are called "hidden 0" and so on. Buffers and constants keep their values. Everything is
    computed in `dtype`. If not `every` value is asked for, those that are no outputs are left empty.
    """
    if names is None:
        names = dict(module.named_parameters()) if isinstance(module, nn.Module) else {}
    tape = Tape(draw, names, dtype)
    with _as_found(module) as generators, torch_full_precision(), _default_dtype(dtype):
        given = arguments[0].to(device(), dtype)
        entry = tape.enter(given)
        with _Functions(tape), _Operations(tape):
            result = module(given, *arguments[1:], **(kwargs or {}))
        draws = tape.draws or generators.were_used
    outputs = {}
    for path, leaf in _tensors_of(result):
        outputs[path] = tape.number_of(leaf)
    shapes = {name: tuple(parameter.shape) for name, parameter in names.items()}
    tape.hidden += [name for name in names if listed is not None and name not in listed]
    wanted = range(len(tape.values)) if every else set(outputs.values())
    values = [value.finished(value.number in wanted) for value in tape.values]
    narrow_dtypes = tuple(dict.fromkeys(tape.narrow_dtypes))
    scalars = tuple(dict.fromkeys(tape.scalars))
    return Trace(values, entry, outputs, shapes, tuple(tape.hidden), scalars, narrow_dtypes, draws)


@_uncompiled
def gradients(
    module: Callable[..., Any],
    argument: Tensor,
    draw: Draw,
    names: Mapping[str, Tensor],
    output: str,
    cotangent: np.ndarray,
    kwargs: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, np.ndarray]:
    """Gradients of the sum of an output times `cotangent` by the parameters, drawn as for `record`.

    Those of unused parameters are 0. Raises `MixerEquivError` if all are unused, or no gradient is kept.
    """
    tape = Tape(draw, names, dtype, differentiable=True)
    with _as_found(module), torch_full_precision(), torch.enable_grad(), _default_dtype(dtype):
        given = argument.to(device(), dtype)
        tape.enter(given)
        # Inside, because a checkpointed part is run once more on the way back.
        with _Functions(tape), _Operations(tape):
            outputs = dict(_tensors_of(module(given, **(kwargs or {}))))
            drawn = {name: tape.stand_ins[id(p)] for name, p in names.items() if id(p) in tape.stand_ins}
            scalar = (
                outputs[output].reshape(cotangent.shape) * tape.let_in(torch.from_numpy(cotangent).to(device(), dtype))
            ).sum()
            if not scalar.requires_grad:
                raise MixerEquivError("no gradient reaches any parameter, as under torch.no_grad")
            made = torch.autograd.grad(scalar, list(drawn.values()), allow_unused=True)
    found = {name: gradient for name, gradient in zip(drawn, made, strict=True) if gradient is not None}
    return {
        name: found[name].cpu().numpy() if name in found else np.zeros(tuple(parameter.shape))
        for name, parameter in names.items()
    }


@_uncompiled
def outputs(
    module: Callable[..., Any],
    argument: Tensor,
    draw: Draw,
    names: Mapping[str, Tensor],
    kwargs: Mapping[str, Any] | None = None,
    *,
    training: bool,
    seed: int,
) -> dict[str, np.ndarray]:
    """The outputs of one pass in float64, with parameters drawn as for `record`, and torch's generators so seeded."""
    tape = Tape(draw, names, torch.float64, differentiable=True)
    with _as_found(module, training, seed), torch_full_precision(), _default_dtype(torch.float64):
        given = argument.to(device(), torch.float64)
        tape.enter(given)
        with _Functions(tape), _Operations(tape):
            result = module(given, **(kwargs or {}))
    return {path: leaf.detach().to("cpu", torch.float64).numpy() for path, leaf in _tensors_of(result)}


@contextlib.contextmanager
def _as_found(module: Any, training: bool = False, seed: int = 0) -> Iterator[GeneratorWatch]:
    """In eval or train mode, with generators seeded; what the pass leaves behind in the module is taken back."""
    submodules = list(module.modules()) if isinstance(module, nn.Module) else []
    with fork_generators(seed) as generators, torch.inference_mode(False), restoring_state(submodules):
        for submodule in submodules:
            submodule.training = training
        yield generators


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class RecordedValue:
    """A value whose tensor is kept as it is until something is about to write into it."""

    def __init__(self, number: int, tensor: Tensor, operation: str, inputs: tuple[int, ...], is_data: bool) -> None:
        self.number, self.tensor, self.operation, self.inputs, self.is_data = number, tensor, operation, inputs, is_data
        self.leaves: frozenset[str] = frozenset()
        self.name: str | None = None
        self.is_view = False
        self.is_kept = False

    def keep(self) -> None:
        if not self.is_kept:
            self.tensor, self.is_kept = self.tensor.clone(), True

    def finished(self, wanted: bool) -> Value:
        real = self.tensor.real if self.tensor.is_complex() else self.tensor
        array = real.detach().to("cpu", torch.float64).numpy() if wanted else np.empty(0)
        return Value(
            self.number, array, self.operation, self.inputs, self.is_data, self.leaves, self.name, self.is_view
        )


class Tape:
    """What has been recorded, and the stand-ins for tensors from outside."""

    def __init__(
        self, draw: Draw, names: Mapping[str, Tensor], dtype: torch.dtype, *, differentiable: bool = False
    ) -> None:
        self.draw, self.dtype, self.differentiable = draw, dtype, differentiable
        self.names = {id(parameter): name for name, parameter in reversed(list(names.items()))}
        self.values: list[RecordedValue] = []
        self.hidden: list[str] = []
        self.scalars: list[float] = []
        self.narrow_dtypes: list[str] = []
        self.draws = False
        self.stand_ins: dict[int, Tensor] = {}
        self.alive: list[Any] = list(names.values())  # so that no id is used twice
        self.known: dict[int, tuple[Tensor, int]] = {}  # tensors made during the pass: their value's number
        self.by_storage: dict[int, list[RecordedValue]] = {}

    def enter(self, tensor: Tensor) -> int:
        return self._add(tensor, "input", (), is_data=True).number

    def _add(self, tensor: Tensor, operation: str, inputs: tuple[int, ...], *, is_data: bool) -> RecordedValue:
        value = RecordedValue(len(self.values), tensor, operation, inputs, is_data)
        self.values.append(value)
        self.known[id(tensor)] = (tensor, value.number)
        self.by_storage.setdefault(_storage(tensor), []).append(value)
        return value

    def number_of(self, tensor: Tensor) -> int:
        """The number of a tensor's value; what was not made during the pass is let in."""
        if id(tensor) not in self.known:
            tensor = self.stand_in(tensor)
        return self.known[id(tensor)][1]

    def stand_in(self, tensor: Tensor) -> Tensor:
        """What takes a tensor's place: itself if it is of the pass, a random one for a parameter, else a wider one."""
        if id(tensor) in self.known or (self.differentiable and not tensor.is_leaf):
            return tensor  # made during the pass; of a view autograd makes another object
        if id(tensor) in self.stand_ins:
            return self.stand_ins[id(tensor)]
        with _without_modes():
            name = self.names.get(id(tensor))
            if name is None and tensor.requires_grad and tensor.is_leaf and tensor.dtype in _FLOATS:
                name = f"hidden {len(self.hidden)}"
                self.hidden.append(name)
            if name is not None:
                drawn = torch.from_numpy(np.array(self.draw(name, tuple(tensor.shape)), np.float64))
                new = drawn.to(device(), self.dtype).reshape(tensor.shape).requires_grad_(self.differentiable)
            else:
                held = tensor.detach()
                new = (held.to(self.dtype) if tensor.dtype in _FLOATS else held).clone().to(device())
        value = self._add(new, "parameter" if name is not None else "constant", (), is_data=False)
        value.name = name
        value.leaves = frozenset() if name is None else frozenset({name})
        if tensor.numel() == 1 and name is None and not tensor.is_complex():
            self.scalars.append(float(tensor.item()))
        self.stand_ins[id(tensor)] = new
        self.alive.append(tensor)
        return new

    def made(self, operation: str, sources: list[int], result: Any) -> None:
        inputs = tuple(dict.fromkeys(sources))
        is_data = any(self.values[i].is_data for i in inputs)
        leaves = frozenset().union(*(self.values[i].leaves for i in inputs)) if inputs else frozenset()
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.dtype in _FLOATS:
                if id(tensor) in self.known and self.known[id(tensor)][0] is tensor:
                    continue
                alike = [i for i in inputs if self.values[i].tensor.numel() == tensor.numel()]
                is_view = any(_storage(self.values[i].tensor) == _storage(tensor) for i in alike)
                value = self._add(tensor, operation, inputs, is_data=is_data)
                value.leaves, value.is_view = frozenset() if is_data else leaves, is_view
            elif isinstance(tensor, Tensor):
                self._add(tensor, operation, inputs, is_data=is_data)

    def let_in(self, tensor: Tensor) -> Tensor:
        """A tensor that is used as it is."""
        self.known[id(tensor)] = (tensor, -1)
        return tensor

    def remember(self, result: Any) -> None:
        """Count what was made as of the pass, without a value of it."""
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.known[id(tensor)] = (tensor, -1)

    def before_writing(self, tensor: Tensor) -> None:
        for value in self.by_storage.get(_storage(tensor), ()):
            value.keep()

    def written(self, operation: str, tensor: Tensor, sources: list[int]) -> None:
        """The tensor, and what it is a view of, hold other numbers now, which depend on all of the sources."""
        older = [value.number for value in self.by_storage.get(_storage(tensor), ())]
        inputs = tuple(dict.fromkeys([*sources, *older]))
        is_data = any(self.values[i].is_data for i in inputs)
        leaves = frozenset().union(*(self.values[i].leaves for i in inputs))
        touched = {id(self.known[key][0]): self.known[key][0] for key in self._sharing(tensor)}
        for shared in touched.values():
            value = self._add(shared, operation, inputs, is_data=is_data)
            value.leaves = frozenset() if is_data else leaves
        for value in self.by_storage[_storage(tensor)]:
            self.values[value.number] = value

    def _sharing(self, tensor: Tensor) -> list[int]:
        storage = _storage(tensor)
        return [key for key, (known, _) in self.known.items() if _storage(known) == storage]


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):
        return id(tensor)


@contextlib.contextmanager
def _without_modes() -> Iterator[None]:
    with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
        yield


_NARROWING = {"float": "float32", "half": "float16", "bfloat16": "bfloat16"}


class _Functions(TorchFunctionMode):
    """Puts stand-ins into every call, and asks for the pass's dtype where another float is asked for."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        looks = name in ("__get__", "__set__", "__del__") and _property_of(func) not in _VIEWING
        if looks or func in _LOOKING:
            return func(*args, **kwargs)
        args, kwargs = _widened((args, kwargs), self.tape)
        kind = torch.device(device()).type
        if torch.is_autocast_enabled(kind):
            self.tape.narrow_dtypes.append(_dtype_name(torch.get_autocast_dtype(kind)))
        if name in _NARROWING and args and isinstance(args[0], Tensor):
            self.tape.narrow_dtypes.append(_NARROWING[name])
            return args[0].to(self.tape.dtype)
        return func(*args, **kwargs)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Properties of a tensor that are tensors.
_VIEWING = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})


def _property_of(func: Any) -> str:
    """The property that an access such as `Tensor.T.__get__` is to."""
    return str(getattr(getattr(func, "__self__", None), "__name__", ""))


_ARITHMETIC = re.compile(r"aten\.(add|sub|rsub|mul|div|pow)")
_LOOKING = {Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_contiguous, Tensor.__len__, Tensor.__hash__}


def _widened(arguments: Any, tape: Tape) -> Any:
    """The arguments with stand-ins for tensors, and the pass's dtype for other floats."""

    def replace(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return tape.stand_in(leaf)
        if not isinstance(leaf, torch.dtype) or leaf not in _FLOATS:
            return leaf
        if leaf is not tape.dtype:
            tape.narrow_dtypes.append(_dtype_name(leaf))
        return tape.dtype

    return tree_map_only((Tensor, torch.dtype), replace, arguments)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's classes have no types
    """Carries every operation out on the stand-ins, and writes down what comes of it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch wraps the method below in what imports torch._dynamo

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tape = self.tape
        args, kwargs = _widened((args, kwargs or {}), tape)
        leaves, _ = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        tape.scalars.extend(leaf for leaf in leaves if isinstance(leaf, float))
        if _ARITHMETIC.search(str(func)):
            tape.scalars.extend(float(leaf) for leaf in leaves if type(leaf) is int)
        tape.draws = tape.draws or torch.Tag.nondeterministic_seeded in func.tags
        if tape.differentiable:
            result = func(*args, **kwargs)
            tape.remember(result)
            return result
        numbers = [tape.number_of(tensor) for tensor in tensors]
        name = func._schema.name.removeprefix("aten::")
        if not func._schema.is_mutable:
            result = func(*args, **kwargs)
            tape.made(name, numbers, result)
            return result
        targets = [t for t in tensors if _is_written(func, args, kwargs, t)]
        for target in targets:
            tape.before_writing(target)
        result = func(*args, **kwargs)
        for target in targets:
            tape.written(name, target, numbers)
        tape.made(name, numbers, result)
        return result


def _is_written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensor: Tensor) -> bool:
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = kwargs.get(argument.name, args[i] if i < len(args) else None)
            if any(leaf is tensor for leaf in tree_leaves(given)):
                return True
    return False


def find_unlisted_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters in plain lists and dicts of a module, which torch does not know of, by where they are."""
    known = {id(parameter) for parameter in module.parameters()}
    found: dict[str, Tensor] = {}
    for prefix, submodule in module.named_modules():
        for key, value in vars(submodule).items():
            if not key.startswith("_"):
                for name, parameter in _parameters_in(value, f"{prefix}.{key}" if prefix else key):
                    if id(parameter) not in known:
                        known.add(id(parameter))
                        found[name] = parameter
    return found


def _parameters_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.requires_grad and value.is_leaf:
            yield name, value
    elif isinstance(value, nn.Module):
        yield from ((f"{name}.{inner}", parameter) for inner, parameter in value.named_parameters())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _parameters_in(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _parameters_in(item, f"{name}.{i}")


def _tensors_of(result: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors in what a model returned: alone, in tuples, dicts, dataclasses and other plain objects."""
    if isinstance(result, Tensor):
        yield path, result
    elif isinstance(result, Mapping):
        for key, item in result.items():
            yield from _tensors_of(item, f"{path}[{key!r}]")
    elif isinstance(result, list | tuple):
        names = getattr(result, "_fields", None)
        for i, item in enumerate(result):
            yield from _tensors_of(item, f"{path}.{names[i]}" if names else f"{path}[{i}]")
    elif hasattr(result, "__dict__"):
        for key, item in vars(result).items():
            yield from _tensors_of(item, f"{path}.{key}")
