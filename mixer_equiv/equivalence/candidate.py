"""`Candidate`: a model that is not ours, run on weights and images of our choice and searched for a Mixer."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from mixer_equiv.arrays import DTYPES, flatten, require, to_numpy, to_torch, unflatten
from mixer_equiv.checkpoint import Checkpoint
from mixer_equiv.convert import relabel
from mixer_equiv.equivalence.found import Found
from mixer_equiv.equivalence.mapping import find_mixer
from mixer_equiv.equivalence.official import official_programs
from mixer_equiv.equivalence.trace import Trace
from mixer_equiv.errors import MixerEquivError
from mixer_equiv.layouts import LINEN, NEUTRAL

Taps = dict[str, np.ndarray]

# How many images a model is searched with: more than one, so that none is taken for all; a model with
# a loop over images is the official one for one alone.
BATCHES = (2, 1)

# The seed of parameters that the official model does not have.
DRAWN = 9
Draw = Callable[[str, tuple[int, ...]], np.ndarray]


@dataclasses.dataclass(eq=False)
class Candidate:
    """A model, how it is recorded, and the Mixer that was found in it.

    `record(images, draw, dtype, every)` runs it on images (batch, height, width, channels) with parameters
    drawn by name and shape, keeping `every` value or the outputs alone. `own` are its own parameters by
    name, and `put` gives it others. `differentiate(images, draw, output, cotangent)` gives the gradients,
    by name, of the sum of an output times a cotangent. `in_training(images, draw)` gives its outputs in
    train mode, by their paths, where it has one; `options` are arguments that it also takes, with their
    defaults.
    """

    name: str
    framework: str
    record: Callable[[np.ndarray, Draw, Any, bool], Trace]
    own: Mapping[str, Any]
    put: Callable[[Mapping[str, np.ndarray]], None]
    differentiate: Callable[[np.ndarray, Draw, str, np.ndarray], Mapping[str, np.ndarray]]
    in_training: Callable[[np.ndarray, Draw], Mapping[str, np.ndarray]] | None = None
    options: tuple[str, ...] = ()

    def trace(self, images: np.ndarray, draw: Draw, dtype: Any = np.float64, *, every: bool = True) -> Trace:
        """A recorded run. Raises `MixerEquivError` where the model raises or returns no array."""
        with np.errstate(all="ignore"):
            trace = self.record(images, draw, dtype, every)
        if not trace.outputs:
            raise MixerEquivError(f"{self.name} returned no array; a Mixer gives logits (batch, classes)")
        return trace

    def find(self, image: tuple[int, int, int], seed: int) -> Found:
        """The Mixer in it, for images of (channels, height, width), found alike with two seeds.

        Two images at a time, or one where that alone gives a Mixer.
        """
        best = self._find_once(image, seed, BATCHES[0], thorough=False)
        if not best.is_settled:
            other = self._find_once(image, seed, BATCHES[1], thorough=False)
            best = other if other.is_settled or len(other.known) > len(best.known) else best
        if not best.is_settled:
            best = self._find_once(image, seed, best.batch)
        if best.is_whole and best.batch == 1 and not self._takes_images_apart(image, seed, best.output):
            reason = f"what {self.name} computes for an image depends on the other images of its batch"
            return best.but(reason)
        if not best.is_whole or best.is_by_convention:
            return best  # running it on other weights, beside a model of its config, is the second opinion
        again = self._find_once(image, seed + 1, best.batch)
        if (again.layout, again.deviations, again.config) != (best.layout, best.deviations, best.config):
            reason = f"{self.name} is one thing with some weights and another with others"
            return best.but(reason)
        return best

    def _find_once(self, image: tuple[int, int, int], seed: int, batch: int, *, thorough: bool = True) -> Found:
        images = self._images(image, seed, batch)
        trace = self.trace(images, generic(seed))
        found = find_mixer(trace, images, self.name, self.framework, thorough=thorough)
        if not found.is_whole:
            return found
        notices = [f"it also takes {', '.join(self.options)}, left as given here"] if self.options else []
        expected = trace.values[trace.outputs[found.output]].array
        if not self._same_in_training(images, generic(seed), found.output, expected):
            notices.append(
                "in train mode it computes something else, as with dropout, stochastic depth or BatchNorm; "
                "what is verified is eval mode"
            )
        return dataclasses.replace(found, notices=(*found.notices, *notices))

    def _takes_images_apart(self, image: tuple[int, int, int], seed: int, output: str) -> bool:
        """Whether an image's output is the same beside another image, if the model takes two at all."""
        images = self._images(image, seed, 2)
        alone = self.trace(images[:1], generic(seed))
        try:
            both = self.trace(images, generic(seed))
        except MixerEquivError:
            return True
        expected = alone.values[alone.outputs[output]].array.reshape(-1)
        found = both.values[both.outputs[output]].array.reshape(-1)[: expected.size] if output in both.outputs else ()
        return len(found) == expected.size and np.allclose(found, expected, 1e-9, 1e-9)

    def _images(self, image: tuple[int, int, int], seed: int, batch: int) -> np.ndarray:
        channels, height, width = image
        return np.random.default_rng([seed, 2]).standard_normal((batch, height, width, channels))

    def _same_in_training(self, images: np.ndarray, draw: Draw, output: str, expected: np.ndarray) -> bool:
        if self.in_training is None:
            return True
        try:
            made = self.in_training(images, draw).get(output)
        except MixerEquivError:  # it takes more there, such as labels
            return False
        return made is not None and made.shape == expected.shape and np.allclose(made, expected, 1e-9, 1e-9)

    def drawn(self, found: Found) -> dict[str, np.ndarray]:
        """Canonical weights that it has with random parameters of its own, where these are not official ones."""
        assert found.sources is not None
        assert found.config is not None
        trace = self.trace(np.zeros((found.batch, *found.image_hw, found.in_channels)), generic(DRAWN))
        bindings = LINEN.bindings(found.config.num_blocks, head=found.config.num_classes > 0)
        drawn = {}
        for name, binding in bindings.items():
            neutral = NEUTRAL.get(name.rpartition("/")[2], 0)
            axes = tuple(binding.row.canonical_axes.split())
            drawn[name] = found.sources[name].array(trace, axes, neutral)
        return drawn

    def taps(self, found: Found, weights: Mapping[str, np.ndarray], images: np.ndarray, dtype: Any) -> Taps:
        """The stages of a run on canonical weights, each in the official model's order of elements.

        Where it has no layout, the weights must be those that it has `drawn`.
        """
        assert found.config is not None
        arrays = {} if found.layout is None else stacked(relabel(weights, LINEN, found.layout, found.config))
        others = generic(DRAWN)  # also for parameters that no official model has

        def given(name: str, shape: tuple[int, ...]) -> np.ndarray:
            return arrays[name] if name in arrays else others(name, shape)

        parts = []
        for start in range(0, len(images), found.batch):
            part = images[start : start + found.batch]
            padded = np.concatenate([part, np.repeat(part[-1:], found.batch - len(part), axis=0)])
            every = np.dtype(dtype) == np.float64
            trace = self.trace(padded, given, dtype, every=every)
            stages = self._stages(found, trace, every)
            parts.append({name: tap[: len(part)].astype(dtype) for name, tap in stages.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def gradients(
        self, found: Found, arrays: Mapping[str, np.ndarray], images: np.ndarray, cotangent: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Gradients by the names of the layout, of the sum of the output times `cotangent`, one image at a time."""
        given, others = stacked(arrays), generic(DRAWN)

        def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
            return given[name] if name in given else others(name, shape)

        total: dict[str, np.ndarray] = {}
        for image, row in zip(images, cotangent, strict=True):
            made = self.differentiate(image[None], draw, found.output, row[None])
            for name, array in arrays.items():
                total[name] = total.get(name, 0.0) + np.asarray(_part(made, name)).reshape(array.shape)
        return total

    def _stages(self, found: Found, trace: Trace, every: bool) -> Taps:
        """The taps of a run, or the last of them alone."""
        assert found.config is not None
        if every and len(trace.values) != found.num_values:
            raise MixerEquivError(f"{self.name} takes other steps on other weights, so its stages cannot be told")
        taps = {stage: tap.of(trace.values[tap.number].array) for stage, tap in found.taps.items() if every}
        output = trace.values[trace.outputs[found.output]].array
        last = list(official_programs(found.config.num_blocks)[-2 if found.config.num_classes else -1].stages)[-1]
        taps[last] = output.reshape(found.batch, -1)
        return taps

    def checkpoint(self, found: Found) -> Checkpoint:
        """Its own weights, in the layout found."""
        assert found.layout is not None
        assert found.config is not None
        wanted = found.layout.parameters(found.config.num_blocks)
        arrays = {name: to_numpy(name, _part(self.own, name)) for name in wanted}
        return Checkpoint(arrays, found.layout, found.config, None, True, self.name)


def _part(own: Mapping[str, Any], name: str) -> Any:
    """A parameter, or the part "kernels[3]" of one."""
    whole, *places = re.split(r"\[(\d+)\]", name)
    part = own[whole]
    for place in places:
        part = part[int(place)] if place else part
    return part


def stacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by name, with those called "kernels[0]", "kernels[1]" in one called "kernels"."""
    result: dict[str, Any] = {}
    for name, array in arrays.items():
        part = re.fullmatch(r"(.*)\[(\d+)\]", name)
        if part:
            result.setdefault(part[1], {})[int(part[2])] = array
        else:
            result[name] = array
    whole = {n: np.stack([a[i] for i in sorted(a)]) if isinstance(a, dict) else a for n, a in result.items()}
    return stacked(whole) if any(name.endswith("]") for name in whole) else whole


def generic(seed: int) -> Draw:
    """Random values that no two parameters have in common, of sizes that keep activations near 1.

    Each depends on the seed and the parameter's name alone.
    """

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([seed, *name.encode()])
        if len([size for size in shape if size > 1]) < 2:
            return rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)
        fan = max(shape[0], int(np.prod(shape[1:])))
        return rng.standard_normal(shape) / np.sqrt(fan)

    return draw


def torch_candidate(module: Any, name: str) -> Candidate:
    """Any `torch.nn.Module` that takes images (batch, channels, height, width)."""
    torch = require("torch", "torch", "verifying a torch module")
    if isinstance(module, torch.jit.ScriptModule):
        raise MixerEquivError(
            f"{name} was made by torch.jit, which runs it where it cannot be followed; give the module it was made of"
        )
    from mixer_equiv.equivalence.record_torch import gradients, outputs_in_training, record, unlisted

    dtypes = {numpy: getattr(torch, name) for name, numpy in DTYPES.items()}

    def run(images: np.ndarray, draw: Draw, dtype: Any, every: bool) -> Trace:
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        with _told(name):
            wanted = dtypes[np.dtype(dtype)]
            return record(module, (batch,), draw, names=own, listed=listed, dtype=wanted, every=every)

    listed = dict(module.named_parameters())
    own = {**listed, **unlisted(module)}

    def put(arrays: Mapping[str, np.ndarray]) -> None:
        with torch.no_grad():
            for key, array in arrays.items():
                own[key].copy_(to_torch(array).reshape(own[key].shape))

    def differentiate(images: np.ndarray, draw: Draw, output: str, cotangent: np.ndarray) -> dict[str, np.ndarray]:
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        with _told(name):
            return gradients(module, batch, draw, own, output, cotangent)

    def in_training(images: np.ndarray, draw: Draw) -> dict[str, np.ndarray]:
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        with _told(name):
            return outputs_in_training(module, batch, draw, own)

    return Candidate(name, "torch", run, own, put, differentiate, in_training, _options(module.forward))


def _options(function: Callable[..., Any]) -> tuple[str, ...]:
    """Arguments beside the first that have defaults, as "name=default"."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ()
    return tuple(f"{p.name}={p.default!r}" for p in parameters[1:] if p.default is not inspect.Parameter.empty)


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """What a model raises becomes one message of ours."""
    try:
        yield
    except MixerEquivError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())
        raise MixerEquivError(f"{name} raised {type(error).__name__} when it was run: {what}") from error


def linen_candidate(module: Any, name: str, image: tuple[int, int, int]) -> Candidate:
    """Any `flax.linen.Module` that takes images (batch, height, width, channels)."""
    jax = require("jax", "flax", "verifying a Flax module")
    from mixer_equiv.equivalence.record_jax import gradients, record

    channels, height, width = image
    with _told(name):
        given = jax.ShapeDtypeStruct((1, height, width, channels), np.float32)
        made = jax.eval_shape(module.init, jax.random.key(0), given)
    others = [key for key in made if key != "params"]
    if others:
        raise MixerEquivError(f"{name} has the collections {', '.join(others)} beside params, which no Mixer has")
    shapes = {key: tuple(leaf.shape) for key, leaf in flatten(made.get("params", {}))}

    def apply(params: Mapping[str, Any], batch: Any) -> Any:
        return module.apply({"params": unflatten(params)}, batch)

    def run(images: np.ndarray, draw: Draw, dtype: Any, every: bool) -> Trace:
        with _told(name):
            return record(apply, shapes, images, draw, dtype, every=every)

    def differentiate(images: np.ndarray, draw: Draw, output: str, cotangent: np.ndarray) -> Mapping[str, np.ndarray]:
        with _told(name):
            return gradients(apply, shapes, images, draw, output, cotangent)

    options = _options(module.__call__)
    return Candidate(name, "flax", run, {}, lambda arrays: None, differentiate, options=options)


def nnx_candidate(module: Any, name: str) -> Candidate:
    """Any `flax.nnx.Module` that takes images (batch, height, width, channels)."""
    nnx = require("flax.nnx", "flax", "verifying an nnx module")
    from mixer_equiv.equivalence.record_jax import gradients, outputs, record

    graph, params, rest = nnx.split(module, nnx.Param, ...)
    own = dict(flatten(nnx.to_pure_dict(params)))
    shapes = {key: tuple(leaf.shape) for key, leaf in own.items()}

    def applied(given: Mapping[str, Any], batch: Any, *, training: bool) -> Any:
        state = params.copy() if hasattr(params, "copy") else params
        nnx.replace_by_pure_dict(state, _as_pure(given))
        made = nnx.merge(graph, state, rest)
        (made.train if training else made.eval)()
        return made(batch)

    apply, apply_in_training = partial(applied, training=False), partial(applied, training=True)

    def run(images: np.ndarray, draw: Draw, dtype: Any, every: bool) -> Trace:
        with _told(name):
            return record(apply, shapes, images, draw, dtype, every=every)

    def _as_pure(given: Mapping[str, Any]) -> Any:
        return jax_tree(nnx.to_pure_dict(params), given)

    def put(arrays: Mapping[str, np.ndarray]) -> None:
        state = nnx.state(module, nnx.Param)
        given = {
            key: np.asarray(arrays[key]).astype(leaf.dtype) if key in arrays else leaf for key, leaf in own.items()
        }
        nnx.replace_by_pure_dict(state, _as_pure(given))
        nnx.update(module, state)

    def differentiate(images: np.ndarray, draw: Draw, output: str, cotangent: np.ndarray) -> Mapping[str, np.ndarray]:
        with _told(name):
            return gradients(apply, shapes, images, draw, output, cotangent)

    def in_training(images: np.ndarray, draw: Draw) -> dict[str, np.ndarray]:
        with _told(name):
            return outputs(apply_in_training, shapes, images, draw)

    return Candidate(name, "flax", run, own, put, differentiate, in_training, _options(module.__call__))


def jax_tree(like: Any, given: Mapping[str, Any], prefix: str = "") -> Any:
    """Nested dicts like `like`, whose keys need not be strings, with the leaves of `given`."""
    return {
        key: jax_tree(value, given, f"{prefix}{key}/") if isinstance(value, Mapping) else given[f"{prefix}{key}"]
        for key, value in like.items()
    }


def candidate_of(model: Any, image: tuple[int, int, int]) -> Candidate:
    """The candidate that a model of torch, Flax linen or nnx is. Raises `MixerEquivError` for anything else."""
    name = type(model).__name__
    if isinstance(model, type):
        raise MixerEquivError(f"found the class {model.__name__}; give a model of it, such as {model.__name__}(...)")
    if _is_a(model, "torch.nn", "Module"):
        return torch_candidate(model, name)
    if _is_a(model, "flax.linen", "Module"):
        return linen_candidate(model, name, image)
    if _is_a(model, "flax.nnx", "Module"):
        return nnx_candidate(model, name)
    raise MixerEquivError(f"found a {type(model).__module__}.{name}; {VERIFIED}")


VERIFIED = (
    "verify takes a checkpoint, the path of one, arrays by name, a model of torch, Flax linen or nnx, one of ours "
    "(flax, nnx, torch, reference; with a variant: 'flax:B/16'), or the place of a model: path/to/file.py:Name, "
    "package.module:Name, timm:NAME"
)


def is_model(value: Any) -> bool:
    """Whether `value` is a model of torch, Flax linen or nnx; no framework is imported to find out."""
    return any(_is_a(value, module, "Module") for module in ("torch.nn", "flax.linen", "flax.nnx"))


def _is_a(value: Any, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))
