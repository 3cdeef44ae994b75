"""The MLP-Mixer in NumPy float64: the reference, which shares no code with the framework models.

It is written from the paper (Tolstikhin et al. 2021, section 2) in other expressions than theirs: the stem is one
product over cut-out patches, the variance is taken in two passes, the tanh GELU is x * sigmoid(2u), and the erf GELU is
computed from SciPy's or the standard library's `erfc` (`activations`). It must not import a framework. Start reading at
`MlpMixer.run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer_equiv import operations
from mixer_equiv.config import MixerConfig
from mixer_equiv.operations import Array, Parameter, Program, Recorder


class MlpMixer:
    """A function of canonical parameters and images: `MlpMixer(config)(params, images)`."""

    def __init__(self, config: MixerConfig) -> None:
        self.config = config

    def __call__(self, params: Mapping[str, Array], images: Array, *, taps: bool = False) -> Any:
        """Flat canonical `params` and images (batch, height, width, channels) to float64 logits.

        Returns (batch, classes), or with `taps` the dict of stages.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # numbers that are not finite show in the result
            weights = {name: np.asarray(value, np.float64) for name, value in params.items()}
            stages = self.run(operations, weights, np.asarray(images, np.float64))
        return stages if taps else list(stages.values())[-1]

    def gradients(self, params: Mapping[str, Array], images: Array, cotangent: Array) -> dict[str, Array]:
        """Gradients, by the names of `params`, of the sum of the last stage times `cotangent`, in float64.

        They are derived from the program, operation by operation, and not by a framework.
        """
        program = self.program({name: Parameter(name, ()) for name in params})
        weights = {name: np.asarray(value, np.float64) for name, value in params.items()}
        with np.errstate(over="ignore", invalid="ignore"):
            return program.gradients(weights, np.asarray(images, np.float64), np.asarray(cotangent, np.float64))

    def program(self, parameters: Mapping[str, Parameter]) -> Program:
        """The steps of the model as a program for any sizes, with the conventions and the depth of the config."""
        return Recorder("stem").program(self.run, parameters)

    def run(self, ops: Any, weights: Mapping[str, Any], images: Any) -> dict[str, Any]:
        """Compute every stage by the operations `ops`, which is `operations` or a `Recorder`."""
        eps, activation = self.config.layer_norm_eps, self.config.activation

        def layer_norm(x: Any, name: str) -> Any:
            return ops.layer_norm(x, weights[f"{name}/scale"], weights[f"{name}/bias"], eps)

        def linear(x: Any, name: str) -> Any:
            return ops.linear(x, weights[f"{name}/kernel"], weights[f"{name}/bias"])

        def mlp(x: Any, name: str) -> Any:
            return linear(ops.activate(linear(x, f"{name}/Dense_0"), activation), f"{name}/Dense_1")

        stream = linear(ops.cut(images, self.config.patch_hw), "stem")
        seen = {"stem": stream}
        for i in range(self.config.num_blocks):
            block = f"MixerBlock_{i}"
            mixed = mlp(ops.swap(layer_norm(stream, f"{block}/LayerNorm_0")), f"{block}/token_mixing")
            stream = seen[f"{block}/token_mixing"] = ops.add(stream, ops.swap(mixed))
            mixed = mlp(layer_norm(stream, f"{block}/LayerNorm_1"), f"{block}/channel_mixing")
            stream = seen[f"{block}/channel_mixing"] = ops.add(stream, mixed)
        normed = seen["pre_head_layer_norm"] = layer_norm(stream, "pre_head_layer_norm")
        out = seen["pooled"] = ops.mean(normed)
        if self.config.num_classes:
            seen["logits"] = linear(out, "head")
        return seen
