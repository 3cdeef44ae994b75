"""Convert MLP-Mixer weights between Flax and PyTorch, and prove two Mixers to be the same function.

    params = load("Mixer-B_16.npz")
    state = convert(params, to="torch")
    save(state, "mixer_b16.safetensors")
    print(verify(params, state))

Public are this package and `layouts`, `models`, `testing` and `render`; everything else is internal.
Importing it needs NumPy, ml_dtypes, einops and safetensors; torch, JAX and Flax are imported when they are used, and
so is everything that compares programs.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.checkpoints.conversion import convert, flax_to_torch, torch_to_flax
from mixer_equiv.checkpoints.io import load, save
from mixer_equiv.checkpoints.surgery import drop_head, enlarge, new_head
from mixer_equiv.config import MixerConfig
from mixer_equiv.errors import (
    CheckpointError,
    ConfigError,
    ConventionWarning,
    ConversionError,
    InexpressibleError,
    LayoutError,
    MissingDependencyError,
    MixerEquivError,
    NotEquivalentError,
    ReportError,
)
from mixer_equiv.formulation import Formulation
from mixer_equiv.layouts import LAYOUTS, Conventions, Layout, register_layout

if TYPE_CHECKING:
    from mixer_equiv.equivalence.policy import Policy
    from mixer_equiv.equivalence.porting import layout_of, port
    from mixer_equiv.equivalence.report import Report
    from mixer_equiv.equivalence.verify import verify
    from mixer_equiv.testing.assertions import assert_equivalent
    from mixer_equiv.testing.tolerance import Comparison, compare

__version__ = "0.1.0"

__all__ = [
    "LAYOUTS",
    "Checkpoint",
    "CheckpointError",
    "Comparison",
    "ConfigError",
    "ConventionWarning",
    "Conventions",
    "ConversionError",
    "Formulation",
    "InexpressibleError",
    "Layout",
    "LayoutError",
    "MissingDependencyError",
    "MixerConfig",
    "MixerEquivError",
    "NotEquivalentError",
    "Policy",
    "Report",
    "ReportError",
    "assert_equivalent",
    "compare",
    "convert",
    "drop_head",
    "enlarge",
    "flax_to_torch",
    "layout_of",
    "load",
    "new_head",
    "port",
    "register_layout",
    "save",
    "torch_to_flax",
    "verify",
]

_IMPORTED_WHEN_USED = {
    "Comparison": "testing.tolerance",
    "Policy": "equivalence.policy",
    "Report": "equivalence.report",
    "assert_equivalent": "testing.assertions",
    "compare": "testing.tolerance",
    "layout_of": "equivalence.porting",
    "port": "equivalence.porting",
    "verify": "equivalence.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_WHEN_USED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(f"{__name__}.{_IMPORTED_WHEN_USED[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
