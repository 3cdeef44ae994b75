"""What arrays are found to be: old names, several sets of weights, where they are from, and what no Mixer has."""

import dataclasses
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import optax
import pytest
import torch
from flax import nnx, serialization
from flax.training.train_state import TrainState
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mixer_equiv import (
    LAYOUTS,
    Checkpoint,
    CheckpointError,
    ConfigError,
    Conventions,
    ConventionWarning,
    ConversionError,
    InexpressibleError,
    LayoutError,
    MixerConfig,
    convert,
    load,
    save,
)
from mixer_equiv.arrays.interop import flatten, unflatten
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.checkpoints.formats import SUFFIXES, StoredArray
from mixer_equiv.checkpoints.inspection import inspect
from mixer_equiv.config import fitting_patches
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.equivalence.sides.locate import import_timm
from mixer_equiv.layouts import LINEN, OFFICIAL_CONVENTIONS
from mixer_equiv.layouts.timm import TIMM
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.nnx import MlpMixer as NnxMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer
from mixer_equiv.testing.strategies import configs
from tests.support.structures import LucidrainsMixer, pre_linen_arrays

pytestmark = pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")

CONFIG = DEFAULT_CONFIG


def in_layout(layout: Any, config: MixerConfig = CONFIG, seed: int = 0) -> Any:
    return relabel(random_params(config, seed), LINEN, LAYOUTS[layout], config)


# Before linen


@given(config=configs(allow_headless=True), seed=st.integers(0, 2**32 - 1))
def test_arrays_from_before_linen_are_read_whatever_their_numbers_and_axes_of_size_1(
    config: MixerConfig, seed: int
) -> None:
    params = random_params(config, 0)
    old = pre_linen_arrays(params, config, np.random.default_rng(seed))
    for given_config in (config, None):
        found = Checkpoint.from_arrays(old, config=given_config)
        assert found.layout.name == "pre-linen"
        assert not bit_differences(convert(found, to="linen", allow_missing=["head/*"]).arrays, params)
    assert any("are read under the current names and shapes, such as" in note for note in found.notes)


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_files_from_before_linen_are_read(tmp_path: Path, prefix: str) -> None:
    params = random_params(CONFIG, 0)
    old = pre_linen_arrays(params, CONFIG, np.random.default_rng(0))
    np.savez(tmp_path / "old.npz", **{prefix + name: array for name, array in old.items()})
    (tmp_path / "old.msgpack").write_bytes(
        serialization.msgpack_serialize(unflatten({prefix + name: array for name, array in old.items()}))
    )
    for name in ("old.npz", "old.msgpack"):
        assert not bit_differences(convert(load(tmp_path / name, config=CONFIG), to="linen").arrays, params)


def test_norms_are_numbered_in_numeric_order_not_as_strings() -> None:
    old = pre_linen_arrays(random_params(CONFIG, 0), CONFIG, np.random.default_rng(0))
    numbers = {int(m[1]) for name in old if (m := re.search(r"encoderblock_0/LayerNorm_(\d+)/", name))}
    assert numbers == {2, 10}
    scale = {n: f"Mixer/encoderblock_0/LayerNorm_{n}/scale" for n in numbers}
    found = Checkpoint.from_arrays(old, config=CONFIG).arrays
    for n, place in ((2, 0), (10, 1)):
        assert np.array_equal(found[f"Mixer/encoderblock_0/LayerNorm_{place}/scale"], old[scale[n]].ravel())


def test_a_true_size_of_1_is_not_squeezed_away() -> None:
    config = CONFIG.replace(hidden_dim=1, tokens_mlp_dim=1, num_blocks=2)
    params = random_params(config, 0)
    found = Checkpoint.from_arrays(pre_linen_arrays(params, config, np.random.default_rng(1)))
    assert found.arrays["Mixer/encoderblock_1/token_mixing_phase_0/kernel1"].shape == (12, 1)
    assert not bit_differences(convert(found, to="linen").arrays, params)


