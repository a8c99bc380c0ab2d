"""Passes and their tables: docs/papers/amt.md 10, T14, what checkpoints hold, and a run killed around a refresh."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import images, small_config
from test_resume import environment, history

from mim_jax.config.check import check
from mim_jax.config.files import load, override
from mim_jax.data import open_dataset
from mim_jax.data.views import ExampleNumbers
from mim_jax.methods import Variables, build_method
from mim_jax.methods.attention_bank import attention_maps
from mim_jax.tasks import train
from mim_jax.training.checkpoints import Checkpoints
from mim_jax.training.epochs import first_step_of
from mim_jax.training.feature_bank import FeatureBank, Interrupted
from mim_jax.training.monitoring.metric_writers import read_metrics
from mim_jax.training.optimiser import make_optimiser
from mim_jax.training.sharding import make_mesh
from mim_jax.training.state import create_state
from mim_jax.transfer.gathering import gather_hosts, local_rows

PHASES = {"method.start": 1, "method.interval": 1, "model.image_size": 32}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("arrays") / "images.npz"
    np.savez(path, images=images(30, 32), labels=np.arange(30) % 3)
    return open_dataset(f"arrays:{path}", "train")  # 27 of the 30


def made(dataset, overrides=None, devices: int = 1):
    config = small_config(
        "amt", {**PHASES, "eval.batch_size": 8, "data.batch_size": 8, **(overrides or {})}, devices
    )
    method = build_method(config)
    mesh = (
        make_mesh(config.mesh)
        if devices == 8
        else jax.make_mesh(
            (1, 1, 1),
            ("data", "fsdp", "tensor"),
            axis_types=(jax.sharding.AxisType.Auto,) * 3,
            devices=jax.devices()[:1],
        )
    )
    features = FeatureBank(method, dataset, mesh, config)
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    optimiser = make_optimiser(config, method.rules, shapes, 4.0)
    prepared = Variables(artefacts=features.initial())
    state = create_state(method, optimiser, prepared, ema=False, mesh=mesh, seed=config.seed)
    return method, features, state


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("bank", ["host", "device"])
def test_a_refresh_has_a_row_for_every_image(dataset, bank: str, devices: int) -> None:
    """T14: 27 images in batches of 8, the last padded; every row is that image's, whatever holds the table."""
    method, features, state = made(dataset, {"method.bank": bank}, devices)
    state = features.adopt(state)
    assert ("attention" in state.artefacts) == (bank == "device")
    before = features.complete(state).artefacts["attention"]
    assert before.shape == (27, 8, 8) and (np.asarray(before) == 1.0).all()
    state, metrics = features.refresh(method.refreshes, state, lambda: False)
    table = np.asarray(features.complete(state).artefacts["attention"])
    expected = attention_maps(method, state.params, jnp.asarray(dataset.images))
    np.testing.assert_allclose(table, expected, atol=1e-5)
    assert metrics["pass/attention_mean"] == pytest.approx(float(expected.mean()), abs=1e-5)
    if bank == "host":
        np.testing.assert_array_equal(
            features.join(ExampleNumbers()).columns["attention"].__getitem__(np.array([26, 0, 26])),
            table[[26, 0, 26]],
        )
    assert "MiB" in features.describe()[0]


@pytest.mark.slow
def test_shuffled_bank_moves_rows(dataset) -> None:
    method, features, state = made(dataset, {"method.control": "shuffled_bank"})
    state, _ = features.refresh(method.refreshes, features.adopt(state), lambda: False)
    own = np.asarray(attention_maps(method, state.params, jnp.asarray(dataset.images)))
    rows = method.refreshes[0].row_of(np.arange(27, dtype=np.int32), 27, 0)
    np.testing.assert_allclose(
        features.join(ExampleNumbers()).columns["attention"].__getitem__(rows), own, atol=1e-5
    )


