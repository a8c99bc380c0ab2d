"""Batches made and placed ahead of their use, by one background thread over a pool of decoders."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

from mim_jax.data.decode_pool import BatchRequest, DecodePool, HostBatch, PendingBatch

POLL_SECONDS = 0.1  # How soon a waiting side notices that it is closed.
PENDING = 2  # While the last images of one batch are decoded, free threads begin the next.


class Prefetcher:
    """Batches of `requests` in order, at most `ahead` waiting ready.

    place: called in the background thread, one batch at a time. waited: told the seconds of each wait of the
    consumer. An error of any thread is raised to the consumer as it was, after the batches before it.
    close: ends the thread; iteration then ends too.
    """

    def __init__(
        self,
        pool: DecodePool,
        requests: Iterator[BatchRequest],
        place: Callable[[HostBatch], Any],
        ahead: int,
        waited: Callable[[float], None],
    ) -> None:
        self._pool, self._requests, self._place, self._waited = pool, requests, place, waited
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=max(1, ahead))
        self._pending: deque[PendingBatch] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="mim_jax-prefetch", daemon=True)

    def __iter__(self) -> Generator[Any, None, None]:
        """A generator: dropping it, as `break` does, closes it."""
        self._thread.start()
        try:
            while True:
                before = time.perf_counter()
                kind, value = self._next()
                self._waited(time.perf_counter() - before)
                if kind == "error":
                    raise value
                if kind == "end":
                    return
                yield value
        finally:
            self.close()

    def close(self) -> None:
        """Ends the background thread, after the images in hand."""
        self._stop.set()
        for pending in tuple(self._pending):
            pending.abandon()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _next(self) -> tuple[str, Any]:
        while True:
            try:
                return self._ready.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if self._stop.is_set():
                    return "end", None

    def _put(self, kind: str, value: Any) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put((kind, value), timeout=POLL_SECONDS)
                return
            except queue.Full:
                continue

    def _produce(self) -> None:
        try:
            for request in self._requests:
                if self._stop.is_set():
                    return
                self._pending.append(self._pool.submit(request))
                if len(self._pending) == PENDING:
                    self._deliver()
            while self._pending:
                self._deliver()
            self._put("end", None)
        except BaseException as error:
            self._put("error", error)

    def _deliver(self) -> None:
        batch = self._pending[0].result()
        self._pending.popleft()
        if not self._stop.is_set():  # A batch abandoned on closing is incomplete.
            self._put("batch", self._place(batch))
