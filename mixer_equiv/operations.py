"""Operations of neural networks in NumPy float64 with their derivatives, and `Program`: a model as a list of them.

A model takes its operations as an argument. Given this module, it computes numbers; given a `Recorder`, the
same lines record a `Program`, which can be differentiated. Parameters have named axes, whose sizes are not part of a
program. Beside each operation is its vector-Jacobian product: `NAME_vjp(cotangent, *arguments of NAME)` returns the
cotangent of each array among the arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mixer_equiv.activations import Activation, activation_derivative, activation_function

Array = np.ndarray
Key = TypeVar("Key")


def cut(images: Array, patch: tuple[int, int]) -> Array:
    """(batch, height, width, channels) to (batch, tokens, ph, pw, channels), patches in row-major order."""
    batch, height, width, channels = images.shape
    (ph, pw), rows, columns = patch, height // patch[0], width // patch[1]
    patches = images.reshape(batch, rows, ph, columns, pw, channels).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(batch, rows * columns, ph, pw, channels)


def cut_vjp(cotangent: Array, images: Array, patch: tuple[int, int]) -> tuple[Array]:
    batch, height, width, channels = images.shape
    (ph, pw), rows, columns = patch, height // patch[0], width // patch[1]
    patches = cotangent.reshape(batch, rows, columns, ph, pw, channels).transpose(0, 1, 3, 2, 4, 5)
    return (patches.reshape(images.shape),)


def linear(x: Array, kernel: Array, bias: Array) -> Array:
    """Contract the last axes of `x` with all axes of the kernel but its last, and add the bias."""
    axes = kernel.ndim - 1
    inner = x.reshape(*x.shape[: x.ndim - axes], -1)
    return inner @ kernel.reshape(-1, kernel.shape[-1]) + bias


def linear_vjp(cotangent: Array, x: Array, kernel: Array, bias: Array) -> tuple[Array, Array, Array]:
    matrix = kernel.reshape(-1, kernel.shape[-1])
    rows = cotangent.reshape(-1, kernel.shape[-1])
    inner = x.reshape(-1, len(matrix))
    return (rows @ matrix.T).reshape(x.shape), (inner.T @ rows).reshape(kernel.shape), rows.sum(axis=0)


def layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """LayerNorm over the last axis, with the variance computed in two passes."""
    return normalise(x, eps) * scale + bias


def layer_norm_vjp(cotangent: Array, x: Array, scale: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    normed, scaled, leading = normalise(x, eps), cotangent * scale, tuple(range(x.ndim - 1))
    centred = scaled - scaled.mean(axis=-1, keepdims=True) - normed * (scaled * normed).mean(axis=-1, keepdims=True)
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    return centred / deviation, (cotangent * normed).sum(axis=leading), cotangent.sum(axis=leading)


def normalise(x: Array, eps: float, *, ddof: int = 0, centred: bool = True) -> Array:
    """`x`, minus its mean over the last axis if `centred`, divided by the root of its variance there plus `eps`."""
    x = x - x.mean(axis=-1, keepdims=True) if centred else x
    squares = np.square(x).sum(axis=-1, keepdims=True)
    return x / np.sqrt(squares / max(x.shape[-1] - ddof, 1) + eps)


def swap(x: Array) -> Array:
    """Transpose the last two axes."""
    return np.moveaxis(x, -1, -2)


def swap_vjp(cotangent: Array, x: Array) -> tuple[Array]:
    return (swap(cotangent),)


def activate(x: Array, activation: Activation) -> Array:
    """Apply an activation, by its name in `ACTIVATIONS` or with other constants, to every element."""
    return activation_function(activation)(x)


def activate_vjp(cotangent: Array, x: Array, activation: Activation) -> tuple[Array]:
    return (cotangent * activation_derivative(activation)(x),)


def add(x: Array, y: Array) -> Array:
    """The sum of two arrays of one shape."""
    return x + y


def add_vjp(cotangent: Array, x: Array, y: Array) -> tuple[Array, Array]:
    return cotangent, cotangent


def mean(x: Array) -> Array:
    """The mean over the second axis."""
    return np.einsum("bt...->b...", x) / x.shape[1]


def mean_vjp(cotangent: Array, x: Array) -> tuple[Array]:
    return (np.broadcast_to(cotangent[:, None] / x.shape[1], x.shape),)


class Operation(NamedTuple):
    """A function of arrays and settings, and its vector-Jacobian product."""

    run: Callable[..., Array]
    vjp: Callable[..., tuple[Array, ...]]


OPERATIONS: dict[str, Operation] = {
    "cut": Operation(cut, cut_vjp),
    "linear": Operation(linear, linear_vjp),
    "layer_norm": Operation(layer_norm, layer_norm_vjp),
    "swap": Operation(swap, swap_vjp),
    "activate": Operation(activate, activate_vjp),
    "add": Operation(add, add_vjp),
    "mean": Operation(mean, mean_vjp),
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a program: its name and the names of its axes, in order."""

    name: str
    axes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation of a program.

    `name` is its place in the model, such as "MixerBlock_0/token_mixing/Dense_0". `inputs` are the numbers of
    earlier values, where 0 is the program's input. `settings` are the operation's other arguments.
    """

    name: str
    operation: str
    inputs: tuple[int, ...]
    parameters: tuple[Parameter, ...] = ()
    settings: tuple[Any, ...] = ()

    def run(self, inputs: tuple[Array, ...], parameters: tuple[Array, ...]) -> Array:
        return OPERATIONS[self.operation].run(*inputs, *parameters, *self.settings)

    def vjp(self, cotangent: Array, inputs: tuple[Array, ...], parameters: tuple[Array, ...]) -> tuple[Array, ...]:
        """The cotangents of the inputs and the parameters, in this order, from that of the step's value."""
        return OPERATIONS[self.operation].vjp(cotangent, *inputs, *parameters, *self.settings)


