"""Wrong Mixers in Flax."""

from __future__ import annotations

from tests.soundness.wrong import in_flax, in_linen, in_nnx

CASES = (*in_flax.CASES, *in_linen.CASES, *in_nnx.CASES)
