import copy
import dataclasses
import inspect
import itertools
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax.core import FrozenDict
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.xla_options import cheap_jit
from mixer_equiv import (
    LAYOUTS,
    Checkpoint,
    ConventionWarning,
    ConversionError,
    LayoutError,
    MixerConfig,
    convert,
    flax_to_torch,
    torch_to_flax,
)
from mixer_equiv.arrays.interop import flatten, to_torch, unflatten
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.layouts import LINEN
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer
from mixer_equiv.testing import strategies
from mixer_equiv.testing.strategies import DTYPES, configs
from tests.support.checkpoints import WRITABLE
from tests.support.examples import one_in
from tests.support.kernels import STEM_COLUMNS, TOKENS_BY_CONV1D

pytestmark = pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")

CONFIG = DEFAULT_CONFIG
PAIRS = list(itertools.product(LAYOUTS, WRITABLE))
SQUARE = MixerConfig(
    num_classes=9,
    num_blocks=12,
    patch_size=3,
    image_size=9,
    in_channels=3,
    hidden_dim=9,
    tokens_mlp_dim=9,
    channels_mlp_dim=9,
)


def float32_params(config: MixerConfig = CONFIG, seed: int = 0) -> Any:
    return {name: array.astype(np.float32) for name, array in random_params(config, seed).items()}


def transcribed(params: Any, layout: Any, config: MixerConfig) -> Any:
    """The weights in another layout, by NumPy transposes alone: what `convert` must give."""
    result = {}
    theirs = layout.bindings(config.num_blocks)
    for canonical in LINEN.bindings(config.num_blocks, head=config.num_classes > 0):
        array = params[canonical]
        if canonical == "stem/kernel" and layout.name in STEM_COLUMNS:
            array = in_columns(array, STEM_COLUMNS[layout.name])
        if canonical.endswith("kernel") and layout.framework == "torch":
            array = turned(array)
        if layout.name in TOKENS_BY_CONV1D and "token_mixing" in canonical and array.ndim == 2:
            array = array[:, :, None]
        result[theirs[canonical].foreign] = array
    return result


def in_columns(stem: Any, order: tuple[str, ...]) -> Any:
    """The stem's kernel (ph, pw, channels, hidden) as one over flattened patches, whose axes lie in this order."""
    axes = [("ph", "pw", "channels").index(axis) for axis in order]
    return stem.transpose(*axes, 3).reshape(-1, stem.shape[-1])


def turned(kernel: Any) -> Any:
    """A kernel as torch's Linear and Conv2d have it."""
    return kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)


def test_a_stem_in_columns_has_the_axes_of_a_patch_in_the_given_order() -> None:
    kernel = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert turned(in_columns(kernel, ("ph", "pw", "channels")))[4, (1 * 3 + 2) * 4 + 3] == kernel[1, 2, 3, 4]
    assert turned(in_columns(kernel, ("channels", "ph", "pw")))[4, (3 * 2 + 1) * 3 + 2] == kernel[1, 2, 3, 4]


