"""An outsider's objective, annotation, dataset, view and evaluator: each trains through the front door, and nothing else changes."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from small import batch, keys

from mim_jax.config.check import ConfigError, check
from mim_jax.config.files import load, override
from mim_jax.data import Loader, open_dataset
from mim_jax.methods import Variables
from mim_jax.methods.preprocessing import Preprocessing
from mim_jax.models.vit import ViTConfig
from mim_jax.tasks import train
from tests.extensions import ema_teacher, points

QUICK = {
    "schedule.steps": 60, "schedule.warmup_steps": 5, "data.batch_size": 32, "optim.lr": 2e-3, "eval.every_steps": 60,
    "eval.heldout_examples": 64, "eval.knn": False, "log.every_steps": 1, "log.tensorboard": False,
    "checkpoint.every_steps": 30,
}  # fmt: skip


def trained(page, workdir: Path, **more) -> list[dict]:
    """The metrics of a run of an extension's configuration, as the front door runs it."""
    config = check(override(page.get_config(), {**QUICK, **more}))
    assert train.run(config, workdir) == 0
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_an_objective_with_an_ema_teacher(tmp_path: Path) -> None:
    lines = trained(ema_teacher, tmp_path / "run")
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])
    assert any("eval/loss" in line for line in lines) and (tmp_path / "run" / "report.html").exists()


def test_the_teacher_is_the_average_and_gets_no_gradient() -> None:
    net = ViTConfig(image_size=(8, 8), patch=2, width=32, depth=2, heads=2)
    method = ema_teacher.EmaTeacher(net, ema_teacher.EmaTeacherOptions(), Preprocessing())
    params, other = (method.init_params(jax.random.key(seed)) for seed in (0, 1))
    view = method.corrupt(keys(4), batch(4, 8), Variables())

    def loss(params, ema):
        total, _ = method.loss(method.forward(Variables(params, ema), view, keys(4), True), view)["loss"]
        return total.sum()

    by_params, by_teacher = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, other)
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(by_teacher))
    assert (np.asarray(by_params["head"]["kernel"]) != 0).any()
    assert loss(params, params) != loss(params, other)


def test_a_teacher_needs_an_average(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.optim\.ema=0"):
        trained(ema_teacher, tmp_path, **{"optim.ema": 0.0})


@pytest.mark.slow
def test_an_annotation_its_view_and_an_evaluator(tmp_path: Path) -> None:
    lines = trained(points, tmp_path / "run", **{"schedule.steps": 150, "optim.lr": 4e-3})
    errors = [line["eval/pixel_error"] for line in lines if "eval/pixel_error" in line]
    assert errors[-1] < 0.6 * errors[0]


def test_a_point_is_mirrored_with_its_image() -> None:
    method = points.Points(ViTConfig(image_size=(16, 16), patch=4, width=32, depth=1, heads=2))
    dataset = open_dataset("squares:40", "train")
    with Loader(dataset, method.view(train=True), batch_size=32, seed=0) as loader:
        data = loader.batch(0)
    images = np.asarray(method.preprocessing.images(data))[..., 0]
    where = [np.argwhere(image > 0.8).mean(axis=0) + 0.5 for image in images]
    np.testing.assert_allclose(np.array(where) / 16, data["point"], atol=1e-6)
    assert data["flip"].any() and not data["flip"].all()


def test_a_configuration_file_brings_its_method() -> None:
    config = check(load("tests/extensions/ema_teacher.py"))
    assert config.method == {"name": "ema_teacher", "mask_ratio": 0.5}
