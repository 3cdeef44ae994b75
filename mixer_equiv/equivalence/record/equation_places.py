"""`EquationPlaces`: the places of a jaxpr's equations, from the tracebacks and name stacks that JAX keeps in them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from mixer_equiv.equivalence.place import FindPlace, Place, nowhere
from mixer_equiv.equivalence.record.places import PlaceFinder

# The name stack of a function under jax.vmap, such as "vmap(MlpMixer/blocks_0)".
_TRANSFORM = re.compile(r"\w+\(|\)")


class EquationPlaces:
    """Keeps the equation that is interpreted, and those that call it, to make places of them when they are asked for.

    `recorder` is the file that traces the model: frames above it belong to whoever asked for the run.
    """

    def __init__(self, recorder: str) -> None:
        self._finder, self._recorder = PlaceFinder({}, recorder), recorder
        self._sources: tuple[Any, ...] = ()  # what JAX keeps of the equations' sources, the innermost last

    def mark(self) -> FindPlace:
        """Remember the place of the equation that is interpreted."""
        return partial(self._place, self._sources) if self._sources else nowhere

    @contextlib.contextmanager
    def inside(self, equation: Any) -> Iterator[None]:
        """Inside, the place is that of this equation, or of the one that calls it where only a library is at work."""
        outer = self._sources
        self._sources = (*outer, equation.source_info)
        try:
            yield
        finally:
            self._sources = outer

    def _place(self, sources: Sequence[Any]) -> Place | None:
        """A place whose module is a path of names, such as "blocks_3/mlp", without that of the model itself."""
        names = [name for source in sources for name in _TRANSFORM.sub("", str(source.name_stack)).split("/") if name]
        lines = (self._users_line(source.traceback) for source in reversed(sources))
        file, line = next(filter(None, lines), ("", 0))
        module = "/".join(names[1:])
        return self._finder.place(file, line, module) if file or module else None

    def _users_line(self, traceback: Any) -> tuple[str, int] | None:
        for frame in traceback.frames if traceback is not None else ():
            if frame.file_name == self._recorder:
                break
            if self._finder.is_users(frame.file_name):
                return frame.file_name, frame.line_num
        return None
