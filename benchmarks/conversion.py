"""A published npz to safetensors, beside `cp` and the script users write: `python -m benchmarks.conversion`.

Whole processes are timed, in turns, on files in the page cache. Every converted file is compared with the script's,
number by number. Then separate processes measure the time until a torch model has the weights of a file.
Start reading at `measure`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import result_files
from benchmarks.command_line import at_least
from benchmarks.processes import (
    ProcessRun,
    process_environment,
    python_command,
    rounded_quartiles,
    run_in_turns,
    shown_quartiles,
)
from mixer_equiv.bench import line_labels, plots
from mixer_equiv.bench.environment import Machine

CONVERTED_VARIANTS = ("B/16", "L/16", "H/14")
ROUNDS = 9
# The targets: at most this time relative to `cp`, after these seconds of starting; at least this speed relative to the
# script; at most these bytes.
TIMES_CP, START_UP = 2.0, 0.4
TIMES_FASTER, MOST_MEMORY = 3.0, 200e6

# Commands that are drawn, each of another look even without colour.
LINE_STYLES: Mapping[str, Mapping[str, Any]] = {
    "script": {"color": plots.VERMILLION, "marker": "s", "linestyle": "--"},
    "mixer-equiv": {"color": plots.BLUE, "marker": "o", "linewidth": 2},
    "cp": {"color": plots.GREY, "marker": "D", "linestyle": ":"},
}

MAKE = """
import sys
import numpy as np
from mixer_equiv import MixerConfig
from mixer_equiv.layouts import LINEN

config, rng = MixerConfig.from_name(sys.argv[1]), np.random.default_rng(0)
shapes = {name: binding.shape(config.axis_sizes) for name, binding in LINEN.bindings(config.num_blocks).items()}
np.savez(sys.argv[2], **{name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()})
"""

# The script that users write. It works, for just this layout.
SCRIPT = r"""
import re, sys
import numpy as np
import torch
from safetensors.torch import save_file

arrays = np.load(sys.argv[1])
state = {}
for name in arrays.files:
    tensor = torch.from_numpy(arrays[name])
    if name.endswith("kernel"):
        tensor = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
    name = re.sub(r"MixerBlock_(\d+)/", r"blocks.\1.", name).replace("/", ".")
    name = name.replace("Dense_", "dense_").replace("LayerNorm_", "layer_norm_")
    name = name.replace("kernel", "weight").replace("scale", "weight")
    state[name] = tensor.contiguous()
save_file(state, sys.argv[2])
"""

COMPARE = """
import sys
import numpy as np
from safetensors import safe_open

with safe_open(sys.argv[1], "np") as a, safe_open(sys.argv[2], "np") as b:
    assert set(a.keys()) == set(b.keys()), set(a.keys()) ^ set(b.keys())
    for name in a.keys():
        x, y = a.get_tensor(name), b.get_tensor(name)
        assert (x.dtype, x.shape) == (y.dtype, y.shape), name
        assert x.tobytes() == y.tobytes(), name
"""

LOAD = """
import json, sys, time, warnings
import numpy as np
import torch
from mixer_equiv import convert, load
from mixer_equiv.models.torch import MlpMixer

source, how = sys.argv[1:]
config = load(source, lazy=True).config
with torch.device("meta"):
    model = MlpMixer(config)
start = time.perf_counter()
if how == "np.load":
    with np.load(source) as file:
        arrays = dict(file)
else:
    mapped = how != "read"
    state = convert(load(source, mmap=mapped), to="torch", copy=not mapped)
    model.load_state_dict(state, strict=True, assign=True)
seconds = time.perf_counter() - start
shared = 0.0
if how == "mapped":
    tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    views = sum(a.nbytes for n, a in state.arrays.items() if np.shares_memory(a, tensors[n]))
    shared = views / sum(a.nbytes for a in state.arrays.values())
