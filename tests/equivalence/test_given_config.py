"""`verify(config=...)`: classes, functions and built-in models are made of the config."""

from __future__ import annotations

import functools
import re

import pytest

import mixer_equiv
from mixer_equiv import MixerConfig, verify
from tests.support.oblong import CONFIG
from tests.support.structures import OwnMixer


def test_of_a_config_classes_functions_and_built_ins_are_made() -> None:
    config = CONFIG.replace(activation="gelu")
    wrong = verify(OwnMixer, "reference", config=config, gradients=False)
    assert (wrong.verdict, [cause.name for cause in wrong.causes]) == ("equivalent_under", ["activation"])
    right = verify(functools.partial(OwnMixer, faults=["activation_erf"]), "reference", config=config, gradients=False)
    assert right.equivalent
    sized = verify("torch", "reference", config=config, kwargs={"num_classes": 3})
    assert sized.sides[0].num_parameters == config.replace(num_classes=3).num_parameters


def test_a_config_that_fits_nothing_is_an_error() -> None:
    model = OwnMixer(CONFIG)
    for arguments, options, message in (
        ((OwnMixer,), {"image": (2, 9, 4)}, "image is (2, 9, 4), and that of the config (2, 4, 9)"),
        (("flax:B/16",), {}, "have a config of their own, and another one is given"),
        ((model, model), {}, "config is for classes, functions that make a model, and"),
        (("timm:mixer_b16_224",), {}, "is made with kwargs, and takes no config"),
    ):
        with pytest.raises(mixer_equiv.ConfigError, match=re.escape(message)):
            verify(*arguments, config=CONFIG, **options)


def test_what_a_class_raises_is_left_to_it() -> None:
    def broken(config: MixerConfig) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        verify(broken, config=CONFIG)
