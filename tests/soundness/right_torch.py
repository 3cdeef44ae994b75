"""Right models of torch: the official function in unusual writings, each with the verdict that is right.

`REFERENCES` has the conventions and weights of those that are the official function under a constraint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.soundness.cases import Case, Result
from tests.soundness.writings.official import SQUARE, SQUARE_IMAGE, official
from tests.soundness.writings.torch_constrained import CONSTRAINED
from tests.soundness.writings.torch_control import CONTROL
from tests.soundness.writings.torch_decisions import HARMLESS, ON_NUMBERS
from tests.soundness.writings.torch_effects import EFFECTS
from tests.soundness.writings.torch_gelus import GELUS
from tests.soundness.writings.torch_holders import FOREIGN_HOLDERS, HOLDERS
from tests.soundness.writings.torch_hooks import HOOKS
from tests.soundness.writings.torch_mixing import CHANNELS, TOKENS
from tests.soundness.writings.torch_norms import FOLDED, NORMS
from tests.soundness.writings.torch_numbers import NUMBERS, WITH_A_WORD
from tests.soundness.writings.torch_plain import Mixer, written
from tests.soundness.writings.torch_pools import POOLS
from tests.soundness.writings.torch_scripts import SCRIPTS
from tests.soundness.writings.torch_several import SEVERAL
from tests.soundness.writings.torch_stacks import STACKS
from tests.soundness.writings.torch_stems import STEMS, by_pixel_unshuffle
from tests.soundness.writings.torch_streams import STREAMS
from tests.soundness.writings.torch_unfollowed import TENSORS_OF_OTHER_KINDS, TRANSFORMED, UNFOLLOWED
from tests.soundness.writings.torch_wrappers import WRAPPERS

SAME: tuple[Result, ...] = ("equivalent",)
# Where nobody can look inside. A model that cannot be run in float64 at all may be refused with the reason.
UNSEEN: tuple[Result, ...] = ("nothing_compared", "equivalent", "refused")


def table(
    kind: str,
    makes: Mapping[str, Callable[[], Any]],
    why: str,
    verdicts: tuple[Result, ...] = SAME,
    words: tuple[str, ...] = (),
) -> list[Case]:
    return [Case(f"{kind}: {name}", make, verdicts, why, words=words) for name, make in makes.items()]


def parts(part: str, writings: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """Plain Mixers with one part in each of these writings."""
    return {name: written(**{part: writing}) for name, writing in writings.items()}


CASES: tuple[Case, ...] = (
    *table("stem", parts("embed", STEMS), "the patch stem is one affine map, whatever operations compute it"),
    Case(
        "stem: pixel_unshuffle",
        lambda: Mixer(official(SQUARE), embed=by_pixel_unshuffle),
        SAME,
        "patches as channels, then a convolution of 1x1, are the stem",
        image=SQUARE_IMAGE,
    ),
    *table("LayerNorm", parts("norm", NORMS), "it is mean, variance, eps 1e-6, scale and bias"),
    *table("LayerNorm", FOLDED, "scale and bias are used, wherever they are multiplied", words=("EQUIVALENT",)),
    *table("GELU", parts("gelu", GELUS), "it is the tanh form, by an identity"),
    *table("tokens", parts("tokens", TOKENS), "it is the token-mixing MLP, in parts or in another order"),
    *table("channels", parts("channels", CHANNELS), "it is the channel-mixing MLP, in parts or in another order"),
    *table("several", SEVERAL, "a layer in several, side by side or summed, is the same layer"),
    *table("head", parts("classify", POOLS), "mean and head are linear, in either order"),
    *table("weights", HOLDERS | STACKS, "where weights are held does not change the function"),
    *table("weights", FOREIGN_HOLDERS, "numbers outside torch cannot be drawn", ("equivalent", "nothing_compared")),
    *table("stream", STREAMS, "the stream's shape and holder do not change the function"),
    *table("control", CONTROL | WRAPPERS, "how blocks are called does not change the function"),
    *table("script", SCRIPTS, "a script computes what its source says"),
    *table("effects", EFFECTS | HOOKS, "nothing reads what is done beside computing"),
    *table("decision", ON_NUMBERS, "no outcome changes the function", words=("torch_decisions.py",)),
    *table("decision", HARMLESS, "nothing is decided on numbers of the input, and no guard acts"),
    *table("numbers", NUMBERS, "in float64 it is the official function, and the logits are plain to see"),
    *(
        Case(f"numbers: {name}", make, SAME, "the same function, with a word of warning", words=words)
        for name, (make, words) in WITH_A_WORD.items()
    ),
    *(
        Case(f"under: {name}", item.make, ("equivalent_under",), "the official family, restricted", item.causes)
        for name, item in CONSTRAINED.items()
    ),
    *table("unfollowed", UNFOLLOWED, "what computes is hidden from Python", UNSEEN),
    *table("unfollowed", TRANSFORMED, "torch.func wraps tensors", ("nothing_compared",), ("torch.func",)),
    *table("unfollowed", TENSORS_OF_OTHER_KINDS, "no dense tensors", UNSEEN, ("cannot be followed",)),
)
REFERENCES = {f"under: {name}": (item.config, item.params) for name, item in CONSTRAINED.items()}
