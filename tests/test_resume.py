"""The same run: stopped and started again, in one process and after kill -9, it is bit for bit the uninterrupted one."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mim_jax.config.check import check
from mim_jax.tasks import train
from mim_jax.training.checkpoints import Checkpoints

pytestmark = pytest.mark.slow

OPTIONS = {
    "model.variant": "mu",
    "schedule.steps": 24,
    "schedule.warmup_steps": 4,
    "data.batch_size": 16,
    "method.vocabulary": 16,
    "checkpoint.every_steps": 5,
    "eval.every_steps": 12,
    "eval.heldout_examples": 64,
    "eval.knn_examples": 128,
    "log.every_steps": 1,
    "model.drop_path": 0.2,
    "optim.ema": 0.9,
    "eval.baselines": False,
    "log.tensorboard": False,
}


def command(workdir: Path, **more: object) -> list[str]:
    options = {**OPTIONS, **{k.replace("__", "."): v for k, v in more.items()}}
    flags = [f"--config.{key}={value}" for key, value in options.items()]
    return [sys.executable, "-m", "mim_jax.main", "--config=configs/mapet.py", f"--workdir={workdir}", *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


def history(workdir: Path) -> list[dict]:
    """What was learnt: metrics.jsonl without timings."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.startswith("perf/") and "seconds" not in k} for line in lines
    ]


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, artefacts and optimiser included."""
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        tree = checkpoints.metadata(24)["tree"]
        where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), tree)
        _, state = checkpoints.restore_partial(abstract)
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("whole")
    done = subprocess.run(command(workdir), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return workdir


def assert_same_run(workdir: Path, whole: Path) -> None:
    assert history(workdir) == history(whole)
    ours, theirs = final_state(workdir), final_state(whole)
    assert ours.keys() == theirs.keys() and any("centroids" in name for name in ours)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def interrupted(workdir: Path, step: int, number: signal.Signals) -> tuple[int, str]:
    """Starts the run, sends a signal once it has logged a step; the exit code, and what it printed after that."""
    process = subprocess.Popen(command(workdir), env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step") and int(line.split()[1].split("/")[0]) >= step:
            process.send_signal(number)
            break
    printed = process.stdout.read()
    return process.wait(), printed


def test_a_kill_and_a_stop(uninterrupted: Path, tmp_path: Path) -> None:
    """kill -9 in one start, SIGTERM in the next: the third arrives where the uninterrupted run did."""
    assert interrupted(tmp_path, 7, signal.SIGKILL)[0] == -signal.SIGKILL
    code, printed = interrupted(tmp_path, 16, signal.SIGTERM)
    assert code == 75 and "asked to stop" in printed
    done = subprocess.run(command(tmp_path), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resumed from checkpoint" in done.stdout
    assert_same_run(tmp_path, uninterrupted)
    again = subprocess.run(command(tmp_path), env=environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "finished" in again.stdout  # a finished run says so and shows its result
    changed = subprocess.run(
        command(tmp_path, optim__lr=1e-4), env=environment(), capture_output=True, text=True, check=False
    )
    assert changed.returncode == 2 and "config.optim.lr" in changed.stderr


def in_process(workdir: Path, steps: int, total: int = 24) -> None:
    """Runs the small demo in this process up to `steps`, by way of a stop request."""
    import runpy

    config = runpy.run_path("configs/mapet.py")["get_config"]()
    for key, value in {**OPTIONS, "schedule.steps": total}.items():
        section, _, name = key.rpartition(".")
        config[section][name] = value
    checked = check(config)
    checked = dataclasses.replace(checked, mesh=dataclasses.replace(checked.mesh, data=8))
    stop = train.Shutdown.requested_at
    try:
        train.Shutdown.requested_at = lambda self, step: step >= steps
        train.run(checked, workdir)
    finally:
        train.Shutdown.requested_at = stop


def test_same_process_on_eight_devices(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    in_process(whole, 24)
    in_process(parts, 9)
    in_process(parts, 24)
    assert_same_run(parts, whole)


def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    started = time.perf_counter()
    done = subprocess.run(
        command(tmp_path, optim__lr=1000.0, optim__clip_norm=1e9, checkpoint__every_steps=1),
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, (done.returncode, done.stderr[-500:], time.perf_counter() - started)
    assert (
        "diverged" in done.stderr
        and "checkpoint" in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    )
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.newest_good() is not None
