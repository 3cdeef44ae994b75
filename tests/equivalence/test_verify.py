import dataclasses
import importlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx

from mixer_equiv import Checkpoint, ConfigError, MixerConfig, MixerEquivError, convert, save, verify
from mixer_equiv.arrays.interop import unflatten
from mixer_equiv.equivalence.policy import Policy, residual
from mixer_equiv.equivalence.record.precision import jax_full_precision
from mixer_equiv.equivalence.sides import runners
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_images, random_params
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.flax import activations as flax_activations
from mixer_equiv.models.nnx import MlpMixer as NnxMixer
from mixer_equiv.models.torch import activations as torch_activations
from mixer_equiv.models.torch import model as torch_models

pytestmark = pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")

CONFIG = DEFAULT_CONFIG


def checkpoint(config: MixerConfig = CONFIG, seed: int = 0, **changes: Any) -> Any:
    params = {name: array.astype(np.float32) for name, array in random_params(config, seed).items()}
    return Checkpoint.from_arrays({**params, **changes}, config=config, source="given.npz")


def port_of(source: Any, **changes: Any) -> Any:
    """The torch port of a checkpoint, with some arrays exchanged, by canonical name."""
    return convert(Checkpoint.from_arrays({**source.arrays, **changes}, config=source.config), to="torch")


# Equivalent


@pytest.mark.parametrize(
    ("a", "b"), [("flax", "torch"), ("torch", "reference"), ("reference", "flax"), ("torch", None), ("nnx", "torch")]
)
def test_built_in_models_are_the_same_function(a: Any, b: Any) -> None:
    report = verify(a, b)
    assert report.verdict == "equivalent"
    assert report.equivalent
    assert report.residual <= report.decision <= 1e-12
    assert (report.causes, report.warnings, report.reasons) == ((), (), ())
    assert report.first_divergence is None
    for side, name in zip(report.sides, (a, b or "flax"), strict=True):
        assert side.rms_error is None if name == "reference" else 1e-8 < side.rms_error < 1e-6


@pytest.mark.parametrize("layout", ["torch", "timm", "jankrepl"])
def test_a_port_holds_the_same_weights_and_is_the_same_function(layout: Any) -> None:
    given = checkpoint()
    report = verify(given, convert(given, to=layout))
    assert report.verdict == "equivalent"
    assert [side.round_trip for side in report.sides] == [True, True]
    assert report.weights == "bit by bit"
    assert len(report.stages) == 1 + 2 * 12 + 3
    assert report.mapping["MixerBlock_10/LayerNorm_0/scale"].startswith("blocks.10.")


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_weights_are_evaluated_as_they_were_trained(activation: Any) -> None:
    given = checkpoint(CONFIG.replace(activation=activation, layer_norm_eps=1e-5))
    assert verify(given).verdict == "equivalent"


def test_a_headless_model_is_compared_on_its_pooled_features() -> None:
    given = checkpoint(CONFIG.replace(num_classes=0))
    report = verify(given)
    assert (report.verdict, report.stages[-1].name, report.prediction_flips) == ("equivalent", "pooled", None)


def test_models_of_ours_are_compared_as_programs_or_with_their_weights() -> None:
    torch.manual_seed(0)
    model = torch_models.MlpMixer(CONFIG)
    assert verify(model).verdict == "equivalent"
    assert verify(FlaxMixer(CONFIG), model).verdict == "equivalent"
    assert verify(model, weights="given").verdict == "nothing_compared"
    torch.nn.init.normal_(model.head.weight)
    report = verify(model, weights="given")
    assert (report.verdict, report.sides[0].round_trip) == ("equivalent", True)


def test_weights_of_a_third_party_go_to_both_sides(tmp_path: Path) -> None:
    save(checkpoint(seed=5), tmp_path / "third.npz")
    report = verify("flax", "torch", weights=tmp_path / "third.npz")
    assert (report.verdict, report.weights) == ("equivalent", "from third.npz (linen)")
    assert report.max_difference != verify("flax", "torch", weights=checkpoint(seed=6)).max_difference


