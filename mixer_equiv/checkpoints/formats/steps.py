"""Folders of several steps of one training: which file or folder in them is of a step. Start at `path_of_step`."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from mixer_equiv.errors import CheckpointError, summarize

# "100", "checkpoint_100", "checkpoint-100", "step=100.ckpt": the last number before the suffix.
_STEP = re.compile(r"(?:.*\D)?(\d{1,18})(?:\.[A-Za-z]\w*)?")


def steps_in(folder: Path) -> dict[Path, int]:
    """Find what may be of a step in a folder, with the number of the step."""
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    return {entry: int(match[1]) for entry in entries if (match := _STEP.fullmatch(entry.name))}


def step_to_type(folder: Path, found: Collection[Path]) -> str:
    """How to say which of several checkpoints in a folder is meant, where each is the only one of its step; else ""."""
    numbers = steps_in(folder)
    of_steps = [numbers[path] for path in found if path in numbers and list(numbers.values()).count(numbers[path]) == 1]
    return f"step={max(of_steps)} (--step {max(of_steps)})" if of_steps and len(of_steps) == len(found) else ""


def path_of_step(folder: Path, step: int) -> Path:
    """Find what stands in `folder` for the step of this number. Raises `CheckpointError` that names the steps there."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder of steps, so step={step} (--step) says nothing of it")
    numbers = steps_in(folder)
    found = [entry for entry, number in numbers.items() if number == step]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(entry.name for entry in found)
        raise CheckpointError(f"{folder} holds several of step {step}: {names}; give the path of one of them")
    steps = summarize([str(number) for number in sorted(set(numbers.values()))], shown=12) or "none"
    raise CheckpointError(f"{folder} holds nothing of step {step}; the steps there are {steps}")
