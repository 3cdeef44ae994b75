"""`record_graph`: the calls of a JAX function, as a graph whose operations are the primitives of its jaxpr.

Loops are laid out turn by turn, and of branches the one that is taken. `record.torch` has the same function for torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer_equiv.equivalence.record.graph import CONSTANT, INPUT, PARAMETER, Graph, GraphBuilder, Ref, Setting
from mixer_equiv.equivalence.record.jax import Interpreter, draw_parameters
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
            interpreter.input_names[entries[-1]] = path[0].key + jax.tree_util.keystr(path[1:])
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
        self.input_names: dict[int, str] = {}
        self._refs: dict[int, Ref] = {}  # by the numbers of values

    def graph(self, outputs: Mapping[str, int]) -> Graph:
        """The graph of the calls, with outputs by the numbers of their values."""
        return self.builder.graph({path: self._ref(number) for path, number in outputs.items()})

    def add_results(
        self,
        operation: str,
        arrays: Sequence[Any],
        inputs: Sequence[int],
        params: Mapping[str, Any] | None = None,
        *,
        several: bool = False,
    ) -> list[int]:
        numbers = super().add_results(operation, arrays, inputs, params, several=several)
        if any(self.values[i].is_data or self.values[i].leaves for i in inputs):
            arguments = tuple(self._ref(i) for i in inputs)
            keywords = {name: plain for name, value in (params or {}).items() if (plain := _plain(value)) is not _OTHER}
            shapes = tuple(tuple(np.shape(array)) for array in arrays)
            place = self.values[numbers[0]].find_place if numbers else self.places.mark()
            call = self.builder.call(f"lax.{operation}", shapes, arguments, keywords, place)
            self._refs |= {number: Ref(call, part if several else None) for part, number in enumerate(numbers)}
        return numbers

    def chosen(self, number: int, index: int) -> int:
        kept = super().chosen(number, index)
        self._refs[kept] = self._ref(number)
        return kept

    def _ref(self, number: int) -> Ref:
        """The node of a value; those of parameters, inputs and constants are made where they are first taken."""
        if number not in self._refs:
            value, array = self.values[number], self.arrays[number]
            if value.name is not None:
                self._refs[number] = self.builder.give(PARAMETER, tuple(array.shape), name=value.name)
            elif number in self.input_names:
                self._refs[number] = self.builder.give(INPUT, tuple(array.shape), name=self.input_names[number])
            else:
                self._refs[number] = self.builder.give(CONSTANT, tuple(np.shape(array)), value=np.array(array))
        return self._refs[number]


_OTHER = object()


def _plain(value: Any) -> Any:
    """A parameter of an equation as plain data; `_OTHER` for what no rule needs, such as shardings and jaxprs."""
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
