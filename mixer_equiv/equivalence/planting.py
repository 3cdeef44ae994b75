"""The catalogued faults, planted: the official program run in torch with one of its steps done otherwise.

For the kill matrix of `mixer-equiv mutate`. Diagnosis does not know of this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv.config import MixerConfig
from mixer_equiv.layouts import LINEN
from mixer_equiv.models.reference import MlpMixer as Reference
from mixer_equiv.operations import Parameter, Step

# How a step is done: the model, the step, its inputs and its parameters to its value.
Doing = Callable[["PlantedMixer", Step, list[Tensor], list[Tensor]], Tensor]


def _cut(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: list[Tensor]) -> Tensor:
    (ph, pw), (rows, columns) = model.config.patch_hw, model.config.grid_hw
    batch, channels, _, _ = inputs[0].shape
    patches = inputs[0].reshape(batch, channels, rows, ph, columns, pw).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(batch, rows * columns, ph, pw, channels)


def _linear(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: list[Tensor]) -> Tensor:
    kernel, bias = parameters
    x = inputs[0].flatten(inputs[0].ndim - kernel.ndim + 1)
    return x @ kernel.reshape(-1, kernel.shape[-1]) + bias


def _norm(
    model: PlantedMixer,
    step: Step,
    inputs: list[Tensor],
    parameters: list[Tensor],
    *,
    eps: float = 1e-6,
    axes: tuple[int, ...] = (-1,),
    correction: int = 0,
) -> Tensor:
    x, (scale, bias) = inputs[0], parameters
    variance, mean = torch.var_mean(x, axes, correction=correction, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * scale + bias


def _elementwise(function: Callable[[Tensor], Tensor]) -> Doing:
    return lambda model, step, inputs, parameters: function(inputs[0])


def _first_input(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: list[Tensor]) -> Tensor:
    return inputs[-1]


def _added(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: list[Tensor]) -> Tensor:
    return inputs[0] + inputs[1]


OFFICIAL: dict[str, Doing] = {
    "cut": _cut,
    "linear": _linear,
    "layer_norm": _norm,
    "swap": _elementwise(lambda x: x.mT),
    "activate": _elementwise(partial(F.gelu, approximate="tanh")),
    "add": _added,
    "mean": _elementwise(lambda x: x.mean(1)),
}


def _only(name: str, operation: str, doing: Doing) -> dict[str, Doing]:
    """`doing` at the steps with this in their name, the official one elsewhere."""

    def chosen(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: list[Tensor]) -> Tensor:
        return (doing if name in step.name else OFFICIAL[operation])(model, step, inputs, parameters)

    return {operation: chosen}


def _norm_after_addition(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: list[Tensor]) -> Tensor:
    number = {"token_mixing": 0, "channel_mixing": 1}[step.name.split("/")[1]]
    name = f"{step.name.split('/')[0]}/LayerNorm_{number}"
    return _norm(model, step, [inputs[0] + inputs[1]], [model.weights[f"{name}/{p}"] for p in ("scale", "bias")])


def _norm_after_mean(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: list[Tensor]) -> Tensor:
    held = [model.weights[f"pre_head_layer_norm/{name}"] for name in ("scale", "bias")]
    return _norm(model, step, [inputs[0].mean(1)], held)


def _normalised(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: list[Tensor]) -> Tensor:
    return model.last_normed + inputs[1]


def _remembering_norm(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: list[Tensor]) -> Tensor:
    model.last_normed = _norm(model, step, inputs, parameters)
    return model.last_normed


def _reshaped(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[2], x.shape[1])


def _embedded(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: list[Tensor]) -> Tensor:
    return _linear(model, step, inputs, parameters) + model.weights["position"]


def _two_layers(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: list[Tensor]) -> Tensor:
    inner = F.gelu(inputs[0] @ model.weights["hidden/kernel"] + model.weights["hidden/bias"], approximate="tanh")
    return _linear(model, step, [inner], parameters)


def _softmax(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: list[Tensor]) -> Tensor:
    return _linear(model, step, inputs, parameters).softmax(-1)


# By name: what is done otherwise, and the cause that a report has to name.
PLANTED: dict[str, tuple[Mapping[str, Doing], str]] = {
    "activation: erf GELU": ({"activate": _elementwise(F.gelu)}, "activation"),
    "activation: relu": ({"activate": _elementwise(F.relu)}, "activation"),
    "activation: silu": ({"activate": _elementwise(F.silu)}, "activation"),
    "activation: quick GELU": ({"activate": _elementwise(lambda x: x * (1.702 * x).sigmoid())}, "activation"),
    "activation: none": ({"activate": _elementwise(lambda x: x)}, "activation"),
    "eps 1e-5": ({"layer_norm": partial(_norm, eps=1e-5)}, "layer_norm_eps"),
    "eps 1e-12": ({"layer_norm": partial(_norm, eps=1e-12)}, "layer_norm_eps"),
    "eps 1e-3": ({"layer_norm": partial(_norm, eps=1e-3)}, "layer_norm_eps"),
    "eps 1e-5 in one place": (
        _only("MixerBlock_0/LayerNorm_1", "layer_norm", partial(_norm, eps=1e-5)),
        "layer_norm_eps",
    ),
    "LayerNorm missing": (_only("MixerBlock_0/LayerNorm_1", "layer_norm", _first_input), "layer_norm_missing"),
    "final LayerNorm missing": (_only("pre_head_layer_norm", "layer_norm", _first_input), "layer_norm_missing"),
    "LayerNorm after the addition": (
        {**_only("MixerBlock_", "layer_norm", _first_input), "add": _norm_after_addition},
        "post_norm",
    ),
    "LayerNorm over both axes": ({"layer_norm": partial(_norm, axes=(-2, -1))}, "layer_norm_axes"),
    "LayerNorm after the pool": (
        {**_only("pre_head_layer_norm", "layer_norm", _first_input), "mean": _norm_after_mean},
        "norm_after_pool",
    ),
    "unbiased variance": ({"layer_norm": partial(_norm, correction=1)}, "layer_norm_variance"),
    "residual missing, tokens": (_only("token_mixing/add", "add", _first_input), "residual_missing"),
    "residual missing, channels": (_only("channel_mixing/add", "add", _first_input), "residual_missing"),
    "residual of the normalised stream": (
        {"layer_norm": _remembering_norm, "add": _normalised},
        "residual_normalised",
    ),
    "max pooling": ({"mean": _elementwise(lambda x: x.amax(1))}, "pooling"),
    "sum pooling": ({"mean": _elementwise(lambda x: x.sum(1))}, "pooling"),
    "first token": ({"mean": _elementwise(lambda x: x[:, 0])}, "pooling"),
    "softmax output": (_only("head", "linear", _softmax), "output"),
    "view for a transpose": ({"swap": _elementwise(_reshaped)}, "transpose"),
    "position embedding": (_only("stem", "linear", _embedded), "position_embedding"),
    "MLP head": (_only("head", "linear", _two_layers), "mlp_head"),
}


class PlantedMixer(nn.Module):
    """The official Mixer with one fault of `PLANTED`, or none; parameters by canonical names, "/" kept.

    Images are (batch, channels, height, width).
    """

    last_normed: Tensor

    def __init__(self, config: MixerConfig, fault: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.doing = {**OFFICIAL, **(PLANTED[fault][0] if fault else {})}
        bindings = LINEN.bindings(config.num_blocks, head=config.num_classes > 0)
        parameters = {name: Parameter(name, tuple(b.row.canonical_axes.split())) for name, b in bindings.items()}
        self.steps = Reference(config).program(parameters).steps
        shapes = {name: binding.shape(config.axis_sizes) for name, binding in bindings.items()}
        if fault == "position embedding":
            shapes["position"] = (config.num_tokens, config.hidden_dim)
        if fault == "MLP head":
            shapes |= {"hidden/kernel": (config.hidden_dim, config.hidden_dim), "hidden/bias": (config.hidden_dim,)}
        self.weights = nn.ParameterDict({name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()})

    @torch.no_grad()
    def initialise(self, seed: int, *, everything: bool) -> None:
        """As a fresh official model is, with a head of zeros and LayerNorms of ones; or `everything` random."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.weights.items():
            fan = math.prod(parameter.shape[:-1]) if parameter.ndim > 1 else 16
            noise = torch.randn(parameter.shape, generator=generator) / math.sqrt(fan)
            last = name.rpartition("/")[2]
            fresh = noise if last == "kernel" and not name.startswith("head/") else torch.zeros_like(noise)
            parameter.copy_((noise if everything else fresh) + (1.0 if last == "scale" else 0.0))

    def forward(self, images: Tensor) -> Any:
        values = [images]
        for step in self.steps:
            inputs = [values[place] for place in step.inputs]
            parameters = [self.weights[parameter.name] for parameter in step.parameters]
            values.append(self.doing[step.operation](self, step, inputs, parameters))
        return values[-1]
