"""Conversion is a bijection that commutes with all that is done to weights; each law with faults that break it.

Weights of any bits, NaN payloads, -0, denormals and infinities, are compared here and nowhere else:
what conversion does to them can be told from the arrays alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.model_functions import FLAX_FUNCTIONS, TORCH_FUNCTIONS, Arrays, ModelFunction
from mixer_equiv import Checkpoint, MixerConfig, convert
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.equivalence.judge.gradients import random_cotangent
from mixer_equiv.equivalence.judge.training import OPTIMISERS, Optimiser, steps_in_optax, steps_in_torch
from mixer_equiv.equivalence.mixer.official_program import UNOBSERVABLE
from mixer_equiv.equivalence.policy import gradient_residuals, residual
from mixer_equiv.formulation import FORMULATIONS
from mixer_equiv.layouts import LAYOUTS, LINEN, TORCH, Layout
from mixer_equiv.layouts.natural import natural
from mixer_equiv.random_weights import draw_images, draw_params
from mixer_equiv.testing.strategies import DTYPES, FEW_CONFIGS, configs, layouts, params
from tests.support.mixers import COMPILED, FUZZ, POLICY, SEEDS, SOME_FLAX
from tests.support.structures import STRUCTURES, as_official

pytestmark = [
    pytest.mark.usefixtures("full_precision"),
    pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning"),
]

Converter = Callable[[Arrays, Layout, Layout, MixerConfig], dict[str, np.ndarray]]
NATURAL = st.sampled_from([f for f in FORMULATIONS if f.tokens != "depthwise_conv"]).map(natural)
ANY_LAYOUT = st.one_of(layouts(writable=True), NATURAL)


def converted(arrays: Arrays, source: Layout, target: Layout, config: MixerConfig) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint.from_arrays(dict(arrays), layout=source, config=config)
    return dict(convert(checkpoint, to=target).arrays)


# Laws of the arrays


def is_a_bijection(convert: Converter, params: Arrays, config: MixerConfig, layout: Layout) -> None:
    """Both ways back to the same bits, and on the way every number in one place and no other."""
    there = convert(params, LINEN, layout, config)
    back = convert(there, layout, LINEN, config)
    assert not bit_differences(back, params)
    assert not bit_differences(convert(back, LINEN, layout, config), there)
    numbered = numbers(params)
    places = np.concatenate([array.reshape(-1) for array in convert(numbered, LINEN, layout, config).values()])
    assert np.array_equal(np.sort(places), np.arange(len(places)))
    assert len(places) == sum(array.size for array in params.values())


def numbers(params: Arrays) -> dict[str, np.ndarray]:
    """Arrays of these shapes that hold 0, 1, 2 and so on, none twice."""
    ends = np.cumsum([0, *(array.size for array in params.values())])
    return {
        name: np.arange(start, start + array.size, dtype=np.float64).reshape(array.shape)
        for (name, array), start in zip(params.items(), ends[:-1], strict=True)
    }


def is_idempotent(convert: Converter, params: Arrays, config: MixerConfig, layout: Layout) -> None:
    """What is in a layout already stays as it is."""
    there = convert(params, LINEN, layout, config)
    assert not bit_differences(convert(there, layout, layout, config), there)


def composes(convert: Converter, params: Arrays, config: MixerConfig, layout: Layout, other: Layout) -> None:
    """By way of any layout the result is the same."""
    straight = convert(params, LINEN, other, config)
    assert not bit_differences(convert(convert(params, LINEN, layout, config), layout, other, config), straight)


@st.composite
def specials(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], MixerConfig]:
    config = draw(configs(allow_headless=True))
    return draw(params(config, style="special", dtype=draw(st.sampled_from(DTYPES)))), config


@given(drawn=specials(), layout=ANY_LAYOUT)
def test_conversion_is_a_bijection(drawn: Any, layout: Layout) -> None:
    is_a_bijection(converted, *drawn, layout)


@given(drawn=specials(), layout=ANY_LAYOUT)
def test_conversion_to_the_same_layout_changes_nothing(drawn: Any, layout: Layout) -> None:
    is_idempotent(converted, *drawn, layout)


@given(drawn=specials(), layout=ANY_LAYOUT, other=ANY_LAYOUT)
def test_conversions_compose(drawn: Any, layout: Layout, other: Layout) -> None:
    composes(converted, *drawn, layout, other)


# Laws of what weights do

OFFICIAL = tuple(
    config.replace(activation="gelu_tanh")
    for config in (FEW_CONFIGS if FUZZ else FEW_CONFIGS[:1])
    if config.num_classes
)


@cache
def structure(layout: str, config: MixerConfig) -> torch.nn.Module:
    """Somebody's module, which computes what the official model does."""
    return as_official(STRUCTURES[layout](config)).double().eval()


