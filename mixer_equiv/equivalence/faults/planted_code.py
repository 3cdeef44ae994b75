"""The catalogued faults, planted: the official program run in torch with one of its steps done otherwise.

And weights handed over wrongly. For the kill matrix of `mixer-equiv mutate`; diagnosis does not know of this module.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv.arrays.interop import BFLOAT16
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.sides.weights import random_params
from mixer_equiv.layouts import LINEN
from mixer_equiv.models.numpy import MlpMixer as Reference
from mixer_equiv.operations import Parameter, Step

Kind = Literal["code", "constraint", "port", "notice"]
Arrays = Mapping[str, np.ndarray]

# How a step is done: the model, the step, its inputs and its parameters to its value.
Doing = Callable[["PlantedMixer", Step, list[Tensor], Sequence[Tensor]], Tensor]


def _cut(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    (ph, pw), (rows, columns) = model.config.patch_hw, model.config.grid_hw
    batch, channels, _, _ = inputs[0].shape
    patches = inputs[0].reshape(batch, channels, rows, ph, columns, pw).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(batch, rows * columns, ph, pw, channels)


def _linear(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    kernel, bias = parameters
    x = inputs[0].flatten(inputs[0].ndim - kernel.ndim + 1)
    return x @ kernel.reshape(-1, kernel.shape[-1]) + bias


def _norm(
    model: PlantedMixer,
    step: Step,
    inputs: list[Tensor],
    parameters: Sequence[Tensor],
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


def _first_input(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return inputs[-1]


def _added(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return inputs[0] + inputs[1]


# From canonical weights to what is handed over in their place.
Handover = Callable[[Arrays, MixerConfig], Arrays]

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

    def chosen(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        return (doing if name in step.name else OFFICIAL[operation])(model, step, inputs, parameters)

    return {operation: chosen}


def _norm_after_addition(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    number = {"token_mixing": 0, "channel_mixing": 1}[step.name.split("/")[1]]
    name = f"{step.name.split('/')[0]}/LayerNorm_{number}"
    return _norm(model, step, [inputs[0] + inputs[1]], [model.weights[f"{name}/{p}"] for p in ("scale", "bias")])


def _norm_after_mean(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    held = [model.weights[f"pre_head_layer_norm/{name}"] for name in ("scale", "bias")]
    return _norm(model, step, [inputs[0].mean(1)], held)


def _normalised(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return model.last_normed + inputs[1]


def _remembering_norm(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    model.last_normed = _norm(model, step, inputs, parameters)
    return model.last_normed


def _reshaped(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[2], x.shape[1])


def _embedded(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return _linear(model, step, inputs, parameters) + model.weights["position"]


def _two_layers(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    inner = F.gelu(inputs[0] @ model.weights["hidden/kernel"] + model.weights["hidden/bias"], approximate="tanh")
    return _linear(model, step, [inner], parameters)


def _dropped_out(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return F.dropout(_linear(model, step, inputs, parameters), 0.5, model.training)


def _softmax(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return _linear(model, step, inputs, parameters).softmax(-1)


@dataclasses.dataclass(frozen=True)
class Planted:
    """A fault: the cause that a report has to name, or the words of its warning, and what is done otherwise.

    `doing` are operations, by name; `held` are parameters, by the beginnings of their names, that are
    another one (a name), or zeros (None).
    """

    kind: Kind
    cause: str
    doing: Mapping[str, Doing] = dataclasses.field(default_factory=dict)
    held: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


def _code(cause: str, doing: Mapping[str, Doing]) -> Planted:
    return Planted("code", cause, doing)


def _activation(function: Callable[[Tensor], Tensor]) -> Planted:
    return _code("activation", {"activate": _elementwise(function)})


def _eps(eps: float) -> Planted:
    return _code("layer_norm_eps", {"layer_norm": partial(_norm, eps=eps)})


def _pool(function: Callable[[Tensor], Tensor]) -> Planted:
    return _code("pooling", {"mean": _elementwise(function)})


HIDDEN = "parameters not in the state_dict"

PLANTED: dict[str, Planted] = {
    "activation: erf GELU": _activation(F.gelu),
    "activation: relu": _activation(F.relu),
    "activation: silu": _activation(F.silu),
    "activation: quick GELU": _activation(lambda x: x * (1.702 * x).sigmoid()),
    "activation: none": _activation(lambda x: x),
    "eps 1e-5": _eps(1e-5),
    "eps 1e-12": _eps(1e-12),
    "eps 1e-3": _eps(1e-3),
    "eps 1e-5 in one place": _code(
        "layer_norm_eps", _only("MixerBlock_0/LayerNorm_1", "layer_norm", partial(_norm, eps=1e-5))
    ),
    "LayerNorm missing": _code("layer_norm_missing", _only("MixerBlock_0/LayerNorm_1", "layer_norm", _first_input)),
    "final LayerNorm missing": _code("layer_norm_missing", _only("pre_head_layer_norm", "layer_norm", _first_input)),
    "LayerNorm after the addition": _code(
        "post_norm", {**_only("MixerBlock_", "layer_norm", _first_input), "add": _norm_after_addition}
    ),
    "LayerNorm over both axes": _code("layer_norm_axes", {"layer_norm": partial(_norm, axes=(-2, -1))}),
    "LayerNorm after the pool": _code(
        "norm_after_pool", {**_only("pre_head_layer_norm", "layer_norm", _first_input), "mean": _norm_after_mean}
    ),
    "unbiased variance": _code("layer_norm_variance", {"layer_norm": partial(_norm, correction=1)}),
    "residual missing, tokens": _code("residual_missing", _only("token_mixing/add", "add", _first_input)),
    "residual missing, channels": _code("residual_missing", _only("channel_mixing/add", "add", _first_input)),
    "residual of the normalised stream": _code(
        "residual_normalised", {"layer_norm": _remembering_norm, "add": _normalised}
    ),
    "max pooling": _pool(lambda x: x.amax(1)),
    "sum pooling": _pool(lambda x: x.sum(1)),
    "first token": _pool(lambda x: x[:, 0]),
    "softmax output": _code("output", _only("head", "linear", _softmax)),
    "view for a transpose": _code("transpose", {"swap": _elementwise(_reshaped)}),
    "position embedding": _code("position_embedding", _only("stem", "linear", _embedded)),
    "MLP head": _code("mlp_head", _only("head", "linear", _two_layers)),
    "LayerNorm shared in a block": Planted(
        "constraint", "shared_parameters", held={"MixerBlock_{i}/LayerNorm_1": "MixerBlock_{i}/LayerNorm_0"}
    ),
    "blocks tied": Planted("constraint", "tied_blocks", held={"MixerBlock_{i}/": "MixerBlock_0/"}),
    "no stem bias": Planted("constraint", "absent_parameters", held={"stem/bias": None}),
    HIDDEN: Planted("notice", "not_in_state_dict"),
    "dropout in train mode": Planted("notice", "train_mode", _only("head", "linear", _dropped_out)),
}


def _swapped(old: str, new: str) -> Handover:
    def swapped(weights: Arrays, config: MixerConfig) -> Arrays:
        names = {name: name.replace(old, "?").replace(new, old).replace("?", new) for name in weights}
        return {names[name]: array for name, array in weights.items()}

    return swapped


def _changed(end: str, change: Callable[[np.ndarray], np.ndarray]) -> Handover:
    """Arrays whose names end so are changed."""
    return lambda weights, config: {n: change(array) if n.endswith(end) else array for n, array in weights.items()}


def _sorted_as_strings(weights: Arrays, config: MixerConfig) -> Arrays:
    order = sorted(range(config.num_blocks), key=str)
    names = {f"MixerBlock_{i}/": f"MixerBlock_{order[i]}/" for i in range(config.num_blocks)}
    return {
        name: weights[next((name.replace(old, new) for old, new in names.items() if name.startswith(old)), name)]
        for name in weights
    }


def _columns_first(weights: Arrays, config: MixerConfig) -> Arrays:
    rows, columns = config.grid_hw
    order = np.arange(rows * columns).reshape(rows, columns).T.ravel()
    first = _changed("token_mixing/Dense_0/kernel", lambda kernel: kernel[order])(weights, config)
    last = _changed("token_mixing/Dense_1/kernel", lambda kernel: kernel[:, order])(first, config)
    return _changed("token_mixing/Dense_1/bias", lambda bias: bias[order])(last, config)


# How weights are handed over wrongly: what becomes of them, and the cause that a report has to name.
HANDED_OVER: dict[str, tuple[Handover, str]] = {
    "square kernel not transposed": (_changed("Dense_0/kernel", np.transpose), "kernel_not_transposed"),
    "LayerNorms swapped": (_swapped("LayerNorm_0", "LayerNorm_1"), "norms_swapped"),
    "token and channel MLP swapped": (_swapped("token_mixing", "channel_mixing"), "mlps_swapped"),
    "blocks in the order of strings": (_sorted_as_strings, "blocks_reordered"),
    "patches flattened otherwise": (
        _changed("stem/kernel", lambda kernel: kernel.transpose(2, 0, 1, 3).reshape(kernel.shape)),
        "stem_flattened",
    ),
    "height and width swapped": (_changed("stem/kernel", lambda kernel: kernel.swapaxes(0, 1)), "stem_hw_swapped"),
    "tokens by columns": (_columns_first, "tokens_by_columns"),
    "a bias zeroed": (_changed("MixerBlock_7/channel_mixing/Dense_0/bias", np.zeros_like), "zeroed"),
    "head not loaded": (
        lambda weights, config: {n: a[::-1].copy() if n.startswith("head/") else a for n, a in weights.items()},
        "head_not_loaded",
    ),
    "rounded to bfloat16": (
        lambda weights, config: {n: a.astype(BFLOAT16).astype(a.dtype) for n, a in weights.items()},
        "rounded_to_bfloat16",
    ),
    "one weight off by one ulp": (
        _changed("MixerBlock_11/LayerNorm_1/scale", lambda scale: np.nextafter(scale, np.float32(9))),
        "last_place",
    ),
}


class PlantedMixer(nn.Module):
    """The official Mixer with one fault of `PLANTED`, or none; parameters by canonical names, "/" kept.

    Images are (batch, channels, height, width).
    """

    last_normed: Tensor

    def __init__(self, config: MixerConfig, fault: str | None = None) -> None:
        super().__init__()
        self.config = config
        planted = PLANTED[fault] if fault else Planted("code", "")
        self.doing = {**OFFICIAL, **planted.doing}
        bindings = LINEN.bindings(config.num_blocks, head=config.num_classes > 0)
        parameters = {name: Parameter(name, tuple(b.row.canonical_axes.split())) for name, b in bindings.items()}
        self.steps = Reference(config).program(parameters).steps
        shapes = {name: binding.shape(config.axis_sizes) for name, binding in bindings.items()}
        if fault == "position embedding":
            shapes["position"] = (config.num_tokens, config.hidden_dim)
        if fault == "MLP head":
            shapes |= {"hidden/kernel": (config.hidden_dim, config.hidden_dim), "hidden/bias": (config.hidden_dim,)}
        self.held = {name: _holder(name, planted.held, config.num_blocks) for name in bindings}
        weights = {n: nn.Parameter(torch.zeros(shape)) for n, shape in shapes.items() if self.held.get(n, n) == n}
        self.weights: Any = weights if fault == HIDDEN else nn.ParameterDict(weights)

    @torch.no_grad()
    def initialise(self, seed: int, *, everything: bool) -> None:
        """As a fresh official model is, with a head of zeros and LayerNorms of ones; or `everything` random."""
        drawn = initial(self.config, seed, everything=everything)
        others = torch.Generator().manual_seed(seed)
        for name, parameter in self.weights.items():
            if name in drawn:
                parameter.copy_(torch.from_numpy(drawn[name]))
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=others) / math.sqrt(len(parameter)))

    def forward(self, images: Tensor) -> Any:
        values = [images]
        for step in self.steps:
            inputs = [values[place] for place in step.inputs]
            parameters = [self._parameter(parameter.name) for parameter in step.parameters]
            values.append(self.doing[step.operation](self, step, inputs, parameters))
        return values[-1]

    def _parameter(self, name: str) -> Tensor:
        holder = self.held[name]
        return torch.zeros(self.config.hidden_dim) if holder is None else self.weights[holder]


def _holder(name: str, held: Mapping[str, str | None], num_blocks: int) -> str | None:
    """The name of the parameter that is used for an official one."""
    for i in range(num_blocks):
        for old, new in held.items():
            if name.startswith(old.format(i=i)):
                return new and name.replace(old.format(i=i), new.format(i=i))
    return name


def initial(config: MixerConfig, seed: int, *, everything: bool) -> dict[str, np.ndarray]:
    """Canonical float32 weights of a fresh official model, with a head of zeros; or `everything` random."""
    weights = {name: array.astype(np.float32) for name, array in random_params(config, seed).items()}
    for name, array in weights.items() if not everything else ():
        if not name.endswith("kernel") or name.startswith("head/"):
            array[...] = 1 if name.endswith("scale") else 0
    return weights