@pytest.mark.parametrize(("source", "target"), PAIRS)
@one_in(5)
@given(data=st.data())
def test_round_trip_is_bit_exact(source: Any, target: Any, data: Any) -> None:
    config = data.draw(configs(allow_headless=True))
    params = data.draw(strategies.params(config, style="special", dtype=data.draw(st.sampled_from(DTYPES))))
    arrays = transcribed(params, LAYOUTS[source], config)
    before = copy.deepcopy(arrays)
    there = convert(Checkpoint.from_arrays(arrays, layout=source, config=config), to=target)
    assert not bit_differences(there.arrays, transcribed(params, LAYOUTS[target], config))
    assert not bit_differences(arrays, before)
    back_to = source if source in WRITABLE else "linen"
    back = convert(there, to=back_to)
    assert not bit_differences(back.arrays, transcribed(params, LAYOUTS[back_to], config))
    assert (back.config, back.layout.name) == (config, back_to)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_any_config_is_read_off_the_shapes_of_its_weights(layout: Any, data: Any) -> None:
    computes = LAYOUTS[layout].computes
    config = data.draw(
        configs(allow_headless=True, activation=computes.activation, layer_norm_eps=computes.layer_norm_eps)
    )
    arrays = transcribed(random_params(config, 0), LAYOUTS[layout], config)
    checkpoint = Checkpoint.from_arrays(arrays, layout=layout, image_size=config.image_size)
    if layout in STEM_COLUMNS:
        found, config = (
            c.replace(patch_size=1, image_size=c.grid_hw, in_channels=1) for c in (checkpoint.config, config)
        )
        assert found.num_tokens == config.num_tokens
        assert found.replace(image_size=config.image_hw) == config
        assert checkpoint.config.num_parameters == checkpoint.num_parameters
        return
    assert checkpoint.config == config
    assert Checkpoint.from_arrays(arrays).layout.rows == LAYOUTS[layout].rows
    assert checkpoint.num_parameters == config.num_parameters


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_square_kernels_are_transposed_by_name_not_by_shape(source: Any, target: Any) -> None:
    params = float32_params(SQUARE)
    arrays = transcribed(params, LAYOUTS[source], SQUARE)
    there = Checkpoint.from_arrays(flat(convert(arrays, to=target, config=SQUARE)))
    assert not bit_differences(there.arrays, transcribed(params, LAYOUTS[target], SQUARE))


def flat(converted: Any) -> Any:
    return converted.arrays if isinstance(converted, Checkpoint) else dict(flatten(converted))


def as_jax(params: Any) -> Any:
    return {name: jnp.asarray(array) for name, array in params.items()}


def as_torch(params: Any) -> Any:
    return {name: to_torch(array.copy()) for name, array in params.items()}