print(json.dumps({"seconds": seconds, "shared": shared}))
"""


def make_commands(source: Path, folder: Path) -> dict[str, list[str | Path]]:
    """Make the commands that are timed, by name; each writes `folder`/NAME."""
    ours: list[str | Path] = [sys.executable, "-m", "mixer_equiv", "convert", source]
    return {
        "cp": ["cp", source, folder / "cp"],
        "mixer-equiv": [*ours, folder / "mixer-equiv.safetensors"],
        "script": python_command(SCRIPT, source, folder / "script"),
        "--no-verify": [*ours, folder / "no-verify.safetensors", "--no-verify"],
        "--fsync": [*ours, folder / "fsync.safetensors", "--fsync"],
    }


def measure(variant: str, folder: Path, rounds: int, names: Sequence[str]) -> dict[str, Any]:
    """Measure one size, after a check that the converted file is right."""
    source, targets = folder / "source.npz", folder / "targets"
    targets.mkdir(exist_ok=True)
    ProcessRun(python_command(MAKE, variant, source))
    commands = {name: command for name, command in make_commands(source, targets).items() if name in names}

    def clean() -> None:
        for path in targets.iterdir():
            path.unlink()

    for name in ("mixer-equiv", "script"):
        ProcessRun(commands[name])
    ProcessRun(python_command(COMPARE, targets / "mixer-equiv.safetensors", targets / "script"))
    clean()
    result = summarize_runs(run_in_turns(commands, rounds, clean), source.stat().st_size)
    clean()
    return {**result, "rounds": rounds, "loading": measure_loading(source, targets, rounds)}


def summarize_runs(runs: Mapping[str, Sequence[ProcessRun]], size: int) -> dict[str, Any]:
    """Compute quartiles of seconds, medians of processor seconds and memory, and the ratios, paired by round."""
    paired = {
        "over_cp": [
            (ours.seconds - START_UP) / cp.seconds for ours, cp in zip(runs["mixer-equiv"], runs["cp"], strict=True)
        ],
        "script_over_ours": [s.seconds / o.seconds for s, o in zip(runs["script"], runs["mixer-equiv"], strict=True)],
    }
    return {
        "bytes": size,
        "seconds": {name: rounded_quartiles([run.seconds for run in each]) for name, each in runs.items()},
        "cpu_seconds": {name: round(statistics.median(run.cpu for run in each), 3) for name, each in runs.items()},
        "memory_MB": {name: round(statistics.median(run.memory for run in each) / 1e6) for name, each in runs.items()},
        **{name: rounded_quartiles(values) for name, values in paired.items()},
    }


def measure_loading(source: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Measure the seconds until `np.load` has read all arrays, and until a torch model has the weights in our ways."""
    ProcessRun([sys.executable, "-m", "mixer_equiv", "convert", source, folder / "mapped.safetensors"])
    ways = {
        "np.load, all arrays": (source, "np.load"),
        "npz, read and converted": (source, "read"),
        "npz, mapped": (source, "mapped"),
        "safetensors, mapped": (folder / "mapped.safetensors", "mapped"),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, arguments in ways.items():
            output = subprocess.run(
                python_command(LOAD, *arguments), stdout=subprocess.PIPE, check=True, env=process_environment()
            ).stdout
            runs[name].append(json.loads(output))
    return {
        name: {"seconds": rounded_quartiles([each["seconds"] for each in own]), "shared": round(own[0]["shared"], 3)}
        for name, own in runs.items()
    }


def check_targets(result: Mapping[str, Any]) -> dict[str, bool]:
    """Say for each target whether the conversion of L/16 meets it; give no target where L/16 was not converted."""
    if "L/16" not in result["sizes"]:
        return {}
    large = result["sizes"]["L/16"]
    return {
        f"at most {TIMES_CP} times cp, and {START_UP} s": large["over_cp"][1] <= TIMES_CP,
        f"at least {TIMES_FASTER} times as fast as the script": large["script_over_ours"][1] >= TIMES_FASTER,
        f"at most {MOST_MEMORY / 1e6:.0f} MB": large["memory_MB"]["mixer-equiv"] <= MOST_MEMORY / 1e6,
    }


def page(result: Mapping[str, Any]) -> str:
    """Write the numbers in Markdown."""
    lines = [
        "# Conversion of a published npz to safetensors",
        "",
        "Written by `python -m benchmarks.conversion --write`.",
    ]
    lines += ["Whole processes, page cache warm; medians, with quartiles in brackets.", ""]
    lines += [
        "| | MB | command | seconds | processor seconds | peak memory, MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for variant, size in result["sizes"].items():
        for name, (low, middle, high) in size["seconds"].items():
            seconds, cpu = f"{middle:.2f} ({low:.2f} to {high:.2f})", size["cpu_seconds"][name]
            cells = f"{size['bytes'] / 1e6:.0f} | {name} | {seconds} | {cpu:.2f} | {size['memory_MB'][name]}"
            lines.append(f"| {variant} | {cells} |")
    lines += ["", f"| | (mixer-equiv - {START_UP} s) / cp | script / mixer-equiv |", "| --- | --- | --- |"]
    for variant, size in result["sizes"].items():
        lines.append(
            f"| {variant} | {shown_quartiles(size['over_cp'])} | {shown_quartiles(size['script_over_ours'])} |"
        )
    lines += ["", "The time until a torch model has the weights, without imports and without making the model:", ""]
    lines += ["| | way | seconds | bytes shared with the file |", "| --- | --- | --- | --- |"]
    for variant, size in result["sizes"].items():
        for name, each in size["loading"].items():
            lines.append(f"| {variant} | {name} | {each['seconds'][1]:.3f} | {each['shared']:.0%} |")
    lines += ["", *(f"- {name}: {'met' if met else 'not met'}" for name, met in check_targets(result).items()), ""]
    rounds = " and ".join(str(size["rounds"]) for size in result["sizes"].values())
    return "\n".join([*lines, result_files.machine_line(result["machine"], rounds), ""])


def draw(result: Mapping[str, Any]) -> Figure:
    """Draw seconds and peak memory against the size of the file, a line for each command that ran with every size."""
    sizes = sorted(result["sizes"].values(), key=lambda size: size["bytes"])
    names = [name for name in LINE_STYLES if all(name in size["seconds"] for size in sizes)]
    width, height, left, bottom = plots.WIDTH / 2 - 0.45 - line_labels.WIDTH, 2.3, 0.45, 0.7
    with plots.picture_style():
        figure = Figure(figsize=(plots.WIDTH, bottom + height + 0.35))
        across, down = figure.get_size_inches()
        seconds = {name: [size["seconds"][name] for size in sizes] for name in names}
        megabytes = {name: [[size["memory_MB"][name]] * 3 for size in sizes] for name in names}
        for i, (title, unit, values) in enumerate((("Time", "s", seconds), ("Peak memory", "MB", megabytes))):
            x = i * across / 2 + left
            axis = figure.add_axes((x / across, bottom / down, width / across, height / down))
            axis.set_title(f"{title}, {unit}", loc="left", fontsize=9, fontweight="bold")
            _draw_panel(axis, [size["bytes"] / 1e6 for size in sizes], values, unit, (width, height))
        caption = "npz to safetensors, whole processes. Medians; the bands of seconds are quartiles."
        figure.text(0.08 / across, 0.08 / down, caption, fontsize=8)
    return figure


def _draw_panel(
    axis: Any, sizes: Sequence[float], values: Mapping[str, Sequence[Any]], unit: str, inches: tuple[float, float]
) -> None:
    """Draw quartiles of a value against the megabytes of the file, with name and last value at the end of each line."""
    labels = []
    for name, quartiles in values.items():
        low, middle, high = zip(*quartiles, strict=True)
        axis.plot(sizes, middle, markersize=4.5, clip_on=False, **LINE_STYLES[name])
        axis.fill_between(sizes, low, high, color=LINE_STYLES[name]["color"], alpha=0.2, linewidth=0)
        text = f"{name}\n{middle[-1]:,.{1 if unit == 's' else 0}f} {unit}"
        labels.append(line_labels.Label(text, LINE_STYLES[name]["color"], sizes[-1], middle[-1]))
    axis.set_xlabel("size of the npz, MB")
    axis.set_xlim(0, 1.04 * sizes[-1])
    axis.set_ylim(0, 1.06 * max(high for quartiles in values.values() for _, _, high in quartiles))
    axis.grid(alpha=0.25)
    line_labels.label_lines(axis, labels, inches)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--variants", nargs="+", choices=CONVERTED_VARIANTS, default=CONVERTED_VARIANTS, help="sizes; all"
    )
    parser.add_argument("--rounds", type=at_least(2), default=ROUNDS, help=f"of L/16, half as many else; {ROUNDS}")
    parser.add_argument("--folder", type=Path, help="where to put the files; a temporary folder if not given")
    parser.add_argument(
        "--write", action="store_true", help="also write benchmarks/results/conversion.json, .md and .png"
    )
    options = parser.parse_args(arguments)
    if options.folder is not None and not options.folder.is_dir():
        parser.error(f"--folder is {options.folder}, which is not a directory")
    extra = {"L/16": ("--no-verify", "--fsync")}
    with Machine() as machine, tempfile.TemporaryDirectory(dir=options.folder) as folder:
        sizes = {}
        for variant in options.variants:
            names = ("cp", "mixer-equiv", "script", *extra.get(variant, ()))
            rounds = options.rounds if variant == "L/16" else options.rounds // 2 + 1
            sizes[variant] = measure(variant, Path(folder), rounds, names)
    described = {name: value for name, value in machine.describe().items() if name != "cores_had"}
    result = result_files.rounded({"sizes": sizes, "machine": described})
    print(page(result))
    if options.write:
        result_files.write("conversion", result, page(result), draw(result))


if __name__ == "__main__":
    main()
