"""Whose directory it is; and small promises of the front door that a newcomer found missing."""

import dataclasses
from pathlib import Path

import pytest
from small import small_config, small_method

from mim_jax import main
from mim_jax.config.check import ConfigError
from mim_jax.evaluators import still
from mim_jax.training.workdir import claim, read_config


def test_a_directory_without_a_checkpoint_belongs_to_nobody(tmp_path: Path) -> None:
    """A start that failed before its first checkpoint must not stand in the way of the next one."""
    first, second = small_config(), small_config("mapet", {"optim.lr": 0.5})
    claim(tmp_path, first)
    claim(tmp_path, second)
    assert read_config(tmp_path).optim.lr == 0.5
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"config.optim.lr: 0.5 -> ") as caught:
        claim(tmp_path, first)
    assert len(str(caught.value).splitlines()) == 1
    skipping = dataclasses.replace(second, data=dataclasses.replace(second.data, on_bad_image="skip"))
    claim(tmp_path, skipping)  # what is met from now on may be skipped
    assert read_config(tmp_path).data.on_bad_image == "skip"


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file, not a directory"):
        claim(tmp_path / "file", small_config())


def test_held_out_images_are_not_jittered() -> None:
    method = small_method("mapet", {"augment.jitter": 0.4})
    held_out = still(method)
    assert method.config.augment.jitter == 0.4 and held_out.config.augment.jitter == 0.0
    assert dataclasses.replace(held_out.config, augment=method.config.augment) == method.config


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_helps(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["main", flag]) == 0
    assert "--config=" in capsys.readouterr().out


def test_settings_that_make_no_sense() -> None:
    for overrides, words in (
        ({"schedule.epochs": 0.0}, "above 0"),
        ({"schedule.epochs": 2.0, "schedule.warmup_epochs": 9.0}, "warmup_epochs to less than 2"),
        ({"optim.lr": -1.0}, "at least 0"),
        ({"data.batch_size": 0}, "at least 1"),
        ({"model.image_size": 15}, "the nearest is 16"),
    ):
        with pytest.raises(ConfigError, match=words):
            small_config("mapet", overrides)
