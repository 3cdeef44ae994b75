"""The main job: a Mixer trained in Flax on real digits, its port to torch, and the proof."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mixer_equiv import convert, load, verify
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.data import digits
from mixer_equiv.models.torch import MlpMixer
from tests.support.structures import TutorialMixer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def held_out() -> Any:
    return digits.held_out()


def accuracy(model: Any, images: Any, labels: Any) -> Any:
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return float((logits.argmax(dim=1).numpy() == labels).mean())


def test_the_checkpoint_is_the_published_layout_of_the_stated_config() -> None:
    checkpoint = load(digits.CHECKPOINT)
    assert checkpoint.layout.name == "linen"
    assert checkpoint.config == digits.CONFIG
    assert (len(checkpoint), checkpoint.num_parameters) == (150, digits.CONFIG.num_parameters)
    assert checkpoint.dtypes == ("float32",)
    with np.load(digits.CHECKPOINT) as arrays:
        assert set(arrays.files) == set(checkpoint.arrays)


def test_the_package_data_are_small() -> None:
    assert sum(path.stat().st_size for path in digits.CHECKPOINT.parent.iterdir()) < 400_000


def test_the_held_out_digits_are_real_and_every_class_is_there(held_out: Any) -> None:
    images, labels = held_out
    known = {(image.tobytes(), label) for image, label in zip(*load_digits(return_X_y=True), strict=True)}
    grey = ((images[..., 0] + 1) * 8).astype(np.float64).reshape(len(images), 64)
    assert all((image.tobytes(), label) in known for image, label in zip(grey, labels, strict=True))
    assert (len(labels), set(labels)) == (360, set(range(10)))
    assert images.min() == -1
    assert images.max() == 1


def test_the_port_is_the_same_function_on_the_held_out_digits(held_out: Any) -> None:
    images, labels = held_out
    report = verify(digits.CHECKPOINT, images=images, labels=labels)
    assert report.verdict == "equivalent"
    assert report.decision <= 1e-12
    assert (report.prediction_flips, report.num_images) == (0, 360)
    assert all(side.round_trip and side.accuracy >= 0.97 for side in report.sides)
    assert len(report.stages) == 28
    assert max(stage.residual for stage in report.stages) <= 1e-12


@pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")
def test_the_ported_file_is_as_accurate_in_torch_and_in_the_tutorials_structure(held_out: Any) -> None:
    checkpoint = load(digits.CHECKPOINT)
    model = MlpMixer(checkpoint.config)
    model.load_state_dict(convert(checkpoint, to="torch"), strict=True)
    ours = accuracy(model, *held_out)
    assert ours >= 0.97
    tutorial = TutorialMixer(checkpoint.config)
    tutorial.load_state_dict(convert(checkpoint, to="jankrepl"), strict=True)
    tutorial.follow_official_conventions()
    assert accuracy(tutorial, *held_out) == ours


def test_the_port_notices_a_single_wrong_array(held_out: Any) -> None:
    checkpoint = load(digits.CHECKPOINT)
    wrong = {**checkpoint.arrays, "head/bias": checkpoint.arrays["head/bias"][::-1].copy()}
    images, labels = held_out
    report = verify(checkpoint, convert(wrong, to="torch", config=checkpoint.config), images=images, labels=labels)
    assert report.verdict == "different"


def logged_accuracy(directory: Any) -> Any:
    log = (directory / "digits_mixer.log").read_text()
    return float(re.search(r"^test accuracy (\S+)", log, re.MULTILINE)[1])


def test_the_log_states_the_accuracy_of_the_committed_checkpoint(held_out: Any) -> None:
    images, labels = held_out
    report = verify(digits.CHECKPOINT, images=images, labels=labels)
    assert report.sides[0].accuracy == pytest.approx(logged_accuracy(digits.CHECKPOINT.parent), abs=5e-5)


@pytest.mark.soundness
def test_training_again_reproduces_the_accuracy_to_half_a_point(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.train_digits", "--output-dir", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    assert abs(logged_accuracy(tmp_path) - logged_accuracy(digits.CHECKPOINT.parent)) <= 0.005
    with np.load(tmp_path / "digits_held_out.npz") as again, np.load(digits.HELD_OUT) as committed:
        assert not bit_differences(dict(again), dict(committed))
