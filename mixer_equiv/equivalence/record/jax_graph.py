"""`record_graph`: the calls of a JAX function, as a graph whose operations are the primitives of its jaxpr.

Loops are laid out turn by turn, and of branches the one that is taken. `record.torch` has the same function for torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, IntEnum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer_equiv.equivalence.record.graph import INPUT, PARAMETER, Graph, GraphBuilder, Ref, Setting
from mixer_equiv.equivalence.record.jax import Call, Interpreter, draw_parameters
from mixer_equiv.equivalence.record.precision import jax_full_precision
from mixer_equiv.equivalence.record.randomness import fork_generators
from mixer_equiv.equivalence.record.trace import Draw


def record_graph(
    function: Callable[[Mapping[str, Any], Mapping[str, Any]], Any],
    shapes: Mapping[str, tuple[int, ...]],
    inputs: Mapping[str, Any],
    draw: Draw,
    dtype: Any = np.float64,
) -> Graph:
    """Record the calls of `function(parameters, inputs)`, every parameter drawn by its name and shape.

    Every array among the inputs is an input of the graph, by its name, with the path in what the name holds. Floats are
    of `dtype`.
    """
    with jax_full_precision(x64=True), fork_generators(0):
        drawn = draw_parameters(shapes, draw, dtype)
        given = jax.tree.map(lambda leaf: _to_dtype(leaf, dtype), dict(inputs))
        closed, result = jax.make_jaxpr(lambda *both: function(*both), return_shape=True)(drawn, given)
        interpreter = _GraphInterpreter(np.dtype(dtype), differentiable=False)
        parameters = [interpreter.add(drawn[name], PARAMETER, (), name=name) for name in sorted(drawn)]
        entries = []
        for path, leaf in jax.tree_util.tree_leaves_with_path(given):
            entries.append(interpreter.add(leaf, INPUT, (), is_data=True))
            interpreter.builder.input_names[entries[-1]] = path[0].key + jax.tree_util.keystr(path[1:])
        consts = [interpreter.constant(const) for const in closed.consts]
        numbers = interpreter.run(closed.jaxpr, consts, [*parameters, *entries])
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(result)]
        return interpreter.graph(dict(zip(paths, numbers, strict=True)))


def _to_dtype(leaf: Any, dtype: Any) -> Any:
    array = jnp.asarray(leaf)
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array


class _GraphInterpreter(Interpreter):
    """Keeps the calls as well."""

    def __init__(self, dtype: np.dtype, differentiable: bool) -> None:
        super().__init__(dtype, differentiable)
        self.builder = GraphBuilder()

    def graph(self, outputs: Mapping[str, int]) -> Graph:
        """The graph of the calls, with outputs by the numbers of their values."""
        return self.builder.graph({path: self._ref(number) for path, number in outputs.items()})

    def note_call(self, call: Call) -> None:
        if not any(self.values[i].is_data or self.values[i].leaves for i in call.inputs):
            return
        arguments = tuple(self._ref(i) for i in call.inputs)
        keywords = {name: plain for name, value in call.params.items() if (plain := _plain(value)) is not _OTHER}
        shapes = tuple(tuple(np.shape(self.arrays[i])) for i in call.results)
        place = self.values[call.results[0]].find_place if call.results else self.places.mark()
        made = self.builder.call(f"lax.{call.operation}", shapes, arguments, keywords, place)
        for part, number in enumerate(call.results):
            self.builder.results[number] = Ref(made, part if call.is_several else None)

    def chosen(self, number: int, index: int) -> int:
        kept = super().chosen(number, index)
        self.builder.results[kept] = self._ref(number)
        return kept

    def _ref(self, number: int) -> Ref:
        return self.builder.ref(number, self.values[number].name, self.arrays[number], np.array)


_OTHER = object()


def _plain(value: Any) -> Any:
    """A parameter of an equation as plain data; `_OTHER` for what no rule needs, such as shardings and jaxprs."""
    if isinstance(value, IntEnum):
        return int(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.dtype | type):
        return Setting("dtype", np.dtype(value).name)
    if isinstance(value, Enum):
        return value.name
    fields = getattr(value, "_fields", None)
    if fields and type(value).__name__ != "ConvDimensionNumbers":
        return {field: _plain(getattr(value, field)) for field in fields}
    if isinstance(value, tuple | list):
        items = tuple(map(_plain, value))
        return _OTHER if _OTHER in items else items
    return _OTHER
