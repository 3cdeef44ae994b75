"""Places in reports: a model in a file of its own is told the file, the line and the modules that do it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from mixer_equiv import verify
from mixer_equiv.equivalence.report import Report

IMAGE = 3, 8, 9

# Each fault is in blocks 1 and 3 of 4, at the line that ends with its name.
TORCH = """
import torch.nn.functional as F
from torch import nn

class Mlp(nn.Module):
    def __init__(self, size, width, fault):
        super().__init__()
        self.up, self.down, self.fault = nn.Linear(size, width), nn.Linear(width, size), fault

    def forward(self, x):
        x = self.up(x)
        if self.fault == "activation":
            return self.down(F.gelu(x))  # activation
        return self.down(F.gelu(x, approximate="tanh"))

class Block(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(20, 1e-6), nn.LayerNorm(20, 1e-6)
        self.tokens, self.channels = Mlp(12, 11, ""), Mlp(20, 26, fault)
        self.fault = fault

    def forward(self, x):
        y = self.norm1(x)
        if self.fault == "transpose":
            y = self.tokens(
                y.reshape(len(y), 20, 12)  # transpose
            )
        else:
            y = self.tokens(y.mT)
        x = x + y.mT
        if self.fault == "constant":
            x = x * 0.5  # constant
        if self.fault == "layer_norm_missing":
            return x + F.dropout(
                self.channels(x.clone()),  # layer_norm_missing
                training=self.training,
            )
        if self.fault == "residual_missing":
            return self.channels(self.norm2(x)) / 1  # residual_missing
        y = self.channels(self.norm2(x))
        if self.fault == "unknown":
            y = y.abs()  # unknown
        return x + y

class MyMixer(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.stem = nn.Conv2d(3, 20, (2, 3), (2, 3))
        self.blocks = nn.Sequential(*(Block(fault if i in (1, 3) else "") for i in range(4)))
        self.norm, self.head = nn.LayerNorm(20, 1e-6), nn.Linear(20, 7)

    def forward(self, images):
        x = self.stem(images).flatten(2).mT
        if self.stem.bias is None:
            return x.amax(1)
        return self.head(self.norm(self.blocks(x)).mean(1))
"""

LINEN = """
import jax
from flax import linen as nn

class Mlp(nn.Module):
    width: int
    fault: str

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(self.width)(x)
        if self.fault == "activation":
            y = jax.nn.silu(y)  # activation
        else:
            y = nn.gelu(y)
        return nn.Dense(x.shape[-1])(y)

class Block(nn.Module):
    fault: str

    def setup(self):
        self.norm1, self.norm2 = nn.LayerNorm(), nn.LayerNorm()
        self.tokens, self.channels = Mlp(11, ""), Mlp(26, self.fault)

    def __call__(self, x):
        x = x + self.tokens(self.norm1(x).swapaxes(1, 2)).swapaxes(1, 2)
        if self.fault == "constant":
            x = x * 0.5  # constant
        return x + self.channels(self.norm2(x))

class MyMixer(nn.Module):
    fault: str

    def setup(self):
        self.stem = nn.Conv(20, (2, 3), (2, 3))
        self.blocks = [Block(self.fault if i in (1, 3) else "") for i in range(4)]
        self.norm, self.head = nn.LayerNorm(), nn.Dense(7)

    def __call__(self, images):
        x = self.stem(images).reshape(len(images), 12, 20)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))
"""

NNX = """
import jax
from flax import nnx

class Mlp(nnx.Module):
    def __init__(self, size, width, fault, rngs):
        self.up, self.down = nnx.Linear(size, width, rngs=rngs), nnx.Linear(width, size, rngs=rngs)
        self.fault = fault

    def __call__(self, x):
        y = self.up(x)
        if self.fault == "activation":
            return self.down(jax.nn.silu(y))  # activation
        return self.down(nnx.gelu(y))

