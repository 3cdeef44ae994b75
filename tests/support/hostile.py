"""Objects whose pickles would run code, each of which would leave a mark."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile_objects(mark: Path) -> Iterator[Any]:
    """Objects that `pickle` would make the file or folder `mark` for."""
    yield Call(os.system, f"touch {mark}")
    yield Call(eval, f"open({str(mark)!r}, 'w')")
    yield Call(exec, f"open({str(mark)!r}, 'w')")
    yield Call(open, str(mark), "w")
    yield Call(subprocess.check_output, ["touch", str(mark)])
    yield Call(os.mkdir, str(mark))
    yield Call(getattr, Call(__import__, "os"), "system")
    yield Call(map, eval, [f"open({str(mark)!r}, 'w')"])