@pytest.mark.parametrize(
    "kind",
    [dict, unflatten, as_jax, as_torch, lambda p: FrozenDict(unflatten(as_jax(p))), lambda p: {"params": unflatten(p)}],
    ids=["numpy", "nested", "jax", "torch", "FrozenDict", "params"],
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_arrays_of_every_framework_and_nesting_convert_alike(kind: Any, dtype: Any) -> None:
    params = {name: array.astype(dtype) for name, array in random_params(CONFIG, 1).items()}
    converted = convert(kind(params), to="timm", config=CONFIG)
    assert not bit_differences(converted.arrays, transcribed(params, LAYOUTS["timm"], CONFIG))


def test_denormals_and_float64_pass_through_jax_arrays_with_x64_off() -> None:
    assert not jax.config.jax_enable_x64  # type: ignore[attr-defined]
    params = random_params(CONFIG, 2)
    tiny = {name: np.full_like(array, 1e-40, np.float32) for name, array in params.items()}
    assert not bit_differences(flat(convert(as_jax(tiny), to="linen", config=CONFIG)), tiny)
    state = as_torch(transcribed(params, LAYOUTS["torch"], CONFIG))
    assert not bit_differences(flat(torch_to_flax(state)), params)


def test_flax_to_torch_loads_strictly_and_trains_free_of_the_source() -> None:
    params = cheap_jit(FlaxMixer(CONFIG).init)(jax.random.key(0), jnp.ones((1, 8, 9, 3)))["params"]
    state = flax_to_torch(params)
    assert type(state) is dict
    assert all(isinstance(value, torch.Tensor) and value.is_contiguous() for value in state.values())
    TorchMixer(CONFIG).load_state_dict(state, strict=True)
    source = {name: array.copy() for name, array in float32_params().items()}
    state = flax_to_torch(source)
    for value in state.values():
        value.add_(1)
    assert not bit_differences(source, float32_params())


def test_torch_to_flax_is_a_plain_tree_that_apply_grad_and_jit_take() -> None:
    torch.manual_seed(0)
    params = torch_to_flax(TorchMixer(CONFIG).state_dict())
    assert type(params) is dict
    assert type(params["MixerBlock_10"]["token_mixing"]["Dense_0"]["kernel"]) is np.ndarray
    images = jnp.ones((2, 8, 9, 3))
    model = FlaxMixer(CONFIG)
    assert model.apply({"params": params}, images).shape == (2, 7)
    loss = cheap_jit(jax.grad(lambda p: model.apply({"params": p}, images).sum()))
    assert jax.tree.structure(loss(params)) == jax.tree.structure(params)


def test_convert_gives_what_the_target_framework_takes() -> None:
    params = float32_params()
    converted = convert(params, to="torch", config=CONFIG)
    TorchMixer(CONFIG).load_state_dict(converted, strict=True)
    assert isinstance(converted["head.weight"], torch.Tensor)
    tree = convert(converted.params, to="linen", config=CONFIG)
    assert FlaxMixer(CONFIG).apply({"params": tree}, jnp.ones((2, 8, 9, 3))).shape == (2, 7)
    assert isinstance(convert(Checkpoint.from_arrays(params), to="linen"), Checkpoint)


def test_a_checkpoint_carries_its_config_along() -> None:
    config = CONFIG.replace(activation="silu", layer_norm_eps=1e-4)
    there = convert(Checkpoint.from_arrays(float32_params(), config=config), to="jankrepl")
    back = convert(convert(there, to="timm"), to="linen")
    assert there.config == back.config == config
    assert back.trained_with.activation == "silu"


# Strictness


def broken(**changes: Any) -> Any:
    """The weights with some arrays replaced, or removed where None."""
    params = {**float32_params(), **changes}
    return {name: array for name, array in params.items() if array is not None}


def test_everything_wrong_is_said_in_one_error_with_both_names_and_shapes() -> None:
    arrays = broken(
        **{
            "stem/kernel": np.ones((2, 3, 3, 19), np.float32),
            "MixerBlock_10/LayerNorm_1/scale": None,
            "extra": np.ones(3, np.float32),
        }
    )
    with pytest.raises(ConversionError) as caught:
        convert(arrays, to="timm")
    error = caught.value
    assert error.missing_keys == ("MixerBlock_10/LayerNorm_1/scale",)
    assert error.unexpected_keys == ("extra",)
    assert error.mismatched_keys == ("stem/kernel",)
    assert str(error).splitlines() == [
        "arrays cannot fill the layout linen of 12 blocks:",
        "  missing: MixerBlock_10/LayerNorm_1/scale, expected (20,) for blocks.10.norm2.weight (20,)",
        "  unexpected: extra, found (3,) float32",
        "  mis-shaped: stem/kernel, found (2, 3, 3, 19), expected (2, 3, 3, 20) for stem.proj.weight (20, 3, 2, 3)",
        "  to leave out what is no part of the Mixer, pass ignore=['extra'] (--ignore 'extra')",
    ]


def test_many_problems_of_a_kind_are_counted_and_kept_in_the_exception() -> None:
    arrays = broken(**{f"extra_{i}": np.ones(1) for i in range(30)})
    with pytest.raises(ConversionError, match="unexpected: and 18 more") as caught:
        convert(arrays, to="torch")
    assert len(caught.value.unexpected_keys) == 30


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("canonical", ["stem/bias", "MixerBlock_2/token_mixing/Dense_1/bias", "head/bias"])
def test_one_missing_array_of_any_layout_is_refused(layout: Any, canonical: Any) -> None:
    arrays = transcribed(float32_params(), LAYOUTS[layout], CONFIG)
    name = LAYOUTS[layout].bindings(12)[canonical].foreign
    del arrays[name]
    with pytest.raises(ConversionError) as caught:
        convert(arrays, to="linen")
    assert caught.value.missing_keys == (name,)


def headless(params: Any) -> Any:
    return {name: array for name, array in params.items() if not name.startswith("head/")}


def test_a_head_is_left_out_on_request_never_silently() -> None:
    with pytest.raises(ConversionError, match=r"pass allow_missing=\['head/\*'\]"):
        convert(headless(float32_params()), to="torch")
    converted = convert(headless(float32_params()), to="torch", allow_missing=["head/*"])
    assert converted.config.num_classes == 0
    assert "left out: head/kernel, expected (hidden, classes) for head.weight (classes, hidden)" in converted.notes
    TorchMixer(converted.config.resized((8, 9))).load_state_dict(converted, strict=True)
    assert not bit_differences(flat(convert(converted, to="linen")), headless(float32_params()))


def test_a_config_without_classes_asks_for_no_head() -> None:
    config = CONFIG.replace(num_classes=0)
    assert len(convert(headless(float32_params()), to="torch", config=config)) == 148
    with pytest.raises(ConversionError) as caught:
        convert(float32_params(), to="torch", config=config)
    assert caught.value.unexpected_keys == ("head/kernel", "head/bias")
    assert len(convert(float32_params(), to="torch", config=config, allow_missing=["head/*"])) == 148


def test_a_head_of_another_class_count_is_left_out_on_request() -> None:
    config = CONFIG.replace(num_classes=5)
    with pytest.raises(ConversionError) as caught:
        convert(float32_params(), to="torch", config=config)
    assert caught.value.mismatched_keys == ("head/kernel", "head/bias")
    converted = convert(float32_params(), to="torch", config=config, allow_missing=["head/*"])
    assert not any(name.startswith("head") for name in converted)
    assert "left out: head/kernel, found (20, 7), expected (20, 5) for head.weight (5, 20)" in converted.notes


@pytest.mark.parametrize("pattern", ["head/*", "head.*", "*head*"])
def test_allow_missing_matches_canonical_or_own_names(pattern: Any) -> None:
    arrays = transcribed(float32_params(), LAYOUTS["timm"], CONFIG)
    arrays = {name: array for name, array in arrays.items() if not name.startswith("head")}
    patterns = [pattern, "norm.*"] if pattern == "*head*" else [pattern]
    assert "head" not in convert(arrays, to="linen", allow_missing=patterns)


def test_an_allowance_that_matches_nothing_is_refused() -> None:
    with pytest.raises(
        ConversionError, match=r"allow_missing 'haed/\*' matches no parameter; they are called stem/kernel"
    ):
        convert(float32_params(), to="torch", allow_missing=["haed/*"])
    with pytest.raises(ConversionError, match="must be a list of globs"):
        convert(float32_params(), to="torch", allow_missing="head/*")


def test_no_array_is_left_out_by_an_allowance_it_does_not_need() -> None:
    assert len(convert(float32_params(), to="torch", allow_missing=["*"])) == 150


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array(["a"] * 20), "array of <U1"),
        (np.array([object()] * 20), "array of object"),
        (torch.empty(20, device="meta"), "meta device"),
    ],
    ids=["strings", "objects", "meta"],
)
def test_what_is_no_array_of_numbers_is_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(ConversionError, match=f"stem/bias: .*{message}"):
        convert(broken(**{"stem/bias": value}), to="torch")


