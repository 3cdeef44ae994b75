"""Record a forward pass of a JAX function in float64, with other parameters than it has, by interpreting its jaxpr.

The function is traced once; its equations are then run one by one in float64, loops turn by turn, and of branches the
one that is taken. Start at `record`. `record.torch` offers the same functions for torch modules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from mixer_equiv.equivalence.record.calls import PLAIN, CallLog, Calls, Function, Way
from mixer_equiv.equivalence.record.constants import unrounded
from mixer_equiv.equivalence.record.contexts import in_copied_context
from mixer_equiv.equivalence.record.derivatives import LARGER, Derivatives
from mixer_equiv.equivalence.record.equation_places import EquationPlaces
from mixer_equiv.equivalence.record.holders import Change
from mixer_equiv.equivalence.record.precision import jax_full_precision
from mixer_equiv.equivalence.record.randomness import fork_generators, seed_generators
from mixer_equiv.equivalence.record.state import ModelState
from mixer_equiv.equivalence.record.trace import Draw, Trace, Value

# A way to call a function of JAX that everything else is run in otherwise: as it stands, with nothing traced.
EAGERLY = "without jit"


@in_copied_context
def record(
    function: Function,
    shapes: Mapping[str, tuple[int, ...]],
    images: np.ndarray,
    draw: Draw,
    dtype: Any = np.float64,
    *,
    every: bool = True,
    seed: int = 0,
) -> Trace:
    """Record the function, with every parameter drawn by its name and shape.

    Everything is computed in `dtype`, also where the function asks for another float. Unless `every` value is
    asked for, only the outputs have their arrays. Python's and NumPy's generators begin with `seed`.
    """
    with jax_full_precision(x64=_is_wide(dtype)), fork_generators(seed) as generators:
        drawn = draw_parameters(shapes, draw, dtype)
        interpreter, entry, outputs, _ = _interpret(function, drawn, drawn, images.astype(dtype), dtype)
        outputs = {path: number for path, number in outputs.items() if interpreter.values[number].is_data}
        wanted = range(len(interpreter.arrays)) if every else set(outputs.values())
        values = [interpreter.fill(value) if value.number in wanted else value for value in interpreter.values]
        uses_random_numbers = generators.were_used or any(value.operation in _RANDOM for value in values)
    return Trace(
        values=values,
        input=entry,
        outputs=outputs,
        parameters=dict(shapes),
        hidden=(),
        scalars=tuple(dict.fromkeys(interpreter.scalars)),
        narrow_dtypes=tuple(interpreter.narrow_dtypes),
        uses_random_numbers=uses_random_numbers,
        decisions=tuple(interpreter.decisions),
        weight_decisions=tuple(interpreter.weight_decisions),
    )


@in_copied_context
def gradients(
    function: Function,
    shapes: Mapping[str, tuple[int, ...]],
    images: np.ndarray,
    draw: Draw,
    output: str,
    cotangent: np.ndarray,
    dtype: Any = np.float64,
) -> Derivatives:
    """Differentiate the sum of an output times `cotangent` by the parameters, drawn and computed as for `record`.

    A second backward pass tells which are not linear in `cotangent`.
    """
    with jax_full_precision(x64=_is_wide(dtype)), fork_generators(0):
        drawn = draw_parameters(shapes, draw, dtype)
        given, weights = images.astype(dtype), cotangent.astype(dtype)

        def scalar(params: Mapping[str, Any]) -> Any:
            made = _interpret(function, drawn, params, given, dtype, differentiable=True)
            return (made.interpreter.arrays[made.outputs[output]].reshape(weights.shape) * weights).sum()

        value, pull = jax.vjp(scalar, drawn)
        usual, larger = ({n: np.asarray(g) for n, g in pull(c * jnp.ones_like(value))[0].items()} for c in (1, LARGER))
        return Derivatives.of(usual, larger)


@in_copied_context
def call(
    function: Function,
    shapes: Mapping[str, tuple[int, ...]],
    batches: Sequence[np.ndarray],
    draw: Draw,
    objects: Collection[tuple[str, Any]],
    *,
    seed: int = 0,
    skipped: int = 0,
    changes: list[Change] | None = None,
    dtype: Any = np.float64,
    way: Way = PLAIN,
) -> Calls:
    """Call a function on each batch in turn, in `dtype`, with parameters drawn as for `record`.

    The first gets None as kept. `objects`, each under a name, are those in which a call may leave something besides; to
    `changes` the function adds what it changes in others.
    All generators begin each call with `seed`. Before the last call, what counts calls is moved on by those `skipped`.
    """
    log = CallLog(len(batches), skipped)
    kept: Any = None
    with jax_full_precision(x64=_is_wide(dtype)), fork_generators(seed):
        drawn = draw_parameters(shapes, draw, dtype)
        state, others = ModelState(objects), [] if changes is None else changes
        for batch in batches:
            others.clear()
            seed_generators(seed)
            given = batch.astype(dtype)
            if way.name == EAGERLY:
                result, numbers = function(drawn, jnp.asarray(given), kept)
                made = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in _leaves_of(result)}
                leaves, tree = jax.tree.flatten(numbers)
            else:
                interpreter, _, outputs, numbers = _interpret(function, drawn, drawn, given, dtype, kept=kept)
                arrays = interpreter.arrays
                made = {path: np.asarray(arrays[number]) for path, number in outputs.items()}
                leaves, tree = jax.tree.flatten(jax.tree.map(arrays.__getitem__, numbers))
            overwritten = [] if kept is None else list(_changes(kept, leaves, tree))
            changed = state.changes()
            log.add(made, [*changed, *others], overwritten)
            state = ModelState(objects) if changed else state
            kept = jax.tree.unflatten(tree, leaves)
    return log.calls()


def _changes(before: Any, leaves: list[Any], tree: Any) -> Iterator[Change]:
    """What differs of the arrays that a call keeps, in `leaves` of a `tree`, from those that it was given."""
    then = dict(jax.tree_util.tree_leaves_with_path(before))
    for i, (path, now) in enumerate(jax.tree_util.tree_leaves_with_path(jax.tree.unflatten(tree, leaves))):
        old = then.get(path)
        if old is not None and not np.array_equal(_plain(old), _plain(now)):
            yield Change(_name_of(path), old, now, partial(leaves.__setitem__, i))


def _plain(array: Any) -> np.ndarray:
    """An array of JAX in NumPy; of random keys, their numbers."""
    is_key = jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if is_key else array)


def _name_of(path: tuple[Any, ...]) -> str:
    keys = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    return ".".join(key for key in keys if key != "value")


def _is_wide(dtype: Any) -> bool:
    """Whether x64 has to be on. In another precision it is off, as for a user, whose numbers are then float32 too."""
    return np.dtype(dtype).itemsize == 8


def draw_parameters(shapes: Mapping[str, tuple[int, ...]], draw: Draw, dtype: Any) -> dict[str, Any]:
    return {name: jnp.asarray(draw(name, shape), dtype).reshape(shape) for name, shape in shapes.items()}


def _leaves_of(result: Any) -> list[tuple[Any, Any]]:
    leaves: list[tuple[Any, Any]] = jax.tree_util.tree_flatten_with_path(result)[0]
    return leaves


class _Interpreted(NamedTuple):
    """A run of a function: the numbers of its input, of its outputs by path, and of what it keeps, in a tree."""

    interpreter: Interpreter
    entry: int
    outputs: dict[str, int]
    kept: Any


def _interpret(
    function: Function,
    like: Mapping[str, Any],
    params: Mapping[str, Any],
    images: np.ndarray,
    dtype: Any,
    *,
    kept: Any = None,
    differentiable: bool = False,
) -> _Interpreted:
    """Run the function on `params`, by the jaxpr that it has for parameters `like` these."""
    # A function of its own each time, because JAX keeps a traced function, with the random numbers of that time.
    closed, result = jax.make_jaxpr(lambda *given: function(*given), return_shape=True)(dict(like), images, kept)
    interpreter = Interpreter(np.dtype(dtype), differentiable)
    leaves = [interpreter.add(params[name], "parameter", (), name=name) for name in sorted(params)]
    entry = interpreter.add(images, "input", (), is_data=True)
    consts = [interpreter.constant(const) for const in closed.consts]
    held = [interpreter.constant(leaf) for leaf in jax.tree.leaves(kept)]
    numbers = interpreter.run(closed.jaxpr, consts, [*leaves, entry, *held])
    tree = jax.tree.unflatten(jax.tree.structure(result), numbers)
    paths = [jax.tree_util.keystr(path) for path, _ in _leaves_of(result[0])]
    return _Interpreted(interpreter, entry, dict(zip(paths, numbers, strict=False)), tree[1])


# The parameters of an equation under which one that only calls another jaxpr holds it.
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_VIEW_PRIMITIVES = frozenset({"reshape", "transpose", "squeeze", "broadcast_in_dim", "convert_element_type", "copy"})
_RANDOM = frozenset({"random_bits", "random_gamma", "rng_bit_generator", "rng_uniform", "threefry2x32"})
_OPAQUE = frozenset({"pallas_call", "custom_linear_solve"})


class Call(NamedTuple):
    """An operation on values, all by their numbers, with the parameters of its equation.

    `is_several` says that the operation gives a list, of one result or more.
    """

    operation: str
    params: Mapping[str, Any]
    inputs: Sequence[int]
    results: Sequence[int]
    is_several: bool


class Interpreter:
    """Runs jaxprs whose variables are numbers of values, and keeps the values and their arrays."""

    def __init__(self, dtype: np.dtype, differentiable: bool) -> None:
        self.dtype, self.differentiable = dtype, differentiable
        self.values: list[Value] = []
        self.arrays: list[Any] = []
        self.scalars: list[float] = []
        self.narrow_dtypes: dict[str, None] = {}
        self.places = EquationPlaces(__file__)
        self.decisions: dict[str, None] = {}
        self.weight_decisions: dict[str, None] = {}

    def add(
        self, array: Any, operation: str, inputs: tuple[int, ...], *, name: str | None = None, is_data: bool = False
    ) -> int:
        """Keep an array, and return its number."""
        is_data = is_data or any(self.values[i].is_data for i in inputs)
        leaves = frozenset({name}) if name is not None else frozenset().union(*(self.values[i].leaves for i in inputs))
        number = len(self.values)
        is_view = operation in _VIEW_PRIMITIVES and np.size(self.arrays[inputs[0]]) == np.size(array)
        leaves = frozenset() if is_data else leaves
        find_place = self.places.mark()
        self.values.append(Value(number, np.empty(0), operation, inputs, is_data, leaves, name, is_view, find_place))
        self.arrays.append(array)
        return number

    def add_results(
        self,
        operation: str,
        arrays: Sequence[Any],
        inputs: Sequence[int],
        params: Mapping[str, Any] | None = None,
        *,
        is_several: bool = False,
    ) -> list[int]:
        """Keep the results of an operation on these values, and return their numbers."""
        numbers = [self.add(array, operation, tuple(dict.fromkeys(inputs))) for array in arrays]
        self.note_call(Call(operation, params or {}, inputs, numbers, is_several))
        return numbers

    def note_call(self, call: Call) -> None:
        """Take note of a call that was made; a trace needs no more than its results."""

    def fill(self, value: Value) -> Value:
        """Give a value its array, floats in float64, and of complex numbers the real parts."""
        if not jnp.issubdtype(jnp.result_type(self.arrays[value.number]), jax.dtypes.prng_key):
            held = np.asarray(self.arrays[value.number])
            held = held.real if np.iscomplexobj(held) else held
            value.array = held.astype(np.float64, copy=False) if jnp.issubdtype(held.dtype, jnp.floating) else held
        return value

    def constant(self, array: Any) -> int:
        """Keep a constant, a float in the pass's dtype, and return its number."""
        with jax.ensure_compile_time_eval():  # also while a jaxpr is widened
            given = jnp.asarray(array)
            if jnp.issubdtype(given.dtype, jnp.floating):
                exact = unrounded(np.asarray(given)) if given.dtype.itemsize < self.dtype.itemsize else None
                array = jnp.asarray(given if exact is None else exact, self.dtype)
                if array.size == 1:
                    self.scalars.append(float(array.reshape(())))
                array = array if array.shape else np.asarray(array)  # a literal where it is traced
        return self.add(array, "constant", ())

    def run(self, jaxpr: Jaxpr, consts: list[int], arguments: list[int]) -> list[int]:
        """Run a jaxpr on values with these numbers, and return the numbers of its results."""
        known: dict[Any, int] = {**dict(zip(jaxpr.constvars, consts, strict=True))}
        known.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> int:
            return self.constant(atom.val) if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            with self.places.inside(equation):
                results = self._equation(equation, [read(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[int]) -> list[int]:
        name = equation.primitive.name
        control = {"scan": self._scan, "while": self._while, "cond": self._cond}.get(name)
        if control is not None:
            return control(equation.params, inputs)
        if name not in _OPAQUE and not (self.differentiable and name.startswith("custom_")):
            for inner in filter(None, map(equation.params.get, _CALLED)):
                if isinstance(inner, ClosedJaxpr) and _is_called(inner.jaxpr, equation):
                    return self._run_closed(inner, inputs)
                if isinstance(inner, Jaxpr) and _is_called(inner, equation):
                    return self.run(inner, [], inputs)
        arrays = [self.arrays[i] for i in inputs]
        params = dict(equation.params)
        if name == "bitcast_convert_type":  # on as many bits as the code has
            arrays = [jnp.asarray(arrays[0], equation.invars[0].aval.dtype)]
        else:
            params = {key: self._widen(value) for key, value in params.items()}
        if name == "reduce":
            params["jaxpr"] = self._widen_jaxpr(params["jaxpr"])
        bound = equation.primitive.get_bind_params(params)
        subfuns, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair up to JAX 0.9
        made = equation.primitive.bind(*subfuns, *arrays, **params)
        if name == "bitcast_convert_type" and jnp.issubdtype(made.dtype, jnp.floating):
            made = made.astype(self.dtype)
        is_several = equation.primitive.multiple_results
        return self.add_results(name, made if is_several else [made], inputs, params, is_several=is_several)

    def _widen(self, value: Any) -> Any:
        """The pass's dtype for another float, and any other value as it is."""
        if isinstance(value, np.dtype | type) and jnp.issubdtype(value, jnp.floating):
            if value != self.dtype:
                self.narrow_dtypes[str(np.dtype(value))] = None
            return self.dtype
        return value

    def _widen_jaxpr(self, closed: ClosedJaxpr) -> ClosedJaxpr:
        """The jaxpr with the pass's dtype for other floats."""

        def run(*arguments: Any) -> list[Any]:
            inner = Interpreter(self.dtype, self.differentiable)
            results = inner._run_closed(closed, [inner.add(argument, "argument", ()) for argument in arguments])
            return [inner.arrays[number] for number in results]

        avals: list[Any] = closed.in_avals
        return jax.make_jaxpr(run)(*(jnp.zeros(aval.shape, self._widen(aval.dtype)) for aval in avals))

    def _run_closed(self, closed: ClosedJaxpr, inputs: list[int]) -> list[int]:
        return self.run(closed.jaxpr, [self.constant(const) for const in closed.consts], inputs)

    def _decide(self, operation: str, number: int) -> Any:
        """The value on which a branch or a turn depends; that it is made of the input or of parameters is noted."""
        if self.values[number].is_data:
            self.decisions[f"lax.{operation} on numbers of the input"] = None
        elif self.values[number].leaves:
            self.weight_decisions[f"lax.{operation} on numbers of parameters"] = None
        return self.arrays[number]

    def _cond(self, params: Mapping[str, Any], inputs: list[int]) -> list[int]:
        """Run the branch that is taken, of `lax.cond` or `lax.switch`."""
        index, *operands = inputs
        branches = params["branches"]
        taken = min(max(int(self._decide("cond", index)), 0), len(branches) - 1)
        results = self._run_closed(branches[taken], operands)
        if not self.values[index].is_data:
            return results
        # A constant that is chosen by numbers of the input depends on these.
        return [i if self.values[i].is_data else self.chosen(i, index) for i in results]

    def chosen(self, number: int, index: int) -> int:
        """Keep a value once more, as one that depends on the index of a branch."""
        return self.add(self.arrays[number], "cond", (index, number))

    def _while(self, params: Mapping[str, Any], inputs: list[int]) -> list[int]:
        """Run every turn of a loop, as many as the condition allows on these numbers."""
        first = params["cond_nconsts"]
        last = first + params["body_nconsts"]
        of_condition, of_body, carry = inputs[:first], inputs[first:last], inputs[last:]
        while True:
            (going_on,) = self._run_closed(params["cond_jaxpr"], [*of_condition, *carry])
            if not bool(self._decide("while_loop", going_on)):
                return carry
            carry = self._run_closed(params["body_jaxpr"], [*of_body, *carry])

    def _scan(self, params: Mapping[str, Any], inputs: list[int]) -> list[int]:
        """Run every turn of a loop, one after the other."""
        consts, carried = params["num_consts"], params["num_carry"]
        fixed, carry, stacked = inputs[:consts], inputs[consts : consts + carried], inputs[consts + carried :]
        made: list[list[int]] = []
        turns = range(params["length"])
        for i in reversed(turns) if params["reverse"] else turns:
            slices = [self.add_results("index", [self.arrays[x][i]], (x,), {"index": i})[0] for x in stacked]
            results = self._run_closed(params["jaxpr"], [*fixed, *carry, *slices])
            carry = results[:carried]
            made.append(results[carried:])
        columns = list(zip(*(made[::-1] if params["reverse"] else made), strict=True))
        outs: list[int] = []
        for column in columns:
            whole = jnp.stack([self.arrays[i] for i in column])
            outs += self.add_results("stack", [whole], column)
        return [*carry, *outs]


def _is_called(inner: Any, equation: Any) -> bool:
    """Whether a jaxpr takes what its equation is given, and not, say, scalars to reduce it by."""
    return _shapes(inner.invars) == _shapes(equation.invars)


def _shapes(atoms: Sequence[Any]) -> list[Any]:
    return [getattr(atom.aval, "shape", None) for atom in atoms]
