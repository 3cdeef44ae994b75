"""What needs a CUDA device: run by `make gpu`, and left out where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mixer_equiv import Formulation, MixerConfig, verify
from mixer_equiv.bench import export
from mixer_equiv.bench.calls import draw_inputs, make_call
from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import CONTESTANTS, Entry
from mixer_equiv.bench.measurement import measure_cells
from mixer_equiv.bench.peers_torch import TutorialMixer
from mixer_equiv.equivalence.record.precision import no_tf32
from mixer_equiv.formulation import FORMULATIONS
from mixer_equiv.models.torch import MlpMixer

pytestmark = pytest.mark.cuda
DEVICE = "cuda"
CONFIG = MixerConfig(
    num_classes=5,
    num_blocks=3,
    patch_size=(2, 3),
    image_size=(6, 12),
    hidden_dim=16,
    tokens_mlp_dim=7,
    channels_mlp_dim=20,
)


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    """What a test takes of the device is free for the next."""
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("formulation", FORMULATIONS, ids=str)
def test_every_formulation_is_the_reference_on_cuda(formulation: Formulation) -> None:
    report = verify(MlpMixer(CONFIG, formulation), "reference", config=CONFIG, device=DEVICE, gradients=True)
    assert report.verdict == "equivalent", str(report)
    assert report.environment["torch device"] == DEVICE


def test_flax_and_torch_agree_on_cuda() -> None:
    assert verify("torch", "flax", config=CONFIG, device=DEVICE, gradients=True).verdict == "equivalent"


def test_causes_are_found_on_cuda() -> None:
    report = verify(TutorialMixer(CONFIG), image=(3, *CONFIG.image_hw), device=DEVICE)
    assert report.verdict == "equivalent_under", str(report)
    assert {cause.name for cause in report.causes} == {"activation", "layer_norm_eps"}


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16", "float16"])
def test_programs_are_proven_and_timed_on_cuda(dtype: str) -> None:
    cell = Cell(CONFIG, dtype, 3, DEVICE)
    names = [name for name, program in CONTESTANTS.items() if program.framework == "torch" and not program.compiled]
    given = [Entry(name) for name in names if CONTESTANTS[name].runs_in(cell)]
    assert {"torch", "torch graphed", "timm", "timm graphed"} <= {each.name for each in given}
    result = measure_cells([cell], given, gemm=256)
    assert result.refusals == (), export.refusal_lines(export.to_dict(result))
    rows = {row.name: row for row in result.measurements}
    assert rows["torch"].memory is not None
    assert rows["torch"].kernels is None
    assert rows["GEMM torch"].timing.share_of_peak == 1.0


def test_a_graph_follows_its_images_and_weights() -> None:
    cell = Cell(CONFIG, "float32", 3, DEVICE)
    call, eager = (make_call(Entry(name), cell, 0) for name in ("torch graphed", "torch"))
    for draw in ("usual", "faint", "usual"):
        for each in (call, eager):
            each.load(draw_inputs(CONFIG, 0, draw).params)
        for images in (eager.images, eager.images.flip(0), 2 * eager.images):
            call.images = eager.images = images
            assert torch.allclose(*(torch.from_numpy(each.logits()) for each in (call, eager)), rtol=1e-5, atol=1e-6)


def test_tf32_is_on_where_it_is_asked_for_alone() -> None:
    a = torch.rand(512, 512, device=DEVICE)
    exact = (a.double() @ a.double()).float()

    def error() -> float:
        return float((a @ a - exact).norm() / exact.norm())

    with no_tf32():
        assert error() < 1e-6
        with no_tf32(tf32_on_cuda=True):
            assert error() > 1e-5
        assert error() < 1e-6