def test_a_model_instead_of_its_weights_is_refused_with_what_to_pass() -> None:
    with pytest.raises(
        ConversionError, match=r"found a MlpMixer; expected arrays by name, such as model.state_dict\(\)"
    ):
        convert(TorchMixer(CONFIG), to="linen")


def test_names_with_and_without_the_prefix_are_refused() -> None:
    arrays = {f"module.{name}": array for name, array in transcribed(float32_params(), LAYOUTS["timm"], CONFIG).items()}
    with pytest.raises(ConversionError, match=r"with and without the prefix 'module\.': head\.bias"):
        convert({**arrays, "head.bias": np.ones(7)}, to="linen")


def test_a_given_layout_is_taken_at_its_word() -> None:
    arrays = transcribed(float32_params(), LAYOUTS["timm"], CONFIG)
    assert not bit_differences(flat(convert(arrays, to="linen", from_="timm")), float32_params())
    with pytest.raises(LayoutError, match="not of the layout jankrepl, but by their names of timm"):
        convert(arrays, to="linen", from_="jankrepl")
    with pytest.raises(LayoutError, match="the arrays are of no known layout: found stem"):
        convert({"stem": np.ones(3)}, to="linen", from_="jankrepl")
    with pytest.raises(LayoutError, match="no layout is called 'keras'"):
        convert(arrays, to="keras")


