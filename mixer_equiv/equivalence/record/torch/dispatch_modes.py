"""The two modes of a recorded pass: one sees calls of torch's functions, the other the operations they carry out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mixer_equiv.equivalence.record.precision import device
from mixer_equiv.equivalence.record.torch.arguments import leaves_of, map_leaves
from mixer_equiv.equivalence.record.torch.tape import FLOATS, Tape

# Methods that ask for a narrower float, and the name of its dtype.
_NARROWING = {"float": "float32", "half": "float16", "bfloat16": "bfloat16"}

# Properties of a tensor that are tensors, or tell its dtype.
_OF_STAND_INS = frozenset({"T", "mT", "H", "mH", "data", "real", "imag", "dtype", "itemsize", "nbytes"})

# Methods, and operations, by which numbers leave torch for Python or NumPy.
_LEAVING = frozenset({"numpy", "tolist", "__array__"})
_LEAVING_OPERATIONS = re.compile(r"aten\.(_local_scalar_dense|is_nonzero|equal|allclose)\b")

# Methods that only look at a tensor.
_LOOKING = {Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_contiguous, Tensor.__len__, Tensor.__hash__}


class FunctionMode(TorchFunctionMode):
    """Puts stand-ins into every call, and asks for the pass's dtype where another float is asked for."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        is_property = name in ("__get__", "__set__", "__del__") and _property_of(func) not in _OF_STAND_INS
        if is_property or func in _LOOKING:
            return func(*args, **kwargs)
        self.tape.find_place = self.tape.places.mark()
        args, kwargs = _substitute((args, kwargs), self.tape)
        if name in _LEAVING:
            self.tape.record_exit((leaf for leaf in leaves_of(args) if isinstance(leaf, Tensor)), is_whole=True)
        kind = torch.device(device()).type
        if torch.is_autocast_enabled(kind):
            self.tape.narrow_dtypes.append(f"{_dtype_name(torch.get_autocast_dtype(kind))} by autocast")
            with torch.autocast(kind, enabled=False):
                return func(*args, **kwargs)
        if name in _NARROWING and args and isinstance(args[0], Tensor):
            self.tape.narrow_dtypes.append(_NARROWING[name])
            return args[0].to(self.tape.dtype)
        return func(*args, **kwargs)


def _property_of(func: Any) -> str:
    """The name of the property in an access such as `Tensor.T.__get__`."""
    return str(getattr(getattr(func, "__self__", None), "__name__", ""))


_ARITHMETIC = re.compile(r"aten\.(add|sub|rsub|mul|div|pow|clamp|hardtanh|maximum|minimum)")


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's classes have no types
    """Carries every operation out on the stand-ins, and records it on the tape."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch wraps the method below in a function that imports torch._dynamo

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tape = self.tape
        args, kwargs = _substitute((args, kwargs or {}), tape)
        given = leaves_of((args, kwargs))
        tape.scalars.extend(leaf for leaf in given if isinstance(leaf, float))
        if _ARITHMETIC.search(str(func)):
            tape.scalars.extend(float(leaf) for leaf in given if type(leaf) is int)
        tape.uses_random_numbers = tape.uses_random_numbers or _draws(func, args, kwargs)
        if tape.differentiable:
            if func._schema.is_mutable:
                tape.note_writes(
                    leaf for leaf in given if isinstance(leaf, Tensor) and _is_written(func, args, kwargs, leaf)
                )
            result = func(*args, **kwargs)
            tape.admit(result)
            return result
        name = func._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in given if isinstance(leaf, Tensor)]
        if _LEAVING_OPERATIONS.match(str(func)):
            tape.record_exit(tensors, is_whole=False)
        elif torch.Tag.dynamic_output_shape in func.tags:
            tape.record_exit(_deciding_shape(name, args, tensors), is_whole=False)
        numbers = [tape.number_of(tensor) for tensor in tensors]
        mutable = tensors if func._schema.is_mutable else []
        targets = [tensor for tensor in mutable if _is_written(func, args, kwargs, tensor)]
        end_call = tape.begin_call(func, args, kwargs, targets)
        for target in targets:
            tape.prepare_write(target)
        result = func(*args, **kwargs)
        name = _name_of_clamp(name, args, kwargs) if name in _CLAMPS else name
        for target in targets:
            tape.record_write(name, target, numbers)
        tape.record_result(name, numbers, result)
        end_call(result)
        return result


# What a mask is made of.
_TRUTHS = (torch.bool, torch.uint8)


def _deciding_shape(name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> list[Tensor]:
    """The tensors whose numbers decide the shape that an operation of such shapes gives, which Python may ask for."""
    if name == "masked_select":
        return tensors[1:]
    if name == "index":
        return [leaf for leaf in leaves_of(args[1]) if isinstance(leaf, Tensor) and leaf.dtype in _TRUTHS]
    return tensors


# The names under which torch carries out a clamp with two bounds or a lower one.
_CLAMPS = ("clamp", "clamp_", "clamp_min", "clamp_min_")


def _name_of_clamp(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The name of a clamp by the bounds that it has: `relu` where 0 is the only one."""
    lower, upper = (*args[1:], None, None)[:2]
    bounds = kwargs.get("min", lower), kwargs.get("max", upper)
    is_in_place = name.endswith("_")
    if not is_in_place and isinstance(bounds[0], int | float) and bounds == (0, None):
        return "relu"
    kind = "clamp_min" if bounds[1] is None else "clamp_max" if bounds[0] is None else "clamp"
    return f"{kind}_" if is_in_place else kind


def _draws(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation draws random numbers, as attention does only where it drops some of its weights."""
    return torch.Tag.nondeterministic_seeded in func.tags and _argument(func, args, kwargs, "dropout_p") != 0


def _argument(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Any:
    """The argument of an operation with this name, or its default; None if it has none."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[place] if place < len(args) else kwargs.get(name, argument.default_value)
    return None


def _is_written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensor: Tensor) -> bool:
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = kwargs.get(argument.name, args[i] if i < len(args) else None)
            if any(leaf is tensor for leaf in leaves_of(given)):
                return True
    return False


def _substitute(arguments: Any, tape: Tape) -> Any:
    """The arguments with stand-ins for tensors, and the pass's dtype for other floats."""

    def replace(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return tape.stand_in(leaf)
        if not isinstance(leaf, torch.dtype) or leaf not in FLOATS:
            return leaf
        if leaf is not tape.dtype:
            tape.narrow_dtypes.append(_dtype_name(leaf))
        return tape.dtype

    return map_leaves((Tensor, torch.dtype), replace, arguments)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