class Block(nnx.Module):
    def __init__(self, fault, rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(20, rngs=rngs), nnx.LayerNorm(20, rngs=rngs)
        self.tokens, self.channels = Mlp(12, 11, "", rngs), Mlp(20, 26, fault, rngs)
        self.fault = fault

    def __call__(self, x):
        x = x + self.tokens(self.norm1(x).swapaxes(1, 2)).swapaxes(1, 2)
        if self.fault == "constant":
            x = x * 0.5  # constant
        return x + self.channels(self.norm2(x))

class MyMixer(nnx.Module):
    def __init__(self, fault):
        rngs = nnx.Rngs(0)
        self.stem = nnx.Conv(3, 20, (2, 3), (2, 3), rngs=rngs)
        self.blocks = nnx.List([Block(fault if i in (1, 3) else "", rngs) for i in range(4)])
        self.norm, self.head = nnx.LayerNorm(20, rngs=rngs), nnx.Linear(20, 7, rngs=rngs)

    def __call__(self, images):
        x = self.stem(images).reshape(len(images), 12, 20)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))
"""

SOURCES = {"torch": TORCH, "linen": LINEN, "nnx": NNX}


@pytest.fixture
def mixers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes the model of a framework with a fault, from a file in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def make(framework: str, fault: str) -> Any:
        name = f"my_{framework}_mixer"
        (tmp_path / f"{name}.py").write_text(SOURCES[framework], encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name).MyMixer(fault)

    return make


def line_of(framework: str, fault: str) -> str:
    lines = SOURCES[framework].splitlines()
    (number,) = (number for number, line in enumerate(lines, 1) if line.endswith(f"# {fault}"))
    return f"my_{framework}_mixer.py:{number}"


def text_of(report: Report) -> str:
    return " ".join(str(report).split())


@pytest.mark.parametrize(
    ("framework", "fault", "module", "step"),
    [
        ("torch", "activation", "blocks.{}.channels", "channel_mixing/activate"),
        ("torch", "transpose", "blocks.{}", "swap"),
        ("torch", "constant", "blocks.{}", "before LayerNorm_1"),
        ("torch", "unknown", "blocks.{}", "channel_mixing/add"),
        ("linen", "activation", "blocks_{}/channels", "channel_mixing/activate"),
        ("linen", "constant", "blocks_{}", "before LayerNorm_1"),
        ("nnx", "activation", "blocks/{}/channels", "channel_mixing/activate"),
        ("nnx", "constant", "blocks/{}", "before LayerNorm_1"),
    ],
)
def test_report_names_blocks_line_and_modules(framework: str, fault: str, module: str, step: str, mixers: Any) -> None:
    report = verify(mixers(framework, fault), image=IMAGE)
    (cause,) = report.causes
    place = f"in {module.format(1)} and {module.format(3)} ({line_of(framework, fault)})"
    assert (cause.name, cause.places) == (fault, (place,))
    assert f"{step} in blocks 1 and 3 of 4, {place}" in text_of(report)


def test_layer_norm_that_is_left_out_is_missing_at_the_next_operation(mixers: Any) -> None:
    """In the last block it may be the one before the head that is left out, and so the first block decides."""
    report = verify(mixers("torch", "layer_norm_missing"), image=IMAGE)
    cause = next(cause for cause in report.causes if cause.name == "layer_norm_missing")
    assert cause.places[0].startswith("in blocks.1")
    assert line_of("torch", "layer_norm_missing") in cause.places[0]


def test_stream_that_is_not_added_is_missing_where_its_branch_ends(mixers: Any) -> None:
    report = verify(mixers("torch", "residual_missing"), image=IMAGE)
    (cause,) = report.causes
    assert cause.name == "residual_missing"
    assert cause.places[0].startswith("in blocks.1")


def test_reason_names_the_place_at_which_following_stopped(mixers: Any) -> None:
    model = mixers("torch", "")
    model.stem.bias = None
    report = verify(model, image=IMAGE)
    number = next(i for i, line in enumerate(TORCH.splitlines(), 1) if "amax" in line)
    assert f"nor any known variant of it; that is at my_torch_mixer.py:{number}" in " ".join(report.reasons)


def test_model_without_faults_has_no_places(mixers: Any) -> None:
    assert verify(mixers("torch", ""), image=IMAGE).equivalent