@pytest.mark.slow
def test_an_interrupted_pass_changes_nothing(dataset) -> None:
    method, features, state = made(dataset)
    state, asked = features.adopt(state), iter([False, False, True])
    with pytest.raises(Interrupted):
        features.refresh(method.refreshes, state, lambda: next(asked))
    assert (features.join(ExampleNumbers()).columns["attention"].__getitem__(np.arange(27)) == 1.0).all()


def test_due_steps(dataset) -> None:
    """27 images in batches of 8: epoch e ends with update ceil(27 (e + 1) / 8)."""
    _, features, _ = made(dataset)
    due = [step for step in range(50) if features.due(step)]
    assert due == [first_step_of(e, 27, 8) for e in range(2, 15)] == [-(-27 * e // 8) for e in range(2, 15)]


def test_rows_of_other_hosts() -> None:
    mesh = jax.make_mesh((4, 2), ("data", "tensor"))
    x = jax.device_put(
        jnp.arange(24).reshape(8, 3), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    )
    np.testing.assert_array_equal(local_rows(x), np.arange(24).reshape(8, 3))
    np.testing.assert_array_equal(gather_hosts(np.arange(3)), np.arange(3))


OPTIONS = {
    "model.variant": "mu", "model.image_size": 16, "schedule.steps": 40, "schedule.warmup_steps": 4,
    "schedule.warmup_epochs": 0.0, "data.batch_size": 144, "method.start": 0, "method.interval": 1,
    "method.decoder_width": 16, "method.decoder_depth": 1, "method.decoder_heads": 2, "checkpoint.every_steps": 7,
    "eval.every_steps": 40, "eval.heldout_examples": 36, "eval.knn": False, "log.every_steps": 1, "log.tensorboard": False,
}  # fmt: skip


def command(workdir: Path) -> list[str]:
    flags = [f"--config.{key}={value}" for key, value in OPTIONS.items()]
    return [sys.executable, "-m", "mim_jax.main", "--config=configs/amt.py", f"--workdir={workdir}", *flags]


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        tree = checkpoints.metadata(40)["tree"]
        where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), tree)
        _, state = checkpoints.restore_partial(abstract)
    return {jax.tree_util.keystr(p): np.asarray(v) for p, v in jax.tree_util.tree_leaves_with_path(state)}


def learnt(workdir: Path) -> list[dict]:
    """The history without what a repeated pass says twice."""
    return [line for line in history(workdir) if "train/loss" in line or "eval/loss" in line]


@pytest.mark.slow
def test_killed_before_and_after_a_refresh_is_the_uninterrupted_run(tmp_path: Path) -> None:
    """1437 images in batches of 144: refreshes before updates 10, 20, 30, where the run also saves."""
    done = subprocess.run(
        command(tmp_path / "whole"), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("pass attention:") == 3
    process = subprocess.Popen(
        command(tmp_path / "parts"), env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step") and int(line.split()[1].split("/")[0]) >= 26:
            break  # after the second refresh, before the third
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(
        command(tmp_path / "parts"), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resumed from checkpoint" in done.stdout
    assert learnt(tmp_path / "parts") == learnt(tmp_path / "whole")
    ours, theirs = final_state(tmp_path / "parts"), final_state(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and any("attention" in name for name in ours)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("bank", ["host", "device"])
def test_one_program_a_phase(bank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T13: no recompilation inside a phase, refreshes included; and a refresh does reach the batches after it."""
    made, make = [], train.make_train_step

    def remember(*arguments: Any) -> Any:
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(train, "make_train_step", remember)
    options = {**OPTIONS, "method.bank": bank, "schedule.steps": 24, "checkpoint.every_steps": 100}
    config = check(override(load("configs/amt.py"), options))
    assert train.run(config, tmp_path) == 0
    assert [step._cache_size() for step in made] == [1, 1]
    passes = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "pass/attention_mean" in line]
    assert [line["step"] for line in passes] == [10, 20]
    assert all(0 < line["pass/attention_mean"] < 1 for line in passes)
