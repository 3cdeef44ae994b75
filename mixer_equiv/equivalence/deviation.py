"""`Deviation`: one step at which a recorded run does something else than the program that it is compared with.

It is plain data at the bottom of `equivalence`: search makes it, the catalogue of faults names it, and
the judge groups it into causes. It knows no trace, no operation and no Mixer.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Kind = Literal["variant", "skip", "insert", "unknown"]


@dataclasses.dataclass(frozen=True)
class Deviation:
    """A step at which the trace does something else than the program says.

    Attributes:
        step: The name of the program's step, such as "MixerBlock_0/LayerNorm_0".
        kind: "variant" for a known other form of the operation, "skip" for a step left out, "insert" for one
            operation more before the step (or after the last), "unknown" where the trace has some other value.
        what: The setting or the operation that differs.
        expected: The program's setting, None where an operation was inserted.
        found: The trace's setting.
        parameters: Names of the trace's parameters that the program does not have.
    """

    step: str
    kind: Kind
    what: str
    expected: str | float | None
    found: str | float | None
    parameters: tuple[str, ...] = ()
