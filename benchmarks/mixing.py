"""Token mixing alone, in every formulation, beside the linear one: `python -m benchmarks.mixing [--write]`.

A call of the MLP on (batch, tokens, hidden) is timed in interleaved rounds, relative to the same framework's linear
formulation. Before that, each formulation's result is compared with that of the linear one. Start reading at `measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch

from benchmarks import command_line, result_files
from mixer_equiv import MixerConfig
from mixer_equiv.bench.environment import pin_cores
from mixer_equiv.bench.export import markdown_table
from mixer_equiv.bench.timing import paired_ratio, quartiles, time_in_rounds
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.formulation import TOKENS_CHOICES
from mixer_equiv.models.flax import formulations as flax_formulations
from mixer_equiv.models.torch import MlpBlock
from mixer_equiv.models.torch import formulations as torch_formulations

SIZES_AND_BATCHES = [(name, batch) for name in ("S/32", "B/16") for batch in (1, 8, 32)]
ROUNDS = 20
TIMED_FRAMEWORKS = ("torch", "flax")
SLOW_FORMULATION = "depthwise_conv"  # is timed only with a batch of one

# The largest relative difference allowed between two formulations in float32.
FORMULATION_TOLERANCE = 1e-5

HEADINGS = ("cell", "token mixing", "torch, ms", "times the linear one", "flax, ms", "times the linear one")


def make_calls(config: MixerConfig, batch: int) -> Iterator[tuple[str, str, Callable[[], np.ndarray]]]:
    """Yield the framework, the formulation, and the call, which returns its result."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, config.num_tokens, config.hidden_dim), np.float32)
    sizes = (config.num_tokens, config.tokens_mlp_dim)
    kernels = [rng.standard_normal(shape, np.float32) / shape[0] ** 0.5 for shape in (sizes, sizes[::-1])]
    biases = [rng.standard_normal(kernel.shape[1], np.float32) for kernel in kernels]
    for name in TOKENS_CHOICES:
        if name != SLOW_FORMULATION or batch == 1:
            yield "torch", name, _torch_call(name, x, kernels, biases)
            yield "flax", name, _flax_call(name, x, kernels, biases)


def _torch_call(name: str, x: np.ndarray, kernels: Any, biases: Any) -> Callable[[], np.ndarray]:
    block = MlpBlock(*kernels[0].shape)
    torch_formulations.set_mixing(block, torch_formulations.TOKEN_MIXINGS[name])
    block.eval().requires_grad_(False)
    for layer, kernel, bias in zip((block.dense_0, block.dense_1), kernels, biases, strict=True):
        layer.load_state_dict({"weight": torch.tensor(kernel.T), "bias": torch.tensor(bias)})
    given = torch.tensor(x)

    def call() -> np.ndarray:
        with torch.inference_mode():
            return block(given.mT).mT.numpy()

    return call


def _flax_call(name: str, x: np.ndarray, kernels: Any, biases: Any) -> Callable[[], np.ndarray]:
    mixing = flax_formulations.TOKEN_MIXINGS[name]
    block = flax_formulations.FormulationMlp(len(biases[0]), "gelu_tanh", mixing)
    params = {f"Dense_{i}": {"kernel": kernels[i], "bias": biases[i]} for i in range(2)}
    apply = jax.jit(lambda params, x: block.apply({"params": params}, x, -2))
    held, given = jax.device_put(params), jax.device_put(x)
    finish: Callable[[Any], Any] = jax.block_until_ready
    return lambda: finish(apply(held, given))


def measure(config: MixerConfig, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Measure each formulation in each framework: milliseconds, and the ratio to the linear one's with its interval.

    Raises `AssertionError` for a formulation that computes something else.
    """
    calls = {(framework, tokens): call for framework, tokens, call in make_calls(config, batch)}
    for (framework, tokens), call in calls.items():
        apart = residual(np.asarray(call(), np.float64), np.asarray(calls[framework, "linear"](), np.float64))
        assert apart <= FORMULATION_TOLERANCE, f"{tokens} in {framework} is {apart:.1e} from the linear formulation"
    seconds = time_in_rounds({" ".join(key): call for key, call in calls.items()}, rounds)
    rows = []
    for framework, tokens in calls:
        own = seconds[f"{framework} {tokens}"]
        times = paired_ratio(seconds[f"{framework} linear"], own)
        rows.append(
            {
                "cell": f"{config.name}, batch {batch}",
                "framework": framework,
                "tokens": tokens,
                "ms": [round(1e3 * q, 3) for q in quartiles(own)],
                "times_linear": [round(value, 3) for value in (times.low, times.median, times.high)],
            }
        )
    return rows


def page(result: Mapping[str, Any]) -> str:
    """Write the numbers in Markdown."""
    by_key: dict[tuple[str, str], dict[str, str]] = {}
    for row in result["rows"]:
        low, median, high = row["ms"]
        least, times, most = row["times_linear"]
        shown = by_key.setdefault((row["cell"], row["tokens"]), {})
        shown[f"{row['framework']} ms"] = f"{median:.2f} ({low:.2f}-{high:.2f})"
        shown[f"{row['framework']} times"] = f"{times:.2f} ({least:.2f}-{most:.2f})"
    columns = [f"{framework} {number}" for framework in TIMED_FRAMEWORKS for number in ("ms", "times")]
    lines = [
        "# Token mixing alone, by formulation",
        "",
        "Written by `python -m benchmarks.mixing --write`. The MLP over tokens, on (batch, tokens, hidden), in",
        "float32: medians with quartiles, and the time relative to the linear formulation with its 95% interval.",
        "",
        *markdown_table(HEADINGS, [[*key, *(shown[column] for column in columns)] for key, shown in by_key.items()]),
    ]
    return "\n".join([*lines, "", result_files.machine_line(result["machine"], str(result["rounds"])), ""])


def measure_all(rounds: int) -> dict[str, Any]:
    with pin_cores(None, ["torch", "jax"]):
        rows = [row for name, batch in SIZES_AND_BATCHES for row in measure(MixerConfig.from_name(name), batch, rounds)]
    return {"rows": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    command_line.run_benchmark(arguments, "mixing", __doc__, ROUNDS, measure_all, page)


if __name__ == "__main__":
    main()
