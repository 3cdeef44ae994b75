"""Right models of linen and nnx: the official function in unusual writings, each with the verdict that is right.

`PACKS` has what puts official weights under the names of a linen model; an nnx model is made of them.
"""

from __future__ import annotations

from functools import partial

from tests.soundness.cases import Case, Result
from tests.soundness.writings.jax_parts import JAX_WRITINGS
from tests.soundness.writings.linen_plain import Plain, flat
from tests.soundness.writings.linen_structures import STRUCTURES, UNFOLLOWED
from tests.soundness.writings.nnx_structures import NNX, UNFOLLOWED_NNX

SAME: tuple[Result, ...] = ("equivalent",)
UNSEEN: tuple[Result, ...] = ("nothing_compared", "equivalent", "refused")

_PARTS = {f"linen {part}: {name}": partial(Plain, ((part, writing),)) for (part, name), writing in JAX_WRITINGS.items()}
PACKS = {
    **dict.fromkeys(_PARTS, flat),
    **{f"linen: {name}": structure.pack for name, structure in (STRUCTURES | UNFOLLOWED).items()},
}
CASES: tuple[Case, ...] = (
    *(Case(name, make, SAME, "the part is the official one, by an identity") for name, make in _PARTS.items()),
    *(
        Case(f"linen: {name}", structure.make, SAME, "how blocks are held and run does not change the function")
        for name, structure in STRUCTURES.items()
    ),
    *(
        Case(f"nnx: {name}", make, SAME, "how blocks are held and run does not change the function")
        for name, make in NNX.items()
    ),
    *(
        Case(f"linen: {name}", structure.make, UNSEEN, "what computes or is held is no parameter of JAX")
        for name, structure in UNFOLLOWED.items()
    ),
    *(
        Case(f"nnx: {name}", make, UNSEEN, "weights that are no Param may be kept")
        for name, make in UNFOLLOWED_NNX.items()
    ),
)
