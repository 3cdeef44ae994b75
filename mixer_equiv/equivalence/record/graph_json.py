"""`argument_to_json` and `argument_from_json`: the arguments of a graph's calls as JSON, and back.

Numbers, strings, None and lists stand for themselves. Anything else is an object of one field, whose name is its kind:
`{"ref": [3, null]}`, `{"tuple": [...]}`, `{"float": "inf"}`, `{"dtype": "float64"}`. The functions beside them check a
single value of a file. Nothing here opens a file or imports a framework.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from mixer_equiv.equivalence.record.graph import Ref, Setting
from mixer_equiv.errors import summarize

# The settings that a call may have, by kind.
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "dtype": (
        *("bool", "float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    ),
    "memory_format": ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d"),
    "layout": ("strided",),
    "device": ("",),
}

# Containers within one another.
_MAX_DEPTH = 16
_MAX_TEXT = 2000
_INT64 = 2**63

_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


class GraphFileError(ValueError):
    """A part of a file that cannot be: what was found, and what was expected."""


def argument_to_json(value: Any) -> Any:
    """An argument as JSON. Raises `GraphFileError` for one of another type than the arguments of a `Node` have."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, complex):
        return {"complex": [argument_to_json(value.real), argument_to_json(value.imag)]}
    if isinstance(value, Ref):
        return {"ref": [value.node, value.part]}
    if isinstance(value, Setting):
        return {value.kind: value.name}
    if isinstance(value, tuple):
        return {"tuple": [argument_to_json(item) for item in value]}
    if isinstance(value, list):
        return [argument_to_json(item) for item in value]
    if isinstance(value, Mapping):
        others = [name for name in value if not isinstance(name, str)]
        if others:
            raise GraphFileError(f"an argument is a dict with a {type(others[0]).__name__} for a name, not a string")
        return {"dict": {name: argument_to_json(item) for name, item in value.items()}}
    raise GraphFileError(f"an argument is a {type(value).__name__}, which a file cannot hold")


def argument_from_json(value: Any, ref: Callable[[Any], Ref], depth: int = 0) -> Any:
    """The inverse of `argument_to_json`; `ref` checks a node and a part, and gives the `Ref` to it."""
    if depth > _MAX_DEPTH:
        raise GraphFileError(f"an argument is nested more than {_MAX_DEPTH} deep")

    def inner(item: Any) -> Any:
        return argument_from_json(item, ref, depth + 1)

    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return whole_number(value, "an argument", -_INT64, _INT64 - 1)
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, str):
        return text(value, "an argument")
    if isinstance(value, list):
        return [inner(item) for item in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise GraphFileError(f"an argument is {shown(value)}, not an object of one field, its kind")
    ((kind, held),) = value.items()
    if kind == "ref":
        return ref(held)
    if kind == "tuple":
        return tuple(inner(item) for item in list_of(held, "a tuple"))
    if kind == "dict":
        return {text(name, "a name"): inner(item) for name, item in object_of(held, "a dict").items()}
    if kind == "float":
        return _NOT_FINITE[one_of(held, _NOT_FINITE, "a number that is not finite")]
    if kind == "complex":
        real, imaginary = (inner(part) for part in list_of(held, "a complex number", 2))
        if not (isinstance(real, float) and isinstance(imaginary, float)):
            raise GraphFileError(f"a complex number is {shown(held)}, not two floats")
        return complex(real, imaginary)
    kind = one_of(kind, SETTINGS, "the kind of an argument")
    return Setting(kind, one_of(held, SETTINGS[kind], f"a {kind}"))


def _finite(value: float) -> float:
    if not math.isfinite(value):  # JSON of 1e999
        raise GraphFileError("an argument is a number too large for a float; an infinity is written as an object")
    return value


# One value


def whole_number(value: Any, what: str, low: int, high: int) -> int:
    """Check a whole number from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise GraphFileError(f"{what} is {shown(value)}, not a whole number from {low} to {high}")
    return value


def text(value: Any, what: str) -> str:
    """Check a string without control characters."""
    if not isinstance(value, str) or not value.isprintable() or len(value) > _MAX_TEXT:
        raise GraphFileError(f"{what} is {shown(value)}, not at most {_MAX_TEXT} printable characters")
    return value


def list_of(value: Any, what: str, length: int | None = None) -> list[Any]:
    """Check a list, of this length if one is given."""
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise GraphFileError(f"{what} is {shown(value)}, not a list{'' if length is None else f' of {length}'}")
    return value


def object_of(value: Any, what: str) -> dict[str, Any]:
    """Check an object of JSON."""
    if not isinstance(value, dict):
        raise GraphFileError(f"{what} is {shown(value)}, not an object")
    return value


def fields_of(value: Any, what: str, fields: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """Check an object with these fields, and no others but those optional."""
    held = object_of(value, what)
    found = [f"no field {name!r}" for name in fields if name not in held]
    found += [f"the unknown field {shown(name)}" for name in held if name not in (*fields, *optional)]
    if found:
        raise GraphFileError(f"{what} has {summarize(found)}")
    return held


def one_of(value: Any, known: Collection[str], what: str) -> str:
    """Check a string that is one of those known."""
    if not isinstance(value, str) or value not in known:
        raise GraphFileError(f"{what} is {shown(value)}, not {' or '.join(map(repr, known))}")
    return value


def shown(value: Any, length: int = 60) -> str:
    """A value of a file in a message, without control characters, and short."""
    if isinstance(value, int) and abs(value) >= 2**64:
        return "an integer of more than 64 bits"
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    found = repr(value[:length] if isinstance(value, str) else value)
    return found if len(found) <= length else f"{found[: length - 3]}..."
