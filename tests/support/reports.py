"""Reports of every verdict, made without running a model, for tests of how they are written and drawn."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from mixer_equiv.checkpoints.provenance import FileDigest, Provenance
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.report import Cause, Gradients, Report, SideReport, Stage, Training
from mixer_equiv.layouts import LINEN, get_layout

_CONFIG = MixerConfig.from_name("B/16")
_STAGES = (
    "stem",
    *(f"MixerBlock_{i}/{half}_mixing" for i in range(_CONFIG.num_blocks) for half in ("token", "channel")),
    *("pre_head_layer_norm", "pooled", "logits"),
)
_CANONICAL = tuple(LINEN.bindings(_CONFIG.num_blocks))
_RESIDUALS = {name: (i + 1) * 1.25e-16 for i, name in enumerate(_CANONICAL)}
_DIGEST = FileDigest("checkpoints/Mixer-B_16.npz", 239_601_234, "0123456789abcdef" * 4)


def full_report(**fields: Any) -> Report:
    """A report none of whose fields is at its default: an equivalent port of a published size."""
    side = SideReport(
        "Mixer-B_16.npz", "Flax", 59_880_472, "176 arrays, float32", True, "linen -> timm -> linen", 3e-7, 0.76
    )
    bindings = get_layout("timm").bindings(_CONFIG.num_blocks)
    values: dict[str, Any] = {
        "verdict": "equivalent",
        "threshold": 1e-12,
        "residual": 2.5e-15,
        "decision": 3.5e-15,
        "stages": _stages(),
        "first_divergence": "MixerBlock_3/token_mixing",
        "causes": (EPS,),
        "residual_without_causes": 1.5e-15,
        "reasons": ("the gradients differ by 0.25",),
        "mapping": {name: binding.foreign for name, binding in bindings.items()},
        "mapping_of": "ported.safetensors",
        "shapes": {name: (768, 3 + i % 5) for i, name in enumerate(bindings)},
        "unobservable": tuple(name for name in _CANONICAL if name.endswith("token_mixing/Dense_1/bias")),
        "warnings": ("MixerBlock_0/LayerNorm_0 sees rows with mean^2/variance up to 2.5e+09",),
        "notices": ("fast_variance",),
        "environment": {"python": "3.11.7", "machine": "x86_64", "torch": "2.13.0+cpu", "jax device": "cpu:0"},
        "sides": (side, dataclasses.replace(side, name="ported.safetensors", program="PyTorch", accuracy=0.77)),
        "weights": "bit-identical",
        "images": "on 4 random images",
        "num_images": 4,
        "dtype": "bfloat16",
        "max_difference": 4.5e-15,
        "gradients": Gradients("head/bias", max(_RESIDUALS.values()), 1e-12, len(_RESIDUALS), 1, 1e-7, _RESIDUALS),
        "training": (
            Training("SGD", 5, "head/kernel", 2e-16, 1e-12, 150, 4),
            Training("AdamW", 5, "stem/bias", 3e-11, 1e-9, 150, 4),
        ),
        "visible": {"layer_norm_eps: 1e-05": 2.5e-6, "pooling: first token": 1.9, "output: tanh": 0.0},
        "prediction_flips": 1,
        "names": ("Mixer-B_16.npz", "ported.safetensors"),
        "provenance": Provenance(
            "mixer-equiv verify checkpoints/Mixer-B_16.npz ported.safetensors --train-steps 5 --html report.html",
            3,
            "2026-11-30",
            {"mixer_equiv": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu"},
            (_DIGEST,),
            (FileDigest("mixers/a_module_with_a_long_name/mixer_of_somebody_else.py", 8_123, None),),
        ),
    }
    return Report(**values | fields)


def _stages(jump_at: str = "", to: float = 1.0) -> tuple[Stage, ...]:
    """Residuals that rise slowly, and from one stage on a jump."""
    before = list(itertools.takewhile(lambda name: name != jump_at, _STAGES))
    return tuple(
        Stage(name, (i + 1) * 1e-16 if name in before else to * (1 + i / 10), i * 1e-16, 0.0)
        for i, name in enumerate(_STAGES)
    )


EPS = Cause(
    *("layer_norm_eps", "code", "1e-06", "1e-05", "25 of 25 LayerNorms", "in TheirMixer: everywhere"),
    places=(
        "at mixers/a_module_with_a_long_name/mixer_of_somebody_else.py:41 in blocks.0.norm1",
        "at mixers/head.py:12",
    ),
)
_GELU = Cause(
    "activation", "code", "gelu_tanh", "gelu", "24 of 24 MLPs", "in TheirMixer", ("at mixers/mlp.py:7 in blocks.0",)
)
_KERNEL = Cause(
    "square_kernel_not_transposed", "port", "the transpose", "the array as it was", "1 of 24 kernels", "block 3"
)
_OURS: dict[str, Any] = {"first_divergence": None, "causes": (), "residual_without_causes": None, "reasons": ()}
_NOT_RUN: dict[str, Any] = {
    **_OURS,
    **dict.fromkeys(("stages", "sides", "training", "unobservable", "warnings", "notices"), ()),
    **{name: {} for name in ("mapping", "shapes", "visible")},
    **dict.fromkeys(("residual", "decision", "max_difference", "gradients", "prediction_flips")),
    **dict.fromkeys(("images", "weights", "mapping_of"), ""),
    "num_images": 0,
}
_THEIRS = {"names": ("TheirMixer", "reference"), "mapping_of": "TheirMixer"}
_CALL = Provenance("verify(TheirMixer(...), image=(3, 224, 224))", 0, "2026-11-30", {"mixer_equiv": "0.1.0"})

_FEW_ARRAYS = {"mapping": {name: name for name in _CANONICAL[:20]}}

# At least one of every verdict, by what is special about it.
REPORTS: dict[str, Report] = {
    "equivalent": full_report(**{**_OURS, "warnings": ()}),
    "with a warning": full_report(**_OURS, **_FEW_ARRAYS),
    "explained": full_report(
        verdict="equivalent_under",
        residual=2.3e-6,
        stages=_stages("MixerBlock_0/token_mixing", 1e-6),
        first_divergence="MixerBlock_0/token_mixing",
        causes=(EPS, _GELU),
        reasons=(),
        training=(),
        provenance=_CALL,
        **_THEIRS,
    ),
    "different": full_report(
        verdict="different",
        **_FEW_ARRAYS,
        residual=12.5,
        stages=_stages("MixerBlock_7/channel_mixing", 5.0),
        first_divergence="MixerBlock_7/channel_mixing",
        causes=(),
        residual_without_causes=None,
        reasons=("no known fault explains the values of MixerBlock_7/channel_mixing",),
        gradients=Gradients("head/bias", 0.25, 1e-12, 150, 1, 0.3),
        training=(Training("AdamW", 5, "stem/bias", 3e-3, 1e-9, 150, 4),),
        **_THEIRS,
    ),
    "other weights": Report(
        verdict="different",
        threshold=1e-12,
        causes=(_KERNEL,),
        reasons=("the weights differ; nothing was run",),
        names=("Mixer-B_16.npz", "ported.safetensors"),
    ),
    "inexpressible": full_report(
        verdict="inexpressible",
        **{
            **_NOT_RUN,
            "reasons": ("there is no LayerNorm before the head", "it is a Mixer up to pre_head_layer_norm"),
            "first_divergence": "pre_head_layer_norm",
            "names": ("mixers.py:MyMixer",),
        },
    ),
    "nothing compared": full_report(
        verdict="nothing_compared",
        **{
            **_NOT_RUN,
            "reasons": ("the search stopped at aten.fft, mixers.py:41, with 3 parameters left: a, b, c",),
            "names": ("timm:a_model_of_another_family_with_a_name_that_is_longer_than_a_telephone_is_wide",),
        },
    ),
    "not a number": full_report(
        verdict="nothing_compared",
        **_FEW_ARRAYS,
        residual=None,
        stages=(Stage("stem", 0.0, 0.0, 0.0), *(Stage(name, *[float("inf")] * 3) for name in ("pooled", "logits"))),
        causes=(),
        residual_without_causes=None,
        reasons=("the outputs of both are not finite",),
    ),
    "hardly anything": Report(verdict="nothing_compared", threshold=1e-12),
}