def test_a_table_that_is_wrong_but_invertible_does_not_give_the_right_arrays() -> None:
    """The planted fault for `transcribed`: a round trip alone would not see it."""
    timm = LAYOUTS["timm"]
    swapped = {"norm1": "norm2", "norm2": "norm1"}
    rows = tuple(
        dataclasses.replace(row, foreign=".".join(swapped.get(part, part) for part in row.foreign.split(".")))
        for row in timm.rows
    )
    wrong = dataclasses.replace(timm, rows=rows)
    there = convert(float32_params(), to=wrong, config=CONFIG)
    assert not bit_differences(convert(there, to="linen").arrays, float32_params())
    assert bit_differences(there.arrays, transcribed(float32_params(), timm, CONFIG))


# Conventions


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("source", "target", "sentences"),
    [
        (
            "linen",
            "timm",
            [
                "timm's code computes erf GELU; these weights were trained with tanh GELU: "
                "pass act_layer=partial(nn.GELU, approximate='tanh')"
            ],
        ),
        (
            "linen",
            "jankrepl",
            [
                "jankrepl's code computes erf GELU; these weights were trained with tanh GELU: "
                "replace nn.GELU() in MlpBlock by nn.GELU(approximate='tanh')",
                "jankrepl's code computes LayerNorm eps 1e-05; these weights were trained with LayerNorm eps 1e-06: "
                "give its three nn.LayerNorm eps=1e-06",
            ],
        ),
        (
            "timm",
            "linen",
            [
                "linen's code computes tanh GELU; what these weights were trained with is not recorded, and "
                "timm's code computes erf GELU; if that is right, the official code fixes nn.gelu: use "
                "mixer_equiv.models.flax with activation='gelu'"
            ],
        ),
        (
            "jankrepl",
            "torch",
            [
                "torch's code computes tanh GELU; these weights were trained with erf GELU: build it with "
                "MixerConfig(activation='gelu')",
                "torch's code computes LayerNorm eps 1e-06; these weights were trained with LayerNorm eps 1e-05: build "
                "it with MixerConfig(layer_norm_eps=1e-05)",
            ],
        ),
        ("linen", "torch", []),
        ("torch", "linen", []),
        ("jankrepl", "jankrepl", []),
    ],
)
def test_conventions_that_differ_are_said_with_what_to_set(source: Any, target: Any, sentences: Any) -> None:
    arrays = transcribed(float32_params(), LAYOUTS[source], CONFIG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convert(arrays, to=target)
    assert [str(warning.message) for warning in caught] == sentences
    assert all(warning.category is ConventionWarning and warning.filename == __file__ for warning in caught)


@pytest.mark.filterwarnings("error")
def test_a_given_config_states_the_conventions() -> None:
    erf = CONFIG.replace(activation="gelu")
    with pytest.warns(ConventionWarning, match="trained with erf GELU"):
        convert(float32_params(), to="torch", config=erf)
    convert(float32_params(), to="timm", config=erf)


def test_bfloat16_tensors_come_out_as_ml_dtypes_and_back() -> None:
    state = {name: value.bfloat16() for name, value in TorchMixer(CONFIG).state_dict().items()}
    params = torch_to_flax(state)
    assert params["stem"]["kernel"].dtype == ml_dtypes.bfloat16
    back = flax_to_torch(params)
    assert all(torch.equal(back[name].view(torch.int16), state[name].view(torch.int16)) for name in state)


def test_half_a_head_is_no_head() -> None:
    arrays = {name: array for name, array in float32_params().items() if name != "head/kernel"}
    with pytest.raises(ConversionError, match="missing: head/kernel"):
        convert(arrays, to="torch")
    converted = convert(arrays, to="torch", allow_missing=["head/*"])
    assert "left out: head/bias, since the rest of the head is absent" in converted.notes
    assert len(convert(converted, to="linen")) == 148


def test_naming_the_layout_of_a_checkpoint_changes_nothing_about_it() -> None:
    checkpoint = Checkpoint.from_arrays(transcribed(float32_params(), LAYOUTS["timm"], CONFIG))
    for from_ in (None, "timm"):
        converted = convert(checkpoint, to="linen", from_=from_)
        assert converted.trained_with == LAYOUTS["timm"].computes
        assert converted.assumed_from == "timm"
        assert converted.notes == checkpoint.notes


@pytest.mark.filterwarnings("error::UserWarning")
def test_read_only_strided_and_big_endian_arrays_convert_as_others() -> None:
    params = float32_params()
    odd = {}
    for i, (name, array) in enumerate(params.items()):
        odd[name] = [array.astype(">f4"), np.asfortranarray(array), np.repeat(array, 2, axis=0)[::2]][i % 3]
        odd[name].flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConventionWarning)
        assert not bit_differences(convert(odd, to="timm").arrays, transcribed(params, LAYOUTS["timm"], CONFIG))
        state = Checkpoint.from_arrays(convert(odd, to="torch").arrays)
    for array in state.arrays.values():
        array.flags.writeable = False
    TorchMixer(CONFIG).load_state_dict(state.params)


