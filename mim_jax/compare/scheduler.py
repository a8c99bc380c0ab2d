"""Runs the stages that are not done, some cells at a time, each on its own cores, until all ended or a signal stops us."""

import collections
import contextlib
import fcntl
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self

from mim_jax.compare.results import DONE, FAILED, RUNNING, ResultStore, read_run
from mim_jax.compare.stages import Stage
from mim_jax.config.check import ConfigError
from mim_jax.errors import ExitCode
from mim_jax.storage import StorageError, make_directory, open_to_append

MAIN = (sys.executable, "-m", "mim_jax.main")
"""The command that runs a stage."""
LOCK = "lock"
POLL_SECONDS = 0.1
MAX_STARTS = 5
"""Starts of a process that exits with 75 although we did not ask it to stop."""

Cores = frozenset[int]


def print_with_time(text: str) -> None:
    """One line on the console."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class StopRequest:
    """Whether SIGTERM or Ctrl-C asked us to stop."""

    received = False

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[Self]:
        """Installs the handlers; earlier ones come back at the end."""
        before = {kind: signal.signal(kind, self._receive) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _receive(self, *_: Any) -> None:
        self.received = True


@contextlib.contextmanager
def exclusive(root: Path, stop: StopRequest) -> Iterator[IO[str] | None]:
    """Waits for the directory's lock and holds it; None if we were asked to stop before.

    Stages inherit the lock: one that outlived a comparison killed with -9 keeps it, so two never write to one run.
    """
    with open_to_append(root / LOCK) as file:
        printed = False
        while not stop.received:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not printed:
                    print_with_time(
                        f"an earlier start, or a run that it left behind, is still at work in {root}: waiting"
                    )
                printed = True
                time.sleep(POLL_SECONDS)
            else:
                yield file
                return
        yield None


def split_cores(num_jobs: int) -> list[Cores | None]:
    """The cores of each job, consecutive and as equal in number as can be; None = all.

    All for a single job, with fewer cores than jobs, and where the system does not pin processes.
    """
    if num_jobs == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * num_jobs
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < num_jobs:
        return [None] * num_jobs
    bounds = [job * len(cores) // num_jobs for job in range(num_jobs + 1)]
    return [frozenset(cores[start:end]) for start, end in itertools.pairwise(bounds)]


@contextlib.contextmanager
def _affinity(cores: Cores | None) -> Iterator[None]:
    """Processes started within inherit these cores (None = all)."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class StageProcess:
    """A running stage. Its output is appended to its log, below the command."""

    def __init__(self, stage: Stage, main: Sequence[str], lock: int, cores: Cores | None) -> None:
        make_directory(stage.log.parent)
        with open_to_append(stage.log) as log, _affinity(cores):
            log.write(f"\n$ {stage.command()}\n")
            log.flush()
            self._log, self._log_start = stage.log, stage.log.stat().st_size
            # In a session of its own the process gets no Ctrl-C but what we pass on.
            self._process = subprocess.Popen(
                [*main, *stage.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                start_new_session=True,
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Asks it to save and to exit with 75."""
        self._process.terminate()

    def failure_reason(self) -> str:
        """The exit code and the last line of its output."""
        code = self._process.returncode
        end = f"exit {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        output = self._log.read_bytes()[self._log_start :].decode(errors="replace")
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        return f"{end}: {lines[-1]}" if lines else f"{end}, without a word"


class Scheduler:
    """Runs stages in one thread: a cell is a generator that yields while its process works."""

    def __init__(
        self,
        results: ResultStore,
        main: Sequence[str],
        lock: int,
        stop: StopRequest,
        on_result: Callable[[], None],
    ) -> None:
        self._results, self._main, self._lock, self._stop = results, main, lock, stop
        self._on_result = on_result
        self._remaining: dict[str, Stage] = {}
        self._num_stages, self._num_jobs = 0, 1

    def run(self, cells: Sequence[Sequence[Stage]], num_jobs: int) -> None:
        """Runs what is not done of the cells, in order, `num_jobs` at a time. A failed stage ends its cell only."""
        stages = [stage for cell in cells for stage in cell]
        self._remaining = {stage.key: stage for stage in stages if not self._results.is_done(stage.key)}
        self._num_stages, self._num_jobs = len(stages), num_jobs
        waiting, cores = collections.deque(cells), split_cores(num_jobs)
        running: dict[int, Iterator[None]] = {}  # number of the job -> its cell
        while running or waiting:
            for job in range(num_jobs):
                if waiting and job not in running:
                    running[job] = self._run_cell(waiting.popleft(), cores[job])
            running = {job: cell for job, cell in running.items() if next(cell, DONE) is not DONE}
            if running:
                time.sleep(POLL_SECONDS)

    def _run_cell(self, stages: Sequence[Stage], cores: Cores | None) -> Iterator[None]:
        for number, stage in enumerate(stages):
            if self._stop.received:
                return
            if self._results.is_done(stage.key):
                continue
            yield from self._run_stage(stage, cores)
            if not self._results.is_done(stage.key):
                for later in stages[number:]:
                    self._remaining.pop(later.key, None)
                return

    def _run_stage(self, stage: Stage, cores: Cores | None) -> Iterator[None]:
        started = time.perf_counter()
        for _ in range(MAX_STARTS):
            try:
                process = StageProcess(stage, self._main, self._lock, cores)
            except StorageError as error:  # of this cell's directory; the others go on
                self._store(stage, FAILED, time.perf_counter() - started, reason=str(error))
                return
            self._results.put(stage, RUNNING, pid=process.pid)
            print_with_time(f"started  {stage.title}")
            terminated = False
            while (code := process.poll()) is None:
                if self._stop.received and not terminated:
                    process.terminate()
                    terminated = True
                yield
            if code != ExitCode.STOPPED or self._stop.received:
                break
        seconds = time.perf_counter() - started
        if code == 0:
            try:
                self._store(stage, DONE, seconds, **read_run(stage))
            except ConfigError as error:  # a damaged run is a failed cell; the others go on
                self._store(stage, FAILED, seconds, reason=str(error))
        elif self._stop.received:
            print_with_time(f"stopped  {stage.title} after {seconds:.0f} s")
        else:
            self._store(stage, FAILED, seconds, reason=process.failure_reason())

    def _store(self, stage: Stage, status: str, seconds: float, **fields: Any) -> None:
        self._results.put(stage, status, seconds=seconds, **fields)
        self._remaining.pop(stage.key, None)
        outcome = (
            f"finished {stage.title}" if status == DONE else f"FAILED   {stage.title} ({fields['reason']})"
        )
        print_with_time(f"{outcome} in {seconds:.0f} s; {self._remaining_text()}")
        self._on_result()

    def _remaining_text(self) -> str:
        """The number of stages left, and their time if each takes the mean of the finished stages of its name."""
        seconds_by_stage = collections.defaultdict(list)
        for result in self._results.all():
            if result.status == DONE:
                seconds_by_stage[result.stage].append(result.seconds)
        text = f"{len(self._remaining)} of {self._num_stages} stages left"
        names = [stage.name for stage in self._remaining.values()]
        if names and all(name in seconds_by_stage for name in names):
            seconds = sum(statistics.mean(seconds_by_stage[name]) for name in names) / self._num_jobs
            text += f", about {seconds / 60:.0f} min"
        return text
