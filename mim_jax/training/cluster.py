"""Several processes as one run: who they are, whether they agree, and whether all are still there.

Process 0 listens at the coordinator's address before jax does. Every other process introduces itself: host, number of processes
it was told of, configuration, version of the code. Only where all have come and agree does any of them start jax.distributed;
else every one of them ends with the same sentence, which names the host. The connections stay open: a process that dies is
noticed by the others at once, on any accelerator, where a collective operation would wait for it.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax._src import (
    clusters,  # what jax.distributed.initialize asks, too: no public function tells what was detected
)

from mim_jax.config.check import ConfigError
from mim_jax.errors import ExitCode

START_SECONDS = 60.0
"""Within which all processes must have come."""
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """coordinator: "host:port" of process 0. local_device_ids: None = all devices of the host."""

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None


SIGNS = {
    "SLURM_STEP_NUM_TASKS": lambda value: int(value) > 1,
    "OMPI_COMM_WORLD_SIZE": lambda value: int(value) > 1,
    "TPU_WORKER_HOSTNAMES": lambda value: "," in value,
    "MEGASCALE_COORDINATOR_ADDRESS": bool,
    "JAX_COORDINATOR_ADDRESS": bool,
}
"""Environment variables by which a cluster shows itself, and whether their value means more than one process."""


def find_cluster(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Cluster | None:
    """The cluster that the arguments, JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or the scheduler (SLURM,
    Open MPI, Cloud TPU, Kubernetes) tell of; None for a process of its own.

    Raises:
        ConfigError: some of it is missing, or is no number.
    """
    given = (coordinator, num_processes, process_id)
    if given == (None, None, None) and not any(
        sign(os.environ[name]) for name, sign in SIGNS.items() if os.environ.get(name)
    ):
        return None
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _number("JAX_NUM_PROCESSES") if num_processes is None else num_processes
    process_id = _number("JAX_PROCESS_ID") if process_id is None else process_id
    devices: Any = None
    if given == (None, None, None) and None in (coordinator, num_processes, process_id):
        coordinator, num_processes, process_id, devices = (
            clusters.ClusterEnv.auto_detect_unset_distributed_params(
                coordinator, num_processes, process_id, None, None, int(START_SECONDS)
            )
        )
        if (
            _tasks_on_host() == 1
        ):  # jax gives a task the one device of its number; alone on its host it drives them all
            devices = None
    if coordinator is None or num_processes is None or process_id is None:
        raise ConfigError(
            "several processes need all of --coordinator=HOST:PORT, --num_processes=N and --process_id=I"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--coordinator={coordinator} is no HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id={process_id} must lie in 0..{num_processes - 1}, for --num_processes={num_processes}"
        )
    return Cluster(coordinator, num_processes, process_id, None if devices is None else tuple(devices))


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a command that several processes run together; for `cluster_of`."""
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="several processes as one run, each started with the same command: where process 0 listens. Not needed under SLURM,"
        " Open MPI, Kubernetes and on Cloud TPU pods",
    )
    parser.add_argument(
        "--num_processes", type=int, metavar="N", help="with --coordinator: how many there are"
    )
    parser.add_argument(
        "--process_id", type=int, metavar="I", help="with --coordinator: which this is, from 0"
    )
    parser.add_argument(
        "--start_timeout", type=float, default=START_SECONDS, metavar="S",
        help="seconds within which all processes must have come (60)",
    )  # fmt: skip


def cluster_of(options: argparse.Namespace) -> Cluster | None:
    """The cluster that the options, or the environment, tell of. Raises ConfigError."""
    return find_cluster(options.coordinator, options.num_processes, options.process_id)


def _tasks_on_host() -> int | None:
    """Processes of the run on this host, as the scheduler says; None where it does not."""
    if (local := os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")).isdigit():
        return int(local)
    counts: list[int] = []  # SLURM_STEP_TASKS_PER_NODE: "8(x2),4", by node
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if (found := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)) is not None:
            counts += [int(found[1])] * int(found[2] or 1)
    node = os.environ.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else None


def _number(name: str) -> int | None:
    value = os.environ.get(name)
    if not value:
        return None
    if not value.isdigit():
        raise ConfigError(f"{name}={value} in the environment is no number")
    return int(value)