def test_an_assumed_image_size_gives_way_to_a_stated_one() -> None:
    assumed = Checkpoint.from_arrays(checkpoint().arrays)
    assert assumed.config.image_size == (6, 12)
    assert verify(assumed, port_of(checkpoint())).verdict == "equivalent"
    report = verify(assumed, image=(3, 8, 9))
    assert report.verdict == "equivalent"


def test_seeds_draw_other_weights_and_images_and_are_repeatable() -> None:
    one, again, other = (verify("torch", "reference", seed=seed) for seed in (1, 1, 2))
    assert one.residual == again.residual != other.residual


# Not equivalent


@pytest.mark.parametrize(
    ("changes", "causes"),
    [
        ({"activation": "gelu"}, [("activation", "gelu", "gelu_tanh", "all 24 MLPs")]),
        ({"layer_norm_eps": 1e-5}, [("layer_norm_eps", "1e-05", "1e-06", "all 25 LayerNorms")]),
        (
            {"activation": "quick_gelu", "layer_norm_eps": 1e-3},
            [
                ("activation", "quick_gelu", "gelu_tanh", "all 24 MLPs"),
                ("layer_norm_eps", "0.001", "1e-06", "all 25 LayerNorms"),
            ],
        ),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_declared_conventions_that_differ_are_named_and_shown_to_be_all(changes: Any, causes: Any, order: Any) -> None:
    odd = torch_models.MlpMixer(CONFIG.replace(**changes))
    report = verify(*[odd, "flax"][::order])
    assert report.verdict == "equivalent_under"
    assert [(c.name, c.found, c.expected, c.count) for c in report.causes] == causes
    assert report.residual > 1e-9
    assert report.residual_without_causes <= 1e-12
    assert report.first_divergence in ("MixerBlock_0/token_mixing",)
    assert all(cause.evidence == "in torch" for cause in report.causes)


@pytest.mark.parametrize(
    ("stage", "block", "part"), [("MixerBlock_10/token_mixing", 10, 0), ("MixerBlock_2/channel_mixing", 2, 1)]
)
def test_an_undeclared_deviation_is_found_at_its_stage_and_no_cause_is_claimed(
    monkeypatch: pytest.MonkeyPatch, stage: Any, block: Any, part: Any
) -> None:
    forward = torch_models.MlpMixer.forward

    def deviating(self: Any, images: Any, *, taps: Any = False) -> Any:
        mixer_block = self.blocks[block]
        mlp = (mixer_block.token_mixing, mixer_block.channel_mixing)[part]
        mlp.register_forward_hook(lambda module, args, out: out * (1 + 1e-9))
        return forward(self, images, taps=taps)

    monkeypatch.setattr(torch_models.MlpMixer, "forward", deviating)
    report = verify("flax", "torch")
    assert (report.verdict, report.first_divergence, report.causes) == ("different", stage, ())
    assert report.reasons == (f"torch departs from the NumPy reference at {stage}",)


@pytest.fixture
def uncached() -> Iterator[Any]:
    """Programs compiled for this test alone, because it changes what they compute."""
    runners._jitted_child.cache_clear()
    yield
    runners._jitted_child.cache_clear()


SQUARE = DEFAULT_CONFIG.replace(
    patch_size=2, image_size=(8, 6), hidden_dim=12, tokens_mlp_dim=12, channels_mlp_dim=12, num_blocks=12
)


def _with_names(weights: Any, rename: Any) -> Any:
    return {rename(name): array for name, array in weights.items()}


def _swapped(old: Any, new: Any) -> Any:
    return lambda name: name.replace(old, "?").replace(new, old).replace("?", new)


def _one(name: str, change: Any) -> Any:
    return lambda weights: {**weights, name: change(weights[name])}


def _blocks(weights: Any) -> Any:
    order = sorted(range(12), key=str)
    pairs = [re.match(r"MixerBlock_(\d+)/(.*)", name) for name in weights]
    return {
        name: weights[f"MixerBlock_{order[int(pair[1])]}/{pair[2]}"] if pair else weights[name]
        for name, pair in zip(weights, pairs, strict=True)
    }


def _columns(weights: Any) -> Any:
    order = np.arange(12).reshape(4, 3).T.reshape(-1)
    axes = {"Dense_0/kernel": 0, "Dense_1/kernel": 1, "Dense_1/bias": 0}
    axis = {name: axes.get(name.partition("/token_mixing/")[2]) for name in weights}
    return {n: array if axis[n] is None else array.take(order, axis[n]) for n, array in weights.items()}


PORT_FAULTS = {
    "kernel_not_transposed": lambda w: {n: a.T if n.endswith("Dense_0/kernel") else a for n, a in w.items()},
    "norms_swapped": lambda w: _with_names(w, _swapped("LayerNorm_0", "LayerNorm_1")),
    "mlps_swapped": lambda w: _with_names(w, _swapped("token_mixing", "channel_mixing")),
    "blocks_reordered": _blocks,
    "stem_flattened": _one("stem/kernel", lambda k: k.transpose(2, 0, 1, 3).reshape(k.shape)),
    "stem_hw_swapped": _one("stem/kernel", lambda k: k.swapaxes(0, 1)),
    "tokens_by_columns": _columns,
    "zeroed": _one("MixerBlock_7/channel_mixing/Dense_1/bias", np.zeros_like),
    "head_not_loaded": lambda w: {n: np.sin(a) if n.startswith("head/") else a for n, a in w.items()},
    "rounded_to_bfloat16": lambda w: {n: a.astype(ml_dtypes.bfloat16).astype(a.dtype) for n, a in w.items()},
    "last_place": _one("MixerBlock_11/LayerNorm_1/scale", lambda a: np.nextafter(a, np.float32(9))),
}


@pytest.mark.parametrize("fault", PORT_FAULTS)
def test_every_port_fault_is_named(fault: Any) -> None:
    weights = {name: array.astype(np.float32) for name, array in random_params(SQUARE, 0).items()}
    changed = PORT_FAULTS[fault](weights)
    sides = [Checkpoint.from_arrays(side, config=SQUARE) for side in (weights, changed)]
    report = verify(*sides)
    assert report.verdict == "different"
    assert [cause.name for cause in report.causes] == [fault]
    assert {cause.kind for cause in report.causes} == {"port"}


def test_the_reference_notices_what_both_sides_do_wrong_alike(monkeypatch: pytest.MonkeyPatch, uncached: Any) -> None:
    monkeypatch.setitem(torch_activations.ACTIVATIONS, "gelu_tanh", torch_activations.ACTIVATIONS["gelu"])
    monkeypatch.setitem(flax_activations.ACTIVATIONS, "gelu_tanh", flax_activations.ACTIVATIONS["gelu"])
    report = verify("flax", "torch")
    assert report.residual <= 1e-12 < report.decision
    assert (report.verdict, report.first_divergence) == ("different", "MixerBlock_0/token_mixing")
    assert len(report.reasons) == 2


UNSEEN = "MixerBlock_3/token_mixing/Dense_1/bias"


@pytest.mark.parametrize(
    ("name", "fault", "cause"),
    [
        ("MixerBlock_10/token_mixing/Dense_0/kernel", lambda x: np.nextafter(x, np.inf), "last_place"),
        ("stem/bias", np.zeros_like, "zeroed"),
        (UNSEEN, lambda x: x + 1, "weights"),
        ("head/kernel", lambda x: -x, "weights"),
        ("pre_head_layer_norm/bias", lambda x: x.astype(np.float64), "dtype"),
    ],
    ids=["one ulp", "a bias zeroed", "a bias no output shows", "a sign", "a dtype"],
)
def test_a_port_fault_in_one_array_is_different_weights_wherever_it_shows(name: str, fault: Any, cause: Any) -> None:
    given = checkpoint()
    report = verify(given, port_of(given, **{name: fault(given.arrays[name])}))
    assert (report.verdict, [cause.name for cause in report.causes]) == ("different", [cause])
    assert report.causes[0].count == "1 of 150 arrays"
    assert name in report.causes[0].evidence
    assert name != UNSEEN or report.residual <= 1e-12


def test_parameters_no_output_shows_are_named_and_indeed_unseen() -> None:
    given = checkpoint()
    report = verify(given, weights="random")
    assert UNSEEN in report.unobservable
    assert len(report.unobservable) == 12
    shifted = {name: given.arrays[name] + np.float32(3) for name in report.unobservable}
    assert verify(given, port_of(given, **shifted)).residual <= 1e-12


def test_weights_rounded_to_bfloat16_are_other_weights() -> None:
    given = checkpoint()
    report = verify(given, convert(given, to="torch").astype("bfloat16"))
    assert report.verdict == "different"
    assert "float32 against bfloat16" in report.causes[0].evidence


def test_swapped_blocks_are_different_weights_and_diverge_at_the_first_of_them() -> None:
    given = checkpoint()
    second = {name: array for name, array in given.arrays.items() if name.startswith("MixerBlock_2/")}
    changes = {}
    for name, array in second.items():
        other = name.replace("MixerBlock_2/", "MixerBlock_10/")
        changes.update({other: array, name: given.arrays[other]})
    report = verify(given, port_of(given, **changes))
    assert (report.verdict, report.first_divergence) == ("different", "MixerBlock_2/token_mixing")


def test_other_sizes_are_different_and_nothing_is_run() -> None:
    report = verify("flax:S/32", "torch:S/16")
    assert (report.verdict, report.residual, report.stages) == ("different", None, ())
    assert "patch_size is [32, 32] in one and [16, 16] in the other" in report.reasons


# Nothing compared


def test_logits_that_no_image_moves_compare_nothing() -> None:
    zero_head = {"head/kernel": np.zeros((20, 7), np.float32)}
    report = verify(checkpoint(**zero_head))
    assert report.verdict == "nothing_compared"
    assert report.residual <= 1e-12
    assert "hardly move with the image (by 0.0e+00 of their size)" in report.reasons[0]
    zero_bias = {"head/bias": np.zeros(7, np.float32)}
    assert verify(checkpoint(**zero_head, **zero_bias)).verdict == "nothing_compared"
    assert verify(checkpoint(**zero_bias)).verdict == "equivalent"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_equal_nothing(value: Any) -> None:
    bias = np.linspace(-1, 1, 20, dtype=np.float32)
    bias[3] = value
    report = verify(checkpoint(**{"stem/bias": bias}))
    assert report.verdict == "nothing_compared"
    assert json.loads(report.to_json())["residual"] is None


# Rounding


def test_ill_conditioned_rounding_is_told_from_another_function() -> None:
    shifted = checkpoint(**{"stem/bias": np.full(20, 1e4, np.float32) + checkpoint().arrays["stem/bias"]})
    report = verify(shifted)
    assert report.decision > 1e-12
    assert report.verdict == "equivalent"
    assert "MixerBlock_0/LayerNorm_0 sees rows with mean^2/variance up to" in " ".join(report.warnings)
    other = convert(shifted, to="torch")
    other = Checkpoint.from_arrays(other.arrays, config=CONFIG.replace(layer_norm_eps=1e-3))
    assert verify(shifted, other).verdict != "equivalent"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_residual_is_never_small_where_something_is_not_finite(value: Any) -> None:
    x = np.ones(3)
    bad = np.array([1.0, value, 1.0])
    assert residual(bad, x) == residual(x, bad) == residual(bad, bad) == np.inf
    assert residual(np.zeros(3), np.zeros(3)) == 0
    assert residual(x, np.zeros(3)) == np.inf
    assert residual(x * (1 + 1e-10), x) == pytest.approx(1e-10, rel=1e-4)


# Hygiene


def test_nothing_of_the_user_s_is_changed() -> None:
    torch.manual_seed(3)
    model = torch_models.MlpMixer(CONFIG).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    states = [torch.get_rng_state(), torch.get_default_dtype(), *(s.fp32_precision for s in settings)]
    numpy_state = np.random.get_state()[1].tolist()
    given = checkpoint()
    arrays = {name: array.copy() for name, array in given.arrays.items()}
    verify(model, weights=given)
    after = [torch.get_rng_state(), torch.get_default_dtype(), *(s.fp32_precision for s in settings)]
    assert torch.equal(states[0], after[0])
    assert states[1:] == after[1:]
    assert numpy_state == np.random.get_state()[1].tolist()
    assert not jax.config.jax_enable_x64  # type: ignore[attr-defined]
    assert jnp.ones(1, jnp.float32).dtype == jnp.float32
    assert model.training
    assert torch.is_grad_enabled()
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(np.array_equal(arrays[name], array) for name, array in given.arrays.items())


def test_settings_come_back_when_a_model_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(self: Any, images: Any, *, taps: Any = False) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(torch_models.MlpMixer, "forward", raising)
    precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        verify("flax", "torch")
    assert torch.is_grad_enabled()
    assert torch.backends.cudnn.conv.fp32_precision == precision  # type: ignore[attr-defined]
    assert not jax.config.jax_enable_x64  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("flax", "torch", {"weights": "given"}), "neither flax nor torch has weights"),
        (("flax", "torch", {"weights": "torch"}), "weights is 'torch'; it must be 'given', 'random' or a checkpoint"),
        (("flax", "keras", {}), "'keras' is neither a file nor the name of a model; verify takes a checkpoint"),
        ((torch.nn.Linear(2, 2), None, {}), r"the image that Linear takes is not known: give image="),
        (
            ("flax", None, {"images": np.ones((2, 3, 8, 9))}),
            r"images have shape \(2, 3, 8, 9\); expected \(batch, 8, 9, 3\)",
        ),
        (("flax", None, {"images": np.ones((0, 8, 9, 3))}), r"images have shape \(0, 8, 9, 3\)"),
        (("flax", None, {"kwargs": {"depth": 3}}), "MixerConfig has no field depth"),
        (("flax:Q/16", None, {}), "no Mixer is called 'Q/16'"),
    ],
)
def test_what_cannot_be_verified_is_said(arguments: Any, message: str) -> None:
    a, b, options = arguments
    with pytest.raises(MixerEquivError, match=message):
        verify(a, b, **options)


