"""Conventions in words: their names, and what to set where code computes others than the weights expect.

Knows no arrays.
"""

from __future__ import annotations

import dataclasses

from mixer_equiv.config import CONVENTIONS
from mixer_equiv.layouts import ADVICE, Conventions, Layout

_ACTIVATIONS = {"gelu_tanh": "tanh GELU", "gelu": "erf GELU"}

# In torch: a module, and a class or function that makes one.
_TORCH_ACTIVATIONS = {
    "gelu_tanh": ("nn.GELU(approximate='tanh')", "partial(nn.GELU, approximate='tanh')"),
    "gelu": ("nn.GELU()", "nn.GELU"),
    "relu": ("nn.ReLU()", "nn.ReLU"),
    "silu": ("nn.SiLU()", "nn.SiLU"),
    "quick_gelu": ("timm.layers.QuickGELU()", "timm.layers.QuickGELU"),
}


def describe_activation(activation: str) -> str:
    """The activation in words, such as "tanh GELU"."""
    return _ACTIVATIONS.get(activation, activation)


def describe_conventions(conventions: Conventions) -> str:
    """The conventions in words, such as "tanh GELU, LayerNorm eps 1e-06"."""
    return ", ".join(_describe(conventions, field) for field in CONVENTIONS)


def convention_warnings(expected: Conventions, assumed_from: str | None, target: Layout) -> list[str]:
    """Say, for each convention that `target`'s code does not follow, what the weights expect and what to set.

    They expect what they were trained with, or, where that is not known, what the code of the layout `assumed_from`
    computes. Padding is left out: it differs only on images that no config here allows.
    """
    warnings = []
    for field in CONVENTIONS:
        if getattr(expected, field) == getattr(target.computes, field):
            continue
        wanted, computed = _describe(expected, field), _describe(target.computes, field)
        advice = target.advice.get(field, ADVICE[field]).format_map(_advice_fields(expected))
        if assumed_from is None:
            origin = f"these weights were trained with {wanted}: {advice}"
        else:
            unknown = "what these weights were trained with is not recorded"
            origin = f"{unknown}, and {assumed_from}'s code computes {wanted}; if that is right, {advice}"
        warnings.append(f"{target.name}'s code computes {computed}; {origin}")
    return warnings


def _describe(conventions: Conventions, field: str) -> str:
    if field == "activation":
        return describe_activation(conventions.activation)
    return f"LayerNorm eps {conventions.layer_norm_eps:g}"


def _advice_fields(wanted: Conventions) -> dict[str, object]:
    """The placeholders of the templates in `Layout.advice`."""
    module, layer = _TORCH_ACTIVATIONS[wanted.activation]
    return {**dataclasses.asdict(wanted), "torch_activation": module, "torch_activation_layer": layer}
