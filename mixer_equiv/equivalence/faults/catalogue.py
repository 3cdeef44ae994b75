"""The catalogue of faults: every known way in which one Mixer differs from another, one row each.

The id is the name of the cause in reports and JSON. Other modules register against it what they do for a fault, and a
test holds that each has all that apply:

- `RECOGNISED_BY`, below, and `mixer/deviation_patterns.py` say by which deviations a fault of code is recognised;
- `layouts.Constraint` has the kinds of constraints, `checkpoints/differences.py` the faults of ports;
- `planted_code.py` and `planted_weights.py` plant faults for the kill matrix;
- `judge/causes.py` makes the words of a report of the row.

The catalogue knows no model and no trace.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Literal

from mixer_equiv.equivalence.deviation import Choice, Deviation, Kind
from mixer_equiv.equivalence.report import Verdict
from mixer_equiv.errors import ConfigError, did_you_mean

FaultKind = Literal["code", "constraint", "port", "notice"]


@dataclasses.dataclass(frozen=True)
class Fault:
    """One row.

    Attributes:
        id: The name of the cause.
        kind: "code" computes another function; a "constraint" is the official family with parameters in common or
            absent; a "port" has handed weights over wrongly; a "notice" is the same function, with a warning.
        verdict: The verdict on a model that differs in this alone.
        words: The fault in words; for a port with {} for its detail.
        operation: The operation of the official steps that it befalls; empty if of none in particular.
        noun: The places that it befalls, in the plural.
    """

    id: str
    kind: FaultKind
    verdict: Verdict
    words: str
    operation: str = ""
    noun: str = "places"


_ROWS = (
    Fault("activation", "code", "equivalent_under", "another activation, or none", "activate", "MLPs"),
    Fault("layer_norm_eps", "code", "equivalent_under", "another eps in LayerNorms", "layer_norm", "LayerNorms"),
    Fault("layer_norm_missing", "code", "inexpressible", "a LayerNorm left out", "layer_norm", "LayerNorms"),
    Fault(
        "layer_norm_axes", "code", "inexpressible", "LayerNorms over tokens, or both axes", "layer_norm", "LayerNorms"
    ),
    Fault("layer_norm_variance", "code", "different", "the unbiased variance", "layer_norm", "LayerNorms"),
    Fault("layer_norm_mean", "code", "different", "no mean subtracted, as in RMSNorm", "layer_norm", "LayerNorms"),
    Fault("post_norm", "code", "different", "LayerNorms after the additions", "layer_norm", "LayerNorms"),
    Fault("batch_norm", "code", "inexpressible", "BatchNorms for LayerNorms", "layer_norm", "LayerNorms"),
    Fault("norm_after_stem", "code", "inexpressible", "a LayerNorm of the stem's patches", "", "stem"),
    Fault("norm_after_pool", "code", "different", "the last LayerNorm after the pooling", "mean", "pooling"),
    Fault("residual_missing", "code", "different", "a branch without the stream added", "add", "branches"),
    Fault("residual_normalised", "code", "different", "the normalised stream added to branches", "add", "branches"),
    Fault("residual", "code", "different", "another earlier value added to branches", "add", "branches"),
    Fault("pooling", "code", "different", "maximum, sum, one token or all for the mean", "mean", "pooling"),
    Fault("patches", "code", "inexpressible", "patches that overlap or are padded", "", "stem"),
    Fault("extra_mlp", "code", "inexpressible", "a further MLP in a block", "", "MLPs"),
    Fault("sublayers_swapped", "code", "different", "the channel MLP before the token MLP", "", "blocks"),
    Fault("output", "code", "different", "a function of the logits returned, such as softmax", "", "output"),
    Fault("transpose", "code", "different", "a reshape where a transposition was meant", "swap", "transposes"),
    Fault("reshape", "code", "different", "tokens and channels reshaped into each other"),
    Fault("position_embedding", "code", "inexpressible", "a position embedding added", "", "embedding"),
    Fault("mlp_head", "code", "inexpressible", "a head of several layers", "", "head"),
    Fault("extra_layer", "code", "inexpressible", "a further linear layer"),
    Fault("extra_scale", "code", "different", "a further scale"),
    Fault("extra_bias", "code", "different", "a further bias"),
    Fault("extra_affine", "code", "different", "a further scale and bias"),
    Fault("extra_activation", "code", "different", "a further activation"),
    Fault("extra_layer_norm", "code", "inexpressible", "a further LayerNorm"),
    Fault("constant", "code", "different", "arithmetic with a number"),
    Fault("preprocessing", "code", "different", "images changed before the patches are taken", "", "input"),
    Fault("neighbours", "code", "different", "images that change the results of others in their batch", "", "rows"),
    Fault("memory", "code", "different", "results that depend on the calls before", "", "calls"),
    Fault("branch", "code", "different", "another function for images of some kind", "", "images"),
    Fault("limit", "code", "different", "a clamp or cut-off", "", "values"),
    Fault("float32", "code", "different", "another function in float32 than in float64", "", "outputs"),
    Fault("unknown", "code", "different", "a step that is no known variant of the official one", "", "steps"),
    Fault("shared_parameters", "constraint", "equivalent_under", "one array for several parameters"),
    Fault("tied_blocks", "constraint", "equivalent_under", "the same parameters in all blocks"),
    Fault("absent_parameters", "constraint", "equivalent_under", "biases or scales that the code does not have"),
    Fault("kernel_not_transposed", "port", "different", "square kernels are transposed"),
    Fault("norms_swapped", "port", "different", "LayerNorm_0 and LayerNorm_1 are in each other's place"),
    Fault("mlps_swapped", "port", "different", "token_mixing and channel_mixing are in each other's place"),
    Fault(
        "blocks_reordered", "port", "different", "blocks are in the order of their names as strings: 0, 1, 10, 11, 2"
    ),
    Fault("blocks_moved", "port", "different", "blocks are in another order"),
    Fault("stem_hw_swapped", "port", "different", "height and width of the patch are swapped in the stem"),
    Fault("stem_flattened", "port", "different", "patches flattened as ({})"),
    Fault("tokens_by_columns", "port", "different", "tokens are in the order of columns"),
    Fault("zeroed", "port", "different", "all zeros"),
    Fault("not_finite", "port", "different", "NaN or infinity"),
    Fault("rounded_to_bfloat16", "port", "different", "rounded to bfloat16"),
    Fault("rounded_to_float16", "port", "different", "rounded to float16"),
    Fault("rounded_to_float32", "port", "different", "rounded to float32"),
    Fault("dtype", "port", "different", "the same values as {}"),
    Fault("last_place", "port", "different", "one or two units in the last place"),
    Fault("head_not_loaded", "port", "different", "another head"),
    Fault("weights", "port", "different", "others"),
    Fault("round_trip", "port", "different", "others"),
    Fault("not_in_state_dict", "notice", "equivalent", "parameters that are in no state_dict"),
    Fault("train_mode", "notice", "equivalent", "another function in train mode, as with dropout"),
    Fault("option", "notice", "equivalent", "an argument that was left at its default"),
    Fault("decision", "notice", "equivalent", "numbers of the images that could decide what is run"),
    Fault("state_written", "notice", "equivalent", "calls that change what stays for the next"),
    Fault("constant_buffer", "notice", "equivalent", "a buffer of the state_dict that meets the images"),
    Fault("ill_conditioned", "notice", "equivalent", "rows whose mean is far larger than their deviation"),
)

CATALOGUE: Mapping[str, Fault] = {fault.id: fault for fault in _ROWS}

# Faults by the kind of a deviation and the setting or operation that differs.
RECOGNISED_BY: Mapping[tuple[Kind, str], str] = {
    **{
        ("variant", what): what
        for what in (
            *("activation", "layer_norm_eps", "layer_norm_variance", "layer_norm_axes", "layer_norm_mean"),
            *("residual", "pooling", "transpose", "post_norm", "norm_after_pool"),
            *("batch_norm", "norm_after_stem", "patches", "extra_mlp", "sublayers_swapped"),
        )
    },
    ("skip", "layer_norm"): "layer_norm_missing",
    ("skip", "activate"): "activation",
    ("skip", "add"): "residual_missing",
    ("insert", "layer_norm"): "extra_layer_norm",
    ("insert", "scale"): "extra_scale",
    ("insert", "bias"): "extra_bias",
    ("insert", "affine"): "extra_affine",
    ("insert", "embedding"): "position_embedding",
    ("insert", "activation"): "extra_activation",
    ("insert", "linear"): "extra_layer",
    ("insert", "output"): "output",
    ("insert", "constant"): "constant",
    ("insert", "limit"): "limit",
    ("insert", "reshape"): "reshape",
    ("insert", "preprocessing"): "preprocessing",
    ("insert", "mlp_head"): "mlp_head",
}


def fault_of(deviation: Deviation) -> Fault:
    """The catalogued fault that a deviation shows."""
    if deviation.kind == "unknown":
        return CATALOGUE["unknown"]
    if deviation.what == "residual" and deviation.found is Choice.NORMALISED_STREAM:
        return CATALOGUE["residual_normalised"]
    return CATALOGUE[RECOGNISED_BY[deviation.kind, deviation.what]]


def changeable(causes: str | Collection[str]) -> frozenset[str]:
    """The names of causes, each one of those that leave the same function once they are changed.

    Raises `ConfigError` for others.
    """
    names = frozenset({causes} if isinstance(causes, str) else causes)
    known = sorted(fault.id for fault in CATALOGUE.values() if fault.verdict == "equivalent_under")
    unknown = sorted(map(str, names.difference(known)))
    if unknown:
        near = did_you_mean(unknown[0], known)
        raise ConfigError(f"under is {', '.join(unknown)}; it must be among {', '.join(known)}{near}")
    return names


def verdict_of(cause: str) -> Verdict:
    """The verdict on a model that differs in this alone."""
    return CATALOGUE[cause].verdict
