"""Record a forward pass of a JAX function, in float64, by interpreting its jaxpr."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from mixer_equiv.equivalence.record.precision import jax_full_precision
from mixer_equiv.equivalence.record.randomness import fork_generators
from mixer_equiv.equivalence.record.trace import Trace, Value

Draw = Callable[[str, tuple[int, ...]], np.ndarray]


def record(
    function: Callable[[Mapping[str, Any], Any], Any],
    shapes: Mapping[str, tuple[int, ...]],
    images: np.ndarray,
    draw: Draw,
    dtype: Any = np.float64,
    *,
    every: bool = True,
    seed: int = 0,
) -> Trace:
    """The trace of `function(parameters by name, images)` with every parameter drawn by name and shape.

    Everything is computed in `dtype`, also where the function asks for another float. If not `every` value is
    asked for, those that are no outputs are left empty. Python's and NumPy's generators begin with `seed`.
    """
    with jax_full_precision(), fork_generators(seed) as generators:
        drawn = _drawn(shapes, draw, dtype)
        tape, entry, outputs = _interpreted(function, drawn, drawn, images.astype(dtype), dtype)
        outputs = {path: value for path, value in outputs.items() if tape.values[value].is_data}
        wanted = range(len(tape.arrays)) if every else set(outputs.values())
        held = [tape.finished(value, value.number in wanted) for value in tape.values]
        draws = generators.were_used or any(value.operation in _RANDOM for value in held)
    scalars = tuple(dict.fromkeys(tape.scalars))
    return Trace(held, entry, outputs, dict(shapes), (), scalars, tuple(tape.narrow_dtypes), draws)


def gradients(
    function: Callable[[Mapping[str, Any], Any], Any],
    shapes: Mapping[str, tuple[int, ...]],
    images: np.ndarray,
    draw: Draw,
    output: str,
    cotangent: np.ndarray,
    dtype: Any = np.float64,
) -> dict[str, np.ndarray]:
    """Gradients of the sum of an output times `cotangent` by the parameters, drawn and computed as `record` does."""
    with jax_full_precision(), fork_generators(0):
        drawn = _drawn(shapes, draw, dtype)
        given, weighed = images.astype(dtype), cotangent.astype(dtype)

        def scalar(params: Mapping[str, Any]) -> Any:
            tape, _, outputs = _interpreted(function, drawn, params, given, dtype, differentiable=True)
            return (tape.arrays[outputs[output]].reshape(weighed.shape) * weighed).sum()

        return {name: np.asarray(gradient) for name, gradient in jax.grad(scalar)(drawn).items()}


def _drawn(shapes: Mapping[str, tuple[int, ...]], draw: Draw, dtype: Any) -> dict[str, Any]:
    return {name: jnp.asarray(draw(name, shape), dtype).reshape(shape) for name, shape in shapes.items()}


def _interpreted(
    function: Callable[[Mapping[str, Any], Any], Any],
    like: Mapping[str, Any],
    params: Mapping[str, Any],
    images: np.ndarray,
    dtype: Any,
    *,
    differentiable: bool = False,
) -> tuple[_Interpreter, int, dict[str, int]]:
    """The function's program, as it is for parameters `like` these, run on `params`; its input, and outputs by path."""
    # A function of its own each time, because JAX keeps what it once traced, with the random numbers of that time.
    closed, result = jax.make_jaxpr(lambda *given: function(*given), return_shape=True)(dict(like), images)
    tape = _Interpreter(np.dtype(dtype), differentiable)
    leaves = [tape.add(params[name], "parameter", (), name=name) for name in sorted(params)]
    entry = tape.add(images, "input", (), is_data=True)
    values = tape.run(closed.jaxpr, [tape.constant(c) for c in closed.consts], [*leaves, entry])
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(result)[0]]
    return tape, entry, dict(zip(paths, values, strict=True))


# What activations are made of. jax.nn.gelu rounds the roots to the dtype of its input, and JAX all Python's floats.
_MEANT = (math.sqrt(2 / math.pi), math.sqrt(0.5), 0.044715, 1.702)


def _meant(rounded: Any) -> Any:
    """The number that code has, from what JAX keeps where that code asks for a narrower float than the pass's.

    That is one of `_MEANT`, or the shortest decimal of which this is the rounding.
    """
    held = np.asarray(rounded)
    value = float(held.reshape(()))
    known = [number for number in _MEANT if held.dtype.type(number) == abs(value)]
    return np.full(held.shape, math.copysign(known[0], value) if known else float(str(held.reshape(())[()])))


# Equations that only call another jaxpr, and the name under which they hold it.
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_VIEWS = frozenset({"reshape", "transpose", "squeeze", "broadcast_in_dim", "convert_element_type", "copy"})
_RANDOM = frozenset({"random_bits", "random_gamma", "rng_bit_generator", "rng_uniform", "threefry2x32"})
_OPAQUE = frozenset({"while", "cond", "pallas_call", "custom_linear_solve"})


