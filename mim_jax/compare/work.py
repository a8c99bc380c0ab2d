"""Working through cells: some at a time, stage after stage, until all are done or somebody asks us to stop."""

import collections
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mim_jax.compare.control import PERIOD, Stop, say
from mim_jax.compare.cores import Cores, divided
from mim_jax.compare.process import Process
from mim_jax.compare.records import DONE, FAILED, RUNNING, Records, end_of
from mim_jax.compare.stages import Stage
from mim_jax.training.shutdown import EXIT_AGAIN

STARTS = 5
"""A process that exits with 75, though we did not ask it to stop, is started so many times."""


class Work:
    """Runs stages. One thread: a cell is a generator that yields while its process works."""

    def __init__(
        self, records: Records, main: Sequence[str], lock: int, stop: Stop, changed: Callable[[], None]
    ) -> None:
        self._records, self._main, self._lock, self._stop, self._changed = records, main, lock, stop, changed
        self._left: dict[str, Stage] = {}
        self._total, self._slots = 0, 1

    def run(self, cells: Sequence[Sequence[Stage]], slots: int) -> None:
        """Runs what is not done of the cells, in order, `slots` at a time, each on its own cores."""
        stages = [stage for cell in cells for stage in cell]
        self._left = {stage.key: stage for stage in stages if not self._records.is_done(stage.key)}
        self._total, self._slots = len(stages), slots
        waiting, cores = collections.deque(cells), divided(slots)
        working: dict[int, Iterator[None]] = {}  # slot -> its cell
        while working or waiting:
            for slot in range(slots):
                if waiting and slot not in working:
                    working[slot] = self._cell(waiting.popleft(), cores[slot])
            working = {slot: cell for slot, cell in working.items() if next(cell, DONE) is not DONE}
            if working:
                time.sleep(PERIOD)

    def _cell(self, stages: Sequence[Stage], cores: Cores | None) -> Iterator[None]:
        for number, stage in enumerate(stages):
            if self._stop.asked:
                return
            if self._records.is_done(stage.key):
                continue
            yield from self._stage(stage, cores)
            if not self._records.is_done(stage.key):
                for later in stages[number:]:
                    self._left.pop(later.key, None)
                return

    def _stage(self, stage: Stage, cores: Cores | None) -> Iterator[None]:
        started = time.perf_counter()
        for _ in range(STARTS):
            process = Process(stage, self._main, self._lock, cores)
            self._records.put(stage, RUNNING, pid=process.pid)
            say(f"started  {stage.title}")
            told = False
            while (code := process.poll()) is None:
                if self._stop.asked and not told:
                    process.stop()
                    told = True
                yield
            if code != EXIT_AGAIN or self._stop.asked:
                break
        seconds = time.perf_counter() - started
        if code == 0:
            end = end_of(stage)
            if end["values"]:
                self._ended(stage, DONE, seconds, **end)
            else:
                self._ended(stage, FAILED, seconds, reason="exit 0, but without metrics")
        elif self._stop.asked:
            say(f"stopped  {stage.title} after {seconds:.0f} s")
        else:
            self._ended(stage, FAILED, seconds, reason=process.reason())

    def _ended(self, stage: Stage, status: str, seconds: float, **fields: Any) -> None:
        self._records.put(stage, status, seconds=seconds, **fields)
        self._left.pop(stage.key, None)
        word = f"finished {stage.title}" if status == DONE else f"FAILED   {stage.title} ({fields['reason']})"
        say(f"{word} in {seconds:.0f} s; {self._what_is_left()}")
        self._changed()

    def _what_is_left(self) -> str:
        """How many stages, and how long they take if they take as long as others of their name did."""
        known = collections.defaultdict(list)
        for record in self._records.all():
            if record.status == DONE:
                known[record.stage].append(record.seconds)
        text = f"{len(self._left)} of {self._total} stages left"
        if self._left and all(stage.name in known for stage in self._left.values()):
            seconds = sum(statistics.mean(known[stage.name]) for stage in self._left.values()) / self._slots
            text += f", about {seconds / 60:.0f} min"
        return text