def code_digest() -> str:
    """Of every Python file of the package: processes must run the same."""
    total = hashlib.sha256(jax.__version__.encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()[:12]


class Peers:
    """The other processes of a run.

    Args:
        settings: what must be the same everywhere: dotted names to values.
        differences: sentences on how two settings differ.
        timeout: seconds within which all must have come.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: Mapping[str, Any],
        differences: Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]],
        timeout: float = START_SECONDS,
    ) -> None:
        self._cluster, self._timeout, self._differences = cluster, timeout, differences
        self._me = {
            "process": cluster.process_id,
            "num_processes": cluster.num_processes,
            "host": socket.gethostname(),
            "code": code_digest(),
            "settings": json.loads(json.dumps(settings)),
        }
        self._connections: dict[
            int, socket.socket
        ] = {}  # of process 0: to all others; of the others: to process 0
        self._hosts: dict[int, str] = {cluster.process_id: str(self._me["host"])}
        self._leaving = False

    def meet(self) -> None:
        """Returns once all processes have come and agree.

        Raises:
            ConfigError: the same sentence on all that have come.
        """
        if self._cluster.process_id:
            self._introduce()
        else:
            self._receive_all()

    def watch(self) -> None:
        """From now on the process ends, with a sentence and an exit code, when another one is gone."""
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def leave(self, code: int) -> None:
        """This process ends on purpose. Another code than 0 or 75 ends the others, too."""
        self._leaving = True
        for connection in self._connections.values():
            try:
                _send(connection, {"leaving": code})
            except OSError:
                continue  # it has left already

    def _receive_all(self) -> None:
        port = int(self._cluster.coordinator.rpartition(":")[2])
        deadline = time.monotonic() + self._timeout
        introductions = {0: self._me}
        try:
            listener = socket.create_server(("", port), backlog=self._cluster.num_processes)
        except OSError as error:
            raise ConfigError(
                f"process 0 ({self._me['host']}) cannot listen on port {port} ({error.strerror}): give another one"
            ) from error
        problem = ""
        with listener:
            while len(introductions) < self._cluster.num_processes and not problem:
                listener.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    connection, _ = listener.accept()
                    connection.settimeout(5.0)
                    other = _receive(connection)
                    number = int(other["process"])
                except TimeoutError:
                    if time.monotonic() < deadline:
                        continue  # one that connected and said nothing
                    come = ", ".join(f"{n} ({i['host']})" for n, i in sorted(introductions.items()))
                    missing = [n for n in range(self._cluster.num_processes) if n not in introductions]
                    problem = (
                        f"{_processes(missing)} did not come within {self._timeout:g} s; here are {come}"
                    )
                    break
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # a stranger at the port
                problem = self._disagreement(other, introductions)
                self._connections[len(introductions) if problem else number] = connection
                introductions[number if not problem else -1] = other
        hosts = {number: other["host"] for number, other in introductions.items()}
        for connection in self._connections.values():
            connection.settimeout(None)
            try:
                _send(connection, {"problem": problem, "hosts": hosts})
            except OSError:
                continue  # gone: noticed by the watch, or the run ends anyway
        if problem:
            raise ConfigError(problem)
        self._hosts = hosts

    def _disagreement(self, other: Mapping[str, Any], introductions: Mapping[int, Mapping[str, Any]]) -> str:
        """What is wrong with a process that has come; "" = nothing."""
        who, number = f"process {other['process']} ({other['host']})", other["process"]
        if other["num_processes"] != self._cluster.num_processes:
            return f"{who} was told of {other['num_processes']} processes, process 0 ({self._me['host']}) of {self._cluster.num_processes}"
        if number in introductions:
            return f"{who} and {introductions[number]['host']} both are process {number}: give each its own --process_id"
        if other["code"] != self._me["code"]:
            return f"{who} runs another version of mim_jax or jax than process 0 ({self._me['host']}): install the same on all hosts"
        if changed := self._differences(self._me["settings"], other["settings"]):
            return f"{who} was started with other settings than process 0 ({self._me['host']}): {'; '.join(changed[:5])}"
        return ""

    def _introduce(self) -> None:
        host, _, port = self._cluster.coordinator.rpartition(":")
        deadline, me = (
            time.monotonic() + self._timeout,
            f"process {self._cluster.process_id} ({self._me['host']})",
        )
        while True:
            try:
                connection = socket.create_connection((host.strip("[]"), int(port)), timeout=5.0)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"{me} could not reach process 0 at {self._cluster.coordinator} within {self._timeout:g} s ({error}): is it started?"
                    ) from error
                time.sleep(0.2)
        try:
            _send(connection, self._me)
            connection.settimeout(self._timeout + 10)
            verdict = _receive(connection)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{me}: process 0 at {self._cluster.coordinator} did not answer ({error}): its output says why"
            ) from error
        if verdict["problem"]:
            raise ConfigError(verdict["problem"])
        connection.settimeout(None)
        self._connections[0] = connection
        self._hosts = {int(number): name for number, name in verdict["hosts"].items()}

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, connection in self._connections.items():
                _keep_alive(connection)
                selector.register(connection, selectors.EVENT_READ, number)
            while selector.get_map():
                for key, _ in selector.select():
                    if (sentence := self._heard(key.data)) is None:
                        selector.unregister(key.fileobj)
                    elif sentence:
                        self._end(*sentence)

    def _heard(self, number: int) -> tuple[str, int] | None:
        """What a process's connection tells: None = it has left on purpose; else why this process must end, and its code."""
        try:
            message = _receive(self._connections[number])
        except (OSError, ValueError):
            return (
                None
                if self._leaving
                else (f"process {number} ({self._hosts[number]}) is gone", ExitCode.STOPPED)
            )
        if "ended" in message:
            return str(message["ended"]), int(message["code"])
        code = int(message["leaving"])
        if code in (ExitCode.DONE, ExitCode.STOPPED):
            return None
        return f"process {number} ({self._hosts[number]}) has failed: its output says why", code

    def _end(self, sentence: str, code: int) -> None:
        """Ends this process, whatever it is doing; process 0 tells the others first."""
        if not self._cluster.process_id:
            for connection in self._connections.values():
                try:
                    _send(connection, {"ended": sentence, "code": code})
                except OSError:
                    continue  # that is the one that is gone
        again = "; the same command resumes from the newest checkpoint" if code == ExitCode.STOPPED else ""
        print(f"mim_jax: {sentence}{again}", file=sys.stderr, flush=True)
        os._exit(code)  # the main thread may be waiting for the lost process in a collective operation


def _processes(numbers: list[int]) -> str:
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket, longest: int = 1 << 20) -> dict[str, Any]:
    """The next message. Raises ValueError at the end of the connection, or for what is no message."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(line) > longest:
            raise ValueError("the connection has ended")
        line += byte
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("no message")
    return message


def _keep_alive(connection: socket.socket) -> None:
    """A host that loses its power says nothing: after some 40 s without an answer it is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # macOS names them otherwise
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