def test_an_old_kernel_with_its_axes_swapped_is_refused_not_reshaped() -> None:
    old = pre_linen_arrays(random_params(CONFIG, 0), CONFIG, np.random.default_rng(0))
    name = "Mixer/encoderblock_3/token_mixing_phase_0/kernel1"
    old[name] = np.ones((1, 11, 1, 12))
    with pytest.raises(ConversionError, match="mis-shaped") as caught:
        convert(old, to="linen", config=CONFIG)
    assert caught.value.mismatched_keys == (name,)


def test_nothing_is_written_as_before_linen(tmp_path: Path) -> None:
    with pytest.raises(InexpressibleError, match="axes of size 1 are recorded nowhere; write linen") as caught:
        convert(random_params(CONFIG, 0), to="pre-linen", config=CONFIG)
    assert len(caught.value.reasons) == 1
    old = pre_linen_arrays(random_params(CONFIG, 0), CONFIG, np.random.default_rng(0))
    with pytest.raises(InexpressibleError, match="recorded nowhere"):
        save(old, tmp_path / "old.npz")
    assert not list(tmp_path.iterdir())


# Several sets of weights


def train_state() -> Any:
    params = unflatten({name: array.astype(np.float32) for name, array in random_params(CONFIG, 0).items()})
    state = TrainState.create(apply_fn=FlaxMixer(CONFIG).apply, params=params, tx=optax.adam(1e-3))
    moments = unflatten({name: array.astype(np.float32) for name, array in random_params(CONFIG, 1).items()})
    return state.apply_gradients(grads=moments)


def test_the_moments_of_an_optimizer_are_not_taken_for_weights(tmp_path: Path) -> None:
    state = train_state()
    (tmp_path / "state.msgpack").write_bytes(serialization.to_bytes(state))
    found = load(tmp_path / "state.msgpack", config=CONFIG)
    assert not bit_differences(found.arrays, {name: np.asarray(array) for name, array in flatten(state.params)})
    assert found.notes[0] == "the prefix 'params/' was stripped from every name"
    assert "left out beside 'params/': " in found.notes[1]


def test_the_moments_of_a_checkpoint_without_weights_are_refused() -> None:
    moments = serialization.to_state_dict(train_state())["opt_state"]
    with pytest.raises(LayoutError, match=r"only an optimizer's moments are here, under '0/mu/' and '0/nu/', and no"):
        Checkpoint.from_arrays(moments)


@pytest.mark.parametrize("prefix", ["ema", "ema/", "ema/module", "ema/module."])
def test_a_prefix_says_which_of_several_sets_is_meant(tmp_path: Path, prefix: str) -> None:
    sets = {name: {f"module.{n}": torch.tensor(a) for n, a in in_layout("timm", seed=seed).items()}
            for seed, name in enumerate(["model", "ema"])}  # fmt: skip
    torch.save({**sets, "epoch": 3}, tmp_path / "both.pth")
    with pytest.raises(LayoutError, match=r"under 'model/module\.' and 'ema/module\.'; say which with prefix="):
        load(tmp_path / "both.pth")
    found = load(tmp_path / "both.pth", prefix=prefix, config=CONFIG)
    assert not bit_differences(found.arrays, in_layout("timm", seed=1))
    with pytest.raises(LayoutError, match=r"under the prefix 'em'; at the top are ema, epoch, model"):
        load(tmp_path / "both.pth", prefix="em")


@pytest.mark.parametrize("prefix", ["opt/target/", "optimizer/target/params/", "params/", "0/params/"])
def test_weights_are_found_where_flax_trainers_put_them(prefix: str) -> None:
    params = random_params(CONFIG, 0)
    state = {f"{prefix}{name}": array for name, array in params.items()}
    state |= {f"opt/state/param_states/{name}/grad_ema": array for name, array in params.items()}
    assert not bit_differences(Checkpoint.from_arrays(state, config=CONFIG).arrays, params)


@pytest.mark.parametrize("lost", ["head.", "norm.bias"])
def test_a_complete_copy_does_not_stand_in_unsaid_for_weights_that_lack_something(lost: Any) -> None:
    model = {name: array for name, array in in_layout("timm").items() if not name.startswith(lost)}
    for order in (1, -1):
        sets = dict([("model", model), ("ema", in_layout("timm", seed=1))][::order])
        with pytest.raises(LayoutError, match=r"two sets of Mixer weights are here, under '.*' and '.*'; say which"):
            Checkpoint.from_arrays(sets)
        found = Checkpoint.from_arrays(sets, prefix="model")
        assert not bit_differences(found.arrays, model)


