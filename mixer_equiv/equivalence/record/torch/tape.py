"""`Tape`: the values of one recorded pass, and the stand-ins for tensors that were not made during it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixer_equiv.equivalence.place import FindPlace, nowhere
from mixer_equiv.equivalence.record.constants import unrounded
from mixer_equiv.equivalence.record.holders import Change
from mixer_equiv.equivalence.record.places import PlaceFinder
from mixer_equiv.equivalence.record.precision import device
from mixer_equiv.equivalence.record.torch.arguments import leaves_of
from mixer_equiv.equivalence.record.trace import Draw, Value
from mixer_equiv.errors import NotFollowedError

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


# Operations that take no more than the shape and kind of a tensor.
_OF_SHAPES = frozenset(
    {
        *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
    }
)


class Origin(NamedTuple):
    """Whether a value depends on the input; if not, the names of the parameters and of the constants in it."""

    is_data: bool = False
    parameters: frozenset[str] = frozenset()
    constants: frozenset[str] = frozenset()


class RecordedTensor:
    """A value of the pass. Its tensor is copied only when an operation is about to write into it."""

    def __init__(self, number: int, tensor: Tensor, operation: str, inputs: tuple[int, ...], origin: Origin) -> None:
        self.number, self.tensor, self.operation, self.inputs, self.origin = number, tensor, operation, inputs, origin
        self.find_place: FindPlace = nowhere
        self.name: str | None = None
        self.is_view = False
        self._is_copied = False

    def copy(self) -> None:
        if not self._is_copied:
            self.tensor, self._is_copied = self.tensor.clone(), True

    def value(self, with_array: bool) -> Value:
        """The value of a trace, in float64, or without its array."""
        real = self.tensor.real if self.tensor.is_complex() else self.tensor
        array = real.detach().to("cpu", torch.float64).numpy() if with_array else np.empty(0)
        return Value(
            self.number,
            array,
            self.operation,
            self.inputs,
            self.origin.is_data,
            # No layer has masks and indices for parameters.
            self.origin.parameters if self.tensor.dtype in FLOATS else frozenset(),
            self.name,
            self.is_view,
            self.find_place,
            self.origin.constants,
        )


class Tape:
    """The record of one pass.

    `names` are the module's parameters, each of which gets the value that `draw` gives it; every float is of
    `dtype`. `places` finds where each value is made. `constants` are other tensors of the module by name.
    A `differentiable` tape keeps autograd's graph, and records no values.
    """

    def __init__(
        self,
        draw: Draw,
        names: Mapping[str, Tensor],
        dtype: torch.dtype,
        places: PlaceFinder,
        *,
        constants: Mapping[str, Tensor] | None = None,
        differentiable: bool = False,
    ) -> None:
        self.draw, self.dtype, self.places, self.differentiable = draw, dtype, places, differentiable
        self.names = {id(parameter): name for name, parameter in reversed(list(names.items()))}
        self.constants = {id(tensor): name for name, tensor in (constants or {}).items()}
        self.values: list[RecordedTensor] = []
        self.hidden: list[str] = []
        self.scalars: list[float] = []
        self.narrow_dtypes: list[str] = []
        self.decisions: Counter[str] = Counter()  # how many numbers left torch at each place
        self.weight_decisions: dict[str, None] = {}  # the places at which numbers of parameters did
        self.written: dict[str, None] = {}  # parameters
        self.left: set[str] = set()  # constants whose numbers went to Python
        self.uses_random_numbers = False
        self.find_place: FindPlace = nowhere  # of the call of torch's that is under way, of one or more operations
        self.stand_ins: dict[int, Tensor] = {}
        self._alive: list[Any] = list(names.values())  # so that no id is used twice
        self._known: dict[int, tuple[Tensor, int]] = {}  # tensors made during the pass: their value's number
        self._by_storage: dict[int, list[RecordedTensor]] = {}

    def enter(self, tensor: Tensor) -> int:
        """Record the input, and return its number."""
        return self._add(tensor, "input", (), Origin(is_data=True)).number

    def admit(self, result: Any) -> None:
        """Take tensors as made during the pass, without recording values of them."""
        for tensor in leaves_of(result):
            if isinstance(tensor, Tensor):
                self._known[id(tensor)] = (tensor, -1)

    def number_of(self, tensor: Tensor) -> int:
        """The number of a tensor's value; a tensor that was not made during the pass is given a stand-in."""
        if id(tensor) not in self._known:
            tensor = self.stand_in(tensor)
        return self._known[id(tensor)][1]

    def stand_in(self, tensor: Tensor) -> Tensor:
        """The tensor to use in a tensor's place: itself if made during the pass, a drawn parameter, or a wider copy."""
        if id(tensor) in self._known or (self.differentiable and not tensor.is_leaf):
            return tensor  # of a view, autograd makes another object
        if id(tensor) not in self.stand_ins:
            _refuse_transforms()
            if self._is_same_value(tensor):
                return tensor
            self.stand_ins[id(tensor)] = self._draw_or_copy(tensor)
            self._alive.append(tensor)
        return self.stand_ins[id(tensor)]

    def _is_same_value(self, tensor: Tensor) -> bool:
        """Whether a tensor is a known one in another object, as of `as_subclass`; it is known from then on."""
        if id(tensor) in self.names or id(tensor) in self.constants:
            return False
        with _without_modes():
            same = (number for known, number in reversed(self._known.values()) if is_same_memory(known, tensor))
            number = next(same, None)
            if number is None:
                return False
            _refuse_other_classes(tensor)
        self._known[id(tensor)] = (tensor, number)
        return True

    def _draw_or_copy(self, tensor: Tensor) -> Tensor:
        with _without_modes():
            _refuse_other_classes(tensor)
            name = self.names.get(id(tensor))
            if name is None and tensor.requires_grad and tensor.is_leaf and tensor.dtype in FLOATS:
                name = f"hidden {len(self.hidden)}"
                self.hidden.append(name)
            if name is not None:
                drawn = torch.from_numpy(np.array(self.draw(name, tuple(tensor.shape)), np.float64))
                new = drawn.to(device(), self.dtype).reshape(tensor.shape).requires_grad_(self.differentiable)
                for hook in (tensor._backward_hooks or {}).values() if self.differentiable else ():
                    new.register_hook(hook)  # type: ignore[no-untyped-call]
            else:
                _refuse_other_layouts(tensor, "constant")
                new = self._widen(tensor.detach()).clone().to(device())
        if name is not None:
            self._add(new, "parameter", (), Origin(parameters=frozenset({name}))).name = name
        else:
            known = frozenset({self.constants[id(tensor)]} if id(tensor) in self.constants else ())
            self._add(new, "constant", (), Origin(constants=known))
        if tensor.numel() == 1 and name is None and not tensor.is_complex():
            self.scalars.append(float(new.item()))
        return new

    def _widen(self, held: Tensor) -> Tensor:
        """A constant in the pass's dtype, as the number in the code where it is a rounded one."""
        if held.dtype not in FLOATS or held.is_meta:
            return held
        is_rounded = held.dtype is torch.float32 and self.dtype is torch.float64
        exact = unrounded(held.cpu().numpy()) if is_rounded else None
        return held.to(self.dtype) if exact is None else torch.from_numpy(exact).to(self.dtype)

    def note_writes(self, tensors: Iterable[Tensor]) -> None:
        """Note the parameters that share memory with tensors that are about to be written into."""
        storages = {storage_of(tensor) for tensor in tensors}
        held = ((name, self.stand_ins.get(key)) for key, name in self.names.items())
        self.written |= {
            name: None for name, stand_in in held if stand_in is not None and storage_of(stand_in) in storages
        }

    def rewrite(self, draw: Draw) -> None:
        """Write other values into the parameters that stand-ins have been made for; those to come get them too."""
        self.draw = draw
        with _without_modes(), torch.no_grad():
            for key, name in self.names.items():
                if (held := self.stand_ins.get(key)) is not None:
                    held.copy_(torch.from_numpy(draw(name, tuple(held.shape))).reshape(held.shape))

    def forget_values(self) -> None:
        """Forget the values of a call: what the module keeps of them is taken as it is by the next."""
        self.values.clear()
        self._known = {id(tensor): (tensor, -1) for tensor in self.stand_ins.values()}
        self._by_storage.clear()

    def contents(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of what these tensors, or their stand-ins, hold now, by their names."""
        with _without_modes():
            held = {name: self.stand_ins.get(id(tensor), tensor) for name, tensor in tensors.items()}
            return {name: tensor.detach().clone() for name, tensor in held.items()}

    def changes(self, tensors: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Iterator[Change]:
        """What was written into these tensors, or their stand-ins, since their contents were those `before`."""
        for name, now in self.contents(tensors).items():
            if not now.is_meta and not torch.equal(now, before[name].to(now)):
                write: Callable[[Any], Any] = self.stand_ins.get(id(tensors[name]), now).copy_
                yield Change(name, before[name].to(now), now, write)

    def record_result(self, operation: str, sources: list[int], result: Any) -> None:
        """Record the tensors that an operation made of the values with these numbers."""
        inputs = tuple(dict.fromkeys(sources))
        origin = self._origin(() if operation in _OF_SHAPES else inputs)
        for tensor in leaves_of(result):
            if isinstance(tensor, Tensor) and tensor.dtype in FLOATS:
                if id(tensor) in self._known and self._known[id(tensor)][0] is tensor:
                    continue
                alike = [i for i in inputs if self.values[i].tensor.numel() == tensor.numel()]
                is_view = any(storage_of(self.values[i].tensor) == storage_of(tensor) for i in alike)
                self._add(tensor, operation, inputs, origin).is_view = is_view
            elif isinstance(tensor, Tensor):
                self._add(tensor, operation, inputs, origin)

    def record_exit(self, tensors: Iterable[Tensor], *, is_whole: bool) -> None:
        """Note the place, if it is there that numbers of the input, or of parameters, leave torch for Python.

        A few numbers decide what is run, or may; of many, more may be made than can be followed.
        """
        numbers = [self._known[id(tensor)][1] for tensor in tensors if id(tensor) in self._known]
        numbers = [number for number in numbers if number >= 0]
        origin = self._origin(numbers)
        self.left.update(name for number in numbers for name in self.values[number].origin.constants)
        if origin.is_data or origin.parameters:
            place = self.places.current()
            told = "" if place is None else f"{place} ({place.text})" if place.text else str(place)
            if origin.is_data:
                count = sum(self.values[number].tensor.numel() for number in numbers)
                self.decisions[told] += count if is_whole else 1
            else:
                self.weight_decisions[told] = None

    def prepare_write(self, tensor: Tensor) -> None:
        """Copy the recorded values that share memory with a tensor, which is about to be written into."""
        for value in self._by_storage.get(storage_of(tensor), ()):
            value.copy()

    def record_write(self, operation: str, tensor: Tensor, sources: list[int]) -> None:
        """Record that the tensor, and those that share its memory, hold new numbers, which depend on all sources."""
        storage = storage_of(tensor)
        older = [value.number for value in self._by_storage.get(storage, ())]
        inputs = tuple(dict.fromkeys([*sources, *older]))
        origin = self._origin(inputs)
        for shared in self.sharing(tensor):
            self._add(shared, operation, inputs, origin)

    def sharing(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of the pass that share memory with this one, itself among them."""
        storage = storage_of(tensor)
        return [known for known, _ in self._known.values() if storage_of(known) == storage]

    def begin_call(self, func: Any, args: Any, kwargs: Any, written: list[Tensor]) -> Callable[[Any], None]:
        """Note a call that is about to be made and will write into those tensors; its result is to be told."""
        return lambda result: None

    def _add(self, tensor: Tensor, operation: str, inputs: tuple[int, ...], origin: Origin) -> RecordedTensor:
        _refuse_other_layouts(tensor, operation)
        value = RecordedTensor(len(self.values), tensor, operation, inputs, origin)
        value.find_place = self.find_place
        self.values.append(value)
        self._known[id(tensor)] = (tensor, value.number)
        self._by_storage.setdefault(storage_of(tensor), []).append(value)
        return value

    def _origin(self, inputs: Iterable[int]) -> Origin:
        """The origin of a value that is made of these. What else is in one that depends on the input is not kept."""
        origins = [self.values[i].origin for i in inputs]
        if any(origin.is_data for origin in origins):
            return Origin(is_data=True)
        parameters, constants = ([getattr(origin, kind) for origin in origins] for kind in ("parameters", "constants"))
        return Origin(False, frozenset().union(*parameters), frozenset().union(*constants))


def _refuse_transforms() -> None:
    """Raise `NotFollowedError` inside a transform of torch.func, where tensors are wrapped."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise NotFollowedError(
            "torch.vmap, and what else transforms functions in torch.func, cannot be followed inside a model; verify a "
            "writing that computes on the whole batch"
        )


def _refuse_other_classes(tensor: Tensor) -> None:
    """Raise `NotFollowedError` for a tensor of a class that does operations in its own way."""
    for kind in type(tensor).__mro__:
        if kind.__module__.partition(".")[0] == "torch":
            return
        if "__torch_function__" in vars(kind) or "__torch_dispatch__" in vars(kind):
            raise NotFollowedError(
                f"{kind.__name__}, a class of tensors with operations of its own, cannot be followed; verify a writing "
                "with plain tensors"
            )


def _refuse_other_layouts(tensor: Tensor, operation: str) -> None:
    """Raise `NotFollowedError` for a tensor that is not an array of elements in memory."""
    if tensor.is_nested or tensor.layout is not torch.strided:
        kind = "nested tensors" if tensor.is_nested else f"sparse tensors ({_short(tensor.layout)})"
        made = "held as a constant" if operation == "constant" else f"made by {operation}"
        raise NotFollowedError(f"{kind}, here one {made}, cannot be followed; verify a writing with dense tensors")


def _short(layout: torch.layout) -> str:
    return str(layout).removeprefix("torch.")


def storage_of(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):
        return id(tensor)


def is_same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same elements of one storage, in the same order."""
    return (
        one.layout is other.layout is torch.strided
        and not (one.is_nested or other.is_nested)
        and one.shape == other.shape
        and one.dtype is other.dtype
        and storage_of(one) == storage_of(other)
        and one.storage_offset() == other.storage_offset()
        and one.stride() == other.stride()
    )


@contextlib.contextmanager
def _without_modes() -> Iterator[None]:
    with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
        yield
