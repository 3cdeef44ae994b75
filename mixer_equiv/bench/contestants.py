"""The Mixers that are timed, by name: ours in both frameworks, and others' with the config's conventions.

Frameworks are imported when a Mixer is made. Start reading at `CONTESTANTS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from mixer_equiv.bench.cells import Cell
from mixer_equiv.config import MixerConfig
from mixer_equiv.errors import ConfigError, did_you_mean
from mixer_equiv.formulation import DEFAULT_FORMULATION, FORMULATIONS, Formulation

# A torch module as it is; by `torch.compile`; as a CUDA graph; with packed weights.
Execution = Literal["plain", "compiled", "graphed", "packed"]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A way to make a Mixer: a torch module, or a function of (params, images) that JAX compiles.

    `layout` is the layout of its parameters. With `any_formulation` it can be written in every `Formulation`;
    with `ours` it is a model of this package. `execution` says how a torch module is run; JAX has no choice.
    """

    framework: Literal["torch", "jax"]
    make: Callable[[MixerConfig, Formulation], Any]
    layout: str
    any_formulation: bool = False
    execution: Execution = "plain"
    ours: bool = False

    @property
    def compiled(self) -> bool:
        return self.execution == "compiled"

    def runs_in(self, cell: Cell) -> bool:
        """Whether this execution exists in the cell."""
        return {
            "plain": True,
            "compiled": True,
            "graphed": (cell.device, cell.mode) == ("cuda", "inference"),
            "packed": (cell.device, cell.mode) == ("cpu", "inference") and cell.dtype in ("float32", "bfloat16"),
        }[self.execution]


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

    return _apply_of(MlpMixer(config, formulation))


def _official(config: MixerConfig, formulation: Formulation) -> Any:
    from mixer_equiv.bench.peers_flax import official_mixer

    return _apply_of(official_mixer(config))


def _apply_of(model: Any) -> Any:
    return lambda params, images: model.apply({"params": params}, images)


def _nnx(config: MixerConfig, formulation: Formulation) -> Any:
    from flax import nnx

    from mixer_equiv.models.nnx import MlpMixer

    graph, state = nnx.split(nnx.eval_shape(lambda: MlpMixer(config, rngs=nnx.Rngs(0))))

    def apply(params: Any, images: Any) -> Any:
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(images)

    return apply


CONTESTANTS: dict[str, Contestant] = {
    "torch": Contestant("torch", _torch, "torch", any_formulation=True, ours=True),
    "torch packed": Contestant("torch", _torch, "torch", execution="packed", ours=True),
    "torch compiled": Contestant("torch", _torch, "torch", any_formulation=True, execution="compiled", ours=True),
    "torch graphed": Contestant("torch", _torch, "torch", any_formulation=True, execution="graphed", ours=True),
    "flax": Contestant("jax", _flax, "linen", any_formulation=True, ours=True),
    "nnx": Contestant("jax", _nnx, "linen", ours=True),
    "timm": Contestant("torch", _timm, "timm"),
    "timm compiled": Contestant("torch", _timm, "timm", execution="compiled"),
    "timm graphed": Contestant("torch", _timm, "timm", execution="graphed"),
    "tutorial": Contestant("torch", _tutorial, "jankrepl"),
    "lucidrains": Contestant("torch", _lucidrains, "lucidrains"),
    "official": Contestant("jax", _official, "linen"),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contestant, by its name, in one formulation."""

    name: str
    formulation: Formulation = DEFAULT_FORMULATION

    def __post_init__(self) -> None:
        if self.name not in CONTESTANTS:
            raise ConfigError(
                f"program is {self.name!r}; it must be one of {', '.join(CONTESTANTS)}"
                f"{did_you_mean(self.name, CONTESTANTS)}"
            )
        if self.formulation != DEFAULT_FORMULATION and not self.contestant.any_formulation:
            raise ConfigError(f"{self.name} is written in one way, and not as {self.formulation}")

    @property
    def contestant(self) -> Contestant:
        return CONTESTANTS[self.name]

    @property
    def eager(self) -> Entry:
        """The same model run as it is, on which the float64 decision is made."""
        return dataclasses.replace(self, name=self.name.removesuffix(f" {self.contestant.execution}"))

    def __str__(self) -> str:
        return self.name if self.formulation == DEFAULT_FORMULATION else f"{self.name} ({self.formulation})"


def names_running_in(cells: Iterable[Cell]) -> list[str]:
    """List the contestants that run in at least one of these cells."""
    given = list(cells)
    return [name for name, contestant in CONTESTANTS.items() if any(map(contestant.runs_in, given))]


def make_entries(names: Iterable[str], formulations: Iterable[Formulation]) -> Iterator[Entry]:
    """Yield each contestant in the default formulation, and in each of `formulations` that it can be written in.

    Raises `ConfigError` for an unknown name.
    """
    for name in names:
        yield Entry(name)
        if CONTESTANTS[name].any_formulation:
            yield from (Entry(name, each) for each in formulations if each != DEFAULT_FORMULATION)


def parse_formulations(texts: Iterable[str]) -> list[Formulation]:
    """Parse texts such as "patch,tokens,channels" or "all". Raises `ConfigError` for any other."""
    result: list[Formulation] = []
    for text in texts:
        names = text.replace(" ", "").split(",")
        if text != "all" and len(names) != 3:
            raise ConfigError(f"a formulation is {text!r}; it must be like conv,matmul,linear, or all")
        result += FORMULATIONS if text == "all" else [Formulation(*names)]
    return list(dict.fromkeys(result))