def test_an_nnx_state_converts_as_it_is() -> None:
    model = NnxMixer(CONFIG, rngs=nnx.Rngs(3))
    state = nnx.state(model, nnx.Param)
    arrays = {name: np.asarray(array) for name, array in flatten(nnx.to_pure_dict(state))}
    assert not bit_differences(
        convert(state, to="timm", config=CONFIG).arrays, relabel(arrays, LINEN, LAYOUTS["timm"], CONFIG)
    )


# What weights were trained with


def test_the_names_of_every_release_of_timm_tell_what_it_was_trained_with(tmp_path: Path) -> None:
    timm = import_timm()
    releases = timm.list_models("mixer_*", pretrained=True)
    assert len(releases) >= 6
    arrays = in_layout("timm")
    for release in releases:
        url = timm.get_pretrained_cfg(release).url
        expected = OFFICIAL_CONVENTIONS if ".goog_" in release else Conventions("gelu")
        assert ".goog_" in release or ".miil_" in release
        for name in (release, PurePosixPath(url).name):
            found = Checkpoint.from_arrays(arrays, called=[name])
            assert found.trained_with == expected, name
            assert f"by its name, {name}, it was trained with {expected.activation}" in found.notes[0]


def test_a_folder_from_the_hub_tells_what_its_weights_were_trained_with(tmp_path: Path) -> None:
    arrays = {name: torch.tensor(array) for name, array in in_layout("timm").items()}
    for tag, expected in (("goog_in21k", "gelu_tanh"), ("miil_in21k", "gelu")):
        folder = tmp_path / tag / "x" / "y" / "z"
        folder.mkdir(parents=True)
        torch.save(arrays, folder / "pytorch_model.bin")
        assert load(folder / "pytorch_model.bin").trained_with is None
        described = {"architecture": "mixer_b16_224", "pretrained_cfg": {"tag": tag}}
        (folder / "config.json").write_text(json.dumps(described))
        assert load(folder / "pytorch_model.bin").trained_with.activation == expected
        (folder / "config.json").write_text("[1")
        assert load(folder / "pytorch_model.bin").trained_with is None


FURTHER = {
    "another number of classes": ({"num_classes": 10}, None),
    "other labels": ({"id2label": {"0": "cat", "1": "dog"}}, None),
    "a state of training": ({}, "trainer_state.json"),
    "arguments of training": ({"num_classes": 21843}, "training_args.bin"),
}


@pytest.mark.parametrize(("told", "beside"), FURTHER.values(), ids=FURTHER)
def test_a_release_that_was_trained_further_says_nothing_of_the_code(
    tmp_path: Path, told: dict[str, Any], beside: str | None
) -> None:
    torch.save({name: torch.tensor(array) for name, array in in_layout("timm").items()}, tmp_path / "x.bin")
    release = {"architecture": "mixer_b16_224", "pretrained_cfg": {"tag": "goog_in21k", "num_classes": 21843}}
    (tmp_path / "config.json").write_text(json.dumps(release))
    assert load(tmp_path).trained_with == OFFICIAL_CONVENTIONS
    (tmp_path / "config.json").write_text(json.dumps(release | told))
    if beside:
        (tmp_path / beside).write_text("{}")
    found = load(tmp_path)
    assert found.trained_with is None
    began = "by config.json it began as mixer_b16_224.goog_in21k and was trained further"
    assert f"{began}; by which code is not recorded" in found.notes


def test_metadata_and_statements_outweigh_a_name(tmp_path: Path) -> None:
    arrays = in_layout("timm")
    goog = tmp_path / "mixer_b16_224.goog_in21k.safetensors"
    save(Checkpoint.from_arrays(arrays, trained_with=Conventions("relu")), goog)
    assert load(goog).trained_with == Conventions("relu")
    told = load(goog, trained_with=Conventions("silu", 1e-5))
    assert told.trained_with == Conventions("silu", 1e-5)
    assert (told.config.activation, told.config.layer_norm_eps) == ("silu", 1e-5)
    assert Checkpoint.from_arrays(arrays, called=["resnet50.goog_in21k"]).trained_with is None


