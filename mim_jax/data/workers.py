"""Decoding threads that fill batches.

Threads, not processes: simplejpeg, PIL's resize and numpy's copies run without the interpreter lock, and
batches need not be copied between processes.
"""

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from mim_jax.data.assemble import Extras, Request, allocate, can_gather, fill, gather, is_all_served
from mim_jax.data.datasets.base import Dataset
from mim_jax.data.spec import InputSpec

HostBatch = dict[str, np.ndarray]
MOST_THREADS = 32


def choose_threads(threads: int) -> int:
    """The number given, or for 0 as many as this process may use cores, at most 32."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return threads if threads > 0 else min(cores, MOST_THREADS)


class Making:
    """A batch while it is made."""

    def __init__(self, batch: HostBatch) -> None:
        self._batch = batch
        # Rows still to be filled: a deque's popleft is one step of the interpreter, so threads need no lock.
        self.rows: deque[int] = deque()
        self.futures: list[Future[None]] = []

    def finish(self) -> HostBatch:
        """Waits for the whole batch; raises the first error of its threads as it was."""
        for future in self.futures:
            future.result()
        return self._batch

    def abandon(self) -> None:
        """Lets the threads go after the picture each has in hand."""
        self.rows.clear()


class Crew:
    """A pool of threads that fills batches of one source and spec; the threads start with the first batch."""

    def __init__(self, dataset: Dataset, spec: InputSpec, extras: Extras, threads: int) -> None:
        self._dataset, self._spec, self._extras = dataset, spec, extras
        self.threads = choose_threads(threads)
        self._gather, self._all_served = can_gather(dataset, spec), is_all_served(spec, extras)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def start(self, request: Request) -> Making:
        """Begins a batch."""
        batch = allocate(request, self._spec, self._extras, self._dataset)
        making = Making(batch)
        if self._gather:
            gather(batch, request, self._dataset, self._spec)
        if self._gather or self._all_served:
            return making
        making.rows.extend(range(len(request.index)))
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="mim_jax-decode")
            for _ in range(min(self.threads, len(request.index))):
                making.futures.append(self._pool.submit(self._work, batch, making, request))
        return making

    def make(self, request: Request) -> HostBatch:
        """A whole batch."""
        return self.start(request).finish()

    def close(self) -> None:
        """Ends the threads; a later `start` begins new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

    def _work(self, batch: HostBatch, making: Making, request: Request) -> None:
        try:
            fill(batch, making.rows, request, self._dataset, self._spec)
        except BaseException:
            making.abandon()
            raise
