"""Ways to name a model, and examples, below the options in the help of commands that take one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# What may be typed, and what it is.
PLACES: Mapping[str, str] = {
    "path/to/file.py:Name": "a class, function or model there",
    "package.module:Name": "the same, in a package",
    "timm:mixer_b16_224": "a model of timm",
}
CHECKPOINTS: Mapping[str, str] = {
    "Mixer-B_16.npz": "a checkpoint, in any format",
    "checkpoints/": "a folder with one",
}
OUR_MODELS: Mapping[str, str] = {
    "flax, nnx, torch": "our models of the official Mixer",
    "reference": "the same in NumPy",
    "flax:B/16": "one of them, of a published size",
}

# Keeps the lines of a paragraph as they are. None has more than 56 characters, so that they fit a terminal of 60.
_AS_IT_STANDS = "\b\n"


def epilog(title: str, ways: Mapping[str, str], note: str, examples: Iterable[str]) -> str:
    """A table of `ways` under a title, a note on them, and commands as examples."""
    rows = [f"  {typed:22}{meaning}" for typed, meaning in ways.items()]
    tables = [title, *rows], ["Examples:", *(f"  {example}" for example in examples)]
    table, commands = (_AS_IT_STANDS + "\n".join(lines) for lines in tables)
    return f"{table}\n\n{note}\n\n{commands}"


VERIFY = epilog(
    "Ways to name A and B:",
    {**CHECKPOINTS, **PLACES, **OUR_MODELS},
    "A class or function is called with --kwargs, and its model is run on images of --image.",
    [
        "mixer-equiv verify Mixer-B_16.npz",
        "mixer-equiv verify Mixer-B_16.npz ported.safetensors",
        "mixer-equiv verify mymixer.py:MyMixer --image 3x224x224",
        "mixer-equiv verify mypackage.models:mixer \\",
        "    --kwargs '{\"depth\": 12}' --image 3x224x224",
        "mixer-equiv verify timm:mixer_b16_224",
        "mixer-equiv verify torch:S/32 flax:S/32 --quiet",
    ],
)

LAYOUTS = epilog(
    "Ways to name MODEL:",
    {"timm": "a layout, of those that are listed", **PLACES},
    "A class or function is called with --kwargs, and its model is run on images of --image.",
    [
        "mixer-equiv layouts",
        "mixer-equiv layouts timm > ours.toml",
        "mixer-equiv layouts timm:mixer_b16_224 --image 3x224x224",
        "mixer-equiv layouts mymixer.py:MyMixer \\",
        "    --image 3x224x224 > mymixer.toml",
        "mixer-equiv convert weights.pt weights.npz \\",
        "    --to linen --layout mymixer.toml",
    ],
)
