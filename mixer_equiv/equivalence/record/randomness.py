"""Random states while a model is run: seeded alike, watched, and put back."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import numpy as np


class GeneratorWatch:
    """The generators of Python, NumPy and torch that a model may draw from without saying so."""

    def __init__(self) -> None:
        self._begun = _states()

    @property
    def were_used(self) -> bool:
        """Whether Python's or NumPy's gave a number; torch's operations tell it themselves."""
        return _states() != self._begun


@contextlib.contextmanager
def fork_generators(seed: int) -> Iterator[GeneratorWatch]:
    """Inside, all generators begin with `seed`; after it they go on as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())) if torch else contextlib.nullcontext():
        if torch:
            torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield GeneratorWatch()
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _states() -> tuple[object, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return random.getstate(), name, np.asarray(keys).tobytes(), tuple(rest)
