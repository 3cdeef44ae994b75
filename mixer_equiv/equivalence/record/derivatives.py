"""`Derivatives`: gradients by parameter, and which of them are no linear function of what comes back from the loss.

The recorders of torch and JAX make them, each from two backward passes of one forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from mixer_equiv.equivalence.policy import gradient_residuals

# How much larger the cotangent of the second backward pass is. Times a power of two, nothing is rounded otherwise.
LARGER = 2.0**30

# A gradient that is off by more, relative in the 2-norm, is not linear; a GPU may sum in another order.
_ROUNDING = 1e-9


class Derivatives(dict[str, np.ndarray]):
    """Gradients by parameter. Those named in `nonlinear` do not grow with the cotangent, as where they are clipped."""

    def __init__(self, gradients: Mapping[str, np.ndarray], nonlinear: Iterable[str] = ()) -> None:
        super().__init__(gradients)
        self.nonlinear = tuple(dict.fromkeys(nonlinear))

    @classmethod
    def of(cls, usual: Mapping[str, np.ndarray], larger: Mapping[str, np.ndarray]) -> Derivatives:
        """The gradients for a cotangent, from those for it and for one `LARGER`.

        Where they are not proportional the larger ones are kept, so that a limit which they have reached shows.
        """
        if not all(np.isfinite(gradient).all() for gradient in usual.values()):
            return cls(usual)
        scaled = {name: gradient / LARGER for name, gradient in larger.items()}
        apart = gradient_residuals(scaled, usual)
        nonlinear = [name for name, distance in apart.items() if not distance <= _ROUNDING]
        return cls({name: scaled[name] if name in nonlinear else usual[name] for name in usual}, nonlinear)
