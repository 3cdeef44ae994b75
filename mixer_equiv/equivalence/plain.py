"""Dataclasses as plain data, such as JSON holds, and back. Start at `to_plain` and `from_plain`.

Knows no report: the annotations of a dataclass say what its fields may be.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

Made = TypeVar("Made")


class PlainDataError(ValueError):
    """Plain data that make no object. `problems` has one sentence for each part that is wrong."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def to_plain(value: Any) -> Any:
    """Make plain data of a dataclass and all below it; a number that is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_plain(kind: type[Made], value: Any) -> Made:
    """Make an object of the dataclass `kind`, the inverse of `to_plain`.

    A None where a number must be becomes NaN. Fields with a default may be absent. Raises `PlainDataError`, which
    lists every value of another type and every field that is missing or unknown, by its place: `stages[3].residual`.
    """
    reader = _Reader()
    made = reader.read(kind, value, "")
    if reader.problems:
        raise PlainDataError(tuple(reader.problems))
    return typing.cast(Made, made)


class _Reader:
    """Reads values of annotated types. What it returns is of no use once there are `problems`."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def read(self, kind: Any, value: Any, place: str) -> Any:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            (given,) = (argument for argument in arguments if argument is not types.NoneType)
            return None if value is None else self.read(given, value, place)
        if dataclasses.is_dataclass(kind):
            return self._object(kind, value, place)
        if origin is tuple and isinstance(value, list):
            return tuple(self.read(arguments[0], item, f"{place}[{i}]") for i, item in enumerate(value))
        if origin is Mapping and isinstance(value, dict):
            return {name: self.read(arguments[1], item, f"{place}[{name!r}]") for name, item in value.items()}
        if origin is Literal and value in arguments:
            return value
        if kind is float and (value is None or type(value) in (int, float)):
            return self._number(value, place)
        if isinstance(kind, type) and type(value) is kind:
            return value
        self._refuse(place, value, " or ".join(map(repr, arguments)) if origin is Literal else _WORDS[origin or kind])
        return None

    def _object(self, kind: Any, value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            return self._refuse(place, value, "an object")
        start = f"{place}." if place else ""
        fields = {field.name: field for field in dataclasses.fields(kind)}
        self.problems += [f"{start}{name} is unknown" for name in value if name not in fields]
        self.problems += [
            f"{start}{name} is missing" for name, field in fields.items() if _is_needed(field) and name not in value
        ]
        read = {
            name: self.read(annotated, value[name], start + name)
            for name, annotated in _annotations(kind).items()
            if name in value
        }
        return None if self.problems else kind(**read)

    def _number(self, value: float | None, place: str) -> float:
        try:
            return math.nan if value is None else float(value)
        except OverflowError:  # an integer of hundreds of digits
            self._refuse(place, "an integer of too many digits", "a number")
            return math.nan

    def _refuse(self, place: str, value: Any, wanted: str) -> None:
        shown = repr(value)
        self.problems.append(f"{place or 'it'} is {shown if len(shown) <= 60 else shown[:57] + '...'}, not {wanted}")


_WORDS: Mapping[Any, str] = {
    float: "a number",
    int: "a whole number",
    str: "text",
    bool: "true or false",
    tuple: "a list",
    Mapping: "an object",
}


@functools.cache
def _annotations(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
