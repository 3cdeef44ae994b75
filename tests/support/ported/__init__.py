"""Models of timm and transformers beside writings of the tests' own, each pair with its true mapping of parameters.

`VIT.pair("timm", "linen")` makes a pair of small models, `VIT.pair("timm", "linen", VIT.real)` one of published size,
and `dataclasses.replace(VIT.small, depth=12)` other sizes. `PAIRS` are those on which the verifier is held.
"""

from __future__ import annotations

from tests.support.ported.bert import BERT
from tests.support.ported.convnext import CONVNEXT
from tests.support.ported.gmixer import GMIXER
from tests.support.ported.gmlp import GMLP
from tests.support.ported.gpt2 import GPT_2
from tests.support.ported.llama import LLAMA
from tests.support.ported.pair import Family, Input, Ported, Side
from tests.support.ported.resmlp import RESMLP
from tests.support.ported.resnet import RESNET
from tests.support.ported.vit import VIT

PAIRS: tuple[tuple[Family, str, str], ...] = (
    (VIT, "timm", "transformers"),
    (VIT, "timm", "linen"),
    (VIT, "timm", "nnx"),
    (VIT, "linen", "nnx"),
    (VIT, "timm", "fused"),
    (VIT, "fused", "separate"),
    (VIT, "separate", "fused"),
    (VIT, "transformers", "separate"),
    (RESNET, "timm", "linen"),
    (RESNET, "timm", "folded"),
    (GPT_2, "transformers", "nnx"),
    (BERT, "transformers", "nnx"),
    (LLAMA, "transformers", "nnx"),
    (CONVNEXT, "timm", "linen"),
    (CONVNEXT, "timm", "torch"),
    (RESMLP, "timm", "linen"),
    (GMLP, "timm", "linen"),
    (GMIXER, "timm", "torch"),
)

__all__ = [
    "BERT",
    "CONVNEXT",
    "GMIXER",
    "GMLP",
    "GPT_2",
    "LLAMA",
    "PAIRS",
    "RESMLP",
    "RESNET",
    "VIT",
    "Family",
    "Input",
    "Ported",
    "Side",
]
