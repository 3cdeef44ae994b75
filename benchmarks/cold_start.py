"""The time of each command from a cold start to its answer: `python -m benchmarks.cold_start [--write]`.

Whole processes are timed, in turns. One more run of each, which does not count, is divided into imports (Python's own
`-X importtime`), compiling (JAX logs the times of tracing, lowering and XLA) and the rest. Start reading at `measure`.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import command_line, result_files
from benchmarks.processes import process_environment, rounded_quartiles, run_in_turns, shown_quartiles
from mixer_equiv import Checkpoint, MixerConfig, save
from mixer_equiv.data.digits import CHECKPOINT
from mixer_equiv.random_weights import draw_params

ROUNDS = 5
COMMAND_LINE = (sys.executable, "-m", "mixer_equiv")

# A module with somebody else's Mixer, about as large as that of the digits.
TUTORIAL_MODULE = """
import dataclasses
from mixer_equiv.data.digits import CONFIG
from mixer_equiv.bench.peers_torch import TutorialMixer, as_official

def model():
    return as_official(TutorialMixer(dataclasses.replace(CONFIG, hidden_dim=64, channels_mlp_dim=128)))
"""

_IMPORT = re.compile(r"^import time:\s+(\d+) \|", re.MULTILINE)
_COMPILE = re.compile(r"Finished (?:tracing \+ transforming|jaxpr to MLIR|XLA compilation).* in ([\d.e-]+) sec")


def make_commands(folder: Path) -> dict[str, list[str | Path]]:
    """Make the commands that are timed, by their printed names, and the files that they need."""
    (folder / "foreign.py").write_text(TUTORIAL_MODULE)
    digits, target, published = CHECKPOINT, folder / "digits.safetensors", folder / "Mixer-B_16.npz"
    config = MixerConfig.from_name("B/16")
    save(Checkpoint.from_arrays(draw_params(config, 0), layout="linen", config=config).astype("float32"), published)
    return {
        "--help": [*COMMAND_LINE, "--help"],
        "inspect, digits": [*COMMAND_LINE, "inspect", digits],
        "convert, digits": [*COMMAND_LINE, "convert", digits, target, "--force"],
        "verify, digits": [*COMMAND_LINE, "verify"],
        "verify, a tutorial's Mixer, 64 wide": [
            *COMMAND_LINE,
            "verify",
            f"{folder / 'foreign.py'}:model",
            "--image",
            "1x8x8",
        ],
        "verify Mixer-B_16.npz": [*COMMAND_LINE, "verify", published],
        "verify timm:mixer_b16_224": [*COMMAND_LINE, "verify", "timm:mixer_b16_224"],
    }


# Equivalent only once a convention is changed: timm's Mixer has the erf GELU.
EXIT_STATUSES = {"verify timm:mixer_b16_224": 1}


def divide(command: Sequence[str | Path], status: int) -> dict[str, float]:
    """Run a command once and divide its seconds into imports, compiling and the rest; observing slows it a little."""
    logging = {**process_environment(), "JAX_LOG_COMPILES": "1"}
    start = time.perf_counter()
    process = subprocess.run(
        [command[0], "-X", "importtime", *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=logging
    )
    seconds = time.perf_counter() - start
    log = process.stderr.decode()
    assert process.returncode == status, log[-2000:]
    imports = sum(map(int, _IMPORT.findall(log))) / 1e6
    compiling = sum(map(float, _COMPILE.findall(log)))
    return {"seconds": seconds, "imports": imports, "compiling": compiling, "rest": seconds - imports - compiling}


def measure(rounds: int) -> dict[str, Any]:
    """Measure each command's seconds, processor seconds and memory, and divide one run."""
    with tempfile.TemporaryDirectory() as folder:
        commands = make_commands(Path(folder))
        runs = run_in_turns(commands, rounds, lambda: None, EXIT_STATUSES)
        return {
            name: {
                "seconds": rounded_quartiles([run.seconds for run in each]),
                "cpu_seconds": round(statistics.median(run.cpu for run in each), 2),
                "memory_MB": round(statistics.median(run.memory for run in each) / 1e6),
                "divided": {
                    part: round(seconds, 2)
                    for part, seconds in divide(commands[name], EXIT_STATUSES.get(name, 0)).items()
                },
            }
            for name, each in runs.items()
        }


def page(result: Mapping[str, Any]) -> str:
    """Write the numbers in Markdown."""
    lines = [
        "# From a cold start to the answer",
        "",
        "Written by `python -m benchmarks.cold_start --write`. Whole processes; medians, with quartiles in brackets.",
        "The last three columns divide the time of one more run, which was observed.",
        "",
        "| command | seconds | processor seconds | peak memory, MB | imports | compiling | rest |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, each in result["commands"].items():
        shown = " | ".join(f"{each['divided'][part]:.2f}" for part in ("imports", "compiling", "rest"))
        lines.append(
            f"| {name} | {shown_quartiles(each['seconds'])} | {each['cpu_seconds']} | {each['memory_MB']} | {shown} |"
        )
    return "\n".join([*lines, "", result_files.machine_line(result["machine"], str(result["rounds"])), ""])


def main(arguments: Sequence[str] | None = None) -> None:
    command_line.run_benchmark(
        arguments,
        "cold_start",
        __doc__,
        ROUNDS,
        lambda rounds: {"commands": measure(rounds)},
        page,
        least=2,
        left_out="cores_had",
    )


if __name__ == "__main__":
    main()
