"""Several real processes as one run (gloo): the losses of one, refusals that name the host, a death that all notice, a stop."""

import dataclasses
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_resume import environment, history

from mim_jax.config.check import ConfigError
from mim_jax.errors import ExitCode
from mim_jax.training import cluster
from mim_jax.training.checkpoints import Checkpoints
from mim_jax.training.cluster import Cluster, Peers, find_cluster
from tests.meshes import mesh_of

OPTIONS = {
    "model.variant": "mu", "schedule.steps": 200, "schedule.warmup_epochs": 0.0, "schedule.warmup_steps": 2, "data.batch_size": 16,
    "method.decoder_width": 16, "method.decoder_depth": 1, "method.decoder_heads": 2, "checkpoint.every_steps": 8,
    "eval.every_steps": 200, "eval.heldout_examples": 32, "eval.knn": False, "eval.baselines": False, "log.every_steps": 1,
    "log.tensorboard": False,
}  # fmt: skip

LAST_STEP = 200  # so many that a signal arrives before the end


def command(workdir: Path, *more: str) -> list[str]:
    flags = [f"--config.{key}={value}" for key, value in OPTIONS.items()]
    return [
        sys.executable,
        "-m",
        "mim_jax.main",
        "--config=configs/mae.py",
        f"--workdir={workdir}",
        *flags,
        *more,
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def start(
    workdir: Path, count: int, more: Sequence[Sequence[str]] = (), numbers: Sequence[int] = ()
) -> list["subprocess.Popen[str]"]:
    """`count` processes of one run; more: further arguments of each; numbers: which of them are started (all)."""
    port = free_port()
    return [
        subprocess.Popen(
            command(
                workdir, f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={number}",
                *(more[number] if more else ()),
            ),
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in (numbers or range(count))
    ]  # fmt: skip


def finish(processes: Sequence["subprocess.Popen[str]"]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and our lines of stderr of each; all of stderr is printed."""
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        print(err)
        ended.append(
            (
                process.returncode,
                out,
                "\n".join(line for line in err.splitlines() if line.startswith("mim_jax:")),
            )
        )
    return ended


def wait_for_step(process: "subprocess.Popen[str]", step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step") and int(line.split()[1].split("/")[0]) >= step:
            return
    raise AssertionError(f"it ended before step {step}")


def arrays(workdir: Path, mesh: jax.sharding.Mesh | None = None) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, restored onto one device, or replicated over a mesh."""
    where: Any = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if mesh is not None:
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        tree = checkpoints.metadata(LAST_STEP)["tree"]
        _, state = checkpoints.restore_partial(
            jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), tree)
        )
    return {jax.tree_util.keystr(p): np.asarray(v) for p, v in jax.tree_util.tree_leaves_with_path(state)}


@pytest.mark.slow
def test_four_processes_then_two_then_one_have_the_losses_of_one(tmp_path: Path) -> None:
    """A stop of four, a death in two, the end in one: what each saved, any other number goes on with."""
    workdir, host = tmp_path / "run", socket.gethostname()
    four = start(workdir, 4)
    wait_for_step(four[0], 10)
    four[3].send_signal(signal.SIGTERM)  # to any one: all save the same step
    assert [code for code, _, _ in finish(four)] == [ExitCode.STOPPED] * 4

    two = start(workdir, 2)
    wait_for_step(two[0], 100)
    two[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    (code, _, err), _ = finish(two)
    assert code == ExitCode.STOPPED and time.monotonic() - killed < 60
    assert err == f"mim_jax: process 1 ({host}) is gone; the same command resumes from the newest checkpoint"

    for directory in (workdir, tmp_path / "one"):
        one = subprocess.run(
            command(directory), env=environment(), capture_output=True, text=True, check=False
        )
        assert one.returncode == 0, one.stderr[-2000:]
        assert ("resumed from checkpoint" in one.stdout) == (directory == workdir)
    ours, theirs = history(workdir), history(tmp_path / "one")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for key in ("train/loss", "train/grad_norm", "eval/loss"):
        values = [[line[key] for line in lines if key in line] for lines in (ours, theirs)]
        np.testing.assert_allclose(*values, rtol=1e-5)
    expected = arrays(workdir)
    for devices in (2, 8):
        for name, value in arrays(workdir, mesh_of(devices)).items():
            np.testing.assert_array_equal(value, expected[name])


@pytest.mark.slow
def test_a_process_with_other_settings_is_refused(tmp_path: Path) -> None:
    """By both, before anything is made."""
    for code, _, err in finish(start(tmp_path / "run", 2, [[], ["--config.optim.lr=1.0"]])):
        assert code == ExitCode.USAGE_ERROR
        assert re.match(
            r"mim_jax: process 1 \(.*\) was started with other settings than process 0 .*config.optim.lr: ",
            err,
        )
    assert not (tmp_path / "run").exists()


def meeting(*members: tuple[int, int, dict[str, Any]], timeout: float = 10.0) -> list[str]:
    """What each of several Peers is refused with, "" = nothing. members: (process, number of processes, settings)."""
    coordinator = f"localhost:{free_port()}"

    def meet(process: int, count: int, settings: dict[str, Any]) -> str:
        peers = Peers(
            Cluster(coordinator, count, process), settings, lambda old, new: sorted({*old} ^ {*new}), timeout
        )
        try:
            peers.meet()
        except ConfigError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(lambda member: meet(*member), members))


def test_processes_meet_or_all_hear_why_not() -> None:
    assert meeting((0, 3, {}), (1, 3, {}), (2, 3, {})) == ["", "", ""]
    for members, sentence in (
        (((0, 2, {}), (1, 2, {"seed": 1})), r"process 1 \(.*\) was started with other settings than process 0 \(.*\): seed"),
        (((0, 2, {}), (1, 3, {})), r"process 1 \(.*\) was told of 3 processes, process 0 \(.*\) of 2"),
        (((0, 3, {}), (1, 3, {}), (1, 3, {})), r"process 1 \(.*\) and .* both are process 1: give each its own --process_id"),
    ):  # fmt: skip
        refused = meeting(*members, timeout=5.0)
        assert refused[0] and all(
            re.fullmatch(sentence, said) or "did not answer" in said for said in refused
        ), refused
        assert re.fullmatch(sentence, refused[0])
    (said,) = meeting((0, 2, {}), timeout=0.5)
    assert re.fullmatch(r"process 1 did not come within 0.5 s; here are 0 \(.*\)", said)
    (said,) = meeting((1, 2, {}), timeout=0.5)
    assert re.match(
        r"process 1 \(.*\) could not reach process 0 at localhost:\d+ within 0.5 s \(.*\): is it started\?",
        said,
    )


def test_another_version_of_the_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = iter(("a", "b"))
    monkeypatch.setattr(cluster, "code_digest", lambda: next(digests))
    assert all(
        "runs another version of mim_jax or jax than process 0" in said
        for said in meeting((0, 2, {}), (1, 2, {}))
    )


def test_what_a_cluster_is_found_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "JAX_COORDINATOR_ADDRESS",
        "SLURM_STEP_NUM_TASKS",
        "TPU_WORKER_HOSTNAMES",
        "OMPI_COMM_WORLD_SIZE",
    ):
        monkeypatch.delenv(name, raising=False)
    assert find_cluster() is None
    assert find_cluster("a:1", 4, 3) == Cluster("a:1", 4, 3)
    for arguments, sentence in (
        (("a:1", 4, None), "all of --coordinator"), (("a", 4, 0), "no HOST:PORT"), (("a:1", 4, 4), "must lie in 0..3"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=sentence):
            find_cluster(*arguments)
    for name, value in (
        ("JAX_COORDINATOR_ADDRESS", "b:2"),
        ("JAX_NUM_PROCESSES", "8"),
        ("JAX_PROCESS_ID", "7"),
    ):
        monkeypatch.setenv(name, value)
    assert find_cluster() == Cluster("b:2", 8, 7)
    monkeypatch.setenv("JAX_PROCESS_ID", "x")
    with pytest.raises(ConfigError, match="JAX_PROCESS_ID=x in the environment is no number"):
        find_cluster()


def test_slurm_and_open_mpi_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {
        "SLURM_JOB_ID": "4242", "SLURM_STEP_NODELIST": "node[03-04]", "SLURM_NTASKS": "4", "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "4",
    }  # fmt: skip
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    found = find_cluster()
    assert found is not None and found.coordinator.startswith("node03:")
    assert dataclasses.replace(found, coordinator="") == Cluster("", 4, 2, (0,))
    for tasks, node, devices in (
        ("2(x2)", "1", (0,)),
        ("1(x4)", "2", None),
        ("3,1", "0", (0,)),
        ("3,1", "1", None),
    ):
        monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
        monkeypatch.setenv("SLURM_NODEID", node)
        found = find_cluster()
        assert found is not None and found.local_device_ids == devices
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # one process inside an allocation
    assert find_cluster() is None
