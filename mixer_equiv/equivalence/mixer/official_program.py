"""The official model as a program of every depth, and the deviations of a model of ours with other conventions."""

from __future__ import annotations

from functools import cache
from typing import Any

from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.layouts import LINEN, OFFICIAL_CONVENTIONS
from mixer_equiv.models.numpy import MlpMixer
from mixer_equiv.operations import Parameter, Program, Step

DEEPEST = 96  # the most blocks that a Mixer is searched for with

# Every reader of the residual stream begins with a LayerNorm, which removes what this parameter adds.
UNOBSERVABLE = "MixerBlock_{i}/token_mixing/Dense_1/bias"

_ANY_SIZE: dict[str, Any] = {
    "patch_size": 1,
    "image_size": 1,
    "hidden_dim": 1,
    "tokens_mlp_dim": 1,
    "channels_mlp_dim": 1,
}


def official_programs(deepest: int) -> tuple[Program, ...]:
    """The official program of every depth, with a head and without; common steps are the same objects."""
    return tuple(_official_program(depth, classes) for depth in range(1, deepest + 1) for classes in (1, 0))


@cache
def _official_program(depth: int, classes: int) -> Program:
    program = program_of(MixerConfig(num_classes=classes, num_blocks=depth, **_ANY_SIZE))
    return Program(tuple(map(_shared, program.steps)), program.stages)


def program_of(config: MixerConfig) -> Program:
    """The program of the NumPy reference, with the conventions of `config` and canonical parameters."""
    bindings = LINEN.bindings(config.num_blocks, head=config.num_classes > 0)
    parameters = {name: Parameter(name, tuple(b.row.canonical_axes.split())) for name, b in bindings.items()}
    return MlpMixer(config).program(parameters)


@cache
def _shared(step: Step) -> Step:
    """The first of all steps that are equal to this one."""
    return step


def with_official_conventions(config: MixerConfig) -> MixerConfig:
    """The same sizes with the activation and eps of the official code."""
    official = OFFICIAL_CONVENTIONS
    return config.replace(activation=official.activation, layer_norm_eps=official.layer_norm_eps)


def deviations_of(config: MixerConfig) -> list[Deviation]:
    """The steps at which a model of ours with this config differs from the official one."""
    fields = {"activate": "activation", "layer_norm": "layer_norm_eps"}
    official = {field: getattr(OFFICIAL_CONVENTIONS, field) for field in fields.values()}
    return [
        Deviation(step.name, "variant", field, official[field], getattr(config, field))
        for step in official_steps(config.num_blocks)
        if (field := fields.get(step.operation)) and getattr(config, field) != official[field]
    ]


def official_steps(num_blocks: int) -> tuple[Step, ...]:
    """The steps of the official model with a head."""
    return _official_program(num_blocks, 1).steps