def own_gradients(layout: str, config: MixerConfig, state: Arrays, images: np.ndarray, cotangent: np.ndarray) -> Any:
    """Gradients of somebody's module by its own names."""
    leaves = {name: torch.from_numpy(array).requires_grad_() for name, array in state.items()}
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    outputs = torch.func.functional_call(structure(layout, config), leaves, (pixels,), strict=True)
    made = torch.autograd.grad(outputs, list(leaves.values()), torch.from_numpy(cotangent))
    return {name: gradient.numpy() for name, gradient in zip(leaves, made, strict=True)}


def commutes_with_gradients(convert: Converter, config: MixerConfig, seed: int, style: str, layout: str) -> None:
    """Gradients of the port are the official gradients, converted."""
    params, images = draw_params(config, seed, style), draw_images(config, seed + 1)
    cotangent = random_cotangent(config, len(images), seed)
    _, official = FLAX_FUNCTIONS[0].gradients(config, params, images, cotangent)
    state = converted(params, LINEN, LAYOUTS[layout], config)
    theirs = own_gradients(layout, config, state, images, cotangent)
    expected = convert(official, LINEN, LAYOUTS[layout], config)
    assert theirs.keys() == expected.keys()
    assert max(gradient_residuals(theirs, expected).values()) <= POLICY.gradients


def commutes_with_steps(
    optimiser: Optimiser,
    of_torch: Optimiser,
    programs: tuple[ModelFunction, ModelFunction],
    config: MixerConfig,
    seed: int,
) -> None:
    """Five steps in torch on converted weights are the converted weights after five steps in Flax."""
    params, images = draw_params(config, seed), draw_images(config, seed + 1)
    cotangent = random_cotangent(config, len(images), seed)
    cotangent /= cotangent.size
    start = converted(params, LINEN, TORCH, config)
    there = steps_in_torch(start, by_torch(programs[0], config, images, cotangent), 5, of_torch)
    ours = converted(there, TORCH, LINEN, config)
    theirs = steps_in_optax(params, by_flax(programs[1], config, images, cotangent), 5, optimiser)
    unseen = {UNOBSERVABLE.format(i=i) for i in range(config.num_blocks)}
    distances = {name: residual(ours[name], theirs[name]) for name in params if name not in unseen}
    assert max(distances.values()) <= getattr(POLICY, optimiser.threshold), distances


def by_flax(program: ModelFunction, config: MixerConfig, images: np.ndarray, cotangent: np.ndarray) -> Any:
    return lambda params: program.gradients(config, params, images, cotangent)[1]


def by_torch(program: ModelFunction, config: MixerConfig, images: np.ndarray, cotangent: np.ndarray) -> Any:
    def gradient(state: Arrays) -> Arrays:
        params = relabel(state, TORCH, LINEN, config)
        return relabel(program.gradients(config, params, images, cotangent)[1], LINEN, TORCH, config)

    return gradient


@pytest.mark.parametrize("layout", STRUCTURES)
@given(config=st.sampled_from(OFFICIAL), seed=SEEDS, style=st.sampled_from(["normal", "heavy_tailed"]))
def test_conversion_commutes_with_gradients(layout: str, config: MixerConfig, seed: int, style: str) -> None:
    commutes_with_gradients(converted, config, seed, style, layout)


@given(
    optimiser=st.sampled_from(OPTIMISERS),
    torch_program=st.sampled_from(TORCH_FUNCTIONS),
    flax_program=st.sampled_from(FLAX_FUNCTIONS if FUZZ else SOME_FLAX),
    config=st.sampled_from(COMPILED),
    seed=SEEDS,
)
def test_conversion_commutes_with_steps_of_sgd_and_adamw(
    optimiser: Optimiser, torch_program: ModelFunction, flax_program: ModelFunction, config: MixerConfig, seed: int
) -> None:
    commutes_with_steps(optimiser, optimiser, (torch_program, flax_program), config, seed)


