"""Every catalogued fault, planted in a Mixer that shares no code with ours: noticed, named, and at the right stage."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import pytest
import torch

from mixer_equiv import MixerConfig, load, verify
from mixer_equiv.checkpoints.differences import PORT_FAULTS
from mixer_equiv.data import digits
from mixer_equiv.equivalence.faults.catalogue import CATALOGUE, RECOGNISED_BY, Fault, verdict_of
from mixer_equiv.equivalence.faults.kill_matrix import planted_in_code
from mixer_equiv.equivalence.faults.planted_weights import PLANTED_WEIGHTS
from mixer_equiv.equivalence.report import Report
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.trials import REASONS
from mixer_equiv.layouts import CONSTRAINTS
from tests.support import sizes
from tests.support.small_verify import IMAGE, SMALL
from tests.support.structures import FAULTS, STRANGE, OwnMixer
from tests.support.structures.foreign import DEVIATIONS, FOREIGN

EQUAL = sizes.EQUAL.replace(num_blocks=2)
ONE_BLOCK = SMALL.replace(num_blocks=1)
EIGHT = EQUAL.replace(
    num_classes=8, patch_size=2, image_size=(4, 8), in_channels=3, hidden_dim=8, tokens_mlp_dim=8, channels_mlp_dim=8
)
WIDE = MixerConfig.from_name("B/16", num_blocks=2)
SIZES = {"tiny": DEFAULT_CONFIG, "digits": load(digits.CHECKPOINT).config, "B/16 width": WIDE, "all equal": EQUAL}


def verified(config: MixerConfig, faults: tuple[str, ...], seed: int = 0) -> Report:
    return verify(OwnMixer(config, faults), image=(config.in_channels, *config.image_hw), seed=seed, gradients=False)


def assert_named(report: Report, fault: str) -> None:
    _, name, found, _ = FAULTS[fault]
    assert any(cause.name == name and found in cause.found for cause in report.causes), report.causes


def assert_explained(report: Report, fault: str, config: MixerConfig) -> None:
    verdict, _, _, first = FAULTS[fault]
    assert_named(report, fault)
    assert report.verdict == verdict
    assert len(report.causes) == 1
    assert report.first_divergence == (first and first.format(last=config.num_blocks - 1))
    assert report.residual_without_causes is not None
    assert report.residual_without_causes <= 1e-12


@pytest.mark.parametrize(
    "config", [SMALL, pytest.param(EQUAL, marks=pytest.mark.soundness)], ids=["all different", "all equal"]
)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_verdict_and_is_named(fault: str, config: MixerConfig) -> None:
    assert_explained(verified(config, (fault,)), fault, config)


@pytest.mark.soundness
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named_at_every_size_and_seed(fault: str, size: str, seed: int) -> None:
    assert_explained(verified(SIZES[size], (fault,), seed), fault, SIZES[size])


def conflict(one: str, other: str) -> bool:
    """Whether the one leaves nothing for the other to be done at."""
    stems = [fault.split("_")[0] for fault in (one, other)]
    return (stems[0] == stems[1] and stems[0] in ("activation", "eps", "pool", "residual")) or {one, other} in _EXCLUDE


_EXCLUDE = [
    {"norm_final_missing", "norm_after_pool"},
    {"post_norm", "residual_normalised"},
    {"post_norm", "norm_missing"},
    {"post_norm", "norm_shared"},
]

PAIRS = [pair for pair in itertools.combinations(FAULTS, 2) if not conflict(*pair)]

# Pairs of which not both faults are named, with the verdict on them.
NOT_BOTH = {
    # The search tries no LayerNorm that differs in two ways other than eps, nor a further one that differs in another.
    ("norm_both_axes", "norm_unbiased"): "different",
    ("norm_after_pool", "norm_unbiased"): "inexpressible",
    # Where each LayerNorm stands after its addition, that of the last block cannot be told from the final one: the last
    # block is then said to have none, and that after the pooling to be one more.
    ("post_norm", "norm_after_pool"): "inexpressible",
    # Where each LayerNorm is of the stream itself, it takes more steps to see in which order the branches come than the
    # search looks ahead.
    ("residual_normalised", "channels_first"): "different",
}


def drawn(pairs: list[tuple[str, str]]) -> list[Any]:
    """Mark all `pairs` but about 20 of `PAIRS` as `soundness`, each by its own name: a new fault changes no other."""
    names = [" and ".join(pair) for pair in pairs]
    is_kept = [zlib.crc32(name.encode()) % 19 == 0 for name in names]
    return [
        pytest.param(pair, id=name, marks=() if kept else pytest.mark.soundness)
        for pair, name, kept in zip(pairs, names, is_kept, strict=True)
    ]


@pytest.mark.parametrize("pair", drawn([pair for pair in PAIRS if pair not in NOT_BOTH]))
def test_both_of_two_faults_are_named(pair: tuple[str, str]) -> None:
    report = verified(SMALL, pair)
    assert report.verdict != "equivalent"
    for fault in pair:
        assert_named(report, fault)


@pytest.mark.parametrize("pair", NOT_BOTH, ids=" and ".join)
def test_two_faults_that_are_not_both_named_are_seen(pair: tuple[str, str]) -> None:
    assert pair in PAIRS
    report = verified(SMALL, pair)
    assert report.verdict == NOT_BOTH[pair] != "equivalent"
    assert report.first_divergence


def test_without_a_fault_it_is_equivalent() -> None:
    for config in (SMALL, EQUAL):
        report = verified(config, ())
        assert report.verdict == "equivalent"
        assert not report.causes


def test_the_catalogue_has_every_cause_and_its_verdict() -> None:
    for verdict, name, _, _ in FAULTS.values():
        assert CATALOGUE[name].kind in ("code", "constraint")
        assert verdict_of(name) == verdict


# The faults that are recognised by more than the kind of one deviation, in `fault_of`.
BY_VALUE = {"residual_normalised", "unknown"}

# The faults that no planter makes, each with the reason.
UNPLANTED = {
    "ill_conditioned": "it is of weights and images, not of a model: tests/equivalence/test_verify.py has some",
    "round_trip": "it would be a fault of our own converter",
}

# The faults that are seen in outputs alone: by the trials of a model, and by its error in float32.
BY_OUTPUTS = {*REASONS, "float32"}

RECOGNISED = {*RECOGNISED_BY.values(), *BY_VALUE, *BY_OUTPUTS}
IN_CODE = {planted.fault for planted in planted_in_code().values()}
IN_WEIGHTS = {planted.fault for planted in PLANTED_WEIGHTS.values()}


def missing(fault: Fault) -> list[str]:
    """The registrations that apply to a fault and that it does not have."""
    is_searched = {
        "code": fault.id in RECOGNISED,
        "constraint": fault.id in CONSTRAINTS,
        "port": fault.id in PORT_FAULTS or fault.id == "round_trip",
        "notice": True,  # shown by the kill matrix, or by the tests that UNPLANTED names
    }
    planted = IN_WEIGHTS if fault.kind == "port" else IN_CODE
    lacks = {
        "what searches for it": not is_searched[fault.kind],
        "a planter": fault.id not in planted and fault.id not in UNPLANTED,
        "words": not fault.words,
    }
    return [name for name, lacking in lacks.items() if lacking]


@pytest.mark.parametrize("fault", CATALOGUE.values(), ids=lambda fault: fault.id)
def test_every_fault_has_all_that_applies_to_it(fault: Fault) -> None:
    assert missing(fault) == []


def test_nothing_is_registered_for_a_fault_that_the_catalogue_does_not_have() -> None:
    assert {*RECOGNISED, *CONSTRAINTS, *PORT_FAULTS, *IN_CODE, *IN_WEIGHTS, *UNPLANTED} <= set(CATALOGUE)
    assert not set(UNPLANTED) & (IN_CODE | IN_WEIGHTS)


def test_a_fault_without_what_applies_is_noticed() -> None:
    assert missing(Fault("forgotten", "code", "different", "")) == ["what searches for it", "a planter", "words"]
    assert missing(Fault("forgotten", "port", "different", "x")) == ["what searches for it", "a planter"]


WRITINGS = {**STRANGE, **{f"foreign: {name}": make for name, make in FOREIGN.items()}}
NOT_FOLLOWED = "foreign: vmap"


# The writings that keep the arrays of all blocks together, and may mistake their order.
OF_ALL_BLOCKS = ("stacked", "stacked, unbound")


def assert_equivalent_with_gradients(name: str, config: MixerConfig) -> None:
    report = verify(WRITINGS[name](config), image=(config.in_channels, *config.image_hw))
    assert report.verdict == "equivalent", report.causes
    assert not report.causes
    assert report.residual is not None
    assert report.residual <= 1e-12
    assert report.gradients is None or report.gradients.residual <= 1e-12


@pytest.mark.parametrize("name", [name for name in WRITINGS if name != NOT_FOLLOWED])
def test_strange_writings_of_the_official_function_are_seen_to_be_it(name: str) -> None:
    assert_equivalent_with_gradients(name, DEFAULT_CONFIG if name in OF_ALL_BLOCKS else SMALL)


@pytest.mark.soundness
@pytest.mark.parametrize("name", [name for name in STRANGE if name not in OF_ALL_BLOCKS])
def test_strange_writings_of_twelve_blocks_are_seen_to_be_the_official_function(name: str) -> None:
    assert_equivalent_with_gradients(name, DEFAULT_CONFIG)


@pytest.mark.parametrize(
    "config",
    [pytest.param(size, marks=pytest.mark.soundness) for size in (EIGHT, ONE_BLOCK)],
    ids=["all sizes 8", "one block"],
)
@pytest.mark.parametrize("name", [name for name in FOREIGN if name != "vmap"])
def test_strange_writings_are_seen_at_sizes_that_tell_little(name: str, config: MixerConfig) -> None:
    report = verify(FOREIGN[name](config), image=(config.in_channels, *config.image_hw), gradients=False)
    assert report.verdict == "equivalent", report.causes
    assert not report.causes


@pytest.mark.parametrize("name", ["column-major tokens", "two layers for a stem", "mean of logits"])
def test_the_hardest_writings_are_seen_with_all_sizes_equal(name: str) -> None:
    report = verify(FOREIGN[name](EIGHT), image=(EIGHT.in_channels, *EIGHT.image_hw), gradients=False)
    assert report.verdict == "equivalent", report.causes


def test_what_cannot_be_recorded_is_not_compared() -> None:
    report = verify(FOREIGN["vmap"](SMALL), image=IMAGE)
    assert report.verdict == "nothing_compared"
    assert report.reasons == (
        "torch.vmap, and what else transforms functions in torch.func, cannot be followed inside a model; verify a "
        "writing that computes on the whole batch",
    )


# Deviations that are in no catalogue, with the causes that may be named since they are right.
RIGHT = {
    "eps 3e-6": ("layer_norm_eps",),
    "GELU of rounded constants": ("activation",),
    "RMSNorm": ("layer_norm_mean",),
    "layer scale": ("extra_scale",),
    "block bias": ("extra_bias",),
    "residual times 0.5": ("constant",),
    "images in [-1, 1]": ("preprocessing",),
    "temperature 2": ("constant",),
    "coupled batch": ("neighbours",),
    "clamp": ("limit",),
    "token mixing twice": ("extra_mlp",),
    "channels first in one block": ("sublayers_swapped",),
    "mean of activated logits": ("extra_activation",),
}
# Those of which the causes have other verdicts than "different".
UNDER_OR_BEYOND = ("eps 3e-6", "GELU of rounded constants", "group norm", "token mixing twice")
FIRST = "MixerBlock_0/token_mixing"
# The first stage, or step where not all stages have a counterpart, at which each is another function.
STAGES = {
    "mish": FIRST,
    "hardswish in one block": FIRST,
    "softplus": FIRST,
    "GELU of rounded constants": FIRST,
    "squared ReLU": FIRST,
    "eps 3e-6": FIRST,
    "RMSNorm": FIRST,
    "group norm": "MixerBlock_0/LayerNorm_0",
    "layer scale": FIRST,
    "block bias": "MixerBlock_1/token_mixing",
    "coupled batch": "MixerBlock_0/LayerNorm_0",
    "dropout in eval": f"{FIRST}/add",
    "clamp": FIRST,
    "token mixing twice": FIRST,
    "channels first in one block": FIRST,
    "gating in one block": FIRST,
    "residual times 0.5": FIRST,
    "images in [-1, 1]": "stem",
    "temperature 2": "logits",
    "GeM pooling": "pooled",
    "half max, half mean": "logits",
    "mean of activated logits": "logits",
}
DEVIANT_SIZES = {"tiny": SMALL, **{name: SIZES[name] for name in ("digits", "B/16 width")}}


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=[pytest.mark.soundness] * (size != "tiny")) for size in DEVIANT_SIZES]
)
@pytest.mark.parametrize("name", DEVIATIONS)
def test_what_nobody_listed_is_different_and_no_wrong_cause_is_named(name: str, size: str) -> None:
    torch.manual_seed(0)
    config = DEVIANT_SIZES[size]
    image = config.in_channels, *config.image_hw
    report = verify(DEVIATIONS[name](config), image=image, gradients=False)
    assert report.verdict != "equivalent"
    assert report.verdict == "different" or name in UNDER_OR_BEYOND
    assert {cause.name for cause in report.causes} <= {"unknown", *RIGHT.get(name, ())}
    assert report.first_divergence == STAGES[name]
