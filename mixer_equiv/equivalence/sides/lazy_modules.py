"""Lazy modules of torch, whose parameters have no shapes before their first call.

A model of the user's is refused (`refuse_uninitialized`), since the call would change it. One that was just made gets
its shapes here (`initialize`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from mixer_equiv.equivalence.record.randomness import fork_generators
from mixer_equiv.equivalence.sides.inference_mode import mode_arguments
from mixer_equiv.equivalence.sides.run_errors import RunError, asking_for_image, errors_named
from mixer_equiv.errors import MixerEquivError, summarize


def refuse_uninitialized(module: Any, name: str, image: tuple[int, int, int]) -> None:
    """Raise `MixerEquivError` for a torch module with parameters or buffers that have no shapes."""
    lazy = _uninitialized(module)
    if lazy:
        raise MixerEquivError(
            f"{name} has parameters without shapes, which its first call gives them: {summarize(lazy, 3)}; call it "
            f"once on an image before: model(torch.zeros(1, {', '.join(map(str, image))}))"
        )


def initialize(model: Any, image: tuple[int, int, int]) -> None:
    """Give the lazy modules of a new torch model their shapes, by one call on an image of zeros.

    `image` is (channels, height, width). Other models are left as they are, and so are random generators. Raises
    `MixerEquivError` where the model raises.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module) or not _uninitialized(model):
        return
    filled, _ = mode_arguments(model.forward)
    zeros = torch.zeros(1, *image)
    with asking_for_image(image), fork_generators(0), torch.no_grad(), _in_eval_mode(model):
        try:
            with errors_named(type(model).__name__):
                model(zeros, **filled)
        except RunError:
            with contextlib.suppress(Exception):
                model(zeros.permute(0, 2, 3, 1), **filled)
                return
            raise


def _uninitialized(module: Any) -> list[str]:
    held = (*module.named_parameters(), *module.named_buffers())
    return [key for key, tensor in held if hasattr(tensor, "materialize")]


@contextlib.contextmanager
def _in_eval_mode(model: Any) -> Iterator[None]:
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
