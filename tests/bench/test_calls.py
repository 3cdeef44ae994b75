"""The calls of both frameworks: memory, devices, and the program that JAX compiles."""

from __future__ import annotations

import dataclasses
import re

import jax
import pytest
import torch

from mixer_equiv import ConfigError
from mixer_equiv.bench.calls import make_call
from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import Entry
from mixer_equiv.bench.measurement import measure_cells
from tests.support.cells import SMALL


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_memory_that_xla_plans_is_what_a_call_takes(mode: str) -> None:
    config = dataclasses.replace(SMALL, num_blocks=3, hidden_dim=200, tokens_mlp_dim=300, channels_mlp_dim=2000)
    call = make_call(Entry("flax"), Cell(config, batch=500, mode=mode), 0)
    call()
    measured = call.memory()
    assert measured > 20e6
    assert call.planned_memory() == pytest.approx(measured, rel=0.2)


@pytest.mark.usefixtures("compiled_anew")
def test_in_training_ours_keep_less_than_the_official_model() -> None:
    config = dataclasses.replace(SMALL, num_blocks=11, hidden_dim=64, tokens_mlp_dim=128, channels_mlp_dim=256)
    kept = {
        name: make_call(Entry(name), Cell(config, batch=100, mode="training"), 0).planned_memory()
        for name in ("official", "flax", "nnx")
    }
    assert kept["flax"] == kept["nnx"] <= 0.8 * kept["official"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["flax", "nnx"])
@pytest.mark.usefixtures("compiled_anew")
def test_jitted_inference_compiles_to_the_program_of_the_official_model(name: str, dtype: str) -> None:
    config = dataclasses.replace(SMALL, num_blocks=2)

    def compiled(name: str) -> str:
        call = make_call(Entry(name), Cell(config, dtype), 0)
        text = call.infer.lower(call.params, call.images).compile().as_text()
        _, _, text = text.partition("\n")  # the module's name
        return re.sub(r", metadata={[^}]*}", "", text[text.index("\n%") :])

    assert compiled(name) == compiled("official")


@pytest.mark.parametrize(("name", "framework"), [("torch", "torch"), ("flax", "JAX")])
def test_each_framework_says_that_it_has_no_cuda(name: str, framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = jax.devices

    def of_kind(kind: str = "cpu") -> list[jax.Device]:
        if kind == "gpu":
            raise RuntimeError("no GPU")
        return devices(kind)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(jax, "devices", of_kind)
    with pytest.raises(ConfigError, match=f"device is 'cuda', and {framework} "):
        measure_cells([Cell(SMALL, device="cuda")], [Entry(name)])
