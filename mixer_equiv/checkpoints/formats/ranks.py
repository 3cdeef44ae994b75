"""Files that hold what one of several processes had: known by their names, refused where others stand beside them.

Start at `refuse_ranks`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from mixer_equiv.errors import CheckpointError

# "shard-00002-model-00001-of-00001.safetensors": the part of each array that one rank had. No file tells of how many.
_OF_WRITER = re.compile(r"shard-\d+-.*-\d+-of-\d+\.safetensors")

# "zero_pp_rank_0_mp_rank_00_model_states.pt": what DeepSpeed keeps of a model whose weights ZeRO-3 spreads.
_OF_ZERO_3 = re.compile(r"zero_pp_rank_\d+_.*model_states\.pt")

_OPTIMIZER_STATES = "*_optim_states.pt"


class _Names(NamedTuple):
    """Names of files of one rank each, from 0. `certain` ones are given to such files alone."""

    pattern: re.Pattern[str]
    certain: bool


NAMES = (
    # "mp_rank_00_model_states.pt" of DeepSpeed, and the folder "mp_rank_00" of Megatron.
    _Names(re.compile(r"(?P<before>(?:mp|tp)_rank_)(?P<number>\d{1,6})(?P<after>.*)", re.IGNORECASE), True),
    # "consolidated.00.pth" of fairscale
    _Names(re.compile(r"(?P<before>consolidated\.)(?P<number>\d{1,6})(?P<after>\.\w+)", re.IGNORECASE), True),
    # "model_rank_0.pt", "rank1.pt", of scripts; but "lora_rank_8.pt" is of no process.
    _Names(
        re.compile(r"(?P<before>(?:.*[_.\-])?rank[_.\-]?)(?P<number>\d{1,6})(?P<after>(?:\D.*)?\.\w+)", re.IGNORECASE),
        False,
    ),
)


class _Place(NamedTuple):
    """The rank that a name tells, and those of all that are called so, itself included."""

    number: int
    numbers: frozenset[int]
    certain: bool

    @property
    def is_part(self) -> bool:
        """Whether there are, or must be, files of other ranks."""
        return max(self.numbers) > 0 if self.certain else len(self.numbers) > 1 and 0 in self.numbers


def _place(path: Path) -> _Place | None:
    for names in NAMES:
        if match := names.pattern.fullmatch(path.name):
            others = (names.pattern.fullmatch(other.name) for other in path.parent.iterdir())
            same = [other for other in others if other and _is_same_set(other, match)]
            return _Place(int(match["number"]), frozenset(int(other["number"]) for other in same), names.certain)
    return None


def _is_same_set(one: re.Match[str], other: re.Match[str]) -> bool:
    return (one["before"], one["after"]) == (other["before"], other["after"])


def refuse_ranks(path: Path) -> None:
    """Raise `CheckpointError` for a file that holds the parts of arrays that one rank had, with what to do."""
    if _OF_WRITER.fullmatch(path.name):
        raise CheckpointError(
            f"{path} has one rank's part of arrays, as torch's HuggingFaceStorageWriter(save_distributed=True) "
            "writes them; put the parts of all ranks together: from torch.distributed.checkpoint import "
            "HuggingFaceStorageReader, state_dict_loader; torch.save(state_dict_loader._load_state_dict_from_keys("
            f"storage_reader=HuggingFaceStorageReader({str(path.parent)!r})), 'whole.pt')"
        )
    if _OF_ZERO_3.fullmatch(path.name):
        raise CheckpointError(
            f"{path} has no whole weights: DeepSpeed's ZeRO-3 spreads them over all ranks; put them together, in the "
            "folder above with the script that DeepSpeed wrote there: python zero_to_fp32.py . model.pt"
        )
    for part in (path.absolute(), path.absolute().parent):
        place = _place(part)
        if place is not None and place.is_part and (part.name == path.name or place.certain):
            raise CheckpointError(
                f"{path} is of rank {place.number} of {max(place.numbers) + 1}: one part of arrays that are split "
                "along an axis, as tensor parallelism does; merge the parts of all ranks with the tool that wrote "
                "them. If each rank wrote the whole model, give one file another name, in a folder of its own"
            )


def notes_on(path: Path) -> list[str]:
    """Notes on a file that is called as that of one rank and stands alone."""
    place = _place(path.absolute()) if path.is_file() else None
    if place is None or (not place.certain and place.number > 0):
        return []
    notes = [f"{path.name} is called as the part of rank {place.number}, and no other rank's stands beside it"]
    if any(path.parent.glob(_OPTIMIZER_STATES)):
        notes.append(f"the optimizer's float32 copies of the weights, in {_OPTIMIZER_STATES}, were not read")
    return notes
