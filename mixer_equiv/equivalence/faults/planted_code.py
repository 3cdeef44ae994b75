"""Faults planted in code: the official program run in torch, with one of its steps done otherwise.

They are for the kill matrix of `mixer-equiv mutate`; diagnosis does not know of this module. Start at `PLANTED`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.faults.planted_weights import initial
from mixer_equiv.equivalence.match.sublayers import exchange
from mixer_equiv.equivalence.mixer.official_program import program_of
from mixer_equiv.layouts import LINEN
from mixer_equiv.operations import Program, Step

# From the model, a step, its inputs and its parameters to the value of the step.
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


STEPS: dict[str, Doing] = {
    "cut": _cut,
    "linear": _linear,
    "layer_norm": _norm,
    "swap": _elementwise(lambda x: x.mT),
    "activate": _elementwise(partial(F.gelu, approximate="tanh")),
    "add": _added,
    "mean": _elementwise(lambda x: x.mean(1)),
}


def standard(operation: str) -> Doing:
    """How an operation is done officially."""
    return STEPS[operation]


def only_at(name: str, operation: str, doing: Doing) -> dict[str, Doing]:
    """Do a step by `doing` where its name contains `name`, and officially elsewhere."""

    def chosen(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        return (doing if name in step.name else STEPS[operation])(model, step, inputs, parameters)

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


def _root_mean_square(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    x, (scale, bias) = inputs[0], parameters
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6) * scale + bias


def _remembering_stem(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    model.stem = _linear(model, step, inputs, parameters)
    return model.stem


def _stem_added(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return model.stem + inputs[1]


def _batch_norm(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    x, (scale, bias) = inputs[0], parameters
    mean, variance = (torch.full(x.shape[-1:], number, dtype=x.dtype) for number in (0.5, 2.0))
    return F.batch_norm(x.mT, mean, variance, scale, bias, eps=1e-5).mT


def _overlapping(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    (ph, pw), images = model.config.patch_hw, F.pad(inputs[0], (1, 1, 1, 1))
    windows = images.unfold(2, ph + 2, ph).unfold(3, pw + 2, pw)
    return windows.permute(0, 2, 3, 4, 5, 1).flatten(1, 2)


def _read_as_tokens(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    x = _linear(model, step, inputs, parameters)
    return x.mT.reshape(x.shape)


def _normalised_stem(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return _normalised_features(_linear(model, step, inputs, parameters), model.weights)


def _mlp_after_addition(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    x, weights = inputs[0] + inputs[1], model.weights
    inner = F.gelu(
        _normalised_features(x, weights) @ weights["extra/up"] + weights["extra/up_bias"], approximate="tanh"
    )
    return x + inner @ weights["extra/down"] + weights["extra/down_bias"]


def _softmax(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return _linear(model, step, inputs, parameters).softmax(-1)


@dataclasses.dataclass(frozen=True)
class PlantedCode:
    """A fault of the catalogue, planted in one way.

    `fault` is its id. `doing` are operations, by name, done otherwise; `held` are parameters, by the beginnings of
    their names, that are another one (a name), or zeros (None). `extra` are shapes of parameters that are further ones,
    or of another shape. `order` makes another program of the official one.
    """

    fault: str
    doing: Mapping[str, Doing] = dataclasses.field(default_factory=dict)
    held: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    order: Callable[[Program], Program] = lambda program: program


def _activation(function: Callable[[Tensor], Tensor]) -> PlantedCode:
    return PlantedCode("activation", {"activate": _elementwise(function)})


def _eps(eps: float) -> PlantedCode:
    return PlantedCode("layer_norm_eps", {"layer_norm": partial(_norm, eps=eps)})


def _pool(function: Callable[[Tensor], Tensor]) -> PlantedCode:
    return PlantedCode("pooling", {"mean": _elementwise(function)})


StreamChange = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def _before(name: str, change: StreamChange) -> dict[str, Doing]:
    """Insert an operation, which is given the model's weights, before the linear step of this name."""

    def doing(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        return _linear(model, step, [change(inputs[0], model.weights)], parameters)

    return only_at(name, "linear", doing)


def _on_branch(name: str, change: StreamChange) -> dict[str, Doing]:
    """Insert an operation on the branch that the step of this name adds to the stream."""

    def doing(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        return inputs[0] + change(inputs[1], model.weights)

    return only_at(name, "add", doing)


def _normalised_features(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights["extra/scale"], weights["extra/bias"], 1e-6)


def _channels_first(program: Program) -> Program:
    """The MLPs of the first block in each other's place."""
    return exchange(program, program.stages["stem"]) or program


def _scaled_images(model: PlantedMixer, step: Step, inputs: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return _cut(model, step, [2 * inputs[0] - 1], parameters)


BRANCH = "MixerBlock_1/channel_mixing/add"
FEATURES = "MixerBlock_1/channel_mixing/Dense_1"
FINAL_MISSING = only_at("pre_head_layer_norm", "layer_norm", _first_input)

PLANTED: dict[str, PlantedCode] = {
    "activation: erf GELU": _activation(F.gelu),
    "activation: relu": _activation(F.relu),
    "activation: silu": _activation(F.silu),
    "activation: quick GELU": _activation(lambda x: x * (1.702 * x).sigmoid()),
    "activation: none": _activation(lambda x: x),
    "eps 1e-5": _eps(1e-5),
    "eps 1e-12": _eps(1e-12),
    "eps 1e-3": _eps(1e-3),
    "eps 1e-5 in one place": PlantedCode(
        "layer_norm_eps", only_at("MixerBlock_0/LayerNorm_1", "layer_norm", partial(_norm, eps=1e-5))
    ),
    "LayerNorm missing": PlantedCode(
        "layer_norm_missing", only_at("MixerBlock_0/LayerNorm_1", "layer_norm", _first_input)
    ),
    "final LayerNorm missing": PlantedCode("layer_norm_missing", FINAL_MISSING),
    "LayerNorm after the addition": PlantedCode(
        "post_norm", {**only_at("MixerBlock_", "layer_norm", _first_input), "add": _norm_after_addition}
    ),
    "LayerNorm after one addition": PlantedCode(
        "post_norm",
        {
            **only_at("LayerNorm_0", "layer_norm", _first_input),
            **only_at("token_mixing/add", "add", _norm_after_addition),
        },
    ),
    "LayerNorm over both axes": PlantedCode("layer_norm_axes", {"layer_norm": partial(_norm, axes=(-2, -1))}),
    "LayerNorm over tokens": PlantedCode(
        "layer_norm_axes", only_at("LayerNorm_0", "layer_norm", partial(_norm, axes=(-2,)))
    ),
    "LayerNorm after the stem": PlantedCode(
        "norm_after_stem",
        only_at("stem", "linear", _normalised_stem),
        extra={"extra/scale": ("hidden",), "extra/bias": ("hidden",)},
    ),
    "BatchNorm": PlantedCode("batch_norm", {"layer_norm": _batch_norm}),
    "LayerNorm after the pool": PlantedCode("norm_after_pool", {**FINAL_MISSING, "mean": _norm_after_mean}),
    "unbiased variance": PlantedCode("layer_norm_variance", {"layer_norm": partial(_norm, correction=1)}),
    "RMSNorm": PlantedCode("layer_norm_mean", {"layer_norm": _root_mean_square}),
    "residual missing, tokens": PlantedCode("residual_missing", only_at("token_mixing/add", "add", _first_input)),
    "residual missing, channels": PlantedCode("residual_missing", only_at("channel_mixing/add", "add", _first_input)),
    "residual of the normalised stream": PlantedCode(
        "residual_normalised", {"layer_norm": _remembering_norm, "add": _normalised}
    ),
    "residual of the stem": PlantedCode(
        "residual", {**only_at("stem", "linear", _remembering_stem), **only_at(BRANCH, "add", _stem_added)}
    ),
    "max pooling": _pool(lambda x: x.amax(1)),
    "sum pooling": _pool(lambda x: x.sum(1)),
    "first token": _pool(lambda x: x[:, 0]),
    "mean over channels": dataclasses.replace(_pool(lambda x: x.mean(2)), extra={"head/kernel": ("tokens", "classes")}),
    "softmax output": PlantedCode("output", only_at("head", "linear", _softmax)),
    "view for a transpose": PlantedCode("transpose", {"swap": _elementwise(_reshaped)}),
    "reshape behind the stem": PlantedCode("reshape", only_at("stem", "linear", _read_as_tokens)),
    "overlapping patches": PlantedCode(
        "patches", {"cut": _overlapping}, extra={"stem/kernel": ("ph + 2", "pw + 2", "channels", "hidden")}
    ),
    "a channel MLP more": PlantedCode(
        "extra_mlp",
        only_at(BRANCH, "add", _mlp_after_addition),
        extra={
            "extra/scale": ("hidden",),
            "extra/bias": ("hidden",),
            "extra/up": ("hidden", "channels_mlp"),
            "extra/up_bias": ("channels_mlp",),
            "extra/down": ("channels_mlp", "hidden"),
            "extra/down_bias": ("hidden",),
        },
    ),
    "channels before tokens": PlantedCode("sublayers_swapped", order=_channels_first),
    "position embedding": PlantedCode(
        "position_embedding", only_at("stem", "linear", _embedded), extra={"position": ("tokens", "hidden")}
    ),
    "MLP head": PlantedCode(
        "mlp_head",
        only_at("head", "linear", _two_layers),
        extra={"hidden/kernel": ("hidden", "hidden"), "hidden/bias": ("hidden",)},
    ),
    "a layer more": PlantedCode(
        "extra_layer",
        _before(FEATURES, lambda x, weights: x @ weights["extra/kernel"] + weights["extra/bias"]),
        extra={"extra/kernel": ("channels_mlp", "channels_mlp"), "extra/bias": ("channels_mlp",)},
    ),
    "a LayerNorm more": PlantedCode(
        "extra_layer_norm",
        _before(FEATURES, _normalised_features),
        extra={"extra/scale": ("channels_mlp",), "extra/bias": ("channels_mlp",)},
    ),
    "an activation more": PlantedCode(
        "extra_activation", _before("MixerBlock_1/channel_mixing/Dense_0", lambda x, weights: x.relu())
    ),
    "layer scale": PlantedCode(
        "extra_scale",
        _on_branch(BRANCH, lambda x, weights: x * weights["extra/scale"]),
        extra={"extra/scale": ("hidden",)},
    ),
    "a bias more": PlantedCode(
        "extra_bias",
        _on_branch(BRANCH, lambda x, weights: x + weights["extra/bias"]),
        extra={"extra/bias": ("hidden",)},
    ),
    "a scale and bias more": PlantedCode(
        "extra_affine",
        _on_branch(BRANCH, lambda x, weights: x * weights["extra/scale"] + weights["extra/bias"]),
        extra={"extra/scale": ("hidden",), "extra/bias": ("hidden",)},
    ),
    "half of a branch": PlantedCode("constant", _on_branch(BRANCH, lambda x, weights: 0.5 * x)),
    "images in [-1, 1]": PlantedCode("preprocessing", {"cut": _scaled_images}),
    "activation: mish": PlantedCode("unknown", {"activate": _elementwise(F.mish)}),
    "LayerNorm shared in a block": PlantedCode(
        "shared_parameters", held={"MixerBlock_{i}/LayerNorm_1": "MixerBlock_{i}/LayerNorm_0"}
    ),
    "blocks tied": PlantedCode("tied_blocks", held={"MixerBlock_{i}/": "MixerBlock_0/"}),
    "no stem bias": PlantedCode("absent_parameters", held={"stem/bias": None}),
    "parameters not in the state_dict": PlantedCode("not_in_state_dict"),
    "dropout in train mode": PlantedCode("train_mode", only_at("head", "linear", _dropped_out)),
    "an option": PlantedCode("option"),
}


class PlantedMixer(nn.Module):
    """The official Mixer with a fault that is `planted`, or none; parameters by canonical names, "/" kept.

    Images are (batch, channels, height, width).
    """

    last_normed: Tensor
    stem: Tensor
    calls = 0

    def __init__(self, config: MixerConfig, planted: PlantedCode | None = None) -> None:
        super().__init__()
        self.config = config
        self.planted = planted = planted or PlantedCode("")
        self.doing = {**STEPS, **planted.doing}
        bindings = LINEN.bindings(config.num_blocks, head=config.num_classes > 0)
        self.steps = planted.order(program_of(config)).steps
        (ph, pw), sizes = config.patch_hw, config.axis_sizes
        shapes = {name: binding.shape(sizes) for name, binding in bindings.items()}
        wider = {**sizes, "ph + 2": ph + 2, "pw + 2": pw + 2}
        shapes |= {name: tuple(wider[axis] for axis in axes) for name, axes in planted.extra.items()}
        self.held = {name: _holder(name, planted.held, config.num_blocks) for name in bindings}
        weights = {n: nn.Parameter(torch.zeros(shape)) for n, shape in shapes.items() if self.held.get(n, n) == n}
        is_hidden = planted.fault == "not_in_state_dict"
        self.weights: Any = weights if is_hidden else nn.ParameterDict(weights)
        if planted.fault == "constant_buffer":
            self.register_buffer("gate", torch.ones(max(config.num_classes, 1)))

    @torch.no_grad()
    def initialise(self, seed: int, *, everything: bool) -> None:
        """Give it the weights of a fresh official model, whose head is zeros, or random ones."""
        drawn = initial(self.config, seed, everything=everything)
        others = torch.Generator().manual_seed(seed)
        for name, parameter in self.weights.items():
            if name in drawn and drawn[name].shape == parameter.shape:
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


class PlantedMixerWithOption(PlantedMixer):
    """The same, with an argument that changes the meaning of the output."""

    def forward(self, images: Tensor, squeeze: bool = False) -> Any:
        logits = super().forward(images)
        return logits.squeeze() if squeeze else logits


def plant(config: MixerConfig, planted: PlantedCode | None) -> PlantedMixer:
    """A Mixer of `config` in which the fault is planted."""
    is_option = planted is not None and planted.fault == "option"
    return (PlantedMixerWithOption if is_option else PlantedMixer)(config, planted)
