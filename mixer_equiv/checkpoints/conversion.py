"""Convert weights from any layout to any other, strictly and bit for bit.

Knows no file. Start at `convert`; `relabel` is the part that moves arrays.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from einops import rearrange

from mixer_equiv.arrays.lazy import Deferred, LazyArrays, Spec, as_lazy, materialize
from mixer_equiv.checkpoints.checkpoint import Checkpoint, as_checkpoint
from mixer_equiv.checkpoints.convention_warnings import convention_warnings
from mixer_equiv.checkpoints.differences import same_bits
from mixer_equiv.checkpoints.validate import check_writable, matching
from mixer_equiv.config import MixerConfig
from mixer_equiv.errors import MAX_LISTED, ConventionWarning, InexpressibleError
from mixer_equiv.layouts import NEUTRAL, Binding, Conventions, Layout, get_layout

if TYPE_CHECKING:
    import torch


@overload
def convert(
    params: Checkpoint,
    *,
    to: str | Layout,
    from_: str | Layout | None = None,
    config: MixerConfig | None = None,
    allow_missing: Collection[str] = (),
    ignore: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
    copy: bool = True,
) -> Checkpoint: ...
@overload
def convert(
    params: Mapping[str, Any],
    *,
    to: str | Layout,
    from_: str | Layout | None = None,
    config: MixerConfig | None = None,
    allow_missing: Collection[str] = (),
    ignore: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
    copy: bool = True,
) -> Any: ...
def convert(
    params: Mapping[str, Any],
    *,
    to: str | Layout,
    from_: str | Layout | None = None,
    config: MixerConfig | None = None,
    allow_missing: Collection[str] = (),
    ignore: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
    copy: bool = True,
) -> Any:
    """Convert a Mixer's weights to the layout `to`, every bit kept.

    `params` are a `Checkpoint`, or arrays of NumPy, torch or JAX by name, flat or nested. Their
    layout is detected unless `from_` names it. The config is inferred unless it is given; a given one
    also says, by its activation and eps, what the weights were trained with. Every source array is
    used once and every target filled once. `allow_missing` lists globs, such as "head/*", of
    parameters that may be absent or of another shape, and are then left out. `ignore` and `rename` are
    those of `load`: globs of names to leave out, and parts of names with what they are called instead.
    Without `copy`, arrays whose axes merely change places share the memory of `params`. Arrays of a lazy checkpoint are
    converted when they are used, and share nothing.

    Returns a `Checkpoint` for a `Checkpoint`, and else the form that the target's users expect. For a
    Flax layout that is the nested dict that `module.apply({"params": ...})` takes, of NumPy arrays,
    since JAX would truncate float64 where x64 is off. For a torch layout it is a `Checkpoint`: a
    mapping that `load_state_dict` takes, whose tensors are made when they are read, so that torch is
    not imported before.

    Raises `ConversionError` with everything missing, unexpected or mis-shaped, and `LayoutError` for
    an unknown layout. Warns (`ConventionWarning`) if the target's code computes something else than
    the weights were trained with, and says what to set.
    """
    target = get_layout(to)
    source = as_checkpoint(params, layout=from_, config=config, ignore=ignore, rename=rename)
    result = _convert(source, target, allow_missing, copy)
    for message in convention_warnings(*expected_by(source), target):
        warnings.warn(message, ConventionWarning, stacklevel=2)
    in_kind = isinstance(params, Checkpoint) or target.framework == "torch"
    return result if in_kind else result.params


def flax_to_torch(
    params: Mapping[str, Any], *, config: MixerConfig | None = None, allow_missing: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """Convert official Flax params, nested or flat, to the state_dict of `mixer_equiv.models.torch.MlpMixer`."""
    return convert(as_checkpoint(params, config=config), to="torch", allow_missing=allow_missing).params


def torch_to_flax(
    state_dict: Mapping[str, Any], *, config: MixerConfig | None = None, allow_missing: Collection[str] = ()
) -> dict[str, Any]:
    """Convert a torch state_dict in any known layout to the nested params of the official Flax model."""
    return convert(as_checkpoint(state_dict, config=config), to="linen", allow_missing=allow_missing).params


def _convert(source: Checkpoint, target: Layout, allow_missing: Collection[str], copy: bool) -> Checkpoint:
    check_writable(target)
    present, notes = source.check(target=target, allow_missing=allow_missing)
    config = source.config
    wanted = target.bindings(config.num_blocks)
    unwanted = [name for name in present if name not in wanted and not present[name].is_absent]
    if not matching(allow_missing, source.layout.bindings(config.num_blocks)).issuperset(unwanted):
        reasons = [f"it has no {name}" for name in unwanted]
        advice = "leave the head out with drop_head, --drop-head or allow_missing=['head/*']"
        raise _inexpressible(target, reasons, advice)
    notes += [f"left out: {present.pop(name).foreign}, which {target.name} does not have" for name in unwanted]
    if not any(binding.row.in_head for binding in present.values()):
        config = config.replace(num_classes=0)
    lazy = relabel_lazily(as_lazy(source.arrays), source.layout, target, config, only=present)
    arrays = materialize(lazy, source.arrays, copy=copy)
    conventions, assumed_from = expected_by(source)
    config = config.replace(activation=conventions.activation, layer_norm_eps=conventions.layer_norm_eps)
    return dataclasses.replace(
        source,
        arrays=arrays,
        layout=target,
        config=config,
        trained_with=conventions,
        config_is_stated=True,
        notes=(*source.notes, *notes),
        assumed_from=assumed_from,
        given=(),
    )


class ExpectedConventions(NamedTuple):
    """The conventions that weights expect, and the layout whose code computes them, where nothing else tells."""

    conventions: Conventions
    assumed_from: str | None


def expected_by(source: Checkpoint) -> ExpectedConventions:
    """The conventions that a checkpoint's weights expect: those of training, or else those of its layout's code."""
    if source.trained_with is not None:
        return ExpectedConventions(source.trained_with, source.assumed_from)
    return ExpectedConventions(source.layout.computes, source.layout.name)


def relabel(
    arrays: Mapping[str, np.ndarray],
    source: Layout,
    target: Layout,
    config: MixerConfig,
    *,
    only: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """Bring arrays to the names and axes of `target`, as new contiguous arrays of the same numbers.

    `arrays` have the names and shapes of `source`. A parameter that they lack is left out, and so is,
    if `only` is given, one that is not among its canonical names. An array that the source has for
    several parameters is repeated; a parameter that its code does not have gets the neutral value,
    zeros or ones. Raises `InexpressibleError` where the target has one array, or none, for parameters
    that would have to coincide and do not.
    """
    lazy = relabel_lazily(as_lazy(arrays), source, target, config, only=only)
    return dict(materialize(lazy, copy=True))


def relabel_lazily(
    arrays: LazyArrays,
    source: Layout,
    target: Layout,
    config: MixerConfig,
    *,
    only: Collection[str] | None = None,
) -> LazyArrays:
    """Do what `relabel` does, array by array at each use, with strides in place of copies where these suffice.

    Arrays are read here only if the target has one array, or none, for several parameters, which must coincide.
    """
    given = source.bindings(config.num_blocks)
    result: dict[str, Deferred] = {}
    first_use: dict[str, str] = {}
    reasons = []
    for canonical, wanted in target.bindings(config.num_blocks).items():
        if canonical not in given or (only is not None and canonical not in only):
            continue
        array = _in_axes_of(wanted, given[canonical], given, arrays, config)
        if array is None:
            continue
        if wanted.is_absent:
            neutral = NEUTRAL[canonical.rpartition("/")[2]]
            if not same_bits(np.asarray(array), np.full(array.shape, neutral, array.dtype)):
                reasons.append(f"it has no {canonical}, which is not all {('zeros', 'ones')[neutral]}")
        elif wanted.foreign not in result:
            result[wanted.foreign], first_use[wanted.foreign] = array, canonical
        elif not same_bits(np.asarray(array), np.asarray(result[wanted.foreign])):
            reasons.append(f"{wanted.foreign} is both {first_use[wanted.foreign]} and {canonical}, which differ")
    if target.num_blocks not in (None, config.num_blocks) and target.is_tied:
        reasons.append(f"it is of {target.num_blocks} blocks, these are weights of {config.num_blocks}")
    if reasons:
        raise _inexpressible(target, reasons)
    return LazyArrays(result)


def _in_axes_of(
    wanted: Binding,
    found: Binding,
    given: Mapping[str, Binding],
    arrays: LazyArrays,
    config: MixerConfig,
) -> Deferred | None:
    """One parameter with its axes in the wanted order, by strides; None if it is left out."""
    shape = wanted.shape(config.axis_sizes)
    if found.is_absent:
        dtype = _dtype_beside(found.canonical, given, arrays.specs)
        value = NEUTRAL[found.canonical.rpartition("/")[2]]
        return None if dtype is None else Deferred(shape, dtype, partial(np.full, shape, value, dtype))
    if found.foreign not in arrays:
        return None
    pattern = f"{found.row.foreign_axes} -> {wanted.row.foreign_axes}"
    sizes = {axis: size for axis, size in config.axis_sizes.items() if axis in found.row.axes}
    make = partial(_rearrange, arrays, found.foreign, pattern, sizes)
    return Deferred(shape, arrays.specs[found.foreign].dtype, make)


def _rearrange(arrays: LazyArrays, name: str, pattern: str, sizes: Mapping[str, int]) -> np.ndarray:
    return rearrange(arrays.strided(name), pattern, **sizes)


def _dtype_beside(canonical: str, given: Mapping[str, Binding], found: Mapping[str, Spec]) -> np.dtype | None:
    """The dtype of the same module's other parameters; None if they are left out, as a head may be."""
    module = canonical.rpartition("/")[0]
    beside = [b.foreign for b in given.values() if b.canonical.startswith(f"{module}/") and not b.is_absent]
    candidates = beside or list(found)
    return next((found[name].dtype for name in candidates if name in found), None)


def _inexpressible(target: Layout, reasons: list[str], advice: str = "") -> InexpressibleError:
    listed = [f"  {reason}" for reason in reasons[:MAX_LISTED]]
    if len(reasons) > len(listed):
        listed.append(f"  and {len(reasons) - len(listed)} more")
    listed += [advice] if advice else []
    return InexpressibleError(
        "\n".join([f"no weights of the layout {target.name} are the same function:", *listed]), reasons=reasons
    )
