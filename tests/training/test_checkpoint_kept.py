"""Which checkpoints stay, and saving a step again."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from mim_jax.training.checkpoints import CheckpointError, Checkpoints


def test_keeps_last_every_and_best(tmp_path: Path) -> None:
    values = [1.0, 9.0, float("nan"), 2.0, 9.0, 4.0, 5.0, 6.0]
    with Checkpoints(tmp_path / "best", keep_every=30, best_metric="acc") as checkpoints:
        for index, value in enumerate(values):
            checkpoints.save(10 * index, {"x": jnp.float32(index)}, {"acc": value})
        checkpoints.wait()
        assert checkpoints.steps() == [0, 30, 40, 60, 70]  # of two equally good ones the later
    with Checkpoints(tmp_path / "best", keep_every=30, best_metric="acc") as checkpoints:
        checkpoints.save(80, {"x": jnp.float32(8)}, {"loss": 1.0})  # what was saved before still counts
        checkpoints.wait()
        assert checkpoints.steps() == [0, 30, 40, 60, 70, 80]
        checkpoints.save(90, {"x": jnp.float32(9)}, {"acc": 10.0})
        checkpoints.wait()
        assert checkpoints.steps() == [0, 30, 60, 80, 90]
    with Checkpoints(tmp_path / "last", keep_last=1) as checkpoints:
        for step in range(3):
            checkpoints.save(step, {"x": jnp.float32(step)})
        checkpoints.wait()
        assert checkpoints.steps() == [2]


def test_a_step_is_saved_once_and_in_order(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"x": jnp.float32(5)})
        for step, reason in ((5, "step 5 is saved already"), (4, "step 4 is older than checkpoint 5")):
            with pytest.raises(CheckpointError, match=rf"{reason} in .*: restore before saving"):
                checkpoints.save(step, {"x": jnp.float32(step)})
