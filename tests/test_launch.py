"""The files of launch/: what they run exists, and what they would do is what they say."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mim_jax.config.files import load
from mim_jax.errors import ExitCode
from mim_jax.main import parse

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"


def document(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((LAUNCH / name).read_text())
    return read


@pytest.mark.parametrize(
    "script", sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
)
def test_scripts_say_how_they_are_used_and_parse(script: str) -> None:
    lines = (LAUNCH / script).read_text().splitlines()
    assert lines[1].startswith("# ") and len(lines) < 80
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    if shutil.which("shellcheck"):  # another linter of shell scripts, where it is installed
        done = subprocess.run(
            ["shellcheck", "-x", LAUNCH / script], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stdout


def dry_run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [LAUNCH / "tpu_pod.sh", *arguments], capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **environment},
    )  # fmt: skip


def test_tpu_pod_prints_every_command() -> None:
    run = ["--config=configs/mae.py:imagenet", "--workdir=gs://b/mae", "--config.augment.scale=(0.2, 1.0)"]
    done = dry_run(
        "--dry-run",
        "pod",
        *run,
        TPU_ZONE="us-west4-a",
        TPU_TYPE="v5litepod-16",
        TPU_SPOT="1",
        TPU_PROJECT="p",
    )
    assert done.returncode == 0, done.stderr
    create, archive, copy, install, start = done.stdout.splitlines()
    assert create.split() == [
        "gcloud",
        "compute",
        "tpus",
        "tpu-vm",
        "create",
        "pod",
        "--zone",
        "us-west4-a",
        "--project",
        "p",
        "--accelerator-type",
        "v5litepod-16",
        "--version",
        "v2-alpha-tpuv5-lite",
        "--spot",
    ]
    assert re.fullmatch(
        r"gcloud compute tpus tpu-vm scp \S+ pod:mim_jax.tar.gz --zone us-west4-a --project p --worker=all ",
        copy,
    )
    assert archive.startswith("git archive --format=tar.gz --output=") and archive.split()[-1] == "HEAD"
    assert "--worker=all" in install and "launch/local.sh" in install and "jax\\[tpu\\]" in install
    # What the shell on the workers will see, quoted once for it and once for this one.
    remote = shlex.split(start)[-1]
    assert remote.startswith("cd mim_jax && ./launch/local.sh ")
    assert shlex.split(remote.partition("local.sh ")[2]) == run
    config, options = parse(run)
    assert options.workdir == "gs://b/mae" and config.augment.scale == (0.2, 1.0)


@pytest.mark.parametrize(("missing", "word"), [("TPU_ZONE", "set TPU_ZONE"), ("TPU_TYPE", "set TPU_TYPE")])
def test_tpu_pod_asks_for_what_it_needs(missing: str, word: str) -> None:
    given = {"TPU_ZONE": "z", "TPU_TYPE": "t"}
    del given[missing]
    done = dry_run("--dry-run", "pod", **given)
    assert done.returncode != 0 and word in done.stderr and done.stdout == ""


def test_jobset() -> None:
    """Its fields were checked against the JobSet and Kubernetes schemas; what they mean together, here."""
    jobset = document("jobset.yaml")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (
        re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        and rule["action"] == "FailJobSet"
    )
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert int(variables["JAX_NUM_PROCESSES"]) == job["parallelism"] == job["completions"]
    host, _, port = variables["JAX_COORDINATOR_ADDRESS"].partition(":")
    assert host == f"{jobset['metadata']['name']}-{replicated['name']}-0-0.{jobset['metadata']['name']}"
    assert int(port) == container["ports"][0]["containerPort"]
    (policy,) = job["podFailurePolicy"]["rules"]
    assert policy["onExitCodes"]["values"] == [ExitCode.USAGE_ERROR, ExitCode.DIVERGED]
    assert policy["onExitCodes"]["containerName"] == container["name"]
    config, options = parse(container["args"])
    assert options.workdir.startswith("gs://") and config.data.source == "tfds:imagenet2012"


def test_skypilot() -> None:
    """Its fields were checked against SkyPilot's own schema; every flag and variable that it uses, here."""
    task = document("skypilot.yaml")
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [ExitCode.STOPPED]
    known = {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        **task["envs"],
    }
    script = task["run"].replace("exec ./launch/local.sh", "printf '%s\\n'")
    done = subprocess.run(
        ["bash", "-euc", script], capture_output=True, text=True, check=True, env={**os.environ, **known}
    )
    _, options = parse(done.stdout.splitlines())
    assert (options.coordinator, options.num_processes, options.process_id) == ("10.0.0.1:8476", 2, 1)
    load(task["envs"]["CONFIG"])


def test_the_image_runs_what_is_here() -> None:
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    assert 'ENTRYPOINT ["python", "-m", "mim_jax.main"]' in lines
    assert all(
        (ROOT / word).exists() for line in lines if line.startswith("COPY") for word in line.split()[1:-1]
    )
