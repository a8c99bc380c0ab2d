"""Batches filled by a pool of decoding threads.

Threads, not processes: simplejpeg, PIL's resize and numpy's copies run without the interpreter lock, and
batches need not be copied between processes.
"""

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mim_jax.data.datasets.base import Dataset
from mim_jax.data.views import ExampleKey, View
from mim_jax.data.views.base import Index

HostBatch = dict[str, np.ndarray]
MOST_THREADS = 32


@dataclass(frozen=True)
class BatchRequest:
    """What a batch is to hold: index and epoch int64 [B], valid bool [B]; seed: of the view's randomness."""

    index: Index
    epoch: Index
    valid: npt.NDArray[np.bool_]
    seed: int


def choose_threads(threads: int) -> int:
    """The number given, or for 0 as many as this process may use cores, at most 32."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return threads if threads > 0 else min(cores, MOST_THREADS)


class PendingBatch:
    """A batch while it is filled."""

    def __init__(self, batch: HostBatch) -> None:
        self.batch = batch
        # Rows still to be filled: a deque's popleft is one step of the interpreter, so threads need no lock.
        self.rows: deque[int] = deque()
        self.futures: list[Future[None]] = []

    def result(self) -> HostBatch:
        """Waits for all rows; raises the first error of the threads as it was."""
        for future in self.futures:
            future.result()
        return self.batch

    def abandon(self) -> None:
        """Lets the threads go after the image each has in hand."""
        self.rows.clear()


class DecodePool:
    """Threads that fill batches of one dataset and view; they start with the first batch that needs them."""

    def __init__(self, dataset: Dataset, view: View, threads: int) -> None:
        self._dataset, self._view = dataset, view
        self.threads = choose_threads(threads)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def submit(self, request: BatchRequest) -> PendingBatch:
        """Begins a batch."""
        index, epoch, seed = request.index, request.epoch, request.seed
        fixed = {
            "index": index.astype(np.int32),
            "epoch": epoch.astype(np.int32),
            "valid": request.valid,
        }
        rendered = self._view.render_batch(self._dataset, index, epoch, seed)
        if rendered is not None:
            return PendingBatch(rendered | fixed)
        rows = {name: np.empty((len(index), *s.shape), s.dtype) for name, s in self._view.keys.items()}
        pending = PendingBatch(rows | fixed)
        pending.rows.extend(range(len(index)))
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="mim_jax-decode")
            for _ in range(min(self.threads, len(index))):
                pending.futures.append(self._pool.submit(self._fill, pending, seed))
        return pending

    def close(self) -> None:
        """Ends the threads; a later `submit` begins new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

    def _fill(self, pending: PendingBatch, seed: int) -> None:
        """Takes rows of a batch and writes them, until none is left; the work of one thread."""
        batch = pending.batch
        try:
            while True:
                try:
                    row = pending.rows.popleft()
                except IndexError:
                    return
                key = ExampleKey(seed, int(batch["epoch"][row]), int(batch["index"][row]))
                for name, value in self._view.render(self._dataset[key.index], key).items():
                    batch[name][row] = value
        except BaseException:
            pending.abandon()
            raise