@pytest.mark.filterwarnings("error")
def test_weights_known_to_be_tanh_trained_are_warned_of_and_erf_trained_ones_are_not() -> None:
    miil, goog = (Checkpoint.from_arrays(in_layout("timm"), called=[f"mixer_b16_224.{tag}_in21k"])
                  for tag in ("miil", "goog"))  # fmt: skip
    with pytest.warns(ConventionWarning, match="linen's code computes tanh GELU; these weights were trained with erf"):
        convert(miil, to="linen")
    convert(goog, to="linen")
    with pytest.warns(ConventionWarning, match="erf GELU; these weights were trained with tanh GELU: pass act_layer"):
        convert(goog, to="timm")
    convert(miil, to="timm")


def test_every_size_of_timm_has_just_the_names_and_shapes_of_the_table() -> None:
    timm = import_timm()
    names = [name for name in timm.list_models("mixer_*") if re.fullmatch(r"mixer_[sbl]\d+_224", name)]
    assert len(names) == 6
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        config = MixerConfig.from_name(f"{name[6].upper()}/{name[7:9]}")
        expected = {n: b.shape(config.axis_sizes) for n, b in LAYOUTS["timm"].parameters(config.num_blocks).items()}
        assert {n: tuple(tensor.shape) for n, tensor in model.state_dict().items()} == expected


# What shapes leave open


@pytest.mark.parametrize(
    ("columns", "first"),
    [(768, (16, 16, 3)), (3072, (32, 32, 3)), (588, (14, 14, 3)), (256, (16, 16, 1)), (18, (2, 3, 3)), (1, (1, 1, 1))],
)
def test_a_stem_of_columns_is_taken_as_a_square_patch_of_3_channels_else_of_1(columns: Any, first: Any) -> None:
    patches = fitting_patches(columns)
    assert patches[0] == first
    assert all(ph * pw * channels == columns for ph, pw, channels in patches)
    assert len(set(patches)) == len(patches)


def test_the_image_size_settles_how_a_stem_of_columns_is_split() -> None:
    arrays = in_layout("lucidrains", config := CONFIG.replace(patch_size=8, image_size=(32, 24), in_channels=12))
    found = Checkpoint.from_arrays(arrays)
    assert (found.config.patch_hw, found.config.in_channels) == ((16, 16), 3)
    assert found.notes == (
        "the stem's 768 columns are taken as patches of 16x16 with 3 channels",
        "12 tokens are taken as 3x4, an image of 48x64",
    )
    found = Checkpoint.from_arrays(arrays, image_size=(32, 24))
    assert (found.config.patch_hw, found.config.in_channels) == (config.patch_hw, 12)
    assert found.notes == ("the stem's 768 columns are taken as patches of 8x8 with 12 channels",)
    with pytest.raises(ConfigError, match="no patch of 768 numbers splits an image of 7x7 into the 12 tokens"):
        Checkpoint.from_arrays(arrays, image_size=7)


