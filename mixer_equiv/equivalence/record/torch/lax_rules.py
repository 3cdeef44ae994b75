"""`LAX_RULES`: the primitives of JAX, each as a function of torch, so that a recorded jaxpr runs without a compiler.

A rule takes the arrays and, by name, the parameters of the equation as plain data; all are those of `jax.lax`. One that
has several results gives a tuple. The semantics are those of StableHLO (https://openxla.org/stablehlo/spec).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixer_equiv.errors import NotFollowedError

Rule = Callable[..., Any]
Axes = Sequence[int]


def _elementwise(function: Callable[..., Tensor]) -> Rule:
    """A rule whose parameters, such as an accuracy, change nothing in float64."""
    return lambda *arrays, **parameters: function(*arrays)


def _integer_pow(x: Tensor, *, y: int) -> Tensor:
    return x**y if y >= 0 else 1 / x**-y


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() or x.is_complex() else torch.div(x, y, rounding_mode="trunc")


def _select_n(which: Tensor, *cases: Tensor) -> Tensor:
    result = cases[0]
    for number, case in enumerate(cases[1:], 1):
        result = torch.where(which if which.dtype is torch.bool else which == number, case, result)
    return result


def _round(x: Tensor, *, rounding_method: int) -> Tensor:
    if rounding_method == 1:  # to the nearest even number, as torch does
        return x.round()
    return torch.sign(x) * torch.floor(x.abs() + 0.5)


# Shapes


def _convert(x: Tensor, *, new_dtype: torch.dtype, **parameters: Any) -> Tensor:
    return x.to(new_dtype)


def _reshape(x: Tensor, *, new_sizes: Axes, dimensions: Axes | None = None, **parameters: Any) -> Tensor:
    return (x if dimensions is None else x.permute(list(dimensions))).reshape(tuple(new_sizes))


def _broadcast_in_dim(x: Tensor, *, shape: Axes, broadcast_dimensions: Axes, **parameters: Any) -> Tensor:
    places = dict(zip(broadcast_dimensions, x.shape, strict=True))
    return x.reshape([places.get(axis, 1) for axis in range(len(shape))]).expand(*shape)


def _transpose(x: Tensor, *, permutation: Axes) -> Tensor:
    return x.permute(list(permutation))


def _squeeze(x: Tensor, *, dimensions: Axes) -> Tensor:
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in dimensions])


def _expand_dims(x: Tensor, *, dimensions: Axes) -> Tensor:
    for axis in sorted(dimensions):
        x = x.unsqueeze(axis)
    return x


def _tile(x: Tensor, *, reps: Axes) -> Tensor:
    return x.repeat(*reps)


def _rev(x: Tensor, *, dimensions: Axes) -> Tensor:
    return x.flip(*dimensions)


def _concatenate(*arrays: Tensor, dimension: int) -> Tensor:
    return torch.cat(arrays, dimension)


def _split(x: Tensor, *, sizes: Axes, axis: int) -> tuple[Tensor, ...]:
    return torch.split(x, list(sizes), axis)


def _pad(x: Tensor, value: Tensor, *, padding_config: Sequence[tuple[int, int, int]]) -> Tensor:
    """Pad each axis before, behind and between its elements; a negative number of elements takes them away."""
    for axis, (low, high, between) in enumerate(padding_config):
        x = _spread(x, axis, between + 1, value) if between else x
        sizes = [(size if i != axis else max(low, 0)) for i, size in enumerate(x.shape)]
        after = [(size if i != axis else max(high, 0)) for i, size in enumerate(x.shape)]
        x = torch.cat([value.to(x.dtype).expand(sizes), x, value.to(x.dtype).expand(after)], axis)
        x = x.narrow(axis, max(-low, 0), x.shape[axis] - max(-low, 0) - max(-high, 0))
    return x


def _spread(x: Tensor, axis: int, step: int, value: Tensor) -> Tensor:
    """Put `step - 1` values between two elements along an axis."""
    if x.shape[axis] < 2:
        return x
    sizes = list(x.shape)
    sizes.insert(axis + 1, step - 1)
    wide = torch.cat([x.unsqueeze(axis + 1), value.to(x.dtype).expand(sizes)], axis + 1).flatten(axis, axis + 1)
    return wide.narrow(axis, 0, wide.shape[axis] - step + 1)


def _slice(x: Tensor, *, start_indices: Axes, limit_indices: Axes, strides: Axes | None) -> Tensor:
    steps = strides or [1] * x.ndim
    return x[tuple(slice(*bounds) for bounds in zip(start_indices, limit_indices, steps, strict=True))]


def _dynamic_slice(x: Tensor, *starts: Tensor, slice_sizes: Axes) -> Tensor:
    for axis, (start, size) in enumerate(zip(starts, slice_sizes, strict=True)):
        x = x.narrow(axis, min(max(int(start), 0), x.shape[axis] - size), size)
    return x


def _dynamic_update_slice(x: Tensor, update: Tensor, *starts: Tensor) -> Tensor:
    placed = zip(starts, x.shape, update.shape, strict=True)
    first = [min(max(int(start), 0), size - length) for start, size, length in placed]
    x = x.clone()
    x[tuple(slice(start, start + length) for start, length in zip(first, update.shape, strict=True))] = update
    return x


# Products


def _dot_general(x: Tensor, y: Tensor, *, dimension_numbers: Any, **parameters: Any) -> Tensor:
    (x_contracted, y_contracted), (x_batch, y_batch) = dimension_numbers
    x_kept = [axis for axis in range(x.ndim) if axis not in (*x_contracted, *x_batch)]
    y_kept = [axis for axis in range(y.ndim) if axis not in (*y_contracted, *y_batch)]
    batch = [x.shape[axis] for axis in x_batch]
    kept = [x.shape[axis] for axis in x_kept], [y.shape[axis] for axis in y_kept]
    width = math.prod(x.shape[axis] for axis in x_contracted)
    left = x.permute([*x_batch, *x_kept, *x_contracted]).reshape(math.prod(batch), math.prod(kept[0]), width)
    right = y.permute([*y_batch, *y_contracted, *y_kept]).reshape(math.prod(batch), width, math.prod(kept[1]))
    return (left @ right).reshape([*batch, *kept[0], *kept[1]])


def _conv(
    x: Tensor,
    kernel: Tensor,
    *,
    window_strides: Axes,
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Axes,
    rhs_dilation: Axes,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    **parameters: Any,
) -> Tensor:
    if batch_group_count != 1:
        raise NotFollowedError("a convolution with batch_group_count cannot be run again; verify a writing without it")
    x_axes, kernel_axes, result_axes = dimension_numbers
    zero = x.new_zeros(())
    config = [(0, 0, 0)] * 2 + [(*pair, step - 1) for pair, step in zip(padding, lhs_dilation, strict=True)]
    x = _pad(x.permute(*x_axes), zero, padding_config=config)
    convolve: Callable[..., Tensor] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[x.ndim - 2]
    strides, dilation = tuple(window_strides), tuple(rhs_dilation)
    made = convolve(x, kernel.permute(*kernel_axes), None, strides, 0, dilation, feature_group_count)
    return made.permute(*(result_axes.index(axis) for axis in range(made.ndim)))


# Reductions


def _reduce(function: Callable[[Tensor, list[int]], Tensor]) -> Rule:
    def reduce(x: Tensor, *, axes: Axes, **parameters: Any) -> Tensor:
        return function(x, list(axes)) if axes else x

    return reduce


def _product(x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis)
    return x


def _arg(function: Callable[..., Tensor]) -> Rule:
    return lambda x, *, axes, index_dtype: function(x, dim=axes[0]).to(index_dtype)


def _cumulate(function: Callable[[Tensor, int], Tensor]) -> Rule:
    def cumulate(x: Tensor, *, axis: int, reverse: bool) -> Tensor:
        return function(x.flip(axis), axis).flip(axis) if reverse else function(x, axis)

    return cumulate


def _window(function: Callable[[Tensor, list[int]], Tensor], start: float) -> Rule:
    """A reduction over windows, of what is padded with `start`."""

    def reduce(
        x: Tensor,
        *,
        window_dimensions: Axes,
        window_strides: Axes,
        padding: Sequence[tuple[int, int]],
        base_dilation: Axes,
        window_dilation: Axes,
    ) -> Tensor:
        if max(window_dilation) > 1:
            raise NotFollowedError("dilated windows cannot be run again; verify a writing without them")
        config = [(*pair, step - 1) for pair, step in zip(padding, base_dilation, strict=True)]
        ndim = x.ndim
        x = _pad(x, x.new_tensor(start), padding_config=config)
        for axis, (size, stride) in enumerate(zip(window_dimensions, window_strides, strict=True)):
            x = x.unfold(axis, size, stride)
        return function(x, list(range(ndim, 2 * ndim)))

    return reduce


def _sort(*arrays: Tensor, dimension: int, is_stable: bool, num_keys: int) -> tuple[Tensor, ...]:
    order = torch.arange(arrays[0].shape[dimension], device=arrays[0].device)
    order = order.reshape([-1 if axis == dimension else 1 for axis in range(arrays[0].ndim)]).expand_as(arrays[0])
    for key in reversed(arrays[:num_keys]):
        by_key = torch.sort(key.gather(dimension, order), dim=dimension, stable=True).indices
        order = order.gather(dimension, by_key)
    return tuple(array.gather(dimension, order) for array in arrays)


def _top_k(x: Tensor, *, k: int, **parameters: Any) -> tuple[Tensor, Tensor]:
    values, order = x.sort(dim=-1, descending=True, stable=True)
    return values[..., :k], order[..., :k].to(torch.int32)


# Elements by their indices


def _gather(
    x: Tensor,
    indices: Tensor,
    *,
    dimension_numbers: Any,
    slice_sizes: Axes,
    mode: str,
    fill_value: Any = None,
    **parameters: Any,
) -> Tensor:
    numbers = dimension_numbers
    gone = (*numbers["collapsed_slice_dims"], *numbers["operand_batching_dims"])
    starts = indices.to(torch.int64)
    lengths = [slice_sizes[axis] for axis in range(x.ndim) if axis not in gone]
    places, is_inside = _places(x, starts, numbers["start_index_map"], slice_sizes, gone, lengths, numbers)
    made = x[places]
    if mode == "FILL_OR_DROP":
        default = math.nan if made.is_floating_point() else 0
        made = torch.where(is_inside, made, default if fill_value is None else fill_value)
    return _to_offsets(made, numbers["offset_dims"], starts.ndim - 1)


def _scatter(reduction: str | None) -> Rule:
    """A rule that puts updates in the place of elements, or reduces these with them."""

    def scatter(x: Tensor, indices: Tensor, updates: Tensor, *, dimension_numbers: Any, mode: str, **_: Any) -> Tensor:
        numbers = dimension_numbers
        gone = (*numbers["inserted_window_dims"], *numbers["operand_batching_dims"])
        window = [updates.shape[axis] for axis in numbers["update_window_dims"]]
        left = iter(window)
        sizes = [1 if axis in gone else next(left) for axis in range(x.ndim)]
        batch = [axis for axis in range(updates.ndim) if axis not in numbers["update_window_dims"]]
        ordered = updates.permute([*batch, *numbers["update_window_dims"]])
        numbers = {**numbers, "start_indices_batching_dims": numbers["scatter_indices_batching_dims"]}
        map_, starts = numbers["scatter_dims_to_operand_dims"], indices.to(torch.int64)
        places, is_inside = _places(x, starts, map_, sizes, gone, window, numbers)
        inside = (is_inside | (mode == "CLIP")).expand_as(ordered)
        chosen = tuple(place.expand_as(ordered)[inside] for place in places)
        if reduction is None:
            return x.index_put(chosen, ordered[inside])
        number = torch.zeros_like(chosen[0])
        for place, size in zip(chosen, x.shape, strict=True):
            number = number * size + place
        return x.flatten().scatter_reduce(0, number, ordered[inside], reduction).reshape(x.shape)

    return scatter


def _places(
    x: Tensor, starts: Tensor, map_: Axes, sizes: Axes, gone: Axes, lengths: Axes, numbers: Any
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Indices into `x` for each axis, over (batch axes, axes of slices), and whether the slices are inside of it."""
    ndim = starts.ndim - 1
    places, is_inside, offset = [], torch.ones([1] * (ndim + len(lengths)), dtype=torch.bool, device=x.device), 0
    batching = dict(zip(numbers["operand_batching_dims"], numbers["start_indices_batching_dims"], strict=True))
    for axis in range(x.ndim):
        place = torch.zeros([1] * (ndim + len(lengths)), dtype=torch.int64, device=x.device)
        if axis in map_:
            start = starts[..., list(map_).index(axis)]
            last = x.shape[axis] - sizes[axis]
            is_inside = is_inside & _over(((start >= 0) & (start <= last)), len(lengths))
            place = place + _over(start.clamp(0, last), len(lengths))
        if axis in batching:
            shape = [1] * (ndim + len(lengths))
            shape[batching[axis]] = x.shape[axis]
            place = place + torch.arange(x.shape[axis], device=x.device).reshape(shape)
        if axis not in gone:
            shape = [1] * (ndim + len(lengths))
            shape[ndim + offset], offset = sizes[axis], offset + 1
            place = place + torch.arange(sizes[axis], device=x.device).reshape(shape)
        places.append(place)
    return tuple(places), is_inside


