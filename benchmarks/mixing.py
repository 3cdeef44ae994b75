"""Token mixing alone, in every formulation, beside the linear one: `python -m benchmarks.mixing [--write]`.

Times are of a call of the MLP on (batch, tokens, hidden), in interleaved rounds, relative to the same framework's
linear formulation. Each formulation's result is first held against that one's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch

from benchmarks import record
from mixer_equiv import MixerConfig
from mixer_equiv.bench.environment import pin_cores
from mixer_equiv.bench.export import markdown_table
from mixer_equiv.bench.timing import paired_ratio, quartiles, time_in_rounds
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.models.flax import formulations as flax_formulations
from mixer_equiv.models.flax import model as flax
from mixer_equiv.models.torch import MlpBlock
from mixer_equiv.models.torch import formulations as torch_formulations

CELLS = [(name, batch) for name in ("S/32", "B/16") for batch in (1, 8, 32)]
ROUNDS = 20
FRAMEWORKS = ("torch", "flax")
SLOW = "depthwise_conv"  # is timed with a batch of one alone

# Between two formulations in float32, relative.
CLOSE = 1e-5

HEADINGS = ("cell", "token mixing", "torch, ms", "times the linear one", "flax, ms", "times the linear one")


def calls(config: MixerConfig, batch: int) -> Iterator[tuple[str, str, Callable[[], np.ndarray]]]:
    """Framework, formulation, and the call, which returns its result."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, config.num_tokens, config.hidden_dim), np.float32)
    sizes = (config.num_tokens, config.tokens_mlp_dim)
    kernels = [rng.standard_normal(shape, np.float32) / shape[0] ** 0.5 for shape in (sizes, sizes[::-1])]
    biases = [rng.standard_normal(kernel.shape[1], np.float32) for kernel in kernels]
    for name in torch_formulations.TOKENS:
        if name != SLOW or batch == 1:
            yield "torch", name, _in_torch(name, x, kernels, biases)
            yield "flax", name, _in_flax(name, x, kernels, biases)


def _in_torch(name: str, x: np.ndarray, kernels: Any, biases: Any) -> Callable[[], np.ndarray]:
    block = MlpBlock(*kernels[0].shape, mixing=torch_formulations.TOKENS[name]).eval().requires_grad_(False)
    for layer, kernel, bias in zip((block.dense_0, block.dense_1), kernels, biases, strict=True):
        layer.load_state_dict({"weight": torch.tensor(kernel.T), "bias": torch.tensor(bias)})
    given = torch.tensor(x)

    def call() -> np.ndarray:
        with torch.inference_mode():
            return block(given, -2).numpy()

    return call


def _in_flax(name: str, x: np.ndarray, kernels: Any, biases: Any) -> Callable[[], np.ndarray]:
    block = flax.MlpBlock(len(biases[0]), mixing=None if name == "linear" else flax_formulations.TOKENS[name])
    params = {f"Dense_{i}": {"kernel": kernels[i], "bias": biases[i]} for i in range(2)}
    apply = jax.jit(lambda params, x: block.apply({"params": params}, x, -2))
    held, given = jax.device_put(params), jax.device_put(x)
    return lambda: jax.block_until_ready(apply(held, given))


def measure(config: MixerConfig, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Of each formulation in each framework: milliseconds, and times the linear one's, with intervals.

    Raises `AssertionError` for a formulation that computes something else.
    """
    made = {(framework, way): call for framework, way, call in calls(config, batch)}
    for (framework, way), call in made.items():
        apart = residual(np.asarray(call(), np.float64), np.asarray(made[framework, "linear"](), np.float64))
        assert apart <= CLOSE, f"{way} in {framework} is {apart:.1e} from the linear formulation"
    seconds = time_in_rounds({" ".join(key): call for key, call in made.items()}, rounds)
    rows = []
    for framework, way in made:
        own = seconds[f"{framework} {way}"]
        times = paired_ratio(seconds[f"{framework} linear"], own)
        rows.append(
            {
                "cell": f"{config.name}, batch {batch}",
                "framework": framework,
                "tokens": way,
                "ms": [round(1e3 * q, 3) for q in quartiles(own)],
                "times_linear": [round(value, 3) for value in (times.low, times.median, times.high)],
            }
        )
    return rows


def page(result: Mapping[str, Any]) -> str:
    """The numbers for a person, in Markdown."""
    by_key: dict[tuple[str, str], dict[str, str]] = {}
    for row in result["rows"]:
        low, median, high = row["ms"]
        least, times, most = row["times_linear"]
        shown = by_key.setdefault((row["cell"], row["tokens"]), {})
        shown[f"{row['framework']} ms"] = f"{median:.2f} ({low:.2f}-{high:.2f})"
        shown[f"{row['framework']} times"] = f"{times:.2f} ({least:.2f}-{most:.2f})"
    columns = [f"{framework} {what}" for framework in FRAMEWORKS for what in ("ms", "times")]
    lines = [
        "# Token mixing alone, by formulation",
        "",
        "Written by `python -m benchmarks.mixing --write`. The MLP over tokens, on (batch, tokens, hidden), float32:",
        "medians with quartiles, and the time relative to the linear formulation with its 95% interval.",
        "",
        *markdown_table(HEADINGS, [[*key, *(shown[column] for column in columns)] for key, shown in by_key.items()]),
    ]
    return "\n".join([*lines, "", record.conditions(result["machine"], str(result["rounds"])), ""])


def all_cells(rounds: int) -> dict[str, Any]:
    with pin_cores(None, ["torch", "jax"]):
        rows = [row for name, batch in CELLS for row in measure(MixerConfig.from_name(name), batch, rounds)]
    return {"rows": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    record.command(arguments, "mixing", __doc__, ROUNDS, all_cells, page)


if __name__ == "__main__":
    main()
