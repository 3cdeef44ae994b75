"""`Deviation`: one step at which a recorded run does something else than the program that it is compared with.

It is plain data at the bottom of `equivalence`: the search makes it, the catalogue of faults names it, and
the judge groups it into causes. It knows no trace and no Mixer. Code decides on the values;
`str` turns them into words for people.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Literal

from mixer_equiv.activations import RoundedActivation
from mixer_equiv.equivalence.place import Place


class Choice(enum.Enum):
    """A setting that is neither a number nor the name of a function. Its value is its words."""

    NONE = "none"
    LAYER_NORM = "a LayerNorm"
    ACTIVATION = "an activation"
    STREAM_ADDED = "the stream added"
    STREAM = "the stream"
    NORMALISED_STREAM = "the normalised stream"
    TRANSPOSED = "transposed"
    RESHAPED = "reshaped"
    BIASED = "biased"
    UNBIASED = "unbiased"
    CHANNELS = "channels"
    TOKENS = "tokens"
    TOKENS_AND_CHANNELS = "tokens and channels"
    SUBTRACTED = "subtracted"
    NOT_SUBTRACTED = "not subtracted"
    MEAN = "mean"
    MAX = "max"
    SUM = "sum"
    FIRST_TOKEN = "first token"
    LAST_TOKEN = "last token"
    MEAN_OVER_CHANNELS = "mean over channels"
    FLATTENED = "none, all tokens side by side"
    EVERY_TOKEN = "none, logits of every token"
    BATCH_NORM = "a BatchNorm"
    BEFORE_BRANCH = "before each branch"
    AFTER_ADDITION = "after each addition"
    SIDE_BY_SIDE = "side by side"
    AGAIN = "once more"
    PARAMETER = "a parameter"
    SCALE_AND_BIAS = "a scale and a bias"
    LAYER = "a layer"

    def __str__(self) -> str:
        return self.value


@dataclasses.dataclass(frozen=True)
class ResultOf:
    """The result of an earlier step of the program."""

    step: str

    def __str__(self) -> str:
        return f"the result of {self.step}"


@dataclasses.dataclass(frozen=True)
class ValueOf:
    """The value that the program's operation gives."""

    operation: str

    def __str__(self) -> str:
        return f"that of {self.operation}"


@dataclasses.dataclass(frozen=True)
class OtherValueOf:
    """A value that the trace has instead, made by this operation of its framework."""

    operation: str

    def __str__(self) -> str:
        return f"another value, of {self.operation}"


@dataclasses.dataclass(frozen=True)
class Epsilon:
    """A LayerNorm with this eps."""

    value: float

    def __str__(self) -> str:
        return f"eps {self.value:g}"


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """An operator, among "*", "/", "+" and "-", with a number."""

    operator: str
    number: float

    def __str__(self) -> str:
        short = f"{self.number:g}"
        return f"{self.operator} {short if float(short) == self.number else repr(self.number)}"


@dataclasses.dataclass(frozen=True)
class Clipped:
    """Numbers kept between two others."""

    low: float
    high: float

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if math.isinf(self.high) else f"between {self.low:g} and {self.high:g}"


@dataclasses.dataclass(frozen=True)
class Windows:
    """Patches of an image that overlap or reach beyond its edges; all sizes are (height, width).

    `before` and `after` are the zeros with which each side is padded.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]

    def __str__(self) -> str:
        height, width = self.stride
        overlap = "overlapping, " if self.size > self.stride else ""
        padding = {self.before, self.after} - {(0, 0)}
        padded = f", padded by {' and '.join(f'{h}x{w}' for h, w in sorted(padding))}" if padding else ""
        return f"{overlap}{self.size[0]}x{self.size[1]} every {height}x{width}{padded}"


Kind = Literal["variant", "skip", "insert", "unknown"]
Setting = (
    str
    | float
    | RoundedActivation
    | Choice
    | ResultOf
    | ValueOf
    | OtherValueOf
    | Epsilon
    | Arithmetic
    | Clipped
    | Windows
    | None
)


@dataclasses.dataclass(frozen=True)
class Deviation:
    """A step at which the trace does something else than the program.

    Attributes:
        step: The name of the program's step, such as "MixerBlock_0/LayerNorm_0".
        kind: "variant" for a known other form of the operation, "skip" for a step left out, "insert" for an
            extra operation before the step or after the last one, "unknown" where the trace has another value.
        what: The setting or the operation that differs, an identifier such as "layer_norm_eps".
        expected: The program's setting; None where an operation was inserted.
        found: The trace's setting.
        parameters: Names of the trace's parameters that the program does not have.
        place: Where the trace's model does it, or where the next step is if one is left out; no part of what it is.
    """

    step: str
    kind: Kind
    what: str
    expected: Setting
    found: Setting
    parameters: tuple[str, ...] = ()
    place: Place | None = dataclasses.field(default=None, compare=False, kw_only=True)
