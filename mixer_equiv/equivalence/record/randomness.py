"""The random generators of Python, NumPy and torch while a model is run: seeded, watched, and put back."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import numpy as np


class GeneratorWatch:
    """Tells whether Python's or NumPy's global generator was used since the watch was made.

    torch's operations tell themselves that they are random.
    """

    def __init__(self) -> None:
        self._states = _states()

    @property
    def were_used(self) -> bool:
        return _states() != self._states


@contextlib.contextmanager
def fork_generators(seed: int) -> Iterator[GeneratorWatch]:
    """Inside, all generators begin with `seed`; after it they go on as if they had not been used."""
    states = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())) if torch else contextlib.nullcontext():
        seed_generators(seed)
        try:
            yield GeneratorWatch()
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def seed_generators(seed: int) -> None:
    """Let the generators of Python, NumPy and torch begin with `seed`."""
    torch = sys.modules.get("torch")
    if torch:
        torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _states() -> tuple[object, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return random.getstate(), name, np.asarray(keys).tobytes(), tuple(rest)
