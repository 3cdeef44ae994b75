"""`Target`: pieces of parameters that are looked for together, by the numbers that they alone decide.

Start at `Target`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mixer_equiv.equivalence.correspondence.forward import Forward
from mixer_equiv.equivalence.correspondence.pieces import Piece

# How far a second step may be from twice the first one, for a function that is affine.
_AFFINE = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """What nodes compute of pieces, which are given, and of what is known.

    Attributes:
        forward: The pass.
        group: The nodes, of which the last gives the result.
        pieces: The pieces that are looked for.
        places: The flat places in the result that they decide, None for all.
    """

    forward: Forward
    group: tuple[int, ...]
    pieces: tuple[Piece, ...]
    places: np.ndarray | None = None

    @property
    def last(self) -> int:
        return self.group[-1]

    @cached_property
    def zeros(self) -> list[np.ndarray]:
        """Zeros for each piece."""
        return [np.zeros(piece.shape) for piece in self.pieces]

    def _whole(self, arrays: Sequence[np.ndarray]) -> dict[str, Tensor]:
        made = {piece.name: np.zeros(piece.whole) for piece in self.pieces}
        for piece, array in zip(self.pieces, arrays, strict=True):
            piece.put(array, made[piece.name])
        return {name: torch.from_numpy(array) for name, array in made.items()}

    def _result(self, given: dict[str, Tensor]) -> Tensor:
        flat = self.forward.run_group(self.group, given).reshape(-1)
        return flat if self.places is None else flat[torch.from_numpy(self.places)]

    def run(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The result, flat, on these arrays for the pieces."""
        with torch.no_grad():
            made: np.ndarray = self._result(self._whole(arrays)).numpy()
        return made

    def weights(self, point: Sequence[np.ndarray], open_: Sequence[int]) -> list[np.ndarray]:
        """By which factor each number of each open piece enters the sum of the result, at this point."""
        given = self._whole(point)
        names = list(dict.fromkeys(self.pieces[i].name for i in open_))
        with torch.enable_grad():
            leaves = [given[name].requires_grad_() for name in names]
            gradients = torch.autograd.grad(self._result(given).sum(), leaves)
        by_name = dict(zip(names, gradients, strict=True))
        return [np.ascontiguousarray(self.pieces[i].take(by_name[self.pieces[i].name].numpy())) for i in open_]

    def is_affine(self, base: np.ndarray, point: Sequence[np.ndarray], open_: Sequence[int]) -> bool:
        """Whether the result is affine in these pieces, while the others stay where they are."""
        rng = np.random.default_rng(1)
        steps = [rng.uniform(0.1, 1, array.shape) * (i in open_) for i, array in enumerate(point)]
        once = self.run([array + step for array, step in zip(point, steps, strict=True)]) - base
        twice = self.run([array + 2 * step for array, step in zip(point, steps, strict=True)]) - base
        return bool(np.abs(twice - 2 * once).max(initial=0) <= _AFFINE * np.abs(once).max(initial=0))
