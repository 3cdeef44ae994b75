"""`EquationPlaces`: the places of a jaxpr's equations, from the tracebacks and name stacks that JAX keeps in them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from mixer_equiv.equivalence.place import Place
from mixer_equiv.equivalence.record.places import PlaceFinder

# The name stack of a function under jax.vmap, such as "vmap(MlpMixer/blocks_0)".
_TRANSFORM = re.compile(r"\w+\(|\)")


class EquationPlaces:
    """Keeps the place of the equation that is interpreted, inside those that call it.

    `recorder` is the file that traces the model: frames above it belong to whoever asked for the run.
    """

    def __init__(self, recorder: str) -> None:
        self._finder, self._recorder = PlaceFinder({}, recorder), recorder
        self._line = "", 0
        self._modules: tuple[str, ...] = ()

    def current(self) -> Place | None:
        """The place of the equation; its module is a path of names, such as "blocks_3/mlp", without the model's own."""
        module = "/".join(self._modules[1:])
        return self._finder.place(*self._line, module) if self._line[0] or module else None

    @contextlib.contextmanager
    def inside(self, equation: Any) -> Iterator[None]:
        """Inside, the place is that of this equation, or of the one that calls it where only a library is at work."""
        line, modules = self._line, self._modules
        named = _TRANSFORM.sub("", str(equation.source_info.name_stack))
        self._line = self._users_line(equation.source_info.traceback) or line
        self._modules = (*modules, *filter(None, named.split("/")))
        try:
            yield
        finally:
            self._line, self._modules = line, modules

    def _users_line(self, traceback: Any) -> tuple[str, int] | None:
        for frame in traceback.frames if traceback is not None else ():
            if frame.file_name == self._recorder:
                break
            if self._finder.is_users(frame.file_name):
                return frame.file_name, frame.line_num
        return None
