"""Inspections: findings are values, and the plain text needs no rich."""

from __future__ import annotations

import numpy as np

from mixer_equiv import Checkpoint
from mixer_equiv.checkpoints.inspection import Finding, inspect
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from tests.support.checkpoints import CONFIG, checkpoint
from tests.support.scripts import BLOCKED, printed

KERNEL, SCALE = "MixerBlock_1/token_mixing/Dense_0/kernel", "MixerBlock_0/LayerNorm_0/scale"


def odd() -> Checkpoint:
    """A checkpoint with a NaN, an infinity, a dead kernel, a constant array and a head of zeros."""
    arrays = random_params(CONFIG, 0)
    arrays["stem/bias"][3] = np.nan
    arrays["MixerBlock_0/LayerNorm_0/bias"][2] = -np.inf
    arrays[SCALE][:] = 1.5
    arrays[KERNEL][:] = 0.5
    arrays["head/kernel"][:] = 0
    return Checkpoint.from_arrays(arrays, config=CONFIG)


def test_findings_are_values_with_the_arrays_that_show_them() -> None:
    assert inspect(odd(), values=True).findings == [
        Finding("NaN", ("stem/bias",)),
        Finding("inf", ("MixerBlock_0/LayerNorm_0/bias",)),
        Finding("untrained_head", ("head/kernel",)),
        Finding("constant_kernels", (KERNEL,)),
    ]
    assert inspect(odd()).findings == []
    assert inspect(checkpoint(), values=True).findings == []


def test_statistics_are_over_finite_values_and_none_without_them() -> None:
    arrays = random_params(CONFIG, 0)
    arrays["head/bias"][:] = np.nan
    arrays["stem/bias"][0] = np.inf
    found = {a.name: a for a in inspect(Checkpoint.from_arrays(arrays, config=CONFIG), values=True).arrays}
    nothing, rest = found["head/bias"].statistics, found["stem/bias"].statistics
    assert nothing is not None
    assert rest is not None
    assert (nothing.mean, nothing.std, nothing.max_abs) == (None, None, None)
    finite = arrays["stem/bias"][1:]
    assert (rest.mean, rest.std, rest.max_abs) == (finite.mean(), finite.std(), np.abs(finite).max())
    assert inspect(odd()).arrays[0].statistics is None
    unread = inspect(odd()).arrays[0].to_dict()
    assert unread.items() >= {"mean": None, "std": None, "max_abs": None, "flags": ()}.items()


def test_the_plain_text_has_the_summary_the_arrays_and_the_findings() -> None:
    inspection = inspect(odd(), values=True)
    lines = str(inspection).splitlines()
    rows = {line.split()[0]: line for line in lines if line}
    assert rows["layout"].split(maxsplit=1)[1] == f"linen ({odd().layout.summary})"
    assert rows["array"].split() == ["array", "shape", "mean", "std", "max", "|x|", "seen"]
    assert rows["MixerBlock_{i}/LayerNorm_0/scale"].endswith("constant in 1 of 12")
    assert lines[-4:] == [f"warning: {finding}" for finding in inspection.findings]
    unread = {line.split()[0]: line.split() for line in str(inspect(odd())).splitlines() if line}
    assert unread["stem/kernel"] == ["stem/kernel", "2x3x3x20", "float64"]
    assert len({line.index("float64") for line in str(inspect(odd())).splitlines() if line.endswith("float64")}) == 2


PRINTED = (
    BLOCKED.replace('"flax")', '"flax", "rich", "jinja2", "typer")')
    + """
import numpy as np
from mixer_equiv import load
from mixer_equiv.checkpoints.inspection import inspect
from mixer_equiv.data import digits
print(json.dumps(str(inspect(load(digits.CHECKPOINT), values=True))))
"""
)


def test_an_inspection_is_printed_without_rich() -> None:
    text = printed(PRINTED)
    assert text.startswith("checkpoint         digits_mixer.npz\nlayout             linen (official Flax linen model")
    assert "\x1b" not in text
