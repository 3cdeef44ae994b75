"""Weights from any layout to any other, strictly and bit-exactly."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from einops import rearrange

from mixer_equiv.checkpoint import Checkpoint, as_checkpoint
from mixer_equiv.config import MixerConfig
from mixer_equiv.errors import ConventionWarning
from mixer_equiv.layouts import Conventions, Layout, get_layout

if TYPE_CHECKING:
    import torch


@overload
def convert(
    params: Checkpoint,
    *,
    to: str | Layout,
    from_: str | Layout | None = None,
    config: MixerConfig | None = None,
    allow_missing: Collection[str] = (),
) -> Checkpoint: ...
@overload
def convert(
    params: Mapping[str, Any],
    *,
    to: str | Layout,
    from_: str | Layout | None = None,
    config: MixerConfig | None = None,
    allow_missing: Collection[str] = (),
) -> Any: ...
def convert(
    params: Mapping[str, Any],
    *,
    to: str | Layout,
    from_: str | Layout | None = None,
    config: MixerConfig | None = None,
    allow_missing: Collection[str] = (),
) -> Any:
    """Convert a Mixer's weights to the layout `to`, every bit kept.

    `params` are a `Checkpoint`, or arrays of NumPy, torch or JAX by name, flat or nested. Their
    layout is detected unless `from_` names it, and the config inferred unless given; one that is
    given also says, by its activation and eps, what the weights were trained with. Every
    source array is used once and every target filled once; `allow_missing` lists globs, such as
    "head/*", of parameters that may be absent or of another shape, and are then left out.

    Returns what the target's users expect. For a Flax layout, the nested dict that
    `module.apply({"params": ...})` takes, of NumPy arrays, since JAX would truncate float64 where
    x64 is off. For a torch layout, a `Checkpoint`: a mapping that `load_state_dict` takes, whose
    tensors are made when read, so that torch is not imported before. A `Checkpoint` always gives
    a `Checkpoint`.

    Raises `ConversionError` with everything missing, unexpected or mis-shaped, `LayoutError` for
    an unknown layout. Warns (`ConventionWarning`) where the target's code computes something else
    than what the weights were trained with, and says what to set.
    """
    target = get_layout(to)
    source = as_checkpoint(params, layout=from_, config=config)
    result = _convert(source, target, allow_missing)
    for message in convention_differences(source, target):
        warnings.warn(message, ConventionWarning, stacklevel=2)
    in_kind = isinstance(params, Checkpoint) or target.framework == "torch"
    return result if in_kind else result.params


def flax_to_torch(
    params: Mapping[str, Any], *, config: MixerConfig | None = None, allow_missing: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """Official Flax params, nested or flat, as the state_dict of `mixer_equiv.models.torch.MlpMixer`."""
    return convert(as_checkpoint(params, config=config), to="torch", allow_missing=allow_missing).params


def torch_to_flax(
    state_dict: Mapping[str, Any], *, config: MixerConfig | None = None, allow_missing: Collection[str] = ()
) -> dict[str, Any]:
    """A torch state_dict in any known layout as the nested params of the official Flax model."""
    return convert(as_checkpoint(state_dict, config=config), to="linen", allow_missing=allow_missing).params


def convention_differences(source: Checkpoint, target: Layout) -> list[str]:
    """One sentence for each way in which `target`'s code differs from what the weights expect."""
    known = source.trained_with
    expected = known or source.layout.computes
    sentences = []
    for field, describe in _DESCRIPTIONS.items():
        want, have = getattr(expected, field), getattr(target.computes, field)
        if want == have:
            continue
        origin = (
            f"these weights were trained with {describe(want)}"
            if known
            else f"what these weights were trained with is not recorded, and {source.layout.name}'s code computes "
            f"{describe(want)}; if that is right"
        )
        advice = target.advice[field].format_map(_advice_values(expected))
        joint = ":" if known else ","
        sentences.append(f"{target.name}'s code computes {describe(have)}; {origin}{joint} {advice}")
    return sentences


def describe_conventions(conventions: Conventions) -> str:
    """The conventions in words, such as "tanh GELU, LayerNorm eps 1e-06"."""
    return ", ".join(describe(getattr(conventions, field)) for field, describe in _DESCRIPTIONS.items())


def _convert(source: Checkpoint, target: Layout, allow_missing: Collection[str]) -> Checkpoint:
    present, notes = source.check(target=target, allow_missing=allow_missing)
    config = source.config
    if not any(binding.row.in_head for binding in present.values()):
        config = config.replace(num_classes=0)
    arrays = relabel({b.foreign: source.arrays[b.foreign] for b in present.values()}, source.layout, target, config)
    conventions = source.trained_with or target.computes
    config = config.replace(activation=conventions.activation, layer_norm_eps=conventions.layer_norm_eps)
    return dataclasses.replace(
        source, arrays=arrays, layout=target, config=config, config_is_stated=True, notes=(*source.notes, *notes)
    )


def relabel(
    arrays: Mapping[str, np.ndarray], source: Layout, target: Layout, config: MixerConfig
) -> dict[str, np.ndarray]:
    """The same numbers under the target's names, axes in its order, as new contiguous arrays.

    `arrays` are by the source's names and have its shapes; those it does not name are left out.
    """
    theirs = source.bindings(config.num_blocks)
    result = {}
    for canonical, wanted in target.bindings(config.num_blocks).items():
        found = theirs[canonical]
        if found.foreign in arrays:
            pattern = f"{found.row.foreign_axes} -> {wanted.row.foreign_axes}"
            sizes = {axis: size for axis, size in config.axis_sizes.items() if axis in found.row.axes}
            result[wanted.foreign] = rearrange(arrays[found.foreign], pattern, **sizes).copy(order="C")
    return result


# How a sentence names each convention; "padding" differs only on images that no config here allows.
_ACTIVATION_NAMES: dict[str, str] = {"gelu_tanh": "tanh GELU", "gelu": "erf GELU"}
_DESCRIPTIONS: dict[str, Callable[[Any], str]] = {
    "activation": lambda value: _ACTIVATION_NAMES.get(value) or str(value),
    "layer_norm_eps": lambda value: f"LayerNorm eps {value:g}",
}
_TORCH_ACTIVATIONS = {
    "gelu_tanh": ("nn.GELU(approximate='tanh')", "partial(nn.GELU, approximate='tanh')"),
    "gelu": ("nn.GELU()", "nn.GELU"),
    "relu": ("nn.ReLU()", "nn.ReLU"),
    "silu": ("nn.SiLU()", "nn.SiLU"),
    "quick_gelu": ("timm.layers.QuickGELU()", "timm.layers.QuickGELU"),
}


def _advice_values(wanted: Conventions) -> dict[str, Any]:
    module, layer = _TORCH_ACTIVATIONS[wanted.activation]
    return {**dataclasses.asdict(wanted), "torch_activation": module, "torch_activation_layer": layer}
