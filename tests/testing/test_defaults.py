"""`defaults` and the smallest sizes: what a call of `assert_equivalent` leaves out."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given

from mixer_equiv import MixerConfig, NotEquivalentError, assert_equivalent
from mixer_equiv.testing.assertions import defaults
from mixer_equiv.testing.strategies import configs
from tests.support.oblong import CONFIG
from tests.support.structures import OwnMixer


def test_what_is_not_told_is_taken_from_the_defaults() -> None:
    wrong = functools.partial(OwnMixer, faults=["eps_1e-5"])
    with defaults(gradients=False, under=["activation"]), defaults(seed=3, under=["layer_norm_eps"]):
        assert assert_equivalent(wrong, "reference", config=CONFIG).gradients is None
        with pytest.raises(NotEquivalentError, match=r"^not equivalent\n") as caught:
            assert_equivalent(wrong, "reference", config=CONFIG, under=[])
    assert isinstance(caught.value, AssertionError)
    assert caught.value.report.verdict == "equivalent_under"
    assert caught.value.__notes__ == [caught.value.snippet]
    assert "gradients=False, seed=3, config=config" in caught.value.snippet
    with pytest.raises(NotEquivalentError, match="not equivalent under activation"):
        assert_equivalent(wrong, "reference", config=CONFIG, gradients=False, under=["activation"])


@given(config=configs(min_dim=3))
def test_min_dim_bounds_what_a_mixer_is_found_by(config: MixerConfig) -> None:
    sizes = config.axis_sizes
    assert min(sizes[name] for name in ("tokens", "hidden", "tokens_mlp", "channels_mlp")) >= 3
    assert sizes["classes"] == 0 or sizes["classes"] >= 3
