"""Convert MLP-Mixer weights between Flax and PyTorch, and prove two Mixers to be the same function.

    params = load("Mixer-B_16.npz")
    state = convert(params, to="torch")
    save(state, "mixer_b16.safetensors")
    print(verify(params, state))

Importing this needs NumPy and einops; torch, JAX and Flax are imported when they are used.
"""

from mixer_equiv.checkpoint import Checkpoint, load, save
from mixer_equiv.config import MixerConfig
from mixer_equiv.convert import convert, flax_to_torch, torch_to_flax
from mixer_equiv.equivalence.asserting import Comparison, assert_equivalent, compare
from mixer_equiv.equivalence.compare import Policy
from mixer_equiv.equivalence.porting import layout_of, port
from mixer_equiv.equivalence.verify import verify
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
)
from mixer_equiv.formulation import Formulation
from mixer_equiv.layouts import LAYOUTS, Conventions, Layout, register_layout
from mixer_equiv.report import Report
from mixer_equiv.surgery import drop_head, enlarge, new_head

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
