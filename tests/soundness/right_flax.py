"""Right models of linen and nnx: the official function in unusual writings, each with the verdict that is right.

`PACKS` has what puts official weights under the names of a linen model; an nnx model is made of them.
"""

from __future__ import annotations

from functools import partial

from tests.soundness.cases import Case, Result
from tests.soundness.writings import jax_mixing, jax_parts
from tests.soundness.writings.linen_layers import LAYERS
from tests.soundness.writings.linen_loops import LOOPS, UNFOLLOWED
from tests.soundness.writings.linen_plain import Plain, Structure, flat
from tests.soundness.writings.nnx_plain import Mixer
from tests.soundness.writings.nnx_structures import NNX, UNFOLLOWED_NNX

SAME: tuple[Result, ...] = ("equivalent",)
UNSEEN: tuple[Result, ...] = ("nothing_compared", "equivalent", "refused")

PARTS = jax_parts.WRITINGS | jax_mixing.WRITINGS
LINEN = {f"linen {p}: {name}": Structure(partial(Plain, ((p, w),)), flat) for (p, name), w in PARTS.items()}
LINEN |= {f"linen: {name}": structure for name, structure in (LOOPS | LAYERS).items()}
LINEN_UNFOLLOWED = {f"linen: {name}": structure for name, structure in UNFOLLOWED.items()}
ROUNDED = {
    f"linen under: {name}": Structure(partial(Plain, ((part, writing),)), flat)
    for (part, name), writing in jax_parts.ROUNDED.items()
}
NNX_ALL = {f"nnx: {name}": make for name, make in NNX.items()}
# nnx has its own convolution and LayerNorm in the plain model.
NNX_ALL |= {
    f"nnx {part}: {name}": partial(Mixer, **{part: writing})
    for (part, name), writing in PARTS.items()
    if part in ("gelu", "tokens", "channels")
}

PACKS = {name: structure.pack for name, structure in (LINEN | LINEN_UNFOLLOWED | ROUNDED).items()}
CASES: tuple[Case, ...] = (
    *(Case(name, s.make, SAME, "parts and loops of other kinds compute the same") for name, s in LINEN.items()),
    *(Case(name, make, SAME, "layers and loops of other kinds compute the same") for name, make in NNX_ALL.items()),
    *(
        Case(name, s.make, ("equivalent_under",), "with the constants of its code", ("activation",))
        for name, s in ROUNDED.items()
    ),
    *(Case(name, s.make, UNSEEN, "numbers outside `params` may be kept") for name, s in LINEN_UNFOLLOWED.items()),
    *(Case(f"nnx: {name}", make, UNSEEN, "what is no Param may be kept") for name, make in UNFOLLOWED_NNX.items()),
)
