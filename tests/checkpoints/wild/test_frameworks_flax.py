"""What Flax makes of the names and axes of a Mixer, in memory and in files, is read as the weights it had.

Arrays are compared to the last bit, and the notes say what was undone. A model with its blocks in a transform computes
with these arrays what the plain one does, so that the order of blocks in them is Flax's own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import jax_utils, nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from mixer_equiv import ConversionError, convert
from mixer_equiv.layouts import Conventions
from mixer_equiv.models import flax as flax_model
from mixer_equiv.models import nnx as nnx_model
from mixer_equiv.models.numpy import MlpMixer
from tests.support.files import changed
from tests.support.holders import OF_JAX, in_npz, read
from tests.support.scripts import python
from tests.support.sizes import CONFIG, in_float32

TRUTH = in_float32(CONFIG, 0)
PARAMS: Any = unflatten_dict(TRUTH, sep="/")
FILES = [holder for holder in OF_JAX if holder != "memory"]
IMAGES = np.random.default_rng(1).normal(size=(2, *CONFIG.image_hw, CONFIG.in_channels)).astype(np.float32)


def assert_read(held: Any, note: str | None, truth: Mapping[str, np.ndarray] = TRUTH, **options: Any) -> None:
    """The weights are `truth`, and some note says so; without one, nothing was undone."""
    found = read(held, trained_with=Conventions(), **options)
    assert changed(truth, found.arrays) == []
    words = ("undone", "taken for", "changed")
    undone = [one for one in found.notes if any(word in one for word in words)]
    assert (undone == []) if note is None else any(re.search(note, one) for one in undone), found.notes


# Transforms


class MixerBlock(flax_model.MixerBlock):
    """The block as the body of a scan."""

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None, **options: Any) -> Any:
        return super().__call__(x, **options), None


class Layer(nn.Module):
    """A body of a scan around the block."""

    @nn.compact
    def __call__(self, x: jax.Array, _: Any) -> Any:
        return flax_model.MixerBlock(*DIMS)(x), None


DIMS = CONFIG.tokens_mlp_dim, CONFIG.channels_mlp_dim
SCAN: dict[str, Any] = {
    "variable_axes": {"params": 0},
    "split_rngs": {"params": True},
    "length": CONFIG.num_blocks,
}


def each(block: Any) -> Callable[[Any], Any]:
    def run_all(x: Any) -> Any:
        for _ in range(CONFIG.num_blocks):
            x = block(*DIMS)(x)
        return x

    return run_all


def lifted_scan(x: Any) -> Any:
    """A scan of a function over a block made beside it, which keeps its name."""
    return nn.scan(lambda block, x, _: (block(x), None), **SCAN)(flax_model.MixerBlock(*DIMS), x, None)[0]


def remat_scan(x: Any, **fields: Any) -> Any:
    return nn.remat_scan(flax_model.MixerBlock, lengths=(3, 4))(*DIMS, **fields)(x)


def _undone(transform: str, of: str, count: int) -> str:
    return rf"'{transform}', of {of}, was undone in {count} names, such as \S*{transform}\w*_0\b"


def _stacked(place: str) -> str:
    return rf"{place} was taken for a stack of 12 blocks, by the first axes of its arrays$"


# Blocks without names of their own, where in the params the first of them is, and what the notes then say.
BLOCKS: dict[str, tuple[Callable[[Any], Any], str, str | None]] = {
    "plain": (each(flax_model.MixerBlock), "MixerBlock_0", None),
    "remat": (each(nn.remat(flax_model.MixerBlock)), "CheckpointMixerBlock_0", _undone("Checkpoint", "nn.remat", 144)),
    "jit": (each(nn.jit(flax_model.MixerBlock)), "JitMixerBlock_0", _undone("Jit", "nn.jit", 144)),
    "jit of remat": (
        each(nn.jit(nn.remat(flax_model.MixerBlock))),
        "JitCheckpointMixerBlock_0",
        _undone("Jit", "nn.jit", 144),
    ),
    "scan": (
        lambda x: nn.scan(MixerBlock, **SCAN)(*DIMS)(x, None)[0],
        "ScanMixerBlock_0",
        _undone("Scan", "nn.scan", 12),
    ),
    "scan by name": (
        lambda x: nn.scan(MixerBlock, **SCAN)(*DIMS, name="blocks")(x, None)[0],
        "blocks",
        _stacked("blocks"),
    ),
    "scan of remat": (
        lambda x: nn.scan(nn.remat(MixerBlock), **SCAN)(*DIMS)(x, None)[0],
        "ScanCheckpointMixerBlock_0",
        _stacked("MixerBlock_0"),
    ),
    "scan of a layer": (
        lambda x: nn.scan(Layer, **SCAN)()(x, None)[0],
        "ScanLayer_0",
        _stacked("Layer_0/MixerBlock_0"),
    ),
    "scan of a function": (lifted_scan, "MixerBlock_0", _stacked("MixerBlock_0")),
    "remat_scan": (remat_scan, "Remat_scanMixerBlock_0", _undone("Remat_scan", "nn.remat_scan", 12)),
    "remat_scan by name": (lambda x: remat_scan(x, name="blocks"), "blocks", _stacked("blocks")),
}


class Mixer(nn.Module):
    blocks: str

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Conv(CONFIG.hidden_dim, CONFIG.patch_hw, strides=CONFIG.patch_hw, name="stem")(images)
        x = BLOCKS[self.blocks][0](x.reshape(len(x), -1, x.shape[-1]))
        return nn.Dense(CONFIG.num_classes, name="head")(nn.LayerNorm(name="pre_head_layer_norm")(x).mean(1))


@cache
def params_of(kind: str) -> Any:
    """The parameters of `TRUTH` as `Mixer(kind)` takes them."""
    own = flatten_dict(jax.eval_shape(Mixer(kind).init, jax.random.key(0), IMAGES)["params"], sep="/")
    return unflatten_dict({name: _of_truth(name, spec.shape) for name, spec in own.items()}, sep="/")


def _of_truth(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rests = {own.partition("/")[2] for own in TRUTH if own.startswith("MixerBlock_")}
    rest = next((rest for rest in rests if name.endswith(f"/{rest}")), None)
    if rest is None:
        return TRUTH[name]
    blocks = [TRUTH[f"MixerBlock_{i}/{rest}"] for i in range(CONFIG.num_blocks)]
    if shape == blocks[0].shape:
        return blocks[int(re.findall(r"_(\d+)/", name)[0])]
    return np.stack(blocks).reshape(shape)


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_transformed_model_computes_the_same_of_the_same_arrays(kind: str) -> None:
    assert BLOCKS[kind][1] in params_of(kind)
    actual = jax.jit(Mixer(kind).apply)({"params": params_of(kind)}, IMAGES)
    expected = MlpMixer(CONFIG)(TRUTH, IMAGES)
    assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 1e-6  # float32 against float64


# Each kind in memory, and one of each way to name blocks in every format.
HELD = [*((kind, "memory") for kind in BLOCKS), *itertools.product(("jit of remat", "scan", "remat_scan"), FILES)]


@pytest.mark.parametrize(("kind", "holder"), HELD)
def test_a_transform_is_undone_in_every_format(tmp_path: Path, kind: str, holder: str) -> None:
    note = BLOCKS[kind][2]
    held = OF_JAX[holder]({"params": params_of(kind)}, tmp_path)
    assert_read(
        held, note if note or "keystr" not in holder else r"""".*", of jax\.tree_util\.keystr, was undone in 150"""
    )


@pytest.mark.parametrize("kind", BLOCKS)
def test_what_is_transformed_is_converted_as_it_is(kind: str) -> None:
    state = convert(convert(params_of(kind), to="torch"), to="linen")
    assert changed(TRUTH, state.arrays) == []


# Copies


def copies(count: int) -> Any:
    return jax.tree.map(lambda array: np.stack([array] * count), PARAMS)


@pytest.mark.parametrize("holder", OF_JAX)
def test_of_copies_for_devices_one_is_read(tmp_path: Path, holder: str) -> None:
    assert_read(OF_JAX[holder](copies(8), tmp_path), "every array was taken for 8 equal copies")


def test_a_copy_for_one_device_is_read() -> None:
    assert_read(jax_utils.replicate(PARAMS), "every array was taken for 1 equal copies")


REPLICATED = """
import sys
import jax, numpy as np
from flax import jax_utils