def test_weights_of_other_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"the weights of given.npz \(linen\) do not fit flax: hidden_dim is 21"):
        verify("flax", "torch", kwargs={"hidden_dim": 21}, weights=checkpoint())
    with pytest.raises(ConfigError, match=r"the image has 1 channels and given.npz"):
        verify(checkpoint(), image=(1, 8, 9))


# The report


def test_the_report_is_complete_as_text_and_as_json() -> None:
    images, labels = random_images(CONFIG, 3), np.arange(8) % 7
    report = verify(checkpoint(), images=images, labels=labels)
    values = json.loads(report.to_json())
    assert values.keys() >= {
        *("verdict", "residual", "threshold", "stages", "first_divergence", "causes", "reasons", "mapping"),
        *("unobservable", "warnings", "environment"),
    }
    assert values["stages"][-1]["name"] == "logits"
    assert values["environment"].keys() >= {"python", "numpy", "torch", "jax", "flax", "precision"}
    text = str(report)
    for part in (
        "18,003",
        "bit-identical",
        "block 11 channel mixing",
        "fp32 error",
        "accuracy",
        "0 of 8",
        "EQUIVALENT",
    ):
        assert part in text
    assert "EQUIVALENT: fp64 residual" in text


def test_built_ins_take_their_sizes_from_the_weights_they_are_given() -> None:
    config = CONFIG.replace(num_blocks=2, hidden_dim=9)
    report = verify("flax", "torch", weights=checkpoint(config))
    assert (report.verdict, report.sides[0].num_parameters) == ("equivalent", config.num_parameters)