class _Interpreter:
    """Values by their numbers, which stand for them in the environment of a jaxpr."""

    def __init__(self, dtype: np.dtype, differentiable: bool) -> None:
        self.dtype, self.differentiable = dtype, differentiable
        self.values: list[Value] = []
        self.arrays: list[Any] = []
        self.scalars: list[float] = []
        self.narrow_dtypes: dict[str, None] = {}

    def add(
        self, array: Any, operation: str, inputs: tuple[int, ...], *, name: str | None = None, is_data: bool = False
    ) -> int:
        is_data = is_data or any(self.values[i].is_data for i in inputs)
        leaves = frozenset({name}) if name is not None else frozenset().union(*(self.values[i].leaves for i in inputs))
        number = len(self.values)
        is_view = operation in _VIEWS and np.size(self.arrays[inputs[0]]) == np.size(array)
        leaves = frozenset() if is_data else leaves
        self.values.append(Value(number, np.empty(0), operation, inputs, is_data, leaves, name, is_view))
        self.arrays.append(array)
        return number

    def finished(self, value: Value, wanted: bool) -> Value:
        """The value with its array, floats in float64."""
        if wanted and not jnp.issubdtype(jnp.result_type(self.arrays[value.number]), jax.dtypes.prng_key):
            held = np.asarray(self.arrays[value.number])
            value.array = held.astype(np.float64, copy=False) if jnp.issubdtype(held.dtype, jnp.floating) else held
        return value

    def constant(self, array: Any) -> int:
        given = jnp.asarray(array)
        if jnp.issubdtype(given.dtype, jnp.floating):
            narrower = given.size == 1 and given.dtype.itemsize < self.dtype.itemsize
            array = jnp.asarray(_meant(given) if narrower else given, self.dtype)
            if array.size == 1:
                self.scalars.append(float(array.reshape(())))
        return self.add(array, "constant", ())

    def run(self, jaxpr: Jaxpr, consts: list[int], arguments: list[int]) -> list[int]:
        known: dict[Any, int] = {**dict(zip(jaxpr.constvars, consts, strict=True))}
        known.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> int:
            return self.constant(atom.val) if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[int]) -> list[int]:
        name = equation.primitive.name
        if name == "scan":
            return self._scan(equation.params, inputs)
        if name not in _OPAQUE and not (self.differentiable and name.startswith("custom_")):
            for key in _CALLS:
                inner = equation.params.get(key)
                if isinstance(inner, ClosedJaxpr):
                    return self.run(inner.jaxpr, [self.constant(c) for c in inner.consts], inputs)
                if isinstance(inner, Jaxpr):
                    return self.run(inner, [], inputs)
        arrays = [self.arrays[i] for i in inputs]
        params = dict(equation.params)
        if name == "bitcast_convert_type":  # of so many bits as the code has them
            arrays = [jnp.asarray(arrays[0], equation.invars[0].aval.dtype)]
        else:
            params = {key: self._widened(value) for key, value in params.items()}
        bound = equation.primitive.get_bind_params(params)
        subfuns, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair up to JAX 0.9
        made = equation.primitive.bind(*subfuns, *arrays, **params)
        if name == "bitcast_convert_type" and jnp.issubdtype(made.dtype, jnp.floating):
            made = made.astype(self.dtype)
        made = made if equation.primitive.multiple_results else [made]
        return [self.add(array, name, tuple(dict.fromkeys(inputs))) for array in made]

    def _widened(self, value: Any) -> Any:
        """The pass's dtype for another float."""
        if isinstance(value, np.dtype | type) and jnp.issubdtype(value, jnp.floating):
            if value != self.dtype:
                self.narrow_dtypes[str(np.dtype(value))] = None
            return self.dtype
        return value

    def _scan(self, params: Mapping[str, Any], inputs: list[int]) -> list[int]:
        """Every turn of a loop, one after the other."""
        consts, carried = params["num_consts"], params["num_carry"]
        fixed, carry, stacked = inputs[:consts], inputs[consts : consts + carried], inputs[consts + carried :]
        made: list[list[int]] = []
        turns = range(params["length"])
        for i in reversed(turns) if params["reverse"] else turns:
            slices = [self.add(self.arrays[x][i], "slice", (x,)) for x in stacked]
            inner = params["jaxpr"]
            results = self.run(inner.jaxpr, [self.constant(c) for c in inner.consts], [*fixed, *carry, *slices])
            carry = results[:carried]
            made.append(results[carried:])
        columns = list(zip(*(made[::-1] if params["reverse"] else made), strict=True))
        outs = [self.add(jnp.stack([self.arrays[i] for i in column]), "stack", column) for column in columns]
        return [*carry, *outs]