@pytest.mark.parametrize("dtype", ["int8", "bool", "complex64", "longdouble", ml_dtypes.float8_e4m3fn], ids=str)
def test_parameters_of_another_dtype_are_refused_with_all_else_that_is_wrong(dtype: Any) -> None:
    arrays = broken(**{"stem/bias": np.ones(20, dtype), "head/bias": None})
    with pytest.raises(
        ConversionError, match=r"mis-typed: stem/bias, found .*expected one of float16, bfloat16"
    ) as caught:
        convert(arrays, to="torch")
    assert (caught.value.missing_keys, caught.value.mismatched_keys) == (("head/bias",), ("stem/bias",))


@pytest.mark.parametrize("kernel", [None, np.ones((18, 20), np.float32)], ids=["missing", "flat"])
def test_arrays_that_do_not_show_a_size_are_named_with_all_else_that_is_wrong(kernel: Any) -> None:
    arrays = broken(**{"stem/kernel": kernel, "stem/bias": np.ones(3, np.float32), "extra": np.ones(1)})
    with pytest.raises(ConversionError) as caught:
        convert(arrays, to="torch")
    assert "expected (ph, pw, channels, 20)" in str(caught.value)
    assert "mis-shaped: stem/bias, found (3,), expected (20,)" in str(caught.value)
    assert caught.value.unexpected_keys == ("extra",)
    assert "stem/kernel" in caught.value.missing_keys + caught.value.mismatched_keys


def test_what_our_torch_weights_were_trained_with_is_not_claimed() -> None:
    with pytest.warns(ConventionWarning, match="is not recorded, and torch's code computes tanh GELU"):
        convert(TorchMixer(CONFIG.replace(activation="relu")).state_dict(), to="timm")


@given(data=st.data())
def test_fixed_fields_of_drawn_configs_are_kept(data: Any) -> None:
    fields = data.draw(
        st.sampled_from([{"image_size": 8}, {"patch_size": 16}, {"patch_size": (2, 5)}, {"image_size": (6, 4)}])
    )
    config = data.draw(configs(allow_headless=True, **fields))
    assert all(config == config.replace(**{name: value}) for name, value in fields.items())
    params = data.draw(strategies.params(config, style="special", dtype=np.float32))
    assert sum(array.size for array in params.values()) == config.num_parameters


@pytest.mark.parametrize("function", [convert, flax_to_torch, torch_to_flax])
def test_what_is_converted_is_first_and_the_rest_goes_by_name(function: Any) -> None:
    first, *others = inspect.signature(function).parameters.values()
    assert first.kind == first.POSITIONAL_OR_KEYWORD
    assert {other.kind for other in others} == {first.KEYWORD_ONLY}


def test_torch_is_imported_for_its_types_alone() -> None:
    assert "torch" not in vars(sys.modules["mixer_equiv.checkpoints.conversion"])