def test_metadata_carry_how_a_stem_of_columns_is_split(tmp_path: Path) -> None:
    config = CONFIG.replace(patch_size=8, image_size=(32, 24), in_channels=12)
    params = random_params(config, 0)
    save(convert(Checkpoint.from_arrays(params, config=config), to="lucidrains"), tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").config == config
    assert not bit_differences(convert(load(tmp_path / "a.safetensors"), to="linen").arrays, params)


def test_a_file_in_a_layout_that_is_not_registered_here_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [dataclasses.replace(row, foreign=row.foreign.replace("stem.proj", "patchify")) for row in TIMM.rows]
    ours = dataclasses.replace(TIMM, name="ours", rows=tuple(rows))
    arrays = relabel(random_params(CONFIG, 0), LINEN, ours, CONFIG)
    with pytest.raises(LayoutError, match=r"of timm, the nearest .* written in the layout 'ours': register that first"):
        Checkpoint.from_arrays(arrays, metadata={"layout": "ours"})
    monkeypatch.setitem(LAYOUTS, "ours", ours)
    assert Checkpoint.from_arrays(arrays, metadata={"layout": "ours"}).layout is ours


# Names that invert


def test_hyperparameters_in_a_file_that_call_sizes_otherwise_change_nothing() -> None:
    misleading = {"tokens_mlp_dim": CONFIG.num_tokens, "hidden_dim": CONFIG.tokens_mlp_dim, "num_blocks": 3}
    found = Checkpoint.from_arrays({"hyper_parameters": misleading, "state_dict": in_layout("jankrepl")})
    assert found.config.resized(CONFIG.image_size).replace(activation="gelu_tanh", layer_norm_eps=1e-6) == CONFIG


def test_expansion_factors_that_size_the_other_mlp_change_nothing() -> None:
    """The names in lucidrains' code: `expansion_factor` sizes the token MLP, `expansion_factor_token` the other."""
    config = CONFIG.replace(tokens_mlp_dim=4 * CONFIG.hidden_dim, channels_mlp_dim=CONFIG.hidden_dim // 2)
    found = Checkpoint.from_arrays(LucidrainsMixer(config).state_dict())
    assert (found.config.tokens_mlp_dim, found.config.channels_mlp_dim) == (80, 10)


# What no official Mixer is


def test_without_a_final_norm_it_is_said_to_be_no_official_mixer() -> None:
    arrays = in_layout("timm")
    del arrays["norm.weight"], arrays["norm.bias"]
    with pytest.raises(InexpressibleError, match="no official Mixer is this: without a final LayerNorm") as caught:
        convert(arrays, to="linen", config=CONFIG)
    assert set(caught.value.missing_keys) == {"norm.weight", "norm.bias"}
    del arrays["blocks.3.norm1.bias"]  # an incomplete file is no sign of another architecture
    with pytest.raises(ConversionError) as incomplete:
        convert(arrays, to="linen", config=CONFIG)
    assert not isinstance(incomplete.value, InexpressibleError)


def test_a_norm_over_tokens_and_channels_is_said_to_be_no_official_mixer() -> None:
    arrays = in_layout("timm")
    for i in range(12):
        arrays[f"blocks.{i}.norm1.weight"] = np.ones((12, 20))
        arrays[f"blocks.{i}.norm1.bias"] = np.zeros((12, 20))
    with pytest.raises(InexpressibleError, match="a LayerNorm over tokens and channels") as caught:
        convert(arrays, to="linen", config=CONFIG)
    assert len(caught.value.mismatched_keys) == 24


@pytest.mark.parametrize(("layout", "head", "end"), [("timm", "head.", "weight"), ("linen", "head/", "kernel")])
def test_an_mlp_head_is_said_to_be_no_official_mixer(layout: Any, head: Any, end: Any) -> None:
    separator = head[-1]
    arrays = {name: array for name, array in in_layout(layout).items() if not name.startswith(head)}
    for i, (dim, width) in enumerate([(20, 9), (9, 7)]):
        arrays |= {f"{head}{i}{separator}{end}": np.ones((dim, width)), f"{head}{i}{separator}bias": np.ones(width)}
    with pytest.raises(InexpressibleError, match="a head of 2 layers: the official one is a single Dense") as caught:
        convert(arrays, to="linen", config=CONFIG)
    assert len(caught.value.reasons) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_head_is_told_how_to_be_left_out(layout: Any) -> None:
    arrays = {b.foreign: np.ones(b.shape(CONFIG.axis_sizes)) for b in LAYOUTS[layout].bindings(12, head=False).values()}
    with pytest.raises(ConversionError, match=r"pass allow_missing=\['head/\*'\]"):
        convert(arrays, to="linen", config=CONFIG)


# Lazily


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_finding_and_inspecting_read_no_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Also with metadata, which are held against the arrays' names and shapes."""
    path = save(Checkpoint.from_arrays(in_layout("torch"), config=CONFIG), tmp_path / f"a{suffix}")

    def read(self: Any, dtype: Any = None, copy: Any = None) -> None:
        raise AssertionError(f"an array of {self.shape} was read")

    monkeypatch.setattr(StoredArray, "__array__", read)
    found = load(path, lazy=True)
    assert found.config == CONFIG
    assert "stem.weight" in found.arrays
    assert "stem" not in found.arrays
    inspect(found)


def test_a_lazy_checkpoint_reads_an_array_only_when_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **random_params(CONFIG, 0))
    lazy = load(path, lazy=True)
    whole = load(path)
    path.write_bytes(path.read_bytes()[:100])
    assert (lazy.config, lazy.num_parameters, lazy.dtypes) == (whole.config, whole.num_parameters, whole.dtypes)
    assert lazy.check() == whole.check()
    with pytest.raises(CheckpointError, match=r"a\.npz was replaced or written to since it was opened"):
        lazy.arrays["stem/kernel"]
    assert not bit_differences(whole.arrays, random_params(CONFIG, 0))


# Metadata that the arrays outgrew


def resaved(folder: Any, suffix: str, change: Any, config: MixerConfig = CONFIG) -> Any:
    """A file of ours whose state_dict somebody changed, and saved with the metadata it was loaded with."""
    save(Checkpoint.from_arrays(in_layout("torch", config), config=config), folder / "old.pt")
    state = torch.load(folder / "old.pt", weights_only=True)
    change(state)
    if suffix == ".pt":
        torch.save(state, folder / "new.pt")
    else:
        save_file(dict(state), folder / "new.safetensors", {"mixer_equiv": state.mixer_equiv})
    return folder / f"new{suffix}"


def other_head(state: Any) -> None:
    state["head.weight"], state["head.bias"] = torch.randn(5, CONFIG.hidden_dim), torch.randn(5)


def shorter(state: Any) -> None:
    for name in [name for name in state if ".11." in name]:
        del state[name]


def longer(state: Any) -> None:
    for name in [name for name in state if ".11." in name]:
        state[name.replace(".11.", ".12.")] = state[name].clone()


def narrower(state: Any) -> None:
    for name in list(state):
        if "channel_mixing" in name and not name.endswith("1.bias"):
            state[name] = (state[name][:5] if "dense_0" in name else state[name][:, :5]).contiguous()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("change", "sizes", "note"),
    [
        (other_head, {"num_classes": 5}, "classes 7, now 5"),
        (longer, {"num_blocks": 13}, "num_blocks 12, now 13"),
        (narrower, {"channels_mlp_dim": 5}, "channels_mlp 26, now 5"),
    ],
)
def test_sizes_are_the_arrays_where_the_metadata_are_of_others(
    tmp_path: Path, suffix: str, change: Any, sizes: Any, note: Any
) -> None:
    config = CONFIG.replace(activation="gelu")
    found = load(resaved(tmp_path, suffix, change, config))
    assert found.config == config.replace(**sizes)
    assert f"the sizes in the file's metadata are not those of its arrays, which are taken: {note}" in found.notes
    assert not found.config_is_stated
    assert not found.image_size_is_assumed
    assert found.trained_with == Conventions("gelu")
    convert(found, to="linen")


