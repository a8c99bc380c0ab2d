"""Being asked to stop, having a directory for ourselves, and what we say meanwhile."""

import fcntl
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

from mim_jax.storage import open_to_append

LOCK = "lock"
PERIOD = 0.1
"""Seconds between two looks at what others do."""


def say(text: str) -> None:
    """A line for people, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Stop:
    """Whether SIGTERM or Ctrl-C asked us to stop."""

    asked = False

    @contextmanager
    def on_signals(self) -> Iterator[Self]:
        """Listens; earlier handlers come back at the end."""
        before = {kind: signal.signal(kind, self._ask) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _ask(self, *_: Any) -> None:
        self.asked = True


@contextmanager
def locked(root: Path, stop: Stop) -> Iterator[IO[str] | None]:
    """Holds the directory's lock, waiting for it; None if we were asked to stop before it was ours.

    A comparison that was killed with -9 may have left a process at work there. It inherited the lock, so two never write
    to one run.
    """
    with open_to_append(root / LOCK) as file:
        waited = False
        while not stop.asked:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waited:
                    say(
                        f"an earlier start, or a run that it left behind, is still at work in {root}: waiting"
                    )
                waited = True
                time.sleep(PERIOD)
            else:
                yield file
                return
        yield None