@dataclasses.dataclass(frozen=True)
class Program:
    """Steps in order of computation: step i gives value i + 1, and the last value is the result.

    `stages` are the numbers of the values that the model names.
    """

    steps: tuple[Step, ...]
    stages: Mapping[str, int]

    def gradients(self, parameters: Mapping[str, Array], given: Array, cotangent: Array) -> dict[str, Array]:
        """Gradients, by parameter, of the sum of the result for the input `given` times `cotangent`, of its shape.

        This is reverse mode: cotangents are passed from the last step to the first, and added up where a value or a
        parameter is used several times.
        """
        values, arguments = [given], []
        for step in self.steps:
            arguments.append(
                (tuple(values[i] for i in step.inputs), tuple(parameters[p.name] for p in step.parameters))
            )
            values.append(step.run(*arguments[-1]))
        cotangents, gradients = {len(self.steps): cotangent}, dict[str, Array]()
        for number, step in reversed(list(enumerate(self.steps, 1))):
            made = step.vjp(cotangents.pop(number), *arguments[number - 1])
            _add_each(cotangents, step.inputs, made)
            _add_each(gradients, [parameter.name for parameter in step.parameters], made[len(step.inputs) :])
        return gradients


def _add_each(sums: dict[Key, Array], keys: Sequence[Key], parts: Sequence[Array]) -> None:
    for key, part in zip(keys, parts, strict=False):
        sums[key] = sums[key] + part if key in sums else part


@dataclasses.dataclass(frozen=True)
class _Value:
    """A stand-in for the value of a step while a program is recorded."""

    number: int


class Recorder:
    """A stand-in for this module whose operations record steps instead of computing; the first are named in `scope`."""

    def __init__(self, scope: str) -> None:
        self.steps: list[Step] = []
        self._scope = scope

    def __getattr__(self, operation: str) -> Callable[..., _Value]:
        if operation not in OPERATIONS:
            raise AttributeError(operation)

        def record(*arguments: Any) -> _Value:
            inputs = tuple(argument.number for argument in arguments if isinstance(argument, _Value))
            parameters = tuple(argument for argument in arguments if isinstance(argument, Parameter))
            settings = tuple(argument for argument in arguments if not isinstance(argument, _Value | Parameter))
            name = f"{self._scope}/{operation}"
            if parameters:
                name = parameters[0].name.rpartition("/")[0]
                self._scope = name.rpartition("/")[0] or name
            self.steps.append(Step(name, operation, inputs, parameters, settings))
            return _Value(len(self.steps))

        return record

    def program(self, model: Callable[..., Mapping[str, Any]], parameters: Mapping[str, Parameter]) -> Program:
        """The program of `model(operations, parameters, input)`, which returns its stages by name, the result last."""
        stages = model(self, parameters, _Value(0))
        return Program(tuple(self.steps), {name: value.number for name, value in stages.items()})