params = jax_utils.replicate(dict(np.load(sys.argv[1])))
assert jax.device_count() == 4
np.savez(sys.argv[2], **{name: np.asarray(array) for name, array in params.items()})
"""


def test_what_is_replicated_on_several_devices_is_read(tmp_path: Path) -> None:
    finished = python(
        REPLICATED,
        in_npz(TRUTH, tmp_path),
        tmp_path / "copies.npz",
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
        JAX_PLATFORMS="cpu",
    )
    assert finished.returncode == 0, finished.stderr
    assert_read(tmp_path / "copies.npz", "every array was taken for 4 equal copies")


def test_copies_that_differ_are_refused_and_the_advice_is_good() -> None:
    arrays = flatten_dict(copies(8), sep="/")
    arrays["head/bias"][5, 3] += 1
    with pytest.raises(
        ConversionError, match="but number 5 is not equal to number 0; take one yourself, such as "
    ) as caught:
        convert(arrays, to="torch")
    advice = str(caught.value).rpartition("such as ")[2]
    assert_read(eval(advice, {"arrays": arrays}), None)


# Boxes


@cache
def nnx_mixer() -> Any:
    model = nnx_model.MlpMixer(CONFIG, rngs=nnx.Rngs(0))
    nnx.update(model, PARAMS)
    return model


def partitioned(box: Any) -> Callable[[], Any]:
    def in_boxes(array: np.ndarray) -> Any:
        return box(lambda: jnp.asarray(array), (None,) * array.ndim)()

    return lambda: jax.tree.map(in_boxes, PARAMS)


def raw_values() -> Any:
    """As older versions of Flax name the array of a Variable."""
    pure = nnx.to_pure_dict(nnx.state(nnx_mixer()))
    return jax.tree.map(lambda array: {"raw_value": array}, pure)


OF_NNX = ["memory", "npz by keystr", "pickle", "orbax"]

# Trees of boxes, and how they can be held.
BOXED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "nn.Partitioned": (partitioned(nn.with_partitioning), list(OF_JAX)),
    "nn.LogicallyPartitioned": (partitioned(nn.with_logical_partitioning), ["memory", "msgpack"]),
    "nnx.state": (lambda: nnx.state(nnx_mixer()), OF_NNX),
    "nnx.state of Params": (lambda: nnx.state(nnx_mixer(), nnx.Param), ["memory"]),
    "nnx.split": (lambda: nnx.split(nnx_mixer())[1], ["memory", "orbax"]),
    "nnx.to_flat_state": (lambda: nnx.to_flat_state(nnx.state(nnx_mixer())), ["memory"]),
    "raw values": (raw_values, ["memory", "msgpack", "orbax"]),
}


@pytest.mark.parametrize(("kind", "holder"), [(kind, holder) for kind in BOXED for holder in BOXED[kind][1]])
def test_boxes_are_opened_in_every_format(tmp_path: Path, kind: str, holder: str) -> None:
    boxed = BOXED[kind][0]()
    opened = holder == "memory" and kind != "raw values"  # by their class, and not by names
    assert_read(OF_JAX[holder](boxed, tmp_path), None if opened else r"'\w*value', of .*, was undone in 150 names")


def test_a_pure_dict_is_read_as_it_is() -> None:
    assert_read(nnx.to_pure_dict(nnx.state(nnx_mixer())), None)


# Flattened


@pytest.mark.parametrize("holder", ["memory", "pickle", "npz", "msgpack"])
@pytest.mark.parametrize(
    ("separator", "note"), [(None, None), ("/", None), (".", "separators were changed to those of linen: ")]
)
def test_flattened_names_are_read(tmp_path: Path, separator: Any, note: str | None, holder: str) -> None:
    flat = flatten_dict({"params": PARAMS}, sep=separator)
    if separator is None and holder in ("npz", "msgpack"):
        flat = {str(name): array for name, array in flat.items()}
        note = r"'\(\.\.\.\)', of tuples as text, was undone in 150 names, such as \('params', "
    hold = OF_JAX[holder] if holder != "npz" else in_npz
    assert_read(hold(flat, tmp_path), note)
