"""The programs that are timed, by name: ours in both frameworks, and those of others, with the official conventions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from mixer_equiv.config import MixerConfig
from mixer_equiv.errors import ConfigError
from mixer_equiv.formulation import FORMULATIONS, Formulation

OFFICIAL = Formulation()


@dataclasses.dataclass(frozen=True)
class Program:
    """How a Mixer is made: a torch module, or a function of (params, images) in JAX that is jitted.

    `layout` is that of its parameters. `formulated` are programs that can be written in any `Formulation`;
    `compiled` ones go through `torch.compile`; `ours` are models of this package.
    """

    framework: Literal["torch", "jax"]
    make: Callable[[MixerConfig, Formulation], Any]
    layout: str
    formulated: bool = False
    compiled: bool = False
    ours: bool = False


def _torch(config: MixerConfig, formulation: Formulation) -> Any:
    from mixer_equiv.models.torch import MlpMixer

    return MlpMixer(config, formulation)


def _timm(config: MixerConfig, formulation: Formulation) -> Any:
    from mixer_equiv.throughput.peers_torch import as_official, timm_mixer

    return as_official(timm_mixer(config))


def _tutorial(config: MixerConfig, formulation: Formulation) -> Any:
    from mixer_equiv.throughput.peers_torch import TutorialMixer, as_official

    return as_official(TutorialMixer(config))


def _lucidrains(config: MixerConfig, formulation: Formulation) -> Any:
    from mixer_equiv.throughput.peers_torch import LucidrainsMixer, as_official

    return as_official(LucidrainsMixer(config))


def _flax(config: MixerConfig, formulation: Formulation) -> Any:
    from mixer_equiv.models.flax import MlpMixer

    return _applied(MlpMixer(config, formulation))


def _official(config: MixerConfig, formulation: Formulation) -> Any:
    from mixer_equiv.throughput.peers_flax import official

    return _applied(official(config))


def _applied(model: Any) -> Any:
    return lambda params, images: model.apply({"params": params}, images)


def _nnx(config: MixerConfig, formulation: Formulation) -> Any:
    from flax import nnx

    from mixer_equiv.models.nnx import MlpMixer

    graph, state = nnx.split(nnx.eval_shape(lambda: MlpMixer(config, rngs=nnx.Rngs(0))))

    def apply(params: Any, images: Any) -> Any:
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(images)

    return apply


PROGRAMS: dict[str, Program] = {
    "torch": Program("torch", _torch, "torch", formulated=True, ours=True),
    "torch compiled": Program("torch", _torch, "torch", formulated=True, compiled=True, ours=True),
    "flax": Program("jax", _flax, "linen", formulated=True, ours=True),
    "nnx": Program("jax", _nnx, "linen", ours=True),
    "timm": Program("torch", _timm, "timm"),
    "timm compiled": Program("torch", _timm, "timm", compiled=True),
    "tutorial": Program("torch", _tutorial, "jankrepl"),
    "lucidrains": Program("torch", _lucidrains, "lucidrains"),
    "official": Program("jax", _official, "linen"),
}


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A program in one formulation."""

    name: str
    formulation: Formulation = OFFICIAL

    def __post_init__(self) -> None:
        if self.name not in PROGRAMS:
            raise ConfigError(f"program is {self.name!r}; it must be one of {', '.join(PROGRAMS)}")
        if self.formulation != OFFICIAL and not self.program.formulated:
            raise ConfigError(f"{self.name} is written in one way, and not as {self.formulation}")

    @property
    def program(self) -> Program:
        return PROGRAMS[self.name]

    @property
    def eager(self) -> Contestant:
        """The same model without `torch.compile`: what decides, in float64, whether it is the right function."""
        return dataclasses.replace(self, name=self.name.removesuffix(" compiled"))

    def __str__(self) -> str:
        return self.name if self.formulation == OFFICIAL else f"{self.name} ({self.formulation})"


def contestants(names: Iterable[str], formulations: Iterable[Formulation]) -> Iterator[Contestant]:
    """Every program in every formulation that it can be written in. Raises `ConfigError` for an unknown name."""
    for name in names:
        yield Contestant(name)
        if PROGRAMS[name].formulated:
            yield from (Contestant(name, each) for each in formulations if each != OFFICIAL)


def parse_formulations(texts: Iterable[str]) -> list[Formulation]:
    """From "patch,tokens,channels" each, or "all". Raises `ConfigError` for what is none."""
    result: list[Formulation] = []
    for text in texts:
        names = text.replace(" ", "").split(",")
        if text != "all" and len(names) != 3:
            raise ConfigError(f"a formulation is {text!r}; it must be like conv,matmul,linear, or all")
        result += FORMULATIONS if text == "all" else [Formulation(*names)]
    return list(dict.fromkeys(result))