def test_an_empty_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match="no Mixer is called ''"):
        verify("flax:")
    with pytest.raises(ConfigError, match="seed is -1; it must be a whole number of at least 0"):
        verify("flax", seed=-1)


def test_not_a_number_makes_no_float32_warning() -> None:
    bias = np.full(20, np.nan, np.float32)
    report = verify(checkpoint(**{"stem/bias": bias}))
    assert report.warnings == ()
    assert "nan" not in str(report)


def test_a_conversion_that_does_not_come_back_is_never_equivalent(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("mixer_equiv.equivalence.judge.report_assembly")
    relabelled = module.convert

    def losing(source: Any, to: Any) -> Any:
        result = relabelled(source, to=to)
        first = next(iter(result.arrays))
        return dataclasses.replace(result, arrays={**result.arrays, first: np.nextafter(result.arrays[first], 9)})

    given = checkpoint()
    port = convert(given, to="timm")
    monkeypatch.setattr(module, "convert", losing)
    report = verify(given, port)
    assert (report.verdict, [cause.name for cause in report.causes]) == ("different", ["round_trip"] * 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, int), r"labels are \(3,\) int64; expected \(8,\) whole numbers"),
        (np.zeros(8), r"labels are \(8,\) float64; expected \(8,\) whole numbers"),
    ],
)
def test_labels_that_fit_no_prediction_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        verify("flax", labels=labels)
    with pytest.raises(ConfigError, match="flax has no head to predict them"):
        verify("flax", kwargs={"num_classes": 0}, labels=np.zeros(8, int))


