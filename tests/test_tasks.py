"""Every config and task trains a few steps, stops, resumes, and goes on as if it had not stopped."""

from pathlib import Path

import jax
import numpy as np
import pytest
from small import batch, prepared, small_config
from test_resume import history

from mim_jax.config.check import check
from mim_jax.config.files import load, override
from mim_jax.data import place
from mim_jax.methods import build_method
from mim_jax.tasks import train
from mim_jax.training.checkpoints import Checkpoints
from mim_jax.training.optimiser import make_optimiser
from mim_jax.training.sharding import abstract, batch_sharding, state_shardings
from mim_jax.training.state import create_state
from mim_jax.training.step import make_train_step

pytestmark = pytest.mark.slow

TINY = {
    "model.variant": "mu", "data.batch_size": 16, "data.crops_per_picture": 8, "schedule.steps": 4,
    "schedule.warmup_steps": 1, "checkpoint.every_steps": 100, "eval.every_steps": 100, "eval.heldout_examples": 16,
    "eval.baselines": False, "log.every_steps": 1, "log.tensorboard": False,
}  # fmt: skip
ZOOMS = {"model.image_size": 28, "model.patch": 7}
TASKS = {
    "mae": {}, "simmim": {}, "beit": {"method.num_masked": 8, "method.min_block": 2},
    **{f"beyond_masking {task}": {**ZOOMS, "method.task": task} for task in
       ("zoom_out", "zoom_in+mask", "distort+blur+decolorize+mask")},
}  # fmt: skip
"""Together every corruption and every objective."""


@pytest.mark.parametrize("name", TASKS)
def test_steps_go_on_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    """Four steps, and two steps, a checkpoint, two more: the same losses, bit for bit."""
    config = small_config(name.split(maxsplit=1)[0], {**TASKS[name], "optim.lr": 1e-3})
    method = build_method(config)
    mesh = jax.make_mesh(
        (1, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:1],
    )
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    optimiser = make_optimiser(config, method.rules, shapes, 6.0)
    state = create_state(method, optimiser, prepared(method), ema=False, mesh=mesh, seed=config.seed)
    layout = jax.eval_shape(lambda: state)
    step = make_train_step(method, optimiser, layout, mesh, config, 6.0)
    side = method.view(True).keys["image"].shape[0]
    batches = [
        place(
            {
                **batch(8, 4 * -(-side // 4), 8 * i),
                "image": batch(8, 4 * -(-side // 4), 8 * i)["image"][:, :side, :side],
            },
            batch_sharding(mesh),
        )
        for i in range(4)
    ]
    losses = []
    with Checkpoints(tmp_path) as checkpoints:
        for number, data in enumerate(batches):
            if number == 2:
                checkpoints.save(2, state)
            state, metrics = step(state, data)
            losses.append(float(metrics["loss"]))
        found = checkpoints.restore(abstract(layout, state_shardings(layout, mesh)))
    assert found is not None and found[0] == 2
    state = found[1]
    for data, before in zip(batches[2:], losses[2:], strict=True):
        state, metrics = step(state, data)
        assert float(metrics["loss"]) == before
    assert np.isfinite(losses).all() and len(set(losses)) == 4


@pytest.mark.parametrize("spec", ["mae", "beyond_masking,method.task=zoom_in+mask"])
def test_front_door_trains_and_resumes(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *pairs = spec.split(",")
    config = check(override(load(",".join([f"configs/{name}.py", *pairs])), TINY))
    for stop_after, code in ((2, 75), (100, 0)):
        monkeypatch.setattr(
            train.Shutdown, "requested_at", lambda self, step, after=stop_after: step >= after
        )
        assert train.run(config, tmp_path / "run") == code
    lines = history(tmp_path / "run")
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000
