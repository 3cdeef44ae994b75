"""The time of a cold `verify` beyond the import of its framework: `python -m benchmarks.verdict [--beside CHECKOUT]`.

A process that verifies is timed in turns with one that imports the model's framework and ends; the cost is the
difference of the two. `--beside` times another checkout in the same run. Start reading at `measure`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import command_line, result_files
from benchmarks.processes import ProcessRun, rounded_quartiles, run_in_turns, shown_quartiles
from mixer_equiv.bench.environment import Machine
from mixer_equiv.bench.timing import paired_ratio
from mixer_equiv.cli.exit_status import EXIT_STATUS

ROUNDS = 7
THIS = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model that is verified without a second side.

    `framework` is the statement that imports what the model needs, `verdict` the right answer, and `source` the place
    of the model.
    """

    framework: str
    verdict: str
    source: str
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    image: tuple[int, int, int] | None = None

    def as_command(self) -> list[str]:
        """The arguments of Python for `mixer-equiv verify`."""
        kwargs = ["--kwargs", json.dumps(self.kwargs)] if self.kwargs else []
        image = ["--image", "x".join(map(str, self.image))] if self.image else []
        return ["-m", "mixer_equiv", "verify", self.source, *kwargs, *image]

    def as_script(self) -> list[str]:
        """The arguments of Python for a script that imports the framework and calls `verify`."""
        return [
            "-c",
            f"{self.framework}\nfrom mixer_equiv import verify\n"
            f"report = verify({self.source!r}, kwargs={dict(self.kwargs)!r}, image={self.image!r})\n"
            f"assert report.verdict == {self.verdict!r}, report",
        ]


CASES = {
    "PyTorch, examples/their_mixer.py": Case(
        "import torch",
        "equivalent_under",
        f"{THIS}/examples/their_mixer.py:MLPMixer",
        {"image_size": 32, "patch_size": 8, "hidden": 24, "depth": 4},
        (3, 32, 32),
    ),
    "Flax, as google-research has it": Case(
        "import jax, flax.linen",
        "equivalent",
        "mixer_equiv.bench.peers_flax:OfficialMixer",
        {"patch": [8, 8], "classes": 10, "depth": 4, "width": 24, "tokens_width": 48, "channels_width": 96},
        (3, 32, 32),
    ),
}
LARGE_CASES = {
    "the digits checkpoint": Case(
        "import torch, jax, flax.linen", "equivalent", f"{THIS}/mixer_equiv/data/digits_mixer.npz"
    ),
    "timm:mixer_b16_224": Case("import timm", "equivalent_under", "timm:mixer_b16_224"),
}


def choose_cases(large: bool) -> dict[str, Case]:
    """Choose the cases; of the large ones, that of timm is left out where timm is not installed, and said to be."""
    cases = CASES | (LARGE_CASES if large else {})
    if large and importlib.util.find_spec("timm") is None:
        print("timm is not installed: timm:mixer_b16_224 is left out", file=sys.stderr)
        del cases["timm:mixer_b16_224"]
    return cases


def python(checkout: Path, arguments: Sequence[str]) -> list[str | Path]:
    """Make the command that runs Python with the package of a checkout, whatever the working directory has."""
    return ["env", f"PYTHONPATH={checkout}", sys.executable, "-P", *arguments]


def measure(cases: Mapping[str, Case], rounds: int, checkouts: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Measure each case in both ways of calling, in the checkouts "this" and, where it is given, "beside"."""
    return [row for name, case in cases.items() for row in _rows(name, case, rounds, checkouts)]


def _rows(name: str, case: Case, rounds: int, checkouts: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    calls = {"command": case.as_command(), "Python": case.as_script()}
    commands = {"import": python(checkouts["this"], ["-c", case.framework])}
    commands |= {f"{which} {call}": python(checkouts[which], calls[call]) for call in calls for which in checkouts}
    statuses = {key: EXIT_STATUS[case.verdict] for key in commands if key.endswith("command")}
    runs = run_in_turns(commands, rounds, lambda: None, statuses)
    imports = runs["import"]
    for call in calls:
        row: dict[str, Any] = {
            "model": name,
            "call": call,
            "import": rounded_quartiles([run.seconds for run in imports]),
        }
        row |= {which: _costs(runs[f"{which} {call}"], imports) for which in checkouts}
        if "beside" in checkouts:
            ours, theirs = (np.array(_beyond(runs[f"{which} {call}"], imports)) for which in ("this", "beside"))
            row["times_as_fast"] = dataclasses.asdict(paired_ratio(ours, theirs))
        yield row


def _beyond(runs: Sequence[ProcessRun], imports: Sequence[ProcessRun]) -> list[float]:
    """The seconds of each round beyond the import."""
    return [run.seconds - base.seconds for run, base in zip(runs, imports, strict=True)]


def _costs(runs: Sequence[ProcessRun], imports: Sequence[ProcessRun]) -> dict[str, Any]:
    processor = [run.cpu - base.cpu for run, base in zip(runs, imports, strict=True)]
    return {"seconds": rounded_quartiles(_beyond(runs, imports)), "cpu_seconds": round(statistics.median(processor), 2)}


def commit_of(checkout: Path) -> str:
    """The commit of a checkout, for the page."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or checkout.name


def page(result: Mapping[str, Any]) -> str:
    """Write the numbers in Markdown."""
    beside = result.get("beside")
    lines = [
        "# A cold verify, beyond the import of its framework",
        "",
        "Written by `python -m benchmarks.verdict --write`. Seconds of whole processes less those of a process that",
        "imports the framework, in the same round; medians, with quartiles in brackets.",
        *([f"Beside it commit {beside}, with the median ratio and its 95% interval."] if beside else []),
        "",
        "| model | called from | import | beyond it | processor seconds |"
        + (f" {beside} | times as fast |" if beside else ""),
        "| --- | --- | --- | --- | --- |" + (" --- | --- |" if beside else ""),
    ]
    for row in result["rows"]:
        cells = [row["model"], row["call"], f"{row['import'][1]:.2f}"]
        cells += [shown_quartiles(row["this"]["seconds"]), f"{row['this']['cpu_seconds']:.2f}"]
        if beside:
            ratio = row["times_as_fast"]
            cells += [shown_quartiles(row["beside"]["seconds"])]
            cells += [f"**{ratio['median']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f})"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", result_files.machine_line(result["machine"], str(result["rounds"])), ""])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=command_line.at_least(2), default=ROUNDS, help=f"at least 2; {ROUNDS}")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout, timed in the same rounds")
    parser.add_argument("--large", action="store_true", help="also the digits checkpoint and timm:mixer_b16_224")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/verdict.json and .md")
    options = parser.parse_args(arguments)
    cases = choose_cases(options.large)
    checkouts = {"this": THIS} | ({"beside": options.beside.resolve()} if options.beside else {})
    with Machine() as machine:
        rows = measure(cases, options.rounds, checkouts)
    described = {key: value for key, value in machine.describe().items() if key != "cores_had"}
    result = {"rows": rows, "rounds": options.rounds, "machine": described}
    result = result_files.rounded(result | ({"beside": commit_of(checkouts["beside"])} if options.beside else {}))
    print(page(result))
    if options.write:
        result_files.write("verdict", result, page(result))


if __name__ == "__main__":
    main()
