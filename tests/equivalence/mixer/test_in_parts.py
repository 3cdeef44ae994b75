"""The official function computed in parts, or with biases as rows of kernels, is followed; with a fault it differs."""

from __future__ import annotations

import pytest

from mixer_equiv import layout_of, verify
from mixer_equiv.equivalence.report import Report
from mixer_equiv.layouts import Layout
from tests.support.sizes import IMAGE, SMALL
from tests.support.structures.flax_in_parts import LINEN_BIAS_ROWS, LINEN_CONTROL, LINEN_PARTS
from tests.support.structures.in_parts import BIAS_ROWS, PARTS, SEVERAL

# Writings that show most of the others' ways; the rest are run with the soundness tests.
FEW = (
    "channels by every other unit",
    "tokens channel by channel, written into place",
    "everything in parts",
)
FEW_IN_FLAX = ("tokens in parts of hidden units",)


def some(names: object, kept: tuple[str, ...]) -> list[object]:
    return [pytest.param(n, marks=() if n in kept else pytest.mark.soundness) for n in names]  # type: ignore[attr-defined]


def assert_equivalent_with_gradients(report: Report) -> None:
    assert (report.verdict, report.causes) == ("equivalent", ()), report
    assert report.gradients is not None
    assert report.gradients.residual <= report.gradients.threshold


def assert_of_another_activation(report: Report) -> None:
    assert report.verdict == "equivalent_under"
    assert [(cause.name, cause.found, cause.count) for cause in report.causes] == [
        ("activation", "gelu", "4 of 4 MLPs")
    ]


@pytest.mark.parametrize("name", some(PARTS, FEW))
def test_mlps_in_parts_are_followed(name: str) -> None:
    assert_equivalent_with_gradients(verify(PARTS[name](SMALL), image=IMAGE))


@pytest.mark.parametrize("name", some(PARTS, FEW[:1]))
def test_another_activation_is_named_in_parts(name: str) -> None:
    assert_of_another_activation(verify(PARTS[name](SMALL, "erf"), image=IMAGE))


@pytest.mark.parametrize("name", SEVERAL)
def test_a_layer_in_several_is_followed(name: str) -> None:
    report = verify(SEVERAL[name](SMALL), image=IMAGE)
    assert (report.verdict, report.causes) == ("equivalent", ()), report
    assert any("parameters are not its own" in warning for warning in report.warnings)
    assert_of_another_activation(verify(SEVERAL[name](SMALL, "erf"), image=IMAGE))


# One image alone is one part, in which the fault is not at work.
OF_SEVERAL_IMAGES = "channels in parts of the batch"


@pytest.mark.parametrize("name", some([name for name in PARTS if name != OF_SEVERAL_IMAGES], FEW))
def test_a_part_without_its_bias_is_not_the_official_function(name: str) -> None:
    report = verify(PARTS[name](SMALL, "one chunk without bias"), image=IMAGE)
    assert report.verdict in ("different", "nothing_compared")
    assert not {cause.name for cause in report.causes} - {"unknown", "absent_parameters"}


def test_a_parameter_that_is_used_in_parts_has_its_own_name() -> None:
    layout = layout_of(PARTS["everything in parts"](SMALL), IMAGE)
    assert isinstance(layout, Layout)
    names = {row.canonical: row.foreign for row in layout.rows}
    assert names["MixerBlock_{i}/channel_mixing/Dense_0/kernel"] == "channel_mlps.{i}.0.kernel"
    assert names["MixerBlock_{i}/token_mixing/Dense_1/bias"] == "token_mlps.{i}.1.bias"


@pytest.mark.parametrize("place", BIAS_ROWS)
def test_biases_that_are_rows_of_kernels_are_found(place: str) -> None:
    report = verify(BIAS_ROWS[place](SMALL), image=IMAGE)
    assert (report.verdict, report.causes) == ("equivalent", ())
    assert any("stem/kernel is computed from stem.kernel" in warning for warning in report.warnings)
    assert_of_another_activation(verify(BIAS_ROWS[place](SMALL, "erf"), image=IMAGE))


@pytest.mark.parametrize("name", some(LINEN_PARTS, FEW_IN_FLAX))
def test_flax_in_parts_is_followed(name: str) -> None:
    assert_equivalent_with_gradients(verify(LINEN_PARTS[name](SMALL), image=IMAGE))


@pytest.mark.soundness
@pytest.mark.parametrize("name", LINEN_PARTS)
def test_another_activation_is_named_in_parts_of_flax(name: str) -> None:
    assert_of_another_activation(verify(LINEN_PARTS[name](SMALL, "erf"), image=IMAGE))


@pytest.mark.soundness
@pytest.mark.parametrize("name", [name for name in LINEN_PARTS if "hidden units" in name])
def test_a_part_without_its_bias_is_not_the_official_function_in_flax(name: str) -> None:
    assert verify(LINEN_PARTS[name](SMALL, "one chunk without bias"), image=IMAGE).verdict == "different"


@pytest.mark.parametrize("name", some(LINEN_CONTROL, ("while_loop over blocks", "switch over blocks")))
def test_loops_and_branches_of_jax_are_followed(name: str) -> None:
    assert_equivalent_with_gradients(verify(LINEN_CONTROL[name](SMALL), image=IMAGE))


@pytest.mark.parametrize("name", some(LINEN_CONTROL, ("while_loop over blocks",)))
def test_another_activation_is_named_in_loops_and_branches(name: str) -> None:
    assert_of_another_activation(verify(LINEN_CONTROL[name](SMALL, "erf"), image=IMAGE))


def test_biases_that_are_rows_of_kernels_are_found_in_flax() -> None:
    report = verify(LINEN_BIAS_ROWS(SMALL), image=IMAGE)
    assert (report.verdict, report.causes) == ("equivalent", ())
