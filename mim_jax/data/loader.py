"""Batches by step: which examples, in which view, on which host, is a function of (seed, step) alone."""

import itertools
import weakref
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Any

import numpy as np

from mim_jax.data import memory
from mim_jax.data.datasets.base import Dataset
from mim_jax.data.decode_pool import BatchRequest, DecodePool, HostBatch
from mim_jax.data.errors import DataError
from mim_jax.data.order import locate
from mim_jax.data.prefetch import Prefetcher
from mim_jax.data.views import View
from mim_jax.data.views.base import Index


def identity(batch: HostBatch) -> HostBatch:
    """Leaves a batch on the host."""
    return batch


class Loader:
    """Training batches without an end.

    batch_size: of all hosts together; the global batch of a step is positions [step * batch_size, (step + 1) * batch_size)
    of the endless order, and this host's part a contiguous slice of it.
    threads: 0 chooses one a core. prefetch: batches made ahead.
    stall_seconds: how long the consumer of `iterate` has waited so far.
    """

    def __init__(
        self,
        dataset: Dataset,
        view: View,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        threads: int = 0,
        prefetch: int = 2,
    ) -> None:
        if not len(dataset):
            raise DataError(f"The source {dataset.name} holds no images: give one that does.")
        view.check(dataset)
        self.dataset, self.view = dataset, view
        self.batch_size, self.seed, self.prefetch = batch_size, seed, prefetch
        self.stall_seconds = 0.0
        self._slice = host_slice(batch_size, process_index, process_count)
        self._prefetchers: weakref.WeakSet[Prefetcher] = weakref.WeakSet()
        self._pool = DecodePool(dataset, view, threads)

    @property
    def threads(self) -> int:
        """Decoding threads in use."""
        return self._pool.threads

    @property
    def host_batch_size(self) -> int:
        """Examples of each batch on this host."""
        return int(self._slice.stop - self._slice.start)

    def batch(self, step: int, limit: int | None = None) -> HostBatch:
        """This host's part of the global batch of `step` (0 and up), or its first `limit` examples: `mim_jax.data.views`."""
        r = self._request(step)
        return self._pool.submit(
            BatchRequest(r.index[:limit], r.epoch[:limit], r.valid[:limit], r.seed)
        ).result()

    def iterate(
        self, first_step: int, place: Callable[[HostBatch], Any] = identity
    ) -> Generator[Any, None, None]:
        """`place(batch(step))` for step = first_step, first_step + 1, ...; `place` runs in a background
        thread, one batch at a time."""
        requests = (self._request(step) for step in itertools.count(first_step))
        prefetcher = Prefetcher(self._pool, requests, place, self.prefetch, self._waited)
        self._prefetchers.add(prefetcher)
        return iter(prefetcher)

    def memory_budget_bytes(self) -> int:
        """What the loader will hold on this host, at most, in bytes: see `memory.budget`."""
        return sum(self._budget().values())

    def describe_memory(self) -> str:
        """The budget in one line, to be printed before the start."""
        return memory.describe(self._budget())

    def close(self) -> None:
        """Ends every iteration and all threads."""
        for prefetcher in list(self._prefetchers):
            prefetcher.close()
        self._pool.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _budget(self) -> dict[str, int]:
        return memory.budget(self.dataset, self.view, self.host_batch_size, self.prefetch, self.threads)

    def examples(self, step: int) -> tuple[Index, Index]:
        """(epoch, index) of all examples of the global batch of `step`, int64 [B] each."""
        start = step * self.batch_size
        positions = np.arange(start, start + self.batch_size, dtype=np.int64)
        return locate(positions, len(self.dataset), seed=self.seed)

    def _request(self, step: int) -> BatchRequest:
        start = step * self.batch_size
        positions = np.arange(start + self._slice.start, start + self._slice.stop, dtype=np.int64)
        epoch, index = locate(positions, len(self.dataset), seed=self.seed)
        return BatchRequest(index, epoch, np.ones(len(index), bool), self.seed)

    def _waited(self, seconds: float) -> None:
        self.stall_seconds += seconds


def evaluation_batches(
    dataset: Dataset,
    view: View,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    first: int = 0,
    limit: int | None = None,
    threads: int = 0,
    seed: int = 0,
) -> Generator[HostBatch, None, None]:
    """Every example once, in the dataset's order: epoch is 0, the last batch is padded with example 0 and valid=False.

    first: number of the first example. limit: at most so many examples. seed: only a random crop depends on it, and is then a
    function of the index. All hosts get the same number of batches.
    """
    view.check(dataset)
    part = host_slice(batch_size, process_index, process_count)
    end = len(dataset) if limit is None else min(first + limit, len(dataset))
    return _evaluate(DecodePool(dataset, view, threads), range(first, end), batch_size, part, seed)


def _evaluate(
    pool: DecodePool, examples: range, batch_size: int, part: slice, seed: int
) -> Generator[HostBatch, None, None]:
    def requests() -> Iterator[BatchRequest]:
        for start in range(examples.start, examples.stop, batch_size):
            index = np.arange(start + part.start, start + part.stop, dtype=np.int64)
            valid = index < examples.stop
            yield BatchRequest(np.where(valid, index, 0), np.zeros_like(index), valid, seed)

    try:
        yield from Prefetcher(pool, requests(), identity, 1, lambda seconds: None)
    finally:
        pool.close()


def host_slice(batch_size: int, process_index: int, process_count: int) -> slice:
    """This host's contiguous part of the global batch. Raises DataError."""
    if batch_size < 1 or batch_size % process_count:
        raise DataError(
            f"The batch size {batch_size} cannot be divided among {process_count} hosts: make it a positive"
            f" multiple of {process_count}."
        )
    if not 0 <= process_index < process_count:
        raise DataError(
            f"The process index {process_index} is not below the process count {process_count}: number hosts"
            " from 0."
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)
