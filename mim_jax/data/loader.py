"""Batches by step: which examples, in which view, on which host, is a function of (seed, step) alone."""

import itertools
import weakref
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Any

import numpy as np

from mim_jax.data import memory
from mim_jax.data.assemble import Extras, Request, check_extras, host_slice
from mim_jax.data.datasets.base import Dataset
from mim_jax.data.errors import DataError
from mim_jax.data.order import locate
from mim_jax.data.spec import Index, InputSpec
from mim_jax.data.stream import Stream
from mim_jax.data.workers import Crew, HostBatch


def identity(batch: HostBatch) -> HostBatch:
    """Leaves a batch on the host."""
    return batch


class Loader:
    """Training batches without an end.

    batch_size: of all hosts together; the global batch of a step is positions [step * batch_size, (step + 1) * batch_size)
    of the endless order, and this host's part a contiguous slice of it.
    threads: 0 chooses one a core. prefetch: batches made ahead.
    extras: for each name of `spec.extras` a function of index int64 [B] that gives the batch's array of that name.
    stall_seconds: how long the consumer of `iterate` has waited so far.
    """

    def __init__(
        self,
        dataset: Dataset,
        spec: InputSpec,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        threads: int = 0,
        prefetch: int = 2,
        extras: Extras | None = None,
    ) -> None:
        if not len(dataset):
            raise DataError(f"The source {dataset.name} holds no images: give one that does.")
        check_extras(spec, extras or {}, dataset)
        self.dataset, self.spec = dataset, spec
        self.batch_size, self.seed, self.prefetch = batch_size, seed, prefetch
        self.stall_seconds = 0.0
        self._slice = host_slice(batch_size, process_index, process_count)
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._crew = Crew(dataset, spec, extras or {}, threads)

    @property
    def threads(self) -> int:
        """Decoding threads in use."""
        return self._crew.threads

    @property
    def host_batch_size(self) -> int:
        """Examples of each batch on this host."""
        return int(self._slice.stop - self._slice.start)

    def batch(self, step: int) -> HostBatch:
        """This host's part of the global batch of `step` (0 and up), as in `mim_jax.data.spec`."""
        return self._crew.make(self._request(step))

    def iterate(
        self, first_step: int, place: Callable[[HostBatch], Any] = identity
    ) -> Generator[Any, None, None]:
        """`place(batch(step))` for step = first_step, first_step + 1, ...; `place` runs in a background
        thread, one batch at a time."""
        requests = (self._request(step) for step in itertools.count(first_step))
        stream = Stream(self._crew, requests, place, self.prefetch, self._waited)
        self._streams.add(stream)
        return iter(stream)

    def memory_budget_bytes(self) -> int:
        """What the loader will hold on this host, at most, in bytes: see `memory.budget`."""
        return sum(self._budget().values())

    def describe_memory(self) -> str:
        """The budget in one line, to be printed before the start."""
        return memory.describe(self._budget())

    def close(self) -> None:
        """Ends every iteration and all threads."""
        for stream in list(self._streams):
            stream.close()
        self._crew.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _budget(self) -> dict[str, int]:
        return memory.budget(self.dataset, self.spec, self.host_batch_size, self.prefetch, self.threads)

    def examples(self, step: int) -> tuple[Index, Index]:
        """(draw, index) of all examples of the global batch of `step`, int64 [B] each."""
        start = step * self.batch_size
        positions = np.arange(start, start + self.batch_size, dtype=np.int64)
        return locate(positions, len(self.dataset), seed=self.seed)

    def _request(self, step: int) -> Request:
        start = step * self.batch_size
        positions = np.arange(start + self._slice.start, start + self._slice.stop, dtype=np.int64)
        draw, index = locate(positions, len(self.dataset), seed=self.seed)
        return Request(index, draw, np.ones(len(index), bool), self.seed)

    def _waited(self, seconds: float) -> None:
        self.stall_seconds += seconds


def evaluation_batches(
    dataset: Dataset,
    spec: InputSpec,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    first: int = 0,
    limit: int | None = None,
    threads: int = 0,
    seed: int = 0,
    extras: Extras | None = None,
) -> Generator[HostBatch, None, None]:
    """Every example once, in source order: draw is 0, nothing is mirrored, the last batch is padded with
    example 0 and valid=False.

    first: number of the first example. limit: at most so many examples. seed: only a random crop depends on it, and is then a function of the
    index. All hosts get the same number of batches.
    """
    if spec.flip:
        raise DataError(
            "An evaluation does not mirror images, but its input spec has flip=True: give a spec with "
            "flip=False."
        )
    check_extras(spec, extras or {}, dataset)
    part = host_slice(batch_size, process_index, process_count)
    end = len(dataset) if limit is None else min(first + limit, len(dataset))
    return _evaluate(Crew(dataset, spec, extras or {}, threads), range(first, end), batch_size, part, seed)


def _evaluate(
    crew: Crew, examples: range, batch_size: int, part: slice, seed: int
) -> Generator[HostBatch, None, None]:
    def requests() -> Iterator[Request]:
        for start in range(examples.start, examples.stop, batch_size):
            index = np.arange(start + part.start, start + part.stop, dtype=np.int64)
            valid = index < examples.stop
            yield Request(np.where(valid, index, 0), np.zeros_like(index), valid, seed)

    try:
        yield from Stream(crew, requests(), identity, 1, lambda seconds: None)
    finally:
        crew.close()
