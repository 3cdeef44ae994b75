"""Faults that one run cannot show, planted in code: memory, neighbours, branches and limits, and their notices.

Most checks of one output on one batch miss them all. They complete `planted_code.PLANTED`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mixer_equiv.equivalence.faults.planted_code import Doing, PlantedCode, PlantedMixer, only_at, standard


def _of_images(change: Callable[[PlantedMixer, Tensor], Tensor]) -> dict[str, Doing]:
    """Change the images before their patches are taken."""
    return {
        "cut": lambda model, step, inputs, parameters: standard("cut")(
            model, step, [change(model, inputs[0])], parameters
        )
    }


def _of_logits(change: Callable[[PlantedMixer, Tensor], Tensor]) -> dict[str, Doing]:
    """Change the logits."""

    def doing(*arguments: object) -> Tensor:
        model = arguments[0]
        assert isinstance(model, PlantedMixer)
        return change(model, standard("linear")(*arguments))  # type: ignore[arg-type]

    return only_at("head", "linear", doing)


def _counted(model: PlantedMixer) -> int:
    model.calls += 1
    return model.calls


def _later_rows_moved(model: PlantedMixer, logits: Tensor) -> Tensor:
    return torch.cat([logits[:1], logits[1:] + 0.5])


def _wrong_from_the_third_call(model: PlantedMixer, logits: Tensor) -> Tensor:
    return logits * (2 if _counted(model) > 2 else 1)


def _counting(model: PlantedMixer, logits: Tensor) -> Tensor:
    _counted(model)
    return logits


def _bytes_to_unit(model: PlantedMixer, images: Tensor) -> Tensor:
    return images / 255 if images.max() > 10 else images


def _checked(model: PlantedMixer, images: Tensor) -> Tensor:
    if images.isnan().any():
        raise ValueError("the images hold NaN")
    return images


def _off_in_float32(model: PlantedMixer, logits: Tensor) -> Tensor:
    return logits * (1.001 if logits.dtype == torch.float32 else 1.0)


def _gated(model: PlantedMixer, logits: Tensor) -> Tensor:
    return logits * model.get_buffer("gate")


PLANTED_BEHAVIOUR: dict[str, PlantedCode] = {
    "later images of a batch moved": PlantedCode("neighbours", _of_logits(_later_rows_moved)),
    "wrong from the third call": PlantedCode("memory", _of_logits(_wrong_from_the_third_call)),
    "bytes taken to [0, 1]": PlantedCode("branch", _of_images(_bytes_to_unit)),
    "logits clamped at 50": PlantedCode("limit", _of_logits(lambda model, logits: logits.clamp(-50, 50))),
    "off in float32": PlantedCode("float32", _of_logits(_off_in_float32)),
    "a check of the images": PlantedCode("decision", _of_images(_checked)),
    "calls counted": PlantedCode("state_written", _of_logits(_counting)),
    "a gate of ones": PlantedCode("constant_buffer", _of_logits(_gated)),
}
