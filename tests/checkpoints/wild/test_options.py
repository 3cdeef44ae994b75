"""Arrays to leave out and names that are called otherwise: errors say the option, and typing it does it.

The options are taken out of the message as a reader would, and typed in Python and on the command line; the weights
are then the true ones to the last bit.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from mixer_equiv import Checkpoint, ConversionError, LayoutError, convert, load
from mixer_equiv.arrays.interop import unflatten
from mixer_equiv.layouts import Conventions
from tests.support.checkpoints import in_layout
from tests.support.command_line import run
from tests.support.files import changed
from tests.support.sizes import CONFIG, in_float32

CANONICAL = in_float32(CONFIG, 0)
Arrays = dict[str, np.ndarray]


@cache
def truth(layout: str) -> Checkpoint:
    return in_layout(CANONICAL, layout)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


class Options(NamedTuple):
    """What a message says to pass, in Python and on the command line."""

    passed: dict[str, Any]
    typed: list[str]


def options_in(message: str) -> Options:
    python = {
        name: ast.literal_eval(value) for name, value in re.findall(r"(ignore|rename)=(\[.*?\]|\{.*?\}) \(--", message)
    }
    sure = [words for words in re.findall(r"\((--(?:ignore|rename) [^()]+)\)", message) if " or " not in words]
    return Options(python, shlex.split(" ".join(sure)))


# Names of a layout, each with what replaces a part of them, and arrays beside them; and the option that is to be said.


class Case(NamedTuple):
    layout: str
    called: Mapping[str, str]
    beside: Mapping[str, tuple[int, ...]]
    said: Mapping[str, Any]

    @property
    def arrays(self) -> Arrays:
        result = dict(truth(self.layout).arrays)
        for old, new in self.called.items():
            result = {re.sub(rf"(^|(?<=[./])){old}(?=[./])", new, name): array for name, array in result.items()}
        return {**result, **{name: noise(*shape) for name, shape in self.beside.items()}}


TOWER = {f"text.blocks.{i}.{name}.weight": (5, 3) for i in range(3) for name in ("qkv", "proj")}
EACH_BLOCK = [f"blocks.{i}.{name}" for i in range(CONFIG.num_blocks) for name in ("alpha", "beta")]
HEAD = {"head_dist.weight": (7, 20), "head_dist.bias": (7,)}

CASES: dict[str, Case] = {
    "text tower": Case("timm", {}, {**TOWER, "text.embed": (9, 4)}, {"ignore": ["text.*"]}),
    "text tower of Flax": Case("linen", {}, {"text/embed/kernel": (9, 4)}, {"ignore": ["text/*"]}),
    "distilled head": Case("timm", {}, HEAD, {"ignore": ["head_dist.*"]}),
    "learned scalar": Case("timm", {}, {"logit_scale": ()}, {"ignore": ["logit_scale"]}),
    "learned scalars": Case(
        "timm", {}, dict.fromkeys(EACH_BLOCK, (1,)), {"ignore": ["blocks.*.alpha", "blocks.*.beta"]}
    ),
    "learned scales": Case(
        "torch", {}, dict.fromkeys(EACH_BLOCK, (20,)), {"ignore": ["blocks.*.alpha", "blocks.*.beta"]}
    ),
    "loss": Case("timm", {}, {"criterion.weight": (7,)}, {"ignore": ["criterion.*"]}),
    "head": Case("timm", {"head": "classifier"}, {}, {"rename": {"classifier": "head"}}),
    "head of Flax": Case("linen", {"head": "classifier"}, {}, {"rename": {"classifier": "head"}}),
    "head of a module": Case("timm", {"head": "head.fc"}, {}, {"rename": {"head.fc": "head"}}),
    "final norm": Case("timm", {"norm": "fc_norm"}, {}, {"rename": {"fc_norm": "norm"}}),
    "final norm of Flax": Case(
        "linen", {"pre_head_layer_norm": "encoder_norm"}, {}, {"rename": {"encoder_norm": "pre_head_layer_norm"}}
    ),
    "stem": Case("timm", {"stem": "patch_embed"}, {}, {"rename": {"patch_embed": "stem"}}),
    "stem of one part": Case("timm", {r"stem\.proj": "embed"}, {}, {"rename": {"embed": "stem.proj"}}),
    "LayerNorms": Case("timm", {"norm1": "ln1", "norm2": "ln2"}, {}, {"rename": {"ln1": "norm1", "ln2": "norm2"}}),
    "LayerNorms counted from 1": Case(
        "linen",
        {"LayerNorm_0": "ln1", "LayerNorm_1": "ln2"},
        {},
        {"rename": {"ln1": "LayerNorm_0", "ln2": "LayerNorm_1"}},
    ),
    "an MLP": Case("timm", {"mlp_tokens": "token_mlp"}, {}, {"rename": {"token_mlp": "mlp_tokens"}}),
    "MLPs": Case(
        "timm",
        {"mlp_tokens": "token_mlp", "mlp_channels": "channel_mlp"},
        {},
        {"rename": {"token_mlp": "mlp_tokens", "channel_mlp": "mlp_channels"}},
    ),
    "MLPs of Flax": Case(
        "linen",
        {"token_mixing": "mlp1", "channel_mixing": "mlp2"},
        {},
        {"rename": {"mlp1": "token_mixing", "mlp2": "channel_mixing"}},
    ),
    "layers of MLPs": Case("timm", {"fc1": "lin1", "fc2": "lin2"}, {}, {"rename": {"lin1": "fc1", "lin2": "fc2"}}),
    "head, and a tower": Case(
        "timm", {"head": "classifier"}, TOWER, {"rename": {"classifier": "head"}, "ignore": ["text.*"]}
    ),
    "all but the blocks": Case(
        "torch",
        {"stem": "embed", "pre_head_layer_norm": "norm", "head": "fc"},
        {},
        {"rename": {"embed": "stem", "norm": "pre_head_layer_norm", "fc": "head"}},
    ),
}


def message_on(arrays: Any, **options: Any) -> str:
    with pytest.raises((ConversionError, LayoutError)) as caught:
        Checkpoint.from_arrays(arrays, **options).check()
    return str(caught.value)


def assert_read(layout: str, arrays: Any, **options: Any) -> Checkpoint:
    found = Checkpoint.from_arrays(arrays, trained_with=Conventions(), **options)
    found.check()
    assert changed(truth(layout).arrays, found.arrays) == []
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_option_that_the_error_says_does_it(case: str) -> None:
    layout, _, _, said = CASES[case]
    passed, _ = options_in(message_on(CASES[case].arrays))
    assert passed == said
    found = assert_read(layout, CASES[case].arrays, **passed)
    for old, new in passed.get("rename", {}).items():
        assert f"{old} was read as {new}, as told" in found.notes
    assert any(note.startswith("left out, as told: ") for note in found.notes) == ("ignore" in passed)
    assert changed(CANONICAL, convert(found, to="linen").arrays) == []


@pytest.mark.parametrize("case", CASES)
def test_the_option_that_the_error_says_does_it_on_the_command_line(tmp_path: Path, case: str) -> None:
    source, target = tmp_path / "x.npz", tmp_path / "y.safetensors"
    np.savez(source, **CASES[case].arrays)
    _, typed = options_in(run("convert", source, target, "--to", "torch", status=2).stderr)
    assert typed
    assert not target.exists()
    run("convert", source, target, "--to", "torch", *typed)
    assert changed(truth("torch").arrays, load(target).arrays) == []


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_every_command_that_reads_takes_the_options(tmp_path: Path, command: str) -> None:
    np.savez(tmp_path / "x.npz", **CASES["head, and a tower"].arrays)
    typed = ["--rename", "classifier=head", "--ignore", "text.*"]
    assert "18,003" in run(command, tmp_path / "x.npz", *typed).output


def keystr(name: str) -> str:
    return "".join(f"['{part}']" for part in name.split("/"))


# What else was done to the names.
WRITTEN: dict[str, Any] = {
    "keystr": lambda arrays: {keystr(name): array for name, array in arrays.items()},
    "tuples": lambda arrays: {tuple(name.split("/")): array for name, array in arrays.items()},
    "text of tuples": lambda arrays: {str(tuple(name.split("/"))): array for name, array in arrays.items()},
    "nested": unflatten,
    "params": lambda arrays: {"params": unflatten(arrays), "step": np.array(3)},
    "replicated": lambda arrays: {name: np.stack([array] * 3) for name, array in arrays.items()},
    "dots": lambda arrays: {name.replace("/", "."): array for name, array in arrays.items()},
    "boxes": lambda arrays: {f"{name}/value": array for name, array in arrays.items()},
    "nn.remat": lambda arrays: {name.replace("MixerBlock", "CheckpointMixerBlock"): a for name, a in arrays.items()},
}


@pytest.mark.parametrize("case", ["text tower of Flax", "LayerNorms counted from 1", "MLPs of Flax"])
@pytest.mark.parametrize("written", WRITTEN)
def test_the_options_are_said_and_do_it_whatever_was_done_to_the_names(written: str, case: str) -> None:
    arrays = WRITTEN[written](CASES[case].arrays)
    assert_read("linen", arrays, **options_in(message_on(arrays)).passed)


# Two sets of weights, one within the other


def test_of_a_mixer_within_another_the_outer_one_is_read_by_the_option_that_the_error_says() -> None:
    text = {f"text.{name}": noise(*array.shape) for name, array in truth("timm").arrays.items()}
    arrays = {**truth("timm").arrays, **text}
    message = message_on(arrays)
    assert "two sets of Mixer weights are here, under '' and 'text.'; say which with prefix= (--prefix)" in message
    assert_read("timm", arrays, **options_in(message).passed)
    found = Checkpoint.from_arrays(arrays, prefix="text")
    assert changed({name.removeprefix("text."): array for name, array in text.items()}, found.arrays) == []


# Doubts

DOUBTFUL = Case("timm", {"norm1": "pre", "norm2": "post"}, {}, {})


def test_a_doubtful_name_is_said_with_all_that_it_may_be() -> None:
    message = message_on(DOUBTFUL.arrays)
    assert options_in(message) == Options({}, [])
    for old in ("pre", "post"):
        assert f"perhaps renamed, {old} is norm1 or norm2: say which with rename= " in message
        assert f"(--rename {old}=norm1 or --rename {old}=norm2)" in message


@pytest.mark.parametrize("first", ["pre", "post"])
def test_of_a_doubtful_name_what_is_typed_is_obeyed(tmp_path: Path, first: str) -> None:
    second = {"pre": "post", "post": "pre"}[first]
    source, target = tmp_path / "x.npz", tmp_path / "y.npz"
    np.savez(source, **DOUBTFUL.arrays)
    message = run("convert", source, target, status=2).stderr
    chosen = [f"--rename {first}=norm1", f"--rename {second}=norm2"]
    assert all(option in message for option in chosen)
    run("convert", source, target, *shlex.split(" ".join(chosen)), "--to", "timm")
    swapped = {"norm1": "norm2", "norm2": "norm1"} if first == "post" else {}
    expected = {re.sub(r"norm[12]", lambda m: swapped.get(m[0], m[0]), n): a for n, a in truth("timm").arrays.items()}
    assert changed(expected, load(target).arrays) == []


def test_of_two_heads_either_may_be_the_head() -> None:
    other = {f"distillation_classifier.{name.rpartition('.')[2]}": shape for name, shape in HEAD.items()}
    case = Case("timm", {"head": "cls_classifier"}, other, {})
    message = message_on(case.arrays)
    assert options_in(message).passed == {}
    for old in ("cls_classifier", "distillation_classifier"):
        assert f"perhaps renamed, {old} is head: say which with rename= (--rename {old}=head)" in message
    rename = {"cls_classifier": "head"}
    assert_read("timm", case.arrays, rename=rename, **options_in(message_on(case.arrays, rename=rename)).passed)


# What is typed wrong

# Options in Python, and what is said of them.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a glob of nothing": ({"ignore": ["txt.*"]}, "ignore 'txt.*' (--ignore) matches no name; the names are "),
    "one of two globs": ({"ignore": ["head.*", "txt.*"]}, "ignore 'txt.*' (--ignore) matches no name; "),
    "a part that none has": (
        {"rename": {"clasifier": "head"}},
        "rename= (--rename) 'clasifier': no name has this part; the names are ",
    ),
    "half a part": ({"rename": {"mlp": "a"}}, "rename= (--rename) 'mlp': no name has this part; "),
    "two made one": (
        {"rename": {"fc1": "fc2"}},
        "rename= (--rename) makes blocks.0.mlp_tokens.fc1.weight and blocks.0.mlp_tokens.fc2.weight both "
        "'blocks.0.mlp_tokens.fc2.weight'",
    ),
}


def typed(options: Mapping[str, Any]) -> list[str]:
    """Options of Python as those of the command line."""
    globs = [word for glob in options.get("ignore", ()) for word in ("--ignore", glob)]
    pairs = [word for old, new in options.get("rename", {}).items() for word in ("--rename", f"{old}={new}")]
    return globs + pairs


@pytest.mark.parametrize("case", WRONG)
def test_what_matches_nothing_or_too_much_is_refused(tmp_path: Path, case: str) -> None:
    options, words = WRONG[case]
    arrays = truth("timm").arrays
    with pytest.raises(ConversionError, match=re.escape(words)):
        Checkpoint.from_arrays(arrays, **options)
    np.savez(tmp_path / "x.npz", **arrays)
    assert words in run("convert", tmp_path / "x.npz", tmp_path / "y.npz", *typed(options), status=2).stderr
    assert not (tmp_path / "y.npz").exists()


def test_a_glob_that_is_no_list_is_refused_with_the_list() -> None:
    words = "ignore is the string 'text.*'; it must be a list of globs: ['text.*']"
    with pytest.raises(ConversionError, match=re.escape(words)):
        convert(truth("timm").arrays, to="linen", ignore="text.*")


def test_a_parameter_that_is_left_out_is_missing() -> None:
    message = message_on(truth("timm").arrays, ignore=["blocks.3.norm1.*"])
    assert "missing: blocks.3.norm1.weight" in message


def test_a_rename_is_a_pair_and_given_once(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **truth("timm").arrays)
    for options, words in (
        (["--rename", "classifier"], "--rename is ['classifier']; it must be OLD=NEW, such as 'classifier=head'"),
        (["--rename", "a=b", "--rename", "a=c"], "--rename is given twice for 'a'; give each OLD once"),
    ):
        assert words in run("convert", tmp_path / "x.npz", tmp_path / "y.npz", *options, status=2).stderr
