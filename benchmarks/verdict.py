"""From a cold start to the answer of each command: `python -m benchmarks.verdict [--write]`.

Whole processes are timed, in turns. One more run of each, which does not count, tells how its time divides
into imports (Python's own `-X importtime`), compiling (what JAX logs of tracing, lowering and XLA) and the rest.
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

from benchmarks import record
from benchmarks.conversion import environment, in_turns, quartiles, ranged
from mixer_equiv import Checkpoint, MixerConfig, save
from mixer_equiv.data.digits import CHECKPOINT
from mixer_equiv.random_weights import draw_params

ROUNDS = 5
OURS = (sys.executable, "-m", "mixer_equiv")

# A Mixer of somebody else, about as large as the digits'.
FOREIGN = """
import dataclasses
from mixer_equiv.data.digits import CONFIG
from mixer_equiv.bench.peers_torch import TutorialMixer, as_official

def model():
    return as_official(TutorialMixer(dataclasses.replace(CONFIG, hidden_dim=64, channels_mlp_dim=128)))
"""

_IMPORT = re.compile(r"^import time:\s+(\d+) \|", re.MULTILINE)
_COMPILE = re.compile(r"Finished (?:tracing \+ transforming|jaxpr to MLIR|XLA compilation).* in ([\d.e-]+) sec")


def commands(folder: Path) -> dict[str, list[str | Path]]:
    """What is timed, by what is printed for it."""
    (folder / "foreign.py").write_text(FOREIGN)
    digits, target, published = CHECKPOINT, folder / "digits.safetensors", folder / "Mixer-B_16.npz"
    config = MixerConfig.from_name("B/16")
    save(Checkpoint.from_arrays(draw_params(config, 0), layout="linen", config=config).astype("float32"), published)
    return {
        "--help": [*OURS, "--help"],
        "inspect, digits": [*OURS, "inspect", digits],
        "convert, digits": [*OURS, "convert", digits, target, "--force"],
        "verify, digits": [*OURS, "verify"],
        "verify, a tutorial's Mixer, 64 wide": [*OURS, "verify", f"{folder / 'foreign.py'}:model", "--image", "1x8x8"],
        "verify Mixer-B_16.npz": [*OURS, "verify", published],
        "verify timm:mixer_b16_224": [*OURS, "verify", "timm:mixer_b16_224"],
    }


# What is equivalent once a convention is changed: timm's has the erf GELU.
STATUSES = {"verify timm:mixer_b16_224": 1}


def divided(command: Sequence[str | Path], status: int) -> dict[str, float]:
    """Seconds of one run in all, of its imports, and of its compiling; looking on makes it a little slower."""
    told = {**environment(), "JAX_LOG_COMPILES": "1"}
    start = time.perf_counter()
    process = subprocess.run(
        [command[0], "-X", "importtime", *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=told
    )
    seconds = time.perf_counter() - start
    log = process.stderr.decode()
    assert process.returncode == status, log[-2000:]
    imports = sum(map(int, _IMPORT.findall(log))) / 1e6
    compiling = sum(map(float, _COMPILE.findall(log)))
    return {"seconds": seconds, "imports": imports, "compiling": compiling, "rest": seconds - imports - compiling}


def measure(rounds: int) -> dict[str, Any]:
    """Each command's quartiles of seconds, its processor seconds and memory, and how one run divides."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = commands(Path(folder))
        runs = in_turns(chosen, rounds, lambda: None, STATUSES)
        return {
            name: {
                "seconds": quartiles([run.seconds for run in each]),
                "cpu_seconds": round(statistics.median(run.cpu for run in each), 2),
                "memory_MB": round(statistics.median(run.memory for run in each) / 1e6),
                "divided": {
                    part: round(seconds, 2) for part, seconds in divided(chosen[name], STATUSES.get(name, 0)).items()
                },
            }
            for name, each in runs.items()
        }


def page(result: Mapping[str, Any]) -> str:
    """The numbers for a person, in Markdown."""
    lines = [
        "# From a cold start to the answer",
        "",
        "Written by `python -m benchmarks.verdict --write`. Whole processes; medians, with quartiles in brackets. How",
        "the time divides is of one run more, which was looked on.",
        "",
        "| command | seconds | processor seconds | peak memory, MB | imports | compiling | rest |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, each in result["commands"].items():
        shown = " | ".join(f"{each['divided'][part]:.2f}" for part in ("imports", "compiling", "rest"))
        lines.append(f"| {name} | {ranged(each['seconds'])} | {each['cpu_seconds']} | {each['memory_MB']} | {shown} |")
    return "\n".join([*lines, "", record.conditions(result["machine"], str(result["rounds"])), ""])


def main(arguments: Sequence[str] | None = None) -> None:
    record.command(
        arguments, "verdict", __doc__, ROUNDS, lambda n: {"commands": measure(n)}, page, least=2, left_out="cores_had"
    )


if __name__ == "__main__":
    main()