def test_a_head_put_on_weights_without_one_is_read(tmp_path: Path) -> None:
    found = load(resaved(tmp_path, ".pt", other_head, CONFIG.replace(num_classes=0)))
    assert found.config == CONFIG.replace(num_classes=5)


@pytest.mark.parametrize("change", [shorter, lambda state: state.popitem()])
def test_metadata_tell_what_is_missing(tmp_path: Path, change: Any) -> None:
    found = load(resaved(tmp_path, ".pt", change))
    with pytest.raises(ConversionError, match=r"with the config that was given or is in its metadata, cannot fill"):
        convert(found, to="linen")


def test_one_array_of_another_shape_is_not_believed_over_the_metadata(tmp_path: Path) -> None:
    def change(state: Any) -> None:
        state["head.weight"] = torch.randn(5, CONFIG.hidden_dim)

    with pytest.raises(ConversionError, match=r"mis-shaped: head\.weight, found \(5, 20\), expected \(7, 20\)"):
        convert(load(resaved(tmp_path, ".pt", change)), to="linen")


@pytest.mark.parametrize("patch", [(2, 3), (1, 6)], ids=["the likeliest", "another"])
def test_a_flattened_stem_keeps_the_patch_of_the_metadata(tmp_path: Path, patch: tuple[int, int]) -> None:
    config = CONFIG.replace(patch_size=patch, image_size=(patch[0] * 4, patch[1] * 3))
    arrays = in_layout("lucidrains", config)
    save(Checkpoint.from_arrays(arrays, config=config), tmp_path / "old.pt")
    state = torch.load(tmp_path / "old.pt", weights_only=True)
    state["16.weight"], state["16.bias"] = torch.randn(5, CONFIG.hidden_dim), torch.randn(5)
    torch.save(state, tmp_path / "new.pt")
    assert load(tmp_path / "new.pt").config == config.replace(num_classes=5)
    assert not any("columns are taken" in note for note in load(tmp_path / "new.pt").notes)


