"""Weights, moments and averages in a state of training: the weights are read, and a prefix chooses any others."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import serialization
from flax.training.train_state import TrainState
from flax.traverse_util import flatten_dict, unflatten_dict

from mixer_equiv import Checkpoint, ConversionError, load
from tests.support.command_line import run
from tests.support.files import changed
from tests.support.holders import OF_JAX
from tests.support.sizes import CONFIG, in_float32

TRUTH = in_float32(CONFIG, 0)
PARAMS: Any = unflatten_dict(TRUTH, sep="/")


@cache
def train_state() -> TrainState:
    """A state whose moments and averages are not the weights."""
    rng = np.random.default_rng(2)
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=optax.chain(optax.scale_by_adam(), optax.ema(0.5)))
    opt_state = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype) if leaf.ndim else leaf, state.opt_state
    )
    return state.replace(opt_state=opt_state)


# Trees in the state by the prefixes that choose them.
SETS: dict[str, Callable[[], Any]] = {
    "params": lambda: train_state().params,
    "opt_state/0/mu": lambda: train_state().opt_state[0].mu,
    "opt_state/0/nu": lambda: train_state().opt_state[0].nu,
    "opt_state/1/ema": lambda: train_state().opt_state[1].ema,
}


@pytest.mark.parametrize(
    ("holder", "prefixes"),
    [("npz", SETS), ("npz by keystr", SETS), ("msgpack", SETS), ("orbax", ["opt_state/0/mu", "opt_state/1/ema"])],
)
def test_a_prefix_chooses_among_weights_moments_and_averages(tmp_path: Path, holder: str, prefixes: Any) -> None:
    held = OF_JAX[holder](train_state(), tmp_path)
    for prefix in prefixes:
        assert changed(flatten_dict(SETS[prefix](), sep="/"), load(held, prefix=prefix).arrays) == []
    assert changed(TRUTH, load(held).arrays) == []


@pytest.mark.parametrize("prefix", ["opt_state/0/mu", "opt_state/1/ema/"])
def test_the_command_line_obeys_a_prefix_among_states_of_an_optimizer(tmp_path: Path, prefix: str) -> None:
    held = OF_JAX["msgpack"](train_state(), tmp_path)
    run("convert", held, tmp_path / "y.npz", "--prefix", prefix, "--to", "linen")
    truth = flatten_dict(SETS[prefix.rstrip("/")](), sep="/")
    assert changed(truth, load(tmp_path / "y.npz").arrays) == []


def test_moments_alone_are_read_by_the_option_that_the_error_says(tmp_path: Path) -> None:
    held = OF_JAX["msgpack"]({"opt_state": train_state().opt_state[:1]}, tmp_path)
    message = run("convert", held, tmp_path / "y.npz", status=2).stderr
    typed = shlex.split(re.search(r"\((--prefix \S+)\)", message)[1])
    run("convert", held, tmp_path / "y.npz", *typed, "--to", "linen")
    truth = flatten_dict(train_state().opt_state[0].mu, sep="/")
    assert changed(truth, load(tmp_path / "y.npz").arrays) == []


def test_a_state_is_no_tree_and_its_tree_is_read() -> None:
    with pytest.raises(ConversionError, match="found a TrainState; expected arrays by name"):
        Checkpoint.from_arrays(train_state())
    assert changed(TRUTH, Checkpoint.from_arrays(serialization.to_state_dict(train_state())).arrays) == []


@pytest.mark.parametrize("chosen", ["params", "params_ema"])
def test_averages_beside_the_weights_are_chosen_by_the_option_that_the_error_says(tmp_path: Path, chosen: str) -> None:
    sets = {"params": PARAMS, "params_ema": train_state().opt_state[1].ema}
    held = OF_JAX["msgpack"](sets, tmp_path)
    message = " ".join(run("convert", held, tmp_path / "y.npz", status=2).stderr.split())
    assert f"{chosen}/'" in message
    option = re.search(r"say which with prefix= \((--\w+)\)", message)[1]
    run("convert", held, tmp_path / "y.npz", option, chosen, "--to", "linen")
    assert changed(flatten_dict(sets[chosen], sep="/"), load(tmp_path / "y.npz").arrays) == []


def test_a_prefix_of_nothing_is_told_what_is_there_by_the_names_that_can_be_typed(tmp_path: Path) -> None:
    held = OF_JAX["npz by keystr"](train_state(), tmp_path)
    message = " ".join(run("convert", held, tmp_path / "y.npz", "--prefix", ".weights", status=2).stderr.split())
    tops = message.rpartition("at the top are ")[2].split(", ")
    assert "params" in tops
    run("convert", held, tmp_path / "y.npz", "--prefix", "params", "--to", "linen")
    assert changed(TRUTH, load(tmp_path / "y.npz").arrays) == []
