"""A real SLURM on this machine: `sbatch launch/slurm.sbatch` runs two tasks to the end, and after a preemption resumes.

    python -m tests.slurm_cluster

starts munged, slurmctld and two slurmd on the loopback (Debian: apt-get install slurmctld slurmd slurm-client munge; it needs
root), in a directory of its own, and stops them again. Exit code 0: all held; 5: SLURM is not here.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests import test_processes
from tests.test_processes import OPTIONS, arrays, history

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol")
NODES = 2
STEPS = 200  # so many that the signal arrives before the end
OPTIONS |= {"schedule.steps": STEPS, "eval.every_steps": STEPS}
test_processes.LAST_STEP = STEPS
CONF = """ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
MinJobAge=3600
SchedulerType=sched/builtin
SelectType=select/linear
KillWait=60
InactiveLimit=0
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def slurm() -> Iterator[Path]:
    """The directory of a running cluster of two nodes; SLURM_CONF points to it."""
    folder, host = Path(tempfile.mkdtemp(prefix="slurm-")), socket.gethostname()
    ports = [_free_port() for _ in range(NODES + 1)]
    nodes = "\n".join(
        f"NodeName=127.0.0.{n + 1} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[n + 1]} CPUs=1 State=UNKNOWN"
        for n in range(NODES)
    )
    (folder / "slurm.conf").write_text(CONF.format(host=host, port=ports[0], folder=folder, nodes=nodes))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    (folder / "state").mkdir()
    folder.chmod(0o755)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    files = {name: f"{folder}/munge.{name}" for name in ("socket", "log-file", "pid-file", "seed-file")}
    munged = [shutil.which("munged") or "", "--foreground", "--force", f"--key-file={folder}/munge.key"]
    munged += [f"--{name}={path}" for name, path in files.items()]
    # --foreground and -D: children of this process, which it can stop.
    commands = [
        munged,
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", f"127.0.0.{n + 1}"] for n in range(NODES)),
    ]
    processes = []
    try:
        for command in commands:
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(1.0)
        yield folder
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def submit(workdir: Path, log: Path) -> str:
    """Queues the run; the job's number."""
    flags = [f"--config.{key}={value}" for key, value in OPTIONS.items()]
    done = subprocess.run(
        ["sbatch", "--parsable", f"--output={log}", "launch/slurm.sbatch", "--config=configs/mae.py", f"--workdir={workdir}", *flags],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"sbatch: {done.stderr}")
    return done.stdout.strip()


def state_of(job: str) -> dict[str, str]:
    """What scontrol says of a job."""
    told = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    return dict(pair.split("=", 1) for pair in told.split() if "=" in pair)


def wait_until_done(job: str, seconds: float = 600.0) -> dict[str, str]:
    """Its last state."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        told = state_of(job)
        if told["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"):
            return told
        time.sleep(1.0)
    raise RuntimeError(f"job {job} did not end: {told['JobState']} {told.get('Reason')}")


def wait_for(log: Path, words: str, seconds: float = 300.0) -> None:
    """Until the log has a line that begins so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if log.exists() and any(line.strip().startswith(words) for line in log.read_text().splitlines()):
            return
        time.sleep(0.2)
    raise RuntimeError(f"no {words!r} in {log}: {log.read_text() if log.exists() else 'no log'}")


def main() -> int:
    """Runs the two jobs and compares them; prints what it saw."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        print(f"skipped: {', '.join(missing)} not installed")
        return 5
    with slurm(), tempfile.TemporaryDirectory() as name:
        work = Path(name)
        first = submit(work / "whole", work / "whole.log")
        told = wait_until_done(first)
        print(
            f"job {first}: {told['JobState']}, exit {told['ExitCode']}, {told['NumNodes']} nodes, {told['NumTasks']} tasks"
        )
        print((work / "whole.log").read_text())
        second = submit(work / "parts", work / "parts.log")
        wait_for(work / "parts.log", f"step  50/{STEPS}")
        subprocess.run(["scancel", "--signal=TERM", second], check=True)
        wait_for(work / "parts.log", "mim_jax: asked to stop, and saved")
        time.sleep(2)
        again = state_of(second)
        print(f"job {second}: after scancel --signal=TERM {again['JobState']}, restarts {again['Restarts']}")
        # SLURM holds a queued-again job back for a while; it need not wait here.
        subprocess.run(
            ["scontrol", "update", f"JobId={second}", "StartTime=now"], check=False, capture_output=True
        )
        told = wait_until_done(second)
        print(f"job {second}: {told['JobState']}, exit {told['ExitCode']}, restarts {told['Restarts']}")
        print((work / "parts.log").read_text())
        same = history(work / "whole") == history(work / "parts")
        ours, theirs = arrays(work / "parts"), arrays(work / "whole")
        same = (
            same
            and ours.keys() == theirs.keys()
            and all(np.array_equal(ours[key], theirs[key]) for key in theirs)
        )
        print(f"the preempted run {'is' if same else 'IS NOT'} bit for bit the other one")
        return 0 if same and told["JobState"] == "COMPLETED" and told["Restarts"] == "1" else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.path.insert(0, str(ROOT / "tests"))
    sys.exit(main())