# Faults that break them


def through(change: Callable[[np.ndarray], Any]) -> Converter:
    """Conversion with something done to every array."""

    def faulty(arrays: Arrays, source: Layout, target: Layout, config: MixerConfig) -> dict[str, np.ndarray]:
        made = converted(arrays, source, target, config)
        with np.errstate(all="ignore"):
            return {name: np.asarray(change(array)).astype(array.dtype) for name, array in made.items()}

    return faulty


def one_number_twice(arrays: Arrays, source: Layout, target: Layout, config: MixerConfig) -> dict[str, np.ndarray]:
    made = converted(arrays, source, target, config)
    name = next(iter(made))
    made[name] = np.full_like(made[name], made[name].reshape(-1)[0])
    return made


def leaving_square_kernels(arrays: Arrays, source: Layout, target: Layout, config: MixerConfig) -> Any:
    """Conversion in which square kernels are not turned."""
    made = converted(arrays, source, target, config)
    square = {name for name, array in made.items() if array.ndim == 2 and len(set(array.shape)) == 1}
    return {name: array.T.copy() if name in square else array for name, array in made.items()}


SQUARE = MixerConfig(
    num_classes=6, num_blocks=1, patch_size=1, image_size=(2, 3), hidden_dim=6, tokens_mlp_dim=6, channels_mlp_dim=6
)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a + 0,
        lambda a: np.where(np.isnan(a), np.nan, a),
        lambda a: a.astype("float16"),
        lambda a: jnp.asarray(a) * 1,
    ],
    ids=["a zero added", "NaN made NaN", "rounded on the way", "by JAX's arithmetic"],
)
def test_what_changes_a_bit_is_no_bijection(change: Callable[[np.ndarray], Any]) -> None:
    special = draw_params(FEW_CONFIGS[0], 0, "special", np.float32)
    with pytest.raises(AssertionError):
        is_a_bijection(through(change), special, FEW_CONFIGS[0], TORCH)


def test_what_loses_a_number_is_no_bijection() -> None:
    params = draw_params(FEW_CONFIGS[0], 0)
    with pytest.raises(AssertionError):
        is_a_bijection(one_number_twice, params, FEW_CONFIGS[0], TORCH)


def test_what_goes_by_shapes_is_not_idempotent_and_does_not_compose() -> None:
    params = draw_params(SQUARE, 0)
    with pytest.raises(AssertionError):
        is_idempotent(leaving_square_kernels, params, SQUARE, TORCH)
    with pytest.raises(AssertionError):
        composes(leaving_square_kernels, params, SQUARE, TORCH, LAYOUTS["timm"])


@pytest.mark.parametrize("layout", STRUCTURES)
def test_gradients_turned_as_weights_are_not_do_not_commute(layout: str) -> None:
    with pytest.raises(AssertionError):
        commutes_with_gradients(leaving_square_kernels, SQUARE, 0, "normal", layout)


SGD, ADAMW = OPTIMISERS
OTHER_STEPS: dict[str, tuple[Optimiser, Callable[[Any, Any], Any]]] = {
    "another learning rate": (SGD, lambda optim, own: optim.SGD(own, lr=1e-2 + 1e-8, momentum=0.9)),
    "momentum damped": (SGD, lambda optim, own: optim.SGD(own, lr=1e-2, momentum=0.9, dampening=0.1)),
    "decay in the gradient": (ADAMW, lambda optim, own: optim.Adam(own, lr=1e-3, weight_decay=1e-2)),
    "another eps": (ADAMW, lambda optim, own: optim.AdamW(own, lr=1e-3, eps=1e-7, weight_decay=1e-2)),
    "optax's default decay": (ADAMW, lambda optim, own: optim.AdamW(own, lr=1e-3, weight_decay=1e-4)),
}


@pytest.mark.parametrize("fault", OTHER_STEPS)
def test_other_steps_do_not_commute(fault: str) -> None:
    optimiser, other = OTHER_STEPS[fault]
    run = partial(commutes_with_steps, optimiser, config=FEW_CONFIGS[0], seed=0)
    programs = TORCH_FUNCTIONS[0], SOME_FLAX[0]
    run(optimiser, programs)
    with pytest.raises(AssertionError):
        run(dataclasses.replace(optimiser, torch=other), programs)
