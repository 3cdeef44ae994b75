"""`PlaceFinder`: the line of the user's code and the module of the model behind the operation under way.

A frame is the user's unless its file belongs to Python, to a framework, or to the recorder: timm's models are the
user's. Nothing here knows a framework. Start at `PlaceFinder.current`.
"""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType

from mixer_equiv.equivalence.place import FindPlace, Place, nowhere
from mixer_equiv.shown_paths import INSTALLED, shown_path

__all__ = ["Place", "PlaceFinder"]

# Packages that carry operations out for the code of a model.
_LIBRARIES = ("torch", "functorch", "jax", "jaxlib", "flax", "optax", "einops", "opt_einsum", "numpy", "scipy")
_TYPE_CHECKERS = ("jaxtyping", "beartype", "typeguard", "chex")
_RECORDER = str(Path(__file__).parents[1]) + os.sep


class PlaceFinder:
    """Finds places in one run of a model.

    `modules` are the paths of the model's modules, by their ids. The search up the stack ends at `recorder`, the file
    that calls the model: frames above it belong to whoever asked for the run.
    """

    def __init__(self, modules: Mapping[int, str], recorder: str) -> None:
        self._modules, self._recorder = modules, recorder
        self._libraries = _library_folders()
        self._is_users: dict[str, bool] = {}
        self._paths: dict[str, str] = {}
        self._places: dict[tuple[str, int, str], Place] = {}

    def current(self) -> Place | None:
        """The place of the operation under way: the innermost user's frame and the innermost module on the stack."""
        return self.mark()()

    def mark(self) -> FindPlace:
        """Remember the place of the operation under way, and make it when it is asked for, which few are."""
        frame: FrameType | None = sys._getframe(1)
        file, line, module = "", 0, None
        while frame is not None and (not file or module is None):
            code = frame.f_code
            path = code.co_filename
            if path.startswith(_RECORDER):
                if path == self._recorder:
                    break
            else:
                if not file and self.is_users(path):
                    file, line = path, frame.f_lineno
                if module is None and code.co_varnames[:1] == ("self",):
                    module = self._modules.get(id(frame.f_locals.get("self")))
            frame = frame.f_back
        return partial(self.place, file, line, module or "") if file or module else nowhere

    def is_users(self, file: str) -> bool:
        """Whether the code in this file, as a code object names it, is the user's."""
        if file not in self._is_users:
            self._is_users[file] = self._look_up(file)
        return self._is_users[file]

    def _look_up(self, file: str) -> bool:
        if file.startswith("<"):  # typed in a notebook or generated; the source that it has tells them apart
            return bool(linecache.getline(file, 1))
        is_installed = any(folder in Path(file).parts for folder in INSTALLED)
        is_python = file.startswith(_STANDARD_LIBRARY) and not is_installed
        return not is_python and not file.startswith(self._libraries)

    def place(self, file: str, line: int, module: str) -> Place:
        """The place with its source text; equal places are one object."""
        key = file, line, module
        if key not in self._places:
            if file not in self._paths:
                linecache.checkcache(file)  # the user may have changed it since an earlier run
                self._paths[file] = file if file.startswith("<") else shown_path(file)
            self._places[key] = Place(self._paths[file], line, linecache.getline(file, line).strip(), module)
        return self._places[key]


_STANDARD_LIBRARY = sysconfig.get_path("stdlib") + os.sep


def _library_folders() -> tuple[str, ...]:
    """The folders of the recorder, and of the libraries that are imported."""
    loaded = (sys.modules.get(name) for name in (*_LIBRARIES, *_TYPE_CHECKERS))
    files = (getattr(module, "__file__", None) for module in loaded)
    return (_RECORDER, *(os.path.dirname(file) + os.sep for file in files if file))