@pytest.mark.parametrize("kind", [torch.from_numpy, jnp.asarray, np.ndarray.tolist], ids=["torch", "jax", "list"])
def test_images_of_any_framework_are_taken(kind: Any) -> None:
    images = random_images(CONFIG, 5).astype(np.float32)
    assert verify("torch", "reference", images=kind(images)).num_images == 8


def changed_activation(model: Any) -> None:
    model.blocks[0].token_mixing.activation = "relu"


def changed_eps(model: Any) -> None:
    model.blocks[1].layer_norm_0.eps = 0.1


def removed_norm(model: Any) -> None:
    model.pre_head_layer_norm.forward = lambda x: x


def hooked_stem(model: Any) -> None:
    model.stem.register_forward_hook(lambda module, args, out: 2 * out)


@pytest.mark.parametrize("weights", ["random", "given"])
@pytest.mark.parametrize(
    ("change", "stage"),
    [(changed_activation, "MixerBlock_0/token_mixing"), (changed_eps, "MixerBlock_1/token_mixing")],
)
def test_the_caller_s_own_module_is_what_runs(change: Any, stage: Any, weights: Any) -> None:
    torch.manual_seed(0)
    model = torch_models.MlpMixer(CONFIG)
    torch.nn.init.normal_(model.head.weight)
    assert verify(model, "flax", weights=weights).verdict == "equivalent"
    change(model)
    report = verify(model, "flax", weights=weights)
    assert (report.verdict, report.first_divergence, report.causes) == ("different", stage, ())
    assert report.reasons[0] == f"torch departs from the NumPy reference at {stage}"


