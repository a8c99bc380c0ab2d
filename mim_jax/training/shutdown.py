"""Stopping on request: SIGTERM (a scheduler wants the machine) or a first Ctrl-C asks, the loop saves.

with Shutdown() as shutdown:
    for step in ...:
        ...
        if shutdown.requested_at(step):
            checkpoints.save(step, state)
            checkpoints.wait()
            sys.exit(ExitCode.STOPPED)
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from absl import logging
from jax.experimental import multihost_utils


class Shutdown:
    """Notes that the run was asked to stop. A context manager; earlier handlers come back at the end.

    Where jax.distributed runs (enter this after its initialize), its preemption service keeps SIGTERM: it
    tells all processes of a signal to any one of them, and all stop at the same step. A first Ctrl-C goes on
    to that service; a second one interrupts at once.
    """

    def __init__(self) -> None:
        self._requested = False
        self._distributed = False
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop, or all were, as far as requested_at has said so."""
        return self._requested

    def requested_at(self, step: int) -> bool:
        """Whether to stop after `step`.

        On several processes all must ask at every step, and all get the same answer.
        """
        if self._distributed and multihost_utils.reached_preemption_sync_point(step):
            self._requested = True
        return self._requested

    def __enter__(self) -> Self:
        self._distributed = jax.distributed.is_initialized()
        if threading.current_thread() is not threading.main_thread():
            logging.warning(
                "signals cannot be handled outside the main thread: SIGTERM will not save this run."
            )
            return self
        # A Python handler for SIGTERM would take the place of the preemption service's own.
        for kind in (signal.SIGINT,) if self._distributed else (signal.SIGINT, signal.SIGTERM):
            self._before[kind] = signal.signal(kind, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            _put_back(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            _put_back(signal.SIGINT, self._before.pop(signal.SIGINT))
        if self._distributed:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._requested = True


def _put_back(number: signal.Signals, handler: Any) -> None:
    # None: it was installed from C, and Python cannot put that back.
    signal.signal(number, signal.SIG_DFL if handler is None else handler)
