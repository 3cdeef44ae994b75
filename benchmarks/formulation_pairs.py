"""The residuals between any two formulations, in any framework: `python -m benchmarks.formulation_pairs [CASES]`.

A case is one draw of weights (normal, then Student-t) and of images, for one of the few configs that JAX compiles for;
there are 500 by default. Every case runs in float64 in all 30 formulations in torch and in Flax, in Flax nnx and in the
NumPy reference. Prints for each model function the largest residual to the reference and to any other one, and the
largest of all pairs. The exit status is 1 if one is above the threshold of the policy.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from benchmarks.model_functions import FLAX_FUNCTIONS, NNX_FUNCTION, REFERENCE, TORCH_FUNCTIONS
from mixer_equiv import Policy
from mixer_equiv.equivalence.record.precision import jax_full_precision, torch_full_precision
from mixer_equiv.random_weights import draw_images, draw_params
from mixer_equiv.testing.strategies import FEW_CONFIGS

COMPARED_FUNCTIONS = (REFERENCE, *TORCH_FUNCTIONS, *FLAX_FUNCTIONS, NNX_FUNCTION)
WEIGHT_STYLES = ("normal", "heavy_tailed")


def pairwise_residuals(seed: int) -> np.ndarray:
    """Compute the norm of the difference of any two outputs over the norm of the second's, (functions, functions)."""
    config, style = FEW_CONFIGS[seed % len(FEW_CONFIGS)], WEIGHT_STYLES[seed // len(FEW_CONFIGS) % len(WEIGHT_STYLES)]
    params, images = draw_params(config, seed, style), draw_images(config, seed + 1)
    outputs = np.stack([function(config, params, images).reshape(-1) for function in COMPARED_FUNCTIONS])
    if not np.isfinite(outputs).all():
        return np.full((len(COMPARED_FUNCTIONS), len(COMPARED_FUNCTIONS)), np.inf)
    return np.linalg.norm(outputs[:, None] - outputs, axis=-1) / np.linalg.norm(outputs, axis=-1)


def main(cases: int) -> int:
    start, threshold = time.perf_counter(), Policy().residual
    with jax_full_precision(), torch_full_precision():
        furthest = np.max([pairwise_residuals(seed) for seed in range(cases)], axis=0)
    names = [str(function) for function in COMPARED_FUNCTIONS]
    width = max(map(len, names))
    print(f"{'':{width}}  reference    another  which one")
    for name, row in zip(names, furthest, strict=True):
        print(f"{name:{width}}    {row[0]:.1e}    {row.max():.1e}  {names[row.argmax()]}")
    pairs = len(names) * (len(names) - 1) // 2
    print(
        f"{cases} cases, {pairs} pairs of {len(names)} model functions: at most {furthest.max():.1e}, "
        f"{int(np.sum(np.triu(furthest > threshold)))} above {threshold:g}; {time.perf_counter() - start:.0f} s"
    )
    return int(furthest.max() > threshold)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 500))
