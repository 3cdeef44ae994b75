"""The programs that are timed, by name: ours in both frameworks, and those of others, by the config's conventions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from mixer_equiv.bench.cells import Cell
from mixer_equiv.config import MixerConfig
from mixer_equiv.errors import ConfigError
from mixer_equiv.formulation import DEFAULT_FORMULATION, FORMULATIONS, Formulation

# A torch module as it is; through `torch.compile`; as a CUDA graph; its weights packed.
Way = Literal["plain", "compiled", "graphed", "packed"]


@dataclasses.dataclass(frozen=True)
class Program:
    """How a Mixer is made: a torch module, or a function of (params, images) in JAX that is jitted.

    `layout` is that of its parameters. `formulated` are programs that can be written in any `Formulation`;
    `ours` are models of this package; `way` is how a torch module is run, and nothing for JAX.
    """

    framework: Literal["torch", "jax"]
    make: Callable[[MixerConfig, Formulation], Any]
    layout: str
    formulated: bool = False
    way: Way = "plain"
    ours: bool = False

    @property
    def compiled(self) -> bool:
        return self.way == "compiled"

    def runs_in(self, cell: Cell) -> bool:
        """Whether there is such a way to run it in this cell."""
        return {
            "plain": True,
            "compiled": True,
            "graphed": (cell.device, cell.mode) == ("cuda", "inference"),
            "packed": (cell.device, cell.mode) == ("cpu", "inference") and cell.dtype in ("float32", "bfloat16"),
        }[self.way]


def _torch(config: MixerConfig, formulation: Formulation) -> Any:
    from mixer_equiv.models.torch import MlpMixer

    return MlpMixer(config, formulation)


def _timm(config: MixerConfig, formulation: Formulation) -> Any:
    from mixer_equiv.bench.peers_torch import timm_mixer, with_conventions

    return with_conventions(timm_mixer(config), config.activation, config.layer_norm_eps)


def _tutorial(config: MixerConfig, formulation: Formulation) -> Any:
    from mixer_equiv.bench.peers_torch import TutorialMixer, with_conventions

    return with_conventions(TutorialMixer(config), config.activation, config.layer_norm_eps)


def _lucidrains(config: MixerConfig, formulation: Formulation) -> Any:
    from mixer_equiv.bench.peers_torch import LucidrainsMixer, with_conventions

    return with_conventions(LucidrainsMixer(config), config.activation, config.layer_norm_eps)


def _flax(config: MixerConfig, formulation: Formulation) -> Any:
    from mixer_equiv.models.flax import MlpMixer

    return _applied(MlpMixer(config, formulation))


def _official(config: MixerConfig, formulation: Formulation) -> Any:
    from mixer_equiv.bench.peers_flax import official

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
    "torch packed": Program("torch", _torch, "torch", way="packed", ours=True),
    "torch compiled": Program("torch", _torch, "torch", formulated=True, way="compiled", ours=True),
    "torch graphed": Program("torch", _torch, "torch", formulated=True, way="graphed", ours=True),
    "flax": Program("jax", _flax, "linen", formulated=True, ours=True),
    "nnx": Program("jax", _nnx, "linen", ours=True),
    "timm": Program("torch", _timm, "timm"),
    "timm compiled": Program("torch", _timm, "timm", way="compiled"),
    "timm graphed": Program("torch", _timm, "timm", way="graphed"),
    "tutorial": Program("torch", _tutorial, "jankrepl"),
    "lucidrains": Program("torch", _lucidrains, "lucidrains"),
    "official": Program("jax", _official, "linen"),
}


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A program in one formulation."""

    name: str
    formulation: Formulation = DEFAULT_FORMULATION

    def __post_init__(self) -> None:
        if self.name not in PROGRAMS:
            raise ConfigError(f"program is {self.name!r}; it must be one of {', '.join(PROGRAMS)}")
        if self.formulation != DEFAULT_FORMULATION and not self.program.formulated:
            raise ConfigError(f"{self.name} is written in one way, and not as {self.formulation}")

    @property
    def program(self) -> Program:
        return PROGRAMS[self.name]

    @property
    def eager(self) -> Contestant:
        """The same model run as it is: what decides, in float64, whether it is the right function."""
        return dataclasses.replace(self, name=self.name.removesuffix(f" {self.program.way}"))

    def __str__(self) -> str:
        return self.name if self.formulation == DEFAULT_FORMULATION else f"{self.name} ({self.formulation})"


def running_in(cells: Iterable[Cell]) -> list[str]:
    """The names of the programs that run in some of these cells."""
    given = list(cells)
    return [name for name, program in PROGRAMS.items() if any(map(program.runs_in, given))]


def contestants(names: Iterable[str], formulations: Iterable[Formulation]) -> Iterator[Contestant]:
    """Every program in every formulation that it can be written in. Raises `ConfigError` for an unknown name."""
    for name in names:
        yield Contestant(name)
        if PROGRAMS[name].formulated:
            yield from (Contestant(name, each) for each in formulations if each != DEFAULT_FORMULATION)


def parse_formulations(texts: Iterable[str]) -> list[Formulation]:
    """From "patch,tokens,channels" each, or "all". Raises `ConfigError` for what is none."""
    result: list[Formulation] = []
    for text in texts:
        names = text.replace(" ", "").split(",")
        if text != "all" and len(names) != 3:
            raise ConfigError(f"a formulation is {text!r}; it must be like conv,matmul,linear, or all")
        result += FORMULATIONS if text == "all" else [Formulation(*names)]
    return list(dict.fromkeys(result))