@pytest.mark.parametrize("weights", ["random", "given"])
@pytest.mark.parametrize(
    ("change", "verdict", "stage", "cause"),
    [
        (removed_norm, "inexpressible", "pre_head_layer_norm", ("layer_norm_missing", "none")),
        (hooked_stem, "different", "MixerBlock_0/token_mixing", ("constant", "* 2")),
    ],
)
def test_what_is_hooked_onto_the_caller_s_module_is_named(
    change: Any, verdict: Any, stage: Any, cause: Any, weights: Any
) -> None:
    torch.manual_seed(0)
    model = torch_models.MlpMixer(CONFIG)
    torch.nn.init.normal_(model.head.weight)
    change(model)
    report = verify(model, "flax", weights=weights)
    assert (report.verdict, report.first_divergence) == (verdict, stage)
    assert [(c.name, c.found) for c in report.causes] == [cause]


def shifted(by: Any, **conventions: Any) -> Any:
    bias = checkpoint().arrays["stem/bias"] + np.float32(by)
    return checkpoint(CONFIG.replace(**conventions), **{"stem/bias": bias})


@pytest.mark.parametrize("by", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("conventions", [{"activation": "gelu"}, {"layer_norm_eps": 1e-3}])
def test_rounding_never_hides_a_declared_difference(by: Any, conventions: Any) -> None:
    report = verify(shifted(by), convert(shifted(by, **conventions), to="torch"))
    assert report.verdict in ("equivalent_under", "nothing_compared")
    if report.verdict == "equivalent_under":
        assert [cause.name for cause in report.causes] == list(conventions)
    else:
        assert "LayerNorm_0 sees rows with mean^2/variance" in report.reasons[0]


def test_what_is_too_ill_conditioned_to_tell_is_not_judged() -> None:
    report = verify(shifted(3e6))
    assert report.verdict == "nothing_compared"
    assert "may be rounding" in report.reasons[0]


def test_residuals_in_both_precisions_are_rated() -> None:
    policy = Policy()
    assert policy.rate(1e-12, np.inf) == "same"
    assert policy.rate(2e-12, 1e-5) == "rounding"
    assert policy.rate(2e-12, 1e-7) == "apart"
    assert policy.rate(1e-5, 1e3) == "undecidable"
    assert policy.rate(1e-4, 0.5) == policy.rate(1e-5, np.inf) == "undecidable"
    assert policy.rate(7e-9, 1.4e-7) == policy.rate(0.5, 0.5) == policy.rate(np.inf, np.inf) == "apart"


def test_a_huge_constant_in_the_logits_does_not_hide_the_function() -> None:
    bias = {"head/bias": np.full(7, 1e10, np.float32)}
    erf = CONFIG.replace(activation="gelu")
    assert verify(checkpoint(**bias)).verdict == "nothing_compared"
    assert verify(checkpoint(**bias), checkpoint(erf, **bias)).verdict == "nothing_compared"


def test_one_image_is_enough_to_see_that_the_head_is_zero() -> None:
    zero_head = checkpoint(**{"head/kernel": np.zeros((20, 7), np.float32)})
    assert verify(zero_head, images=random_images(CONFIG, 0)[:1]).verdict == "nothing_compared"
    assert verify(checkpoint(), images=random_images(CONFIG, 0)[:1]).verdict == "equivalent"


def test_other_weights_are_different_even_where_the_outputs_show_nothing() -> None:
    zero = {"head/kernel": np.zeros((20, 7), np.float32)}
    other = {**zero, "stem/bias": np.ones(20, np.float32)}
    assert verify(checkpoint(**zero), checkpoint(**other)).verdict == "different"
    nan = checkpoint(**{"stem/bias": np.full(20, np.nan, np.float32)})
    report = verify(checkpoint(), nan)
    assert (report.verdict, report.weights) == ("different", "1 of 150 arrays differ")


def test_the_same_values_in_another_dtype_are_said_to_be_the_same_values() -> None:
    given = checkpoint()
    report = verify(given, convert(given, to="torch").astype("float64"))
    assert "the same values, float32 against float64" in report.causes[0].evidence


def test_the_caller_s_precision_modes_do_not_reach_in() -> None:
    with torch.autocast("cpu", torch.bfloat16), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        assert verify("flax", "torch").verdict == "equivalent"


def test_threads_leave_the_precision_settings_as_they_were() -> None:
    switches = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    with ThreadPoolExecutor(8) as pool:
        reports = list(pool.map(lambda seed: verify("torch", "reference", seed=seed), range(16)))
    assert {report.verdict for report in reports} == {"equivalent"}
    assert [switch.fp32_precision for switch in switches] == before


def test_a_declared_difference_beside_a_hook_is_named_with_it() -> None:
    torch.manual_seed(0)
    model = torch_models.MlpMixer(CONFIG.replace(activation="gelu"))
    hooked_stem(model)
    report = verify(model, "flax")
    assert (report.verdict, report.residual_without_causes is None) == ("different", False)
    assert [(cause.name, cause.found) for cause in report.causes] == [("constant", "* 2"), ("activation", "gelu")]


def test_an_nnx_model_is_a_subject_with_weights_of_its_own() -> None:
    config = CONFIG.replace(activation="gelu")
    model = NnxMixer(config, rngs=nnx.Rngs(0))
    nnx.update(model, unflatten(random_params(config, 3)))
    assert verify(model, "flax").causes[0].name == "activation"
    with jax_full_precision():
        nnx.update(model, unflatten(random_params(config, 3)))
        report = verify(model, Checkpoint.from_arrays(random_params(config, 3), config=config), weights="given")
        assert report.verdict == "equivalent"
        report = verify(model, Checkpoint.from_arrays(random_params(config, 4), config=config), weights="given")
        assert report.verdict == "different"
