"""Small promises of the front door that a newcomer found missing."""

import numpy as np
import pytest
from small import batch, keys, small_config, small_method

from mim_jax import main
from mim_jax.config.check import ConfigError
from mim_jax.methods import Variables


def test_held_out_images_are_not_jittered() -> None:
    """The same masks and targets; only what the network sees of a training batch is another colour."""
    plain, jittered = small_method("mae"), small_method("mae", {"augment.jitter": 0.4})
    wanted = plain.corrupt(keys(4), batch(4), Variables())
    held_out = jittered.corrupt(keys(4), batch(4), Variables(), train=False)
    for name, value in wanted.items():
        np.testing.assert_array_equal(held_out[name], value)
    trained = jittered.corrupt(keys(4), batch(4), Variables(), train=True)
    assert np.abs(np.asarray(trained["patches"]) - np.asarray(wanted["patches"])).max() > 0.1


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
