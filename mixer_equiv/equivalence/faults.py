"""The catalogue: what code, ports and weights have been seen to do other than the official model, and what follows."""

from __future__ import annotations

from mixer_equiv.equivalence.matching import Deviation
from mixer_equiv.report import Verdict

# By the name of a cause, the operation that it is about, and what to call these.
PLACES = {
    "activation": ("activate", "MLPs"),
    "layer_norm_eps": ("layer_norm", "LayerNorms"),
    "layer_norm_missing": ("layer_norm", "LayerNorms"),
    "layer_norm_variance": ("layer_norm", "LayerNorms"),
    "layer_norm_axes": ("layer_norm", "LayerNorms"),
    "layer_norm_mean": ("layer_norm", "LayerNorms"),
    "residual": ("add", "branches"),
    "residual_missing": ("add", "branches"),
    "pooling": ("mean", "pooling"),
    "transpose": ("swap", "transposes"),
}

# The verdict on a model that differs in this alone; "different" for all others.
VERDICTS: dict[str, Verdict] = {
    "activation": "equivalent_under",
    "layer_norm_eps": "equivalent_under",
    "shared_parameters": "equivalent_under",
    "tied_blocks": "equivalent_under",
    "absent_parameters": "equivalent_under",
    "embedding": "inexpressible",
    "linear": "inexpressible",
    "layer_norm_axes": "inexpressible",
    "final_layer_norm_missing": "inexpressible",
}

# What is in common or absent, and the words that tell it in a layout's constraints.
CONSTRAINTS = {
    "shared_parameters": " equal to ",
    "tied_blocks": " the same in all blocks",
    "absent_parameters": " all zeros",
}

_SKIPPED = {"layer_norm": "layer_norm_missing", "activate": "activation_missing", "add": "residual_missing"}


def name_of(deviation: Deviation) -> str:
    """What a deviation is called in a report."""
    if deviation.kind == "skip":
        return _SKIPPED[deviation.what]
    if deviation.kind == "insert":
        return deviation.what
    return deviation.what if deviation.kind == "variant" else "unknown"
