"""`scripts_on_stand_ins`: let what `torch.jit.script` compiled compute with a tape's stand-ins.

A script calls no `__torch_function__`, so that autograd would see the module's own parameters in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mixer_equiv.equivalence.record.torch.arguments import map_leaves
from mixer_equiv.equivalence.record.torch.tape import Tape

_KINDS: tuple[Any, ...] = (torch._C.ScriptFunction, torch._C.ScriptMethod)


@contextlib.contextmanager
def scripts_on_stand_ins(module: Any, tape: Tape) -> Iterator[None]:
    """Inside, scripted functions are called on stand-ins, and the module's scripted parts hold them."""
    with contextlib.ExitStack() as undo:
        for kind in _KINDS:
            undo.callback(setattr, kind, "__call__", kind.__call__)
            kind.__call__ = _on_stand_ins(kind.__call__, tape)
        for part in module.modules() if isinstance(module, nn.Module) else ():
            if isinstance(part, torch.jit.ScriptModule):
                held = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
                for name, tensor in held:
                    undo.callback(part._c.setattr, name, tensor)
                    part._c.setattr(name, tape.stand_in(tensor))
        yield


def _on_stand_ins(call: Any, tape: Tape) -> Any:
    def called(script: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = map_leaves((Tensor,), tape.stand_in, (args, kwargs))
        return call(script, *args, **kwargs)

    return called
