"""`GraphTape`: a tape that keeps every call as well, so that the pass can be run again.

A call that writes into a tensor gives its contents as a result of its own; what shares memory with them is then read
from the whole of that memory, into which they are put. What is made of neither parameters nor inputs is a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixer_equiv.equivalence.record.graph import Graph, GraphBuilder, Ref, Setting
from mixer_equiv.equivalence.record.torch.arguments import leaves_of, map_leaves
from mixer_equiv.equivalence.record.torch.settings import SETTINGS, setting_of
from mixer_equiv.equivalence.record.torch.tape import Tape, is_same_memory
from mixer_equiv.errors import NotFollowedError


class GraphTape(Tape):
    """The record of one pass, with its calls."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.builder = GraphBuilder()

    def enter_input(self, name: str, tensor: Tensor) -> None:
        """Record an input under its name."""
        self.builder.input_names[self.enter(tensor)] = name

    def graph(self, outputs: Mapping[str, int]) -> Graph:
        """The graph of the calls, with outputs by the numbers of their values."""
        return self.builder.graph({path: self._ref(number) for path, number in outputs.items()})

    def begin_call(self, func: Any, args: Any, kwargs: Any, written: list[Tensor]) -> Callable[[Any], None]:
        """Note a call that is about to be made and will write into those tensors; its result is to be told."""
        sources = [self.values[self.number_of(leaf)] for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(source.origin.is_data or source.origin.parameters for source in sources):
            return super().begin_call(func, args, kwargs, written)
        arguments, keywords = map_leaves((Tensor, *SETTINGS), self._plain, (args, kwargs))
        before = {id(other): self._ref(self.number_of(other)) for tensor in written for other in self.sharing(tensor)}

        def end(result: Any) -> None:
            results = written or (list(result) if isinstance(result, tuple | list) else [result])
            is_several = bool(written) or isinstance(result, tuple | list)
            shapes = tuple(tuple(made.shape) if isinstance(made, Tensor) else () for made in results)
            number = self.builder.call(str(func), shapes, tuple(arguments), keywords, self.find_place)
            for part, made in enumerate(results):
                if isinstance(made, Tensor):
                    ref = Ref(number, part if is_several else None)
                    if written:
                        self._spread(made, ref, before)
                    else:
                        self.builder.results.setdefault(self.number_of(made), ref)

        return end

    def _plain(self, leaf: Any) -> Ref | Setting:
        return self._ref(self.number_of(leaf)) if isinstance(leaf, Tensor) else setting_of(leaf)

    def _ref(self, number: int) -> Ref:
        value = self.values[number]
        return self.builder.ref(number, value.name, value.tensor, _to_numpy)

    def _spread(self, written: Tensor, ref: Ref, before: Mapping[int, Ref]) -> None:
        """Let all tensors that share memory with one that was written into read what is there now.

        `before` are their results from before, by the ids of the tensors.
        """
        sharing = self.sharing(written)
        others = [tensor for tensor in sharing if not is_same_memory(tensor, written)]
        base = next((tensor for tensor in others if _is_whole(tensor)), None)
        for tensor in sharing:
            if is_same_memory(tensor, written):
                self.builder.results[self.number_of(tensor)] = ref
        if not others:
            return
        if base is None and not _is_whole(written):
            raise NotFollowedError(
                "a write through a view of memory, of which no tensor holds the whole, cannot be run again; verify a "
                "writing without it"
            )
        whole = ref
        if base is not None:
            whole = self._read("aten.as_strided_scatter.default", base, before[id(base)], (ref, *_geometry(written)))
        for tensor in others:
            is_base = base is not None and is_same_memory(tensor, base)
            read = whole if is_base else self._read("aten.as_strided.default", tensor, whole, _geometry(tensor))
            self.builder.results[self.number_of(tensor)] = read

    def _read(self, operation: str, result: Tensor, whole: Ref, arguments: tuple[Any, ...]) -> Ref:
        """Read or write a part of `whole` by its place in memory, which a copy has in order."""
        in_order = {"memory_format": setting_of(torch.contiguous_format)}
        flat = self.builder.call("aten.clone.default", (self.builder.shape(whole),), (whole,), in_order)
        shapes = (tuple(result.shape),)
        return Ref(self.builder.call(operation, shapes, (Ref(flat), *arguments)))


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().clone().numpy()


def _geometry(tensor: Tensor) -> tuple[list[int], list[int], int]:
    """Size, strides and offset of a tensor in its memory."""
    return list(tensor.size()), list(tensor.stride()), int(tensor.storage_offset())


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is the whole of its memory, in order."""
    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.is_contiguous() and tensor.storage_offset() == 0 and math.prod(tensor.shape) == elements