@pytest.mark.parametrize("metadata", ["{", "[1", '"half'])
def test_metadata_that_are_no_json_are_refused_as_such(tmp_path: Path, metadata: Any) -> None:
    arrays = in_layout("torch")
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, tmp_path / "a.safetensors")
    load(tmp_path / "a.safetensors")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_file(tensors, tmp_path / "a.safetensors", {"mixer_equiv": metadata})
    with pytest.raises(CheckpointError, match="metadata of mixer_equiv that are not JSON"):
        load(tmp_path / "a.safetensors")


# What wraps weights in torch


def test_averaged_weights_are_read_and_their_count_left_out(tmp_path: Path) -> None:
    model = torch.optim.swa_utils.AveragedModel(TorchMixer(CONFIG))
    torch.save(model.state_dict(), tmp_path / "averaged.pt")
    found = load(tmp_path / "averaged.pt")
    assert "left out beside 'module.': n_averaged" in found.notes
    assert not bit_differences(found.arrays, {n: t.detach().numpy() for n, t in model.module.state_dict().items()})


def test_a_vector_beside_a_dotted_prefix_is_not_left_out_unless_the_prefix_is_given() -> None:
    arrays = {f"module.{name}": array for name, array in in_layout("torch").items()} | {"temperature": np.ones(3)}
    with pytest.raises(ConversionError, match="unexpected: temperature"):
        convert(arrays, to="linen")
    found = Checkpoint.from_arrays(arrays, prefix="module")
    assert "left out beside 'module.': temperature" in found.notes
    convert(found, to="linen")


@pytest.mark.parametrize("suffix", ["", "/1/nested"])
def test_weights_in_a_list_are_found_by_their_place(tmp_path: Path, suffix: str) -> None:
    first, second = ({n: torch.from_numpy(a) for n, a in in_layout("torch", seed=seed).items()} for seed in (0, 1))
    torch.save({"epoch": 3, "models": [first, {"nested": second}]}, tmp_path / "list.pt")
    if not suffix:
        with pytest.raises(LayoutError, match=r"under 'models/0/' and 'models/1/nested/'"):
            load(tmp_path / "list.pt")
    else:
        found = load(tmp_path / "list.pt", prefix=f"models{suffix}")
        assert not bit_differences(found.arrays, in_layout("torch", seed=1))


@pytest.mark.parametrize(("blocks", "said"), [([1], "block 1;"), (range(5), "blocks 0, 1, 2, 3, 4;")])
def test_blocks_that_are_not_there_are_named(blocks: Any, said: Any) -> None:
    arrays = {
        name: array
        for name, array in in_layout("linen").items()
        if not any(name.startswith(f"MixerBlock_{i}/") for i in blocks)
    }
    with pytest.raises(ConversionError, match=f"no array is of {said} blocks are numbered from 0 on, without a gap"):
        convert(arrays, to="torch")


def test_a_missing_block_of_three_is_missing_and_not_a_sign_of_one() -> None:
    config = CONFIG.replace(num_blocks=3)
    arrays = {n: a for n, a in random_params(config, 0).items() if not n.startswith("MixerBlock_1/")}
    with pytest.raises(ConversionError, match=r"of 3 blocks:\n  missing: MixerBlock_1/"):
        convert(arrays, to="torch")