def _over(x: Tensor, axes: int) -> Tensor:
    return x.reshape([*x.shape, *[1] * axes])


def _to_offsets(x: Tensor, offset_dims: Axes, batch_axes: int) -> Tensor:
    """Move the axes of slices, which are behind those of the batch, to their places in the result."""
    batch, offsets = iter(range(batch_axes)), iter(range(batch_axes, x.ndim))
    order = [next(offsets) if axis in offset_dims else next(batch) for axis in range(x.ndim)]
    return x.permute(order)


# What a recorder adds for loops.


def _index(x: Tensor, *, index: int) -> Tensor:
    return x[index]


def _stack(*arrays: Tensor) -> Tensor:
    return torch.stack(arrays)


_ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(torch, name) for name in ("abs", "sqrt", "rsqrt", "exp", "exp2", "log", "log1p", "expm1")},
    **{name: getattr(torch, name) for name in ("tanh", "sin", "cos", "tan", "sinh", "cosh", "asin", "acos", "atan")},
    **{name: getattr(torch, name) for name in ("asinh", "acosh", "atanh", "atan2", "floor", "ceil", "sign", "neg")},
    **{
        name: getattr(torch, name) for name in ("add", "sub", "mul", "square", "erf", "erfc", "real", "imag", "complex")
    },
    **{name: getattr(torch, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "erf_inv": torch.erfinv,
    "logistic": torch.sigmoid,
    "cbrt": lambda x: torch.sign(x) * x.abs() ** (1 / 3),
    "div": _divide,
    "rem": torch.fmod,
    "pow": torch.pow,
    "max": torch.maximum,
    "min": torch.minimum,
    "is_finite": torch.isfinite,
    "and": torch.bitwise_and,
    "or": torch.bitwise_or,
    "xor": torch.bitwise_xor,
    "not": torch.bitwise_not,
    "conj": torch.conj_physical,
    "clamp": lambda low, x, high: torch.minimum(torch.maximum(x, low), high),
    "select_n": _select_n,
    "stop_gradient": torch.detach,
    **{name: lambda x: x for name in ("copy", "copy_p", "device_put", "reduce_precision", "optimization_barrier")},
}

LAX_RULES: dict[str, Rule] = {
    **{name: _elementwise(function) for name, function in _ELEMENTWISE.items()},
    "integer_pow": _integer_pow,
    "round": _round,
    "convert_element_type": _convert,
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast_in_dim,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "rev": _rev,
    "tile": _tile,
    "concatenate": _concatenate,
    "split": _split,
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "reduce_sum": _reduce(lambda x, axes: x.sum(axes)),
    "reduce_max": _reduce(lambda x, axes: x.amax(axes)),
    "reduce_min": _reduce(lambda x, axes: x.amin(axes)),
    "reduce_prod": _reduce(_product),
    "reduce_and": _reduce(lambda x, axes: functools.reduce(torch.all, sorted(axes, reverse=True), x)),
    "reduce_or": _reduce(lambda x, axes: functools.reduce(torch.any, sorted(axes, reverse=True), x)),
    "argmax": _arg(torch.argmax),
    "argmin": _arg(torch.argmin),
    "cumsum": _cumulate(torch.cumsum),
    "cumprod": _cumulate(torch.cumprod),
    "cummax": _cumulate(lambda x, axis: x.cummax(axis).values),
    "cummin": _cumulate(lambda x, axis: x.cummin(axis).values),
    "cumlogsumexp": _cumulate(torch.logcumsumexp),
    "reduce_window_sum": _window(lambda x, axes: x.sum(axes), 0.0),
    "reduce_window_max": _window(lambda x, axes: x.amax(axes), -math.inf),
    "reduce_window_min": _window(lambda x, axes: x.amin(axes), math.inf),
    "sort": _sort,
    "top_k": _top_k,
    "gather": _gather,
    "scatter": _scatter(None),
    "scatter-add": _scatter("sum"),
    "scatter-mul": _scatter("prod"),
    "scatter-min": _scatter("amin"),
    "scatter-max": _scatter("amax"),
    "index": _index,
    "stack": _stack,
}
