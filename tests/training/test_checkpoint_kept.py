"""Which checkpoints stay, and saving a step again."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mim_jax.training.checkpoints import CheckpointError, Checkpoints
from mim_jax.training.checkpoints.retention import best_step, steps_to_keep


def test_best_step() -> None:
    scores = {10: 0.5, 20: 0.9, 30: 0.9, 40: math.nan}
    assert best_step(scores, "max") == 30
    assert best_step(scores, "min") == 10
    assert best_step({40: math.nan}, "max") is None


def test_steps_to_keep() -> None:
    steps = [0, 5, 10, 15, 20, 25]
    assert steps_to_keep(steps, {}, keep_last=2, keep_every=0, best_mode="max") == {20, 25}
    assert steps_to_keep(steps, {5: 1.0, 15: 0.0}, keep_last=1, keep_every=10, best_mode="max") == {
        0,
        5,
        10,
        20,
        25,
    }
    assert steps_to_keep(steps, {5: 1.0, 15: 0.0}, keep_last=9, keep_every=0, best_mode="min") == set(steps)


def test_keeps_last_every_and_best(tmp_path: Path) -> None:
    values = [1.0, 9.0, float("nan"), 2.0, 3.0, 4.0, 5.0]
    for mode, best, expected in [("max", 10, [0, 10, 30, 50, 60]), ("min", 0, [0, 30, 50, 60])]:
        with Checkpoints(tmp_path / mode, keep_every=30, best_metric="acc", best_mode=mode) as checkpoints:
            for index, value in enumerate(values):
                checkpoints.save(10 * index, {"x": jnp.float32(index)}, {"acc": value})
            checkpoints.wait()
            assert checkpoints.steps() == expected
            assert checkpoints.best() == best
    with Checkpoints(tmp_path / "last", keep_last=1) as checkpoints:
        for step in range(3):
            checkpoints.save(step, {"x": jnp.float32(step)})
        checkpoints.wait()
        assert checkpoints.steps() == [2]
        assert checkpoints.best() is None


def test_a_step_saved_again_is_replaced(tmp_path: Path) -> None:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(tmp_path) as checkpoints:
        for value in (1, 2, 3):
            checkpoints.save(5, {"x": jnp.float32(value)})
        found = checkpoints.restore({"x": jax.ShapeDtypeStruct((), jnp.float32, sharding=here)})
        assert found is not None and float(found[1]["x"]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["00000005.2"]


def test_an_earlier_step_is_not_saved_after_a_later_one(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"x": jnp.float32(5)})
        with pytest.raises(
            CheckpointError, match=r"step 4 is older than checkpoint 5 in .*: restore before saving"
        ):
            checkpoints.save(4, {"x": jnp.float32(4)})
