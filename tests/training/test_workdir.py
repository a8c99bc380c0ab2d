"""Small promises of the front door that a newcomer found missing."""

import dataclasses

import pytest
from small import small_config, small_method

from mim_jax import main
from mim_jax.config.check import ConfigError
from mim_jax.evaluators import still


def test_held_out_images_are_not_jittered() -> None:
    method = small_method("mapet", {"augment.jitter": 0.4})
    held_out = still(method)
    assert method.config.augment.jitter == 0.4 and held_out.config.augment.jitter == 0.0
    assert dataclasses.replace(held_out.config, augment=method.config.augment) == method.config


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_helps(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([flag]) == 0
    assert "--config=" in capsys.readouterr().out


def test_settings_that_make_no_sense() -> None:
    for overrides, words in (
        ({"schedule.epochs": 0.0}, "above 0"),
        ({"schedule.epochs": 2.0, "schedule.warmup_steps": 999}, "lower config.schedule.warmup_steps"),
        ({"optim.lr": -1.0}, "at least 0"),
        ({"data.batch_size": 0}, "at least 1"),
        ({"model.image_size": 15}, "the nearest is 16"),
    ):
        with pytest.raises(ConfigError, match=words):
            small_config("mapet", overrides)
